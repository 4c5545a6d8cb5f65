"""Loop overhead: a run of `code` with N = 4 against the bare network calls it must make, interleaved in one process.

    python benchmarks/overhead.py        prints the median ratio; the promise is <= 1.05

The bare side makes the same denoiser, decoder and reward calls on tensors of the same shapes, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

import tilting as tl
from tilting import sample as loop
from tilting.experiments.generate import identities, value_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model, reward, n = tl.load("pocket"), tl.rewards.clip(), 4
    prompts = ["a fox"] * options.images
    who = identities(["a fox"], 0, options.images)
    grid = model.schedule.grid(options.steps)
    out = {}
    for name, preset in {"base-4": tl.presets.base(), "code": tl.presets.code(particles=n)}.items():
        method = preset.build(options.steps)
        m = options.images * method.particles
        value = value_of(model, reward, prompts)
        problem = loop.Problem(model.denoiser(prompts, 4.0), grid, who, model.latent_shape, value, 1.0, 4.0, m)
        rows = torch.arange(options.images).repeat_interleave(method.particles)
        x = torch.randn(m, *model.latent_shape)
        selections = method.select_when.count(options.steps) if method.select else 0

        def run(problem=problem, method=method) -> None:
            *_, (last, _) = loop.sample(problem, method)
            loop.finish(problem, method, last)

        def bare(problem=problem, x=x, rows=rows, value=value, calls=selections + (method.final == "reward")) -> None:
            for t in grid[:-1]:
                problem.denoise(x, t, rows)
            for _ in range(calls):
                value(x, rows)

        run(), bare()
        pairs = []
        for _ in range(options.rounds):
            a = time.perf_counter()
            run()
            b = time.perf_counter()
            bare()
            pairs.append((b - a, time.perf_counter() - b))
        ratios = [a / b for a, b in pairs]
        out[name] = {"ratio": round(statistics.median(ratios), 4), "run_s": round(statistics.median(a for a, _ in pairs), 3),
                     "bare_s": round(statistics.median(b for _, b in pairs), 3)}  # fmt: skip
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
