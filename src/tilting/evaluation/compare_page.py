"""The pages of a comparison: compare.html, self-contained, and compare.png."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilting.config.about import about_method
from tilting.config.variants import parse_variant, swept
from tilting.disk import sweep, write_atomically
from tilting.models.inputs import input_pictures
from tilting.reports.charts import Bar, bars, curve, number, on_paper, scatter
from tilting.reports.grid import FAINT, Sheet, read, short, spread
from tilting.reports.pages import colours, fill, inlined
from tilting.reports.tables import as_csv, as_latex
from tilting.reports.text import listed
from tilting.reports.words import legend

PAGE, SHEET = "compare.html", "compare.png"
SMALL, THUMB = 128, 320
"""Pictures of at most SMALL pixels are put into the page as they are; larger ones at most THUMB wide or high."""
MOST_ROWS, MOST_PROMPTS = 60, 100
"""Rows of the sheet, and prompts of the page; the folders hold all."""
ROOM = 1100
"""Pixels of the page that the columns of pictures may take."""
BEST = (24, 120, 78)


def write_sheet(folder: Path, metrics: Mapping[str, Any], name: str = SHEET) -> Path:
    """The sheet: a column per method under its numbers, a row per prompt and index, the best reward of a row in green; first
    what the images were made of, where they were made of pictures."""
    shown, methods, inputs = metrics["images"][:MOST_ROWS], metrics["methods"], input_pictures(metrics["config"])
    first = bool(inputs)
    sheet = Sheet(len(shown), first + len(methods), header=5)
    if inputs:
        sheet.head(0, "input", [])
    for j, row in enumerate(methods, first):
        lines = [
            "no reward" if row["reward"] is None else f"reward {spread(row['reward']['mean'], row['reward']['sem'])}",
            "no judge" if row["judge"] is None else f"judge {row['judge']['mean']:.2f}",
            f"{row['evaluations_per_image']:.4g} evaluations"
            + (f", {row['seconds_per_image']:.2f} s" if row["seconds_per_image"] else ""),
        ]
        sheet.head(j, row["method"] + (f", N = {row['particles']}" if (row["particles"] or 1) > 1 else ""), lines, below=4)
    several = any(entry["index"] for entry in shown)
    for i, entry in enumerate(shown):
        sheet.row(i, f"{entry['prompt']}, {entry['index']}" if several else entry["prompt"])
        best = best_of(entry)
        if entry["prompt"] in inputs:
            sheet.cell(i, 0, read(inputs[entry["prompt"]]), inputs[entry["prompt"]].name)
        for j, row in enumerate(methods, first):
            cell = entry["methods"][row["method"]]
            sheet.cell(i, j, read(folder / cell["file"]), short(cell["reward"]), BEST if row["method"] in best else FAINT)
    sheet.save(folder / name)
    return folder / name


def best_of(entry: Mapping[str, Any]) -> set[str]:
    """The methods of the highest reward in a row, none where all are alike or nothing is known."""
    known = {m: cell["reward"] for m, cell in entry["methods"].items() if cell["reward"] is not None}
    best = {m for m, reward in known.items() if reward == max(known.values())}
    return best if len(best) < len(known) else set()


def data_uri(path: Path) -> str:
    """A picture inside of a page: small ones without loss, larger ones at `THUMB` pixels."""
    image = read(path)
    return inlined(image, lossless=True) if max(image.size) <= SMALL else inlined(image, THUMB)


def number_of(label: str) -> float | None:
    """The value in the name of a column of a sweep; None where it is no number."""
    try:
        return float(label.rpartition("=")[2])
    except ValueError:
        return None


def write_tables(folder: Path, metrics: Mapping[str, Any]) -> None:
    """``table.csv`` and ``table.tex`` of the methods, and every chart of the page as figures/NAME.svg and .pdf."""
    against, heads = metrics["reference"], ["method"]
    paired = ("gain", "judge_gain")
    for key in ("reward", "judge"):
        heads += [key, f"{key} sem"]
    for key in paired:
        title = f"{key.replace('_', ' ')} over {against}"
        heads += [title, f"{title}, low", f"{title}, high"]
    costs = ("evaluations_per_image", "decodes_per_image", "seconds_per_image")
    heads += ["wins", "evaluations", "decodes", "seconds", "verdict"]
    rows = []
    for row in metrics["methods"]:
        means = [(row[key] or {}).get(part) for key in ("reward", "judge") for part in ("mean", "sem")]
        gains = [(row[key] or {}).get(part) for key in paired for part in ("mean", "low", "high")]
        word = row["verdict"]["word"] if row["verdict"] else None
        rows.append([row["method"], *means, *gains, row["wins"], *(row[key] for key in costs), word])
    write_atomically(folder / "table.csv", as_csv(heads, rows).encode())
    write_atomically(folder / "table.tex", as_latex(heads, rows, _question(metrics)).encode())
    names = [row["method"] for row in metrics["methods"]]
    (folder / "figures").mkdir(exist_ok=True)
    sweep(folder / "figures", deep=False)
    for chart in _charts(metrics, colours(names, [name for name in names if name != "base"])):
        for end, data in on_paper(*chart["drawn"]).items():
            write_atomically(folder / "figures" / f"{chart['name']}{end}", data)


def _chart(name: str, title: str, note: str, *drawn: Any) -> dict[str, Any]:
    """A chart of the page: its file's name, its words, the function and the arguments that draw it."""
    function, *args = drawn
    return {"name": name, "title": title, "note": note, "svg": function(*args), "kind": "", "drawn": drawn}


