"""Truncation: masks of the steps of a rollout that carry gradients, shared by all objectives that back-propagate.

    all            every step                                        DRaFT (checkpointed)
    last K         the last K                                        DRaFT-K
    random K       the last K, K ~ Uniform{1..T}, once per batch     AlignProp, CTRL
    per step       each step with probability p                      AlignProp's older code

A mask (T,) of booleans. Where it is False the network's output is held constant; the linear part of the step stays in the
graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tilting.errors import TiltingError
from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Truncation:
    """A rule for the mask.

    Attributes:
        rule: "all" steps, the "last" K, K drawn once per batch ("random"), or each "step" by chance.
        count: K, the last steps that carry gradient; None is 1.
        step_probability: chance of a step under "step": at 0.5 about half of them, which need not be neighbours.
    """

    rule: Literal["all", "last", "random", "step"] = "all"
    count: int | None = None
    step_probability: float = 0.5

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise TiltingError(f"K must be at least 1, not {self.count}")

    def mask(self, steps: int, generator: torch.Generator) -> Tensor:
        """(steps,) booleans; K above T is T."""
        if self.rule == "all":
            return torch.ones(steps, dtype=torch.bool, device="cpu")
        if self.rule == "step":
            mask = torch.rand(steps, generator=generator, device="cpu") < self.step_probability
            mask[-1] |= not mask.any()
            return mask
        k = min(self.count or 1, steps)
        if self.rule != "last":
            k = int(torch.randint(1, steps + 1, (1,), generator=generator, device="cpu"))
        return torch.arange(steps, device="cpu") >= steps - k
