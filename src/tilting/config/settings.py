"""Values checked against what a field is declared to hold: the options themselves, and ``--set method.field=value``."""

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
    """What a method declares, field by field."""
    return declared(METHODS[method])


def setting(key: str, value: object) -> tuple[str, str, Any]:
    """`setting_of` a method."""
    near = next((f"{name}.{key}" for name in ("codex", *METHODS) if key in fields_of(name)), "codex.tau")
    return setting_of(METHODS, near, key, value)


def setting_of(parts: Registry[Any], near: str, key: str, value: object) -> tuple[str, str, Any]:
    """Check one ``part.field`` and its value.

    Args:
        parts: those that declare fields.
        near: a key as it should be, for the refusal of one without a part.
        key: part and field.
        value: as it was given.

    Returns:
        The part, the field by its present name, and the value as the field declares it.

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
    """What ``--set`` asks of every setting, of a preset made in Python; one that is not registered is left to its parts."""
    if METHODS.get(preset.name) is type(preset):
        for field in fields_of(preset.name):
            setting(f"{preset.name}.{field}", getattr(preset, field))


def parse_setting(argument: str) -> tuple[str, object]:
    """Split ``codex.tau=0.001`` into its key and its value, read as YAML. Raises TiltingError."""
    key, equals, value = argument.partition("=")
    if not equals or not key.strip():
        raise TiltingError(f"--set takes METHOD.FIELD=VALUE, such as codex.tau=0.001, not {argument!r}")
    try:
        return key.strip(), parse_yaml(value, f"the value of {key.strip()[:60]}")
    except Malformed:
        return key.strip(), value
