"""The components of a pipeline: which are trained, moved to a device, checkpointed, or encode prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.lora_file import INPUTS, parse_lora
from tilting.models.lora_stack import stack
from tilting.models.lora_targets import is_clip
from tilting.models.patched_pipeline import PatchedPipeline
from tilting.models.prompt_embeds import reads_windows, windows

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from tilting.models.look_decoder import LookDecoder

NETWORKS = ("unet", "transformer", "prior", "decoder")
UNBOUNDED = 10**6
"""From here on what a tokenizer says of its most is that it has none."""


class Components:
    """The parts of a pipeline of diffusers; each is an attribute by its own name.

    Args:
        pipe: the pipeline.
        name: what manifests call it.
        inputs: arguments of its call, of every image.

    Attributes:
        component: the name of the network that denoises, which names in LoRA files begin with.
        long_prompts: what becomes of a prompt that is longer than its encoders read: "cut", or "chunk", read in windows.

    Raises:
        TiltingError: for one without a network that denoises.
    """

    look_decoder: LookDecoder | None = None
    """What decodes estimates in the place of its own autoencoder; see `tilting.models.look_decoder`."""
    place: torch.device | None = None
    """Where it computes, where that is not where its network's weights wait."""

    def __init__(self, pipe: Any, name: str, inputs: Mapping[str, Any]):
        self.pipe, self.name, self.inputs = pipe, name, dict(inputs)
        self.patched, self.long_prompts = PatchedPipeline(pipe), "cut"
        self.component = next(
            (n for n in NETWORKS if n in self.patched.loop_modules), next(iter(self.patched.loop_modules), "")
        )
        if not self.component:
            raise TiltingError(f"a {type(pipe).__name__} has no network that denoises")
        for network in self.networks():
            if getattr(network, "is_cache_enabled", False):
                kind = type(network).__name__
                raise TiltingError(f"the {kind} keeps a cache between steps: call its disable_cache(), and give cache= here")
            network.eval().requires_grad_(False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, a {type(self.pipe).__name__})"

    def __getattr__(self, name: str) -> Any:
        pipe = self.__dict__.get("pipe")
        if pipe is None or name not in pipe.components:
            raise AttributeError(f"a {type(self).__name__} has no {name!r}")
        return pipe.components[name]

    def tokenizers(self) -> list[tuple[Any, int | None]]:
        """Its tokenizers, and how many tokens its call reads of each: CLIP's their most, others ``max_sequence_length``."""
        names = self.patched.parameters
        usual = names["max_sequence_length"].default if "max_sequence_length" in names else None
        length = self.inputs.get("max_sequence_length", usual)
        if self.long_prompts != "cut":
            return []
        parts = [part for name, part in self.pipe.components.items() if name.startswith("tokenizer")]
        read = [
            (part, None if "CLIP" in type(part).__name__ else length) for part in parts if hasattr(part, "model_max_length")
        ]
        return [(part, most) for part, most in read if isinstance(most, int) or part.model_max_length < UNBOUNDED]

    def read_long(self, how: str) -> Self:
        """The model, which reads long prompts so: "cut", or "chunk", in windows. Raises TiltingError where it cannot."""
        check_long(how, reads_windows(self.pipe), self.name)
        self.long_prompts = how
        self.patched.prompt_edits[:] = [windows] if how == "chunk" else []
        return self

    def networks(self) -> Iterator[nn.Module]:
        """Its networks."""
        return (part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module))

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all its networks."""
        return (p for network in self.networks() for p in network.parameters())

    @property
    def backbone(self) -> Any:
        """The network that denoises, which is what fine-tuning changes."""
        return getattr(self.pipe, self.component)

    def tunable(self) -> dict[str, Any]:
        """The networks that a LoRA can change, by the component that files call each: what denoises, and CLIP text encoders."""
        clips = {name: part for name, part in self.patched.outer_modules.items() if is_clip(part)}
        return {self.component: self.backbone, **clips}

    def denoisers(self) -> list[Any]:
        """All networks that denoise: of two experts both."""
        names = [name for name in self.patched.loop_modules if name == self.component or name.startswith(f"{self.component}_")]
        return [self.patched.loop_modules[name] for name in names]

    @property
    def vae(self) -> Any:
        return self.patched.vae

    @property
    def device(self) -> torch.device:
        return self.place or next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network; with quantized weights, the dtype it computes in."""
        return next(p.dtype for p in self.backbone.parameters() if p.is_floating_point())

    def to(self, where: torch.device | torch.dtype | str) -> Self:
        """The model, its networks moved to a device, or in another precision."""
        before = self.device, self.dtype
        for network in self.networks():
            network.to(where)
        if before != (self.device, self.dtype):
            self.forget()
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

    def forget(self) -> None:
        """What was encoded before is encoded anew: the networks are not what they were."""
        self.patched.cache.clear()
        self.patched.zero_outputs.clear()

    def checkpoint(self) -> None:
        """Recompute the activations of network and autoencoder on the way back, where diffusers can."""
        parts: list[Any] = [self.backbone, self.vae, getattr(self.look_decoder, "vae", None)]
        for part in parts:
            if getattr(part, "_supports_gradient_checkpointing", False):
                part.enable_gradient_checkpointing()


def check_long(how: str, can: bool, name: str) -> None:
    """Refuse a reading of long prompts that there is not, or that a model has not. Raises TiltingError.

    Args:
        how: "cut" or "chunk".
        can: whether it reads in windows.
        name: of the model.
    """
    if how not in ("cut", "chunk"):
        raise TiltingError(f"long-prompts is cut or chunk, not {how!r}")
    if how == "chunk" and not can:
        raise TiltingError(
            f"long-prompts chunk is for models that read by CLIP alone, SD 1.x, 2.x and XL, which {name!r} is not"
        )
