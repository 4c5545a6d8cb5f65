"""Layer names of LoRA files, normalised by diffusers' own converters.

    COMPONENT.LAYER.lora.down.weight, .up.weight    a module's name in unet, transformer, text_encoder, text_encoder_2
                                                    (of CLIP with "text_model.", whatever transformers calls it today)

    kohya, A1111       lora_unet_..., lora_te_..., lora_te1_..., lora_te2_..., also of Stability's own UNet and of FLUX's blocks
    ComfyUI            diffusion_model. before any of these
    PEFT               base_model.model. before, and the adapter's name (default_0) inside
    diffusers          unet., transformer., text_encoder.; older: attn.processor.to_q_lora, lora_linear_layer, and no component
    a pipeline's own   what `lora_state_dict` of its class converts: Wan's, Qwen-Image's, Z-Image's, FLUX.2's, ... original code

alpha / rank is taken into B: what is read has the scale 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = ".lora.down.weight", ".lora.up.weight"
TEXT = "text_encoder"
CLIP = "text_model."
"""What the layers of a CLIP text encoder begin with in files; newer transformers have left it out of the module."""
COMPONENTS = ("unet", "transformer", TEXT, "text_encoder_2")
ENDS = {
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    DOWN: DOWN,
    UP: UP,
}
"""Ends of a weight's name, and ours."""
OTHERS = {
    "lokr_": "a LoKr of LyCORIS",
    "hada_": "a LoHa of LyCORIS",
    "oft_": "an OFT",
    "ia3_": "an IA3",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "lora_mid": "a LoCon of LyCORIS with a core",
    ".diff$": "a difference of whole weights",
    ".diff_b$": "a difference of whole weights",
    ".lora_B.bias": "a LoRA with biases",
    "lora_te3_": "a LoRA of a T5 text encoder",
    "text_encoders.t5xxl": "a LoRA of a T5 text encoder",
    "text_encoder_3.": "a LoRA of a T5 text encoder",
    "query_norm.scale": "a control LoRA of FLUX",
    "joint_blocks": "a LoRA of Stable Diffusion 3 in the names of Stability's own code",
}
"""Formats that are not read, by what stands in their weights' names, or with a $ at their end."""
ADAPTER = re.compile(r"(\.lora_[AB])\.[^.]+\.weight$")
FLUX = re.compile(r"(^|[._])(double|single)_blocks[._]")
STABILITY = re.compile(r"(^|[._])(input_blocks|middle_block|output_blocks)[._]")
OF_UNET = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\.")
ORIGINAL = re.compile(r"((self_attn|cross_attn)\.[qkvo]|(?<!to_)qkv|ffn\.\d+)$")
"""The ends of layers that original code has, and no transformer of diffusers."""
OF_CLIP = re.compile(rf"({re.escape(CLIP)})?(encoder\.layers|text_projection)")


def check_format(state: Mapping[str, Tensor]) -> None:
    """Refuse a format that is not read, naming it. Raises TiltingError."""
    for part, what in OTHERS.items():
        if any(key.endswith(part[:-1]) if part.endswith("$") else part in key for key in state):
            raise TiltingError(f"it is {what}: what is read are plain LoRAs, a down, an up and an alpha for each layer")


def canonical(state: Mapping[str, Tensor], settings: Mapping[str, Any], layers_per_block: int = 2) -> dict[str, Tensor]:
    """The weights of a LoRA by their canonical names, alpha / rank taken into B.

    Args:
        state: as a file has it.
        settings: of its metadata: COMPONENT.lora_alpha, .r, .alpha_pattern, .use_rslora; or of an adapter, without component.
        layers_per_block: of the UNet, for names in Stability's numbering; 2 in all of theirs.

    Raises:
        TiltingError: for layers that no converter knows.
        ValueError, KeyError and the like: for a file that is broken.
    """
    state = {ADAPTER.sub(r"\1.weight", key): value for key, value in state.items()}
    state = {key.removeprefix("base_model.model.").replace(".base_model.model.", "."): v for key, v in state.items()}
    if any(FLUX.search(key) for key in state):
        state = _flux(state)
    elif any(key.startswith("lora_") or STABILITY.search(key) for key in state):
        state = _kohya(state, layers_per_block)
    return _whole(_named(state), settings)


