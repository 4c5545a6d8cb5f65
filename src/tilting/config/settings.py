"""Values checked against what a field is declared to hold: the options themselves, and ``--set method.field=value``."""

from __future__ import annotations

import math
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from tilting.errors import TiltingError, nearest
from tilting.presets import PRESETS, Preset

LEAST = {
    "particles": 1, "block": 1, "gradient_block": 1, "tau": 0.0, "tau_end": 0.0, "share": 0.0, "beta": 0.0, "beams": 1,
    "schedule": 1, "clusters": 0, "probes": 1, "sigma": 0.0, "repeat": 1, "backward": 0, "rate": 0.0, "samples": 1,
    "radius": 0.0, "temper": 0.0, "iterations": 2, "prior": 0.0, "clip": 0.0, "steps": 0,
}  # fmt: skip
POSITIVE = ("beta", "share", "sigma", "tau_end", "temper", "rate", "clip")
"""Fields that must be above their least value."""
MOST = {"share": 1.0, "window": 1.0}
Word = TypeVar("Word", bound=str)


def integer(name: str, value: object, least: int | None = None) -> int:
    """A whole number, not a truth value. Raises TiltingError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TiltingError(f"{name} must be a whole number, not {value!r}")
    if least is not None and value < least:
        raise TiltingError(f"{name} must be at least {least}, not {value}")
    return value


def scale_of(value: object) -> float:
    """The CFG scale. Raises TiltingError for one that would drop the prompt, or turn away from it."""
    scale = number("cfg", value)
    if scale <= 0:
        raise TiltingError(f"cfg must be above 0, not {scale:g}: 1 is the prompt without guidance")
    return scale


def number(name: str, value: object, least: float | None = None, above: float | None = None) -> float:
    """A finite number; text such as 1e-3, which YAML does not read as one, counts. Raises TiltingError."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise TiltingError(f"{name} must be a number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TiltingError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise TiltingError(f"{name} must be a finite number, not {value}")
    if least is not None and value < least:
        raise TiltingError(f"{name} must be at least {least:g}, not {value:g}")
    if above is not None and value <= above:
        raise TiltingError(f"{name} must be above {above:g}, not {value:g}")
    return float(value)


def text(name: str, value: object) -> str:
    """A string. Raises TiltingError."""
    if not isinstance(value, str):
        raise TiltingError(f"{name} must be text, not {value!r}")
    return value


def boolean(name: str, value: object) -> bool:
    """True or false. Raises TiltingError."""
    if not isinstance(value, bool):
        raise TiltingError(f"{name} must be true or false, not {value!r}")
    return value


def texts(name: str, value: object) -> list[str]:
    """A list of strings; one alone counts as such. Raises TiltingError."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise TiltingError(f"{name} must be a list of texts, not {value!r}")
    return [text(f"each of {name}", v) for v in values]


def one_of(name: str, value: object, choices: tuple[Word, ...]) -> Word:
    """One of several words. Raises TiltingError, with the nearest."""
    found = text(name, value)
    for choice in choices:
        if found == choice:
            return choice
    raise TiltingError(f"{name} cannot be {found!r}{nearest(found, choices)}")


def some_of(name: str, value: object, choices: tuple[Word, ...]) -> tuple[Word, ...]:
    """Some of several words, as a list or as text with commas; each once, in the order given. Raises TiltingError."""
    found = [part.strip() for part in value.split(",")] if isinstance(value, str) else texts(name, value)
    return tuple(dict.fromkeys(one_of(name, part, choices) for part in found))


def typed(name: str, value: object, hint: Any) -> object:
    """The value as the annotation of a field asks for it. Raises TiltingError when it cannot be."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return typed(name, value, next(c for c in choices if c is not NoneType))
    if origin is Literal:
        if value not in choices:
            raise TiltingError(f"{name} cannot be {value!r}{nearest(str(value), map(str, choices))}")
        return value
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if choices[-1] is Ellipsis:
            if not isinstance(parts, list | tuple) or not parts:
                raise TiltingError(f"{name} must be a list of numbers such as 2,4,4,6, not {value!r}")
            return tuple(typed(name, int(p) if isinstance(p, str) and p.strip().isdigit() else p, choices[0]) for p in parts)
        if not isinstance(parts, list | tuple) or len(parts) != len(choices):
            raise TiltingError(f"{name} must be {len(choices)} numbers such as 0.6,0, not {value!r}")
        return tuple(typed(name, part, choice) for part, choice in zip(parts, choices, strict=True))
    if hint is bool:
        if not isinstance(value, bool):
            raise TiltingError(f"{name} must be true or false, not {value!r}")
        return value
    if hint is int:
        return integer(name, value)
    return number(name, value) if hint is float else text(name, value)


def _in_range(name: str, field: str, value: object) -> None:
    values = value if isinstance(value, tuple) else (value,)
    for v in values:
        if not isinstance(v, int | float) or isinstance(v, bool):
            continue
        least, most = LEAST.get(field, 0.0 if field == "window" else None), MOST.get(field)
        if least is not None and (v < least or (v == least and field in POSITIVE)):
            raise TiltingError(f"{name} must be {'above' if field in POSITIVE else 'at least'} {least:g}, not {v:g}")
        if most is not None and v > most:
            raise TiltingError(f"{name} must be at most {most:g}, not {v:g}")
    if field == "window" and isinstance(value, tuple) and value[0] < value[1]:
        raise TiltingError(f"{name} is (high, low), so its first number must not be below its second")


def fields_of(method: str) -> dict[str, Any]:
    """Field names of a preset and their annotations."""
    hints = get_type_hints(PRESETS[method])
    return {f.name: hints[f.name] for f in fields(PRESETS[method])}


def setting(key: str, value: object) -> tuple[str, str, object]:
    """Check one ``method.field`` and its value.

    Returns:
        The method, the field, and the value as the field declares it.

    Raises:
        TiltingError: with the nearest right name.
    """
    method, dot, field = key.partition(".")
    if not dot:
        near = next((f"{name}.{key}" for name in ("codex", *PRESETS) if key in fields_of(name)), "codex.tau")
        raise TiltingError(f"{key!r} must be METHOD.FIELD, such as {near}")
    if method not in PRESETS:
        raise TiltingError(f"there is no method {method!r}{nearest(method, PRESETS)}")
    known = fields_of(method)
    if field not in known:
        if not known:
            raise TiltingError(f"method {method!r} has no settings")
        raise TiltingError(f"there is no setting {key!r}{nearest(key, [f'{method}.{name}' for name in known])}")
    if isinstance(value, str):
        value = value.strip()
    result = typed(key, value, known[field])
    _in_range(key, field, result)
    return method, field, result


def check_settings(preset: Preset) -> None:
    """What ``--set`` asks of every setting, of a preset made in Python; one of a user's own is left to its parts."""
    if PRESETS.get(preset.name) is type(preset):
        for field in fields_of(preset.name):
            setting(f"{preset.name}.{field}", getattr(preset, field))


def parse_setting(argument: str) -> tuple[str, object]:
    """Split ``codex.tau=0.001`` into its key and its value, read as YAML. Raises TiltingError."""
    key, equals, value = argument.partition("=")
    if not equals or not key.strip():
        raise TiltingError(f"--set takes METHOD.FIELD=VALUE, such as codex.tau=0.001, not {argument!r}")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return key.strip(), value
