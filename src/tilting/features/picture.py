"""The only reader of image files: RGB, upright by EXIF, on white where transparent, the first of several frames. Torch-free
to import."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from tilting.errors import TiltingError
from tilting.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from PIL import Image
    from torch import Tensor


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What counts as a picture in a folder."""


class Inside(NamedTuple):
    """A picture inside of a table.

    Attributes:
        column: of an arrow table, of bytes or of {"bytes", "path"}.
        row: its number.
        name: for people.
    """

    column: Any
    row: int
    name: str

    def read(self) -> bytes:
        """Its bytes. Raises TiltingError, a reason alone, where there are none."""
        cell = self.column[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not data:
            raise TiltingError("holds no picture")
        return data

    def __str__(self) -> str:
        return self.name


MODES = ("RGB", "RGBA", "L", "LA", "P")
"""What PIL may call a picture that has one clean reading as RGB."""


def open_rgb(
    path: str | Path | bytes | BinaryIO | Inside, read: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """A file as an RGB picture, wholly decoded.

    Args:
        path: of the file, or its bytes, or what they can be read from.
        read: another reading of what PIL has decoded than `upright`, such as `mask_of`.

    Raises:
        TiltingError: a reason without the name of the file, for callers say which picture it is: not there, a folder, broken,
            empty, or of a mode that is not in `MODES`.
    """
    from PIL import Image

    file: Any = path
    if isinstance(path, str | Path):
        file = Path(path)
        if not file.is_file():
            raise TiltingError("is a folder" if file.is_dir() else "is not there")
    elif isinstance(path, bytes | Inside):
        file = BytesIO(path if isinstance(path, bytes) else path.read())
    try:
        with Image.open(file) as opened:
            opened.load()
            return (read or upright)(opened)
    except TiltingError:
        raise
    except Exception as error:  # decoders of PIL raise nearly anything on a broken file
        reason = getattr(error, "strerror", None)
        raise TiltingError("cannot be read as a picture" + (f": {reason}" if reason else "")) from error


def upright(opened: Image.Image) -> Image.Image:
    """A picture that PIL has decoded as RGB. Raises TiltingError, a reason alone: empty, or of another mode."""
    from PIL import Image, ImageOps

    if opened.mode not in MODES:
        raise TiltingError(f"is {_named(opened.mode)}, not RGB: convert it and give it again")
    if 0 in opened.size:
        raise TiltingError(f"has no pixels: {opened.width} x {opened.height}")
    image = ImageOps.exif_transpose(opened)
    if "transparency" in image.info or image.mode in ("RGBA", "LA"):
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def mask_of(opened: Image.Image) -> Image.Image:
    """A mask that PIL has decoded, in grey of 8 bits: the brightness that diffusers' own processor sees, of 16 bits by their
    range, which it would cut. Raises TiltingError, a reason alone: also where transparency leaves it open what is drawn."""
    from PIL import ImageOps

    deep = opened.mode.startswith("I;16")
    if not deep and opened.mode not in (*MODES, "1"):
        raise TiltingError(f"is {_named(opened.mode)}: give a mask in black and white")
    image = ImageOps.exif_transpose(opened)
    if "transparency" in image.info or image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        if min(image.getchannel("A").tobytes()) < 255:
            raise TiltingError("is transparent in places, which may mean drawn or kept: give a mask in black and white")
        image = image.convert("RGB")
    return image.point(lambda v: v * (1 / 257), "L") if deep else image.convert("L")


def tensor_of(pixels: np.ndarray) -> Tensor:
    """uint8 (..., h, w, 3) -> float (..., 3, h, w) in [0, 1]."""
    # Contiguous: a strided batch ends in a convolution of 8 channels whose backward corrupts the heap (torch 2.13, CPU).
    return torch.from_numpy(pixels).movedim(-1, -3).contiguous().float() / 255


def read_image(path: str | Path) -> Tensor:
    """A picture (3, h, w) float in [0, 1]. Raises TiltingError naming a file that is none."""
    import numpy as np

    try:
        return tensor_of(np.array(open_rgb(path)))
    except TiltingError as error:
        raise TiltingError(f"the picture {str(path)!r} {error}") from error


def encoded(image: Tensor, kind: str, **options: Any) -> bytes:
    """An image (3, h, w) in [0, 1] as a file of a kind that PIL writes, of 8 bits a channel."""
    from PIL import Image

    pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _named(mode: str) -> str:
    """A mode of PIL for people."""
    known = {"CMYK": "CMYK (for print)", "1": "black and white (1 bit)", "F": "of floating-point values", "YCbCr": "YCbCr"}
    return known.get(mode, "of more than 8 bits a channel" if mode.startswith("I") else f"of the mode {mode}")
