"""Which layers of a network a LoRA changes, and their names in files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.models.families import INDEX, read_json
from tilting.models.lora_file import PAPER_TARGETS
from tilting.models.names import find_model

if TYPE_CHECKING:
    from torch import nn

QKV = r"(to_q|to_k|to_v|to_out\.0)"
JOINT = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
OF_CLIP = r"self_attn\.(q_proj|k_proj|v_proj|out_proj)"
TARGETS = {
    "attn2": rf"(attn2\.{QKV}|{JOINT})",
    "attn1": rf"(attn1\.{QKV}|{JOINT})",
    "ff": r"(ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.(proj_mlp|proj_out))",
}
"""Ends of the names of layers, by the module of a transformer block they stand in; FLUX's single blocks have theirs bare."""
ATTENTION, FORWARD = r"(.*\.)?\w*att(n|ention)\w*\..*", r"(.*\.)?(\w+_)?(ffn?|feed_forward|mlp)(_\w+)?\..*"
"""Patterns for networks with other layer names: layers inside an attention, or a feed-forward part."""


def target_names(network: nn.Module, target_modules: Sequence[str] = PAPER_TARGETS) -> list[str]:
    """Full names of the linear layers in these modules of the transformer blocks; of a text encoder in its attention. Where a
    network has none by these names, or one of its stacks of blocks has none (FLUX.2's single blocks), the linear layers in its
    attention stand for attn1 and attn2, and those of what it calls ffn, feed_forward or mlp for ff."""
    names = [name for name, _ in network.named_modules()]
    if is_clip(network):
        return [name for name in names if re.fullmatch(rf"(.*\.)?{OF_CLIP}", name)]
    linear = [name for name, part in network.named_modules() if hasattr(part, "in_features")]
    found: set[str] = set()
    for module in target_modules:
        known = TARGETS["ff"] if module == "ff" else f"({TARGETS['attn1']}|{TARGETS['attn2']})"
        able = FORWARD if module == "ff" else ATTENTION
        own = [name for name in names if re.fullmatch(rf"(.*\.)?{TARGETS[module]}", name)]
        named = {stack_of(name) for name in names if re.fullmatch(rf"(.*\.)?{known}", name)} if own else set()
        others = [name for name in linear if re.fullmatch(able, name) and (stack_of(name) or not own)]
        others = [name for name in others if stack_of(name) not in named]
        found.update(own)
        found.update(name for name in others if module != "ff" or not re.fullmatch(ATTENTION, name))
    return [name for name in names if name in found]


def stack_of(layer: str) -> str:
    """The list of blocks that a layer is of, such as "single_transformer_blocks"; "" outside of any."""
    return layer[: place.start()] if (place := re.search(r"\.\d+(\.|$)", layer)) else ""


def is_clip(network: Any) -> bool:
    """Whether a network is a CLIP text encoder."""
    return type(network).__name__.startswith("CLIPText")


def prefix_of(network: nn.Module) -> str:
    """What the names of a network's layers begin with in a file."""
    return "transformer" if "Transformer" in type(network).__name__ else "unet"


def check_takes_lora(network: nn.Module) -> None:
    """Refuse a network that diffusers has no LoRA files for. Raises TiltingError."""
    if not is_clip(network):
        check_class_takes_lora(type(network))


def check_class_takes_lora(network: type) -> None:
    """The same by its class, of which no weight has been read. Raises TiltingError."""
    if not hasattr(network, "add_adapter"):
        raise TiltingError(f"diffusers has no LoRA files for a {network.__name__}, so none can be trained or loaded")


def check_lora(name: str) -> None:
    """The same of a model by its index, before a weight is read. Raises TiltingError."""
    import diffusers

    source = find_model(name)
    if Path(source).is_dir() and not (Path(source) / INDEX).is_file():
        return  # a network alone, or a model of another package
    index = read_json(source)
    for library, kind in (index[part] for part in ("unet", "transformer") if isinstance(index.get(part), list)):
        network = getattr(diffusers, str(kind), None) if library == "diffusers" else None
        if isinstance(network, type):
            check_class_takes_lora(network)


def target_modules_of(layers: Iterable[str]) -> list[str]:
    """Which modules these layers stand in, and which text encoders."""
    names = list(layers)
    found = [module for module, ends in TARGETS.items() if any(re.fullmatch(rf"(.*\.)?{ends}", name) for name in names)]
    return found + list(dict.fromkeys(name.partition(".")[0] for name in names if name.startswith("text_encoder")))
