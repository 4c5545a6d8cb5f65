"""What the models from diffusers share: a pipeline's weights, our loop. [-1, 1] exists only in this file.

    guided = uncond + scale · (cond - uncond)      in the network's own terms: eps, v, flow
    image  = decode(x / scaling + shift)           scaling and shift of the autoencoder

The network runs in its own precision, cast to and from at its door; latents, noise, predictions and everything between them are
float32, as is the autoencoder, which overflows in half precision in some families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self, cast

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.loading import load_pipeline
from tilting.models.lora_file import INPUTS, parse_lora
from tilting.models.lora_stack import stack
from tilting.models.lora_targets import is_clip
from tilting.models.pipeline import Pipeline
from tilting.models.schedulers import UNKNOWN, first_order, own_sigmas
from tilting.models.text import beside
from tilting.schedule import Schedule, correction, predict
from tilting.types import Denoise, Prediction, Time

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from tilting.models.look import Look
    from tilting.models.text import Context


class Adapter(ABC):
    """A latent diffusion model with text encoders. A family says what its network is called and told.

    Args:
        pipe: a loaded diffusers pipeline (its scheduler is read, not used).
        name: what manifests call it.
        steps, cfg: its own defaults, for unset options.
        schedule: of its scheduler.
        latent_shape: (channels, h, w).
    """

    component = "unet"
    """The name of the network in its pipeline, which names in LoRA files begin with."""
    encoders: tuple[str, ...] = ("",)
    """Endings of the names of its text encoders and tokenizers."""
    lengths: tuple[int | None, ...] = ()
    """Tokens that are read of each encoder's tokenizer; None, or nothing, for the tokenizer's most."""
    reads_windows = False
    """Whether its encoders are CLIP's alone, so that long prompts can be read in windows."""
    long_prompts = "cut"
    """What becomes of a prompt that is longer than its encoders read: "cut", or "chunk", where it is read in windows."""
    unused: tuple[str, ...] = ()
    """Parts of its pipeline that drawing has no use for."""

    look: Look | None = None
    """What decodes estimates in the place of its own autoencoder; see `tilting.models.look`."""
    place: torch.device | None = None
    """Where it computes, where that is not where its network's weights wait."""

    vae: Any
    tokenizer: Any
    text_encoder: Any

    def __init__(self, pipe: Any, name: str, steps: int, cfg: float, schedule: Schedule, latent_shape: tuple[int, ...]):
        self.name, self.default_steps, self.default_cfg = name, steps, cfg
        self.components = (
            "vae",
            self.component,
            *(f"{part}{end}" for end in self.encoders for part in ("tokenizer", "text_encoder")),
        )
        for part in self.components:
            setattr(self, part, getattr(pipe, part))
        scale = vae_scale(pipe)
        self.schedule, self.latent_shape = schedule, latent_shape
        self.image_shape: tuple[int, ...] = (3, latent_shape[1] * scale, latent_shape[2] * scale)
        for network in self.networks():
            network.eval().requires_grad_(False)

    @classmethod
    def load(cls, source: str, name: str, steps: int, cfg: float, dtype: torch.dtype) -> Self:
        """See `tilting.models.families.Loads`."""
        pipe = load_pipeline(source, dtype, cls.unused)
        if unread(pipe):  # the pipeline's own call reads it
            return cast(Self, Pipeline(pipe, name, steps, cfg))
        return cls(pipe, name, steps, cfg)  # type: ignore[call-arg]

    def networks(self) -> Iterator[nn.Module]:
        """Its networks: the one that denoises, the autoencoder, text encoders."""
        return (part for part in (getattr(self, name) for name in self.components) if isinstance(part, torch.nn.Module))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of its networks."""
        return (p for network in self.networks() for p in network.parameters())

    def to(self, where: torch.device | torch.dtype | str) -> Self:
        """The model, its networks moved to a device, or in another precision."""
        for network in self.networks():
            network.to(where)
        return self

    def load_lora(self, source: str | Path, scale: float = 1.0) -> Self:
        """The model, a LoRA stacked on it beside those that are there.

        Args:
            source: its folder, a fine-tuning run's, or the file.
            scale: of what it adds.

        Raises:
            TiltingError: if there is none or it does not fit, or where inputs of the sampler were learned with it.
        """
        spec = parse_lora(str(source))
        if (spec.file.parent / INPUTS).is_file():
            raise TiltingError(
                f"{spec.text!r} has learned inputs of the sampler too: give tilting.load(..., lora={spec.text!r})"
            )
        stack(self, spec._replace(scale=spec.scale * scale))
        return self

    def double(self) -> Self:
        """The model in float64."""
        return self.to(torch.float64)

    def tokenizers(self) -> list[tuple[Any, int | None]]:
        """Its tokenizers, and how many tokens are read of each where that is not the most it gives."""
        whole = (getattr(self, f"tokenizer{end}") for end in (self.encoders if self.long_prompts == "cut" else ()))
        return [(one, length) for one, length in zip_longest(whole, self.lengths) if one is not None]

    def read_long(self, how: str) -> Self:
        """The model, which reads long prompts so: "cut" or "chunk". Raises TiltingError where it cannot."""
        check_long(type(self), how, self.name)
        self.long_prompts = how
        return self

    @property
    def backbone(self) -> Any:
        """The network that denoises, which is what fine-tuning changes."""
        return getattr(self, self.component)

    @property
    def device(self) -> torch.device:
        return self.place or next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network; of one with quantized weights, what it computes in."""
        return next(p.dtype for p in self.backbone.parameters() if p.is_floating_point())

    def tunable(self) -> dict[str, Any]:
        """The networks that a LoRA can change, by the component that files call each: what denoises, and CLIP text encoders."""
        named = {f"text_encoder{end}": getattr(self, f"text_encoder{end}") for end in self.encoders}
        return {self.component: self.backbone, **{name: one for name, one in named.items() if is_clip(one)}}

    def checkpoint(self) -> None:
        """Recompute the activations of network and autoencoder on the way back: a third more time, far less memory."""
        self.backbone.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()
        if self.look is not None:
            self.look.vae.enable_gradient_checkpointing()

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

    def denoiser(self, prompts: list[str], cfg: float, negative: str | None = "") -> Denoise:
        """The guided denoiser of these prompts; ``rows`` index them. A CFG pair is one network call of twice the rows.

        Args:
            prompts: text of each image.
            cfg: guidance scale: uncond + cfg · (cond - uncond); 1 evaluates the condition alone.
            negative: the text of the unconditional branch; None is none.
        """
        context = self.encode_prompts(prompts)
        if cfg == 1:
            return self.unguided(context)
        empty = self.encode_negative(negative or "")
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
        """Images (m, 3, h, w) in [0, 1] of clean latents (m, ...), NaN where they are not finite; differentiable."""
        return self._decoded(latents, self.vae.decode)

    def looker(self, prompts: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor] | None:
        """(latents (m, ...), rows (m,)) -> images of estimates, by the look decoder; None where there is none."""
        look = self.look
        return None if look is None else lambda latents, rows: self._decoded(latents, look.decode)

    def _decoded(self, latents: Tensor, decode: Callable[..., Any]) -> Tensor:
        scaled = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        image = decode(scaled.to(self.vae.dtype), return_dict=False)[0].to(latents.dtype)
        return (image / 2 + 0.5).clamp(0, 1).masked_fill(image.isinf(), torch.nan)  # which clamp would take for white or black

    def encode(self, images: Tensor) -> Tensor:
        """Latents (the posterior's mean, scaled) of images (m, 3, h, w) in [0, 1]."""
        mean = self.vae.encode(images.to(self.device, self.vae.dtype) * 2 - 1).latent_dist.mean
        return (mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor


def unread(pipe: Any) -> str:
    """What of a pipeline an adapter does not read, and its pictures depend on; empty where that is nothing."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    network = getattr(pipe, "unet", None) or pipe.transformer
    size = getattr(network.config, "sample_size", None)
    odd = {
        "an autoencoder of another class": type(pipe.vae) is not AutoencoderKL,
        "latents_mean": getattr(pipe.vae.config, "latents_mean", None) is not None,
        "latents_std": getattr(pipe.vae.config, "latents_std", None) is not None,
        "a shift that its pipeline does not take": getattr(pipe.vae.config, "shift_factor", None) is not None
        and not type(pipe).__name__.startswith(("StableDiffusion3", "Flux")),
        "clip_sample": first_order(pipe.scheduler).clip is not None,
        "time_cond_proj_dim": getattr(network.config, "time_cond_proj_dim", None) is not None,
        "sample_size": not isinstance(size, int | None),
        "an image encoder": getattr(network.config, "encoder_hid_dim_type", None) is not None,
        "more channels than a latent has": network.config.in_channels
        != (network.config.out_channels or network.config.in_channels)
        and hasattr(network.config, "cross_attention_dim")
        and "transformer" not in pipe.components,
        "a flow's own times": any(pipe.scheduler.config.get(option) for option in UNKNOWN)
        or (hasattr(pipe, "transformer") and pipe.scheduler.config.num_train_timesteps != 1000),
        "a scheduler's own sigmas": own_sigmas(pipe.scheduler),
        "few steps": first_order(pipe.scheduler).boundary is not None or type(pipe.scheduler).__name__.startswith("TCD"),
    }
    return next((what for what, found in odd.items() if found), "")


def check_long(kind: type, how: str, name: str) -> None:
    """Refuse a reading of long prompts that there is not, or that a model of a kind has not. Raises TiltingError."""
    if how not in ("cut", "chunk"):
        raise TiltingError(f"long-prompts is cut or chunk, not {how!r}")
    if how == "chunk" and not getattr(kind, "reads_windows", False):
        raise TiltingError(
            f"long-prompts chunk is for models that read by CLIP alone, SD 1.x, 2.x and XL, which {name!r} is not"
        )


def vae_scale(pipe: Any) -> int:
    """Pixels to a latent's side."""
    return 2 ** (len(pipe.vae.config.block_out_channels) - 1)


def square(network: Any) -> tuple[int, int, int]:
    """The shape of a latent as a network's own configuration has it."""
    return (network.config.in_channels, network.config.sample_size, network.config.sample_size)
