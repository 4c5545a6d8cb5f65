"""Weights of a LoRA: read in any naming, written in diffusers' format (`pipe.load_lora_weights(folder)`) or others, and mixed.

A state maps the canonical names of `tilting.models.lora_names` to tensors, alpha / rank taken into B: its scale is 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.disk import make_folder, write_atomically, write_tensors
from tilting.errors import TiltingError
from tilting.foreign import parse_json, read_json, read_metadata, read_tensors
from tilting.lazy import torch
from tilting.models.lora import fits, parts
from tilting.models.lora_file import ADAPTER_CONFIG, ADAPTER_FILE, FILE, KOHYA_FILE, LoraForm, lora_file
from tilting.models.lora_names import DOWN, TEXT, UP, canonical, check_format, is_original, kohya_names, of_pipeline

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "lora_adapter_metadata"
"""Where diffusers notes a LoRA's settings in its file."""
FAILS = (ValueError, TypeError, AttributeError, KeyError, IndexError, ZeroDivisionError, RuntimeError, re.error)
"""What reading the names of a file that is broken, or of another model, ends in."""


def save_lora(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write weights as a diffusers LoRA folder, atomically. All layers of a component get one rank, the missing ones of it 0:
    some readers take a layer of another rank at another scale."""
    make_folder(folder)
    write_tensors(folder / FILE, {_filed(key): value for key, value in padded(state).items()}, {"format": "pt"})
    return folder / FILE


def export_lora(state: Mapping[str, Tensor], folder: Path, form: LoraForm) -> Path:
    """Write weights as other programs read them, atomically, of one rank.

    Args:
        state: by canonical names.
        folder: to write.
        form: diffusers (`save_lora`), which ComfyUI reads of a transformer too, but of a UNet its feed-forward layers alone;
            kohya, which A1111 and ComfyUI read; peft, an adapter of one network.

    Raises:
        TiltingError: for what a format cannot hold.
    """
    if form == "diffusers":
        return save_lora(state, folder)
    components, state = dict.fromkeys(map(_component, state)), padded(state)
    if form == "kohya" and "transformer" in components:
        raise TiltingError("kohya's names are of UNets: give --format diffusers, which ComfyUI reads of a transformer too")
    if form == "peft" and len(components) > 1:
        raise TiltingError(f"an adapter of peft is of one network, and this LoRA changes {' and '.join(components)}")
    make_folder(folder)
    if form == "kohya":
        two = "text_encoder_2" in components
        write_tensors(folder / KOHYA_FILE, dict(kohya_names(state, two)), {"format": "pt"})
        return folder / KOHYA_FILE
    from peft import LoraConfig

    ends = {DOWN: ".lora_A.weight", UP: ".lora_B.weight"}
    layers = {key: key.partition(".")[2].removesuffix(end) for key in state for end in ends if key.endswith(end)}
    rank = rank_of(state)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(set(layers.values()))).to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    named = {f"base_model.model.{layers[key]}{ends[DOWN if key.endswith(DOWN) else UP]}": v for key, v in state.items()}
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(plain, indent=1).encode())
    write_tensors(folder / ADAPTER_FILE, named, {"format": "pt"})
    return folder / ADAPTER_FILE


def _filed(key: str) -> str:
    """A weight under its name in a file: a transformer's are under peft's, a text encoder's under those of its own."""
    if key.startswith("transformer."):
        return key.replace("lora.down", "lora_A").replace("lora.up", "lora_B")
    return key.replace(".lora.", ".lora_linear_layer.") if key.startswith(TEXT) else key


def padded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, of one rank in each component: B A is what it was."""
    ranks: dict[str, int] = {}
    for key, value in state.items():
        if key.endswith(DOWN):
            ranks[_component(key)] = max(ranks.get(_component(key), 0), len(value))

    def wide(key: str, value: Tensor) -> Tensor:
        side = 0 if key.endswith(DOWN) else 1
        missing = ranks[_component(key)] - value.shape[side]
        shape = [missing if i == side else size for i, size in enumerate(value.shape)]
        return torch.cat([value, value.new_zeros(shape)], side) if missing else value

    return {key: wide(key, value) for key, value in state.items()}


def _component(key: str) -> str:
    return key.partition(".")[0]


def read_lora(source: str | Path, model: Any = None) -> dict[str, Tensor]:
    """The weights in a LoRA folder or file of any naming (`tilting.models.lora_names`), alpha / rank taken into B: a file says
    it in its metadata, in an adapter's config or beside each layer, and one that does not say means 1.

    Args:
        source: a folder or a file.
        model: what it is for, or its network; files in the names of a model's original code are read by its pipeline.

    Raises:
        TiltingError: for what is none, or is of a format that is not read, naming it.
    """
    path = lora_file(source)
    try:
        held = read_tensors(path, "it")
        said = read_metadata(path, "it").get(METADATA, "{}")
    except TiltingError as error:
        raise TiltingError(f"{str(path)!r} is not a LoRA file: {error}") from error
    try:
        config = path.with_name(ADAPTER_CONFIG)
        adapter = path.name == ADAPTER_FILE and config.is_file()
        settings = read_json(config) if adapter else parse_json(said, "its metadata")
        state = _named_for(model, held, settings)
    except TiltingError as error:
        raise TiltingError(f"{str(path)!r} cannot be read as a LoRA: {error}") from error
    except FAILS as error:
        raise TiltingError(f"{str(path)!r} is a LoRA file whose layers or metadata cannot be read: {error!r}") from error
    if not state:
        raise TiltingError(f"{str(path)!r} holds no LoRA weights")
    return state


def _named_for(model: Any, held: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a file by canonical names; where these are none of the model's, as its pipeline reads them."""
    check_format(held)
    per_block = getattr(getattr(getattr(model, "backbone", model), "config", None), "layers_per_block", 2)
    kind, state = type(getattr(model, "pipe", None)), {}
    own = hasattr(kind, "lora_state_dict") and "transformer" in parts(model)
    try:
        state = canonical(held, settings, per_block if isinstance(per_block, int) else 2)
    except FAILS as error:
        if model is None and isinstance(error, TiltingError):
            raise TiltingError(f"{error}, unless it is told of what model it is, by --model") from error
        if not own:
            raise
    if model is None and is_original(state):
        raise TiltingError("it is in the names of a model's original code: say of what model it is, by --model")
    if not own or (state and fits(model, state)):
        return state
    if any(key.startswith("lora_") for key in held):  # whose dots were guessed by the layers of a UNet
        state = {}
    try:
        found = of_pipeline(held, settings, kind)
    except FAILS:
        if not state:
            raise
        return state
    return found if not state or fits(model, found) else state


def rank_of(state: Mapping[str, Tensor]) -> int:
    """The largest rank in a LoRA."""
    return max(value.shape[0] for key, value in state.items() if key.endswith("lora.down.weight"))


def mix(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """One LoRA that is Σ w_i B_i A_i: ranks are concatenated, since A and B must never be averaged apart."""
    out: dict[str, Tensor] = {}
    downs = dict.fromkeys(key for state in states for key in state if key.endswith("lora.down.weight"))
    for down in downs:
        up = down.replace("lora.down", "lora.up")
        present = [(state, w) for state, w in zip(states, weights, strict=True) if down in state]
        out[down] = torch.cat([state[down] for state, _ in present])
        out[up] = torch.cat([w * state[up] for state, w in present], 1)
    return out
