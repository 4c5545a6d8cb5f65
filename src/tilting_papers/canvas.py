"""Charts of the recipes as PNG files, by matplotlib: no window, no global state of pyplot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.runs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3366cc", "#d9622b", "#2b8a4b", "#8a4fbf", "#b8930f", "#c0396b", "#2a8f9d", "#7a6652", "#1f2f5c", "#7fa03a")
GREY = "#777777"


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def plain(axis: Any) -> None:
    """Two spines and a faint grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)


def side_by_side(columns: int, height: float = 4.4, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, side by side; of several rows, of ``height`` each, one after the other."""
    figure = blank(2.0 + 4.2 * columns, height * rows)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axis in axes:
        plain(axis)
    return figure, axes


def untangle(axis: Axes) -> None:
    """Names of points that stand on one another are moved to another corner of theirs, or left out where no corner is free."""
    figure: Any = axis.figure
    figure.draw_without_rendering()
    taken: list[Any] = []
    names: list[Any] = list(axis.texts)
    for name in names:
        for place, side in ((name.xyann, "left"), ((5, -10), "left"), ((-5, 4), "right"), ((-5, -10), "right")):
            name.xyann = place
            name.set_horizontalalignment(side)
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            name.remove()


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write the figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_atomically(path, buffer.getvalue())
