"""CTRL's step 3 (Zhao et al. 2024, Alg. 1-2): the objective that trains the augmented model to follow y, with a KL penalty.

    maximise  E_{(c,y) ~ Π} [ γ log p(y | x_0) - Σ_t |mean_ψ - mean_pre|² / (2 std²) ]        θ_pre is the reference throughout

whose optimum draws p_γ(x | c, y) ∝ p_pre(x | c) p(y | x)^γ (Theorem 1; from a random x_T exactly so only on a memoryless
schedule: eta = 1
and ᾱ_T = 0). The published code averages the KL over latent dimensions and weights it .01 beside .1 NLL: against the exact KL
its γ is 10 d; `effective_gamma` converts. A classifier without gradient is climbed by PPO instead (Remark 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tilting import rng
from tilting.objectives.gradient import ThroughChain
from tilting.objectives.policy import PolicyGradient
from tilting.objectives.truncate import Truncation


@dataclass(frozen=True)
class Ctrl(ThroughChain):
    """Alg. 2: DRaFT on γ log p(y | x_0), which the batch's reward is, with the path KL.

        (c, y) ~ Π_c Π_y;  K ~ Uniform{1 .. T}
        x = the chain of the augmented model from x_T, gradients in the last K steps
        ψ <- AdamW(∇_ψ mean [β Σ_t KL_t(ψ || pre) - γ log p(y | x_0)])

    Attributes:
        rule: which steps carry gradient, the last K, drawn ("random"; the paper has K ~ Uniform(0, T)), or "all".
        kl: β beside the exact KL; 1 is the theory's.
    """

    name, paper = "ctrl", "Zhao et al. 2024"

    rule: Literal["random", "all"] = "random"
    kl: float = 1.0

    @property
    def truncation(self) -> Truncation:
        return Truncation(self.rule)


@dataclass(frozen=True)
class CtrlPpo(PolicyGradient):
    """Remark 2: PPO of the same aim, for classifiers without gradient, whose path KL later steps' advantages pay.

    Attributes:
        kl: β of the path KL.
    """

    name, paper = "ctrl-ppo", "Zhao et al. 2024"
    advantage, clip, limit, reduction, minibatches, path_kl = "plain", 0.2, 1e9, "sum", 4, True

    kl: float = 1.0


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
