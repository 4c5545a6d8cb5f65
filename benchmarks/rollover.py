"""Rollover budget forcing, whose particle count adapts, against CoDe and CoDeX that are given no more evaluations.

    python benchmarks/rollover.py [--steps 25] [--prompts 20] [--images 4] [--quota 6]

rbf (Kim et al. 2025) draws ``quota`` children a step on average; what it paid bounds N of the other two. Rewards, seeds and
what is printed are those of benchmarks/ordering.py.
"""

from __future__ import annotations

import argparse
import json

from ordering import PROMPTS, differences, row

import tilting as tl
from tilting.presets import Preset


def within(most: float, preset: type, steps: int) -> Preset:
    """The preset with as many particles as cost at most so many evaluations an image."""
    n = 1
    while preset(particles=n + 1).build(steps).cost(steps).evaluations <= most:
        n += 1
    return preset(particles=n)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--quota", type=int, default=6)
    options = parser.parse_args()
    model, p, found = tl.load("pocket"), tl.presets, {}
    what = options.steps, PROMPTS[: options.prompts], options.images
    for reward in (tl.rewards.clip(), tl.rewards.style(), tl.rewards.jpeg()):
        rows, table = {}, {}
        rows["rbf"], table["rbf"] = row(model, reward, p.rbf(particles=options.quota), *what)
        for preset in (p.code, p.codex) if reward.differentiable else (p.code,):
            ours = within(table["rbf"]["evaluations_per_image"], preset, options.steps)
            rows[ours.name], table[ours.name] = row(model, reward, ours, *what)
        beside = {name: rows[name] for name in ("code", "rbf", "codex") if name in rows}
        found[reward.name] = {**table, "differences": differences(beside, *what[1:])}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
