"""Encoding of a finished image or video with its metadata."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.features.video import RATE, frames_of, mp4

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_DESCRIPTION = 0x010E
"""The EXIF tag."""
STILL, MOVING = ("png", "jpeg", "webp"), ("png", "webp", "gif", "mp4")
"""The formats of pictures, and of videos."""


def check_format(kind: str | None, video: bool) -> None:
    """Refuse a format that a model's pictures, or videos, are not written in. Raises TiltingError."""
    able = MOVING if video else STILL
    if kind not in (None, *able):
        what = ("a video", "webp") if video else ("a picture", "png")
        raise TiltingError(
            f"{what[0]} is written as {', '.join(able[:-1])} or {able[-1]}, not as {kind}: give --format {what[1]}"
        )


def picture_file(image: Tensor, record: dict[str, Any], method: str, kind: str | None = None) -> bytes:
    """A file of an image (3, h, w), or a video (frames, 3, h, w), in [0, 1] with its prompt, seed, method and reward in it.

    Those are text chunks of a PNG; the EXIF of a JPEG or WEBP (without loss), the comment of a GIF (256 colours) or an mp4, as
    JSON. A video is an animated PNG or WEBP, a GIF, or an mp4.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    reward = "" if record["reward"] is None else repr(record["reward"])
    told = {"prompt": record["prompt"], "seed": str(record["seed"]), "method": method, "reward": reward}
    frames, buffer = frames_of(image), io.BytesIO()
    if kind == "mp4":
        return mp4(frames, json.dumps(told))
    picture, *more = frames
    video: dict[str, Any] = {"save_all": True, "append_images": more, "duration": 1000 // RATE, "loop": 0} if more else {}
    if kind in (None, "png"):
        info = PngInfo()
        for key, value in told.items():
            info.add_text(key, value)
        picture.save(buffer, "png", pnginfo=info, **video)
        return buffer.getvalue()
    if kind == "gif":
        picture.save(buffer, "gif", comment=json.dumps(told).encode(), **video)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = json.dumps(told)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {"lossless": True}
    picture.save(buffer, kind, exif=exif, **options, **video)
    return buffer.getvalue()
