"""Charts by matplotlib, without windows or global state: as PNG files, or as SVG in pages.

In a page every colour is a CSS variable, so that light and dark both fit: a colour of `PAGE` becomes ``var(--ink)``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any, NamedTuple, cast

BLUE, ORANGE, GREY = "#3366cc", "#d9622b", "#777777"
PAGE = {
    name: f"#0a0b{i:02x}"
    for i, name in enumerate(("ink", "soft", "hair", "base", "card", "good", "bad", *(f"c{k}" for k in range(8))))
}
"""CSS variable of a page -> the colour that stands for it while a chart is drawn."""
LIGHT = (
    "#1d1f24 #5d636e #eeece7 #a3a8b2 #ffffff #1f8a5b #c2372f #3b6fd4 #d9662b #2a9d74 #9a4fc4 #c2375b #b08a12 #2b95b8 #6d7f2e"
)
PAPER = dict(zip(PAGE, LIGHT.split(" "), strict=True))
"""What they are on paper: the page's own by day."""
MOST_WRITTEN = 12
"""Classes above which counts are not written into the cells of a confusion matrix."""
MINUS = "\N{MINUS SIGN}"
FAR = 8
"""A setting whose values span as many times is shown over its logarithm."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tilting",
    "font.size": 10.5,
    "axes.edgecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": PAGE["soft"],
    "grid.color": PAGE["hair"],
    "text.color": PAGE["ink"],
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in (("color", "none"), ("major.size", 0))},
    "xtick.labelcolor": PAGE["soft"],
    "ytick.labelcolor": PAGE["ink"],
    "xtick.labelsize": 9.5,
}
"""matplotlib settings of charts in a page."""


class Bar(NamedTuple):
    """A run in a chart.

    Attributes:
        label: its name.
        colour: of `PAGE`.
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
    return text.replace("-", MINUS)


def typeset(text: str) -> str:
    """A sentence with minus signs before its numbers, as a page's tables have them."""
    return re.sub(r"(?<![\w.)\]])-(?=\.?\d)", MINUS, text)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that span the range."""
    from matplotlib.ticker import MaxNLocator

    return [float(mark) for mark in MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)]


def axes(width: float = 4.6, height: float = 4.4) -> Any:
    """Axes of a figure of its own, of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def png(axis: Any) -> bytes:
    """The figure of axes."""
    buffer = io.BytesIO()
    axis.figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def confusion(
    axis: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    colour: Callable[[int, int], Any] = lambda row, column: BLUE,
    ink: tuple[str, str] = ("black", "white"),
    ground: str = "#f4f4f2",
) -> None:
    """A confusion matrix: a row for each that is true, a column for each that was read, shaded by the share of the row.

    Args:
        axis: to draw into.
        rows, columns: names.
        counts: by row.
        colour: of a cell, by row and column.
        ink: of counts, and of those in dark cells.
        ground: of an empty cell.
    """
    for i, line in enumerate(counts):
        for j, n in enumerate(line):
            share = n / max(1, sum(line))
            axis.barh(i, 0.94, 0.94, j - 0.47, color=ground)
            axis.barh(i, 0.94, 0.94, j - 0.47, color=colour(i, j), alpha=share and 0.12 + 0.78 * share)
            if max(len(rows), len(columns)) <= MOST_WRITTEN and (n or ink[0] == "black"):
                axis.text(j, i, str(n), ha="center", va="center", color=ink[share > 0.5])
    axis.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=45, ha="right")
    axis.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), aspect="equal")
    axis.grid(False)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def in_page(draw: Callable[..., Any]) -> Callable[..., str]:
    """A function of a title and more that draws axes, or None where there is nothing, as one that gives a page's SVG."""

    @wraps(draw)
    def drawn(title: str, *args: Any, **more: Any) -> str:
        from matplotlib import rc_context

        with rc_context(STYLE):
            axis = draw(title, *args, **more)
            return "" if axis is None else _svg(axis, title)

    return drawn


