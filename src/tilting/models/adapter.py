"""What the models from diffusers share: a pipeline's weights, our loop. [-1, 1] exists only in this file.

    guided = uncond + scale · (cond - uncond)      in the network's own terms: eps, v, flow
    image  = decode(x / scaling + shift)           scaling and shift of the autoencoder

The network runs in its own precision, cast to and from at its door; latents, noise, predictions and everything between them are
float32, as is the autoencoder, which overflows in half precision in some families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tilting.models.text import Context, beside
from tilting.schedule import Schedule, correction, predict
from tilting.types import Denoise, Prediction, Time


class Adapter(nn.Module, ABC):
    """A latent diffusion model with text encoders. A family says what its network is called and told.

    Args:
        pipe: a loaded diffusers pipeline (its scheduler is read, not used).
        name: what manifests call it.
        steps, cfg: its own usual settings, for unset options.
        schedule: of its scheduler.
        latent_shape: (channels, h, w).
    """

    component = "unet"
    """The name of the network in its pipeline, which names in LoRA files begin with."""
    encoders: tuple[str, ...] = ("",)
    """Endings of the names of its text encoders and tokenizers."""

    vae: Any
    tokenizer: Any
    text_encoder: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float, schedule: Schedule, latent_shape: tuple[int, ...]):
        super().__init__()
        self.name, self.usual_steps, self.usual_cfg = name, steps, cfg
        parts = [f"{part}{end}" for end in self.encoders for part in ("tokenizer", "text_encoder")]
        for part in ("vae", self.component, *parts):
            setattr(self, part, getattr(pipe, part))
        scale = vae_scale(pipe)
        self.schedule, self.latent_shape = schedule, latent_shape
        self.image_shape: tuple[int, ...] = (3, latent_shape[1] * scale, latent_shape[2] * scale)
        self.eval().requires_grad_(False)

    @property
    def backbone(self) -> Any:
        """The network that denoises, which is what fine-tuning changes."""
        return getattr(self, self.component)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        return next(self.backbone.parameters()).dtype

    def checkpoint(self) -> None:
        """Recompute the activations of network and autoencoder on the way back: a third more time, far less memory."""
        self.backbone.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> Any:
        """The context of prompts, a `Context` of len(prompts) rows; each different one is encoded once."""

    def encode_negative(self, negative: str) -> Any:
        """The context of the unconditional branch, one row."""
        return self.encode_prompts([negative])

    def pair(self, cfg: float, negative: str = "") -> float:
        """The scale of the pair that a request makes; 1 where there is none, and so no correction."""
        return cfg

    @abstractmethod
    def network(self, x: Tensor, t: Time, context: Any) -> Tensor:
        """The network's output (m, ...) for latents (m, ...) and their context, in the dtype of ``x``."""

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        """The guided denoiser of these prompts; ``rows`` index them. A CFG pair is one network call of twice the rows.

        Args:
            prompts: text of each image.
            cfg: guidance scale: uncond + cfg · (cond - uncond); 1 evaluates the condition alone.
            negative: the text of the unconditional branch.
        """
        context = self.encode_prompts(prompts)
        if cfg == 1:
            return self.unguided(context)
        empty = self.encode_negative(negative)
        return self.guided(context, lambda rows: empty.expand_as(context[rows]), lambda t: cfg)

    def unguided(self, context: Context) -> Denoise:
        """The condition alone, one network call."""

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            eps, x0 = predict(self.schedule.kind, self.network(x, t, context[rows]), x, t)
            return Prediction(eps, x0, torch.zeros_like(x))

        return denoise

    def guided(self, context: Context, without: Callable[[Tensor], Any], scale: Callable[[Time], Tensor | float]) -> Denoise:
        """uncond + scale · (cond - uncond), a network call of twice the rows.

        Args:
            context: n rows, of the condition.
            without: rows (m,) -> m rows, of the unconditional branch.
            scale: of a time.
        """

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            kind = self.schedule.kind
            output = self.network(torch.cat([x, x]), t, beside(without(rows), context[rows]))
            unconditional, conditional = output.chunk(2)
            difference = conditional - unconditional
            eps, x0 = predict(kind, unconditional + scale(t) * difference, x, t)
            return Prediction(eps, x0, correction(kind, difference, t))

        return denoise

    def times(self, x: Tensor, t: Time) -> Tensor:
        """(m,) what the network is told of a time, as it was trained: whole numbers where they are."""
        time = torch.full((len(x),), t.t, device=x.device)
        return time.long() if t.t.is_integer() and self.schedule.kind != "flow" else time

    def decode(self, latents: Tensor) -> Tensor:
        """Images (m, 3, h, w) in [0, 1] of clean latents (m, ...); differentiable."""
        scaled = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        image = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].to(latents.dtype)
        return (image / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (the posterior's mean, scaled) of images (m, 3, h, w) in [0, 1]."""
        mean = self.vae.encode(images.to(self.device, self.vae.dtype) * 2 - 1).latent_dist.mean
        return (mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor


def vae_scale(pipe: Any) -> int:
    """Pixels to a latent's side."""
    return 2 ** (len(pipe.vae.config.block_out_channels) - 1)


def square(network: Any) -> tuple[int, int, int]:
    """The shape of a latent as a network's own configuration has it."""
    return (network.config.in_channels, network.config.sample_size, network.config.sample_size)
