"""CMMD: maximum mean discrepancy between CLIP embeddings (Jayasumana et al. 2024, "Rethinking FID").

    MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),   k(x, y) = exp(-|x - y|² / 2σ²),   σ = 10,   times 1000

on L2-normalised embeddings. The published code takes every mean over all pairs, i = j too (the V-statistic), which is above 0
for two draws of one law; `cmmd` follows it. ``unbiased=True`` leaves the pairs i = j out (the paper's formula: mean 0 for one
law, possibly negative). Kernel sums add over blocks of rows, so shards of any size give what the whole gives.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.metrics.declaration import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor

SIGMA, SCALE = 10.0, 1000.0
ROWS = 1024
"""Rows of the kernel matrix that are held at once."""


class KernelSums(NamedTuple):
    """Sums of the kernel over pairs, which add across shards of rows: ``a.plus(b)``.

    Attributes:
        rows_x, rows_y: how many rows of either set are summed.
        xx, yy, xy: sums of k over (rows of x) x (all x), (rows of y) x (all y), (rows of x) x (all y), i = j included.
    """

    rows_x: int = 0
    rows_y: int = 0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def plus(self, other: KernelSums) -> KernelSums:
        """The sums over the rows of both shards."""
        rows = self.rows_x + other.rows_x, self.rows_y + other.rows_y
        return KernelSums(*rows, self.xx + other.xx, self.yy + other.yy, self.xy + other.xy)


def kernel_sum(a: Tensor, b: Tensor, sigma: float = SIGMA) -> float:
    """Σ_ij exp(-|a_i - b_j|² / 2σ²) of unit vectors (n, d) and (m, d), float64, `ROWS` rows at a time."""
    return sum((((rows @ b.T - 1) / sigma**2).exp().sum().item() for rows in a.split(ROWS)), 0.0)


def kernel_sums(x_rows: Tensor, y_rows: Tensor, x: Tensor, y: Tensor, sigma: float = SIGMA) -> KernelSums:
    """One shard's part of the sums: its rows against all of either set, after L2-normalisation.

    Args:
        x_rows, y_rows: (r, d) the shard's own rows, parts of ``x`` and ``y``.
        x, y: (n, d) and (m, d), everything.
        sigma: width of the kernel.
    """
    own_x, own_y, x, y = (torch.nn.functional.normalize(f.detach().double(), dim=-1) for f in (x_rows, y_rows, x, y))
    return KernelSums(
        len(own_x), len(own_y), kernel_sum(own_x, x, sigma), kernel_sum(own_y, y, sigma), kernel_sum(own_x, y, sigma)
    )


def mmd(sums: KernelSums, unbiased: bool = False) -> float:
    """MMD² x 1000 from the sums over all rows.

    Raises:
        TiltingError: no image in a set, or fewer than two for the unbiased estimate.
    """
    n, m, least = sums.rows_x, sums.rows_y, 2 if unbiased else 1
    if min(n, m) < least:
        raise TiltingError(f"CMMD needs at least {least} image{'s' if least > 1 else ''} of either kind, not {min(n, m)}")
    if unbiased:  # k(x, x) = 1
        return SCALE * ((sums.xx - n) / (n * (n - 1)) + (sums.yy - m) / (m * (m - 1)) - 2 * sums.xy / (n * m))
    return SCALE * (sums.xx / n**2 + sums.yy / m**2 - 2 * sums.xy / (n * m))


@METRICS.declare("cmmd", "CMMD", "MMD² x 1000", ("clip",), of="sets", better="lower")
def cmmd(x: Tensor, y: Tensor, unbiased: bool = False, sigma: float = SIGMA) -> float:
    """MMD² x 1000 between embeddings (n, d) and (m, d), normalised here."""
    if x.shape[-1] != y.shape[-1]:
        raise TiltingError(f"features of {x.shape[-1]} and {y.shape[-1]} numbers cannot be compared")
    return mmd(kernel_sums(x, y, x, y, sigma), unbiased)


unbiased = partial(cmmd, unbiased=True)
METRICS.register(
    Metric("cmmd_unbiased", unbiased, "CMMD, unbiased", "MMD² x 1000, mean 0 for one law", ("clip",), "sets", "lower")
)
