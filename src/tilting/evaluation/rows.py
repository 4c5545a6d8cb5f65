"""The row of a run: means with intervals, labels, costs and the verdict, from what `measure` found."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tilting.errors import TiltingError
from tilting.evaluation.distances import shown, with_means
from tilting.evaluation.measure import Instruments, Measured, brief_metrics, metrics_of, rows_by_prompt
from tilting.evaluation.read_runs import CHANGES, Run, Setup
from tilting.features.sources import identity
from tilting.metrics.labels import read_labels
from tilting.metrics.prompts import across, difference, expected, paired
from tilting.metrics.statistics import Estimate
from tilting.metrics.verdict import TOO_FEW, decide, too_few
from tilting.rewards.spec import parse_spec


def _finite(values: Sequence[float], prompts: Sequence[str]) -> tuple[list[float], list[str]]:
    """Values that are numbers, and their prompts."""
    kept = [(v, p) for v, p in zip(values, prompts, strict=True) if v == v]
    return [v for v, _ in kept], [p for _, p in kept]


def _expected(values: Sequence[float] | None, prompts: Sequence[str]) -> dict[str, float] | None:
    values, prompts = _finite(values or [], prompts if values else [])
    return expected(values, prompts)._asdict() if values else None


def objective(run: Run, measured: Measured, weights: Mapping[str, float], pictured: Container[str] = ()) -> list[float] | None:
    """The weighted sum of rewards of every image; None when one of them is missing, or there is none.

    Args:
        run: whose images.
        measured: what was measured of them.
        weights: by spec without weight.
        pictured: specs whose values are to be those of the picture files.
    """
    if not weights or any(key not in measured.rewards for key in weights):
        return None
    values = {key: measured.pictured[key] if key in pictured else measured.rewards[key] for key in weights}
    return [sum(w * values[key][i] for key, w in weights.items()) for i in range(len(run.records))]


def row_of(
    run: Run, parts: Setup, measured: Mapping[str, Measured], distance: dict | None, tools: Instruments
) -> dict[str, Any]:
    """Everything about one run."""
    mine, prompts, summary = measured[run.name], run.prompts, run.manifest["summary"]
    count = len(run.records)
    far = shown(with_means(distance)) if distance else None
    return {
        "name": run.name,
        "method": run.method,
        "beside": [key for key in CHANGES if run.config.get(key)],
        "role": "reference" if run.name == parts.reference else "steered" if run.changed else "base",
        "config": {k: run.config.get(k) for k in ("model", "reward", "particles", "steps", "eta", "cfg", "images")},
        "seed": run.seeds[0] if len(run.seeds) == 1 else run.seeds,
        "prompts": len(set(prompts)),
        "images": count,
        "reward": _expected(objective(run, mine, run.weights), prompts),
        "rewards": {key: _expected(values, prompts) for key, values in mine.rewards.items()},
        **{m.name: _expected(mine.scores.get(m.name), prompts) for m in metrics_of("image")},
        **{name: across(values)._asdict() if values else None for name, values in mine.of_prompt.items()},
        **{m.name: far[m.name] if far else None for m in metrics_of("sets")},
        "kl": run.kl,
        "labels": _labels(mine),
        "evaluations_per_image": summary["evaluations"] / count,
        "decodes_per_image": summary["decodes"] / count,
        "seconds_per_image": summary["seconds"] / count,
        "verdict": verdict_of(run, parts, measured, tools),
    }


def _labels(mine: Measured) -> dict[str, Any]:
    """Per kind of label that prompts ask for: accuracy, macro F1 and the confusion matrix."""
    labels: dict[str, Any] = {}
    for kind, asked in mine.asked.items():
        pairs = [(a, b) for a, b in zip(asked, mine.read[kind], strict=True) if a is not None]
        labels[kind] = None
        if pairs:
            r = read_labels([a for a, _ in pairs], [b for _, b in pairs])
            counts = [list(row) for row in r.confusion]
            labels[kind] = {"images": r.count, "accuracy": r.accuracy, "macro_f1": r.macro_f1}
            labels[kind] |= {"classes": list(r.classes), "confusion": counts}
    return labels


def networks_of(weights: Mapping[str, float]) -> set[str]:
    """The CLIPs that rewards read, by the name `Instruments.clip_name` has for them."""
    names = set()
    for spec in weights:
        with suppress(TiltingError):  # its files may have gone since it was drawn with
            names.add(parse_spec(spec).reads.clip)
    return {name for name in names if name is not None}


def verdict_of(run: Run, parts: Setup, measured: Mapping[str, Measured], tools: Instruments) -> dict[str, Any] | None:
    """The run against its base; None for a base run."""
    if not run.changed:
        return None
    name = parts.bases.get(run.name)
    if name is None:
        return {"word": None, "base": None, "reason": "there is no run of method base alone to compare with"}
    base, mine, theirs = parts.run(name), measured[run.name], measured[name]
    # Where one of the two has no record, both are taken from their pictures: rounding to bytes must not look like a gain.
    alike = {k for k in run.weights for m in (mine, theirs) if k in m.pictured and m.rewards.get(k) is m.pictured[k]}
    ours, others = objective(run, mine, run.weights, alike), objective(base, theirs, run.weights, alike)
    if ours is None or others is None:
        return {"word": None, "base": name, "reason": f"{name} was not scored with the reward of {run.name}"}

    def against(a: Sequence[float], b: Sequence[float]) -> Estimate | None:
        first, second = ({k: v for k, v in zip(r.keys, x, strict=True) if v == v} for r, x in ((run, a), (base, b)))
        return paired(first, second) if first and {p for p, _ in first} == {p for p, _ in second} else None

    few = too_few(run.prompts)
    if few is not None:
        return {"word": TOO_FEW, "base": name, "reason": few}
    judges: dict[str, Estimate | None] = {}
    known = frozenset[str]().union(*(identity(name) for name in networks_of(run.weights)))
    for metric in metrics_of("image"):
        network = tools.names().get(metric.name)
        if metric.judges and metric.name in mine.scores and not (network and identity(network) & known):
            judges[metric.title] = against(mine.scores[metric.name], theirs.scores[metric.name])
    praised = {spec.partition(":")[0] for spec in run.weights}
    for metric in metrics_of("prompt"):
        first, second = mine.of_prompt[metric.name], theirs.of_prompt[metric.name]
        if metric.judges and metric.name not in praised and first and set(first) == set(second):
            judges[metric.name] = difference(first, second)
    rose = against(ours, others)
    if rose is None:
        return {"word": None, "base": name, "reason": f"{run.name} and {name} share no scored prompts"}
    verdict = decide(rose, {key: value for key, value in judges.items() if value is not None})
    return {
        "word": verdict.word,
        "base": name,
        "paired": base.seeds == run.seeds,
        "reason": verdict.reason,
        "reward": verdict.reward._asdict(),
        "judges": {key: value._asdict() for key, value in verdict.judges.items()},
    }


def brief(row: Mapping[str, Any]) -> dict[str, Any]:
    """A run in one line of numbers."""

    def mean(key: str) -> float | None:
        return row[key]["mean"] if row[key] else None

    def pooled(key: str) -> float | None:
        return row[key]["pooled"] if row[key] else None

    rewards = {key: value["mean"] for key, value in row["rewards"].items() if value}
    return {
        "run": row["name"],
        "method": row["method"],
        "reward": mean("reward"),
        "rewards": rewards,
        **{m.name: mean(m.name) for m in brief_metrics("image", "prompt")},
        **{m.name: pooled(m.name) for m in brief_metrics("sets")},
        "evaluations_per_image": row["evaluations_per_image"],
        "seconds_per_image": row["seconds_per_image"],
        "verdict": row["verdict"]["word"] if row["verdict"] else None,
    }


def per_prompt(
    parts: Setup, measured: Mapping[str, Measured], distances: Mapping[str, dict], floor: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Prompt by prompt: every run's numbers and images."""
    entries, far = [], [metric.name for metric in brief_metrics("sets")]
    for prompt in dict.fromkeys(parts.runs[0].prompts):
        made_of = parts.inputs.get(prompt)
        entry: dict[str, Any] = {"prompt": prompt, "input": made_of and str(made_of), "floor": None, "runs": {}}
        if floor:
            entry["floor"] = {name: floor[name]["each"].get(prompt) for name in far}
        for run in parts.runs:
            mine, rows = measured[run.name], rows_by_prompt(run.prompts)[prompt]
            total = objective(run, mine, run.weights)
            numbers = {"reward": total, **{m.name: mine.scores[m.name] for m in brief_metrics("image")}}
            means: dict[str, Any] = {key: _mean([v[i] for i in rows]) if v else None for key, v in numbers.items()}
            means["rewards"] = {key: _mean([v[i] for i in rows]) for key, v in mine.rewards.items()}
            away = {name: distances[run.name][name]["each"].get(prompt) if run.name in distances else None for name in far}
            images = [
                {
                    **{key: run.records[i][key] for key in ("file", "index")},
                    "reward": total[i] if total else None,
                    "judge": _mean([mine.scores["judge"][i]]),
                }
                for i in rows
            ]
            inside = {name: values.get(prompt) for name, values in mine.of_prompt.items()}
            entry["runs"][run.name] = {**means, **inside, **away, "images": images}
        entries.append(entry)
    return entries


def _mean(values: Sequence[float]) -> float | None:
    kept = [v for v in values if v == v]
    return sum(kept) / len(kept) if kept else None
