"""A thin adapter over a diffusers `StableDiffusionPipeline`: its weights, our loop. [-1, 1] exists only in this file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tilting.schedule import Kind, Schedule, correction, predict
from tilting.types import Denoise, Prediction, TiltingError, Time


class StableDiffusion(nn.Module):
    """A latent diffusion model with a text encoder: Stable Diffusion 1.x, 2.x, and `pocket`.

    Args:
        pipe: a loaded diffusers StableDiffusionPipeline (its scheduler is read, not used).
        name: what manifests call it.
        steps, cfg: its own usual settings, for unset options.
    """

    def __init__(self, pipe, name: str, steps: int = 50, cfg: float = 7.5):
        super().__init__()
        self.name, self.usual_steps, self.usual_cfg = name, steps, cfg
        self.tokenizer = pipe.tokenizer
        self.text_encoder, self.unet, self.vae = pipe.text_encoder, pipe.unet, pipe.vae
        self.schedule = schedule_of(pipe.scheduler)
        self.vae_scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        side = self.unet.config.sample_size
        self.latent_shape: tuple[int, ...] = (self.unet.config.in_channels, side, side)
        self.image_shape: tuple[int, ...] = (3, side * self.vae_scale, side * self.vae_scale)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """(len(prompts), tokens, width) text embeddings; each different prompt is encoded once."""
        unique = list(dict.fromkeys(prompts))
        with torch.no_grad():
            ids = self.tokenizer(
                unique, padding="max_length", max_length=self.tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            embeddings = self.text_encoder(ids.to(self.device))[0].to(self.dtype)
        return embeddings[[unique.index(p) for p in prompts]]

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        """The guided denoiser of these prompts; ``rows`` index them. A CFG pair is one network call of twice the rows.

        Args:
            prompts: text of each image.
            cfg: guidance scale: uncond + cfg · (cond - uncond); 1 evaluates the condition alone.
            negative: the text of the unconditional branch.
        """
        context = self.encode_prompts(prompts)
        empty = self.encode_prompts([negative])
        if cfg != 1:
            return self.guided(context, lambda rows: empty.expand_as(context[rows]), lambda t: cfg)

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            eps, x0 = predict(self.schedule.kind, self.network(x, t, context[rows]), x, t)
            return Prediction(eps, x0, torch.zeros_like(x))

        return denoise

    def guided(self, context: Tensor, without: Callable[[Tensor], Tensor], scale: Callable[[Time], Tensor | float]) -> Denoise:
        """uncond + scale · (cond - uncond), a network call of twice the rows.

        Args:
            context: (n, tokens, width) text embeddings of the condition.
            without: rows (m,) -> (m, tokens, width), those of the unconditional branch.
            scale: of a time.
        """

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            kind = self.schedule.kind
            unconditional, conditional = self.network(torch.cat([x, x]), t, torch.cat([without(rows), context[rows]])).chunk(2)
            difference = conditional - unconditional
            eps, x0 = predict(kind, unconditional + scale(t) * difference, x, t)
            return Prediction(eps, x0, correction(kind, difference, t))

        return denoise

    def network(self, x: Tensor, t: Time, context: Tensor) -> Tensor:
        time = torch.full((len(x),), t.t, device=x.device)
        return self.unet(x, time.long() if t.t.is_integer() else time, encoder_hidden_states=context, return_dict=False)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (m, 3, h, w) in [0, 1] of clean latents (m, ...); differentiable."""
        return (self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (the posterior's mean, scaled) of images (m, 3, h, w) in [0, 1]."""
        return self.vae.encode(images.to(self.dtype) * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor


def schedule_of(scheduler) -> Schedule:
    """Our schedule of a diffusers scheduler (DDIM, DDPM, PNDM, Euler, ...: only its training schedule is read)."""
    config = scheduler.config
    kind: Kind = config.get("prediction_type", "epsilon")
    alpha_bar = tuple(scheduler.alphas_cumprod.double().tolist())
    final = 1.0 if config.get("set_alpha_to_one", True) else alpha_bar[0]
    return Schedule(kind, alpha_bar, final, config.get("timestep_spacing", "leading"), config.get("steps_offset", 0))


def load_stable_diffusion(source: str | Path, name: str | None = None, steps: int = 50, cfg: float = 7.5) -> StableDiffusion:
    """Load a diffusers folder, or a hub id where there is network. Weights are safetensors only.

    Raises:
        TiltingError: if the folder is not a pipeline, or the id cannot be fetched.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = Path(source)
    if folder.exists() and not (folder / "model_index.json").exists():
        raise TiltingError(f"{folder} is not a diffusers pipeline: it has no model_index.json")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch_dtype, which older versions call for, is called dtype in newer
            pipe = StableDiffusionPipeline.from_pretrained(
                str(source), safety_checker=None, requires_safety_checker=False, use_safetensors=True,
                torch_dtype=torch.float32, local_files_only=folder.exists(),
            )  # fmt: skip
    except OSError as error:
        raise TiltingError(f"cannot load the model {str(source)!r}: {str(error).splitlines()[0]}") from error
    return StableDiffusion(pipe, name or str(source), steps, cfg)
