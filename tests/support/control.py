"""E[p(y | x_0)^γ] on the plane's mixture, by sums that share nothing with the oracle's."""

from __future__ import annotations

import math

import torch

from support.drift import ZERO
from tilting.oracle.control import AIM, OFFSET

ORIGIN = torch.zeros(1, 2, dtype=torch.float64)


def independent_log_prob(mixture, x, t, gamma, y):
    """log E[p(y | x_0)^γ | x_t = x] by a Riemann sum over w = ⟨x_0, way⟩, which is all that the classifier sees of x_0."""
    way, w = AIM / AIM.norm(), torch.linspace(-6, 6, 301, dtype=torch.float64)
    var = t.alpha**2 * mixture.stds**2 + t.sigma**2
    centre = mixture.means @ way + t.alpha * mixture.stds**2 / var * ((x @ way)[:, None] - t.alpha * (mixture.means @ way))
    spread = mixture.stds * t.sigma / var.sqrt()
    rho = mixture.log_responsibilities(x, t.alpha, t.sigma).log_softmax(1)
    seen = -0.5 * ((w - centre[..., None]) / spread[:, None]) ** 2 - (spread[:, None] * math.sqrt(2 * math.pi)).log()
    p = gamma * torch.nn.functional.logsigmoid((2 * y - 1) * (w * AIM.norm() + OFFSET))
    return (rho[..., None] + seen + p).flatten(1).logsumexp(1) + math.log(12 / 300)


def normaliser(mixture, gamma, y):
    """E[p(y | x)^γ] over the mixture, the same way: at pure noise the posterior is the mixture itself."""
    return independent_log_prob(mixture, ORIGIN, ZERO.grid(2)[0], gamma, y).exp().item()
