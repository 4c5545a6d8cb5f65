"""A mixture of three Gaussians in the plane, where every law is known: what recipes compare methods with.

    p* ∝ p_T exp(r / β),   r(x) = -|x - aim|² / 2,   p_T the law of the T-step ancestral chain with the exact denoiser
    D²(P, Q) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|                              (energy distance, Székely & Rizzo 2013)

p* is importance-weighted draws of that same chain, resampled; D² is estimated without the diagonal terms, so that its mean is 0
for exact draws.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tilting import weights
from tilting.oracle.mixture import Mixture, MixtureModel
from tilting.schedule import transition
from tilting.types import Prediction, Time


def tensors(*v: Any) -> tuple[Tensor, ...]:
    """Each of them in double precision."""
    return tuple(torch.tensor(part, dtype=torch.float64) for part in v)


BASE = Mixture(*tensors([0.5, 0.3, 0.2], [[-1.5, 0.5], [1.5, 1.0], [0.3, -1.8]], [0.3, 0.5, 0.4]))
WIDE = Mixture(*tensors([1.0], [[0.2, 0.1]], [1.6]))
"""The unconditional model of rules that scale with the CFG correction; the guidance scale itself is 1."""
(AIM,) = tensors([0.7, -0.4])
BETA = 0.5


def reward(x0: Tensor, rows: Tensor | None = None) -> Tensor:
    """r(x) of (m, 2)."""
    return -0.5 * (x0 - AIM).square().sum(-1)


def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
    """The exact denoiser of BASE, with its correction against WIDE for the rules that ask for one."""
    eps, x0, _ = MixtureModel(BASE).denoiser()(x, t, rows)
    return Prediction(eps, x0, eps - MixtureModel(WIDE).denoiser()(x, t, rows).eps)


@cache
def chain(steps: int, count: int, seed: int) -> Tensor:
    """Draws (count, 2) of the base model's ancestral chain."""
    generator = torch.Generator().manual_seed(seed)
    model = MixtureModel(BASE)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    for t, s in itertools.pairwise(model.schedule.grid(steps)):
        step = transition(model.denoiser()(x, t, torch.zeros(0)), t, s, 1.0)
        x = step.mean + step.std * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x


def exact(steps: int, count: int, seed: int, pool: int = 20) -> Tensor:
    """Draws (count, 2) of the tilt of that chain, resampled from ``pool`` times as many of its own."""
    x = chain(steps, pool * count, seed)
    index = weights.systematic(weights.normalise(reward(x) / BETA)[None], torch.full((1,), 0.5, dtype=torch.float64), count)
    return x[index[0]]


def mean_distance(x: Tensor) -> float:
    """Mean distance of two different draws."""
    return (torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))).item()


def energy_distance(x: Tensor, y: Tensor, inner_y: float | None = None) -> float:
    """D² of two samples (n, d) and (m, d), without the diagonal terms; about 0, of either sign, if they have one law."""
    return 2 * torch.cdist(x, y).mean().item() - mean_distance(x) - (mean_distance(y) if inner_y is None else inner_y)
