"""`clip`: how well a picture matches its prompt, the raw cosine of CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tilting.features.clip import ClipEmbedder
from tilting.features.images import check_images
from tilting.features.packaged import POCKET_CLIP


@dataclass(frozen=True)
class Clip:
    """r(x, c) = cos(image(x), text(c)), in [-1, 1], not scaled by CLIP's temperature (Radford et al. 2021).

    Attributes:
        embedder: the frozen CLIP.
        name: the spec that names it.
        differentiable: True.
    """

    embedder: ClipEmbedder
    name: str = "clip"
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,) cosines. Raises what `check_images` raises."""
        check_images(images, prompts)
        return (self.embedder.image(images) * self.embedder.text(prompts).to(images.device)).sum(-1)


def clip(folder: str | Path | None = None) -> Clip:
    """The cosine of a CLIP.

    Args:
        folder: a transformers CLIP, a folder or a name on the hub; the packaged pocket-clip by default.

    Raises:
        TiltingError: it does not load.
    """
    return Clip(ClipEmbedder(POCKET_CLIP if folder is None else folder), "clip" if folder is None else f"clip:{folder}")
