"""Style as Gram matrices of features: G = F Fᵀ / m over the m places of a feature map F (c, m) (Gatys et al. 2016).

    distance(G, A) = Σ_layers w_l / (4 c_l²) · ‖G_l - A_l‖²_F,  w_l = 1 / layers

which is Gatys' E_l, whose G is a sum over places and divided by m afterwards, and which lets images differ in size. With VGG16
the layers are Gatys' relu1_1 ... relu5_1. With a CLIP it is one: the patch tokens after the third block of the vision
transformer (FreeDoM, Yu et al. 2023, whose code takes the plain norm of the difference of sums instead).
"""

from __future__ import annotations

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


class GramStyle(nn.Module):
    """Gram matrices of frozen features and their distance to a reference's.

    Args:
        extractor: a `Vgg16`, or a `ClipEmbedder`.
        reference: (1, 3, h, w) float in [0, 1], the image whose style is meant.
    """

    def __init__(self, extractor: Vgg16 | ClipEmbedder, reference: Tensor):
        super().__init__()
        self.extractor = extractor
        with torch.no_grad():
            for i, matrix in enumerate(self.grams(reference)):
                self.register_buffer(f"wanted{i}", matrix)

    def grams(self, images: Tensor) -> list[Tensor]:
        """Per layer, the Gram matrices (b, c, c) of images (b, 3, h, w) in [0, 1]."""
        if isinstance(self.extractor, Vgg16):
            return [gram_matrix(f) for f in self.extractor(images, GATYS)]
        if images.device != self.extractor.mean.device:
            self.extractor.to(images.device)
        model: Any = self.extractor.model
        out = model.vision_model(pixel_values=self.extractor.preprocess(images), output_hidden_states=True)
        states = out.hidden_states  # the embeddings, then what each block gives
        return [gram_matrix(states[min(CLIP_BLOCK, len(states) - 1)][:, 1:].transpose(1, 2))]

    def forward(self, images: Tensor) -> Tensor:
        """Squared distances (b,) of the images' style to the reference's, at least 0; differentiable."""
        terms = []
        for i, matrix in enumerate(self.grams(images)):
            gap = matrix - self.get_buffer(f"wanted{i}").to(matrix)
            terms.append(gap.square().sum((1, 2)) / (4 * matrix.shape[1] ** 2))
        return torch.stack(terms).mean(0)
