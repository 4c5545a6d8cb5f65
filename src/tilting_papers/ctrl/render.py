"""table.md and pictures of a CTRL recipe, from what its report and its looks hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from tilting.reports.grid import write_rows
from tilting_papers.canvas import COLOURS, GREY, blank, save, side_by_side
from tilting_papers.ctrl.labels import Label
from tilting_papers.page import NONE, claims, figures, number, shown, table, tried

Seen = Mapping[str, Sequence[Mapping[str, Any]]]
MOST, BINS = 6, 40
"""Lines in the confusion matrices and the sheet of pictures; bars of the histogram."""


def _lists(values: Sequence[float], digits: int = 2) -> str:
    return " / ".join(number(v, digits) for v in values)


def rows_table(report: Mapping[str, Any]) -> list[str]:
    """The lines of the table."""
    labels, costs = list(report["labels"]), report["costs"]
    heads, lines = ["row", "strength"], []
    for name in labels:
        unit = report["labels"][name]["unit"]
        heads += [f"accuracy, {name}", f"macro F1, {name}", f"per class, {name}", f"mean score per class ({unit})"]
    heads += ["all labels"] if len(labels) > 1 else []
    heads += ["judge (log p)", "path KL (nats)", "evaluations/image", "s/image", "training s"]
    heads += ["published"] if report["published"] else []
    for row in report["rows"]:
        several = row["strength"] if isinstance(row["strength"], list) else [row["strength"]]
        cells = [row["name"], NONE if row["family"] == "base" else _lists(several, 3)]
        for name in labels:
            part = row["labels"][name]
            cells += [shown(part["accuracy"]), number(part["macro_f1"], 3)]
            cells += [_lists(part["per_class"]), _lists(part["mean_score"], 3)]
        paid = costs.get(row["part"], {}).get(row["family"], {}).get("seconds")
        cells += [shown(row["all"])] if len(labels) > 1 else []
        cells += [shown(row["judge"]), number(row["kl"] and row["kl"]["mean"], 3), number(row["evaluations"], 3)]
        cells += [number(row["seconds"], 2), NONE if paid is None else f"{paid:.0f}"]
        cells += [report["published"].get(row["name"], NONE)] if report["published"] else []
        lines.append(cells)
    return table(heads, lines)


def labels_table(report: Mapping[str, Any]) -> list[str]:
    """What the classes are, and how many of the base model's pictures are of each."""
    lines = []
    for name, about in report["labels"].items():
        edges = [None, *about["edges"], None]
        for y, meaning in enumerate(about["meaning"]):
            low, high = edges[y], edges[y + 1]
            span = [] if low is None else [f"at least {number(low)}"]
            span += [] if high is None else [f"below {number(high)}"]
            count = about["counts"][y]
            share = f"{count} ({count / about['pictures']:.0%})"
            lines.append([name, str(y), meaning, f"{' and '.join(span)} {about['unit']}", share])
    return table(["label", "class", "meaning", "score", "labelled pictures"], lines)


def head(report: Mapping[str, Any]) -> list[str]:
    """Title and what was done."""
    settings = "".join(f", {k} {v}" for k, v in report["settings"].items())
    trained = any(row["family"] == "ctrl" for row in report["rows"])
    ctrl = f"; CTRL {report['train_steps']} steps of {report['batch']} images{settings}" if trained else ""
    return [
        f"# {report['recipe']}: {report['title']}", "",
        f"After {report['paper']}. Ours: {report['model']}, T = {report['steps']}, seed {report['seed']}, "
        f"{len(report['prompts'])} prompts x {report['images']} images for each class, the same noise for every row"
        f"{ctrl}{tried(report)}.", "",
    ]  # fmt: skip


def tail(report: Mapping[str, Any]) -> list[str]:
    """Claims, how to read it, figures."""
    reading = ["", "## How to read it", ""]
    told = [(fits, part and f" of {part}") for part, fits in report["fits"].items()]
    told += [(fits, f"{part and f' of {part}'} of the first round") for part, fits in report["before"].items()]
    for name, fit, of in [(name, fit, of) for fits, of in told for name, fit in fits.items()]:
        reading.append(
            f"- The classifier of {name}{of} learnt from {fit['records']['learn']} pictures; on "
            f"{fit['records']['held_out']} held out: accuracy {number(fit['accuracy'], 3)}, macro F1 "
            f"{number(fit['macro_f1'], 3)}, ECE {number(fit['ece']['before'], 2)} before and {number(fit['ece']['after'], 2)} "
            f"after temperature {number(fit['temperature'], 3)}."
        )
    reading += [
        "- Accuracy is by the function that labels, on the pictures as they are on disk; no classifier has a say. Means with "
        "95 % bootstrap intervals, whole prompts resampled; differences are paired image by image.",
        '- "best" takes, for each class, the strength of the grid that obeys it most often on these very pictures: the luck is '
        "the rivals'.",
        "- The judge is pocket-judge, which nothing is trained or guided by; the path KL is to the base model, exact, of the "
        "chains as drawn. High accuracy with a fallen judge is bought by ruined pictures.",
        "- Seconds are of the machine as it was then. Evaluations are of the denoiser in sampling; a CFG pair counts as one, "
        "with what a control adds to it.",
    ]  # fmt: skip
    reading += [f"- {note}" for note in report["notes"]]
    return [*claims(report["claims"]), *reading, "", *figures(report)]


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    return "\n".join([*head(report), *rows_table(report), "", "## The labels", "", *labels_table(report), *tail(report)])


