"""Charts of the recipes as PNG files, by matplotlib: no window, no global state of pyplot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.disk import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3366cc", "#d9622b", "#2b8a4b", "#8a4fbf", "#b8930f", "#c0396b", "#2a8f9d", "#7a6652", "#1f2f5c", "#7fa03a")
GREY = "#777777"
JUDGE = "pocket-judge, held out (log p)"
Dot = tuple[float, "Mapping[str, Any] | float | None"]
"""A point of a curve: x, and a value or an interval."""


class Panel(NamedTuple):
    """One chart.

    Attributes:
        across, up: names of its x and y axes.
        series: points by label, joined in order.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        line: a dashed level and its name.
    """

    across: str
    up: str
    series: Mapping[str, Sequence[Dot]]
    log: str = ""
    line: tuple[float, str] | None = None


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def plain(axis: Any) -> None:
    """Style an axis: two spines, and a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def side_by_side(columns: int, height: float = 4.4, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` x ``rows`` axes, each row ``height`` inches high, and its axes row by row."""
    figure = blank(2.0 + 4.2 * columns, height * rows)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        plain(axis)
    return figure, axes


def note(axis: Any, text: str, at: Any, offset: tuple[float, float] = (4, 4), **look: Any) -> None:
    """A small label beside a point."""
    axis.annotate(text, at, offset, textcoords="offset points", fontsize=look.pop("fontsize", 7), **look)


def save(figure: Figure, path: Path, dpi: int = 130) -> str:
    """Write the figure as PNG and return the file's name."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getvalue())
    return path.name


def forest(panels: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> str:
    """A forest plot of intervals, names from top to bottom, with a panel for each quantity: {what: {name: interval}}."""
    names = list(next(iter(panels.values())))
    figure, axes = side_by_side(len(panels), height=1.0 + 0.24 * len(names))
    for axis, (what, rows) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color=GREY, linewidth=1)
        for place, one in enumerate(rows[name] for name in names):
            colour = GREY if one["low"] is None or one["low"] <= 0 <= one["high"] else COLOURS[0]
            if one["low"] is not None:
                axis.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=1.3)
            axis.plot([one["mean"]], [place], "o", color=colour, markersize=4)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names), fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel(what)
    return save(figure, path)


def chart(panels: Sequence[Panel], path: Path) -> str:
    """Panels side by side, at most four in a row, with one colour per label; returns the file's name. In panels with several
    long curves, only the last points have intervals, shifted aside. Panels without a value are left out; "" if all are."""
    panels = [one for one in panels if any(y is not None for dots in one.series.values() for _, y in dots)]
    if not panels:
        return ""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.series))
    colours = {label: GREY if label == "base" else COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    from matplotlib.ticker import LogLocator

    rows = ceil(len(panels) / 4)
    figure, axes = side_by_side(ceil(len(panels) / rows), rows=rows)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        for label, dots in panel.series.items():
            known = [(x, y) for x, y in dots if y is not None]
            ys = [y if isinstance(y, int | float) else y["mean"] for _, y in known]
            style = "--" if labels.index(label) >= len(COLOURS) else "-"
            look: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.3, "label": label}
            axis.plot([x for x, _ in known], ys, style, color=colours[label], **look)
            crowded = len(panel.series) > 2 and len(known) > 3  # intervals at all points would hide the curves
            aside = (list(panel.series).index(label) + 1) / len(panel.series) if crowded else 0.0
            for x, y in known[-1:] if crowded else known:
                if isinstance(y, Mapping) and y["low"] is not None:
                    place = x * 1.25**aside if "x" in panel.log else x + 0.06 * aside * (known[-1][0] - known[0][0])
                    axis.plot([place, place], [y["low"], y["high"]], color=colours[label], linewidth=1, alpha=0.6)
        if panel.line is not None:
            axis.axhline(panel.line[0], color=GREY, linestyle="--", linewidth=1)
            at = (0.99, panel.line[0])
            note(axis, panel.line[1], at, (0, 3), xycoords=("axes fraction", "data"), color=GREY, ha="right")
        if "x" in panel.log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:,.4g}")
            axis.tick_params(axis="x", which="minor", labelbottom=False)
        if "y" in panel.log:
            axis.set_yscale("log")
        axis.set(xlabel=panel.across, ylabel=panel.up)
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), frameon=False, fontsize=8, loc="outside right upper")
    return save(figure, path)
