"""What every recipe's table.md is written with: numbers and intervals for people, tables, claims and their verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

NONE = "–"


def number(value: float | None, digits: int = 4) -> str:
    """A number for people; a dash for none."""
    return NONE if value is None else f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def shown(value: Mapping[str, float] | None, sign: bool = False) -> str:
    """ "0.312 [0.298, 0.325]" with the decimals that its width asks for, and a plus before a gain if it is a difference."""
    if value is None:
        return NONE
    width = value["high"] - value["low"]
    decimals = min(6, max(0, 2 - floor(log10(width)))) if width > 0 else 4
    mean, low, high = (f"{round(value[key], decimals) + 0.0:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{'+' if sign and value['mean'] > 0 else ''}{mean} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_line(heads), _line(["---"] * len(heads)), *(_line(row) for row in rows)]


def claims(made: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the claims, each a "text", what the paper has as "published", and a `Finding` or None; none without any."""
    if not made:
        return []
    lines = ["", "## Claims", ""]
    for claim in made:
        finding = claim["finding"] or {"verdict": "not tried", "found": "the rows that it needs are not in this run"}
        found = f"Found: {finding['found']}. The paper: {claim['published']}."
        lines.append(f"- **{finding['verdict']}**: {claim['text']}. {found}")
    return lines


def tried(report: Mapping[str, Any]) -> str:
    """What is said of the size of a small run; nothing of a full one."""
    return "; a small run, to try it: its numbers mean nothing" if report["small"] else ""


def figures(report: Mapping[str, Any]) -> list[str]:
    """Lines that show a report's pictures."""
    return [f"![{name}]({name})" for name in report["figures"]]
