"""VGG Gram features as an instrument of evaluation, from weights the user gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tilting.features.gram import GATYS, gram_matrix
from tilting.features.vgg import Vgg16, load_vgg16
from tilting.metrics.extract import Extractor


def gram_vectors(vgg: Vgg16, images: Tensor) -> Tensor:
    """Gram matrices of Gatys' five layers, each as a unit vector over sqrt(5), in one.

    Their dot product for two pictures is the mean over layers of the cosine between Gram matrices.

    Args:
        vgg: frozen.
        images: (b, 3, h, w) float in [0, 1].

    Returns:
        (b, Σ c_l²).
    """
    grams = [F.normalize(gram_matrix(f).flatten(1), dim=1) for f in vgg(images, GATYS)]
    return torch.cat(grams, 1) / len(grams) ** 0.5


def gram_features(file: str) -> Extractor:
    """`gram_vectors` by a file's VGG16. Raises TiltingError when it is none."""
    vgg = load_vgg16(file)
    return Extractor(f"VGG16 Gram matrices ({', '.join(GATYS)})", lambda images: gram_vectors(vgg, images))
