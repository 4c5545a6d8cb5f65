"""Pictures of a CTRL recipe, from what its report and its cells hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from tilting.reports.grid import read, write_rows
from tilting_papers.charts import COLOURS, GREY, blank, save, side_by_side
from tilting_papers.ctrl.study import Cells, Label, best_name

MOST, BINS = 6, 40
"""Lines in the confusion matrices and the sheet of pictures; bars of the histogram."""


def write_figures(report: Mapping[str, Any], cells: Cells, labels: Sequence[Label], out: Path) -> list[str]:
    """Write them and return their names."""
    names = shown_rows(report)
    first = [confusions(report, names, labels, out / "confusion.png"), histogram(report, cells, labels, out / "histogram.png")]
    return [*first, *strengths(report, labels[0], out / "strengths.png"), grid(cells, names, labels, out)]


def shown_rows(report: Mapping[str, Any]) -> list[str]:
    """Of each family the line that stands for it: the best one, or the first."""
    names = [line["name"] for line in report["rows"]]
    shown = []
    for family, part in product(("base", "dps", "noisy", "free", "first", "ctrl"), ("", *filter(None, report["costs"]))):
        mine = [line["name"] for line in report["rows"] if (line["family"], line["part"]) == (family, part)]
        best = best_name(family, part)
        shown += [best] if best in names else mine[:1]
    return shown[-MOST:]


def strengths(report: Mapping[str, Any], label: Label, path: Path) -> list[str]:
    """Accuracy and below it mean score of each class over the strength, of families with a grid; the base model is at 0."""
    base = [row for row in report["rows"] if row["family"] == "base"]
    swept = {}
    for family in ("ctrl", "dps", "noisy", "free"):
        mine = [r for r in report["rows"] if r["family"] == family and not r["part"] and not isinstance(r["strength"], list)]
        if len(mine) > 1:
            swept[family] = [*base, *sorted(mine, key=lambda row: row["strength"])]
    if not swept:
        return []
    columns = len(swept)
    figure, axes = side_by_side(columns, 3.6, rows=2)
    for (family, rows), pair in zip(swept.items(), zip(axes[:columns], axes[columns:], strict=True), strict=True):
        across = [0.0 if row["family"] == "base" else row["strength"] for row in rows]
        for axis, what in zip(pair, ("per_class", "mean_score"), strict=True):
            for y in range(len(label.classes)):
                values = [row["labels"][label.name][what][y] for row in rows]
                axis.plot(across, values, "o-", color=COLOURS[y], markersize=4, linewidth=1.2, label=f"asked for {y}")
            axis.set(xlabel=f"{family}, strength", ylabel="accuracy" if what == "per_class" else f"mean score ({label.unit})")
        for edge in report["labels"][label.name]["edges"]:
            pair[1].axhline(edge, color="black", linewidth=0.7, linestyle="--")
        pair[0].set_ylim(-0.03, 1.03)
    lowest, highest = (edge(axis.get_ylim()[k] for axis in axes[columns:]) for k, edge in enumerate((min, max)))
    for axis in axes[columns:]:
        axis.set_ylim(lowest, highest)
    axes[0].legend(frameon=False, fontsize=7)
    return [save(figure, path)]


def histogram(report: Mapping[str, Any], cells: Cells, labels: Sequence[Label], path: Path) -> str:
    """The base model's scores with the cuts, and over them those of the control by class asked."""
    figure, axes = side_by_side(len(labels))
    for axis, label in zip(axes, labels, strict=True):
        about, ctrl = report["labels"][label.name], cells.get("ctrl", ())
        by_class = [[cell["scores"][label.name] for cell in ctrl if cell["asked"][label.name] == int(y)] for y in label.classes]
        asked = [list(chain.from_iterable(scores)) for scores in by_class]
        every = [*about["scores"], *chain.from_iterable(asked)]
        bins = [min(every) + k * (max(every) - min(every)) / BINS for k in range(BINS + 1)]
        axis.hist(about["scores"], bins, density=True, color=GREY, alpha=0.35, label=f"base, {about['pictures']} pictures")
        for edge in about["edges"]:
            axis.axvline(edge, color="black", linewidth=0.8, linestyle="--")
        for y, values in enumerate(asked):
            if values:
                look: dict[str, Any] = {"histtype": "step", "linewidth": 1.4, "color": COLOURS[y]}
                axis.hist(values, bins, density=True, label=f"CTRL asked for {y}", **look)
        axis.set(xlabel=f"{label.name} ({label.unit})", ylabel="density")
        axis.legend(frameon=False, fontsize=7)
    return save(figure, path)


def confusions(report: Mapping[str, Any], names: Sequence[str], labels: Sequence[Label], path: Path) -> str:
    """Rows asked, columns seen, side by side; a line of them for each label."""
    figure = blank(2.7 * len(names) + 0.4, 2.9 * len(labels))
    lines = {line["name"]: line for line in report["rows"]}
    for k, (label, name) in enumerate(product(labels, names)):
        axis, part = figure.add_subplot(len(labels), len(names), k + 1), lines[name]["labels"][label.name]
        shares = [[n / max(1, sum(row)) for n in row] for row in part["confusion"]]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (y, row), x in product(enumerate(shares), range(len(shares))):
            look: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 7,
                "color": "white" if row[x] > 0.5 else "black",
            }
            axis.text(x, y, f"{row[x]:.2f}", **look)
        axis.set_xticks(range(len(shares)), label.classes)
        axis.set_yticks(range(len(shares)), label.classes)
        axis.set_title(f"{name}: {part['accuracy']['mean']:.2f}", fontsize=9)
        axis.set_xlabel(f"{label.name}, seen", fontsize=8)
        axis.set_ylabel("asked", fontsize=8)
    return save(figure, path)


def grid(cells: Cells, names: Sequence[str], labels: Sequence[Label], out: Path) -> str:
    """Pictures of the first two prompts, a row for each line and prompt, a column for each combination asked for."""
    rows = []
    for prompt, name in product(list(dict.fromkeys(cells[names[0]][0]["prompts"]))[:2], names):
        pictures = []
        for cell in cells[name]:
            i = cell["prompts"].index(prompt)
            asked = ", ".join(f"{k}={y}" for k, y in cell["asked"].items())
            got = ", ".join(f"{cell['classes'][label.name][i]} ({cell['scores'][label.name][i]:.3g})" for label in labels)
            pictures.append((f"{asked}: {got}", read(out / cell["folder"] / cell["files"][i])))
        rows.append((f"{name}: {prompt}", pictures))
    return write_rows(rows, "what is asked for, and what was drawn", "asked: class seen (score)", out / "grid.png").name
