"""Training states as folders of safetensors and json: written whole or not at all, and nothing in them executes code.

    NNNNNNNN/weights.safetensors    the trained tensors
    NNNNNNNN/optimiser.safetensors  AdamW's moments
    NNNNNNNN/state.json             step, objective's memory, counters

A folder is written beside its place and renamed into it; the one before is removed only after that, so that a kill at any
point leaves a readable state. All randomness is keyed by (seed, step), so no generator state is needed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tilting.types import TiltingError


class Saved(NamedTuple):
    """A training state.

    Attributes:
        step: training steps made.
        weights: the trained tensors by name.
        optimiser: tensors of the optimiser, by "index.field".
        state: plain JSON values.
    """

    step: int
    weights: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    found = {}
    for index, fields in optimiser.state_dict()["state"].items():
        for name, value in fields.items():
            if value is not None:
                found[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    held = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": held["param_groups"]})


def _synced(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write(folder: Path, saved: Saved, keep: int = 2) -> Path:
    """Write a state into ``folder`` and remove all but the last ``keep``; a whole state of the same step is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{saved.step:08d}"
    if place.exists() and _load(place) is not None:
        return place
    temporary = folder / f".{place.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({k: v.detach().cpu().contiguous() for k, v in saved.weights.items()}, temporary / "weights.safetensors")
    save_file(dict(saved.optimiser), temporary / "optimiser.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": saved.step, **saved.state}))
    for file in temporary.iterdir():
        _synced(file)
    if place.exists():
        shutil.rmtree(place)
    os.rename(temporary, place)
    for old in states(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def states(folder: Path) -> list[Path]:
    """The whole states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.isdigit() and (p / "state.json").is_file()]
    return sorted(found, key=lambda p: int(p.name))


def read(folder: Path) -> Saved | None:
    """The newest readable state, or None where there is none. Raises TiltingError if there are some and none can be read."""
    problem = None
    for place in reversed(states(folder)):
        held = _load(place)
        if held is not None:
            return held
        problem = place
    if problem:
        raise TiltingError(f"no checkpoint in {str(folder)!r} can be read: {problem.name} is the oldest tried")
    return None


def _load(place: Path) -> Saved | None:
    """The state in a folder, None if any file of it is not whole."""
    try:
        state = json.loads((place / "state.json").read_text())
        tensors = (load_file(place / "weights.safetensors"), load_file(place / "optimiser.safetensors"))
        return Saved(state.pop("step"), *tensors, state)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
