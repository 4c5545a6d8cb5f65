"""The papers' own numbers, from published.yaml, to print beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tilting.errors import TiltingError, nearest

FILE = Path(__file__).with_name("published.yaml")


@cache
def _all() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def published(key: str) -> dict[str, Any]:
    """A published table. Raises TiltingError for an unknown key."""
    if key not in _all():
        raise TiltingError(f"no published table is called {key!r}{nearest(key, _all())}")
    return dict(_all()[key])


def published_row(key: str, row: str) -> dict[str, float]:
    """One row of a published table by column. Raises TiltingError for an unknown row."""
    table: Mapping[str, Any] = published(key)
    if row not in table or row == "columns":
        raise TiltingError(f"the published table {key!r} has no row {row!r}{nearest(row, set(table) - {'columns'})}")
    return dict(zip(table["columns"], table[row], strict=True))
