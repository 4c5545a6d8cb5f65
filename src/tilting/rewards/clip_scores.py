"""Rewards of pocket-clip, or of any CLIP: how well a picture matches its prompt, and how surely it is drawn in a style.

    clip     r(x, c) = cos(image(x), text(c))                        in [-1, 1], not scaled by CLIP's temperature
    style    r(x, c) = log p(style | x) = log softmax(W image(x))    at most 0, in nats

(Radford et al. 2021; the second is a linear head on CLIP's image embedding.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError, nearest
from tilting.features.once import loaded
from tilting.features.packaged import POCKET_CLIP
from tilting.lazy import torch
from tilting.models.words import load_words, read_prompt
from tilting.rewards.check import Scorer
from tilting.rewards.declaration import POCKET, REWARDS, Argument, clip_at

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.clip import ClipEmbedder, StyleHead

FALLBACK = "noto"
"""The style asked of a prompt that names none."""


@dataclass(frozen=True)
class Clip(Scorer):
    """r(x, c) = cos(image(x), text(c)), in [-1, 1].

    Attributes:
        embedder: the frozen CLIP.
    """

    embedder: ClipEmbedder
    name: str = "clip"
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return (self.embedder.image(images) * self.embedder.text(prompts).to(images.device)).sum(-1)


@REWARDS.declare(
    "clip",
    "how well the picture matches its prompt",
    "raw cosine",
    differentiable=True,
    argument=Argument("FOLDER"),
    reads=clip_at,
)
def clip(folder: str | Path | None = None) -> Clip:
    """The cosine of a CLIP.

    Args:
        folder: a transformers CLIP, a folder or a name on the hub; the packaged pocket-clip by default.

    Raises:
        TiltingError: it does not load.
    """
    from tilting.features.clip import ClipEmbedder

    return Clip(loaded(ClipEmbedder, POCKET_CLIP if folder is None else folder), "clip" if folder is None else f"clip:{folder}")


@dataclass(frozen=True)
class Style(Scorer):
    """r(x, c) = log p(style | x), at most 0.

    Attributes:
        embedder: the frozen CLIP.
        head: the classifier of styles.
        style: the style asked for; None asks each prompt, and `FALLBACK` where it names none.
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
            check_style(str(name), self.head.styles)
        return [self.head.styles.index(str(name)) for name in names]

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = self.head(self.embedder.image(images)).log_softmax(-1)
        index = torch.tensor(self.wanted(prompts), dtype=torch.long, device=scores.device)
        return scores.gather(1, index[:, None])[:, 0]


def check_style(name: str, styles: tuple[str, ...] | None = None) -> None:
    """Refuse a style that is not among these, pocket's by default. Raises TiltingError with the nearest one."""
    known = load_words().styles if styles is None else styles
    if name not in known:
        raise TiltingError(f"there is no style {name!r}{nearest(name, known)}")


@REWARDS.declare(
    "style",
    "how surely it is drawn in the style",
    "log-probability",
    differentiable=True,
    argument=Argument("STYLE", check_style, files=False),
    reads=lambda style: POCKET,
)
def style(name: str | None = None, folder: str | Path | None = None) -> Style:
    """The log-probability of a drawing style.

    Args:
        name: "noto", "twemoji" or "fluent"; by default the style the prompt names, else noto.
        folder: a CLIP folder with a style head; the packaged pocket-clip by default.

    Raises:
        TiltingError: an unknown style, or a folder without a style head.
    """
    from tilting.features.clip import ClipEmbedder, StyleHead

    where = POCKET_CLIP if folder is None else Path(folder)
    head = StyleHead(where)
    if name is not None:
        check_style(name, head.styles)
    return Style(loaded(ClipEmbedder, where), head, name, "style" if name is None else f"style:{name}")
