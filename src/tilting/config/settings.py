"""Validation of single values and of ``--set method.field=value``."""

from __future__ import annotations

from typing import Any, TypeVar

from tilting.declare import Field, Registry, current_name, declared, renamed, text
from tilting.errors import TiltingError, nearest
from tilting.foreign import Malformed, parse_yaml
from tilting.presets import METHODS, Preset

Word = TypeVar("Word", bound=str)


def one_of(name: str, value: object, choices: tuple[Word, ...]) -> Word:
    """One of several words. Raises TiltingError, with the nearest."""
    found = text(name, value)
    for choice in choices:
        if found == choice:
            return choice
    raise TiltingError(f"{name} cannot be {found!r}{nearest(found, choices)}")


def fields_of(method: str) -> dict[str, Field]:
    """The declared fields of a method."""
    return declared(METHODS[method])


def setting(key: str, value: object) -> tuple[str, str, Any]:
    """`setting_of` a method."""
    near = next((f"{name}.{key}" for name in ("codex", *METHODS) if key in fields_of(name)), "codex.tau")
    return setting_of(METHODS, near, key, value)


def setting_of(parts: Registry[Any], near: str, key: str, value: object) -> tuple[str, str, Any]:
    """Validate one ``part.field`` and its value.

    Args:
        parts: registry of the parts.
        near: an example of a key, for the error message about one without a part.
        key: part and field.
        value: the given value.

    Returns:
        The part, the field by its current name, and the converted value.

    Raises:
        TiltingError: with the nearest right name.
    """
    part, dot, given = key.partition(".")
    if not dot:
        raise TiltingError(f"{key!r} must be {parts.what.upper()}.FIELD, such as {near}")
    kind = parts.find(part)
    field, known = current_name(kind, given), declared(kind)
    if not known:
        raise TiltingError(f"{parts.what} {part!r} has no settings")
    if field not in known:
        raise TiltingError(f"there is no setting {key!r}{nearest(key, [f'{part}.{name}' for name in known])}")
    if field != given:
        renamed(key, f"{part}.{field}")
    return part, field, known[field].check(value.strip() if isinstance(value, str) else value, f"{part}.{field}")


def check_settings(preset: Preset) -> None:
    """Validate the settings of a preset made in Python as ``--set`` does; those of an unregistered preset are not checked."""
    if METHODS.get(preset.name) is type(preset):
        for field in fields_of(preset.name):
            setting(f"{preset.name}.{field}", getattr(preset, field))


def parse_setting(argument: str) -> tuple[str, object]:
    """Split ``codex.tau=0.001`` into its key and its value, read as YAML. Raises TiltingError."""
    key, equals, value = argument.partition("=")
    if not equals or not key.strip():
        raise TiltingError(f"--set takes METHOD.FIELD=VALUE, such as codex.tau=0.001, not {argument!r}")
    return key.strip(), value_of(key.strip(), value)


def value_of(key: str, text: str) -> Any:
    """A value on the command line, read as YAML where it is some. Raises TiltingError for what no file may hold either."""
    try:
        return parse_yaml(text, f"the value of {key[:60]}")
    except Malformed:
        return text
