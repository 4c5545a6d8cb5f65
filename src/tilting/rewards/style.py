"""`style`: how surely a picture is drawn in a style."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tilting.errors import TiltingError, nearest
from tilting.features.clip import ClipEmbedder, StyleHead
from tilting.features.images import check_images
from tilting.features.packaged import POCKET_CLIP
from tilting.models.words import load_words, read_prompt

FALLBACK = "noto"
"""The style asked of a prompt that names none."""


@dataclass(frozen=True)
class Style:
    """r(x, c) = log p(style | x), at most 0: the log-softmax of a linear head on CLIP's image embedding.

    Attributes:
        embedder: the frozen CLIP.
        head: the classifier of styles.
        style: the style asked for; None asks each prompt, and `FALLBACK` where it names none.
        name: the spec that names it.
        differentiable: True.
    """

    embedder: ClipEmbedder
    head: StyleHead
    style: str | None
    name: str
    differentiable: bool = True

    def wanted(self, prompts: list[str]) -> list[int]:
        """The index, in the head's order, of the style asked of each prompt."""
        words = load_words()
        names = [self.style] * len(prompts)
        if self.style is None:
            asked = (read_prompt(words, prompt).style for prompt in prompts)
            names = [FALLBACK if k is None else words.styles[k] for k in asked]
        for name in names:
            if name not in self.head.styles:
                raise TiltingError(f"there is no style {name!r}{nearest(str(name), self.head.styles)}")
        return [self.head.styles.index(str(name)) for name in names]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,) in nats. Raises what `check_images` raises."""
        check_images(images, prompts)
        scores = self.head(self.embedder.image(images)).log_softmax(-1)
        index = torch.tensor(self.wanted(prompts), dtype=torch.long, device=scores.device)
        return scores.gather(1, index[:, None])[:, 0]


def style(name: str | None = None, folder: str | Path | None = None) -> Style:
    """The log-probability of a drawing style.

    Args:
        name: "noto", "twemoji" or "fluent"; by default the style the prompt names, else noto.
        folder: a CLIP folder with a style head; the packaged pocket-clip by default.

    Raises:
        TiltingError: an unknown style, or a folder without a style head.
    """
    place = POCKET_CLIP if folder is None else Path(folder)
    head = StyleHead(place)
    if name is not None and name not in head.styles:
        raise TiltingError(f"there is no style {name!r}{nearest(name, head.styles)}")
    return Style(ClipEmbedder(place), head, name, "style" if name is None else f"style:{name}")
