"""report.html of an evaluation: one self-contained page made from metrics.json and the runs' pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.evaluation.measure import brief_metrics, heads, metrics_of, says
from tilting.metrics import METRICS, Metric
from tilting.reports.charts import Bar, bars, matrix, number, scatter
from tilting.reports.grid import read
from tilting.reports.pages import colours, fill, inlined
from tilting.reports.text import listed
from tilting.reports.words import legend

THUMB = 256
"""Pixels of the longer side of a picture in the page; smaller ones stay as they are."""
ALWAYS = ("reward", "judge", "held-out judge", "interval", "evaluations", "decodes", "floor", "too few to say")
"""Words that every page explains."""
MOST_PROMPTS, MOST_IMAGES, MOST_OVERVIEW, MOST_CLASSES = 60, 8, 8, 16


def interval(value: Mapping[str, float | None] | None) -> str:
    """ "0.31 [0.30, 0.32]" for people."""
    if value is None:
        return number(None)
    if value["low"] is None:
        return number(value["mean"])
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


def count(value: float) -> str:
    """A cost per image: 32, 12.5 or 1,200."""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def thumbnail(path: Path) -> str:
    """A picture as a data URI, at most `THUMB` pixels wide or high."""
    return inlined(read(path), THUMB)


def rewards_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every reward that some run has, by its spec without weight."""
    return list(dict.fromkeys(spec for run in runs for spec in run["rewards"]))


