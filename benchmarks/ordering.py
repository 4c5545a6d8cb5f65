"""Does steering work? 20 known prompts, 4 images each, the same seeds under every method.

    python benchmarks/ordering.py [--steps 25] [--prompts 20] [--images 4]

Prints, for the rewards clip and style: the mean reward of base, code and codex, the judge's score, and the paired
95 % t intervals over prompts of codex - code and code - base; and for jpeg the bytes of base and code.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise

import tilting as tl
from tilting.generation.api import Result
from tilting.metrics.judge import PocketJudge
from tilting.metrics.statistics import interval

PROMPTS = [
    "a fox",
    "an owl",
    "a panda",
    "a butterfly",
    "a crab",
    "a penguin",
    "a sunflower",
    "a cactus",
    "a rose",
    "a pizza",
    "a strawberry",
    "a cupcake",
    "a car",
    "a rocket",
    "a sailboat",
    "a castle",
    "a volcano",
    "a guitar",
    "a robot",
    "a ghost",
]


def row(model, reward, preset, steps: int, prompts: list[str], images: int) -> tuple[list[float], dict]:
    """One preset's (reward of every image, means and costs)."""
    result: Result = tl.generate(model, prompts, reward, preset, steps=steps, images=images)
    records, summary = result.manifest["images"], result.manifest["summary"]
    judged = PocketJudge().score(result.images, [r["prompt"] for r in records])
    means = {
        "reward": round(summary["reward_mean"], 4),
        "judge": round(judged.mean().item(), 3),
        "evaluations_per_image": summary["evaluations"] / len(records),
        "seconds": summary["seconds"],
    }
    print(reward.name, preset, means, file=sys.stderr)
    return [r["reward"] for r in records], means


def compare(model, reward, presets: list, steps: int, prompts: list[str], images: int) -> dict:
    """Presets on the same seeds, and each less the one before; see this file's first lines."""
    rows, table, groups = {}, {}, [p for p in prompts for _ in range(images)]
    for preset in presets:
        rows[preset.name], table[preset.name] = row(model, reward, preset, steps, prompts, images)
    apart = {
        f"{b} - {a}": [None if v is None else round(v, 4) for v in interval(rows[b], rows[a], groups)]
        for a, b in pairwise(rows)
    }
    return {**table, "differences": apart}


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
    prompts = PROMPTS[: options.prompts]
    found = {name: compare(model, *what, options.steps, prompts, options.images) for name, what in rewards.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