def _charts(metrics: Mapping[str, Any], colour: Mapping[str, str]) -> list[dict[str, Any]]:
    methods, against, charts = metrics["methods"], metrics["reference"], []
    for key, title in (("gain", "Gain in reward"), ("judge_gain", "Change of the judge")):
        rows = [Bar(r["method"], colour[r["method"]], r[key]["mean"], r[key]["low"], r[key]["high"]) for r in methods if r[key]]
        if rows:
            note = f"over {against}, paired, with 95 % intervals"
            charts.append(_chart(key, title, note, bars, f"{title} over {against}", rows))
    by = {row["method"]: row for row in methods}
    for text in metrics["config"].get("sweep") or ():
        name = text.partition("=")[0]
        values = [(number_of(label), by[label]) for label in swept(text)]
        for key, title in (("gain", "reward"), ("judge_gain", "judge")):
            points = [(x, Bar(r["method"], "c0", *(r[key][k] for k in ("mean", "low", "high")))) for x, r in values if r[key]]
            if points and all(x is not None for x, _ in points):
                asked, note = f"How does {name} change the {title}?", f"gain over {against}, paired, with 95 % intervals"
                charts.append(_chart(f"{key}-{name}", asked, note, curve, f"{title} over {name}", points, name))
    points = []
    for r in methods:
        if r["reward"]:
            mean, sem = r["reward"]["mean"], r["reward"]["sem"] or 0.0
            points.append((Bar(r["method"], colour[r["method"]], mean, mean - sem, mean + sem), r["evaluations_per_image"]))
    if len(points) > 1:
        note, across = "mean ± standard error; up and to the left is better", "denoiser evaluations per image"
        drawn = (scatter, "Reward and its cost", [p for p, _ in points], [c for _, c in points], across)
        chart = _chart("cost", "What the reward costs", note, *drawn)
        charts.insert(*((1, chart | {"kind": "tall"}) if len(charts) == 2 else (len(charts), chart)))  # others stand in pairs
    return charts


def _question(metrics: Mapping[str, Any]) -> str:
    """What the page answers."""
    others = [row["method"] for row in metrics["methods"] if row["method"] != metrics["reference"]]
    if not others:
        return f"What does {metrics['reference']} draw?"
    asked = f" at {asked_for(metrics['config'])}" if metrics["config"].get("reward") else ""
    return f"Better than {metrics['reference']}{asked}, or gamed: {listed(others, 'or')}?"


