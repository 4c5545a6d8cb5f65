"""A reference picture (--image): validated before torch is imported, then cropped and resized to a model's size.

SDEdit (Meng et al. 2022) noises an encoded picture to a share r of the steps and samples from there, so the picture needs the
model's own size: the largest centred crop of its aspect ratio is resized to it, antialiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tilting.errors import TiltingError
from tilting.features.picture import open_rgb, tensor_of, upright
from tilting.features.video import open_frames
from tilting.lazy import torch

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def open_picture(path: str | Path) -> Image.Image:
    """A picture as RGB, upright and wholly decoded, the first of a video. Raises TiltingError: what
    `tilting.features.video.open_frames` refuses."""
    return _open(path, 1)[0]


def _open(path: str | Path, most: int) -> list[Image.Image]:
    try:
        return open_frames(path, most)
    except TiltingError as error:
        raise TiltingError(f"the picture {str(path)!r} of --image {error}") from error


def read_picture(picture: str | Path | bytes | BinaryIO | Image.Image, height: int, width: int) -> Tensor:
    """Read a picture at a model's size, centre-cropped and antialiased; one of that size is unchanged.

    Args:
        picture: a path, the bytes of a file, an open binary file, or a PIL image.
        height, width: the size in pixels.

    Returns:
        (1, 3, height, width) float in [0, 1].

    Raises:
        TiltingError: what `open_picture` refuses, or another type.
    """
    import numpy as np
    from PIL import Image

    image = open_picture(picture) if isinstance(picture, str | Path) else _given(picture)
    if image.size != (width, height):
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return tensor_of(np.array(image))[None]


def read_video(path: str | Path, frames: int, height: int, width: int) -> Tensor:
    """The first frames of a video as `read_picture` gives a picture: (1, frames, 3, height, width). Raises TiltingError."""
    return video_of([read_picture(one, height, width) for one in _open(path, frames)], frames)


def video_of(pictures: Sequence[Tensor], frames: int) -> Tensor:
    """Pictures (1, 3, h, w) as a video (1, frames, 3, h, w), of which a lone one is every frame. Raises TiltingError."""
    if 1 < len(pictures) < frames:
        raise TiltingError(
            f"the video of --image has {len(pictures)} frames, and {frames} are drawn: give --frames, or a longer one"
        )
    return torch.stack([one[0] for one in pictures[:frames]])[None].expand(1, frames, -1, -1, -1)


def _given(picture: bytes | BinaryIO | Image.Image) -> Image.Image:
    try:
        if isinstance(picture, bytes) or hasattr(picture, "read"):
            return open_rgb(picture)  # type: ignore[arg-type]
        if not hasattr(picture, "mode"):
            raise TiltingError(f"must be a tensor, an array, a picture of PIL or a file, not {type(picture).__name__}")
        return upright(picture)  # type: ignore[arg-type]
    except TiltingError as error:
        raise TiltingError(f"the picture {error}") from error
