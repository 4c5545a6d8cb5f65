"""Log-weights of particles: normalising, effective sample size, resampling. All along the last dimension."""

from __future__ import annotations

import math

from tilting.lazy import torch


def normalise(log_w: torch.Tensor) -> torch.Tensor:
    """Weights that sum to 1 along the last dim, from log-weights (..., n)."""
    return torch.softmax(log_w, -1)


def log_mean(log_w: torch.Tensor) -> torch.Tensor:
    """log of the mean weight (...), from log-weights (..., n): one factor of the normalising constant."""
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])


def ess(log_w: torch.Tensor) -> torch.Tensor:
    """Effective sample size (...), 1 / Σ w² of the normalised weights, between 1 and n."""
    return torch.exp(2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1))


def multinomial(probability: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
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


def systematic(probability: torch.Tensor, uniforms: torch.Tensor, count: int | None = None) -> torch.Tensor:
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


def ssp(probability: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Srinivasan sampling process (Gerber, Chopin & Whiteley 2019): offspring differ from n p by less than one, unbiased.

    Each residual n p - floor(n p) meets the next: together below 1, one of the two takes both; else one is rounded up and the
    other keeps the rest; with the probabilities that leave both means as they were.

    Args:
        probability: (b, n), rows sum to 1.
        uniforms: (b, n) in [0, 1).

    Returns:
        (b, n) indices into n, in ascending order.
    """
    b, n = probability.shape
    expected = probability.to(uniforms.dtype) * n
    count = (expected + 1e-9).floor()
    rest = (expected - count).clamp(0, 1)
    row = torch.arange(b, device=probability.device)
    held = torch.zeros(b, dtype=torch.long, device=probability.device)
    for j in range(1, n):
        r, q = rest[row, held], rest[:, j]
        both, u = r + q, uniforms[:, j]
        up = both >= 1
        chance = torch.where(up, (1 - q) / (2 - both).clamp(min=1e-12), r / both.clamp(min=1e-12))
        first = u < chance  # the held one is rounded up, or takes both
        new = torch.full_like(held, j)
        winner, loser = torch.where(first, held, new), torch.where(first, new, held)
        count[row, winner] += up.to(count.dtype)
        keeper = torch.where(up, loser, winner)
        rest[row, keeper] = torch.where(up, both - 1, both)
        held = keeper
    count[row, held] += n - count.sum(1)  # the last residual is 0 or 1, but for rounding
    copies = count.long().clamp(min=0)
    return torch.stack([torch.arange(n, device=copies.device).repeat_interleave(c)[:n] for c in copies])
