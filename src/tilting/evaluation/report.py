"""report.html of an evaluation: one page, nothing fetched, made from what metrics.json holds and the runs' pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError
from tilting.reports.charts import Bar, bars, matrix, number, scatter
from tilting.reports.pages import colours, fill, inlined

THUMB = 128
"""Pixels of the longer side of a picture in the page; smaller ones stay as they are."""
MOST_PROMPTS, MOST_IMAGES, MOST_OVERVIEW, MOST_CLASSES = 60, 8, 8, 16

MEASURES = (
    ("judge", "pocket-judge", "log-probability of what the prompt asks"),
    ("tclip", "T-CLIP", "2.5 max(cos, 0)"),
    ("diversity", "Diversity", "mean distance within a prompt"),
    ("igram_clip", "I-Gram (CLIP cosine)", "cosine with the reference picture"),
    ("igram_vgg", "I-Gram (VGG Gram features)", "cosine with the reference picture"),
)
DISTANCES = (("fid", "FID"), ("cmmd", "CMMD"), ("cmmd_unbiased", "CMMD, unbiased"))


def interval(value: Mapping[str, float] | None) -> str:
    """ "0.31 [0.30, 0.32]" for people."""
    if value is None:
        return number(None)
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


def count(value: float) -> str:
    """A cost per image: 32, 12.5 or 1,200."""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def thumbnail(path: Path) -> str:
    """A picture as a data URI, at most `THUMB` pixels wide or high."""
    from tilting.reports.grid import read

    try:
        image = read(path)
    except OSError as error:
        raise TiltingError(f"{str(path)!r} does not decode: {str(error).splitlines()[0]}") from None
    return inlined(image, THUMB)


def rewards_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every reward that some run has, by its spec without weight."""
    return list(dict.fromkeys(spec for run in runs for spec in run["rewards"]))


def _charts(metrics: Mapping[str, Any], colour: Mapping[str, str]) -> list[dict[str, str]]:
    runs, floor = metrics["runs"], metrics["floor"]

    def bar(run: Mapping[str, Any], value: Mapping[str, float] | None) -> Bar:
        if value is None:
            return Bar(run["name"], colour[run["name"]], None)
        return Bar(run["name"], colour[run["name"]], value["mean"], value["low"], value["high"])

    charts = []
    for key in rewards_of(runs):
        rows = [bar(run, run["rewards"].get(key)) for run in runs]
        charts.append(
            {"title": f"Expected reward: {key}", "note": "higher is better", "svg": bars(f"Expected reward {key}", rows)}
        )
    for key, title, what in MEASURES:
        if any(run[key] for run in runs):
            by = f" in {metrics['extractors'][key]}" if key in metrics["extractors"] and key != "judge" else ""
            charts.append({"title": title, "note": what + by, "svg": bars(title, [bar(run, run[key]) for run in runs])})
    for key, title in DISTANCES[:2]:
        far = [run for run in runs if run[key]]
        if far:
            ground = floor[key]["pooled"] if floor else None
            rows = [Bar(run["name"], colour[run["name"]], run[key]["pooled"]) for run in far]
            note = f"to {metrics['reference']}, in {metrics['extractors'][key]}; lower is nearer"
            charts.append({"title": f"{title}, pooled", "note": note, "svg": bars(title, rows, ground)})
            ground = floor[key]["per_prompt"]["mean"] if floor and floor[key]["per_prompt"] else None
            if any(run[key]["per_prompt"] for run in far):
                rows = [bar(run, run[key]["per_prompt"]) for run in far]
                charts.append({"title": f"{title}, mean of prompts", "note": note, "svg": bars(title, rows, ground)})
    if len({frozenset(run["rewards"]) for run in runs}) == 1 and len(runs) > 1:
        for key in runs[0]["rewards"]:
            rows = [bar(run, run["rewards"][key]) for run in runs]
            svg = scatter(
                f"{key} and its cost", rows, [run["evaluations_per_image"] for run in runs], "denoiser evaluations per image"
            )
            if svg:
                charts.append({"title": f"What {key} costs", "note": "up and to the left is better", "svg": svg})
    return charts


def _labels(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per kind of label: accuracy and F1 of every run, and its confusion matrix where it is small enough to read."""
    found = []
    for kind in ("concept", "style", "background"):
        rows = []
        for run in runs:
            label = run["labels"][kind]
            if label is None:
                continue
            names, counts = label["classes"], label["confusion"]
            chart = matrix(f"{kind}: {run['name']}", names, [*names, "(other)"], counts) if len(names) <= MOST_CLASSES else ""
            rows.append({"run": run["name"], **label, "svg": chart})
        if rows:
            found.append({"kind": kind, "rows": rows})
    return found


def _prompts(metrics: Mapping[str, Any], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The drill-down: every run's numbers on a prompt, and its pictures."""
    found = []
    for i, entry in enumerate(metrics["per_prompt"]):
        runs = []
        for name, numbers in entry["runs"].items():
            pictures = [
                {"uri": thumbnail(folders[name] / image["file"]), "reward": number(image["reward"]), **_about(image)}
                for image in numbers["images"][:MOST_IMAGES]
            ] if i < MOST_PROMPTS else []  # fmt: skip
            runs.append({"name": name, **numbers, "pictures": pictures, "more": len(numbers["images"]) - len(pictures)})
        found.append({"prompt": entry["prompt"], "floor": entry["floor"], "runs": runs})
    return found


def _about(image: Mapping[str, Any]) -> dict[str, str]:
    return {"title": f"{image['file']}: reward {number(image['reward'])}, judge {number(image['judge'])}"}


def render(metrics: Mapping[str, Any], folders: Mapping[str, Path]) -> str:
    """The page.

    Args:
        metrics: what metrics.json holds.
        folders: of every run, by name.
    """
    runs = metrics["runs"]
    colour = colours([run["name"] for run in runs], [run["name"] for run in runs if run["role"] == "steered"])
    prompts = _prompts(metrics, folders)
    return fill(
        "report.html", {"interval": interval, "count": count},
        m=metrics, runs=runs, colour=colour, charts=_charts(metrics, colour), labels=_labels(runs),
        measures=[(key, title) for key, title, _ in MEASURES if any(run[key] for run in runs)], rewards=rewards_of(runs),
        distances=DISTANCES, prompts=prompts, overview=prompts[:MOST_OVERVIEW], most=MOST_PROMPTS,
    )  # fmt: skip
