"""The digits of a folder that a command wrote: what must be the same when the same command makes it again.

They are read from its json and safetensors alone, so that they can be compared across versions of the code. Seconds, paths,
options and sentences are left out; new keys beside the old ones are no difference, nor is a setting's new name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tilting.presets import METHODS
from tilting.runs.files import with_records

FILES = ("manifest.json", "metrics.json", "sweep.json", "table.json", "control.json", "classifier.json")
PLAIN = (
    "version",
    "argv",
    "config",
    "reason",
    "how",
    "notes",
    "text",
    "found",
    "facts",
    "about",
    "title",
    "paper",
    "units",
    "figures",
    "published",
    "published_unit",
    "published_row",
    "files",
)
"""Keys of what is said for people, quoted, or of the command, and of digests of weights made here; times are left out too."""
SPREAD = ("low", "high", "reward_sem", "sem", "judge_falls", "wins")
"""Not compared, nor are verdicts that follow and bounds in a table's text: in old runs bounds are percentile bootstraps, and
errors of images as if each stood alone; today t intervals and errors over prompts (tests/evaluation/test_statistics.py). Where
nothing was said of a few images, it is said that they are too few (tests/evaluation/test_distances.py). Of wins, equal rewards
were losses; they are half a win (tests/evaluation/test_compare.py)."""
BOUNDS = re.compile(r" \[\S+, \S+\]$")
"""Of an interval in a table's text, whose digits are as many as its width asks for; its mean stands in numbers beside it."""


def read_digits(folder: Path) -> dict[str, Any]:
    """By file of a folder, and of the folders in it: its numbers, the lines of metrics.jsonl, sums of a LoRA's tensors."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in folder.rglob("*") if "checkpoints" not in p.relative_to(folder).parts):
        name = file.relative_to(folder).as_posix()
        if file.name in FILES:
            held = with_records(file.parent, json.loads(file.read_text(encoding="utf-8")))
            found[name] = pruned(held) | {"digests": digests(held)}
        elif file.name == "metrics.jsonl":
            found[name] = [pruned(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        elif file.suffix == ".safetensors":
            found[name] = sums(load_file(file))
    return found


def read_table(file: Path) -> dict[str, Any]:
    """The digits of a recipe's table.json."""
    return pruned(json.loads(file.read_text(encoding="utf-8")))


def sums(tensors: Mapping[str, torch.Tensor]) -> list[float]:
    """Of tensors how many numbers they are, the norm, and a sum in which every one of them has a weight of its own."""
    flat = torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
    return [len(flat), float(flat.norm()), float(flat @ torch.arange(len(flat), dtype=torch.float64).cos())]


def pruned(held: Any) -> Any:
    """Plain data without what `PLAIN` names, and without times; a finding of "times" is a ratio of seconds."""
    if isinstance(held, dict) and "times" in held:
        return {}
    if isinstance(held, dict):
        timed = {key for key in held if "second" in key or "minutes" in key}
        return {key: pruned(value) for key, value in held.items() if key not in PLAIN and key not in timed}
    return [pruned(one) for one in held] if isinstance(held, list) else held


def digests(held: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a manifest that say which files it stands on."""
    return {key: value for key, value in (held.get("config") or {}).items() if key.endswith("sha256")}


def differences(wanted: Any, found: Any, rel: float, where: str = "") -> Iterator[str]:
    """Where digits are not those that are wanted, a line each; what is found beside them is let be."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for former, value in wanted.items():
            key = METHODS.current_key(former)
            if key in SPREAD or (key in ("verdict", "word") and not isinstance(value, dict)):
                continue
            if key in found:
                yield from differences(value, found[key], rel, f"{where}/{key}")
            else:
                yield f"{where}/{key} is gone"
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(a, b, rel, f"{where}/{i}")
    elif isinstance(wanted, float) and isinstance(found, int | float):
        if found != pytest.approx(wanted, rel=rel, abs=rel):
            yield f"{where}: {found!r} and not {wanted!r}"
    elif isinstance(wanted, str) and isinstance(found, str) and BOUNDS.search(wanted) and BOUNDS.search(found):
        return
    elif wanted != found:
        yield f"{where}: {found!r} and not {wanted!r}"


def machine() -> dict[str, str]:
    """What digits depend on besides the code: sums of floats are taken in another order by other instructions."""
    return {"torch": torch.__version__.partition("+")[0], "instructions": torch.backends.cpu.get_cpu_capability()}


def closeness(made: Mapping[str, str]) -> float:
    """How near digits must be to those that were made on such a machine: 1e-6 on one of its kind, 1e-3 elsewhere."""
    return 1e-6 if all(made[key] == value for key, value in machine().items()) else 1e-3


def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them: one, as when the digits were written down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
