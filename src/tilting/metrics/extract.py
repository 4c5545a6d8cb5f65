"""Feature extractors with names, so that every distance says which network it was measured in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tilting.features.clip import ClipEmbedder
from tilting.features.images import check_images
from tilting.features.packaged import POCKET_CLIP
from tilting.features.picture import read_image
from tilting.metrics.judge import PocketJudge


@dataclass(frozen=True)
class Extractor:
    """A frozen network as a function of images.

    Attributes:
        name: for reports, such as "pocket-judge (384 features)".
        call: images (b, 3, h, w) float in [0, 1] -> (b, d).
    """

    name: str
    call: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] -> (b, d) float64 on the CPU, of videos (b, frames, 3, h, w) the mean over their
        frames. Raises what `check_images` raises."""
        if images.ndim == 5:
            return self(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
        check_images(images)
        return self.call(images).cpu().double()


def judge_features(judge: PocketJudge) -> Extractor:
    """Input of pocket-judge's heads: mean and max over space of its last stage."""
    size = 2 * judge.net.config["widths"][-1]
    return Extractor(f"pocket-judge ({size} features)", judge.net.features)


def clip_embedder(folder: str | None = None) -> tuple[str, ClipEmbedder]:
    """A CLIP and its name: pocket-clip, or the folder or hub name of any other. Raises TiltingError."""
    if folder is None:
        return "pocket-clip", ClipEmbedder(POCKET_CLIP)
    return folder, ClipEmbedder(folder)


def clip_features(name: str, embedder: ClipEmbedder) -> Extractor:
    """CLIP's image embeddings, L2-normalised."""
    return Extractor(f"{name} ({embedder.dim} features)", embedder.image)


def read_batches(
    paths: Iterable[str | Path], size: int = 32, read: Callable[[str | Path], Tensor] = read_image
) -> Iterable[Tensor]:
    """Batches (b, 3, h, w) of pictures in order; a picture of another size begins a new batch.

    Args:
        paths: files of the pictures.
        size: maximum batch size.
        read: reads a file; `tilting.features.video.read_frames` gives whole videos (b, frames, 3, h, w).
    """
    batch: list[Tensor] = []
    for path in paths:
        image = read(path)
        if batch and (len(batch) == size or image.shape != batch[0].shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)
