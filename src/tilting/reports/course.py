"""Training curves of a run: charts for a page, and the same as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tilting.reports.charts import BLUE, GREY, ORANGE, PAGE, axes, in_page, png

SMOOTH = 10
"""Training steps whose mean is a point of the thick line, of at least as many windows."""
Points = Sequence[tuple[float, float]]


CURVE = "curve.png"


class Course(NamedTuple):
    """A number over training.

    Attributes:
        title: what it is.
        note: how to read it.
        every: (training step, value) of each training step: drawn thin, with a running mean over it.
        looks: the same of samples that were looked at now and then: drawn as points that are joined.
    """

    title: str
    note: str = ""
    every: Points = ()
    looks: Points = ()


def points_of(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(training step, value) of the lines that have a value."""
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def running(points: Points) -> list[tuple[float, float]]:
    """Means of the last `SMOOTH` points, fewer at the beginning."""
    values = [value for _, value in points]
    window = [values[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(values))]
    return [(step, sum(part) / len(part)) for (step, _), part in zip(points, window, strict=True)]


def _into(axis: Any, course: Course, faint: str, line: str, mark: str) -> None:
    if course.every:
        axis.plot(*zip(*course.every, strict=True), color=faint, linewidth=0.8, alpha=0.7)
        axis.plot(*zip(*running(course.every), strict=True), color=line, linewidth=1.8)
    if course.looks:
        axis.plot(*zip(*course.looks, strict=True), "o-", color=mark, markersize=5)
    axis.set_xlabel("training steps" + f" (thick: the mean of {SMOOTH})" * bool(course.every))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.margins(x=0.03)


@in_page
def course(title: str, shown: Course) -> Any:
    """SVG: a number over training; None where there is none."""
    if not (shown.every or shown.looks):
        return None
    axis = axes(4.6, 2.8)
    _into(axis, shown, PAGE["base"], PAGE["c0"], PAGE["c1"])
    axis.set_xlabel("training steps", size=9.5)
    axis.tick_params("y", labelsize=9.5, labelcolor=PAGE["soft"])
    axis.grid(axis="x", visible=False)
    return axis


def course_png(courses: Sequence[Course]) -> bytes | None:
    """All of them side by side, those that there are; None where there is none."""
    known = [one for one in courses if one.every or one.looks]
    if not known:
        return None
    figure = axes(4.6 * len(known), 3.2).figure
    figure.clear()
    for axis, one in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        _into(axis, one, GREY, BLUE, ORANGE)
        axis.set_title(f"{one.title}\n{one.note}" if one.note else one.title, size=10)
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure.axes[0])
