"""Labelled pictures as latents of a model: what a classifier of noisy latents and classifier-free fine-tuning learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tilting.conditioning.images import Pictures
from tilting.models import find_model
from tilting.runs.files import digest
from tilting.types import TiltingError

if TYPE_CHECKING:
    from tilting.models.stable_diffusion import StableDiffusion
    from tilting.schedule import Schedule

AT_ONCE = 64
"""Pictures that are encoded at a time."""


class Encoded(NamedTuple):
    """Pictures of a data set as a model sees them.

    Attributes:
        latents: (n, ...) clean.
        schedule: of the model.
        model: {"name", "sha256"} of it.
    """

    latents: Tensor
    schedule: Schedule
    model: dict[str, Any]


def identity_of(model: StableDiffusion) -> dict[str, Any]:
    """{"name", "sha256"} of a model; without a digest where its name is no folder."""
    try:
        return {"name": model.name, "sha256": digest(Path(find_model(model.name)))}
    except TiltingError:
        return {"name": model.name, "sha256": None}


def encode(
    model: StableDiffusion, pictures: Callable[[Sequence[int]], Tensor], count: int,
    tick: Callable[[int], object] = lambda n: None,
) -> Encoded:  # fmt: skip
    """Encode pictures.

    Args:
        model: whose autoencoder does it.
        pictures: numbers -> (b, 3, h, w) in [0, 1].
        count: how many there are.
        tick: called with how many were encoded.

    Raises:
        TiltingError: pictures that are not of the model's size, or latents that are not finite.
    """
    parts = []
    for first in range(0, count, AT_ONCE):
        images = pictures(range(first, min(first + AT_ONCE, count)))
        if tuple(images.shape[1:]) != tuple(model.image_shape):
            wanted = "x".join(map(str, model.image_shape))
            raise TiltingError(f"the model {model.name!r} sees images {wanted}, not {'x'.join(map(str, images.shape[1:]))}")
        with torch.no_grad():
            parts.append(model.encode(images.to(model.device)).float())
        tick(len(images))
    latents = torch.cat(parts)
    if not latents.isfinite().all():
        raise TiltingError(f"the latents of the model {model.name!r} are not finite")
    return Encoded(latents, model.schedule, identity_of(model))


def encode_files(model: StableDiffusion, paths: Sequence[Path], tick: Callable[[int], object] = lambda n: None) -> Encoded:
    """Encode picture files, each cut to a centred square of the model's size. Raises what `encode` raises."""
    return encode(model, Pictures(paths, model.image_shape[-1]), len(paths), tick)