def on_paper(drawn: Callable[..., str], *args: Any) -> dict[str, bytes]:
    """A chart of a page as files of its own: ".svg" and ".pdf", of the light page's colours; empty where nothing is drawn.

    Args:
        drawn: a function of this module that gives SVG.
        args: its arguments.
    """
    from matplotlib import rc_context

    named = {colour: name for name, colour in PAGE.items()}
    style = {key: PAPER[named[value]] if value in named else value for key, value in STYLE.items()}
    kept, files = dict(PAGE), {}
    PAGE.update(PAPER)
    try:
        with rc_context({**style, "pdf.fonttype": 42}):
            axis: Any = cast(Any, drawn).__wrapped__(*args)
            if axis is None:
                return {}
            kinds: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            for kind, told in kinds.items():
                buffer = io.BytesIO()
                axis.figure.savefig(buffer, format=kind, metadata=told)
                files[f".{kind}"] = buffer.getvalue()
    finally:
        PAGE.update(kept)
    return files


NOT_IN_PAGE = (
    r"<metadata>.*?</metadata>",
    r"<style.*?</style>",
    r"<clipPath.*?</clipPath>",
    r"<defs>\s*</defs>",
    r"</?g\b[^>]*>",
    r' clip-path="[^"]*"',
    r' transform="rotate\(-?0 [^"]*"',
    r" font-family: [^;]*;",
    r'<path [^>]*style="fill: none"/>',
)
"""What matplotlib writes that a page has no use for."""


def _svg(axis: Any, title: str) -> str:
    """A figure as an element of a page: its text has the page's font, its colours are the page's."""
    buffer = io.StringIO()
    axis.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = re.sub(r'<g id="(whisker|floor)">\s*<path', r'<path class="\1"', buffer.getvalue())
    text = text[text.index("<svg") :]
    for pattern in NOT_IN_PAGE:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    width = f'style="max-width:{axis.figure.get_figwidth() * 96:.0f}px" role="img"'
    text = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', rf'<svg \1 {width} aria-label="{escape(title)}">', text, count=1)
    text = re.sub(r"\d+\.\d{5,}(?=[^<>]*>)", lambda digits: f"{float(digits[0]):.2f}", text)  # of shapes, not of words
    for name, colour in PAGE.items():
        text = text.replace(colour, f"var(--{name})")
    return " ".join(text.split())


@in_page
def bars(title: str, rows: Sequence[Bar], floor: float | None = None) -> Any:
    """SVG: horizontal bars from 0 with whiskers, values on the right, and a dashed line at the floor of a distance."""
    axis = axes(4.6, 0.5 + 0.34 * len(rows) + (0.2 if floor is not None else 0))
    known = [v for row in rows for v in (row.mean, row.low, row.high, floor) if v is not None]
    marks = ticks(min([0.0, *known]), max([0.0, *known]) if any(known) else 1.0)
    for i, row in enumerate(rows):
        axis.text(1.03, i, number(row.mean), va="center", transform=axis.get_yaxis_transform())
        if row.mean is not None:
            axis.barh(i, row.mean, 0.55, color=PAGE[row.colour.replace("cb", "base")])
        if row.low is not None and row.high is not None:
            ends = (row.low, row.high)
            for x, y in ((ends, (i, i)), *(((end, end), (i - 0.16, i + 0.16)) for end in ends)):
                axis.plot(x, y, color=PAGE["ink"], linewidth=1, solid_capstyle="butt", gid="whisker")
    axis.axvline(0, color=PAGE["base"], linewidth=0.8)
    if floor is not None:
        axis.axvline(floor, color=PAGE["ink"], linestyle="--", linewidth=0.8, alpha=0.6, gid="floor")
        axis.text(floor, -0.75, f"floor {number(floor)}", ha="center", color=PAGE["soft"], size=9.5)
    axis.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    axis.set_xticks(marks, [f"{mark:g}".replace("-", MINUS) for mark in marks])
    axis.set(xlim=(marks[0], marks[-1]), ylim=(len(rows) - 0.5, -0.5 if floor is None else -0.6))
    axis.grid(axis="y", visible=False)
    return axis


