"""Options from a YAML file: a mapping without duplicate or unknown keys. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError, nearest
from tilting.foreign import LARGEST_YAML, parse_yaml, read_text

SWITCHES = ("quiet", "json")


def read_yaml(path: str | Path, options: Sequence[str]) -> dict[str, Any]:
    """Options of a YAML file by name (underscores count as hyphens); only known ones. Raises TiltingError."""
    known = (*options, *SWITCHES)
    file = Path(path)
    what = f"the config {str(file)!r}"
    raw = parse_yaml(read_text(file, what, LARGEST_YAML), what)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise TiltingError(f"the config {str(file)!r} must be a mapping of options to values")
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).replace("_", "-")
        if "." in name and not name.startswith("."):
            _once(file, key, found.get("set", {}))
            found["set"] = {**found.get("set", {}), str(key): value}
            continue
        if name not in known:
            raise TiltingError(f"{file}: there is no option {str(key)!r}{nearest(name, known)}")
        if name == "set":
            if value is not None and not isinstance(value, dict):
                raise TiltingError(f"{file}: set must be a mapping such as codex.tau: 0.001")
            settings = flat(value or {})
            for setting in settings:
                _once(file, setting, found.get("set", {}))
            found["set"] = {**found.get("set", {}), **settings}
        else:
            _once(file, name, found)
            found[name] = value
    for switch in SWITCHES:
        if not isinstance(found.get(switch, False), bool):
            raise TiltingError(f"{file}: {switch} must be true or false, not {found[switch]!r}")
    return found


def _once(file: Path, name: Any, found: Mapping[str, Any]) -> None:
    """Refuse an option given twice by two spellings: negative_prompt and negative-prompt, codex.tau and set."""
    if str(name) in found:
        raise TiltingError(f"{file}: {str(name)!r} is given twice")


def flat(values: Mapping) -> dict[str, Any]:
    """Flatten {"codex": {"tau": 1}} to {"codex.tau": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            found[str(key)] = value
    return found
