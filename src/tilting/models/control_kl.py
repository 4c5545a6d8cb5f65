"""Path KL of a controlled chain to the pre-trained one, summed up while it is drawn.

    KL = Σ_t |Δmean_t|² / (2 std_t²),   Δmean = α_s Δx0 + sqrt(σ_s² - std²) Δeps

over the steps with a density (std > 0), summed over latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tilting.schedule import step_std
from tilting.types import Prediction, Time


class PathKl:
    """A watcher of `tilting.models.labels.guided`.

    Of every image it takes the mean over what is evaluated at a step: the one path of a plain sampler; with particles, what
    the control alone adds to theirs.

    Args:
        grid: of the sampler.
        eta: its noise; at 0 there is no density, and no KL.
    """

    def __init__(self, grid: Sequence[Time], eta: float):
        self.weights: dict[float, tuple[float, float]] = {}
        for t, s in pairwise(grid):
            std = step_std(t, s, eta)
            if std > 0:
                scale = std * math.sqrt(2)
                self.weights[t.t] = (s.alpha / scale, math.sqrt(max(s.sigma**2 - std**2, 0.0)) / scale)
        self._sums: dict[tuple[float, int], float] = {}
        self._counts: dict[tuple[float, int], int] = {}

    def __call__(self, controlled: Prediction, pretrained: Prediction, t: Time, rows: Tensor) -> None:
        if t.t not in self.weights:
            return
        a, b = self.weights[t.t]
        apart = a * (controlled.x0 - pretrained.x0) + b * (controlled.eps - pretrained.eps)
        for row, size in zip(rows.tolist(), apart.cpu().double().flatten(1).square().sum(1).tolist(), strict=True):
            key = (t.t, row)
            self._sums[key] = self._sums.get(key, 0.0) + size
            self._counts[key] = self._counts.get(key, 0) + 1

    def take(self, images: int) -> Tensor | None:
        """(images,) KL of the images drawn since the last call, or None where no step has a density."""
        if not self.weights:
            return None
        total = torch.zeros(images, dtype=torch.float64, device="cpu")
        for (t, row), value in self._sums.items():
            if row < images:
                total[row] += value / self._counts[t, row]
        self._sums.clear()
        self._counts.clear()
        return total
