"""Does steering work? 20 known prompts, 4 images each, the same seeds under every method.

    python benchmarks/ordering.py [--steps 25] [--prompts 20] [--images 4]

Prints, for the rewards clip and style: the mean reward of base, code and codex, the judge's score, and the paired
bootstrap 95 % intervals (whole prompts resampled) of codex - code and code - base; and for jpeg the bytes of base and code.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise

import tilting as tl
from tilting.experiments.generate import Result
from tilting.metrics.judge import PocketJudge
from tilting.metrics.statistics import paired_bootstrap

PROMPTS = [
    "a fox", "an owl", "a panda", "a butterfly", "a crab", "a penguin", "a sunflower", "a cactus", "a rose", "a pizza",
    "a strawberry", "a cupcake", "a car", "a rocket", "a sailboat", "a castle", "a volcano", "a guitar", "a robot", "a ghost",
]  # fmt: skip


def compare(model, rewards: dict, steps: int, prompts: list[str], images: int, seed: int = 0, batch_size: int = 16) -> dict:
    """Run every reward's methods on the same seeds; see this file's first lines."""
    judge, out = PocketJudge(), {}
    for name, (reward, presets) in rewards.items():
        rows: dict[str, list[float]] = {}
        table = {}
        for preset in presets:
            result: Result = tl.generate(model, prompts, reward, preset, steps, seed=seed, images=images, batch_size=batch_size)
            records, summary = result.manifest["images"], result.manifest["summary"]
            rows[preset.name] = [r["reward"] for r in records]
            groups = [r["prompt"] for r in records]
            judged = judge.score(result.images, groups)
            table[preset.name] = {
                "reward": round(summary["reward_mean"], 4), "judge": round(judged.mean().item(), 3),
                "evaluations_per_image": summary["evaluations"] / len(records), "seconds": summary["seconds"],
            }  # fmt: skip
            print(name, preset.name, table[preset.name], file=sys.stderr)
        names = list(rows)
        table["differences"] = {
            f"{b} - {a}": [round(v, 4) for v in paired_bootstrap(rows[b], rows[a], groups)] for a, b in pairwise(names)
        }
        out[name] = table
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    p = tl.presets
    rewards = {
        "clip": (tl.rewards.clip(), [p.base(), p.code(), p.codex()]),
        "style": (tl.rewards.style(), [p.base(), p.code(), p.codex()]),
        "jpeg": (tl.rewards.jpeg(), [p.base(), p.code()]),
    }
    model = tl.load("pocket")
    print(json.dumps(compare(model, rewards, options.steps, PROMPTS[: options.prompts], options.images), indent=1))


if __name__ == "__main__":
    main()
