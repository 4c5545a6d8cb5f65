"""Values checked against what a field is declared to hold: the options themselves, and ``--set method.field=value``."""

from __future__ import annotations

from typing import TypeVar

from tilting.declare import Field, current_name, declared, renamed, text
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


def setting(key: str, value: object) -> tuple[str, str, object]:
    """Check one ``method.field`` and its value.

    Returns:
        The method, the field by its present name, and the value as the field declares it.

    Raises:
        TiltingError: with the nearest right name.
    """
    method, dot, given = key.partition(".")
    if not dot:
        near = next((f"{name}.{key}" for name in ("codex", *METHODS) if key in fields_of(name)), "codex.tau")
        raise TiltingError(f"{key!r} must be METHOD.FIELD, such as {near}")
    field, known = current_name(METHODS.find(method), given), fields_of(method)
    if field not in known:
        if not known:
            raise TiltingError(f"method {method!r} has no settings")
        raise TiltingError(f"there is no setting {key!r}{nearest(key, [f'{method}.{name}' for name in known])}")
    if field != given:
        renamed(key, f"{method}.{field}")
    return method, field, known[field].check(value.strip() if isinstance(value, str) else value, f"{method}.{field}")


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
