"""Applies `tilting.models.placement.Switches` through diffusers, accelerate and torch.

Written for a GPU; on a CPU all of it runs, and most of it saves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError, nearest
from tilting.lazy import torch
from tilting.models.families import CONFIG, read_json
from tilting.models.loading import load_part
from tilting.models.look_decoder import LookDecoder, as_look_decoder, check_look_decoder, find_look_decoder, leaving
from tilting.models.placement import Switches, check_vae, dtype_of, no_cache

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tilting.types import Denoise, Prediction, Time


def switched(model: Any, given: Switches, source: str | None, where: torch.device | None) -> Any:
    """The model, run so.

    Args:
        model: loaded, its LoRAs not yet on it.
        given: how.
        source: its name, folder or hub id; None of one that somebody has built.
        where: it is to run; None for where it is.

    Raises:
        TiltingError: for what its family has not, naming the switch.
    """
    if not hasattr(model, "backbone"):
        raise TiltingError(f"{model.name!r} is no pipeline of diffusers, whose parts switches are of: leave them out")
    network, name, place = model.backbone, model.name, where or model.device
    vae: Any = model.vae
    asked = [one for one in ("precision_vae", "vae_slicing", "vae_tiling") if getattr(given, one)]
    if asked and not hasattr(vae, "config"):
        raise TiltingError(f"{name!r} draws pixels and has no autoencoder: leave --{asked[0].replace('_', '-')} out")
    if given.precision_vae is not None:
        kind = type(getattr(model, "pipe", model)).__name__
        check_vae(kind, vae.config, given.precision_vae, name)
        vae.to(dtype_of(given.precision_vae))
    if given.look_decoder is not None:
        folder = find_look_decoder(source, given.look_decoder) if source else given.look_decoder
        model.look_decoder = load_look_decoder(model, folder, dtype_of(given.precision_vae or "fp32"))
    if given.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if given.quantize is not None:
        quantized(network, given.quantize, model.dtype, place)
    if given.channels_last:
        for part in (network, vae):
            if part is not None and all(p.ndim != 5 for p in part.parameters()):
                part.to(memory_format=torch.channels_last)
    for on, what in ((given.vae_slicing, "slicing"), (given.vae_tiling, "tiling")):
        if on:
            switch = getattr(vae, f"enable_{what}", None)
            if switch is None or not hasattr(vae, f"use_{what}"):
                raise TiltingError(f"the {type(vae).__name__} of {name!r} has no {what}: leave --vae-{what} out")
            switch()
    if given.attention is not None:
        attend(network, given.attention, name)
    if given.recompute:
        model.checkpoint()
    if given.cache is not None:
        if not hasattr(network, "enable_cache"):
            raise no_cache(type(network).__name__, name)
        if getattr(model, "apart", False):
            raise TiltingError(f"{name!r} is asked for its prompts one by one, which a cache would mix: leave --cache out")
        model.anew = partial(cached, network, given.cache)
    if given.compile:
        if getattr(network, "_repeated_blocks", None):
            network.compile_repeated_blocks()
        else:  # the forward alone: an entry puts its own in the module's place, which is no graph
            network.forward = torch.compile(network.forward)
    if given.offload is not None:
        offloaded(model, given.offload, name, place)
    elif where is not None:
        model.to(where)
    if model.look_decoder is not None:
        model.look_decoder.vae.to(place)
    return model


def load_look_decoder(model: Any, folder: str, dtype: torch.dtype) -> LookDecoder:
    """The decoder of a model's estimates. Raises TiltingError for a model that has no autoencoder, or what does not load."""
    if getattr(model, "vae", None) is None:
        raise TiltingError(f"{model.name!r} draws pixels and has nothing to decode: leave --look-decoder out")
    check_look_decoder(model.vae.config, folder)
    if (tail := getattr(model, "before_decoder", None)) is not None:
        x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
        back = leaving(model.vae.config, tail(x)).flatten().sort().values  # in the tail's own order: some pack latents
        if back.numel() != x.numel() or not torch.allclose(back.to(x), x.flatten().sort().values, atol=0.05):
            raise TiltingError(f"how {model.name!r} scales its latents for a decoder is not known: leave --look-decoder out")
    small = load_part(folder, str(read_json(folder, CONFIG).get("_class_name")), dtype)
    return as_look_decoder(small.to(model.device), model.vae, model.name, folder)


