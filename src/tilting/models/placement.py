"""Device, precision and performance switches of a model. Torch-free to import.

The network and the text encoders run in the precision asked for, the autoencoder in its own, float32 unless told; latents,
noise and schedules stay float32, and log-weights float64 on the CPU. Noise is always drawn on the CPU, so that a picture is
the same drawing on every device.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Gt, Le
from typing_extensions import Doc

from tilting.declare import Check, Metavar, Option, declared
from tilting.errors import TiltingError, nearest
from tilting.lazy import torch
from tilting.models.families import CONFIG, kind_of, read_json
from tilting.models.look_decoder import find_look_decoder
from tilting.models.names import find_model

DEVICES = ("auto", "cpu", "cuda", "mps")
FULL = "fp32"
PRECISIONS = (FULL, "fp16", "bf16")
ELSEWHERE = {
    "gpu": "cuda",
    **dict.fromkeys(("float32", "float", "full"), FULL),
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}
"""What other tools call them."""


def check_device(text: str, option: str = "device") -> str:
    """The name of a device, as it is. Raises TiltingError for what is not one, naming the option that it was given for."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text) is None:
        raise TiltingError(f"{option} cannot be {text!r}{nearest(ELSEWHERE.get(text, text), (*DEVICES, 'cuda:0'))}")
    return text


def device_of(text: str, option: str = "device") -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else MPS, else the CPU. Raises TiltingError for one not here,
    naming the option that it was given for."""
    kind, _, number = check_device(text, option).partition(":")
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if kind == "auto":
        return torch.device(next(name for name, count in here.items() if count))
    if int(number or 0) >= here[kind]:
        raise TiltingError(f"there is no device {text!r} here: use --{option} auto or cpu")
    return torch.device(text)


def check_precision(text: str) -> str:
    """The name of a precision, as it is. Raises TiltingError for what is not one."""
    if text not in PRECISIONS:
        raise TiltingError(f"precision cannot be {text!r}{nearest(ELSEWHERE.get(text, text), PRECISIONS)}")
    return text


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a precision. Raises TiltingError for what is not one."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[check_precision(precision)]


UNITS = {"GB": 10**9, "MB": 10**6, "GIB": 2**30, "MIB": 2**20}
"""Bytes of a unit of memory."""


def bytes_of(text: str) -> int:
    """Bytes that a size such as 12GB says. Raises TiltingError for what says none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found[2].upper() if found else ""
    if found is None or unit not in UNITS or float(found[1]) == 0:
        meant = f"; did you mean '{found[1]}{'MB' if unit.startswith('M') else 'GB'}'?" if found and float(found[1]) else ""
        raise TiltingError(f"memory is a number and its unit, such as 12GB, not {text!r}{meant}")
    return round(float(found[1]) * UNITS[unit])


def _memory(name: str, value: str) -> str:
    bytes_of(value)
    return value


@dataclass(frozen=True, kw_only=True)
class Switches:
    """How a model is run, beside its device and the precision of its network; unset, it is as the model itself says.

    Those of `NEUTRAL` change a picture by rounding at most, so that a run goes on with others.
    """

    precision_vae: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, Option(default="fp32"), Doc("Precision of the autoencoder: fp32, fp16 or bf16.")
    ] = None
    look_decoder: Annotated[
        str | None,
        Metavar("DIR|auto"),
        Doc("A small autoencoder for intermediate estimates; final images use the model's own."),
    ] = None
    quantize: Annotated[
        Literal["4bit", "8bit", "int8"] | None,
        Doc("Quantize the network's weights: 4bit or 8bit by bitsandbytes, int8 by torchao."),
    ] = None
    cache: Annotated[
        float | None, Gt(0), Le(1), Metavar("THRESHOLD"), Doc("First-block cache of a transformer, an approximation; try 0.05.")
    ] = None
    tf32: Annotated[bool, Doc("Matrix products in TF32, on GPUs that have it.")] = False
    vae_tiling: Annotated[bool, Doc("Decode in tiles, whose seams may show.")] = False
    vae_slicing: Annotated[bool, Doc("Decode images one at a time.")] = False
    recompute: Annotated[bool, Doc("Recompute activations in the backward pass, to save memory.")] = False
    offload: Annotated[
        Literal["text", "parts", "network"] | None,
        Doc("Keep idle parts in main memory: text encoders; all parts; the network too, block by block."),
    ] = None
    attention: Annotated[str | None, Metavar("NAME"), Doc("Attention backend of diffusers, such as flash.")] = None
    compile: Annotated[bool, Doc("Compile the network's repeated blocks.")] = False
    channels_last: Annotated[bool, Doc("Channels-last memory format, faster convolutions on some GPUs.")] = False
    memory: Annotated[
        str | None, Metavar("12GB"), Check(_memory), Doc("Memory limit; batch size, recompute and offload are chosen for it.")
    ] = None

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those of a config, or of another value that has them."""
        return cls(**{name: getattr(config, name) for name in SWITCHES})


SWITCHES = tuple(declared(Switches))
NEUTRAL = ("vae-slicing", "recompute", "offload", "attention", "compile", "channels-last", "memory")
"""Options that change a picture by rounding at most."""


def check_switches(model: str, given: Switches) -> None:
    """Refuse, by a model's json alone, what its parts have not. Raises TiltingError."""
    by, extra = ("torchao", "torchao") if given.quantize == "int8" else ("bitsandbytes", "quantize")
    if given.quantize is not None and importlib.util.find_spec(by) is None:
        raise TiltingError(f"quantize {given.quantize} is by {by}, which is not installed: pip install 'tilting[{extra}]'")
    source = find_model(model) if {given.precision_vae, given.look_decoder, given.cache} - {None} else ""
    if given.precision_vae is not None:
        check_vae(kind_of(source), read_json(source, f"vae/{CONFIG}"), given.precision_vae, model)
    if given.look_decoder is not None:
        find_look_decoder(model, given.look_decoder)
    if given.cache is not None and "unet" in read_json(source):
        raise no_cache("unet", model)


OVERFLOWS = re.compile(r"\w*XL\w*|Kolors\w*")
"""Pipelines whose autoencoders overflow in fp16, where the configuration's force_upcast says so, as it says of any."""


def check_vae(kind: str, config: Mapping[str, Any], precision: str, name: str) -> None:
    """Refuse a precision in which the autoencoder of this configuration, in a pipeline of a class, is known to overflow. Raises
    TiltingError."""
    if precision == "fp16" and OVERFLOWS.fullmatch(kind) and config.get("force_upcast", True):
        raise TiltingError(
            f"the autoencoder of {name!r} overflows in fp16, as its force_upcast says: give --precision-vae bf16, or a model "
            "whose autoencoder was mended for it"
        )


def no_cache(what: str, name: str) -> TiltingError:
    """The refusal of a network without blocks to pass over."""
    return TiltingError(f"the {what} of {name!r} has no first-block cache, which transformers have: leave --cache out")
