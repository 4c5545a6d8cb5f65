"""FLUX.1 (Black Forest Labs 2024): flow matching by a transformer over 2 x 2 patches of the latent, as one row of tokens.

It reads T5's tokens and is told CLIP's pooled vector. The dev model was distilled on its guidance: it is told the scale as a
number, in one evaluation, and there is no pair and no correction. With a negative prompt the scale is that of a true pair, and
the number told is the model's default. The schnell model has no such input: a scale other than 1 is a pair.

Latents here are (16, h, w), unpacked, as they are in every other family; they are packed at the network's door.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.adapter import Adapter, vae_scale
from tilting.models.families import FAMILIES, read_json
from tilting.models.schedulers import flow_schedule
from tilting.models.text import Text, distinct, token_ids
from tilting.types import Denoise, Time

if TYPE_CHECKING:
    from torch import Tensor


def pack(x: Tensor) -> Tensor:
    """(m, h/2 · w/2, 4c): a token for each 2 x 2 patch of latents (m, c, h, w)."""
    m, c, h, w = x.shape
    return x.reshape(m, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(m, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The latents (m, c, h, w) of tokens; undoes `pack`."""
    m, _, width = tokens.shape
    return tokens.reshape(m, h // 2, w // 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(m, width // 4, h, w)


def varying(source: str) -> tuple[int, float] | None:
    """4 steps and no guidance scale for a transformer without a guidance input, which is distilled to few steps."""
    return None if read_json(source, "transformer/config.json").get("guidance_embeds", False) else (4, 1.0)


@FAMILIES.declare("flux", "FLUX.1, dev and schnell", ("FluxPipeline",), steps=28, cfg=3.5, varying=varying)
class Flux(Adapter):
    """FLUX.1 dev and schnell.

    Made of a loaded diffusers FluxPipeline, whose scheduler is read, not used.
    """

    component = "transformer"
    encoders = ("", "_2")
    transformer: Any
    tokenizer_2: Any
    text_encoder_2: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float):
        side = pipe.vae.config.sample_size // vae_scale(pipe) // 2 * 2
        schedule = flow_schedule(pipe.scheduler, (side // 2) ** 2, even=False)
        super().__init__(pipe, name, steps, cfg, schedule, (pipe.transformer.config.in_channels // 4, side, side))
        self.distilled = bool(pipe.transformer.config.guidance_embeds)
        self.tokens = 512 if self.distilled else 256
        self.lengths = (None, self.tokens)

    def encode_prompts(self, prompts: list[str]) -> Text:
        """T5's tokens (n, tokens, width), CLIP's pooled vector, and its default guidance where the network is told one."""
        return distinct(prompts, self._encode, self.device)

    def _encode(self, texts: list[str]) -> Text:
        pooled = self.text_encoder(token_ids(self.tokenizer, texts, self.device)[0]).pooler_output
        tokens = self.text_encoder_2(token_ids(self.tokenizer_2, texts, self.device, self.tokens)[0])[0]
        scale = torch.full((len(texts),), float(self.default_cfg), device=self.device) if self.distilled else None
        return Text(tokens.to(self.dtype), pooled.to(self.dtype), guidance=scale)

    def pair(self, cfg: float, negative: str = "") -> float:
        """See `Adapter.pair`: a distilled model makes none but for a negative prompt."""
        return cfg if negative or not self.distilled else 1.0

    def denoiser(self, prompts: list[str], cfg: float, negative: str | None = "") -> Denoise:
        """See `Adapter.denoiser`, and the head of this file for what ``cfg`` is."""
        if not self.distilled or negative:
            return super().denoiser(prompts, cfg, negative)
        context = self.encode_prompts(prompts)
        return self.unguided(replace(context, guidance=torch.full_like(context.pooled[:, 0].float(), cfg)))  # type: ignore[index]

    def network(self, x: Tensor, t: Time, context: Text) -> Tensor:
        """The transformer's output; see `Adapter.network`."""
        h, w = x.shape[-2:]
        at = torch.cartesian_prod(*(torch.arange(n // 2, device=x.device, dtype=self.dtype) for n in (h, w)))
        inputs = {"encoder_hidden_states": context.sequence, "pooled_projections": context.pooled, "guidance": context.guidance}
        text_at = torch.zeros(context.sequence.shape[1], 3, device=x.device, dtype=self.dtype)
        ids = {"txt_ids": text_at, "img_ids": torch.cat([torch.zeros_like(at[:, :1]), at], 1)}
        time = self.times(x, t) / 1000
        out = self.transformer(hidden_states=pack(x.to(self.dtype)), timestep=time, **inputs, **ids, return_dict=False)
        return unpack(out[0], h, w).to(x.dtype)
