"""`tilting lora`: information about LoRA files, mixing (W' = W + Σ_i w_i B_i A_i) and conversion. Torch-free to import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.components import Components
from tilting.models.lora import fits
from tilting.models.lora_file import INPUTS, LoraForm, LoraSpec, lora_file, lora_files
from tilting.models.lora_targets import target_modules_of
from tilting.models.lora_weights import export_lora, mix, rank_of, read_lora, save_lora
from tilting.models.names import find_model
from tilting.models.skeleton import hollow
from tilting.runs.files import digest
from tilting.runs.lock import exclusive
from tilting.runs.owner import LORA, folder_of

if TYPE_CHECKING:
    from torch import Tensor


def read(place: str | Path, model: str | None = None) -> dict[str, Tensor]:
    """The weights in a LoRA, by the layers of the model that it is of, where that is said: of that no weight is read. Raises
    TiltingError."""
    if model is None:
        return read_lora(place)
    shapes = Components(hollow(find_model(model), torch.float32, torch.float32)[0], model, {})
    state = read_lora(place, shapes)
    if not fits(shapes, state):
        raise TiltingError(f"{str(lora_file(place))!r} is not of {model!r}, which has not all of its layers")
    return state


def lora_info(place: str, model: str | None = None) -> dict[str, Any]:
    """What a LoRA holds: layers, rank, parameters, the parts of the network it changes, the norm of what it adds, a digest,
    and the sampler's inputs that were learned with it."""
    from tilting.models.sampler_inputs import read_inputs  # a network

    inputs = read_inputs(lora_file(place).parent)
    state = read(place, model)
    norms = delta_norms(state)
    return {
        "file": str(lora_file(place)),
        "sha256": digest(lora_file(place)),
        "rank": rank_of(state),
        "layers": len(norms),
        "parameters": sum(value.numel() for value in state.values()),
        "parts": target_modules_of(norms),
        "norm": sum(value**2 for value in norms.values()) ** 0.5,
        "largest": max(norms, key=lambda layer: norms[layer]),
        "inputs": [] if inputs is None else inputs.names(),
    }


def delta_norms(state: dict[str, Tensor]) -> dict[str, float]:
    """|B A| (Frobenius) of each layer, from the ranks' Gram matrices, without making B A."""
    norms = {}
    for key, down in state.items():
        if key.endswith(".lora.down.weight"):
            layer = key.removesuffix(".lora.down.weight")
            a, b = down.flatten(1).double(), state[f"{layer}.lora.up.weight"].flatten(1).double()
            norms[layer] = float(((a @ a.T) * (b.T @ b)).sum().clamp(min=0).sqrt())
    return norms


def write_export(place: str, out: str, form: LoraForm, model: str | None = None) -> Path:
    """A LoRA as other programs read it, in a folder that holds none; see `read`. Raises TiltingError."""
    with exclusive(out):
        if len(lora_files(place)) > 1 and (lora_file(place).parent / INPUTS).is_file():
            raise TiltingError(f"{place!r} learned the sampler's inputs too, which no other program knows")
        folder = folder_of(out, LORA)
        if any(folder.glob("*.safetensors")):
            raise TiltingError(f"--out {out!r} holds weights already: choose another --out")
        return export_lora(read(place, model), folder, form)


def write_mix(loras: Sequence[LoraSpec], out: str, model: str | None = None) -> Path:
    """One LoRA that adds what these add together, each by its scale; its rank is the sum of theirs. See `read`.

    Raises:
        TiltingError: for LoRAs of different models, or a folder that is one of theirs.
    """
    with exclusive(out):
        folder = folder_of(out, LORA)
        if (folder / LORA.file).exists():
            raise TiltingError(f"--out {out!r} holds a LoRA already: choose another --out")
        for spec in loras:
            if os.path.realpath(spec.file.parent) == os.path.realpath(folder):
                raise TiltingError(f"--out {out!r} is where {spec.text!r} lies: choose another --out")
            if len(lora_files(spec.file)) > 1:
                raise TiltingError(
                    f"{spec.text!r} learned the sampler's inputs too, which a LoRA cannot hold: draw with --lora {spec.text}"
                )

        states = [read(spec.file, model) for spec in loras]
        for spec, state in zip(loras, states, strict=True):
            for key in state.keys() & states[0].keys():
                rank = 0 if key.endswith("lora.down.weight") else 1
                mine, first = list(state[key].shape), list(states[0][key].shape)
                del mine[rank], first[rank]
                if mine != first:
                    raise TiltingError(f"{spec.text!r} and {loras[0].text!r} are of different models: {key} differs in shape")
            if not state.keys() & states[0].keys():
                raise TiltingError(f"{spec.text!r} and {loras[0].text!r} are of different models: they share no layer")
        return save_lora(mix(states, [spec.scale for spec in loras]), folder)
