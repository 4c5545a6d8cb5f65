"""``--set objective.field=value``: settings of an objective, checked as it declares them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting.config.settings import setting_of
from tilting.config.yaml_file import flat
from tilting.declare import declared
from tilting.objectives import OBJECTIVES


def defaults(objective: str) -> dict[str, Any]:
    """Settings of an objective as they are unset."""
    return {name: one.default for name, one in declared(OBJECTIVES[objective]).items()}


def setting(key: str, value: object) -> tuple[str, str, Any]:
    """`setting_of` an objective."""
    return setting_of(OBJECTIVES, "draft.kl", key, value)


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
