"""Tables as text for a terminal, and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from shutil import get_terminal_size

WIDTH = 120
"""Columns that tables fill at most, and where there is no terminal."""

TEXT = 24
"""Columns that the last of a table keeps before others are broken over lines."""


def width() -> int:
    """Columns that a table may fill: those of the terminal, or of the variable COLUMNS, and `WIDTH` at most."""
    return min(WIDTH, get_terminal_size((WIDTH, 24)).columns)


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Lines of left-aligned columns; where they are too wide the last is broken over lines, then the widest. Rows are as long
    as each other."""
    places = range(len(rows[0]) if rows else 0)
    widths = [max(len(row[i]) for row in rows) for i in places]
    fewest = [max(len(word) for row in rows for word in row[i].split() or [""]) for i in places]
    room = width() - len(indent) - 2 * (len(widths) - 1)
    while sum(widths) > room and widths != fewest:
        widths[max(places, key=lambda i: (widths[i] > fewest[i], i == places[-1] and widths[i] > TEXT, widths[i]))] -= 1
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(cell, wide, break_long_words=False, break_on_hyphens=False) or [""]
            for cell, wide in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append((indent + "  ".join(map(str.ljust, parts, widths))).rstrip())
    return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of numbers: names on the left, the other columns to the right; those that do not fit come below it."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    parts: list[list[int]] = [[]]
    room = get_terminal_size((1_000_000, 24)).columns  # where there is no terminal a line is a row
    for i, wide in enumerate(widths[1:], 1):
        if parts[-1] and widths[0] + sum(2 + widths[k] for k in parts[-1]) + 2 + wide > room:
            parts.append([])
        parts[-1].append(i)
    lines = []
    for part in parts:
        lines += [""] if lines else []
        lines += ["  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in part)]) for row in rows]
    return lines


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
