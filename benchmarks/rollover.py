"""Rollover budget forcing, whose particle count adapts, against CoDe and CoDeX that are given no more evaluations.

    python benchmarks/rollover.py [--steps 25] [--prompts 20] [--images 4] [--quota 6] [--rewards clip style jpeg]

rbf (Kim et al. 2025) draws ``quota`` children a step on average; what it paid bounds N of the others. CoDe comes with its usual
block and, as code-1, with a selection after every draw, which is how often rbf selects. Printed: means, judge, evaluations, and
the paired 95 % t intervals over prompts of each less rbf.
"""

from __future__ import annotations

import argparse
import json

from ordering import PROMPTS, row

import tilting as tl
from tilting.cost import cost
from tilting.metrics.statistics import interval
from tilting.presets import Preset

OURS = {"code": (tl.presets.code, {}), "code-1": (tl.presets.code, {"block": 1}), "codex": (tl.presets.codex, {})}


def within(most: float, preset: type, settings: dict, steps: int) -> Preset:
    """The preset with as many particles as cost at most so many evaluations an image."""
    n = 1
    while cost(preset(particles=n + 1, **settings).build(steps), steps).evaluations <= most:
        n += 1
    return preset(particles=n, **settings)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--quota", type=int, default=6)
    parser.add_argument("--rewards", nargs="+", default=["clip", "style", "jpeg"], choices=["clip", "style", "jpeg"])
    options = parser.parse_args()
    model, found = tl.load("pocket"), {}
    prompts, images = PROMPTS[: options.prompts], options.images
    groups = [p for p in prompts for _ in range(images)]
    for name in options.rewards:
        reward = getattr(tl.rewards, name)()
        theirs, means = row(model, reward, tl.presets.rbf(particles=options.quota), options.steps, prompts, images)
        table, apart = {"rbf": means}, {}
        for ours, (preset, settings) in OURS.items():
            if ours == "codex" and not reward.differentiable:
                continue
            same = within(means["evaluations_per_image"], preset, settings, options.steps)
            rewards, table[ours] = row(model, reward, same, options.steps, prompts, images)
            apart[f"{ours} - rbf"] = [None if v is None else round(v, 4) for v in interval(rewards, theirs, groups)]
        found[name] = {**table, "differences": apart}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