def _measures(runs: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """The metrics of images and of prompts that some run has; those that need more than runs come last."""
    metrics = [metric for kind in ("image", "prompt") for metric in metrics_of(kind)]
    return sorted((m for m in metrics if any(run[m.name] for run in runs)), key=lambda m: bool(m.needs))


def too_few(metrics: Mapping[str, Any], each: bool = False) -> set[str]:
    """The distances that say nothing for so few pictures, of whole runs or of each prompt."""
    counts = [run["images"] // run["prompts"] if each else run["images"] for run in metrics["runs"]]
    counts += [metrics["pictures"]] if metrics.get("pictures") and not each else []
    return {metric.name for metric in metrics_of("sets") if not says(metric, *counts)}


def floors(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The pooled floor of each distance, of halves of whatever size; without those that are of too few pictures."""
    floor = metrics["floor"]
    return {m.name: floor[m.name]["pooled"] for m in metrics_of("sets") if floor and says(m, *floor["images"])}


def _charts(metrics: Mapping[str, Any], colour: Mapping[str, str]) -> list[dict[str, str]]:
    runs, floor, charts = metrics["runs"], metrics["floor"], []
    few, few_each = too_few(metrics), too_few(metrics, each=True)

    def rows(values: Sequence[Mapping[str, float] | None], named: Sequence[Mapping[str, Any]] = runs) -> list[Bar]:
        intervals = [value or {} for value in values]
        return [
            Bar(run["name"], colour[run["name"]], v.get("mean"), v.get("low"), v.get("high"))
            for run, v in zip(named, intervals, strict=True)
        ]

    def add(title: str, note: str, svg: str) -> None:
        charts.append({"title": title, "note": note, "svg": svg})

    for key in rewards_of(runs):
        drawn = bars(f"Expected reward {key}", rows([run["rewards"].get(key) for run in runs]))
        add(f"Expected reward: {key}", "higher is better", drawn)
    for metric in _measures(runs):
        network = metrics["extractors"].get(metric.name)
        about = metric.about + (f" in {network}" if network and network != metric.title else "")
        add(metric.title, about, bars(metric.title, rows([run[metric.name] for run in runs])))
    for metric in brief_metrics("sets"):
        key, title = metric.name, metric.title
        far = [run for run in runs if run[key] and key not in few]
        note = f"to {metrics['reference']}, in {metrics['extractors'].get(key, key)}; {metric.better} is nearer"
        if far:
            pooled = rows([{"mean": run[key]["pooled"]} for run in far], far)
            add(f"{title}, pooled", note, bars(title, pooled, floors(metrics).get(key)))
        if any(run[key]["per_prompt"] for run in far) and key not in few_each:
            ground = floor[key]["per_prompt"]["mean"] if floor and floor[key]["per_prompt"] else None
            drawn = bars(title, rows([run[key]["per_prompt"] for run in far], far), ground)
            add(f"{title}, mean of prompts", note, drawn)
    if len({frozenset(run["rewards"]) for run in runs}) == 1 and len(runs) > 1:
        costs = [run["evaluations_per_image"] for run in runs]
        for key in runs[0]["rewards"]:
            means = rows([run["rewards"][key] for run in runs])
            svg = scatter(f"{key} and its cost", means, costs, "denoiser evaluations per image")
            if svg:
                add(f"What {key} costs", "up and to the left is better", svg)
    return charts


def _labels(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per kind of label: accuracy and F1 of every run, and its confusion matrix where it is small enough to read."""
    kinds = []
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
            kinds.append({"kind": kind, "rows": rows})
    return kinds


def _base(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """The base run of the verdicts, else any run of the base model."""
    against = [run["verdict"]["base"] for run in runs if run["verdict"] and run["verdict"]["base"]]
    return next(iter([*against, *(run["name"] for run in runs if run["role"] != "steered")]), None)


def _question(runs: Sequence[Mapping[str, Any]], base: str | None) -> str:
    """What the page answers."""
    steered = [run["name"] for run in runs if run["role"] == "steered"]
    if not steered or base is None:
        return f"What do {listed([run['name'] for run in runs])} show?"
    return f"Better than {base}, or gamed: {listed(steered)}?"


def _prompts(metrics: Mapping[str, Any], folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The drill-down: every run's numbers on a prompt, and its pictures."""
    base = _base(metrics["runs"])
    shown = []
    for i, entry in enumerate(metrics["per_prompt"]):
        runs = []
        for name, numbers in entry["runs"].items():
            first = numbers["images"][:MOST_IMAGES] if i < MOST_PROMPTS else []
            pictures = [{"uri": thumbnail(folders[name] / one["file"]), **_about(one)} for one in first]
            runs.append({"name": name, **numbers, "pictures": pictures, "more": len(numbers["images"]) - len(pictures)})
        ground = next((run for run in runs if run["name"] == base and run["pictures"]), None)
        theirs = ground["pictures"][0]["uri"] if ground and len(runs) > 1 else ""
        shown.append({"prompt": entry["prompt"], "floor": entry["floor"], "runs": runs, "theirs": theirs})
    return shown


def _about(image: Mapping[str, Any]) -> dict[str, str]:
    reward = number(image["reward"])
    return {"reward": reward, "title": f"{image['file']}: reward {reward}, judge {number(image['judge'])}"}


def render(metrics: Mapping[str, Any], folders: Mapping[str, Path]) -> str:
    """The page.

    Args:
        metrics: what metrics.json holds.
        folders: of every run, by name.
    """
    runs = metrics["runs"]
    colour = colours([run["name"] for run in runs], [run["name"] for run in runs if run["role"] == "steered"])
    prompts, few = _prompts(metrics, folders), too_few(metrics)
    met = {run["verdict"]["word"] for run in runs if run["verdict"]} | {title for _, title in heads()}
    return fill(
        "report.html",
        {"interval": interval, "count": count},
        question=_question(runs, _base(runs)),
        ground=_base(runs),
        few=few,
        few_each=too_few(metrics, each=True),
        floors=floors(metrics),
        lacking=[metric for metric in metrics_of("sets") if metric.name in few],
        has_kl=any(run["kl"] is not None for run in runs),
        words=legend({*ALWAYS, *met, "KL to base"}),
        m=metrics,
        runs=runs,
        colour=colour,
        charts=_charts(metrics, colour),
        labels=_labels(runs),
        titles={metric.name: metric.title for metric in METRICS.values()},
        measures=[(metric.name, metric.title) for metric in _measures(runs)],
        rewards=rewards_of(runs),
        distances=[(metric.name, metric.title) for metric in metrics_of("sets")],
        prompts=prompts,
        inputs={e["prompt"]: thumbnail(Path(e["input"])) for e in metrics["per_prompt"][:MOST_PROMPTS] if e.get("input")},
        brief=heads(),
        overview=prompts[:MOST_OVERVIEW],
        most=MOST_PROMPTS,
    )
