"""SigLIP's image encoder (Zhai et al. 2023), differentiable in the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tilting.features.checkpoints import Frozen, pixels_in, pretrained
from tilting.features.images import check_images
from tilting.features.once import asked_once


class SiglipEmbedder(Frozen):
    """A frozen SigLIP in eval mode and float32: images to unit vectors; moves to their device.

    Args:
        folder: a folder that `SiglipModel.save_pretrained` or `SiglipVisionModel.save_pretrained` wrote, with its
            preprocessor_config.json, or the name of one on the hub.

    Raises:
        TiltingError: it does not load.
    """

    def __init__(self, folder: str | Path):
        from transformers import SiglipVisionModel

        super().__init__()
        self.model: Any = pretrained(SiglipVisionModel, folder, "SigLIP", use_safetensors=True)
        self.pixels = pixels_in(folder)
        self.dim: int = self.model.config.hidden_size
        self.freeze()

    @asked_once
    def image(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w) float in [0, 1], b at least 1 -> (b, dim), L2-normalised; the pooled output of the encoder's
        attention head. Raises TiltingError as `check_images` does."""
        check_images(images)
        self.follow(images)
        return F.normalize(self.model(pixel_values=self.pixels(images)).pooler_output, dim=-1)
