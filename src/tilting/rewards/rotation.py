"""`rotation`: unlike its own rotations. DRaFT's rotational anti-correlation (Clark et al. 2024, section B.9).

    r(x) = 1/3 (‖x - Rot(x, 90°)‖² + ‖x - Rot(x, 180°)‖² + ‖x - Rot(x, 270°)‖²)

summed over pixels and channels. A rotation keeps norms, so ‖x - Rot(x, 270°)‖ = ‖Rot(x, 90°) - x‖ and two terms are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.features.images import check_images
from tilting.features.pixels import centre_crop


@dataclass(frozen=True)
class Rotation:
    """r(x) = mean over 90°, 180° and 270° of ‖x - Rot(x)‖², at least 0. The paper's range of x is not published.

    Attributes:
        name: "rotation".
        differentiable: True.
    """

    name: str = "rotation"
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images; the prompts are only counted.

        Args:
            images: (b, 3, h, w) float in [0, 1]; of one that is not square, the largest centred square is looked at.
            prompts: b strings.

        Returns:
            (b,) squared distances, 0 for what a quarter turn leaves alone, at most 3 side².

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images, prompts)
        side = min(images.shape[2:])
        x = centre_crop(images if images.dtype == torch.float64 else images.float(), side, side)
        quarter, half = ((x - x.rot90(k, (2, 3))).square().sum((1, 2, 3)) for k in (1, 2))
        return (2 * quarter + half) / 3


def rotation() -> Rotation:
    """Dissimilarity of an image to its rotations by 90, 180 and 270 degrees."""
    return Rotation()
