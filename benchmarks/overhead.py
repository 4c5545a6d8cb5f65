"""A whole run at N = 4 (loop, decoding, rewards, PNGs, manifest; loading aside) against the bare network calls it made.

    python benchmarks/overhead.py                  prints the median ratios and their quartiles; the promise is <= 1.03
    python benchmarks/overhead.py --clock cpu      this process's own seconds on one thread, for a machine that is not idle

Runs and bare calls take turns in one process, each first in every other round. The bare side makes as many denoiser, decoder
and reward calls (with their backward passes, for codex) on tensors of the same shapes, and nothing else; the judge, which is
not part of sampling, is left out of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tilting.config.generate import resolve
from tilting.generation.run import Parts, run
from tilting.generation.score import Scorer
from tilting.guidance.value_and_grad import value_and_grad
from tilting.models import load
from tilting.rewards.spec import build

N = 4
METHODS = ("bon", "code", "codex")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--method", choices=METHODS, action="append", help="default all")
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in options.method or METHODS:
            clock = CLOCKS[options.clock]
            out[method] = measure(method, options.steps, options.images, options.rounds, Path(folder), clock)
            print(json.dumps({method: out[method]}), flush=True)


def measure(name: str, steps: int, images: int, rounds: int, folder: Path, clock: Callable[[], float]) -> dict:
    rows = images * N
    given = {"prompts": ["a fox"], "method": name, "particles": N, "steps": steps, "images": images, "batch-size": rows}
    config = resolve({**given, "reward": ["clip"]})
    model, reward = load("pocket"), build(config.specs())
    parts = Parts(model, reward, None)
    method = config.preset().build(steps)
    prompts = ["a fox"] * images
    denoise, value = model.denoiser(prompts, config.cfg), Scorer(model, reward, prompts)
    x, index = torch.randn(rows, *model.latent_shape), torch.arange(images).repeat_interleave(N)
    slopes = method.correct_when.count(steps) if method.correct else 0
    looks = method.select_when.count(steps) if method.select else 0

    def whole(k: int) -> None:
        run(resolve({**given, "reward": ["clip"], "out": str(folder / f"{name}{k}")}), quiet=True, parts=lambda _: parts)

    def bare() -> None:
        grid = model.schedule.grid(steps)
        model.forget()  # texts are encoded anew, as a run does
        for t in grid[-slopes - 1 : -1]:
            value_and_grad(x, t, index, denoise, value)
        with torch.no_grad():
            for t in grid[:-1]:
                denoise(x, t, index)
            for _ in range(looks + 1):
                value(x, index)

    whole(-1), bare()
    runs, calls = [], []
    for k in range(rounds):
        for is_run in (True, False) if k % 2 else (False, True):
            begun = clock()
            whole(k) if is_run else bare()
            (runs if is_run else calls).append(clock() - begun)
    low, ratio, high = statistics.quantiles((a / b for a, b in zip(runs, calls, strict=True)), n=4)
    return {
        "ratio": round(ratio, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "run_s": round(statistics.median(runs), 3),
        "bare_s": round(statistics.median(calls), 3),
    }


if __name__ == "__main__":
    main()
