"""Distances between runs from their features, pooled and per prompt, and their floor."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tilting.config.evaluate import EvaluateConfig
from tilting.evaluation.measure import Measured, metrics_of, rows_by_prompt
from tilting.evaluation.read_runs import Setup
from tilting.metrics import Metric
from tilting.metrics.prompts import across


def compare(a: tuple[dict[str, Tensor], list[str]], b: tuple[dict[str, Tensor], list[str]]) -> dict[str, Any]:
    """The distances of two sets of features with their prompts: pooled, and prompt by prompt."""
    far: dict[str, Any] = {}
    rows, others = rows_by_prompt(a[1]), rows_by_prompt(b[1])
    shared = [prompt for prompt in rows if min(len(rows[prompt]), len(others.get(prompt, ()))) >= 2]
    for metric in metrics_of("sets"):

        def distance(ours: Any = slice(None), theirs: Any = slice(None), metric: Metric = metric) -> float:
            return metric(*({name: side[name][rows] for name in metric.takes} for side, rows in ((a[0], ours), (b[0], theirs))))

        pooled = distance() if min(len(a[1]), len(b[1])) >= 2 else None
        far[metric.name] = {"pooled": pooled, "each": {p: distance(rows[p], others[p]) for p in shared}}
    return far | {"images": [len(a[1]), len(b[1])]}


def _features(measured: Measured, rows: Sequence[int] | None = None) -> dict[str, Tensor]:
    pick = slice(None) if rows is None else list(rows)
    return {name: values[pick] for name, values in measured.features.items()}


def halves(prompts: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """The rows of two halves of every prompt's images, drawn by the seed; of an odd number, one stays out."""
    first, second = [], []
    for prompt, rows in rows_by_prompt(prompts).items():
        rows = list(rows)
        random.Random(f"{seed} {prompt}").shuffle(rows)  # nosec B311: halves that are the same each time
        half = len(rows) // 2
        first += rows[:half]
        second += rows[half : 2 * half]
    return sorted(first), sorted(second)


def distances(
    config: EvaluateConfig, parts: Setup, measured: Mapping[str, Measured], notes: list[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Distances of every run to the reference, and the floor with how it was measured; (nothing, None) without a reference."""
    if parts.reference is None:
        return {}, None
    if parts.pictures:
        return _to_pictures(config, parts, measured)
    reference = parts.run(parts.reference)
    theirs = _features(measured[reference.name]), reference.prompts
    others = [run for run in parts.runs if run is not reference]
    far = {run.name: compare((_features(measured[run.name]), run.prompts), theirs) for run in others}
    if parts.floor is not None:
        how = f"two runs of the base model, {parts.floor} and the reference {reference.name}"
        return far, {"kind": "runs", "how": how, **with_means(far[parts.floor])}
    first, second = halves(reference.prompts, config.seed)
    if len(first) < 2:
        notes.append(
            "There is no floor: give a second run of the base model, or a reference with 2 images of a prompt or more."
        )
        return far, None
    prompts = [[reference.prompts[i] for i in rows] for rows in (first, second)]
    pair = [_features(measured[reference.name], rows) for rows in (first, second)]
    how = f"two halves of the reference {reference.name} ({len(first)} images each, so it lies above that of whole runs)"
    return far, {"kind": "halves", "how": how, **with_means(compare((pair[0], prompts[0]), (pair[1], prompts[1])))}


def _to_pictures(
    config: EvaluateConfig, parts: Setup, measured: Mapping[str, Measured]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any] | None]:
    """Distances of every run to pictures without prompts, each treated as a prompt; the floor is between two halves of them."""
    assert parts.reference is not None
    own, features = [str(file) for file in parts.pictures], measured[parts.reference]
    far = {run.name: compare((_features(measured[run.name]), run.prompts), (_features(features), own)) for run in parts.runs}
    first, second = halves([""] * len(own), config.seed)
    if len(first) < 2:
        return far, None
    pair = [(_features(features, rows), [own[i] for i in rows]) for rows in (first, second)]
    how = f"two halves of the pictures of {parts.reference} ({len(first)} each, so it lies above that of whole folders)"
    return far, {"kind": "pictures", "how": how, **with_means(compare(*pair))}


def with_means(distance: Mapping[str, Any]) -> dict[str, Any]:
    """A distance pooled, its mean over prompts with the interval, and for each prompt."""
    means = {}
    for name in (metric.name for metric in metrics_of("sets")):
        each = distance[name]["each"]
        mean = across(each)._asdict() if each else None
        means[name] = {"pooled": distance[name]["pooled"], "per_prompt": mean, "each": each}
    return means | {"images": distance["images"]}


def shown(distance: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What metrics.json holds of `with_means`: all but each prompt's, which stands under ``per_prompt`` there."""
    if distance is None:
        return None
    short = {m.name: {k: v for k, v in distance[m.name].items() if k != "each"} for m in metrics_of("sets")}
    return {**distance, **short}
