"""Diversity: the mean distance between two images of one prompt. It falls when a method collapses to few pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tilting.errors import TiltingError


def mean_pairwise(features: Tensor) -> float:
    """Mean Euclidean distance over the pairs of L2-normalised features (n, d), in [0, 2]. Raises TiltingError below n = 2."""
    if len(features) < 2:
        raise TiltingError(f"diversity needs at least 2 images of a prompt, not {len(features)}")
    return F.pdist(F.normalize(features.detach().double(), dim=-1)).mean().item()


def mean_distance(images: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Mean of a perceptual distance over the pairs of images (n, 3, h, w) in [0, 1].

    Args:
        images: of one prompt.
        distance: such as LPIPS: images (b, 3, h, w), images (b, 3, h, w) -> (b,).

    Raises:
        TiltingError: fewer than two images.
    """
    if len(images) < 2:
        raise TiltingError(f"diversity needs at least 2 images of a prompt, not {len(images)}")
    first, second = torch.triu_indices(len(images), len(images), 1)
    with torch.no_grad():
        parts = [distance(images[i], images[j]).double() for i, j in zip(first.split(64), second.split(64), strict=True)]
    return torch.cat(parts).mean().item()
