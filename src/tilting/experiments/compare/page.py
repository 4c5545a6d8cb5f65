"""The two pictures of a comparison: compare.html, one page that fetches nothing, and compare.png, one sheet."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tilting.experiments.about import about_method
from tilting.experiments.charts import Bar, bars, number, scatter
from tilting.experiments.compare.run import SHEET
from tilting.experiments.grid import GAP, LINE, SIDE, _number, _picture, _Sheet
from tilting.experiments.report import TEMPLATES

SMALL, THUMB = 128, 320
"""Pictures of at most SMALL pixels are put into the page as they are; larger ones at most THUMB wide or high."""
MOST_ROWS, MOST_PROMPTS = 60, 100
"""Rows of the sheet, and prompts of the page; the folders hold all."""
ROOM = 1100
"""Pixels of the page that the columns of pictures may take."""
BEST, FAINT = (24, 120, 78), (95, 95, 95)


def write_sheet(folder: Path, metrics: Mapping[str, Any]) -> Path:
    """``compare.png``: a column per method under its numbers, a row per prompt and index, the best reward of a row in green."""
    shown, methods = metrics["images"][:MOST_ROWS], metrics["methods"]
    sheet = _Sheet(len(shown), len(methods), header=5)
    for j, row in enumerate(methods):
        x = GAP + j * (SIDE + GAP)
        lines = [
            "no reward" if row["reward"] is None else f"reward {_spread(row['reward'])}",
            "no judge" if row["judge"] is None else f"judge {row['judge']['mean']:.2f}",
            f"{row['evaluations_per_image']:.4g} evaluations, {row['seconds_per_image']:.2f} s",
        ]
        sheet.text(x, GAP, row["method"] + (f", N = {row['particles']}" if (row["particles"] or 1) > 1 else ""), SIDE, size=18)
        for k, line in enumerate(lines):
            sheet.text(x, GAP + (k + 1) * LINE + 4, line, SIDE, size=14, ink=FAINT)
    several = any(entry["index"] for entry in shown)
    for i, entry in enumerate(shown):
        sheet.row(i, f"{entry['prompt']}, {entry['index']}" if several else entry["prompt"])
        best = best_of(entry)
        for j, row in enumerate(methods):
            cell = entry["methods"][row["method"]]
            sheet.cell(i, j, _picture(folder / cell["file"]), "")
            x, y = GAP + j * (SIDE + GAP), sheet.top + i * sheet.row_height + LINE + SIDE + 2
            sheet.text(x, y, _number(cell["reward"]), SIDE, ink=BEST if row["method"] in best else FAINT)
    sheet.save(folder / SHEET)
    return folder / SHEET


def _spread(value: Mapping[str, float | None]) -> str:
    return _number(value["mean"]) + (f" ± {_number(value['sem'])}" if value["sem"] is not None else "")


def best_of(entry: Mapping[str, Any]) -> set[str]:
    """The methods of the highest reward in a row, none where all are alike or nothing is known."""
    known = {m: cell["reward"] for m, cell in entry["methods"].items() if cell["reward"] is not None}
    best = {m for m, reward in known.items() if reward == max(known.values())}
    return best if len(best) < len(known) else set()


def data_uri(path: Path) -> str:
    """A picture inside of a page: small ones without loss, larger ones at `THUMB` pixels."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "webp", lossless=True)
    else:
        image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
        image.save(buffer, "webp", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def colours(methods: Sequence[str]) -> dict[str, str]:
    """A CSS class of every method: grey for the base model, a colour of its own for each other."""
    steered = [m for m in methods if m != "base"]
    return {m: f"c{steered.index(m) % 8}" if m in steered else "cb" for m in methods}


def _charts(metrics: Mapping[str, Any], colour: Mapping[str, str]) -> list[dict[str, str]]:
    methods, against, charts = metrics["methods"], metrics["reference"], []
    for key, title in (("gain", "Gain in reward"), ("judge_gain", "Change of the judge")):
        rows = [Bar(r["method"], colour[r["method"]], r[key]["mean"], r[key]["low"], r[key]["high"]) for r in methods if r[key]]
        if rows:
            note = f"over {against}, paired, with 95 % intervals"
            charts.append({"title": title, "note": note, "svg": bars(f"{title} over {against}", rows), "kind": ""})
    points = []
    for r in methods:
        if r["reward"]:
            mean, sem = r["reward"]["mean"], r["reward"]["sem"] or 0.0
            points.append((Bar(r["method"], colour[r["method"]], mean, mean - sem, mean + sem), r["evaluations_per_image"]))
    if len(points) > 1:
        svg = scatter("Reward and its cost", [p for p, _ in points], [c for _, c in points], "denoiser evaluations per image")
        chart = {"title": "What the reward costs", "note": "mean ± sem; up and to the left is better", "svg": svg, "kind": ""}
        charts.insert(1, chart | {"kind": "tall"} if len(charts) == 2 else chart)
    return charts


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _count(value: float) -> str:
    """What is mostly a whole number."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def render(folder: Path, metrics: Mapping[str, Any]) -> str:
    """The page.

    Args:
        folder: of the comparison, where the pictures are.
        metrics: what metrics.json holds.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {"number": number, "svg": Markup, "signed": _signed, "count": _count, "seconds": "{:.2f}".format,
                      "shell": shlex.join}  # fmt: skip
    names = [row["method"] for row in metrics["methods"]]
    colour, prompts = colours(names), list(dict.fromkeys(entry["prompt"] for entry in metrics["images"]))
    shown: dict[str, list[dict[str, Any]]] = {prompt: [] for prompt in prompts[:MOST_PROMPTS]}
    for entry in metrics["images"]:
        if entry["prompt"] in shown:
            cells = [{"method": m, "uri": data_uri(folder / c["file"]), **c} for m, c in entry["methods"].items()]
            shown[entry["prompt"]].append({"index": entry["index"], "cells": cells, "best": best_of(entry)})
    with Image.open(folder / metrics["images"][0]["methods"][names[0]]["file"]) as first:
        side = max(first.size)
    room = max(128, min(256, ROOM // len(names)))
    settings: dict[str, list[str]] = {}
    for key, value in metrics["config"]["set"].items():
        if value is not None:
            method, _, name = key.partition(".")
            settings.setdefault(method, []).append(f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return jinja.get_template(Path(SHEET).stem + ".html").render(
        m=metrics, methods=metrics["methods"], about={name: about_method(name) for name in names}, colour=colour,
        charts=_charts(metrics, colour), prompts=shown, count=len(prompts), settings=settings,
        width=side * max(1, room // side) if side <= SMALL else room, small=side <= SMALL,
    )  # fmt: skip
