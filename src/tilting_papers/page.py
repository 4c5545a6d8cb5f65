"""Rendering of table.md for all recipes: numbers and intervals, tables, claims with verdicts, and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, log10
from pathlib import Path
from typing import Any

NONE = "–"
MINUS = "\N{MINUS SIGN}"
Column = tuple[str, Callable[[Mapping[str, Any]], str]]
"""A column: its head, and a function from a row to its cell."""


def number(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits; a dash for None."""
    return NONE if value is None else f"{value:.{digits}g}".replace("-", MINUS)


def fixed(value: float | None, decimals: int = 4) -> str:
    """A number with ``decimals`` decimals; empty for None."""
    return "" if value is None else f"{value:.{decimals}f}".replace("-", MINUS)


def shown(value: Mapping[str, Any] | None, sign: bool = False) -> str:
    """An interval such as "0.312 [0.298, 0.325]", with decimals by its width; ``sign`` puts a plus before a gain."""
    if value is None:
        return NONE
    if value["low"] is None:
        return number(value["mean"])
    width = value["high"] - value["low"]
    decimals = min(6, max(0, 2 - floor(log10(width)))) if width > 0 else 4
    mean, low, high = (f"{round(value[key], decimals) + 0.0:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{'+' if sign and value['mean'] > 0 else ''}{mean} [{low}, {high}]".replace("-", MINUS)


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(heads: Sequence[str], rows: Iterable[Iterable[object]], right: Sequence[bool] = ()) -> list[str]:
    """Lines of a Markdown table; ``right`` says which columns are right-aligned."""
    rule = f"|{'|'.join('---:' if one else '---' for one in right)}|" if right else line(["---"] * len(heads))
    return [line(heads), rule, *(line(map(str, row)) for row in rows)]


def filled(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that are not empty."""
    return [(head, cell) for head, cell in columns if any(cell(row) != NONE for row in rows)]


def claimed(text: str, published: str, finding: Mapping[str, Any] | None) -> dict[str, Any]:
    """A claim for table.json: what is tested, what the paper found, and a `Finding`, None if rows are missing."""
    return {"text": text, "published": published, "finding": finding}


def claims(made: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section of claims; nothing without any."""
    if not made:
        return []
    lines = ["", "## Claims", ""]
    for claim in made:
        finding = claim["finding"] or {"verdict": "not tried", "found": "the rows that it needs are not in this run"}
        lines.append(
            f"- **{finding['verdict']}**: {claim['text']}. Found: {finding['found']}. The paper: {claim['published']}."
        )
    return lines


def asked(report: Mapping[str, Any]) -> list[str]:
    """The options of one's own setting, files of one's own without their folders."""
    words = []
    for key, value in report.get("asked", {}).items():
        several = value if isinstance(value, list | tuple) else [value]
        named = [Path(one).name if isinstance(one, str) and Path(one).is_absolute() else str(one) for one in several]
        given = {"prompts": ["PROMPTS"], "seeds": [",".join(named)]}.get(key, named)
        words += [f" --{key} {one}" for one in given]
    return words


def tried(report: Mapping[str, Any]) -> str:
    """A warning for a small run; empty for a full one."""
    return "; a small run, to try it: its numbers mean nothing" if report["small"] else ""


def page(report: Mapping[str, Any], ours: str, body: Sequence[str], reading: Sequence[str], last: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        report: what table.json holds.
        ours: what was done.
        body: lines between that and how to read them: tables and claims.
        reading: sentences of the paper's recipes; the recipe's own notes follow them.
        last: lines before the pictures.
    """
    made = f"`tilting recipe {report['recipe']}{''.join(asked(report))} --out DIR` makes this page."
    prompts = report.get("asked", {}).get("prompts")
    made += f" Its prompts: {'; '.join(prompts)}." if prompts else ""
    lines = [f"# {report['recipe']}: {report['title']}", "", f"After {report['paper']}. {ours}", "", made, "", *body]
    points = [f"- {sentence}" for sentence in (*reading, *report["notes"])]
    if points:
        lines += ["", "## How to read it", "", *points]
    return "\n".join([*lines, "", *last, *(f"![{name}]({name})" for name in report.get("figures", ()))])


def plain_page(report: Mapping[str, Any]) -> str:
    """The default page of a recipe: its "rows" with a column for each key, its "claims", and notes."""
    rows = report["rows"]
    cells = [[value if isinstance(value, str) else number(value) for value in row.values()] for row in rows]
    body = [*table(list(rows[0]), cells), *claims(report.get("claims", ()))]
    return page(report, f"Ours: seed {report['seed']}{tried(report)}.", body, [])
