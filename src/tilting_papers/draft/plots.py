"""Pictures of the DRaFT recipes: charts of rows over a number, training curves, and sheets of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tilting.reports.grid import short, write_rows
from tilting_papers.canvas import COLOURS, GREY, save, side_by_side
from tilting_papers.draft.looks import interval, tile, values_of

if TYPE_CHECKING:
    from tilting_papers.draft.results import Results

Dot = tuple[float, "Mapping[str, float] | float | None"]
"""A place across and a value, with its interval or without."""


class Panel(NamedTuple):
    """One chart.

    Attributes:
        across, up: names of its axes.
        series: dots by label, joined in order.
        log: which axes are logarithmic: "", "x", "y" or "xy".
        line: a dashed level and its name.
    """

    across: str
    up: str
    series: Mapping[str, Sequence[Dot]]
    log: str = ""
    line: tuple[float, str] | None = None


NOUNS = {"step": "training steps", "images": "generated images", "reward_calls": "reward queries", "seconds": "seconds",
         "evaluations": "denoiser evaluations"}  # fmt: skip


def chart(panels: Sequence[Panel], path: Path) -> str:
    """Panels side by side, at most four in a row, one colour for a label throughout; the file's name."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.series))
    colours = {label: GREY if label == "base" else COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    rows = ceil(len(panels) / 4)
    figure, axes = side_by_side(ceil(len(panels) / rows), rows=rows)
    for empty in axes[len(panels) :]:
        empty.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        for label, dots in panel.series.items():
            known = [(x, y) for x, y in dots if y is not None]
            xs = [x for x, _ in known]
            ys = [y if isinstance(y, int | float) else y["mean"] for _, y in known]
            style = "--" if labels.index(label) >= len(COLOURS) else "-"
            axis.plot(xs, ys, style, marker="o", color=colours[label], markersize=3.5, linewidth=1.3, label=label)
            for x, y in known:
                if isinstance(y, Mapping):
                    axis.plot([x, x], [y["low"], y["high"]], color=colours[label], linewidth=0.7, alpha=0.45)
        if panel.line is not None:
            axis.axhline(panel.line[0], color=GREY, linestyle="--", linewidth=1)
            axis.annotate(panel.line[1], (0.99, panel.line[0]), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", fontsize=7, color=GREY, ha="right")  # fmt: skip
        if "x" in panel.log:
            axis.set_xscale("log")
            axis.tick_params(axis="x", which="minor", labelbottom=False)
        if "y" in panel.log:
            axis.set_yscale("log")
        axis.set_xlabel(panel.across)
        axis.set_ylabel(panel.up)
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), frameon=False, fontsize=8, loc="outside right upper")
    save(figure, path)
    return path.name


def name_of(results: Results, what: str) -> str:
    """A number's name and unit."""
    return "pocket-judge, held out (log p)" if what == "judge" else f"{what} ({results.study.units.get(what, '')})"


def curve(results: Results, across: str, what: str, where: str, arms: Sequence[str] | None = None) -> Panel:
    """Training curves of arms."""
    series = {
        arm: [(point[across], interval(values_of(point["sets"][where], what))) for point in results.points(arm)]
        for arm in (arms or results.summaries)
    }
    return Panel(NOUNS[across], f"{name_of(results, what)}, {where} prompts", series)


def progress(results: Results, path: Path, where: str | None = None) -> str:
    """A row of pictures per arm, a column per look: the same noise as training goes on, of the prompt with most to gain."""
    where = where or results.first
    before = results.points(next(iter(results.summaries)))[0]["sets"][where]["rewards"][results.spec][:: results.size.images]
    prompt = before.index(min(before))
    rows = []
    for arm in results.summaries:
        cells = []
        for point in results.points(arm):
            value = point["sets"][where]["rewards"][results.spec][prompt * results.size.images]
            picture = tile(results.sheet(arm, where, point["step"]), prompt, 0, results.size.images)
            cells.append((f"step {point['step']}: {short(value)}", picture))
        rows.append((arm, cells))
    asked = results.looks.sets[where][prompt]
    title = f"{results.study.title}: {asked!r} as training goes on"
    return write_rows(rows, title, f"{results.spec} under each picture", path).name


def columns(results: Results, names: Sequence[tuple[str, str]], path: Path, where: str | None = None, title: str = "") -> str:
    """A row of pictures per prompt, a column per (name of a row, label)."""
    where = where or results.first
    rows = []
    for i, prompt in enumerate(results.looks.sets[where]):
        cells = []
        for name, label in names:
            value = results.seen(name)[where]["rewards"][results.spec][i * results.size.images]
            cells.append((f"{label}: {short(value)}", tile(results.sheet(name, where), i, 0, results.size.images)))
        rows.append((prompt, cells))
    return write_rows(rows, title or results.study.title, f"{results.spec} under each picture", path).name
