"""Path KL between a controlled chain and the pre-trained one, accumulated while sampling.

    KL = Σ_t |Δmean_t|² / (2 std_t²)

over the steps with a density (std > 0), summed over latent dimensions; a step's mean is linear in x0 and eps, so that Δmean is
the transition of Δx0 and Δeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tilting.schedule import Law, step_std, transition
from tilting.types import Prediction, Time


class PathKl:
    """A watcher of `tilting.models.labels.guided`.

    Of every image it takes the mean over what is evaluated at a step: the one path of a plain sampler; with particles, what
    the control alone adds to theirs.

    Args:
        grid: that the sampler runs on.
        eta: its noise; at 0 there is no density, and no KL.
        law: of that noise.
    """

    def __init__(self, grid: Sequence[Time], eta: float, law: Law = "posterior"):
        self.steps = {t.t: (t, s) for t, s in pairwise(grid) if step_std(t, s, eta, law) > 0}
        self.noise = eta, law
        self._sums: dict[tuple[float, int], float] = {}
        self._counts: dict[tuple[float, int], int] = {}

    def __call__(self, controlled: Prediction, pretrained: Prediction, t: Time, rows: Tensor) -> None:
        if t.t not in self.steps:
            return
        apart = Prediction(*(mine - base for mine, base in zip(controlled, pretrained, strict=True)))
        mean, std, _ = transition(apart, *self.steps[t.t], *self.noise)
        for row, size in zip(rows.tolist(), (mean / std).cpu().double().flatten(1).square().sum(1).tolist(), strict=True):
            key = (t.t, row)
            self._sums[key] = self._sums.get(key, 0.0) + size / 2
            self._counts[key] = self._counts.get(key, 0) + 1

    def take(self, images: int) -> Tensor | None:
        """(images,) KL of the images drawn since the last call, or None where no step has a density."""
        if not self.steps:
            return None
        total = torch.zeros(images, dtype=torch.float64, device="cpu")
        for (t, row), value in self._sums.items():
            if row < images:
                total[row] += value / self._counts[t, row]
        self._sums.clear()
        self._counts.clear()
        return total
