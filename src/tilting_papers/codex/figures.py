"""Pictures of a table of the CoDeX thesis: its images side by side (grid.png), and its numbers as a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.reports.charts import untangle
from tilting.reports.grid import comparison_grid
from tilting.rewards.spec import split_weight
from tilting_papers.charts import COLOURS, GREY, JUDGE, note, save, side_by_side

if TYPE_CHECKING:
    from tilting_papers.codex.draw import DrawnTable
    from tilting_papers.codex.table import Table

MOST_SHOWN = 12
"""Rows in the grid."""


def write_figures(table: Table, report: Mapping[str, Any], drawn: DrawnTable, out: Path) -> list[str]:
    """Write them and return their names."""
    comparison_grid(
        [(name, folders[0]) for name, folders in drawn.runs.items() if folders[0] not in drawn.kept][:MOST_SHOWN],
        out / "grid.png",
    )
    chart = {"rows": _rows, "pareto": _pareto, "strength": _strength, "sweep": _sweep}[table.figure]
    return [chart(report, out / f"{table.figure}.png"), "grid.png"]


def _spec(report: Mapping[str, Any], which: int = 0) -> tuple[str, str]:
    """A reward's spec, and its name with its unit."""
    spec = split_weight(report["reward"][which])[0]
    return spec, f"{spec} ({report['units'][spec]})"


def _colours(report: Mapping[str, Any]) -> dict[str, str]:
    """One for every method; grey for the base model."""
    methods = [m for m in dict.fromkeys(row["method"] for row in report["rows"]) if m != "base"]
    return {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(methods)} | {"base": GREY}


def _rows(report: Mapping[str, Any], path: Path) -> str:
    """A line for every row: its reward, the held-out judge, its evaluations per image."""
    spec, title = _spec(report)
    rows, colours = list(report["rows"]), _colours(report)
    judged = any(row["judge"] for row in rows)
    figure, axes = side_by_side(2 + judged, height=1.2 + 0.3 * len(rows))
    paid = axes[-1]
    for i, row in enumerate(rows):
        colour = colours[row["method"]]
        for axis, value in zip(axes[:-1], (row["rewards"][spec], row["judge"]), strict=False):
            if value is not None:
                low, high = (value["mean"] if value[key] is None else value[key] for key in ("low", "high"))
                error = [[value["mean"] - low], [high - value["mean"]]]
                axis.errorbar(value["mean"], i, xerr=error, fmt="o", color=colour, markersize=5, elinewidth=1.2, capsize=2)
        paid.barh(i, row["evaluations"], color=colour, height=0.55)
        note(paid, f"{row['evaluations']:.0f}", (row["evaluations"], i), (4, -3), fontsize=8)
    for axis, name in zip(axes, (title, *([JUDGE] if judged else []), "denoiser evaluations per image"), strict=True):
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows] if axis is axes[0] else [""] * len(rows))
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=name)
    paid.margins(x=0.12)
    return save(figure, path)


def _curves(
    report: Mapping[str, Any], path: Path, point: Callable[[Mapping[str, Any]], tuple[Any, Any]], across: str, up: str
) -> str:
    """A curve for every method through its rows, labelled by their settings. Without intervals, which are in the table: most of
    their width is due to the prompts, which all rows share."""
    figure, (axis,) = side_by_side(1, height=5.6)
    for method, colour in _colours(report).items():
        rows = [(row["name"], *point(row)) for row in report["rows"] if row["method"] == method]
        known = [(name, x["mean"], y["mean"]) for name, x, y in rows if x is not None and y is not None]
        axis.plot([x for _, x, _ in known], [y for _, _, y in known], "o-", color=colour, markersize=5, label=method)
        for name, x, y in known:
            note(axis, name.partition("-")[2] or name, (x, y), (5, 4), color=colour)
    axis.margins(x=0.08)
    axis.legend(frameon=False, fontsize=8)
    axis.set(xlabel=across, ylabel=up)
    untangle(axis)
    return save(figure, path)


def _pareto(report: Mapping[str, Any], path: Path) -> str:
    """Two rewards against each other, over the weight of the second."""
    (first, across), (second, up) = _spec(report), _spec(report, 1)
    return _curves(report, path, lambda row: (row["rewards"][first], row["rewards"][second]), across, up)


def _sweep(report: Mapping[str, Any], path: Path) -> str:
    """The held-out judge over the reward, over strengths."""
    spec, across = _spec(report)
    return _curves(report, path, lambda row: (row["rewards"][spec], row["judge"]), across, JUDGE)


def _strength(report: Mapping[str, Any], path: Path) -> str:
    """Reward against distance to the reference, and both over r."""
    spec, title = _spec(report)
    figure, axes = side_by_side(3)
    for method, colour in _colours(report).items():
        rows = [row for row in report["rows"] if row["method"] == method and row["strength"] is not None]
        if not rows:
            continue
        r = [row["strength"] for row in rows]
        far, near = [row["to_reference"] for row in rows], [row["rewards"][spec]["mean"] for row in rows]
        for axis, xs, ys in ((axes[0], far, near), (axes[1], r, near), (axes[2], r, far)):
            axis.plot(xs, ys, "o-", color=colour, markersize=4, linewidth=1.2, label=method)
        for x, y, value in zip(far, near, r, strict=True):
            note(axes[0], f"{value:g}", (x, y), color=colour)
    apart, strength = "distance to the reference (rms of pixels)", "SDEdit strength r"
    for axis, (across, up) in zip(axes, ((apart, title), (strength, title), (strength, apart)), strict=True):
        axis.set(xlabel=across, ylabel=up)
    axes[0].legend(frameon=False, fontsize=8)
    untangle(axes[0])
    return save(figure, path)
