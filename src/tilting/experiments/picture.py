"""A reference picture (--image): looked at before torch is imported, then cut to the size a model draws.

SDEdit (Meng et al. 2022) noises an encoded picture to the share r of the steps and draws the rest of them, so the picture must
have the model's own size: the largest centred part of its shape is resized to it, antialiased.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MODES = ("RGB", "RGBA", "L", "LA", "P")
"""What PIL may call a picture that has one clean reading as RGB; what is transparent is put on white."""


def open_picture(path: str | Path) -> Image.Image:
    """A picture as RGB, upright and wholly decoded.

    Args:
        path: a file that PIL reads; of several frames the first counts.

    Raises:
        TiltingError: no such file, not a picture, broken, empty, or of a mode that is not in `MODES`.
    """
    from PIL import Image

    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is not there"
        raise TiltingError(f"the picture {str(path)!r} of --image {what}")
    try:
        with Image.open(file) as opened:
            opened.load()
            return _upright(opened, f"the picture {str(path)!r}")
    except TiltingError:
        raise
    except Exception as error:  # decoders of PIL raise nearly anything on a broken file
        reason = getattr(error, "strerror", None)
        raise TiltingError(f"the picture {str(path)!r} cannot be read" + (f": {reason}" if reason else "")) from None


def _upright(opened: Image.Image, what: str) -> Image.Image:
    """A decoded picture as RGB, turned as its EXIF says, on white. Raises TiltingError: empty, or of another mode."""
    from PIL import Image, ImageOps

    if opened.mode not in MODES:
        raise TiltingError(f"{what} is {_named(opened.mode)}, not RGB: convert it and give it again")
    if 0 in opened.size:
        raise TiltingError(f"{what} has no pixels: {opened.width} x {opened.height}")
    image = ImageOps.exif_transpose(opened)
    if "transparency" in image.info or image.mode in ("RGBA", "LA"):
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def read_picture(picture: str | Path | Image.Image, height: int, width: int) -> Tensor:
    """The picture at a model's size, centred and antialiased; one of that size is as it is.

    Args:
        picture: a file as `open_picture` takes it, or a picture that PIL has opened.
        height: rows wanted.
        width: columns wanted.

    Returns:
        (1, 3, height, width) float in [0, 1].

    Raises:
        TiltingError: what `open_picture` refuses.
    """
    import numpy as np
    import torch
    from PIL import Image

    image = open_picture(picture) if isinstance(picture, str | Path) else _upright(picture, "the picture")
    if image.size != (width, height):
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def _named(mode: str) -> str:
    """A mode of PIL for people."""
    known = {"CMYK": "CMYK (for print)", "1": "black and white (1 bit)", "F": "of floating-point values", "YCbCr": "YCbCr"}
    return known.get(mode, "of more than 8 bits a channel" if mode.startswith("I") else f"of the mode {mode}")
