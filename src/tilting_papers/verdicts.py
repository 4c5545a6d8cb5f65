"""Verdicts, from an interval alone: "holds", "fails", or "undecided" where it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting_papers.page import shown

Finding = dict[str, Any]
"""A "verdict", what was "found" in words, and the numbers behind it."""


def verdict(low: float, high: float, line: float = 0.0) -> str:
    """Of an interval that is to lie above a line."""
    return "holds" if low > line else "fails" if high < line else "undecided"


def finding_of(gap: Mapping[str, float], unit: str = "") -> Finding:
    """That a difference, given by its mean and interval, lies above 0."""
    return {"verdict": verdict(gap["low"], gap["high"]), "found": f"{shown(gap, sign=True)} {unit}".strip(), "difference": gap}
