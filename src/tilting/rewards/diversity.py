"""`diversity`: unlike the others of its batch, r(x_i) = 1 / (b - 1) Σ_{j ≠ i} d(x_i, x_j).

DRaFT's attempt against collapse (Clark et al. 2024, section B.8: a term for the dissimilarity of a batch's images, in LPIPS).
d is the Euclidean distance of pocket-clip's unit embeddings, in [0, 2], or LPIPS (`tilting.features.lpips`) when VGG16's
weights are given. It is the one reward that depends on the batch: an image's value is not its own, chunks are not free, and
it is for fine-tuning alone. `Diversity.batch_dependent` says so to code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tilting.features.clip import ClipEmbedder
from tilting.features.images import check_images
from tilting.features.lpips import Lpips, distances, load_lpips
from tilting.features.packaged import POCKET_CLIP
from tilting.rewards.arguments import read_files


@dataclass(frozen=True)
class Diversity:
    """r(x_i) = mean over the other images of the batch of d(x_i, x_j), at least 0; 0 for an image alone.

    Attributes:
        space: where the distance is taken; a CLIP's embeddings or LPIPS.
        name: the spec that names it.
        differentiable: True; at d = 0 its gradient is 0.
        batch_dependent: True: the value of an image depends on the images beside it.
    """

    space: ClipEmbedder | Lpips
    name: str = "diversity"
    differentiable: bool = True
    batch_dependent: bool = True

    def pairwise(self, images: Tensor) -> Tensor:
        """All distances (b, b) of images (b, 3, h, w) in [0, 1]; the diagonal is 0."""
        if isinstance(self.space, Lpips):
            return self.space.table(images)
        embeds = self.space.image(images)
        return distances(embeds, embeds)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        return self.pairwise(images).sum(1) / max(len(images) - 1, 1) if len(images) else images.flatten(1).sum(1)


def diversity(weights: str | None = None) -> Diversity:
    """Distance to the other images of the batch.

    Args:
        weights: None for the packaged pocket-clip; or VGG16's weights for LPIPS, and LPIPS' own after a "#" (all 1 without).

    Raises:
        TiltingError: a file that is not there or not what it should be.
    """
    if weights is None:
        return Diversity(ClipEmbedder(POCKET_CLIP))
    vgg, linear = read_files("diversity", weights, ("weights of VGG16", "weights of LPIPS"))
    return Diversity(load_lpips(vgg, linear), f"diversity:{weights}")
