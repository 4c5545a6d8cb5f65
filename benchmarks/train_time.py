"""A training step on pocket (batches, losses, optimiser, reports) against the bare network calls it makes.

    python benchmarks/train_time.py        prints the median ratios; the promise is <= 1.05

Steps and bare calls are interleaved in one process. The bare side makes as many denoiser, decoder and reward calls, forward
and backward, on tensors of the same shapes, and nothing else: of DRaFT-K, T - K steps without gradients, K that are made
again on the way back (checkpoints), one reward; of DRaFT-LV two steps and two rewards more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

import tilting as tl
from tilting.experiments.finetune.tuning import Tuning, tuning
from tilting.finetune.objectives import draft, draft_k, draft_lv

ARMS = {"draft": (draft, None, 0), "draft-k": (draft_k, 1, 0), "draft-lv": (draft_lv, 1, 2)}
"""By objective: its factory, how many steps are open (None is all), how many copies are made."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    model, reward = tl.load("pocket"), tl.rewards.clip()
    for name, (factory, opened, copies) in ARMS.items():
        run = tuning(model, ["a fox", "a cat"], reward, factory(), steps=options.steps, batch_size=options.batch)
        print(json.dumps({name: measure(run, opened or options.steps, copies, options.rounds)}), flush=True)


def bare(run: Tuning, opened: int, copies: int) -> Callable[[], None]:
    """The network calls of a training step; the LoRA's gradients are made and thrown away."""
    batch, prompts = run.batches.batch, run.batches.prompts
    words = [prompts[i % len(prompts)] for i in range(batch)]
    place = torch.arange(batch) % len(prompts)
    x = torch.randn(batch, *run.model.latent_shape)
    *earlier, last = run.batches._grid[:-1]
    parameters = list(run.training.parameters.values())

    def network(t, clean=None):
        return run.batches._guided(x if clean is None else clean, t, place).x0

    def scored(clean: torch.Tensor) -> torch.Tensor:
        return run.batches.reward(run.model.decode(clean), words).mean()

    def back(loss: torch.Tensor) -> None:
        torch.autograd.grad(loss, parameters, allow_unused=True)

    def calls() -> None:
        with torch.no_grad():
            for t in (*earlier, last):
                network(t)
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


def measure(run: Tuning, opened: int, copies: int, rounds: int) -> dict[str, float]:
    calls, steps = bare(run, opened, copies), run.steps(rounds + 1)
    next(steps), calls()
    before = dict(run.costs)
    pairs = []
    for k in range(rounds):
        begun = time.perf_counter()
        if k % 2:
            calls()
            middle = time.perf_counter()
            next(steps)
            pairs.append((time.perf_counter() - middle, middle - begun))
        else:
            next(steps)
            middle = time.perf_counter()
            calls()
            pairs.append((middle - begun, time.perf_counter() - middle))
    rows = (run.costs["evaluations"] - before["evaluations"]) / rounds
    assert rows == run.batches.batch * (run.batches.steps + opened + copies), "the bare side makes other calls than the step"
    step, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"ratio": round(ratio, 4), "step_s": round(step, 3), "bare_s": round(alone, 3), "rows": rows}


if __name__ == "__main__":
    main()
