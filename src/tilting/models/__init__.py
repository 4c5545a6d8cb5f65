"""Diffusion models. `load` returns one by name, folder or hub id; importing this package imports neither torch nor diffusers.

Pipelines of diffusers are entered by their own calls (`call`); `families` says how another model is declared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.declare import declared
from tilting.models.attach import attach_all
from tilting.models.build import load_with_inputs
from tilting.models.components import check_long
from tilting.models.families import FAMILIES as FAMILIES
from tilting.models.families import family_of, few_of_built, has_loader, kind_of
from tilting.models.lora_file import parse_lora
from tilting.models.names import MODELS as MODELS
from tilting.models.names import defaults as defaults
from tilting.models.names import find_model as find_model
from tilting.models.pipeline import Pipeline as Pipeline
from tilting.models.placement import ELSEWHERE, SWITCHES, Switches, device_of, dtype_of
from tilting.models.switches import switched

if TYPE_CHECKING:
    import torch


def load(
    name: Any = "pocket",
    device: str | torch.device = "auto",
    precision: str | torch.dtype = "fp32",
    checkpointing: bool = False,
    lora: str | Path | Sequence[str | Path] = (),
    *,
    model_config: str | Path | None = None,
    long_prompts: str = "cut",
    each: Mapping[str, Mapping[str, Any]] | None = None,
    switches: Switches | None = None,
    **inputs: Any,
) -> Any:
    """Load a model: "pocket", a diffusers folder, a hub id, a .safetensors file of a whole one, or a pipeline of diffusers that
    someone has built.

    Args:
        name: of the model, or the pipeline, which stays as it is, and where it is but for ``device`` that is not "auto".
        device: "auto", CUDA where there is one, else MPS, else the CPU; or "cpu", "cuda", "cuda:1", "mps".
        precision: of network and text encoders: "fp32", "fp16" or "bf16", or its dtype; all else stays float32.
        checkpointing: recompute activations on the way back, so that gradients through a big network take less memory.
        lora: to stack on it, one or several, as ``--lora`` has them: DIR[=SCALE].
        model_config: of a file, the diffusers folder or hub id of its configuration, whose weights are not needed, as
            FILE=FOLDER says it in the name.
        long_prompts: "cut" at the tokens that a model reads, or "chunk": read in windows, by models that read by CLIP alone.
        each: prompt -> inputs of its images, over those of all.
        switches: how it is run (`tilting.models.placement.Switches`); one by one they are keywords too, as the command line has
            them: ``look_decoder="auto"``, ``precision_vae="bf16"``, ``quantize="4bit"``, ``compile=True``.
        inputs: what the pipeline's own call takes, of every image: height, width, num_frames, image, mask_image, control_image,
            guidance_scale and so on. A pipeline that takes none of a text-to-image model's folder is found by them: of its
            family the one for pictures, masks, or ``controlnet=`` the folder of one, ``ip_adapter=`` the folder of one.

    Raises:
        TiltingError: for what is not a pipeline, or one that cannot be steered, or that cannot be fetched; for a device that is
            not here, and an input that the pipeline does not take.
    """
    name = str(name) if isinstance(name, Path) else name
    name = name if model_config is None else f"{name}={model_config}"
    wanted = precision if isinstance(precision, str) else ELSEWHERE.get(str(precision).removeprefix("torch."), str(precision))
    where, dtype = device_of(str(device)), dtype_of(wanted)
    given = {one: inputs.pop(one) for one in SWITCHES if one in inputs}
    known = declared(Switches)
    switches = replace(switches or Switches(), **{one: known[one].check(value) for one, value in given.items()})
    if hasattr(name, "components") and hasattr(name, "scheduler"):
        few = few_of_built(name)
        scaled = any(scale in inputs for scale in ("guidance_scale", "true_cfg_scale"))
        model: Any = Pipeline(name, "", few and few[0], None if scaled else few and few[1], inputs, each)
        where = None if str(device) == "auto" else where
    else:
        source = find_model(name)
        if inputs or each or not has_loader(kind_of(source)):
            model = load_with_inputs(source, name, *defaults(name), dtype=dtype, inputs=inputs, each=each or {})
        else:
            model = family_of(source).loader.load(source, name, *defaults(name), dtype=dtype)
    if isinstance(model, Pipeline):
        model.read_long(long_prompts)
    else:
        check_long(long_prompts, False, str(name))
    if checkpointing:
        switches = replace(switches, recompute=True)
    if switches != Switches():
        switched(model, switches, name if isinstance(name, str) else None, where)
    elif where is not None:
        model.to(where)
    loras = [parse_lora(str(one)) for one in ([lora] if isinstance(lora, str | Path) else lora)]
    return attach_all(model, loras, model.default_steps) if loras else model
