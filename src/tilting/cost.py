"""What one image of a method costs: the sampling loop itself, run on stubs that count their calls.

All values of the stubs are equal, so that a budget which depends on values, such as a rollover budget, is spent in full: where
`Engine.may_cost_less`, the cost is an upper bound. Latents have one number, since counts do not depend on size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tilting.lazy import torch
from tilting.method import Method
from tilting.rng import Identity
from tilting.sample import finish, sample
from tilting.schedule import Schedule
from tilting.state import Problem, start
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor


class Cost(NamedTuple):
    """What one image costs: denoiser evaluations, and estimates decoded and scored, finished particles among them."""

    evaluations: int
    values: int


class Calls(NamedTuple):
    """What one image costs, by kind of call.

    Attributes:
        evaluations, evaluation_grads: latents through the denoiser, without a gradient and with one.
        values, value_grads: estimates decoded and scored, without a gradient and with one.
        finals: finished particles decoded and scored.
    """

    evaluations: int
    evaluation_grads: int
    values: int
    value_grads: int
    finals: int


def cost(method: Method, steps: int) -> Cost:
    """What one image costs in a run of that many steps."""
    paid = calls_of(method, steps)
    return Cost(paid.evaluations + paid.evaluation_grads, paid.values + paid.value_grads + paid.finals)


def calls_of(method: Method, steps: int) -> Calls:
    """The calls that `cost` sums up."""
    return _counts(method, steps)[0]


def rows_of(method: Method, steps: int) -> int:
    """The most latents of an image in one call: its particles, or what an engine, probes or a smoothing make of them."""
    return _counts(method, steps)[1]


def _counts(method: Method, steps: int) -> tuple[Calls, int]:
    try:
        hash(method)
    except TypeError:  # a user's part that is not frozen
        return _counted.__wrapped__(method, steps)
    return _counted(method, steps)


@lru_cache(maxsize=1024)
def _counted(method: Method, steps: int) -> tuple[Calls, int]:
    paid, most = [0, 0, 0, 0], 0

    def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        nonlocal most
        most = max(most, len(x))
        paid[torch.is_grad_enabled() and x.requires_grad] += len(x)
        seen = torch.sin(x)  # not linear: its backward pass needs x, and so the checkpoints of a chain
        return Prediction(seen, seen, seen)

    def value(x0: Tensor, rows: Tensor) -> Tensor:
        nonlocal most
        most = max(most, len(x0))
        paid[2 + (torch.is_grad_enabled() and x0.requires_grad)] += len(x0)
        return 0 * x0.flatten(1).sum(1)

    stubs = Problem(denoise, Schedule("flow").grid(steps), [Identity(0, "", 0)], (1,), value, cfg=2.0, chunk=10**6)
    state = start(stubs, method)
    for state, _ in sample(stubs, method, state):  # noqa: B007, B020
        pass
    drawn = list(paid)
    finish(stubs, method, state)
    return Calls(*drawn, finals=sum(paid[2:]) - sum(drawn[2:])), most
