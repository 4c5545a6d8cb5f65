"""Stable Diffusion 1.x, 2.x, and `pocket`: a UNet that reads one CLIP's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.adapter import Adapter, square
from tilting.models.families import FAMILIES
from tilting.models.pipeline import Pipeline
from tilting.models.schedulers import schedule_of
from tilting.models.text import distinct, in_windows, token_ids
from tilting.types import TiltingError, Time

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.text import Context


@FAMILIES.declare("stable-diffusion", "Stable Diffusion 1.x and 2.x", ("StableDiffusionPipeline",), steps=50, cfg=7.5)
class StableDiffusion(Adapter):
    """A latent diffusion model with a text encoder: Stable Diffusion 1.x, 2.x, and `pocket`.

    Made of a loaded diffusers StableDiffusionPipeline, whose scheduler is read, not used.
    """

    unused = ("safety_checker",)
    reads_windows = True
    unet: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float):
        super().__init__(pipe, name, steps, cfg, schedule_of(pipe.scheduler), square(pipe.unet))

    def encode_prompts(self, prompts: list[str]) -> Any:
        """(len(prompts), tokens, width) text embeddings, in windows with their mask; each different prompt is encoded once."""
        return distinct(prompts, self._encode, self.device)

    def _encode(self, texts: list[str]) -> Any:
        if self.long_prompts == "chunk":
            return in_windows(lambda ids: (self.text_encoder(ids)[0].to(self.dtype), None), self.tokenizer, texts, self.device)
        return self.text_encoder(token_ids(self.tokenizer, texts, self.device)[0])[0].to(self.dtype)

    def network(self, x: Tensor, t: Time, context: Context) -> Tensor:
        """The UNet's output; see `Adapter.network`."""
        plain = context if isinstance(context, torch.Tensor) else context.sequence
        text: dict[str, Any] = {"encoder_hidden_states": plain.to(self.dtype)}
        text |= {} if isinstance(context, torch.Tensor) else {"encoder_attention_mask": context.mask}
        out = self.unet(x.to(self.dtype), self.times(x, t), **text, return_dict=False)
        return out[0].to(x.dtype)


def plain_only(model: Any, what: str) -> None:
    """Refuse the other families. Raises TiltingError."""
    if isinstance(model, Adapter | Pipeline) and not isinstance(model, StableDiffusion):
        raise TiltingError(f"{what} are for Stable Diffusion 1.x and 2.x, which {model.name!r} is not")
