"""Charts as inline SVG, drawn by hand: they take their colours from the page's CSS variables, so light and dark both fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL, VALUE, ROW, TOP, FOOT = 560, 132, 96, 30, 8, 26


class Bar(NamedTuple):
    """A run in a chart.

    Attributes:
        label: its name.
        colour: a CSS class, "c0" ... "c7" or "cb".
        mean, low, high: the value and its interval; low = high = None draws no whisker, mean None no bar.
    """

    label: str
    colour: str
    mean: float | None
    low: float | None = None
    high: float | None = None


def number(value: float | None) -> str:
    """Three or four digits for people; an en dash for nothing."""
    if value is None:
        return "–"
    size = abs(value)
    if 0 < size < 0.001:
        text = f"{value:.1e}"
    else:
        text = f"{value:,.0f}" if size >= 1000 else f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span the range."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about + 0.5)
    first = math.floor(low / step + 1e-9)
    return [i * step for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def _fit(text: str, width: int) -> str:
    return escape(text if len(text) <= width else f"{text[: width - 1]}…")


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escape(title)}">'
    return "".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"])


def bars(title: str, rows: Sequence[Bar], floor: float | None = None) -> str:
    """Horizontal bars from 0 with whiskers, values on the right, and a dashed line at the floor of a distance."""
    known = [v for r in rows for v in (r.mean, r.low, r.high) if v is not None] + ([floor] if floor is not None else [])
    low, high = min([0.0, *known]), max([0.0, *known])
    marks = ticks(low, high if high > low else low + 1)
    left, right = LABEL, WIDTH - VALUE
    bottom = TOP + ROW * len(rows) + (14 if floor is not None else 0)

    def at(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    top = TOP + (14 if floor is not None else 0)
    parts = []
    for mark in marks:
        kind = "axis" if mark == 0 else "tick"
        parts.append(f'<line class="{kind}" x1="{at(mark):.1f}" x2="{at(mark):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(at(mark), bottom + 16, f"{mark:g}".replace("-", "\N{MINUS SIGN}"), "small", "middle"))
    for i, row in enumerate(rows):
        y = top + ROW * i
        middle = y + ROW / 2
        parts.append(_text(left - 10, middle + 4, _fit(row.label, 18), "label", "end"))
        parts.append(_text(right + 12, middle + 4, number(row.mean), "value"))
        if row.mean is None:
            continue
        x, end = sorted((at(0), at(row.mean)))
        parts.append(
            f'<rect class="{row.colour}" x="{x:.1f}" y="{y + 7}" width="{max(end - x, 0.8):.1f}" height="{ROW - 14}" rx="3"/>'
        )
        if row.low is not None and row.high is not None:
            a, b = at(row.low), at(row.high)
            lines = ((a, b, middle, middle), (a, a, middle - 5, middle + 5), (b, b, middle - 5, middle + 5))
            parts += [f'<line class="whisker" x1="{p:.1f}" x2="{q:.1f}" y1="{r}" y2="{s}"/>' for p, q, r, s in lines]
    if floor is not None:
        parts.append(f'<line class="floor" x1="{at(floor):.1f}" x2="{at(floor):.1f}" y1="{top - 2}" y2="{bottom}"/>')
        parts.append(_text(at(floor), top - 6, f"floor {number(floor)}", "small", "middle"))
    return _svg(WIDTH, bottom + FOOT, title, parts)


def scatter(title: str, rows: Sequence[Bar], costs: Sequence[float], across: str) -> str:
    """Means with whiskers over what they cost per image (logarithmic)."""
    points = [(row, cost) for row, cost in zip(rows, costs, strict=True) if row.mean is not None and cost > 0]
    if not points:
        return ""
    values = [v for row, _ in points for v in (row.mean, row.low, row.high) if v is not None]
    spread = max(values) - min(values) or abs(values[0]) or 1.0
    marks = ticks(min(values) - 0.05 * spread, max(values) + 0.05 * spread)
    few, many = min(c for _, c in points), max(c for _, c in points)
    first, last = math.log2(few) - 0.35, math.log2(many) + 0.35
    left, right, top, bottom = 64, WIDTH - 24, 16, 236

    def x_of(cost: float) -> float:
        return left + (math.log2(cost) - first) / (last - first) * (right - left)

    def y_of(value: float) -> float:
        return bottom - (value - marks[0]) / (marks[-1] - marks[0]) * (bottom - top)

    parts = []
    for mark in marks:
        parts.append(f'<line class="tick" x1="{left}" x2="{right}" y1="{y_of(mark):.1f}" y2="{y_of(mark):.1f}"/>')
        parts.append(_text(left - 8, y_of(mark) + 4, f"{mark:g}".replace("-", "\N{MINUS SIGN}"), "small", "end"))
    shown: list[float] = []
    for cost in sorted({c for _, c in points}):
        if all(abs(x_of(cost) - x) > 36 for x in shown):
            shown.append(x_of(cost))
            parts.append(_text(x_of(cost), bottom + 18, f"{cost:,.4g}", "small", "middle"))
    parts.append(_text((left + right) / 2, bottom + 38, escape(across), "small", "middle"))
    placed: list[tuple[float, float]] = []
    for row, cost in points:
        x, y = x_of(cost), y_of(row.mean or 0.0)
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(row.low):.1f}" y2="{y_of(row.high):.1f}"/>'
            )
        parts.append(f'<circle class="{row.colour}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        end = x > right - 110
        line = y - 9
        while any(abs(line - b) < 13 and abs(x - a) < 110 for a, b in placed):
            line -= 14
        placed.append((x, line))
        parts.append(_text(x - 10 if end else x + 10, line, _fit(row.label, 18), "label", "end" if end else "start"))
    return _svg(WIDTH, bottom + 48, title, parts)


def matrix(title: str, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: rows asked, columns read, shaded by the share of the row."""
    side = 34
    left, top = 24 + 8 * max(min(len(r), 18) for r in rows), 14 + 6.5 * max(min(len(c), 14) for c in columns)
    parts = []
    for j, column in enumerate(columns):
        x = left + side * (j + 0.5)
        turned = f"translate({x + 4:.1f} {top - 8}) rotate(-60)"
        parts.append(f'<text class="small" text-anchor="start" transform="{turned}">{_fit(column, 14)}</text>')
    for i, (row, line) in enumerate(zip(rows, counts, strict=True)):
        y, total = top + side * i, sum(line) or 1
        parts.append(_text(left - 8, y + side / 2 + 4, _fit(row, 18), "label", "end"))
        for j, count in enumerate(line):
            x = left + side * j
            right = j < len(columns) and columns[j] == row
            share = count / total
            kind = "hit" if right else "miss"
            cell = f'x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" rx="4"'
            parts.append(f'<rect class="cell" {cell}/>')
            if count:
                parts.append(f'<rect class="{kind}" {cell} fill-opacity="{0.12 + 0.78 * share:.2f}"/>')
                parts.append(_text(x + side / 2, y + side / 2 + 4, str(count), "strong" if share > 0.5 else "value", "middle"))
    return _svg(left + side * len(columns) + 60, top + side * len(rows) + 8, title, parts)
