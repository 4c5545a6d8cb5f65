"""LoRA on the network of a model: W' = W + Σ_i w_i B_i A_i (Hu et al. 2022). peft is imported here and in `adapt` alone.

Targets are the paper's: cross-attention (attn2) and feed-forward layers of the UNet (Clark et al. 2024, A.1). Where image and
text attend jointly (Stable Diffusion 3, FLUX), the one attention stands for both attn1 and attn2. alpha = rank, so that the
scale in every loader is 1; base weights stay in their dtype and frozen, LoRA's are float32. Files are diffusers' own format
(`pipe.load_lora_weights(folder)`). Adapters are kept by name in the network; scales and step windows are context managers.
Those that are on add, in whatever order they came and whichever layers each of them has: what is asked or changed here is asked
of all layers.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tilting.disk import make_folder, write_tensors
from tilting.errors import TiltingError
from tilting.foreign import parse_json, read_metadata, read_tensors
from tilting.lazy import torch
from tilting.models.lora_file import FILE as FILE
from tilting.models.lora_file import PAPER_TARGETS, LoraSpec, lora_file
from tilting.models.lora_targets import check_takes_lora, prefix_of, target_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tilting.types import Denoise, Prediction, Time

METADATA = "lora_adapter_metadata"
"""Where diffusers notes a LoRA's settings in its file."""
TRAINED = "tilting"
"""The name of the adapter that is trained."""
STACKED, TEACHER = "stacked", "teacher"
"""What the names of stacked adapters begin with: those that draw, and those that are distilled."""
DOWN, UP = ".lora.down.weight", ".lora.up.weight"


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
        network: a diffusers UNet or transformer.
        rank: inner dimension (8 in the paper's small runs, 32 in its large ones).
        target_modules: of the transformer blocks: attn2 (cross-attention), ff, attn1.
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
        network.add_adapter(LoraConfig(r=rank, lora_alpha=whole, target_modules=layers), adapter_name=name)
    activate(network, [*before, name])  # peft has switched the others off
    parameters = lora_parameters(network, name)
    for p in parameters:
        p.data = p.data.float()
    return parameters


def lora_parameters(network: nn.Module, name: str = TRAINED) -> list[nn.Parameter]:
    """The parameters of one adapter, in the order of the layers."""
    return [p for key, p in network.named_parameters() if ".lora_" in key and f".{name}." in key]


def lora_state(network: Any, name: str = TRAINED) -> dict[str, Tensor]:
    """The weights of one adapter under diffusers' names, float32 on the CPU, alpha / rank taken into B: whatever reads a file,
    its scale is 1."""
    from peft.utils.save_and_load import get_peft_model_state_dict

    state, prefix, config = get_peft_model_state_dict(network, adapter_name=name), prefix_of(network), network.peft_config[name]
    scale = {True: config.lora_alpha / config.r, False: 1.0}
    whole = {key: value.detach().float() * scale[".lora_B." in key] for key, value in state.items()}
    return {f"{prefix}.{_named(key)}": value.cpu().contiguous() for key, value in whole.items()}


def _named(key: str) -> str:
    """A weight under the name that diffusers gives it in a UNet."""
    return key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")


def _filed(key: str) -> str:
    """A weight under its name in a file: a transformer's are under peft's."""
    return key.replace("lora.down", "lora_A").replace("lora.up", "lora_B") if key.startswith("transformer.") else key


def save_lora(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write weights as a diffusers LoRA folder, atomically."""
    make_folder(folder)
    write_tensors(folder / FILE, {_filed(key): value for key, value in state.items()}, {"format": "pt"})
    return folder / FILE


def read_lora(source: str | Path) -> dict[str, Tensor]:
    """The weights in a LoRA folder or file, by diffusers' names, with alpha / rank taken into B: a file says it in diffusers'
    metadata or beside each layer, and one that does not say means 1. Raises TiltingError for what is not one."""
    path = lora_file(source)
    try:
        state = {_named(key): value.float() for key, value in read_tensors(path, "it").items()}
        said = read_metadata(path, "it").get(METADATA, "{}")
    except TiltingError as error:
        raise TiltingError(f"{str(path)!r} is not a LoRA file: {error}") from error
    downs = [key for key in state if key.endswith(DOWN)]
    if not downs:
        raise TiltingError(f"{str(path)!r} holds no LoRA weights")
    try:
        settings = parse_json(said, "its metadata")
        for down in downs:
            layer = down.removesuffix(DOWN)
            a, b = state[down].shape, state[f"{layer}{UP}"].shape
            if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
                raise ValueError(f"{layer} has no matrices A and B of one rank, but {tuple(a)} and {tuple(b)}")
            alpha = state.pop(f"{layer}.alpha", None)
            state[f"{layer}{UP}"] = state[f"{layer}{UP}"] * _scale(layer, len(state[down]), alpha, settings)
        odd = state.keys() - {key.removesuffix(DOWN) + end for key in downs for end in (DOWN, UP)}
        if odd:
            raise ValueError(f"{min(odd)} is not of a plain LoRA")
    except (ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError, RuntimeError, re.error) as error:
        raise TiltingError(f"{str(path)!r} is a LoRA file whose layers or metadata cannot be read: {error!r}") from error
    return state


def _scale(layer: str, rank: int, alpha: Tensor | None, settings: Mapping[str, Any]) -> float:
    """alpha / rank of a layer, or alpha / sqrt(rank) where the metadata says so (Kalajdzievski 2023)."""
    from peft.utils.other import get_pattern_key

    prefix, _, name = layer.partition(".")
    patterns = settings.get(f"{prefix}.alpha_pattern") or {}
    noted = patterns.get(get_pattern_key(list(patterns), name), settings.get(f"{prefix}.lora_alpha", rank))
    whole = float(noted if alpha is None else alpha)
    return whole / (math.sqrt(rank) if settings.get(f"{prefix}.use_rslora") else rank)


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


def load_lora(network: Any, state: Mapping[str, Tensor], name: str, scale: float = 1.0) -> None:
    """Attach saved weights under a name and make it active beside those that are. Raises TiltingError if they do not fit."""
    from peft import LoraConfig
    from peft.utils.save_and_load import set_peft_model_state_dict

    check_takes_lora(network)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        layer, _, side = key.removeprefix(f"{prefix_of(network)}.").partition(".lora.")
        layers.setdefault(layer, {})[side] = value
    known = dict(network.named_modules())
    missing = [layer for layer in layers if layer not in known]
    if missing:
        raise TiltingError(f"this LoRA is of another model: it has a layer {missing[0]!r} that the model has not")
    ranks = {layer: sides["down.weight"].shape[0] for layer, sides in layers.items()}
    most = max(ranks.values())
    patterns: dict[str, Any] = {"rank_pattern": ranks, "alpha_pattern": ranks}
    config = LoraConfig(r=most, lora_alpha=most, target_modules=list(layers), **patterns)
    before = active(network)
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are several adapters, which is what is meant
        network.add_adapter(config, adapter_name=name)
    letters = {"down.weight": "A", "up.weight": "B"}
    named = [
        (f"{layer}.lora_{letters[side]}.weight", value) for layer, sides in layers.items() for side, value in sides.items()
    ]
    peft_state = dict(named)
    try:
        result = set_peft_model_state_dict(network, peft_state, adapter_name=name)
    except RuntimeError as error:
        remove(network, [name])
        activate(network, list(before))
        raise TiltingError(f"this LoRA does not fit the model: {str(error).splitlines()[-1].strip()}") from error
    if result is not None and result.unexpected_keys:
        remove(network, [name])
        activate(network, list(before))
        raise TiltingError(f"this LoRA does not fit the model: unexpected weight {result.unexpected_keys[0]!r}")
    network.requires_grad_(False)
    activate(network, [*before, name])
    for layer in _tuned(network):
        layer.set_scale(name, scale)


def remove(network: Any, names: Sequence[str]) -> None:
    """Delete these adapters, those of them that are there; the others stay as they are, on or off."""
    held = [name for name in names if name in getattr(network, "peft_config", {})]
    if not held:
        return
    kept, flags = [name for name in active(network) if name not in held], [(p, p.requires_grad) for p in network.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that peft switches on another, which is undone
        network.delete_adapters(held)
    activate(network, kept)
    for p, flag in flags:
        p.requires_grad_(flag)


def _tuned(network: Any) -> list[Any]:
    """peft's layers in a network."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def active(network: Any) -> dict[str, float]:
    """The active adapters and their scales, in the order in which they were made active. A layer has some of them only."""
    order: dict[str, None] = {}
    found: dict[str, float] = {}
    for layer in _tuned(network):
        names = layer.active_adapters if not layer.disable_adapters else []
        scaling, rank, alpha, root = (getattr(layer, name, {}) for name in ("scaling", "r", "lora_alpha", "use_rslora"))
        for n in names:
            order.setdefault(n)
            if n in scaling and n not in found:
                found[n] = float(scaling[n] * (math.sqrt(rank[n]) if root.get(n) else rank[n]) / alpha[n])
    return {n: found[n] for n in order if n in found}


@contextmanager
def lora_off(network: Any) -> Iterator[None]:
    """The base model: every adapter off inside the block."""
    layers = [layer for layer in _tuned(network) if not layer.disable_adapters]
    for layer in layers:
        layer._disable_adapters = True  # their own switch also touches requires_grad, which a training step must not
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def activate(network: Any, names: Sequence[str]) -> None:
    """Make these adapters the active ones, at the scales they have; with none the model is the base model."""
    for layer in _tuned(network):
        layer._active_adapter = list(names)


@contextmanager
def beside(network: Any, name: str) -> Iterator[None]:
    """An adapter on beside those that are, inside the block."""
    with _switched(network, lambda names: [*(n for n in names if n != name), name]):
        yield


@contextmanager
def without(network: Any, names: Sequence[str]) -> Iterator[None]:
    """These adapters off inside the block, and all others as they are."""
    with _switched(network, lambda before: [n for n in before if n not in names]):
        yield


def in_place_of(network: Any, off: Sequence[str], specs: Sequence[LoraSpec]) -> Callable[[], AbstractContextManager[None]]:
    """Stack LoRAs that stay off, and give a block in which they are on, all of them at once, in place of others. Those stacked
    so before are removed. Raises TiltingError, naming the one that does not fit."""
    remove(network, [name for name in getattr(network, "peft_config", {}) if re.fullmatch(TEACHER + r"\d+", name)])
    names = [stack(network, spec, TEACHER) for spec in specs]
    activate(network, [name for name in active(network) if name not in names])

    def block() -> AbstractContextManager[None]:
        return _switched(network, lambda before: [*(n for n in before if n not in off), *names])

    return block


@contextmanager
def _switched(network: Any, change: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """Other adapters active inside the block: what ``change`` makes of those that are."""
    layers = _tuned(network)
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = change(list(layer.active_adapters))
    try:
        yield
    finally:
        for layer, active_before in zip(layers, before, strict=True):
            layer._active_adapter = active_before


@contextmanager
def scaled(network: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """Other scales for named adapters inside the block; 0 is the base model."""
    unset = set(scales) - set(active(network))
    if unset:
        raise TiltingError(f"there is no active LoRA {sorted(unset)[0]!r}")
    layers = _tuned(network)
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        for name, scale in scales.items():
            layer.set_scale(name, scale)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update({name: scale for name, scale in scaling.items() if name in layer.scaling})


class Windowed:
    """A model whose LoRAs are on only in some steps of a grid (Clark et al. 2024, Figs 10, 24-27); all else is the model's own.
    A control that is attached to it is on in all of them.

    Args:
        model: with LoRAs attached.
        steps: of the grid.
        first, last: the LoRAs are on in the steps first <= i < last.
        names: of the adapters; default those that are active now.
    """

    def __init__(self, model: Any, steps: int, first: int = 0, last: int | None = None, names: Sequence[str] | None = None):
        grid = list(model.schedule.grid(steps))
        self._model, self._on = model, {t.t for t in grid[first : steps if last is None else last]}
        self._names = tuple(active(model.backbone) if names is None else names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def _at(self, t: Time) -> AbstractContextManager[None]:
        return nullcontext() if t.t in self._on else without(self._model.backbone, self._names)

    def network(self, x: Tensor, t: Time, context: Any) -> Tensor:
        """See `Adapter.network`: what controls ask."""
        with self._at(t):
            return self._model.network(x, t, context)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        """See `Adapter.denoiser`."""
        denoise = self._model.denoiser(prompts, cfg, negative)

        def inside(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with self._at(t):
                return denoise(x, t, rows)

        return inside


def stack(network: Any, spec: LoraSpec, kind: str = STACKED) -> str:
    """Put a LoRA beside those stacked before; the name of its adapter. Raises TiltingError, naming it, if it does not fit."""
    held = getattr(network, "peft_config", {})
    name = next(name for i in range(len(held) + 1) if (name := f"{kind}{i}") not in held)
    try:
        load_lora(network, read_lora(spec.file), name, spec.scale)
    except TiltingError as error:
        raise TiltingError(f"{spec.text!r}: {error}") from error
    return name
