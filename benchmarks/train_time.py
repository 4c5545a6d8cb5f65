"""A training step on pocket (batches, losses, optimiser, reports) against the bare network calls it makes.

    python benchmarks/train_time.py                  prints the median ratios; the promise is <= 1.05
    python benchmarks/train_time.py --clock cpu      this process's own seconds on one thread, for a machine that is not idle

Steps and bare calls are interleaved in one process. Bare are the network calls that the objective is made of, on tensors of
the same shapes, and nothing else. With K open steps of T, n copies and a batch of b images:

    T b rows      through the denoiser without gradients: the way there
    K b rows      through it with gradients, and back: the open steps, made again since their activations were not held
    n b rows      through it with gradients, and back: DRaFT-LV's copies
    (1 + n) b     images through decoder and reward, and back

A row is a latent, under CFG a pair. What is made again counts as a call: it is what the memory is paid with. Not in it are
noise, the steps' arithmetic, checks of images and rewards, gradients summed over steps, clipping, AdamW, reports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import tilting as tl
from tilting.objectives import draft, draft_k, draft_lv
from tilting.training.trainer import Trainer, make_trainer

ARMS = {"draft": (draft, None, 0), "draft-k": (draft_k, 1, 0), "draft-lv": (draft_lv, 1, 2)}
"""By objective: its factory, how many steps are open (None is all), how many copies are made."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--arm", choices=ARMS, action="append", help="default all")
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    model, reward = tl.load("pocket"), tl.rewards.clip()
    for name in options.arm or ARMS:
        factory, opened, copies = ARMS[name]
        run = make_trainer(model, ["a fox", "a cat"], reward, factory(), steps=options.steps, batch_size=options.batch)
        found = measure(run, opened or options.steps, copies, options.rounds, CLOCKS[options.clock])
        print(json.dumps({name: found}), flush=True)


def bare(run: Trainer, opened: int, copies: int) -> Callable[[], None]:
    """The network calls of a training step; the LoRA's gradients are made and thrown away."""
    batch, prompts = run.batches.config.batch_size, run.batches.prompts
    words = [prompts[i % len(prompts)] for i in range(batch)]
    place = torch.arange(batch) % len(prompts)
    x = torch.randn(batch, *run.model.latent_shape)
    grid = run.batches._grid[:-1]
    last = grid[-1]
    parameters = list(run.state.parameters.values())

    def network(t, clean=None):
        return run.batches._guided(x if clean is None else clean, t, place).x0

    def scored(clean: torch.Tensor) -> torch.Tensor:
        return run.batches.reward(run.model.decode(clean), words).mean()

    def back(loss: torch.Tensor) -> None:
        torch.autograd.grad(loss, parameters, allow_unused=True)

    def calls() -> None:
        with torch.no_grad():
            for t in grid:
                network(t)  # the way there
        clean = x.clone().requires_grad_(True)
        torch.autograd.grad(scored(clean), clean)
        for k in range(opened):
            start = x.clone().requires_grad_(k < opened - 1)  # gradients go on to earlier steps but from the first one
            out = network(last, start)
            wanted = [*parameters, start] if start.requires_grad else parameters
            torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)
        if copies:
            back(torch.stack([scored(network(last)) for _ in range(copies)]).sum())

    return calls


def measure(run: Trainer, opened: int, copies: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Medians over ``rounds`` pairs of a step and the bare calls, whose order alternates."""
    calls, steps = bare(run, opened, copies), run.steps(rounds + 1)
    next(steps)
    calls()
    before = dict(run.costs)
    pairs = []
    for k in range(rounds):
        first, second = (calls, lambda: next(steps)) if k % 2 else (lambda: next(steps), calls)
        begun = clock()
        first()
        middle = clock()
        second()
        both = middle - begun, clock() - middle
        pairs.append(both[::-1] if k % 2 else both)
    batch = run.batches.config.batch_size
    paid = {key: (run.costs[key] - before[key]) / rounds for key in ("evaluations", "reward_calls")}
    made = {"way_there": batch * run.batches.config.steps, "made_again": batch * opened, "copies": batch * copies}
    same = paid == {"evaluations": sum(made.values()), "reward_calls": batch * (1 + copies)}
    assert same, f"the bare side makes other calls than the step: {made}, {paid}"
    step, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {
        "ratio": round(ratio, 4),
        "step_s": round(step, 3),
        "bare_s": round(alone, 3),
        "bare_rows": {**made, "images": batch * (1 + copies)},
    }


if __name__ == "__main__":
    main()
