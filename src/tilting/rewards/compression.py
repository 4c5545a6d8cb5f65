"""How well a picture compresses: the size of its real JPEG file, a black box, and what JPEG loses of it, differentiable.

    jpeg         r(x) = -kB of the file at quality 95          (Black et al. 2023, 4.1); jpeg-up is its negation
    jpeg-diff    r(x) = -‖x - d(c(x))‖²                        (Clark et al. 2024, B.3); jpeg-diff-up is its negation

summed over pixels and channels in [0, 1]. c and d are kornia's differentiable JPEG (Reich et al. 2024: rounding as round(z) +
(z - round(z))³). DRaFT fixes the compression *ratio* at 4 and publishes neither its codec nor the scale of its pixels; kornia's
codec has a *quality* and writes no file, so the ratio follows the picture. See `jpeg_diff` for how the two relate.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.features.picture import encoded
from tilting.lazy import torch
from tilting.rewards.check import Scorer, precise
from tilting.rewards.declaration import REWARDS, Argument

if TYPE_CHECKING:
    from torch import Tensor

OF_FILE, OF_CODEC = 95, 50.0
"""Qualities: of the file, and unless told of the differentiable codec."""


def kilobytes(image: Tensor, quality: int = OF_FILE) -> float:
    """The size of one image (3, h, w) in [0, 1] as a JPEG file, in kB of 1000 bytes (PIL's 4:2:0, round to bytes)."""
    return len(encoded(image, "JPEG", quality=quality)) / 1000


@dataclass(frozen=True)
class Jpeg(Scorer):
    """r(x) = -kB of the JPEG file at quality 95, or +kB.

    Attributes:
        incompressible: reward large files instead of small ones.
    """

    incompressible: bool = False
    differentiable: bool = False

    @property
    def name(self) -> str:
        """ "jpeg", or "jpeg-up" for its negation."""
        return "jpeg-up" if self.incompressible else "jpeg"

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        sign = 1 if self.incompressible else -1
        return torch.tensor([sign * kilobytes(x) for x in images], dtype=torch.float32, device=images.device)


@REWARDS.declare("jpeg-up", "large JPEG file at quality 95", "kB", options={"incompressible": True})
@REWARDS.declare("jpeg", "small JPEG file at quality 95", "-kB")
def jpeg(incompressible: bool = False) -> Jpeg:
    """-kB of the file at quality 95 ("jpeg"), or its negation ("jpeg-up")."""
    return Jpeg(incompressible)


@dataclass(frozen=True)
class JpegDiff(Scorer):
    """r(x) = -‖x - d(c(x))‖², at most 0 (at least 0 for ``up``); d(c(x)) repeats the last row and column of an image up to a
    multiple of 16, and what it adds is not scored.

    Attributes:
        quality: 1..100, lower compresses harder.
        up: reward what JPEG loses (incompressibility, the paper's negation).
    """

    quality: float = OF_CODEC
    up: bool = False
    differentiable: bool = True

    @property
    def name(self) -> str:
        """ "jpeg-diff" or "jpeg-diff-up", with ":QUALITY" when it is not 50."""
        return f"jpeg-diff{'-up' if self.up else ''}{'' if self.quality == OF_CODEC else f':{self.quality:g}'}"

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        from kornia.enhance import JPEGCodecDifferentiable

        x = precise(images)
        quality = torch.full((1,), self.quality, dtype=x.dtype, device=x.device)
        lost = (x - JPEGCodecDifferentiable().to(x)(x, quality)).square().sum((1, 2, 3))
        return lost if self.up else -lost


def check_quality(text: str | float) -> float:
    """A number between 1 and 100. Raises TiltingError."""
    quality = math.nan
    with suppress(ValueError):
        quality = float(text)
    if not 1 <= quality <= 100:
        raise TiltingError(f"the quality of jpeg-diff must be a number between 1 and 100, not {text}")
    return quality


QUALITY = Argument("QUALITY", check_quality, float, files=False)


@REWARDS.declare(
    "jpeg-diff-up", "much lost by JPEG", "squared distance", differentiable=True, argument=QUALITY, options={"up": True}
)
@REWARDS.declare("jpeg-diff", "little lost by JPEG", "-squared distance", differentiable=True, argument=QUALITY)
def jpeg_diff(quality: float = OF_CODEC, up: bool = False) -> JpegDiff:
    """What JPEG loses of a picture, negated; differentiable.

    Args:
        quality: 1..100. the paper's fixed ratio of 4 (of raw bytes to the file's) has no single quality: PIL's files of two
            photographs reach it near quality 95 at 64 x 64 pixels and between 98 and 100 or beyond at 512 x 512; at the
            default of 50 they are 9 times and 23 to 45 times smaller than raw, so the default presses harder.
        up: the negation, for incompressible images.

    Raises:
        TiltingError: a quality outside 1..100.
    """
    return JpegDiff(check_quality(quality), up)
