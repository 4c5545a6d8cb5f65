"""The columns of a comparison: a method, with settings of its own, with a LoRA, or a control. Torch-free.

codex                     a method as it is, or one of a file of your own, file.py:function
codex:strength=0.4        with settings of its own, or other steps, cfg, eta, particles (N) or lora; several are joined by +
lora:DIR[=SCALE]          the base model with a LoRA
control:DIR:LABEL=VALUE   the base model with a control
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tilting.config.settings import fields_of, value_of
from tilting.declare import current_name
from tilting.errors import TiltingError, nearest
from tilting.presets import METHODS

OWN = ("steps", "cfg", "eta", "particles", "lora", "lora-steps", "negative-prompt")
"""Options that a column may set for itself."""
TEXTS = ("lora-steps", "negative-prompt")
"""Those that are a text, whatever it looks like."""


@dataclass(frozen=True)
class Variant:
    """A column of a comparison.

    Attributes:
        label: its text, as given.
        method: its method.
        options: its own options by name; settings of the method under ``set``.
    """

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its name as a folder."""
        return re.sub(r"[^A-Za-z0-9.=+_-]+", "-", self.label).strip("-.")


def parse_variant(text: str) -> Variant:
    """Read a column. Raises TiltingError, with the nearest right name."""
    name, colon, rest = text.strip().partition(":")
    if name.endswith(".py"):
        if not rest:
            METHODS.find(name)
        function, colon, rest = rest.partition(":")
        name = f"{name}:{function}"
    if name == "lora" and rest:
        return Variant(text, "base", {"lora": [rest]})
    if name == "control" and rest:
        folder, _, labels = rest.rpartition(":")
        if not folder or "=" not in labels:
            raise TiltingError(f"a control is control:DIR:LABEL=VALUE, not {text!r}")
        return Variant(text, "base", {"control": [folder], "label": labels.split("+")})
    if name not in METHODS:
        raise TiltingError(f"there is no method {name!r}{nearest(name, (*METHODS, 'lora', 'control'))}")
    options: dict[str, Any] = {}
    for part in rest.split("+") if colon else ():
        key, equals, value = part.partition("=")
        key = "particles" if key == "N" else current_name(METHODS[name], key.strip())
        if not equals:
            raise TiltingError(f"{text!r} must be METHOD:FIELD=VALUE, such as codex:strength=0.4")
        if key in OWN:
            options[key] = [value] if key == "lora" else value if key in TEXTS else value_of(key, value)
        elif key in fields_of(name):
            options.setdefault("set", {})[f"{name}.{key}"] = value_of(key, value)
        else:
            raise TiltingError(f"{text!r} has no {key!r}{nearest(key, (*fields_of(name), *OWN))}")
    return Variant(text, name, options)


def parse_variants(texts: Sequence[str]) -> tuple[Variant, ...]:
    """Parse comma-separated columns; labels and folder names must be unique. Raises TiltingError."""
    found: list[Variant] = []
    for text in (one.strip() for part in texts for one in part.split(",") if one.strip()):
        variant = parse_variant(text)
        if any(variant.label == other.label for other in found):
            raise TiltingError(f"the method {text!r} is named twice in --methods")
        if any(variant.folder == other.folder for other in found):
            raise TiltingError(f"the method {text!r} has the folder of another in --methods: name it differently")
        found.append(variant)
    if not found:
        raise TiltingError("no method is named: --methods base,code,codex")
    return tuple(found)


def swept(text: str) -> tuple[str, ...]:
    """The columns of a sweep METHOD.FIELD=A,B,... Raises TiltingError."""
    key, equals, values = text.partition("=")
    method, dot, name = key.strip().partition(".")
    several = [value.strip() for value in values.split(",") if value.strip()]
    if not equals or not dot or len(several) < 2:
        raise TiltingError(f"--sweep takes METHOD.FIELD=A,B,..., such as codex.strength=0.1,0.2,0.4, not {text!r}")
    columns = tuple(f"{method}:{name}={value}" for value in several)
    parse_variants(columns)
    return columns
