"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching by a transformer in which image and text attend to each other.

It reads two CLIPs' tokens, padded to T5's width, before T5's; it is told both CLIPs' pooled vectors. T5 may be left out (as
``text_encoder_3: null`` in the folder), and zeros stand for its tokens then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.adapter import Adapter, square
from tilting.models.families import FAMILIES
from tilting.models.schedulers import flow_schedule
from tilting.models.text import Text, clip_hidden, distinct, token_ids
from tilting.types import Time

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 256
"""Of T5, as in the pipeline."""


@FAMILIES.declare("stable-diffusion-3", "Stable Diffusion 3 and 3.5", ("StableDiffusion3Pipeline",), steps=28, cfg=7.0)
class StableDiffusion3(Adapter):
    """Stable Diffusion 3 and 3.5.

    Made of a loaded diffusers StableDiffusion3Pipeline, whose scheduler is read, not used.
    """

    component = "transformer"
    lengths = (None, None, TOKENS)
    encoders = ("", "_2", "_3")
    transformer: Any
    tokenizer_2: Any
    tokenizer_3: Any
    text_encoder_2: Any
    text_encoder_3: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float):
        config = pipe.transformer.config
        tokens = (config.sample_size // config.patch_size) ** 2
        schedule = flow_schedule(pipe.scheduler, tokens, even=True, most=1.16)
        super().__init__(pipe, name, steps, cfg, schedule, square(pipe.transformer))

    def encode_prompts(self, prompts: list[str]) -> Text:
        """Tokens of all encoders one after the other (n, tokens, width), and the CLIPs' pooled vectors."""
        return distinct(prompts, self._encode, self.device)

    def _encode(self, texts: list[str]) -> Text:
        first, pooled = clip_hidden(self.text_encoder, self.tokenizer, texts, self.device)
        second, pooled_2 = clip_hidden(self.text_encoder_2, self.tokenizer_2, texts, self.device)
        clips, width = torch.cat([first, second], -1).to(self.dtype), self.transformer.config.joint_attention_dim
        if self.text_encoder_3 is None:
            third = torch.zeros(len(texts), TOKENS, width, device=self.device, dtype=self.dtype)
        else:
            third = self.text_encoder_3(token_ids(self.tokenizer_3, texts, self.device, TOKENS)[0])[0].to(self.dtype)
        clips = torch.nn.functional.pad(clips, (0, width - clips.shape[-1]))
        return Text(torch.cat([clips, third], 1), torch.cat([pooled, pooled_2], -1).to(self.dtype))

    def network(self, x: Tensor, t: Time, context: Text) -> Tensor:
        """The transformer's output; see `Adapter.network`."""
        inputs = {"encoder_hidden_states": context.sequence, "pooled_projections": context.pooled, "timestep": self.times(x, t)}
        out = self.transformer(hidden_states=x.to(self.dtype), **inputs, return_dict=False)
        return out[0].to(x.dtype)
