"""LoRA on a model's network: W' = W + Σ_i w_i B_i A_i (Hu et al. 2022). Only this module and `adapt` import peft.

Targets are the paper's: cross-attention (attn2) and feed-forward layers of the UNet (Clark et al. 2024, A.1). Where image and
text attend jointly (Stable Diffusion 3, FLUX), the one attention stands for both attn1 and attn2. alpha = rank, so that the
scale in every loader is 1; base weights stay in their dtype and frozen, LoRA's are float32. Adapters are kept by name in the
network; scales and switches are context managers. Those that are on add, in whatever order they came and whichever layers each
of them has: what is asked or changed here is asked of all layers. `lora_weights` reads and writes them, `lora_stack` stacks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.lora_file import FILE as FILE
from tilting.models.lora_file import PAPER_TARGETS
from tilting.models.lora_names import CLIP, DOWN, UP
from tilting.models.lora_targets import check_takes_lora, is_clip, prefix_of, target_names

if TYPE_CHECKING:
    from torch import Tensor, nn


TRAINED = "tilting"
"""The name of the adapter that is trained."""


def add_lora(
    network: Any,
    rank: int = 8,
    target_modules: Sequence[str] = PAPER_TARGETS,
    name: str = TRAINED,
    seed: int = 0,
    alpha: float | None = None,
) -> list[nn.Parameter]:
    """Attach a fresh LoRA, which changes nothing yet (B = 0), beside those that are active, and return its parameters, the only
    trainable ones.

    Args:
        network: a diffusers UNet or transformer, or a CLIP text encoder.
        rank: inner dimension (8 in the paper's small runs, 32 in its large ones).
        target_modules: of the transformer blocks: attn2 (cross-attention), ff, attn1; of a text encoder its attention, always.
        name: of the adapter.
        seed: of A's initialisation.
        alpha: what it adds is multiplied by alpha / rank; default the rank.
    """
    from peft import LoraConfig

    if rank < 1:
        raise TiltingError(f"the rank of a LoRA must be at least 1, not {rank}")
    check_takes_lora(network)
    before = active(network)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():  # drawn alike for every device
        warnings.simplefilter("ignore", UserWarning)  # that there are several adapters, which is what is meant
        torch.manual_seed(seed)
        layers, whole = target_names(network, target_modules), cast(int, alpha or rank)
        _inject(network, LoraConfig(r=rank, lora_alpha=whole, target_modules=layers), name)
    activate(network, [*before, name])  # peft has switched the others off
    parameters = lora_parameters(network, name)
    for p in parameters:
        p.data = p.data.float()
    return parameters


def _inject(network: Any, config: Any, name: str) -> None:
    """Put an adapter into a network."""
    from peft import inject_adapter_in_model

    if is_clip(network):
        inject_adapter_in_model(config, network, name)
    else:
        network.add_adapter(config, adapter_name=name)


def parts(target: Any) -> dict[str, Any]:
    """The networks that a LoRA can change, by the component that files call each: a model's, or one network itself."""
    if hasattr(target, "tunable"):
        return target.tunable()
    network = getattr(target, "backbone", target)
    return {prefix_of(network): network}


def lora_parameters(network: nn.Module, name: str = TRAINED) -> list[nn.Parameter]:
    """The parameters of one adapter, in the order of the layers."""
    return [p for key, p in network.named_parameters() if ".lora_" in key and f".{name}." in key]


def lora_state(target: Any, name: str = TRAINED) -> dict[str, Tensor]:
    """The weights of one adapter of a network, or of a model with its text encoders, by their canonical names, float32 on the
    CPU, alpha / rank taken into B: whatever reads a file, its scale is 1."""
    found = {}
    for component, network in parts(target).items():
        config = getattr(network, "peft_config", {}).get(name)
        if config is None:
            continue
        clip = CLIP if is_clip(network) and not hasattr(network, "text_model") else ""
        for layer, module in network.named_modules():
            if name in getattr(module, "lora_A", {}):
                for end, side, scale in ((DOWN, module.lora_A, 1.0), (UP, module.lora_B, config.lora_alpha / config.r)):
                    value = side[name].weight.detach().float() * scale
                    found[f"{component}.{clip}{layer}{end}"] = value.cpu().contiguous()
    return found


def load_lora(target: Any, state: Mapping[str, Tensor], name: str, scale: float = 1.0) -> None:
    """Attach saved weights to a network, or to a model with its text encoders, under a name, and make it active beside those
    that are. Raises TiltingError if they do not fit."""
    held, layers = parts(target), _layers(state)
    modules = {component: _modules(held.get(component), names) for component, names in layers.items()}
    for component in layers:
        check_takes_lora(held[component])
    before = active(target)
    try:
        for component, of in layers.items():
            _attach(held[component], {modules[component][layer]: sides for layer, sides in of.items()}, name)
    except (RuntimeError, TiltingError) as error:
        remove(target, [name])
        activate(target, list(before))
        raise TiltingError(f"this LoRA does not fit the model: {str(error).splitlines()[-1].strip()}") from error
    for network in held.values():
        network.requires_grad_(False)
    if hasattr(target, "forget"):
        target.forget()  # what was encoded by another adapter of this name
    activate(target, [*before, name])
    for layer in _tuned(target):
        layer.set_scale(name, scale)


def fits(target: Any, state: Mapping[str, Tensor]) -> bool:
    """Whether a model has all layers of these weights."""
    held = parts(target)
    try:
        return all(_modules(held.get(component), names) for component, names in _layers(state).items())
    except TiltingError:
        return False


def _layers(state: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Weights by component, layer and side."""
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, value in state.items():
        component, _, rest = key.partition(".")
        layer, _, side = rest.partition(".lora.")
        layers.setdefault(component, {}).setdefault(layer, {})[side] = value
    return layers


def _modules(network: Any, layers: Mapping[str, Any]) -> dict[str, str]:
    """What a network calls these layers. Raises TiltingError for one that it has not."""
    known = set() if network is None else {name for name, _ in network.named_modules()}
    found = {layer: next((n for n in (layer, layer.removeprefix(CLIP)) if n in known), None) for layer in layers}
    missing = next((layer for layer, name in found.items() if name is None), None)
    if missing is not None:
        raise TiltingError(f"this LoRA is of another model: it has a layer {missing!r} that the model has not")
    return {layer: name for layer, name in found.items() if name is not None}


def _attach(network: Any, layers: Mapping[str, Mapping[str, Tensor]], name: str) -> None:
    """Put weights into a network. Raises RuntimeError or TiltingError if they do not fit."""
    from peft import LoraConfig

    ranks = {layer: len(sides["down.weight"]) for layer, sides in layers.items()}
    most = max(ranks.values())
    patterns: dict[str, Any] = {"rank_pattern": ranks, "alpha_pattern": ranks}
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are several adapters, which is what is meant
        _inject(network, LoraConfig(r=most, lora_alpha=most, target_modules=list(layers), **patterns), name)
    for layer, sides in layers.items():
        module = network.get_submodule(layer)
        for side, held in (("down.weight", module.lora_A), ("up.weight", module.lora_B)):
            if sides[side].shape != held[name].weight.shape:
                shapes = f"{tuple(sides[side].shape)}, not {tuple(held[name].weight.shape)}"
                raise TiltingError(f"its {side.partition('.')[0]} of {layer} is {shapes}")
            held[name].weight.data.copy_(sides[side])


def remove(target: Any, names: Sequence[str]) -> None:
    """Delete these adapters, those of them that are there; the others stay as they are, on or off."""
    kept = [name for name in active(target) if name not in names]
    for network in parts(target).values():
        held = [name for name in names if name in getattr(network, "peft_config", {})]
        if not held:
            continue
        flags = [(p, p.requires_grad) for p in network.parameters()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that peft switches on another, which is undone
            for name in held:
                for layer in _tuned(network):
                    layer.delete_adapter(name)
                del network.peft_config[name]
        for p, flag in flags:
            p.requires_grad_(flag)
    activate(target, kept)


def adapters(target: Any) -> set[str]:
    """The names of all adapters, on or off."""
    return {name for network in parts(target).values() for name in getattr(network, "peft_config", {})}


def _tuned(target: Any) -> list[Any]:
    """peft's layers in a network, or in all that LoRAs change of a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [one for network in parts(target).values() for one in network.modules() if isinstance(one, BaseTunerLayer)]


def tells(target: Any, names: Sequence[str] | None = None) -> bool:
    """Whether any of these adapters (default: any) changes a text encoder, and so what is told of a prompt."""
    held = {name for one in parts(target).values() if is_clip(one) for name in getattr(one, "peft_config", {})}
    return bool(held if names is None else held & set(names))


def active(target: Any) -> dict[str, float]:
    """The active adapters and their scales, in the order in which they were made active. A layer has some of them only."""
    order: dict[str, None] = {}
    found: dict[str, float] = {}
    for layer in _tuned(target):
        names = layer.active_adapters if not layer.disable_adapters else []
        scaling, rank, alpha, root = (getattr(layer, name, {}) for name in ("scaling", "r", "lora_alpha", "use_rslora"))
        for n in names:
            order.setdefault(n)
            if n in scaling and n not in found:
                found[n] = float(scaling[n] * (math.sqrt(rank[n]) if root.get(n) else rank[n]) / alpha[n])
    return {n: found[n] for n in order if n in found}


def activate(target: Any, names: Sequence[str]) -> None:
    """Make these adapters the active ones, at the scales they have; with none the model is the base model."""
    for layer in _tuned(target):
        layer._active_adapter = list(names)


def beside(target: Any, name: str) -> AbstractContextManager[None]:
    """An adapter on beside those that are, inside the block."""
    return switched(target, lambda names: [*(n for n in names if n != name), name])


def without(target: Any, names: Sequence[str]) -> AbstractContextManager[None]:
    """These adapters off inside the block, and all others as they are."""
    return switched(target, lambda before: [n for n in before if n not in names])


@contextmanager
def switched(target: Any, change: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """Other adapters active inside the block: what ``change`` makes of those that are."""
    layers = _tuned(target)
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = change(list(layer.active_adapters))
    try:
        yield
    finally:
        for layer, active_before in zip(layers, before, strict=True):
            layer._active_adapter = active_before
