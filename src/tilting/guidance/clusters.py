"""One gradient per cluster of particles, by k-means over an image's latents (CoDeX, thesis ch. 5).

The published code takes the gradient at each cluster's *mean*, which has less noise than level t; a medoid, the member nearest
to the mean, does not have that flaw. Members move by their representative's step.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def cluster(x: Tensor, k: int, at: Literal["medoid", "mean"] = "medoid") -> tuple[Tensor, Tensor]:
    """k representatives of each image's particles.

    Args:
        x: (b, n, ...) latents.
        k: clusters, at most n; scikit-learn's k-means with a constant seed, so that images do not affect each other.
        at: what represents a cluster.

    Returns:
        (b, k, ...) representatives and (b, n) the cluster of each particle. If particles coincide, a cluster may be empty; its
        representative is then the first particle, without members.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    flat = x.detach().flatten(2).float().cpu().numpy()
    representatives, labels = torch.empty_like(x[:, :k]), torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
    for i, particles in enumerate(flat):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct particles than clusters
            fitted = KMeans(k, n_init=1, random_state=0).fit(particles)  # pyright: ignore[reportArgumentType]
            label = torch.from_numpy(fitted.labels_).long().to(x.device)
        labels[i] = label
        for j in range(k):
            members = (label == j).nonzero()[:, 0]
            if len(members) == 0:
                representatives[i, j] = x[i, 0]
                continue
            mean = x[i, members].mean(0)
            near = (x[i, members] - mean).flatten(1).square().sum(1).argmin()
            representatives[i, j] = mean if at == "mean" else x[i, members[near]]
    return representatives, labels
