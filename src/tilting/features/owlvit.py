"""OWL-ViT (Minderer et al. 2022): for every patch of a picture, how well it shows each text query and where the object is.

    s_pq = sigmoid((cos(e_p, t_q) + shift_p) scale_p),   box_p = (centre, size) in fractions of the picture

Transformers' own forward embeds the queries once per image; here they are embedded once and kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilting.features.checkpoints import Frozen, pixels_in, pretrained, tokenizer_of
from tilting.features.images import check_images
from tilting.features.once import asked_once

LENGTH = 16
"""Tokens of a query."""


class Seen(NamedTuple):
    """What a detector says of b images, p patches and q queries.

    Attributes:
        logits: (b, p, q), before the sigmoid.
        boxes: (b, p, 4) centre x, centre y, width and height in [0, 1].
    """

    logits: Tensor
    boxes: Tensor


class Detector(Frozen):
    """A frozen OWL-ViT in eval mode and float32, differentiable in the images; moves to their device.

    Args:
        folder: a folder that `OwlViTForObjectDetection.save_pretrained` wrote, with its tokenizer and
            preprocessor_config.json, or the name of one on the hub.

    Raises:
        TiltingError: it does not load.
    """

    def __init__(self, folder: str | Path):
        from transformers import OwlViTForObjectDetection

        super().__init__()
        self.model: Any = pretrained(OwlViTForObjectDetection, folder, "OWL-ViT")
        self.tokenizer, self.pixels = tokenizer_of(folder, "OWL-ViT"), pixels_in(folder)
        self.length: int = min(LENGTH, self.model.config.text_config.max_position_embeddings)
        self._texts: dict[tuple[str, ...], Tensor] = {}
        self.freeze()

    def text(self, queries: tuple[str, ...]) -> Tensor:
        """(q, dim) unit vectors of the queries, without gradient; the last asked are kept."""
        if queries not in self._texts:
            with torch.inference_mode(False), torch.no_grad():
                full = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
                tokens = self.tokenizer(list(queries), **full).to(self.pixels.mean.device)
                out = self.model.owlvit.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
                vectors = self.model.owlvit.text_projection(out.pooler_output)
            self._texts = {queries: vectors / vectors.norm(dim=-1, keepdim=True)}
        return self._texts[queries].to(self.pixels.mean)

    @asked_once
    def grid(self, images: Tensor) -> Tensor:
        """The embeddings (b, rows, columns, dim) of the patches of images."""
        self.follow(images)
        return self.model.image_embedder(self.pixels(images))[0]

    def forward(self, images: Tensor, queries: tuple[str, ...]) -> Seen:
        """Look for the queries, with gradients where the caller has them on.

        Args:
            images: (b, 3, h, w) float in [0, 1], b at least 1.
            queries: what to look for.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images)
        grid = self.grid(images)
        patches = grid.flatten(1, 2)
        texts = self.text(queries).expand(len(images), -1, -1)
        return Seen(self.model.class_predictor(patches, texts)[0], self.model.box_predictor(patches, grid))
