"""LoRA files in numbers and mixed: W' = W + Σ_i w_i B_i A_i. Importing this does not import torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.models.lora_file import INPUTS, LoraForm, LoraSpec, lora_file, lora_files
from tilting.models.lora_targets import target_modules_of
from tilting.models.lora_weights import export_lora, mix, rank_of, read_lora, save_lora
from tilting.runs.alone import alone
from tilting.runs.files import digest
from tilting.runs.owner import LORA, folder_of

if TYPE_CHECKING:
    from torch import Tensor


def lora_info(place: str) -> dict[str, Any]:
    """What a LoRA holds: layers, rank, parameters, the parts of the network it changes, the norm of what it adds, a digest,
    and the sampler's inputs that were learned with it."""
    from tilting.models.sampler_inputs import read_inputs  # a network

    inputs = read_inputs(lora_file(place).parent)
    state = read_lora(place)
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


def write_export(place: str, out: str, form: LoraForm) -> Path:
    """A LoRA as other programs read it, in a folder that holds none. Raises TiltingError."""
    with alone(out):
        if len(lora_files(place)) > 1 and (lora_file(place).parent / INPUTS).is_file():
            raise TiltingError(f"{place!r} learned the sampler's inputs too, which no other program knows")
        folder = folder_of(out, LORA)
        if any(folder.glob("*.safetensors")):
            raise TiltingError(f"--out {out!r} holds weights already: choose another --out")
        return export_lora(read_lora(place), folder, form)


def write_mix(loras: Sequence[LoraSpec], out: str) -> Path:
    """One LoRA that adds what these add together, each by its scale; its rank is the sum of theirs.

    Raises:
        TiltingError: for LoRAs of different models, or a folder that is one of theirs.
    """
    with alone(out):
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

        states = [read_lora(spec.file) for spec in loras]
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
