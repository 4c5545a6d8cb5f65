"""Stable Diffusion XL (Podell et al. 2023): a UNet that reads two CLIPs' tokens side by side, and is told the second's pooled
vector and the sizes of the picture.

The sizes are those of the model itself, uncropped. An empty negative prompt is zeros where the pipeline says so, as it does by
default; any other is encoded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tilting.models.adapter import Adapter, square
from tilting.models.schedulers import schedule_of
from tilting.models.text import Text, clip_hidden, distinct
from tilting.types import Time


class StableDiffusionXL(Adapter):
    """Stable Diffusion XL.

    Args:
        pipe: a loaded diffusers StableDiffusionXLPipeline (its scheduler is read, not used).
        name: what manifests call it.
        steps, cfg: its own usual settings, for unset options.
    """

    encoders = ("", "_2")
    unet: Any
    tokenizer_2: Any
    text_encoder_2: Any

    def __init__(self, pipe: Any, name: str, steps: int = 50, cfg: float = 5.0):
        super().__init__(pipe, name, steps, cfg, schedule_of(pipe.scheduler), square(pipe.unet))
        self.zeros = bool(pipe.config.get("force_zeros_for_empty_prompt", True))

    def encode_prompts(self, prompts: list[str]) -> Text:
        """Tokens of both encoders (n, tokens, width), and the second's pooled vector."""
        return distinct(prompts, self._encode, self.device)

    def _encode(self, texts: list[str]) -> Text:
        first, _ = clip_hidden(self.text_encoder, self.tokenizer, texts, self.device)
        second, pooled = clip_hidden(self.text_encoder_2, self.tokenizer_2, texts, self.device)
        return Text(torch.cat([first, second], -1).to(self.dtype), pooled.to(self.dtype))

    def encode_negative(self, negative: str) -> Text:
        """See the head of this file."""
        found = self.encode_prompts([negative])
        if negative or not self.zeros or found.pooled is None:
            return found
        return Text(torch.zeros_like(found.sequence), torch.zeros_like(found.pooled))

    def network(self, x: Tensor, t: Time, context: Text) -> Tensor:
        """The UNet's output; see `Adapter.network`."""
        size = self.image_shape[1:]
        sizes = torch.tensor([*size, 0, 0, *size], dtype=x.dtype, device=x.device).expand(len(x), -1)
        told = {"text_embeds": context.pooled, "time_ids": sizes}
        out = self.unet(x.to(self.dtype), self.times(x, t), encoder_hidden_states=context.sequence, added_cond_kwargs=told,
                        return_dict=False)  # fmt: skip
        return out[0].to(x.dtype)