def asked_for(config: Mapping[str, Any]) -> str:
    """The rewards of a run in a heading; one of a file without the folders that it stands in."""
    return " + ".join(re.sub(r"^.*/(?=[^/]*\.py:)", "", text) for text in config["reward"])


def _settings(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each column is set by; one whose method has stood there, or stands there plain, has only what is its own."""
    every: dict[str, dict[str, Any]] = {}
    for key, value in metrics["config"]["set"].items():
        method, _, name = key.partition(".")
        every.setdefault(method, {}).update({name: value} if value is not None else {})
    told, stands = {}, {row["method"] for row in metrics["methods"]}
    for label, method in ((row["method"], row["preset"]) for row in metrics["methods"]):
        options = parse_variant(label).options if label not in every and ":" in label else {}
        own = {key: value for key, value in options.items() if key != "set"}
        own |= {key.rpartition(".")[2]: value for key, value in options.get("set", {}).items()}
        whole = {} if label != method and method in stands else every.get(method, {})
        told[label] = [f"{key}={', '.join(_flat([value]))}" for key, value in {**whole, **own}.items()]
        stands.add(method)
    return {label: chips for label, chips in told.items() if chips}


def _flat(values: list[Any]) -> list[str]:
    return [str(one) for value in values for one in (value if isinstance(value, list | tuple) else [value])]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _count(value: float) -> str:
    """What is mostly a whole number."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def render(folder: Path, metrics: Mapping[str, Any], **more: Any) -> str:
    """The page.

    Args:
        folder: of the comparison, where the pictures are.
        metrics: what metrics.json holds.
        more: what the page says otherwise than a comparison of methods does: its ``name``, ``question``, ``papers`` by column's
            preset, further ``charts``, ``note``.
    """
    names = [row["method"] for row in metrics["methods"]]
    colour = colours(names, [name for name in names if name != "base"])
    prompts = list(dict.fromkeys(entry["prompt"] for entry in metrics["images"]))
    shown: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in prompts[:MOST_PROMPTS]}
    for entry in metrics["images"]:
        if entry["prompt"] in shown:
            cells = [{"method": m, "uri": data_uri(folder / c["file"]), **c} for m, c in entry["methods"].items()]
            theirs = next(cell["uri"] for cell in cells if cell["method"] == metrics["reference"])
            shown[entry["prompt"]].append({"index": entry["index"], "cells": cells, "best": best_of(entry), "theirs": theirs})
    inputs = input_pictures(metrics["config"])
    side = max(read(folder / metrics["images"][0]["methods"][names[0]]["file"]).size)
    room = max(128, min(384, ROOM // (len(names) + bool(inputs))))
    met = {row["verdict"]["word"] for row in metrics["methods"] if row["verdict"]}
    filters = {"flat": _flat, "signed": _signed, "count": _count, "seconds": "{:.2f}".format, "shell": shlex.join}
    return fill(
        PAGE,
        filters,
        m=metrics,
        methods=metrics["methods"],
        page=more.get("name", "compare"),
        note=more.get("note", ""),
        papers=more.get("papers") or {row["preset"]: about_method(row["preset"])["paper"] for row in metrics["methods"]},
        has={
            key: any(row[key] for row in metrics["methods"])
            for key in ("reward", "gain", "judge", "judge_gain", "seconds_per_image")
        },
        question=more.get("question") or _question(metrics),
        words=legend({"reward", "judge", "gain", "interval", "wins", "evaluations", "decodes", "too few to say", *met}),
        colour=colour,
        charts=[*more.get("charts", ()), *_charts(metrics, colour)],
        prompts=shown,
        inputs={prompt: data_uri(file) for prompt, file in inputs.items() if prompt in shown},
        count=len(prompts),
        over="prompts" if len(prompts) > 1 else "the images of the one prompt",
        settings=_settings(metrics),
        width=side * max(1, room // side) if side <= SMALL else room,
        small=side <= SMALL,
    )
