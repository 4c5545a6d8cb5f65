"""Diversity: the mean distance between two images of one prompt, which falls when a method collapses to few pictures. And the
distance to the picture that an image was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.metrics.declaration import METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.lpips import Lpips


def mean_pairwise(features: Tensor) -> float:
    """Mean Euclidean distance over the pairs of L2-normalised features (n, d), in [0, 2]. Raises TiltingError below n = 2."""
    if len(features) < 2:
        raise TiltingError(f"diversity needs at least 2 images of a prompt, not {len(features)}")
    return torch.pdist(torch.nn.functional.normalize(features.detach().double(), dim=-1)).mean().item()


AT_ONCE = 16
"""Images of a block; the features of two blocks are in memory at once."""


def mean_distance(images: Tensor, table: Callable[[Tensor, Tensor | None], Tensor]) -> float:
    """Mean of a perceptual distance over the pairs of images (n, 3, h, w) in [0, 1].

    Args:
        images: of one prompt.
        table: such as `tilting.features.lpips.Lpips.table`: distances (a, b) of images with others, or with themselves.

    Raises:
        TiltingError: fewer than two images.
    """
    n = len(images)
    if n < 2:
        raise TiltingError(f"diversity needs at least 2 images of a prompt, not {n}")
    blocks, total = images.split(AT_ONCE), 0.0
    with torch.no_grad():
        for i, block in enumerate(blocks):
            total += table(block, None).cpu().double().triu(1).sum().item()
            total += sum(table(block, other).cpu().double().sum().item() for other in blocks[i + 1 :])
    return total / (n * (n - 1) / 2)


@METRICS.declare(
    "lpips_input",
    "LPIPS to the input",
    "distance to the reference or input picture",
    ("lpips", "images", "reference"),
    better="lower",
    needs=("reference-image", "lpips"),
)
def lpips_input(lpips: Lpips, images: Tensor, reference: Tensor) -> Tensor:
    """LPIPS of images (b, 3, h, w), or of videos (b, frames, 3, h, w), with as many others -> (b,), at least 0; NaN beside one
    that is NaN, which is none."""
    there = reference.flatten(1).isfinite().all(1)
    far = torch.full((len(images),), torch.nan)
    with torch.no_grad():
        far[there] = lpips(images[there], reference[there]).cpu() if there.any() else far[there]
    return far


@METRICS.declare(
    "diversity", "Diversity", "mean distance within a prompt", ("spread", "images", "lpips"), of="prompt", judges=True
)
def diversity(features: Tensor, images: Tensor, lpips: Lpips | None) -> float:
    """`mean_distance` of the images of a prompt in LPIPS, or `mean_pairwise` of their features without. Raises TiltingError."""
    return mean_pairwise(features) if lpips is None else mean_distance(images, lpips.table)
