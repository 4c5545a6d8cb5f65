"""`tilting compare`: methods side by side on the same prompts, rewards and noise, as one page.

Every method's run is a folder of `tilting generate`, DIR/runs/METHOD, of one seed: image (prompt, index) starts from the same
x_T whatever the method, so differences are paired. Gains are means of r_method - r_reference over images, with a t interval
over prompts (`tilting.metrics.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tilting.config.compare import CompareConfig, named
from tilting.config.generate import GenerateConfig
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.evaluation.compare_page import PAGE, render, write_sheet
from tilting.generation.run import Folder, Parts, load_parts, plan_missing, run
from tilting.metrics.statistics import estimate, interval
from tilting.reports.text import table
from tilting.runs.alone import alone
from tilting.runs.files import keys_of, write_json
from tilting.runs.owner import COMPARISON, folder_of
from tilting.version import __version__


def compare(
    config: CompareConfig, argv: Sequence[str] = (), quiet: bool = False, parts: Callable[[GenerateConfig], Parts] = load_parts
) -> dict[str, Any]:
    """Draw what is missing of every method's run, and write compare.html, compare.png and metrics.json.

    Args:
        config: checked; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bars.
        parts: what loads model, reward and judge, once for all methods; not called when nothing is missing.

    Returns:
        What metrics.json holds (see `measure`).

    Raises:
        TiltingError: before anything is drawn or written, for a folder or a method that cannot work.
        RewardError: if the reward fails; images finished before stay, and the comparison resumes.
    """
    with alone(config.out):
        path = folder_of(config.out, COMPARISON)
        missing = [folder for folder in (Folder(one, argv) for one in config.runs) if not folder.complete]
        first = next((folder.config for folder in missing if folder.config.preset().needs_reward_gradient), None)
        loaded = parts(first or missing[0].config) if missing else None
        for folder in missing:
            assert loaded is not None
            try:
                plan_missing(folder, loaded)
            except TiltingError as error:
                raise named(folder.config.method, error) from None
        manifests = {one.method: run(one, argv, quiet, lambda _: loaded or parts(one)) for one in config.runs}
        metrics = {"version": __version__, "argv": list(argv), "config": config.mapping(), **measure(manifests)}
        metrics["unused"] = list(config.unused)
        write_sheet(path, metrics)
        write_atomically(path / PAGE, render(path, metrics).encode())
        write_json(path / COMPARISON.file, metrics)
        return metrics


def measure(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of finished runs of the same prompts and noise.

    Args:
        manifests: by method, in order.

    Returns:
        reference: the method that gains are against, ``base`` where it is among them, else the first. methods: of each its
        reward and judge {mean, sem}, the standard error over prompts (or null), costs per image and in total, ``gain`` and
        ``judge_gain`` {mean, low, high} of the paired difference to the reference (null for itself), ``wins``, the share of
        images whose reward is above the reference's. images: of every (prompt, index) the file, reward and judge by method.
    """
    reference = "base" if "base" in manifests else next(iter(manifests))
    keyed = {m: dict(zip(keys_of(run["images"]), run["images"], strict=True)) for m, run in manifests.items()}
    keys = list(keyed[reference])
    rows = []
    for method, manifest in manifests.items():
        summary, n = manifest["summary"], len(keys)
        ours, theirs = ([keyed[m][key] for key in keys] for m in (method, reference))
        row: dict[str, Any] = {"method": method, "folder": f"runs/{method}", "particles": manifest["config"]["particles"]}
        for key, gain in (("reward", "gain"), ("judge", "judge_gain")):
            row[key] = _mean(ours, key)
            row[gain] = None if method == reference else _gain(ours, theirs, key)
        pairs = [(a["reward"], b["reward"]) for a, b in zip(ours, theirs, strict=True)]
        known = method != reference and all(None not in pair for pair in pairs)
        row["wins"] = sum(a > b for a, b in pairs) / n if known else None
        for key in ("evaluations", "decodes", "reward_calls", "seconds"):
            row[key], row[f"{key}_per_image"] = summary[key], summary[key] / n
        rows.append(row)
    shown = []
    for prompt, index in keys:
        records = {m: keyed[m][prompt, index] for m in manifests}
        cells = {m: {"file": f"runs/{m}/{r['file']}", "reward": r["reward"], "judge": r["judge"]} for m, r in records.items()}
        shown.append({"prompt": prompt, "index": index, "methods": cells})
    return {"reference": reference, "methods": rows, "images": shown}


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None] | None:
    """Mean and standard error over prompts, of a lone one over its images; None where there is no value."""
    known = [record for record in records if record[key] is not None]
    if not known:
        return None
    found = estimate([record[key] for record in known], [record["prompt"] for record in known])
    return {"mean": found.mean, "sem": found.error}


def _gain(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None] | None:
    """The paired difference over images that both have a value of; with its interval."""
    both = [(a[key], b[key], a["prompt"]) for a, b in zip(ours, theirs, strict=True) if None not in (a[key], b[key])]
    if not both:
        return None
    a, b, prompts = (list(column) for column in zip(*both, strict=True))
    return interval(a, b, prompts)._asdict()


def describe(metrics: Mapping[str, Any]) -> str:
    """The table for people: a line per method, costs per image."""
    reference = metrics["reference"]
    rows = [["method", "reward", "judge", "evaluations", "seconds", f"gain over {reference} [95 %]", "wins"]]
    for row in metrics["methods"]:
        reward, gain = row["reward"], row["gain"]
        mean = "-" if reward is None else f"{reward['mean']:.4f}"
        mean += f" ± {reward['sem']:.4f}" if reward and reward["sem"] is not None else ""
        judge = "-" if row["judge"] is None else f"{row['judge']['mean']:.2f}"
        change = "-" if gain is None else f"{gain['mean']:+.4f}"
        change += f" [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain and gain["low"] is not None else ""
        wins = "-" if row["wins"] is None else f"{row['wins']:.0%}"
        cost = (f"{row['evaluations_per_image']:.4g}", f"{row['seconds_per_image']:.2f}")
        rows.append([row["method"], mean, judge, *cost, change, wins])
    images = len(metrics["images"])
    prompts = len({entry["prompt"] for entry in metrics["images"]})
    over = f"{prompts} prompts" if prompts > 1 else "the images of the one prompt"
    line = f"{images} image{'s' if images > 1 else ''} per method, of the same noise; costs are per image"
    return "\n".join([*table(rows), f"{line}; ± is the standard error, [95 %] the t interval, over {over}"])
