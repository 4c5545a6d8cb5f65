"""Selecting particles by value: greedy copies, multinomial draws, and importance-weighted resampling (SMC).

    greedy       every stream becomes the best one                                   (CoDe, Singh et al. 2025)
    multinomial  streams are drawn with P ∝ exp(value / τ), with replacement         (CoDeX, Alg. 3)
    smc          log w += (value - previous value) / β; resample when ESS < share · n

The smc increments telescope to exp(r(x_0)/β): with the base kernel as proposal the weighted particles are exact draws of the
tilt of the same chain as n grows (Wu et al. 2023, TDS; Singhal et al. 2025, FK steering with the difference potential).
Greedy and multinomial *add up* tilts with every block; their τ is not β.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tilting import weights
from tilting.types import TiltingError


class Choice(NamedTuple):
    """What a selection decides.

    Attributes:
        parents: (b, m) the parent of each new particle, or None if all stay as they are.
        log_w: (b, m) the new log-weights.
    """

    parents: Tensor | None
    log_w: Tensor


class Select(Protocol):
    """A rule from values to parents."""

    def __call__(self, value: Tensor, previous: Tensor, log_w: Tensor, uniforms: Tensor) -> Choice:
        """value, previous, log_w, uniforms: (b, n); previous is the value each particle was last weighted with."""
        ...


@dataclass(frozen=True)
class Greedy:
    """Copy the best particle over all others."""

    def __call__(self, value: Tensor, previous: Tensor, log_w: Tensor, uniforms: Tensor) -> Choice:
        best = value.argmax(1, keepdim=True)
        return Choice(best.expand_as(value), torch.zeros_like(log_w))


@dataclass(frozen=True)
class Multinomial:
    """Draw particles with P ∝ exp(value / tau), with replacement.

    Attributes:
        tau: temperature, in the reward's own units; small is greedy.
    """

    tau: float = 0.001

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise TiltingError(f"tau must be positive, not {self.tau}; for the limit 0 select greedily")

    def __call__(self, value: Tensor, previous: Tensor, log_w: Tensor, uniforms: Tensor) -> Choice:
        probability = torch.softmax(value.double() / self.tau, 1)
        return Choice(weights.multinomial(probability, uniforms), torch.zeros_like(log_w))


@dataclass(frozen=True)
class Smc:
    """Importance weights towards exp(reward / beta), and systematic resampling when they degenerate.

    Attributes:
        beta: temperature of the tilt p* ∝ p exp(r / beta).
        share: resample an image when its effective sample size falls below share · n.
    """

    beta: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise TiltingError(f"beta must be positive, not {self.beta}")

    def __call__(self, value: Tensor, previous: Tensor, log_w: Tensor, uniforms: Tensor) -> Choice:
        log_w = self.weigh(value, previous, log_w)
        n = value.shape[1]
        low = weights.ess(log_w) < self.share * n
        if not low.any():
            return Choice(None, log_w)
        drawn = weights.systematic(weights.normalise(log_w.double()), uniforms[:, 0])
        stay = torch.arange(n, device=value.device).expand_as(drawn)
        # A resampled image keeps the mean weight, so that the product of means estimates the normalising constant.
        mean = weights.log_mean(log_w)[:, None].expand_as(log_w)
        return Choice(torch.where(low[:, None], drawn, stay), torch.where(low[:, None], mean, log_w))

    def weigh(self, value: Tensor, previous: Tensor, log_w: Tensor) -> Tensor:
        """The weights after the value of each particle changed from ``previous`` to ``value``."""
        return log_w + (value - previous) / self.beta
