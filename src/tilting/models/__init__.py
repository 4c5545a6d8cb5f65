"""Models: what draws. `load` gives one by name, folder or hub id; importing this room imports neither torch nor diffusers.

A file for each family over one `adapter`; `families` says what is declared of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In the order in which they are listed.
# isort: off
from tilting.models.stable_diffusion import StableDiffusion as StableDiffusion
from tilting.models.stable_diffusion_xl import StableDiffusionXL as StableDiffusionXL
from tilting.models.stable_diffusion_3 import StableDiffusion3 as StableDiffusion3
from tilting.models.flux import Flux as Flux
from tilting.models.pixart import PixArtSigma as PixArtSigma

# isort: on
from tilting.models.families import FAMILIES as FAMILIES
from tilting.models.families import family_of
from tilting.models.lora_file import parse_lora
from tilting.models.lora_stack import attach_all
from tilting.models.names import MODELS as MODELS
from tilting.models.names import defaults as defaults
from tilting.models.names import find_model as find_model
from tilting.models.placement import ELSEWHERE, device_of, dtype_of

if TYPE_CHECKING:
    import torch


def load(
    name: str | Path = "pocket",
    device: str | torch.device = "auto",
    precision: str | torch.dtype = "fp32",
    checkpointing: bool = False,
    lora: str | Path | Sequence[str | Path] = (),
) -> Any:
    """Load a model: "pocket", a diffusers folder, or a hub id.

    Args:
        name: of the model.
        device: "auto", CUDA where there is one, else MPS, else the CPU; or "cpu", "cuda", "cuda:1", "mps".
        precision: of network and text encoders: "fp32", "fp16" or "bf16", or its dtype; all else stays float32.
        checkpointing: recompute activations on the way back, so that gradients through a big network take less memory.
        lora: to stack on it, one or several, as ``--lora`` has them: DIR[=SCALE].

    Raises:
        TiltingError: for what is not a pipeline, or one that there is no adapter for, or that cannot be fetched; for a device
            that is not here.
    """
    name = str(name) if isinstance(name, Path) else name
    wanted = precision if isinstance(precision, str) else ELSEWHERE.get(str(precision).removeprefix("torch."), str(precision))
    source, where, dtype = find_model(name), device_of(str(device)), dtype_of(wanted)
    model = family_of(source).loader.load(source, name, *defaults(name), dtype=dtype).to(where)
    if checkpointing:
        model.checkpoint()
    loras = [parse_lora(str(one)) for one in ([lora] if isinstance(lora, str | Path) else lora)]
    return attach_all(model, loras, model.default_steps) if loras else model