def shown_rows(report: Mapping[str, Any]) -> list[str]:
    """Of each family the line that stands for it: the best one, or the first."""
    names = [line["name"] for line in report["rows"]]
    found = []
    for family, part in product(("base", "dps", "noisy", "free", "first", "ctrl"), ("", *filter(None, report["costs"]))):
        mine = [line["name"] for line in report["rows"] if (line["family"], line["part"]) == (family, part)]
        best = f"{family}{part and '-' + part}, best"
        found += [best] if best in names else mine[:1]
    return found[-MOST:]


def write_figures(report: Mapping[str, Any], seen: Seen, labels: Sequence[Label], out: Path) -> list[str]:
    """histogram.png, confusion.png and grid.png; their names."""
    names = shown_rows(report)
    histogram(report, seen, labels, out / "histogram.png")
    confusions(report, names, labels, out / "confusion.png")
    grid(seen, names, labels, out / "grid.png", out)
    swept = strengths(report, labels[0], out / "strengths.png")
    return ["confusion.png", "histogram.png", *swept, "grid.png"]


def strengths(report: Mapping[str, Any], label: Label, path: Path) -> list[str]:
    """Accuracy and below it mean score of each class over the strength, of families with a grid; the base model is at 0."""
    base = [row for row in report["rows"] if row["family"] == "base"]
    swept = {}
    for family in ("ctrl", "dps", "noisy", "free"):
        mine = [r for r in report["rows"] if r["family"] == family and not r["part"] and not isinstance(r["strength"], list)]
        if len(mine) > 1:
            swept[family] = sorted(mine, key=lambda row: row["strength"])
    if not swept:
        return []
    columns = len(swept)
    figure, axes = side_by_side(columns, 3.6, rows=2)
    for (family, rows), pair in zip(swept.items(), zip(axes[:columns], axes[columns:], strict=True), strict=True):
        across = [0.0, *(row["strength"] for row in rows)] if base else [row["strength"] for row in rows]
        for axis, what in zip(pair, ("per_class", "mean_score"), strict=True):
            for y in range(len(label.classes)):
                values = [row["labels"][label.name][what][y] for row in [*base, *rows]]
                axis.plot(across, values, "o-", color=COLOURS[y], markersize=4, linewidth=1.2, label=f"asked for {y}")
            axis.set(xlabel=f"{family}, strength", ylabel="accuracy" if what == "per_class" else f"mean score ({label.unit})")
        for edge in report["labels"][label.name]["edges"]:
            pair[1].axhline(edge, color="black", linewidth=0.7, linestyle="--")
        pair[0].set_ylim(-0.03, 1.03)
    lowest, highest = (edge(axis.get_ylim()[k] for axis in axes[columns:]) for k, edge in enumerate((min, max)))
    for axis in axes[columns:]:
        axis.set_ylim(lowest, highest)
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, path)
    return [path.name]


def histogram(report: Mapping[str, Any], seen: Seen, labels: Sequence[Label], path: Path) -> None:
    """The base model's scores with the cuts, and over them those of the control by class asked."""
    figure, axes = side_by_side(len(labels))
    for axis, label in zip(axes, labels, strict=True):
        about = report["labels"][label.name]
        asked = [
            [v for cell in seen.get("ctrl", ()) if cell["asked"][label.name] == y for v in cell["scores"][label.name]]
            for y in range(len(label.classes))
        ]  # fmt: skip
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
    save(figure, path)


def confusions(report: Mapping[str, Any], names: Sequence[str], labels: Sequence[Label], path: Path) -> None:
    """Rows asked, columns seen, side by side; a line of them for each label."""
    figure = blank(2.7 * len(names) + 0.4, 2.9 * len(labels))
    lines = {line["name"]: line for line in report["rows"]}
    for i, label in enumerate(labels):
        for j, name in enumerate(names):
            axis = figure.add_subplot(len(labels), len(names), i * len(names) + j + 1)
            part = lines[name]["labels"][label.name]
            shares = [[n / max(1, sum(row)) for n in row] for row in part["confusion"]]
            axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for y, row in enumerate(shares):
                for k, value in enumerate(row):
                    colour = "white" if value > 0.5 else "black"
                    axis.text(k, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
            axis.set_xticks(range(len(shares)), label.classes)
            axis.set_yticks(range(len(shares)), label.classes)
            axis.set_title(f"{name}: {part['accuracy']['mean']:.2f}", fontsize=9)
            axis.set_xlabel(f"{label.name}, seen", fontsize=8)
            axis.set_ylabel("asked", fontsize=8)
    save(figure, path)


def grid(seen: Seen, names: Sequence[str], labels: Sequence[Label], path: Path, out: Path) -> None:
    """Pictures of the first two prompts, a row for each line and prompt, a column for each combination asked for."""
    from PIL import Image

    rows = []
    for prompt in list(dict.fromkeys(seen[names[0]][0]["prompts"]))[:2]:
        for name in names:
            cells = []
            for cell in seen[name]:
                i = cell["prompts"].index(prompt)
                with Image.open(out / cell["folder"] / cell["files"][i]) as opened:
                    asked = ", ".join(f"{k}={y}" for k, y in cell["asked"].items())
                    read = [(cell["classes"][label.name][i], cell["scores"][label.name][i]) for label in labels]
                    got = ", ".join(f"{y} ({score:.3g})" for y, score in read)
                    cells.append((f"{asked}: {got}", opened.convert("RGB")))
            rows.append((f"{name}: {prompt}", cells))
    write_rows(rows, "what is asked for, and what was drawn", "asked: class seen (score)", path)