@in_page
def scatter(title: str, rows: Sequence[Bar], costs: Sequence[float], across: str) -> Any:
    """SVG: means with whiskers over what they cost per image (logarithmic)."""
    points = [(row, cost) for row, cost in zip(rows, costs, strict=True) if row.mean is not None and cost > 0]
    if not points:
        return None
    axis = axes(4.6, 3.0)
    for row, cost in points:
        if row.low is not None and row.high is not None:
            axis.vlines(cost, row.low, row.high, colors=PAGE["ink"], linewidth=1, gid="whisker")
        axis.plot(cost, row.mean, "o", markersize=9, color=PAGE[row.colour.replace("cb", "base")])
        axis.annotate(_short(row.label), (cost, row.mean), (7, 7), textcoords="offset points")
    shown = sorted({cost for _, cost in points})
    axis.set_xscale("log")
    axis.set_xlim(shown[0] / 1.3, shown[-1] * 1.5)
    axis.set_xticks(shown, [f"{cost:,.4g}" for cost in shown], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel(across, size=9.5)
    axis.tick_params("y", labelsize=9.5, labelcolor=PAGE["soft"])
    axis.grid(axis="x", visible=False)
    untangle(axis)
    return axis


@in_page
def curve(title: str, points: Sequence[tuple[float, Bar]], across: str) -> Any:
    """SVG: means with whiskers over a setting, joined, and a line at 0; logarithmic where values are far apart."""
    axis = axes(4.6, 2.8)
    known = sorted((x, row) for x, row in points if row.mean is not None)
    if not known:
        return None
    colour = PAGE[known[0][1].colour.replace("cb", "base")]
    axis.plot([x for x, _ in known], [row.mean for _, row in known], "o-", color=colour, markersize=7)
    for x, row in known:
        if row.low is not None and row.high is not None:
            axis.vlines(x, row.low, row.high, colors=PAGE["ink"], linewidth=1, gid="whisker")
    axis.axhline(0, color=PAGE["base"], linewidth=0.8)
    first, last = known[0][0], known[-1][0]
    if 0 < first * FAR <= last:
        axis.set_xscale("log")
        axis.set_xticks([], minor=True)
    axis.set_xticks([x for x, _ in known], [f"{x:g}".replace("-", MINUS) for x, _ in known])
    axis.set_xlabel(across, size=9.5)
    axis.tick_params("y", labelsize=9.5, labelcolor=PAGE["soft"])
    axis.grid(axis="x", visible=False)
    return axis


@in_page
def matrix(title: str, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> Any:
    """SVG of a confusion matrix: rows asked, columns read."""
    axis = axes(1.6 + 0.36 * len(columns), 1.2 + 0.36 * len(rows))
    hit, miss = PAGE["good"], PAGE["bad"]
    ink = PAGE["ink"], PAGE["card"]
    confusion(axis, rows, columns, counts, lambda i, j: hit if rows[i] == columns[j] else miss, ink, PAGE["hair"])
    axis.xaxis.tick_top()
    axis.set_xticks(axis.get_xticks(), axis.get_xticklabels(), rotation=60, ha="left")
    return axis


def untangle(axis: Any) -> None:
    """Names of points that stand on one another are moved to another corner of theirs, or left out where none is free."""
    axis.figure.draw_without_rendering()
    taken: list[Any] = []
    for name in sorted(axis.texts, key=lambda text: -text.xy[1]):  # names stand one above the other as their points do
        x, y = name.xyann
        for offset, side in (((x, y), "left"), ((x, -y - 6), "left"), ((-x, y), "right"), ((-x, -y - 6), "right")):
            name.xyann = offset
            name.set_horizontalalignment(side)
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            name.remove()
