"""Style as Gram matrices of features: G = F Fᵀ / m over the m places of a feature map F (c, m) (Gatys et al. 2016).

    distance(G, A) = Σ_layers w_l / (4 c_l²) · ‖G_l - A_l‖²_F,  w_l = 1 / layers

which is Gatys' E_l, whose G is a sum over places and divided by m afterwards, and which lets images differ in size. With VGG16
the layers are Gatys' relu1_1 ... relu5_1. With a CLIP it is one: the patch tokens after the third block of the vision
transformer (FreeDoM, Yu et al. 2023, whose code takes the plain norm of the difference of sums instead).
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from tilting.features.clip import ClipEmbedder
from tilting.features.vgg import Vgg16

GATYS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CLIP_BLOCK = 3


def gram_matrix(features: Tensor) -> Tensor:
    """F Fᵀ / m (b, c, c) of feature maps (b, c, m) or (b, c, h, w)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / max(flat.shape[2], 1)


def first_blocks(vision: Any, count: int) -> Any:
    """A vision transformer of the first blocks of another, whose parameters it shares: no later one is paid for."""
    first, encoder = copy(vision), copy(vision.encoder)
    encoder._modules = {**encoder._modules, "layers": encoder.layers[:count]}
    first._modules = {**first._modules, "encoder": encoder}
    return first


class GramStyle(nn.Module):
    """Gram matrices of frozen features and their distance to a reference's.

    Args:
        extractor: a `Vgg16`, or a `ClipEmbedder`.
        reference: (1, 3, h, w) float in [0, 1], the image whose style is meant.
    """

    def __init__(self, extractor: Vgg16 | ClipEmbedder, reference: Tensor):
        super().__init__()
        self.extractor = extractor
        if isinstance(extractor, ClipEmbedder):
            self.blocks = first_blocks(extractor.model.vision_model, CLIP_BLOCK)
        with torch.no_grad():
            for i, matrix in enumerate(self.grams(reference)):
                self.register_buffer(f"wanted{i}", matrix)

    def grams(self, images: Tensor) -> list[Tensor]:
        """Per layer, the Gram matrices (b, c, c) of images (b, 3, h, w) in [0, 1]."""
        if isinstance(self.extractor, Vgg16):
            return [gram_matrix(f) for f in self.extractor(images, GATYS)]
        self.extractor.follow(images)
        tokens = self.blocks(pixel_values=self.extractor.preprocess(images)).last_hidden_state
        return [gram_matrix(tokens[:, 1:].transpose(1, 2))]

    def forward(self, images: Tensor) -> Tensor:
        """Squared distances (b,) of the images' style to the reference's, at least 0; differentiable."""
        terms = []
        for i, matrix in enumerate(self.grams(images)):
            gap = matrix - self.get_buffer(f"wanted{i}").to(matrix)
            terms.append(gap.square().sum((1, 2)) / (4 * matrix.shape[1] ** 2))
        return torch.stack(terms).mean(0)
