"""What every training script shares: a resumable loop with EMA, atomic checkpoints and a learning-rate schedule."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from muon import Muon


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.6) -> float:
    """Linear warm-up, constant, then a cosine fall to 1 % over the last ``decay`` of the steps."""
    if step < warmup:
        return peak * (step + 1) / warmup
    rest = (step - (1 - decay) * steps) / (decay * steps)
    return peak if rest <= 0 else peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))


def save(path: Path, payload: dict) -> None:
    """Write a checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(payload, temporary)
    os.replace(temporary, path)


def train(
    model: nn.Module,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    path: Path,
    steps: int,
    peak: float,
    weight_decay: float = 0.01,
    ema: float = 0.999,
    every: int = 400,
    stop: int | None = None,
) -> nn.Module:
    """Train to ``steps``, resuming from ``path`` if it exists, and load the EMA weights at the end.

    Args:
        model: what is trained; its parameters' exponential average is what is returned.
        loss_of: step -> (loss, numbers to log); must be a function of the step alone.
        path: the checkpoint; its log is beside it as .jsonl.
        steps: the length of the schedule.
        peak: the highest learning rate.
        weight_decay: decoupled, as AdamW's.
        ema: decay of the average (warmed up as (1 + step) / (10 + step)).
        every: steps between checkpoints and log lines.
        stop: end here instead of at ``steps`` (the schedule stays that of ``steps``).
    """
    optimiser = Muon(model, lr=peak, weight_decay=weight_decay)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = 0
    if path.exists():
        held = torch.load(path, weights_only=True)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        average, start = held["average"], held["step"]
    clock, total = time.time(), {}
    model.train()
    for step in range(start, min(steps, stop or steps)):
        if (wish := path.parent / "threads").exists():  # so that a desk beside the training stays usable
            torch.set_num_threads(int(wish.read_text() or 2))
        optimiser.set_lr(learning_rate(step, steps, peak))
        loss, numbers = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                if v.is_floating_point():
                    average[k].lerp_(v, 1 - decay)
                else:
                    average[k].copy_(v)
        for k, v in {**numbers, "norm": float(norm)}.items():
            total[k] = total.get(k, 0.0) + v
        done = step + 1
        if done % 50 == 0:
            row = {
                "step": done,
                **{k: round(v / 50, 5) for k, v in total.items()},
                "seconds": round((time.time() - clock) / 50, 3),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            clock, total = time.time(), {}
        if done % every == 0 or done == steps:
            save(path, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average, "step": done})
    model.load_state_dict(average)
    return model.eval()
