"""Networks for p(y | x), and their trained part: all of a CNN, or the head on a frozen embedder.

A frozen embedder sees every picture once; its vectors are what the head learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tilting import rng
from tilting.conditioning.pictures import PictureSource
from tilting.errors import TiltingError
from tilting.features.classifier import HeadedClassifier
from tilting.features.fitted import EmbeddingMlp, ResidualCnn

Inputs = Callable[[Sequence[int]], Any]
"""Numbers of records -> what the learnt part is given: a tensor (b, ...), or of noisy latents with their levels."""
DROPOUT = (0.2, 0.2, 0.1)
"""Dropout after the first hidden layers of an MLP, as in `EmbeddingMlp`; 0 after later ones."""
CNN_SIZE = 64
AT_ONCE = 64
"""Pictures an embedder is given at a time."""


@contextmanager
def keyed(seed: int, label: str, step: int, purpose: str) -> Iterator[None]:
    """Torch's own generators seeded by a key inside, and as they were outside."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(rng.generator(rng.Identity(seed, label, step), 0, 0, purpose).initial_seed())
        yield


def build_network(
    kind: str, outputs: int, seed: int, label: str, widths: Sequence[int] = (), embedder: str | None = None, size: int = 0
) -> Any:
    """A network with keyed first weights.

    Args:
        kind: "cnn" (CTRL's Table 2), "mlp" (Table 3), or the folder of a transformers image classifier.
        outputs: how many numbers per picture.
        seed, label: what the first weights are keyed by.
        widths: channels of the CNN's blocks, or hidden layers of the MLP; the paper's where there are none.
        embedder: the CLIP of the MLP; None for pocket-clip.
        size: rows and columns of the pictures that the CNN learns from; 0 for any.

    Raises:
        TiltingError: a folder that holds no such classifier or CLIP.
    """
    with keyed(seed, label, 0, "weights"):
        if kind == "cnn":
            return ResidualCnn(outputs, tuple(widths), size) if widths else ResidualCnn(outputs, size=size)
        if kind == "mlp":
            rates = (*DROPOUT, *(0.0 for _ in widths))[: len(widths)]
            folder = _resolved(embedder) if embedder else None
            return EmbeddingMlp(outputs, folder, tuple(widths), rates) if widths else EmbeddingMlp(outputs, folder)
        return HeadedClassifier(outputs, _resolved(kind))


def _resolved(folder: str) -> str:
    """So that the classifier loads from any working directory."""
    return str(Path(folder).resolve()) if Path(folder).is_dir() else folder


def learnt_part(net: Any) -> nn.Module:
    """The part of a network that is learnt: the head of one that has a frozen embedder, or all of it."""
    return getattr(net, "head", net)


def size_of(net: Any) -> int:
    """Rows and columns to read pictures at: the embedder's own, or the pocket model's for a CNN."""
    return CNN_SIZE if isinstance(net, ResidualCnn) else max(net.embedder.pixels.size)


def inputs_of(
    net: Any, pictures: PictureSource, device: torch.device | str = "cpu", tick: Callable[[int], object] = lambda n: None
) -> Inputs:
    """What `learnt_part` is fed: pictures, or their vectors, computed here (``tick`` is called with how many were).

    Raises:
        TiltingError: a picture that cannot be read any more.
    """
    if isinstance(net, ResidualCnn):
        return lambda rows: pictures(rows).to(device)
    net.to(device)
    vectors = []
    for first in range(0, len(pictures), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, len(pictures)))
        with torch.no_grad():
            vectors.append(net.embedder.image(pictures(rows).to(device)))
        tick(len(rows))
    whole = torch.cat(vectors)
    if not whole.isfinite().all():
        row = int((~whole.isfinite().all(1)).nonzero()[0])
        raise TiltingError(f"the embedding of {str(pictures.paths[row])!r} is not finite")
    return lambda rows: whole[torch.as_tensor(list(rows), device=whole.device)]
