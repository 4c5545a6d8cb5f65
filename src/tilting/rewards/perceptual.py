"""Distances in frozen features: to the style of a picture, and between the images of a batch.

    gram         r(x) = -Σ_l ‖G_l(x) - G_l(reference)‖² / (4 c_l² layers)      at most 0; the reference itself scores 0
    diversity    r(x_i) = 1 / (b - 1) Σ_{j ≠ i} d(x_i, x_j)                     at least 0; 0 for an image alone

G_l are Gram matrices (Gatys et al. 2016) of pocket-clip's features, or of VGG16's where its weights are given; the two have
different scales (`tilting.features.gram`). d is the Euclidean distance of pocket-clip's unit embeddings, in [0, 2], or LPIPS
(`tilting.features.lpips`): DRaFT's attempt against collapse (Clark et al. 2024, B.8: a term for the dissimilarity of a batch's
images). It is the one reward that depends on the batch: an image's value is not its own, chunks are not free, and it is for
fine-tuning alone. `Diversity.batch_dependent` says so to code. Videos are compared frame by frame: d is the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.features.once import loaded
from tilting.features.packaged import POCKET_CLIP
from tilting.features.picture import read_image
from tilting.rewards.check import Scorer
from tilting.rewards.declaration import POCKET, REWARDS, Argument, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.clip import ClipEmbedder
    from tilting.features.gram import GramStyle
    from tilting.features.lpips import Lpips


def read_files(name: str, text: str, what: tuple[str, str]) -> tuple[Path, Path | None]:
    """FILE or FILE#SECOND: both must exist.

    Args:
        name: the reward that needs them.
        text: what followed the colon.
        what: what the two files are, for the refusal.

    Raises:
        TiltingError: naming the file that is not there.
    """
    first, mark, second = text.partition("#")
    for file, kind in ((first, what[0]), (second, what[1])):
        if (file or mark) and not Path(file).is_file():
            raise TiltingError(f"there is no file {file!r}, the {kind} of the reward {f'{name}:{text}'!r}")
    return Path(first), Path(second) if mark else None


def gram_files(text: str) -> tuple[Path, Path | None]:
    """The picture and the weights of VGG16. Raises TiltingError."""
    return read_files("gram", text, ("picture", "weights of VGG16"))


def diversity_files(text: str) -> tuple[Path, Path | None]:
    """The weights of VGG16 and of LPIPS. Raises TiltingError."""
    return read_files("diversity", text, ("weights of VGG16", "weights of LPIPS"))


@dataclass(frozen=True)
class Gram(Scorer):
    """r(x) = -squared distance of Gram matrices, at most 0.

    Attributes:
        style: the frozen features and the reference's matrices.
    """

    style: GramStyle
    name: str
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -self.style(images)


@REWARDS.declare(
    "gram",
    "in the style of a picture",
    "-Gram distance",
    differentiable=True,
    argument=Argument("IMAGE[#VGG16]", gram_files, required=True),
    reads=lambda text: Reads() if "#" in (text or "") else POCKET,
)
def gram(reference: str) -> Gram:
    """Nearness to the style of a picture.

    Args:
        reference: its file, and after a "#" the weights of VGG16 to look through; pocket-clip when there are none.

    Raises:
        TiltingError: a file that is not there or not what it should be.
    """
    from tilting.features import clip, gram, vgg

    picture, weights = gram_files(reference)
    image = read_image(picture)[None]
    extractor = loaded(clip.ClipEmbedder, POCKET_CLIP) if weights is None else vgg.load_vgg16(weights)
    return Gram(gram.GramStyle(extractor, image), f"gram:{reference}")


@dataclass(frozen=True)
class Diversity(Scorer):
    """r(x_i) = mean over the other images of the batch of d(x_i, x_j).

    Attributes:
        space: where the distance is taken; a CLIP's embeddings or LPIPS.
        differentiable: True; at d = 0 its gradient is 0.
        batch_dependent: True: the value of an image depends on the images beside it.
    """

    space: ClipEmbedder | Lpips
    name: str = "diversity"
    differentiable: bool = True
    batch_dependent: bool = True

    def pairwise(self, images: Tensor) -> Tensor:
        """All distances (b, b) of images (b, 3, h, w) in [0, 1]; the diagonal is 0."""
        return self.space.table(images)

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.pairwise(images).sum(1) / max(len(images) - 1, 1)


@REWARDS.declare(
    "diversity",
    "unlike the rest of its batch",
    "mean distance",
    differentiable=True,
    argument=Argument("VGG16[#LPIPS]", diversity_files),
    reads=lambda text: Reads() if text else POCKET,
    together=True,
)
def diversity(weights: str | None = None) -> Diversity:
    """Distance to the other images of the batch.

    Args:
        weights: None for the packaged pocket-clip; or VGG16's weights for LPIPS, and LPIPS' own after a "#" (all 1 without).

    Raises:
        TiltingError: a file that is not there or not what it should be.
    """
    from tilting.features import clip, lpips

    if weights is None:
        return Diversity(loaded(clip.ClipEmbedder, POCKET_CLIP))
    return Diversity(lpips.load_lpips(*diversity_files(weights)), f"diversity:{weights}")