def attend(network: Any, backend: str, name: str) -> None:
    """Attention by a back end of diffusers. Raises TiltingError for one that is not known, not installed, or not its."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [one.value for one in AttentionBackendName]
    if backend not in known:
        raise TiltingError(f"attention cannot be {backend!r}{nearest(backend, known)}")
    try:
        network.set_attention_backend(backend)
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        raise TiltingError(f"attention {backend!r} is not for {name!r} here: {str(error).splitlines()[0]}") from error


# -- weights in 4 or 8 bits


def quantized(network: nn.Module, bits: str, dtype: torch.dtype, device: torch.device) -> None:
    """The linear layers of a network in place: by bitsandbytes NF4, or int8 with a column's outliers apart; by torchao int8, a
    scale for each row.

    diffusers' own loader does the same to the same layers, and refuses on a CPU, where bitsandbytes itself has a back end.
    """
    if bits == "int8":
        ao: Any = import_module("torchao.quantization")
        ao.quantize_(network.to(device).requires_grad_(False), ao.Int8WeightOnlyConfig())
        return
    bnb: Any = import_module("bitsandbytes").nn

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not torch.nn.Linear:
                continue
            shape = (layer.in_features, layer.out_features, layer.bias is not None)
            weight: Any
            if bits == "4bit":
                made = bnb.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4", device="meta")
                weight = bnb.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
            else:
                made = bnb.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
                weight = bnb.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
            made.weight, made.bias = weight, layer.bias
            setattr(parent, name, made.to(device).requires_grad_(False))
    # what peft and diffusers ask of a network that was quantized by their own loaders
    network.is_loaded_in_4bit, network.is_loaded_in_8bit = bits == "4bit", bits == "8bit"  # type: ignore[assignment]


# -- an approximation between steps


def cached(network: Any, threshold: float) -> None:
    """Begin a group's first-block cache: blocks after the first are passed over where its residual moved by less than the
    threshold since they were last asked."""
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig

    if network.is_cache_enabled:
        network.disable_cache()
    network.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    stack = network.__dict__.setdefault("_tilting_cache", ExitStack())  # for networks that are called without their pipeline
    stack.close()
    stack.enter_context(network.cache_context("cond"))


# -- parts that wait in main memory


def networks(value: Any) -> list[nn.Module]:
    """The networks in a reward, or another value: itself, or in its fields, and in those of its parts."""
    if isinstance(value, torch.nn.Module):
        return [value]
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
    inside = [network for part in parts for network in networks(part)]
    return list({id(network): network for network in inside}.values())


def offloaded(model: Any, how: str, name: str, place: torch.device) -> None:
    """Keep parts in main memory while they are idle: text encoders, beside which the network waits while they encode; and what
    looks; and the network, block by block."""
    if (pipe := getattr(model, "pipe", None)) is not None:  # which would compute where its first part is
        kind = type(pipe)
        pipe.__class__ = type(kind.__name__, (kind,), {"_execution_device": property(lambda _: model.device)})
    for key, part in parts_of(model).items():
        if key.startswith(("text_encoder", "image_encoder")):
            _fetch(part, model, () if how == "network" else (model.backbone,))
        elif part is not model.backbone or how != "network":
            part.to(place)
    model.waits = how in ("parts", "network")
    if how == "network":
        if not getattr(model.backbone, "_supports_group_offloading", False):
            raise TiltingError(f"the {type(model.backbone).__name__} of {name!r} has no group offload: use --offload parts")
        model.place = place
        model.backbone.enable_group_offload(place, num_blocks_per_group=1, offload_type="block_level")


def parts_of(model: Any) -> dict[str, nn.Module]:
    """The networks of a model by the names of its pipeline."""
    pipe = getattr(model, "pipe", None)
    named = pipe.components if pipe is not None else {key: getattr(model, key) for key in model.components}
    return {key: part for key, part in named.items() if isinstance(part, torch.nn.Module)}


def _fetch(part: Any, model: Any, beside: tuple[Any, ...]) -> None:
    """Keep a part in main memory, but on the model's device while it is called, when what is beside it waits there."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Fetch(ModelHook):
        def pre_forward(self, module: Any, *given: Any, **more: Any) -> Any:
            self.place = model.device
            for one in beside:
                one.to("cpu")
            module.to(self.place)
            return given, more

        def post_forward(self, module: Any, output: Any) -> Any:
            module.to("cpu")
            for one in beside:
                one.to(self.place)
            return output

    add_hook_to_module(part.to("cpu"), Fetch(), append=True)


@dataclass
class Idle:
    """What looks, autoencoder and reward, while the network runs: fetched by a look, sent away by the next evaluation. What a
    look's gradient needs stays, for its way back is over before the network is asked again.

    Attributes:
        networks: of the autoencoders and the reward.
        device: where looks are made.
    """

    networks: list[nn.Module]
    device: torch.device | str
    here: bool = True

    def fetch(self) -> None:
        """Before a look."""
        for one in () if self.here else self.networks:
            one.to(self.device)
        self.here = True

    def send(self) -> None:
        """Before an evaluation."""
        for one in self.networks if self.here else ():
            one.to("cpu")
        self.here = False

    def before(self, denoise: Denoise) -> Denoise:
        """The denoiser, before which what looks is sent away."""

        def alone(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            self.send()
            return denoise(x, t, rows)

        return alone


def idle(model: Any, reward: Any, device: torch.device | str) -> Idle | None:
    """What waits while the network of a model runs; None where nothing does."""
    if not getattr(model, "waits", False):
        return None
    return Idle(networks([model.vae, getattr(model.look_decoder, "vae", None), reward]), device)
