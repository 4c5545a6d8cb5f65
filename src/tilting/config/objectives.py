"""``--set objective.field=value``: settings of an objective, checked as it declares them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting.config.yaml_file import flat
from tilting.declare import declared, renamed
from tilting.errors import TiltingError, nearest
from tilting.objectives import OBJECTIVES


def defaults(objective: str) -> dict[str, Any]:
    """Settings of an objective as they are unset."""
    return {name: one.default for name, one in declared(OBJECTIVES[objective]).items()}


def setting(key: str, value: object) -> tuple[str, str, Any]:
    """Check one ``objective.field`` and its value: (objective, field, value). Raises TiltingError with the nearest right
    name."""
    objective, dot, _ = key.partition(".")
    if not dot:
        raise TiltingError(f"{key!r} must be OBJECTIVE.FIELD, such as draft.kl")
    known, current = declared(OBJECTIVES.find(objective)), OBJECTIVES.current_key(key)
    field = current.partition(".")[2]
    if field not in known:
        raise TiltingError(f"there is no setting {key!r}{nearest(key, [f'{objective}.{name}' for name in known])}")
    if current != key:
        renamed(key, current)
    return objective, field, known[field].check(value.strip() if isinstance(value, str) else value, current)


def settings_of(objective: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Every setting of an objective, and the keys that are of another one. Raises TiltingError."""
    values, unused = defaults(objective), []
    for key, value in flat(given).items():
        whose, field, checked = setting(key, value)
        if whose == objective:
            values[field] = checked
        else:
            unused.append(key)
    return values, tuple(unused)
