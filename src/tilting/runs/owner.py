"""Which command wrote a folder: each kind of folder is recognised by a file that only its command writes. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tilting.errors import TiltingError
from tilting.models.lora_file import FILE as LORA_FILE
from tilting.runs.files import MANIFEST, SWEEP, check_writable, read_json


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        what: its name in messages.
        file: glob pattern, within the folder, of the file that identifies it.
        keys: keys that this JSON file must have; without any, the file need only exist.
        shared: whether several processes can write it together.
    """

    what: str
    file: str
    keys: tuple[str, ...] = ()
    shared: bool = True


RUN = Kind("a run of pictures", MANIFEST, ("config", "images"))
FIT = Kind("a fit of classifiers", MANIFEST, ("config", "data", "labels"), shared=False)
TRAINING = Kind("training", MANIFEST, ("config", "summary", "reward"))
SWEEP_OF_RUNS = Kind("a sweep of strengths", SWEEP, ("sweep",))
SWEEP_BEGUN = Kind("a sweep of strengths", f"strength-*/{MANIFEST}")
COMPARISON = Kind("a comparison", "metrics.json", ("methods",))
EVALUATION = Kind("an evaluation", "metrics.json", ("extractors",))
RECIPE = Kind("a recipe", "table.json", ("recipe",), shared=False)
LORA = Kind("a mix of LoRAs", LORA_FILE, shared=False)
KINDS = (RUN, FIT, TRAINING, SWEEP_OF_RUNS, SWEEP_BEGUN, RECIPE, COMPARISON, EVALUATION)
"""Kinds that other commands may not write into, in the order in which they are tried. Any command may write beside a LoRA."""


def kind_of(folder: Path) -> Kind | None:
    """The first of `KINDS` that matches a folder; None if it is empty or was not written by a tilting command."""
    return next((kind for kind in KINDS if _is(folder, kind)), None)


def _is(folder: Path, kind: Kind) -> bool:
    file = next(folder.glob(kind.file), None)
    if file is None or not kind.keys:
        return file is not None
    try:
        content = read_json(file)
    except TiltingError:
        return False
    return isinstance(content, dict) and all(key in content for key in kind.keys)


def processes() -> int:
    """The number of processes that a launcher started, from WORLD_SIZE; 1 without a launcher."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() and int(count) > 0 else 1


def folder_of(out: str | None, kind: Kind) -> Path:
    """The folder that ``--out`` names, for a command that writes this kind.

    A manifest of no known kind passes: reading it later reports that it is corrupt.

    Raises:
        TiltingError: no folder is named, it cannot be written, it holds another kind, a foreign file has the name of this
            kind's own, or several processes were launched for a kind that one process writes.
    """
    if not out:
        raise TiltingError("say where to write: --out DIR")
    if not kind.shared and processes() > 1:
        raise TiltingError(f"{kind.what} is made by one process and {processes()} were launched: run it without a launcher")
    folder = check_writable(out)
    there = kind_of(folder)
    if there is not None and there.what != kind.what:
        raise TiltingError(f"{out!r} holds {there.what}, not {kind.what}: choose another --out")
    if there is None and kind.file not in (MANIFEST, LORA.file) and (folder / kind.file).exists():
        raise TiltingError(f"{str(folder / kind.file)!r} is not of {kind.what}: move it away, or choose another --out")
    return folder
