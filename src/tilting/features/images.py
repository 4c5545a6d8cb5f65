"""Validation of image batches: rank, channels, dtype and range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tilting.errors import TiltingError

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 1e-3
"""Tolerance outside [0, 1]: allows a decoder's rounding, but not images in [-1, 1]."""


def check_images(images: Tensor, prompts: Sequence[str] | None = None) -> None:
    """Refuse anything but a batch of images in [0, 1]. Gradients are not affected.

    Args:
        images: (b, 3, h, w) float in [0, 1], b may be 0; h and w at least 1.
        prompts: when given, there must be b of them.

    Raises:
        TiltingError: wrong rank, channels, size, dtype or count, NaN, or a value outside [0, 1] by more than `SLACK`.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise TiltingError(f"images must have shape (b, 3, h, w), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TiltingError(f"images must be float in [0, 1], not {images.dtype}; divide bytes by 255")
    if 0 in images.shape[2:]:
        raise TiltingError(f"images of {images.shape[2]} x {images.shape[3]} pixels are empty")
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != len(images)):
        count = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise TiltingError(f"{len(images)} images need a list of as many prompts, not {count}")
    if not len(images):
        return
    low, high = (float(v) for v in images.detach().aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):  # so that NaN is refused too
        hint = "; map [-1, 1] with (x + 1) / 2" if -1 - SLACK <= low < 0 and high <= 1 + SLACK else ""
        raise TiltingError(f"images must lie in [0, 1], these span [{low:.4g}, {high:.4g}]{hint}")
