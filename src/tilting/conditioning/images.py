"""Pictures of a labelled data set: opened upright as RGB, cut to a square, read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.features.picture import open_rgb, tensor_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What counts as a picture in a folder."""
HELD = 2**30
"""Bytes of decoded pictures that are kept; the rest is decoded again in every epoch."""


def square(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square of a picture at size x size, antialiased; uint8 (size, size, 3)."""
    import numpy as np
    from PIL import Image

    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(image)


class Pictures:
    """The pictures of a data set at one size, read when asked for.

    Args:
        paths: n files, decodable ones.
        size: rows and columns.
        held: bytes of decoded pictures to keep.
    """

    def __init__(self, paths: Sequence[Path], size: int, held: int = HELD):
        self.paths, self.size = list(paths), size
        self._room = held // (3 * size * size)
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """(b, 3, size, size) float in [0, 1] of the pictures of these numbers."""
        import numpy as np

        return tensor_of(np.stack([self._one(row) for row in rows]))

    def _one(self, row: int) -> np.ndarray:
        if row in self._kept:
            return self._kept[row]
        try:
            pixels = square(open_rgb(self.paths[row]), self.size)
        except TiltingError as error:
            raise TiltingError(f"the picture {str(self.paths[row])!r} {error}") from error
        if len(self._kept) < self._room:
            self._kept[row] = pixels
        return pixels
