"""Assembles a pipeline from a folder, its inputs, and the parts that they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.models.families import CONFIG, kind_of
from tilting.models.inputs import COMPONENT_INPUTS, check_controlnet, check_inputs, with_call_names
from tilting.models.loading import OF_NO_USE, load_part, load_pipeline, loading
from tilting.models.pipeline import Pipeline
from tilting.models.pipeline_class import steerable_class

if TYPE_CHECKING:
    import torch


def load_with_inputs(
    source: str,
    name: str,
    steps: int,
    cfg: float,
    dtype: torch.dtype,
    inputs: Mapping[str, Any],
    each: Mapping[str, Mapping[str, Any]],
) -> Any:
    """A pipeline with its inputs, as a model.

    Args:
        source: folder or hub id.
        name: what manifests call it.
        steps, cfg: its defaults.
        dtype: of network and text encoders.
        inputs: of all images.
        each: prompt -> inputs of its own.

    Raises:
        TiltingError: see `check_inputs`, and for what does not load.
    """
    kinds = {check_inputs(source, {**inputs, **own}) for own in ({}, *each.values()) if own or not each or inputs}
    if len(kinds) > 1:
        raise TiltingError(f"prompts ask for different pipelines, {' and '.join(sorted(kinds))}: give each the same inputs")
    kind = kinds.pop()
    cls, parts = steerable_class(kind), {}
    if inputs.get("controlnet") is not None:
        folder = str(inputs["controlnet"])
        parts["controlnet"] = load_part(folder, check_controlnet(source, cls, folder), dtype)
    unused = tuple(part for part in OF_NO_USE if part in cls.components)
    pipe = load_pipeline(source, dtype, unused, kind if kind != kind_of(source) else None, parts)
    if inputs.get("ip_adapter") is not None:
        with loading(str(inputs["ip_adapter"])):
            attach_ip_adapter(pipe, Path(str(inputs["ip_adapter"])))
            pipe.set_ip_adapter_scale(inputs.get("ip_adapter_scale", 1.0))
    own = {name: value for name, value in inputs.items() if name not in COMPONENT_INPUTS}
    mine = {prompt: with_call_names(cls, one) for prompt, one in each.items()}
    return Pipeline(pipe, name, steps, cfg, with_call_names(cls, own), mine)


def attach_ip_adapter(pipe: Any, folder: Path) -> None:
    """An IP-Adapter of a folder, with its image encoder where that lies beside it. Raises TiltingError."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    if len(files) != 1 or not files[0].is_file():
        raise TiltingError(f"an IP-Adapter is a safetensors file, or a folder of one, which {str(folder)!r} is not")
    place = files[0].parent
    encoder = "image_encoder" if (place / "image_encoder" / CONFIG).is_file() else None
    pipe.load_ip_adapter(str(place), subfolder="", weight_name=files[0].name, image_encoder_folder=encoder)
