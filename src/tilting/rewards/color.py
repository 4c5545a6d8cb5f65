"""`color`: near a colour, r(x) = -mean over pixels and channels of (x - colour)²; or the same of the image's mean colour.

The second leaves the image its contrasts: mean (x - c)² = (mean x - c)² + variance of x, channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.features.images import check_images
from tilting.rewards.arguments import read_color


@dataclass(frozen=True)
class Color:
    """r(x) = -mean (x - colour)², in [-1, 0].

    Attributes:
        rgb: the colour, three numbers in [0, 1].
        name: the spec that names it.
        of_mean: compare the mean colour of the image instead of every pixel.
        differentiable: True.
    """

    rgb: tuple[float, float, float]
    name: str
    of_mean: bool = False
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        x = images if images.dtype == torch.float64 else images.float()
        x = x.mean((2, 3), keepdim=True) if self.of_mean else x
        return -(x - x.new_tensor(self.rgb)[:, None, None]).square().mean((1, 2, 3))


def color(color: str) -> Color:
    """Nearness to a colour.

    Args:
        color: "red" (any colour name of CSS), "#f80" or "#ff8800"; with ",mean" after it, the mean colour is compared.

    Raises:
        TiltingError: no such colour.
    """
    rgb, of_mean = read_color(color)
    return Color(rgb, f"color:{color}", of_mean)
