"""What an objective costs, by running training steps of a denoiser with one parameter on latents of two numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tilting.lazy import torch
from tilting.objectives.batch import BaseObjective, TrainBatch
from tilting.rng import Identity
from tilting.schedule import Schedule
from tilting.types import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Time

STEPS = 50
"""T in `tilting objectives`."""
DRAWS = 24
"""Training steps to average over for an objective whose cost is random."""


class Cost(NamedTuple):
    """Mean cost of an image in a training step.

    Attributes:
        evaluations: latents through the denoiser, with gradient or without, trained or frozen, including recomputation in the
            backward pass; a CFG pair counts as one.
        reward_calls: images scored.
        drawn: whether these are random, different from one training step to the next.
        evaluation_grads, value_grads: how many of the evaluations, and of the reward calls, have a gradient.
    """

    evaluations: float
    reward_calls: float
    drawn: bool = False
    evaluation_grads: float = 0.0
    value_grads: float = 0.0


def cost_of(objective: BaseObjective, steps: int = STEPS) -> Cost:
    """The cost of an objective on a chain of ``steps`` steps."""
    first = [_step(objective, steps, k) for k in range(3)]
    drawn = len({(a + b, c + d) for a, b, c, d in first}) > 1
    each = first + [_step(objective, steps, k) for k in range(3, DRAWS)] if drawn else first
    plain, evaluation_grads, values, value_grads = (sum(column) / len(each) for column in zip(*each, strict=True))
    return Cost(plain + evaluation_grads, values + value_grads, drawn, evaluation_grads, value_grads)


def _step(objective: BaseObjective, steps: int, number: int) -> tuple[float, ...]:
    """Evaluations without and with gradient, reward calls without and with, per image of one training step."""
    paid, count = [0, 0, 0, 0], 2 * objective.group_size
    theta = torch.zeros(2, requires_grad=True)

    def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        paid[torch.is_grad_enabled()] += len(x)
        x0 = t.alpha * x + t.sigma * theta
        return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.zeros_like(x))

    def base(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        return Prediction(*(part if x.requires_grad else part.detach() for part in denoise(x, t, rows)))

    def value(x0: Tensor, rows: Tensor) -> Tensor:
        paid[2 + (torch.is_grad_enabled() and x0.requires_grad)] += len(x0)
        return x0.sum(1)

    who = [Identity(0, f"prompt {i // objective.group_size}", i) for i in range(count)]
    grid = Schedule("flow").grid(steps)
    batch = TrainBatch(
        denoise, base, denoise, base, value, grid, who, (2,), objective.default_eta, number, trained=[theta], kind="flow"
    )
    with torch.enable_grad():
        for loss in objective(batch):
            if loss.value.requires_grad:
                loss.value.backward()
    return tuple(each / count for each in paid)
