"""FID: the Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017; Dowson & Landau 1982).

    d² = |μ_a - μ_b|² + tr Σ_a + tr Σ_b - 2 tr (Σ_a Σ_b)^(1/2)

The statistics (n, Σ f, Σ f fᵀ) add, so shards of any size give what the whole gives. The cross term is a nuclear norm,
tr (Σ_a Σ_b)^(1/2) = ‖A Bᵀ‖_* for any A, B with AᵀA = Σ_a and BᵀB = Σ_b: centred features over sqrt(n - 1) where images are
fewer than dimensions (as in one prompt's ten), symmetric square roots otherwise. Nothing is inverted, so singular
covariances are no special case. FID of few images is far above 0 even for samples of one distribution: compare it with a floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.metrics.declaration import METRICS

if TYPE_CHECKING:
    from torch import Tensor


class Moments(NamedTuple):
    """Sums over features, which add across shards: ``a.plus(b)``.

    Attributes:
        number: how many vectors.
        total: (d,) float64, their sum.
        outer: (d, d) float64, the sum of f fᵀ.
    """

    number: int
    total: Tensor
    outer: Tensor

    def plus(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        return Moments(self.number + other.number, self.total + other.total, self.outer + other.outer)

    def mean(self) -> Tensor:
        """(d,) float64."""
        return self.total / self.number

    def covariance(self) -> Tensor:
        """(d, d) float64, over n - 1. Raises TiltingError for fewer than two vectors."""
        if self.number < 2:
            raise TiltingError(f"a covariance needs at least 2 images, not {self.number}")
        mean = self.mean()
        return (self.outer - self.number * torch.outer(mean, mean)) / (self.number - 1)


def moments(features: Tensor) -> Moments:
    """The moments of features (n, d), of any float dtype; n may be 0."""
    f = features.detach().double()
    return Moments(len(f), f.sum(0), f.T @ f)


def frechet(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance between the Gaussians of two sets, from moments alone.

    Raises:
        TiltingError: fewer than two images in a set, or features of different lengths.
    """
    if a.total.shape != b.total.shape:
        raise TiltingError(f"features of {len(a.total)} and {len(b.total)} numbers cannot be compared")
    first, second = a.covariance(), b.covariance()
    cross = torch.linalg.matrix_norm(_root(first) @ _root(second), "nuc")
    return _distance(a.mean() - b.mean(), first.trace(), second.trace(), cross)


@METRICS.declare("fid", "FID", "squared distance of two Gaussians", ("fid",), of="sets", better="lower", fewest=50)
def fid(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between features (n, d) and (m, d), by whichever way is the smaller problem.

    Raises:
        TiltingError: fewer than two images in a set, or features of different lengths.
    """
    if min(len(a), len(b)) >= a.shape[-1] or min(len(a), len(b)) < 2 or a.shape[-1] != b.shape[-1]:
        return frechet(moments(a), moments(b))
    a, b = a.detach().double(), b.detach().double()
    first, second = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (a, b))
    cross = torch.linalg.matrix_norm(first @ second.T, "nuc")
    return _distance(a.mean(0) - b.mean(0), first.square().sum(), second.square().sum(), cross)


def _distance(shift: Tensor, first: Tensor, second: Tensor, cross: Tensor) -> float:
    """Rounding can leave a few 1e-12 below 0: the distance of a set to itself is 0."""
    return max(0.0, (shift.square().sum() + first + second - 2 * cross).item())


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
