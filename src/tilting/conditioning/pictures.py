"""Pictures of a labelled data set as networks see them: cut to a square and read when they are asked for, or as latents of a
model, which a classifier of noisy latents and classifier-free fine-tuning learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from tilting.features.picture import Inside, open_rgb, tensor_of
from tilting.lazy import np
from tilting.models import find_model
from tilting.models.families import weights_of
from tilting.runs.files import digest
from tilting.schedule import Schedule
from tilting.types import TiltingError

if TYPE_CHECKING:
    from tilting.models.pipeline import Pipeline

KEPT_BYTES = 2**30
"""Bytes of decoded pictures to cache; the others are decoded again in every epoch."""
AT_ONCE = 64
"""Pictures that are encoded at a time."""


class PictureSource(Protocol):
    """n pictures by their numbers."""

    @property
    def paths(self) -> Sequence[Any]:
        """What refusals call them."""
        ...

    def __len__(self) -> int: ...

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """(b, 3, h, w) float in [0, 1]."""
        ...


class InMemory:
    """Images (n, 3, h, w) as a `PictureSource`."""

    def __init__(self, images: Tensor):
        self.images, self.paths = images, [f"image {i}" for i in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return self.images[list(rows)]


class Pictures:
    """Picture files as a `PictureSource`, at one size, read when asked for.

    Args:
        paths: n files, or places in a table, decodable ones.
        size: rows and columns.
        kept_bytes: of decoded pictures.
    """

    def __init__(self, paths: Sequence[Path | Inside], size: int, kept_bytes: int = KEPT_BYTES):
        self.paths, self.size = list(paths), size
        self._most = kept_bytes // (3 * size * size)
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return tensor_of(np.stack([self._one(row) for row in rows]))

    def _one(self, row: int) -> np.ndarray:
        if row in self._kept:
            return self._kept[row]
        try:
            pixels = square(open_rgb(self.paths[row]), self.size)
        except TiltingError as error:
            raise TiltingError(f"the picture {str(self.paths[row])!r} {error}") from error
        if len(self._kept) < self._most:
            self._kept[row] = pixels
        return pixels


def square(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square of a picture at size x size, antialiased; uint8 (size, size, 3)."""
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.array(image)


class Encoded(NamedTuple):
    """Pictures of a data set as a model sees them.

    Attributes:
        latents: (n, ...) clean.
        schedule: of the model.
        model: {"name", "sha256"} of it; without a digest where its name is no folder.
    """

    latents: Tensor
    schedule: Schedule
    model: dict[str, Any]


def encode(model: Pipeline, pictures: PictureSource, tick: Callable[[int], object] = lambda n: None) -> Encoded:
    """Encode pictures by a model's autoencoder; ``tick`` is called with how many were.

    Raises:
        TiltingError: pictures that are not of the model's size, or latents that are not finite.
    """
    parts = []
    for first in range(0, len(pictures), AT_ONCE):
        images = pictures(range(first, min(first + AT_ONCE, len(pictures))))
        if tuple(images.shape[1:]) != tuple(model.image_shape):
            wanted = "x".join(map(str, model.image_shape))
            raise TiltingError(f"the model {model.name!r} sees images {wanted}, not {'x'.join(map(str, images.shape[1:]))}")
        with torch.no_grad():
            parts.append(model.encode(images.to(model.device)).float())
        tick(len(images))
    latents = torch.cat(parts)
    if not latents.isfinite().all():
        raise TiltingError(f"the latents of the model {model.name!r} are not finite")
    try:
        sha = digest(weights_of(find_model(model.name)))
    except TiltingError:
        sha = None
    return Encoded(latents, model.schedule, {"name": model.name, "sha256": sha})


def encode_files(model: Pipeline, paths: Sequence[Path | Inside], tick: Callable[[int], object] = lambda n: None) -> Encoded:
    """Encode picture files, each cut to a centred square of the model's size. Raises what `encode` raises."""
    return encode(model, Pictures(paths, model.image_shape[-1]), tick)