def of_pipeline(state: Mapping[str, Tensor], settings: Mapping[str, Any], kind: type) -> dict[str, Tensor]:
    """The same of a file in the names of a model's original code, which its pipeline converts.

    Args:
        state, settings: see `canonical`.
        kind: the pipeline's class, whose `lora_state_dict` reads them.

    Raises:
        TiltingError: for weights that it fails at, or leaves out, which it does in silence.
        ValueError and the like: for a file that is broken.
    """
    read: Any = kind.lora_state_dict  # type: ignore[attr-defined]
    state = {ADAPTER.sub(r"\1.weight", key): value for key, value in state.items()}
    downs = [end for end, side in ENDS.items() if side == DOWN]
    ranks = {f"{key.removesuffix(end)}.alpha": len(v) for key, v in state.items() for end in downs if key.endswith(end)}
    numbers = {key: float(i) for i, key in enumerate(state, 1) if not key.endswith(".alpha")}
    marked = {key: torch.full(v.shape, numbers.get(key, float(ranks.get(key, 1)))) for key, v in state.items()}
    try:  # at an alpha of the rank a converter only moves numbers: where each of these comes out, nothing was left out
        there = {number for value in read(marked).values() for number in value.unique().tolist()}
    except (ValueError, KeyError, IndexError) as error:
        raise TiltingError(f"it is no LoRA that diffusers has names for in a {kind.__name__}: {error}") from error
    lost = next((key for key, number in numbers.items() if number not in there), None)
    if lost is not None:
        raise TiltingError(f"it has a weight {lost!r}, which diffusers has no name for in a {kind.__name__}")
    return _whole(_named(read(dict(state))), settings)


def is_original(state: Mapping[str, Tensor]) -> bool:
    """Whether weights by canonical names are yet in those of a model's original code: its pipeline alone can convert them."""
    layers = [key.removesuffix(DOWN).partition(".") for key in state if key.endswith(DOWN)]
    unet = [layer for component, _, layer in layers if component == "unet"]
    others = [layer for component, _, layer in layers if component == "transformer"]
    return (bool(unet) and not any(map(OF_UNET.match, unet))) or any(map(ORIGINAL.search, others))


def _kohya_name(key: str) -> str:
    """A weight of any naming with Stability's or FLUX's blocks under kohya's name."""
    for end, ours in ENDS.items():
        if key.endswith(end):
            layer, end = key.removesuffix(end), {DOWN: ".lora_down.weight", UP: ".lora_up.weight"}[ours]
            break
    else:
        layer, dot, end = key.rpartition(".")
        end = dot + end
    layer = re.sub(r"^(diffusion_model|model\.diffusion_model|transformer|unet)\.", "lora_unet_", layer)
    layer = re.sub(r"^(text_encoders\.clip_l\.transformer|text_encoder)\.", "lora_te1_", layer)
    layer = layer if layer.startswith("lora_") else f"lora_unet_{layer}"
    return layer.replace(".", "_") + end


def kohya_names(state: Mapping[str, Tensor], two: bool) -> Iterator[tuple[str, Tensor]]:
    """The weights of a UNet's LoRA under kohya's names, with an alpha that is the rank.

    Args:
        state: by canonical names.
        two: there are two text encoders, whose names are numbered then.
    """
    begins = {"unet": "lora_unet_", TEXT: "lora_te1_" if two else "lora_te_", "text_encoder_2": "lora_te2_"}
    for key, value in state.items():
        component, _, rest = key.partition(".")
        layer, _, side = rest.partition(".lora.")
        name = begins[component] + layer.replace(".", "_")
        yield f"{name}.lora_{side}", value
        if side == "down.weight":
            yield f"{name}.alpha", torch.tensor(float(len(value)))


