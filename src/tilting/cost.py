"""What one image of a method costs: the loop itself, run on stubs that count their calls.

No value that the stubs give is above another, so what is spent by the values seen, such as a rollover budget, is spent to the
last: where `Engine.may_cost_less`, a cost is the most it can be. Estimates are of one number, for counts do not depend on size.
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


class Bill(NamedTuple):
    """What one image costs, by what is to be paid for it.

    Attributes:
        evaluations, slopes: latents through the denoiser without a gradient, and with one.
        looks, steep: estimates decoded and scored without a gradient, and with one.
        finals: finished particles decoded and scored.
    """

    evaluations: int
    slopes: int
    looks: int
    steep: int
    finals: int


def cost(method: Method, steps: int) -> Cost:
    """What one image costs in a run of that many steps."""
    paid = bill(method, steps)
    return Cost(paid.evaluations + paid.slopes, paid.looks + paid.steep + paid.finals)


def bill(method: Method, steps: int) -> Bill:
    """The same, item by item."""
    try:
        hash(method)
    except TypeError:  # a part of someone's own that is not frozen
        return _counted.__wrapped__(method, steps)
    return _counted(method, steps)


@lru_cache(maxsize=1024)
def _counted(method: Method, steps: int) -> Bill:
    paid = [0, 0, 0, 0]

    def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        paid[torch.is_grad_enabled() and x.requires_grad] += len(x)
        seen = torch.sin(x)  # no linear function: its backward pass asks for x, and so for the checkpoints of a chain
        return Prediction(seen, seen, seen)

    def value(x0: Tensor, rows: Tensor) -> Tensor:
        paid[2 + (torch.is_grad_enabled() and x0.requires_grad)] += len(x0)
        return 0 * x0.flatten(1).sum(1)

    stubs = Problem(denoise, Schedule("flow").grid(steps), [Identity(0, "", 0)], (1,), value, cfg=2.0)
    state = start(stubs, method)
    for state, _ in sample(stubs, method, state):  # noqa: B007, B020
        pass
    drawn = list(paid)
    finish(stubs, method, state)
    return Bill(*drawn, finals=sum(paid[2:]) - sum(drawn[2:]))
