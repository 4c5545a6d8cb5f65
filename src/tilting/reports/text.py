"""Tables as text for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 120
"""Columns of a terminal that tables fit into."""


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Lines of left-aligned columns; the last is broken over lines at `WIDTH`. Rows are as long as each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    lines = []
    for row in rows:
        head = indent + "".join(f"{cell:{width + 2}}" for cell, width in zip(row, widths, strict=False))
        words, line = row[-1].split(), head
        for i, word in enumerate(words):
            if i and len(line) + len(word) > WIDTH:
                lines.append(line.rstrip())
                line = " " * len(head)
            line += word + " "
        lines.append(line.rstrip())
    return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of numbers: names on the left, the other columns to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *numbers in rows:
        lines.append("  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))]))
    return lines


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
