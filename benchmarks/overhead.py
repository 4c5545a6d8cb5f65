"""A whole run at N = 4 (loop, decoding, rewards, PNGs, manifest; loading aside) against the network calls that it makes.

    python benchmarks/overhead.py                  prints the median ratios and their quartiles; the promise is <= 1.03
    python benchmarks/overhead.py --clock cpu      this process's own seconds on one thread, for a machine that is not idle

What counts against the loop is all that is not in a call of denoiser, decoder or reward, or on their way back. Calls are timed
within the run, so that what else the machine does meets both. The judge, which is not part of sampling, is left out. On a CPU:
a GPU's calls come back before they are done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tilting.config.generate import resolve
from tilting.generation.run import Parts, run
from tilting.generation.score import Scorer
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


@contextmanager
def inside(model: Any, clock: Callable[[], float]) -> Iterator[Callable[[], float]]:
    """A block in which what it gives says how many seconds calls of a model's networks, and of rewards, have taken."""
    spent, within = [0.0], [False]

    def timed(call: Any) -> Any:
        def counted(*given: Any, **more: Any) -> Any:
            if within[0]:
                return call(*given, **more)
            within[0], begun = True, clock()
            try:
                return call(*given, **more)
            finally:
                within[0] = False
                spent[0] += clock() - begun

        return counted

    made = type(model).denoiser
    with (
        patch.object(type(model), "denoiser", lambda self, *given, **more: timed(timed(made)(self, *given, **more))),
        patch.object(Scorer, "__call__", timed(Scorer.__call__)),
        patch.object(torch.autograd, "grad", timed(torch.autograd.grad)),
    ):
        yield lambda: spent[0]


def measure(name: str, steps: int, images: int, rounds: int, folder: Path, clock: Callable[[], float]) -> dict:
    given = {"prompts": ["a fox"], "method": name, "particles": N, "steps": steps, "images": images, "reward": ["clip"]}
    config = resolve({**given, "batch-size": images * N})
    parts = Parts(load("pocket"), build(config.specs()), None)
    ratios, seconds = [], []
    for k in range(-1, rounds):  # the first warms up
        parts.model.forget()  # texts are encoded anew, as a run does
        with inside(parts.model, clock) as spent:
            begun = clock()
            run(replace(config, out=str(folder / f"{name}{k}")), quiet=True, parts=lambda _: parts)
            seconds.append(clock() - begun)
            ratios.append(seconds[-1] / spent())
    low, ratio, high = statistics.quantiles(ratios[1:], n=4)
    return {
        "ratio": round(ratio, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "run_s": round(statistics.median(seconds), 3),
    }


if __name__ == "__main__":
    main()
