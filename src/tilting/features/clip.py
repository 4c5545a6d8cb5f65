"""CLIP embeddings of images and prompts, differentiable in the images, and the style head of pocket-clip.

Any transformers CLIP loads here, OpenAI's and the ones PickScore and HPS v2 were trained from, with no second package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, pixels_in, pretrained, tokenizer_of
from tilting.features.images import check_images
from tilting.features.once import asked_once
from tilting.features.pixels import Pixels, distances
from tilting.features.tokens import warn_of_cuts
from tilting.foreign import read_json, read_tensors

if TYPE_CHECKING:
    from transformers import CLIPModel

CACHED = 4096
"""Prompts whose embedding is kept; when full, the cache starts over."""


def read_clip(folder: str | Path) -> CLIPModel:
    """The network of a transformers CLIP, in float32 and frozen. Raises TiltingError when it or a part of it is not there."""
    from transformers import CLIPModel

    return pretrained(CLIPModel, folder, "CLIP", use_safetensors=True)


class ClipEmbedder(Frozen):
    """A frozen CLIP in eval mode: images and prompts to unit vectors of one space (Radford et al. 2021).

    Weights are read as float32 whatever the file holds; images are computed in the dtype of the weights, so that
    ``.double()`` gives float64 gradients. The module moves to the device of the images it is given.

    Args:
        folder: a folder that `CLIPModel.save_pretrained` wrote, with its tokenizer and preprocessor_config.json
            (then nothing is looked for elsewhere), or the name of one on the hub.
        model: the network itself, when it was read from a checkpoint of another kind; the folder is the tokenizer's then.
        pixels: the preprocessing, instead of the one the folder states.

    Raises:
        TiltingError: no such folder, not a CLIP, or a preprocessing this class does not follow.
    """

    def __init__(self, folder: str | Path, *, model: CLIPModel | None = None, pixels: Pixels | None = None):
        super().__init__()
        if isinstance(folder, Path) and not folder.is_dir():
            raise TiltingError(f"there is no CLIP folder {str(folder)!r}")
        model = read_clip(folder) if model is None else model
        self.tokenizer, self.name = tokenizer_of(folder, "CLIP"), Path(folder).name
        self.model, self.pixels = model, pixels_in(folder) if pixels is None else pixels
        shape: Any = model.config
        self.length: int = shape.text_config.max_position_embeddings
        self.dim: int = shape.projection_dim
        self._texts: dict[str, Tensor] = {}
        self.freeze()

    @property
    def mean(self) -> Tensor:
        """(3, 1, 1), subtracted from images; it has the dtype and the device of the weights."""
        return self.pixels.mean

    @property
    def std(self) -> Tensor:
        """(3, 1, 1), images are divided by it."""
        return self.pixels.std

    def preprocess(self, images: Tensor) -> Tensor:
        """What the network is fed: resized, cropped and normalised; differentiable.

        Args:
            images: (b, 3, h, w) float in [0, 1].

        Returns:
            (b, 3, rows, columns) in the dtype of the weights, as the folder's own processor would give within 2 / 255 / std.
        """
        return self.pixels(images)

    @asked_once
    def image(self, images: Tensor) -> Tensor:
        """Embed images, with gradients where the caller has them on.

        Args:
            images: (b, 3, h, w) float in [0, 1].

        Returns:
            (b, dim), L2-normalised.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images)
        self.follow(images)
        if not len(images):
            return images.new_zeros(0, self.dim, dtype=self.mean.dtype) + images.sum()
        pooled = self.model.vision_model(pixel_values=self.preprocess(images)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    def table(self, images: Tensor) -> Tensor:
        """Distances (b, b) between the embeddings of images (b, 3, h, w) in [0, 1]."""
        embeds = self.image(images)
        return distances(embeds, embeds)

    def text(self, prompts: list[str]) -> Tensor:
        """Embed prompts, each once: a prompt's vector is kept, up to `CACHED` of them.

        Args:
            prompts: b strings; what exceeds the model's length is cut off, with a warning.

        Returns:
            (b, dim), L2-normalised, without gradient.
        """
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if new:
            warn_of_cuts(self.name, self.tokenizer, new, self.length)
            with torch.inference_mode(False), torch.no_grad():
                tokens = self.tokenizer(new, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
                tokens = tokens.to(self.mean.device)
                out = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
                vectors = F.normalize(self.model.text_projection(out.pooler_output), dim=-1)
            if len(self._texts) + len(new) > CACHED:
                self._texts = {p: self._texts[p] for p in set(prompts) & self._texts.keys()}
            self._texts.update(zip(new, vectors, strict=True))
        if not prompts:
            return self.mean.new_zeros(0, self.dim)
        return torch.stack([self._texts[p].to(self.mean) for p in prompts])  # which may be from before a move


class StyleHead(Frozen):
    """The linear classifier of drawing styles on CLIP image embeddings: logits = W (scale · e) + bias.

    Args:
        folder: holds style.json ({"styles": [...], "scale": s}) and style.safetensors (weight, bias).

    Raises:
        TiltingError: the folder holds no style head.
    """

    def __init__(self, folder: Path):
        super().__init__()
        if not ((folder / "style.json").is_file() and (folder / "style.safetensors").is_file()):
            raise TiltingError(f"{str(folder)!r} holds no style head (style.json and style.safetensors)")
        config = read_json(folder / "style.json")
        state = {name: value.float() for name, value in read_tensors(folder / "style.safetensors").items()}
        self.styles: tuple[str, ...] = tuple(config["styles"])
        self.scale: float = float(config["scale"])
        self.linear = nn.Linear(state["weight"].shape[1], len(self.styles))
        self.linear.load_state_dict(state)
        self.freeze()

    def forward(self, embeds: Tensor) -> Tensor:
        """Logits (b, styles) of L2-normalised image embeddings (b, dim)."""
        self.follow(embeds)
        return self.linear(embeds.to(self.linear.weight.dtype) * self.scale)
