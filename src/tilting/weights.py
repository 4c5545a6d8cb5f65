"""Log-weights of particles: normalising, effective sample size, resampling. All along the last dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normalise(log_w: Tensor) -> Tensor:
    """Weights that sum to 1 along the last dim, from log-weights (..., n)."""
    return torch.softmax(log_w, -1)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight (...), from log-weights (..., n): one factor of the normalising constant."""
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])


def ess(log_w: Tensor) -> Tensor:
    """Effective sample size (...), 1 / Σ w² of the normalised weights, between 1 and n."""
    return torch.exp(2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1))


def multinomial(probability: Tensor, uniforms: Tensor) -> Tensor:
    """Independent draws with replacement.

    Args:
        probability: (b, n), rows sum to 1.
        uniforms: (b, m) in [0, 1), one per draw; given, so that the caller owns the randomness.

    Returns:
        (b, m) indices into n.
    """
    edges = probability.to(uniforms.dtype).cumsum(-1)
    index = torch.searchsorted(edges.contiguous(), (uniforms * edges[:, -1:]).contiguous(), right=True)
    return index.clamp(max=probability.shape[-1] - 1)


def systematic(probability: Tensor, uniforms: Tensor, count: int | None = None) -> Tensor:
    """Systematic resampling (Kitagawa 1996): one uniform per row, evenly spaced points, unbiased and low variance.

    Args:
        probability: (b, n), rows sum to 1.
        uniforms: (b,) in [0, 1).
        count: draws per row, n by default.

    Returns:
        (b, count) indices into n, in ascending order.
    """
    m = probability.shape[-1] if count is None else count
    points = (torch.arange(m, dtype=uniforms.dtype, device=uniforms.device) + uniforms[:, None]) / m
    return multinomial(probability, points)
