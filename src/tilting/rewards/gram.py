"""`gram`: the style of a reference picture, r(x) = -squared distance of Gram matrices of frozen features.

``gram:ref.png`` looks through the packaged pocket-clip (no download); ``gram:ref.png#vgg16-397923af.pth`` through VGG16, as
Gatys et al. 2016 do. The two have different scales. Formula, layers and files: `tilting.features.gram`, `tilting.features.vgg`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tilting.features.clip import ClipEmbedder
from tilting.features.gram import GramStyle
from tilting.features.images import check_images
from tilting.features.packaged import POCKET_CLIP
from tilting.features.picture import read_image
from tilting.features.vgg import load_vgg16
from tilting.rewards.arguments import read_files


@dataclass(frozen=True)
class Gram:
    """r(x) = -Σ_l ‖G_l(x) - G_l(reference)‖² / (4 c_l² layers), at most 0; the reference itself scores 0.

    Attributes:
        style: the frozen features and the reference's matrices.
        name: the spec that names it.
        differentiable: True.
    """

    style: GramStyle
    name: str
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        return -self.style(images) if len(images) else images.flatten(1).sum(1)


def gram(reference: str) -> Gram:
    """Nearness to the style of a picture.

    Args:
        reference: its file, and after a "#" the weights of VGG16 to look through; pocket-clip when there are none.

    Raises:
        TiltingError: a file that is not there or not what it should be.
    """
    picture, weights = read_files("gram", reference, ("picture", "weights of VGG16"))
    image = read_image(picture)[None]
    extractor = ClipEmbedder(POCKET_CLIP) if weights is None else load_vgg16(weights)
    return Gram(GramStyle(extractor, image), f"gram:{reference}")
