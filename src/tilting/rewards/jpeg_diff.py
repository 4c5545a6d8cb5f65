"""`jpeg-diff` and `jpeg-diff-up`: what JPEG loses of a picture, differentiable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.images import check_images

QUALITY = 50.0


@dataclass(frozen=True)
class JpegDiff:
    """r(x) = -‖x - d(c(x))‖², summed over pixels and channels in [0, 1] (DRaFT, Clark et al. 2024, section B.3).

    c and d are kornia's differentiable JPEG (Reich et al. 2024: rounding as round(z) + (z - round(z))³). DRaFT fixes
    the compression *ratio* at 4 and publishes neither its codec nor the scale of its pixels; kornia's codec has a
    *quality* and writes no file, so the ratio follows the picture. See `jpeg_diff` for how the two relate.

    Attributes:
        quality: 1..100, lower compresses harder.
        up: reward what JPEG loses (incompressibility, the paper's negation).
        differentiable: True.
    """

    quality: float = QUALITY
    up: bool = False
    differentiable: bool = True

    @property
    def name(self) -> str:
        """ "jpeg-diff" or "jpeg-diff-up", with ":QUALITY" when it is not 50."""
        return f"jpeg-diff{'-up' if self.up else ''}{'' if self.quality == QUALITY else f':{self.quality:g}'}"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images; the prompts are only counted.

        Args:
            images: (b, 3, h, w) float in [0, 1] of any size: the codec repeats the last row and column up to a
                multiple of 16, and what it adds is not scored.
            prompts: b strings.

        Returns:
            (b,), at most 0 (at least 0 for ``up``).

        Raises:
            TiltingError: what `check_images` refuses.
        """
        from kornia.enhance import JPEGCodecDifferentiable

        check_images(images, prompts)
        if not len(images):
            return images.flatten(1).sum(1)
        x = images if images.dtype == torch.float64 else images.float()
        quality = torch.full((1,), self.quality, dtype=x.dtype, device=x.device)
        lost = (x - JPEGCodecDifferentiable().to(x)(x, quality)).square().sum((1, 2, 3))
        return lost if self.up else -lost


def jpeg_diff(quality: float = QUALITY, up: bool = False) -> JpegDiff:
    """What JPEG loses of a picture, negated; differentiable.

    Args:
        quality: 1..100. the paper's fixed ratio of 4 (of raw bytes to the file's) has no single quality: PIL's files of two
            photographs reach it near quality 95 at 64 x 64 pixels and between 98 and 100 or beyond at 512 x 512; at the
            default of 50 they are 9 times and 23 to 45 times smaller than raw, so the default presses harder.
        up: the negation, for incompressible images.

    Raises:
        TiltingError: a quality outside 1..100.
    """
    if not 1 <= quality <= 100:
        raise TiltingError(f"the quality of jpeg-diff is between 1 and 100, not {quality:g}")
    return JpegDiff(float(quality), up)
