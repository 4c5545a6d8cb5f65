"""Stable Diffusion XL (Podell et al. 2023): a UNet that reads two CLIPs' tokens side by side, and is told the second's pooled
vector and the sizes of the picture.

The sizes are those of the model itself, uncropped. An empty negative prompt is zeros where the pipeline says so, as it does by
default; any other is encoded.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.adapter import Adapter, square
from tilting.models.families import FAMILIES
from tilting.models.schedulers import schedule_of
from tilting.models.text import Text, clip_hidden, clip_states, distinct, in_windows
from tilting.types import Time

if TYPE_CHECKING:
    from torch import Tensor


@FAMILIES.declare("stable-diffusion-xl", "Stable Diffusion XL", ("StableDiffusionXLPipeline",), steps=50, cfg=5.0)
class StableDiffusionXL(Adapter):
    """Stable Diffusion XL.

    Made of a loaded diffusers StableDiffusionXLPipeline, whose scheduler is read, not used.
    """

    encoders = ("", "_2")
    reads_windows = True
    unet: Any
    tokenizer_2: Any
    text_encoder_2: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float):
        super().__init__(pipe, name, steps, cfg, schedule_of(pipe.scheduler), square(pipe.unet))
        self.zeros = bool(pipe.config.get("force_zeros_for_empty_prompt", True))

    def encode_prompts(self, prompts: list[str]) -> Text:
        """Tokens of both encoders (n, tokens, width), and the second's pooled vector."""
        return distinct(prompts, self._encode, self.device)

    def _encode(self, texts: list[str]) -> Text:
        if self.long_prompts == "chunk":
            pairs = ((self.text_encoder, self.tokenizer), (self.text_encoder_2, self.tokenizer_2))
            one, two = (in_windows(partial(clip_states, encoder), words, texts, self.device) for encoder, words in pairs)
            both = torch.cat([one.sequence, two.sequence], -1).to(self.dtype)
            return Text(both, two.pooled.to(self.dtype), mask=two.mask)  # type: ignore[union-attr]
        first, _ = clip_hidden(self.text_encoder, self.tokenizer, texts, self.device)
        second, pooled = clip_hidden(self.text_encoder_2, self.tokenizer_2, texts, self.device)
        return Text(torch.cat([first, second], -1).to(self.dtype), pooled.to(self.dtype))

    def encode_negative(self, negative: str) -> Text:
        """See the head of this file."""
        text = self.encode_prompts([negative])
        if negative or not self.zeros or text.pooled is None:
            return text
        return replace(text, sequence=torch.zeros_like(text.sequence), pooled=torch.zeros_like(text.pooled))

    def network(self, x: Tensor, t: Time, context: Text) -> Tensor:
        """The UNet's output; see `Adapter.network`."""
        size = self.image_shape[1:]
        sizes = torch.tensor([*size, 0, 0, *size], dtype=x.dtype, device=x.device).expand(len(x), -1)
        text = {
            "encoder_hidden_states": context.sequence,
            "encoder_attention_mask": context.mask,
            "added_cond_kwargs": {"text_embeds": context.pooled, "time_ids": sizes},
        }
        out = self.unet(x.to(self.dtype), self.times(x, t), **text, return_dict=False)
        return out[0].to(x.dtype)
