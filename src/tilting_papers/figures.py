"""Pictures of a table: its images side by side (grid.png), and its numbers as a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.reports.grid import comparison_grid
from tilting.rewards.spec import split_weight
from tilting_papers.canvas import COLOURS, GREY, save, side_by_side, untangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tilting_papers.draw import DrawnTable
    from tilting_papers.tables import Table

MOST_SHOWN = 12
"""Rows in the grid."""


def write_figures(table: Table, report: Mapping[str, Any], drawn: DrawnTable, out: Path) -> list[str]:
    """Write them and return their names."""
    shown = [(name, places[0]) for name, places in drawn.runs.items()][:MOST_SHOWN]
    comparison_grid(shown, out / "grid.png")
    chart = {"rows": _rows, "pareto": _pareto, "strength": _strength, "sweep": _sweep}[table.figure]
    chart(report, out / f"{table.figure}.png")
    return [f"{table.figure}.png", "grid.png"]


def _title(spec: str, report: Mapping[str, Any]) -> str:
    return f"{spec} ({report['units'][spec]})"


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    """One for every method; grey for the base model."""
    methods = [m for m in dict.fromkeys(row["method"] for row in report["rows"]) if m != "base"]
    return {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(methods)} | {"base": GREY}


def _rows(report: Mapping[str, Any], path: Path) -> None:
    """A line for every row: its reward, the held-out judge, its evaluations per image."""
    spec = split_weight(report["reward"][0])[0]
    rows, colours = list(report["rows"]), _colours(report)
    figure, axes = side_by_side(3, height=1.2 + 0.3 * len(rows))
    for i, row in enumerate(rows):
        colour = colours[row["method"]]
        for axis, value in zip(axes, (row["rewards"][spec], row["judge"]), strict=False):
            if value is not None:
                error = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
                axis.errorbar(value["mean"], i, xerr=error, fmt="o", color=colour, markersize=5, elinewidth=1.2, capsize=2)
        axes[2].barh(i, row["evaluations"], color=colour, height=0.55)
        axes[2].annotate(f"{row['evaluations']:.0f}", (row["evaluations"], i), (4, -3), textcoords="offset points", fontsize=8)
    for axis, name in zip(
        axes, (_title(spec, report), "pocket-judge, held out (log p)", "denoiser evaluations per image"), strict=True
    ):
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows] if axis is axes[0] else [""] * len(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(name)
    axes[2].margins(x=0.12)
    save(figure, path)


def _curves(report: Mapping[str, Any], point: Callable[[Mapping[str, Any]], tuple[float, float] | None]) -> tuple[Figure, Axes]:
    """A curve for every method through its rows, each named by its setting. Intervals stand in the table: most of their width
    is the prompts', which all rows share."""
    figure, (axis,) = side_by_side(1, height=5.6)
    for method, colour in _colours(report).items():
        rows = [(row["name"], point(row)) for row in report["rows"] if row["method"] == method]
        known = [(name, at) for name, at in rows if at is not None]
        axis.plot([x for _, (x, _) in known], [y for _, (_, y) in known], "o-", color=colour, markersize=5, label=method)
        for name, at in known:
            label = name.partition("-")[2] or name
            axis.annotate(label, at, (5, 4), textcoords="offset points", fontsize=7, color=colour)
    axis.margins(x=0.08)
    axis.legend(frameon=False, fontsize=8)
    return figure, axis


def _pareto(report: Mapping[str, Any], path: Path) -> None:
    """Two rewards against each other, over the weight of the second."""
    first, second = (split_weight(spec)[0] for spec in report["reward"])

    def point(row: Mapping[str, Any]) -> tuple[float, float] | None:
        found = row["rewards"][first], row["rewards"][second]
        return None if None in found else (found[0]["mean"], found[1]["mean"])

    figure, axis = _curves(report, point)
    axis.set_xlabel(_title(first, report))
    axis.set_ylabel(_title(second, report))
    untangle(axis)
    save(figure, path)


def _sweep(report: Mapping[str, Any], path: Path) -> None:
    """The held-out judge over the reward, over strengths."""
    spec = split_weight(report["reward"][0])[0]
    figure, axis = _curves(
        report, lambda row: None if row["judge"] is None else (row["rewards"][spec]["mean"], row["judge"]["mean"])
    )
    axis.set_xlabel(_title(spec, report))
    axis.set_ylabel("pocket-judge, held out (log p)")
    untangle(axis)
    save(figure, path)


def _strength(report: Mapping[str, Any], path: Path) -> None:
    """Reward against distance to the reference, and both over r."""
    spec = split_weight(report["reward"][0])[0]
    figure, axes = side_by_side(3)
    colours = _colours(report)
    for method, colour in colours.items():
        rows = [row for row in report["rows"] if row["method"] == method and row["strength"] is not None]
        if not rows:
            continue
        r = [row["strength"] for row in rows]
        far, near = [row["to_reference"] for row in rows], [row["rewards"][spec]["mean"] for row in rows]
        for axis, xs, ys in ((axes[0], far, near), (axes[1], r, near), (axes[2], r, far)):
            axis.plot(xs, ys, "o-", color=colour, markersize=4, linewidth=1.2, label=method)
        for x, y, value in zip(far, near, r, strict=True):
            axes[0].annotate(f"{value:g}", (x, y), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    apart, strength = "distance to the reference (rms of pixels)", "SDEdit strength r"
    names = ((apart, _title(spec, report)), (strength, _title(spec, report)), (strength, apart))
    for axis, (across, up) in zip(axes, names, strict=True):
        axis.set_xlabel(across)
        axis.set_ylabel(up)
    axes[0].legend(frameon=False, fontsize=8)
    untangle(axes[0])
    save(figure, path)
