"""Stable Diffusion 1.x, 2.x, and `pocket`: a UNet that reads one CLIP's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilting.models.adapter import Adapter, square
from tilting.models.families import FAMILIES
from tilting.models.schedulers import schedule_of
from tilting.models.text import distinct, token_ids
from tilting.types import TiltingError, Time

if TYPE_CHECKING:
    from torch import Tensor


@FAMILIES.declare("stable-diffusion", "Stable Diffusion 1.x and 2.x", ("StableDiffusionPipeline",), steps=50, cfg=7.5)
class StableDiffusion(Adapter):
    """A latent diffusion model with a text encoder: Stable Diffusion 1.x, 2.x, and `pocket`.

    Made of a loaded diffusers StableDiffusionPipeline, whose scheduler is read, not used.
    """

    unused = ("safety_checker",)
    unet: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float):
        super().__init__(pipe, name, steps, cfg, schedule_of(pipe.scheduler), square(pipe.unet))

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """(len(prompts), tokens, width) text embeddings; each different prompt is encoded once."""
        return distinct(prompts, self._encode, self.device)

    def _encode(self, texts: list[str]) -> Tensor:
        return self.text_encoder(token_ids(self.tokenizer, texts, self.device)[0])[0].to(self.dtype)

    def network(self, x: Tensor, t: Time, context: Tensor) -> Tensor:
        """The UNet's output; see `Adapter.network`."""
        out = self.unet(x.to(self.dtype), self.times(x, t), encoder_hidden_states=context.to(self.dtype), return_dict=False)
        return out[0].to(x.dtype)


def plain_only(model: Any, what: str) -> None:
    """Refuse the other families. Raises TiltingError."""
    if isinstance(model, Adapter) and not isinstance(model, StableDiffusion):
        raise TiltingError(f"{what} are for Stable Diffusion 1.x and 2.x, which {model.name!r} is not")