def _flux(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """FLUX's own blocks, as diffusers converts them; layer by layer, since it leaves out in silence what it does not know."""
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = _kohya_name(key)
        layers.setdefault(name.partition(".")[0], {})[name] = value
    found: dict[str, Tensor] = {}
    for layer, weights in layers.items():
        made = FluxLoraLoaderMixin.lora_state_dict(dict(weights))
        if not made:
            raise TiltingError(f"it has a layer {layer!r}, which diffusers has no name for")
        found |= made
    return found


def _kohya(state: Mapping[str, Tensor], layers_per_block: int) -> dict[str, Tensor]:
    """kohya's names of a UNet and of CLIPs, as diffusers converts them, each alpha beside its layer."""
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    named = {_kohya_name(key): value for key, value in state.items()}
    odd = next((k for k in named if not re.match(r"lora_(unet|te|te1|te2)_", k)), None)
    if odd is not None:
        raise TiltingError(f"it has a weight {odd!r}, which diffusers has no name for")
    try:
        read: Any = StableDiffusionXLLoraLoaderMixin.lora_state_dict
        found, alphas = read(named, unet_config=SimpleNamespace(layers_per_block=layers_per_block))
    except ValueError as error:  # that keys are left
        raise TiltingError(f"it is no LoRA that diffusers has names for: {str(error).split(', ')[0].strip()}") from error
    beside = {f"{key.split('.lora.')[0]}.alpha": key for key in found if ".down." in key}
    return found | {
        _weight(beside[name]).removesuffix(DOWN) + ".alpha": torch.as_tensor(alpha) for name, alpha in (alphas or {}).items()
    }


def _weight(key: str) -> str:
    """A weight's name with our end, the names of attention's old processors made its layers'."""
    from diffusers.utils.state_dict_utils import UNET_TO_DIFFUSERS, convert_state_dict

    key = key.replace(".processor.", ".")
    if ".self_attn.to_" in key:  # of CLIP, in the names of a UNet's attention
        key = re.sub(r"\.to_(q|k|v|out)_lora\.", r".\1_proj.lora.", key)
    (key,) = convert_state_dict({key: None}, UNET_TO_DIFFUSERS)
    for end, ours in ENDS.items():
        if key.endswith(end):
            return key.removesuffix(end) + ours
    return key


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by component, layer and side, and alphas beside them."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _weight(key.removeprefix("diffusion_model."))
        component = next((one for one in COMPONENTS if name.startswith(f"{one}.")), None)
        if component is None:
            component = "unet" if OF_UNET.match(name) else TEXT if OF_CLIP.match(name) else "transformer"
            name = f"{component}.{name}"
        layer = name.removeprefix(f"{component}.")
        if component.startswith(TEXT) and OF_CLIP.match(layer) and not layer.startswith((CLIP, "text_projection")):
            name = f"{component}.{CLIP}{layer}"
        found[name] = value
    return found


def _whole(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """A and B of each layer, alpha / rank taken into B."""
    downs = [key for key in state if key.endswith(DOWN)]
    found = {key: value.float() for key, value in state.items() if key.endswith((DOWN, UP))}
    for down in downs:
        layer = down.removesuffix(DOWN)
        alpha, up = state.get(f"{layer}.alpha"), state[f"{layer}{UP}"]
        a, b = state[down].shape, up.shape
        if len(a) not in (2, 4) or len(a) != len(b) or a[0] != b[1]:
            raise ValueError(f"{layer} has no matrices A and B of one rank, but {tuple(a)} and {tuple(b)}")
        found[f"{layer}{UP}"] = up.float() * _scale(layer, len(state[down]), alpha, settings)
    odd = state.keys() - {key.removesuffix(DOWN) + end for key in downs for end in (DOWN, UP, ".alpha")}
    if odd and downs:
        raise ValueError(f"{min(odd)} is not of a plain LoRA")
    return found if downs else {}


def _scale(layer: str, rank: int, alpha: Tensor | None, settings: Mapping[str, Any]) -> float:
    """alpha / rank of a layer, or alpha / sqrt(rank) where the metadata says so (Kalajdzievski 2023)."""
    from peft.utils.other import get_pattern_key

    prefix, _, name = layer.partition(".")

    def said(key: str, other: Any = None) -> Any:
        return settings.get(f"{prefix}.{key}", settings.get(key, other))

    patterns = said("alpha_pattern") or {}
    noted = patterns.get(get_pattern_key(list(patterns), name), said("lora_alpha", rank))
    whole = float(noted if alpha is None else alpha)
    return whole / (math.sqrt(rank) if said("use_rslora") else rank)
