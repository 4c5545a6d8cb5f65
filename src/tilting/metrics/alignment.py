"""How well pictures match a text or a reference picture: T-CLIP and I-Gram.

T-CLIP is CLIPScore (Hessel et al. 2021): w max(cos(image, "A photo depicts " + prompt), 0), w = 2.5.

I-Gram compares with one picture (--reference-image), or each image with the picture that it was made of. It has two published
senses. As written (CoDe, CoDeX; Gatys et al. 2016): the cosine of VGG Gram features of the picture and of the reference, style
and texture. As computed by CoDeX's code: the cosine of CLIP image embeddings (of an RN50), content
too. They are reported under different names, ``igram_vgg`` and ``igram_clip``, and never mixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilting.lazy import torch
from tilting.metrics.declaration import METRICS

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "A photo depicts "
WEIGHT = 2.5


def caption(prompt: str) -> str:
    """The text that CLIP compares an image with."""
    return PREFIX + prompt


@METRICS.declare("tclip", "T-CLIP", "2.5 max(cos, 0)", ("clip", "captions"), judges=True)
def t_clip(images: Tensor, texts: Tensor) -> Tensor:
    """CLIPScore of image embeddings (b, d) and of their captions' embeddings (b, d), normalised here -> (b,) in [0, 2.5]."""
    return WEIGHT * torch.nn.functional.cosine_similarity(images.double(), texts.double(), dim=-1).clamp_min(0)


@METRICS.declare(
    "igram_vgg",
    "I-Gram (VGG Gram features)",
    "cosine with the reference or input picture",
    ("gram", "gram_reference"),
    needs=("reference-image", "vgg"),
)
@METRICS.declare(
    "igram_clip",
    "I-Gram (CLIP cosine)",
    "cosine with the reference or input picture",
    ("clip", "clip_reference"),
    needs=("reference-image",),
)
def i_gram(features: Tensor, reference: Tensor) -> Tensor:
    """Cosine of features (b, d) with those of a picture (d,) or of one each (b, d), in either sense -> (b,) in [-1, 1]."""
    return torch.nn.functional.cosine_similarity(features.double(), reference.double().expand_as(features), dim=-1)
