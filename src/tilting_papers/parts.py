"""Finished parts of a recipe as small files that need neither pictures nor weights: DIR/parts/NAME.json.

A part is the manifest of its run: the request, what it depends on, and the numbers that tables are made of. Where a part lies,
its run counts as done: ``cp -r docs/draft-fig4/parts DIR/`` and the same command make only what is missing. A part of another
request is refused as a run folder is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilting.disk import inner_path, make_folder, write_atomically
from tilting.models.lora_file import lora_files
from tilting.runs import files
from tilting.runs.run_folder import RunFolder

OURS, HERE = "<tilting_papers>", str(Path(__file__).parent)
"""The place of a reward's file that is this package's own, in a part and on this machine."""
Part = dict[str, Any]
NUMBER = int | float
HEAD = {"config": {str: object}, "model": {str: object}, "reward": [{"name": str, "sha256": str | None}]}
IMAGE = {"prompt": str, "index": int, "seed": int, "reward": NUMBER, "rewards": {str: NUMBER}, "judge": NUMBER | None}
DRAWN = {"images": [IMAGE], "summary": {"evaluations": int, "reward_calls": int, "seconds": NUMBER}}
"""The numbers of a run of `generate`."""
SCORES = {"prompts": [str], "rewards": {str: [NUMBER | None]}, "judge": [NUMBER | None], "apart": {str: NUMBER}}
LOOK = {"step": int, "images": int, "evaluations": int, "reward_calls": int, "seconds": NUMBER}
LOOK |= {"guidance": list | None, "sets": {str: {**SCORES, "spread": NUMBER | None}}}
TRAINED = {"summary": {"points": [LOOK], "skipped": int, "stopped": str | None, "norms": [NUMBER | None]}}
"""The numbers of a training run that is looked at."""


def file_of(out: Path, name: str) -> Path:
    """The file of a part. Raises TiltingError: its name is not safe."""
    return inner_path(out / "parts", f"{name}.json", "part")


def read(out: Path, name: str, folder: RunFolder, shape: Mapping[str, Any]) -> Part | None:
    """The part that stands for a run folder, with numbers of this shape; None if it is not there.

    Raises:
        TiltingError: it is corrupt, or of another request.
    """
    path = file_of(out, name)
    if not path.is_file():
        return None
    part = files.parsed(path, lambda part: odd(part, {**HEAD, **shape}))
    folder.check(json.loads(json.dumps(part).replace(OURS, HERE)), str(path))
    return part


def keep(out: Path, name: str, folder: RunFolder, numbers: Mapping[str, Any]) -> Part:
    """Write a part, and return it: the request of a folder but for what its numbers do not depend on, and the numbers."""
    config = {key: value for key, value in folder.head["config"].items() if key not in folder.free}
    part = {**folder.head, "config": config, **numbers}
    part.pop("argv")
    make_folder(file_of(out, name).parent)
    text = json.dumps(part, ensure_ascii=False, separators=(",", ":")).replace(HERE, OURS)
    write_atomically(file_of(out, name), (text + "\n").encode())
    return part


def identity(out: Path, lora: Path) -> list[Any]:
    """What a LoRA of a training run is: its place in DIR/runs, and the digest of the run's part, or else of its files."""
    place = lora.relative_to(out / "runs").as_posix()
    part = file_of(out, place.partition("/")[0])
    return [place, files.digest(part) if part.is_file() else files.digest_of(lora_files(lora))]


def odd(value: Any, shape: Any, at: str = "it") -> str | None:
    """Where a value is not of a shape: a type, [shape] or {key: shape}, in which the key str stands for any; None if it is."""
    if isinstance(shape, list):
        parts = [(one, shape[0], f"{at}[{i}]") for i, one in enumerate(value)] if isinstance(value, list) else None
    elif isinstance(shape, dict):
        keys = (value if str in shape else shape) if isinstance(value, dict) else ()
        if lacking := next((key for key in keys if key not in value), None):
            return f"{at} lacks {lacking!r}"
        parts = [(value[k], shape.get(k, shape.get(str)), f"{at}.{k}") for k in keys] if isinstance(value, dict) else None
    else:
        parts = [] if isinstance(value, shape) and (shape is object or not isinstance(value, bool)) else None
    if parts is None:
        return f"{at} is {files.short(value)}"
    return next(filter(None, (odd(*part) for part in parts)), None)
