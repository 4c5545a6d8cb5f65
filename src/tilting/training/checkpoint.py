"""Checkpoints as folders of safetensors and JSON, written atomically, without pickles.

    NNNNNNNN/weights.safetensors    the trained tensors
    NNNNNNNN/optimiser.safetensors  AdamW's moments
    NNNNNNNN/averages.safetensors   averages of the trained tensors, where a run keeps some
    NNNNNNNN/state.json             step, objective's memory, counters

A folder is written beside its place and renamed into it; the one before is removed only after that, so that a kill at any
point leaves a readable state. All randomness is keyed by (seed, step), so no generator state is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tilting.declare import integer
from tilting.disk import make_folder, remove, unique_beside, write_atomically, write_tensors
from tilting.foreign import read_json
from tilting.types import TiltingError

WEIGHTS, OPTIMISER, AVERAGES, STATE = FILES = (
    "weights.safetensors",
    "optimiser.safetensors",
    "averages.safetensors",
    "state.json",
)


class Saved(NamedTuple):
    """A training state.

    Attributes:
        step: training steps made.
        weights: the trained tensors by name.
        optimiser: tensors of the optimiser, by "index.field".
        state: plain JSON values.
        averages: of the trained tensors, by the average's name and theirs.
    """

    step: int
    weights: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]
    averages: Mapping[str, Mapping[str, Tensor]] = {}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    found = {}
    for index, fields in optimiser.state_dict()["state"].items():
        inside = [value for value in fields.values() if isinstance(value, dict)]  # bitsandbytes has its moments in one
        for name, value in {k: v for one in (fields, *inside) for k, v in one.items() if not isinstance(v, dict)}.items():
            if value is not None:
                found[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    if type(optimiser).__module__.startswith("bitsandbytes"):  # which hands its step to C as it is
        state = {index: {k: int(v) if k == "step" else v for k, v in one.items()} for index, one in state.items()}
    held = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": held["param_groups"]})


def write(folder: Path, saved: Saved, keep: int = 2) -> Path:
    """Write a state into ``folder`` and remove all but the last ``keep``; a whole state of the same step is left as it is."""
    make_folder(folder)
    place = folder / f"{saved.step:08d}"
    if place.exists() and _load(place) is not None:
        return place
    temporary = unique_beside(place)
    try:
        temporary.mkdir()
        write_tensors(temporary / WEIGHTS, {k: v.detach().cpu().contiguous() for k, v in saved.weights.items()})
        write_tensors(temporary / OPTIMISER, saved.optimiser)
        averages = {f"{name}.{key}": v for name, values in saved.averages.items() for key, v in values.items()}
        if averages:
            write_tensors(temporary / AVERAGES, {key: v.detach().cpu().contiguous() for key, v in averages.items()})
        write_atomically(temporary / STATE, json.dumps({"step": saved.step, **saved.state}).encode())
        remove(place, FILES)  # one that is not whole
        os.rename(temporary, place)
    except OSError as error:
        raise TiltingError(f"cannot write {str(place)!r}: {error.strerror}") from error
    finally:
        remove(temporary, FILES)
    for old in states(folder)[:-keep]:
        remove(old, FILES)
    return place


def clear(folder: Path) -> None:
    """Remove all states in a folder, and the folder if nothing else is in it."""
    if folder.is_dir():
        for place in [p for p in folder.iterdir() if p.name.isdigit()]:  # one that a kill has left half removed, too
            remove(place, FILES)
        remove(folder, ())


def states(folder: Path) -> list[Path]:
    """The whole states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.isdigit() and (p / STATE).is_file()]
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
        state = read_json(place / STATE)
        tensors = (load_file(place / WEIGHTS), load_file(place / OPTIMISER))
        averages: dict[str, dict[str, Tensor]] = {}
        for key, value in (load_file(place / AVERAGES) if (place / AVERAGES).is_file() else {}).items():
            name, _, of = key.partition(".")
            averages.setdefault(name, {})[of] = value
        return Saved(integer("step", state.pop("step"), 0), *tensors, state, averages)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None
