"""`symmetry`: like its own mirror image, r(x) = -mean (x - mirror(x))² over pixels and channels.

DRaFT explored "symmetry or anti-symmetry properties" and gives a formula for the latter only (Clark et al. 2024, section
B.9; see `tilting.rewards.rotation`); this is its counterpart for mirrors, as a mean, so that it does not grow with the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.errors import TiltingError, nearest
from tilting.features.images import check_images
from tilting.rewards.arguments import MIRRORS

AXES = {"lr": (3,), "ud": (2,), "both": (3, 2)}


@dataclass(frozen=True)
class Symmetry:
    """r(x) = -mean (x - mirror(x))², in [-1, 0]; 0 for a perfectly symmetric image.

    Attributes:
        mirror: "lr" exchanges left and right, "ud" top and bottom; "both" is the mean of the two.
        differentiable: True.
    """

    mirror: str = "lr"
    differentiable: bool = True

    @property
    def name(self) -> str:
        """ "symmetry", with ":ud" or ":both" when it is not left and right."""
        return "symmetry" if self.mirror == "lr" else f"symmetry:{self.mirror}"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        x = images if images.dtype == torch.float64 else images.float()
        each = [(x - x.flip(axis)).square().mean((1, 2, 3)) for axis in AXES[self.mirror]]
        return -torch.stack(each).mean(0)


def symmetry(mirror: str = "lr") -> Symmetry:
    """Mirror symmetry: "lr" (left and right), "ud" (top and bottom) or "both". Raises TiltingError for another word."""
    if mirror not in MIRRORS:
        raise TiltingError(f"there is no mirror {mirror!r}{nearest(mirror, MIRRORS)}")
    return Symmetry(mirror)
