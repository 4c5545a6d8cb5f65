"""CTRL's step 3 (Zhao et al. 2024, Alg. 1-2): the augmented model trained to obey y, at a price for leaving the pre-trained
one.

    maximise  E_{(c,y) ~ Π} [ γ log p(y | x_0) - Σ_t |mean_ψ - mean_pre|² / (2 std²) ]        θ_pre is the reference throughout

whose optimum draws p_γ(x | c, y) ∝ p_pre(x | c) p(y | x)^γ (Theorem 1; from a random x_T exactly so only on a memoryless
schedule: eta = 1
and ᾱ_T = 0). The published code averages the KL over latent dimensions and weights it .01 beside .1 NLL: against the exact KL
its γ is 10 d; `effective_gamma` converts. A classifier without gradient is climbed by PPO instead (Remark 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tilting import rng
from tilting.objectives.batch import Objective
from tilting.objectives.gradient import Draft
from tilting.objectives.policy import PolicyGradient
from tilting.objectives.truncate import Truncation
from tilting.types import TiltingError


@dataclass(frozen=True)
class Ctrl:
    """The settings of step 3.

    Attributes:
        gamma: γ, strength of the label in p_γ; 10 in the paper.
        truncation: which steps carry gradient; the paper draws K ~ Uniform(0, T).
        kl_weight: β beside the exact KL; 1 is the theory's.
        planner: "backprop" (Alg. 2) or "ppo" (Remark 2), for classifiers without gradient.
    """

    gamma: float = 10.0
    truncation: Truncation = field(default=Truncation("random"))
    kl_weight: float = 1.0
    planner: Literal["backprop", "ppo"] = "backprop"

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise TiltingError(f"gamma must be positive, not {self.gamma}")

    def objective(self) -> Objective:
        """Draft on γ log p with the path KL, or PPO of the same aim."""
        if self.planner == "ppo":
            return PolicyGradient("plain", True, 0.2, 1e9, self.kl_weight, "sum", chunks=4, name="ctrl-ppo", path_kl=True)
        return Draft(self.truncation, kl=self.kl_weight, name="ctrl")


def effective_gamma(nll_weight: float, kl_weight: float, dimensions: int, mean: bool) -> float:
    """γ against the exact KL (a sum) of a loss nll_weight · NLL + kl_weight · KL, where KL may be a mean over dimensions."""
    return nll_weight / (kl_weight / (dimensions if mean else 1))


def draw_labels(
    schemas: Mapping[str, tuple[int | None, tuple[float, float]]], count: int, seed: int, step: int
) -> dict[str, Tensor]:
    """Labels of a training batch, the y of the exploratory distribution Π: classes uniform, numbers uniform over their range.

    Args:
        schemas: label -> (number of classes or None, (low, high) of a number in standardised units).
        count: images in the whole batch.
        seed, step: what the draw is keyed by.
    """
    out = {}
    for name, (classes, (low, high)) in schemas.items():
        gen = rng.generator(rng.Identity(seed, name, step), 0, 0, "label")
        if classes is None:
            out[name] = low + (high - low) * torch.rand(count, generator=gen)
        else:
            # A permutation of the classes after another: every class is as frequent as any other in the long run.
            rounds = [torch.randperm(classes, generator=gen) for _ in range(-(-count // classes))]
            out[name] = torch.cat(rounds)[:count].float()
    return out
