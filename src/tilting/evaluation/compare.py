"""`tilting compare`: methods side by side on the same prompts, rewards and noise, as one page.

Every method's run is a folder of `tilting generate`, DIR/runs/METHOD, of one seed: image (prompt, index) starts from the same
x_T whatever the method, so differences are paired. Gains are means of r_method - r_reference within a prompt, then across
prompts, with a t interval over prompts (`tilting.metrics.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.conditioning.sample_run import Loaded, SampleFolder, sample_into
from tilting.config.compare import CompareConfig, named
from tilting.config.condition_sample import SampleConfig
from tilting.config.generate import GenerateConfig
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.evaluation.compare_page import PAGE, render, write_sheet, write_tables
from tilting.generation.folder import Folder
from tilting.generation.progress import announce
from tilting.generation.run import Parts, load_parts, plan_missing, run
from tilting.metrics.statistics import Estimate, estimate, interval
from tilting.metrics.verdict import TOO_FEW, decide, too_few
from tilting.reports.text import table
from tilting.reports.words import TERMS
from tilting.runs.files import keys_of, write_json
from tilting.runs.lock import exclusive
from tilting.runs.owner import COMPARISON, folder_of
from tilting.runs.processes import join_processes
from tilting.version import __version__

AS_GOOD = 1e-6
"""Rewards apart by less than this share are equal: of the same picture in another batch they are, but for rounding."""


def compare(
    config: CompareConfig, argv: Sequence[str] = (), quiet: bool = False, parts: Callable[[GenerateConfig], Parts] = load_parts
) -> dict[str, Any]:
    """Draw what is missing of every method's run, and write the page, the sheet, metrics.json, tables and figures.

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
    together = join_processes(config.device)
    quiet = quiet or not together.main
    with exclusive(config.out):
        path = folder_of(config.out, COMPARISON)
        labels = dict(zip(config.methods, config.runs, strict=True))
        pool = _Pool(parts, Loaded())
        missing = [(label, folder) for label, one in labels.items() if not (folder := pool.folder(one, argv)).complete]
        if missing:
            announce(f"loading {config.model}", quiet)
        together.agree(lambda: pool.check(missing))
        manifests = {label: pool.run(one, argv, quiet) for label, one in labels.items()}
        places = {label: Path(one.out or "").name for label, one in labels.items()}
        metrics = {"version": __version__, "argv": list(argv), "config": config.mapping(), **measure(manifests, places)}
        metrics["unused"] = list(config.unused)
        if together.main:
            write_sheet(path, metrics)
            write_tables(path, metrics)
            write_atomically(path / PAGE, render(path, metrics).encode())
            write_json(path / COMPARISON.file, metrics)
        return metrics


class _Pool:
    """What is loaded once for the runs of a comparison: a model for all that have the same LoRAs.

    Args:
        load: what loads model, reward and judge of a run.
        controls: what is loaded for the runs with a control.
    """

    def __init__(self, load: Callable[[GenerateConfig], Parts], controls: Loaded):
        self.load, self.controls, self.known = load, controls, {}

    def folder(self, config: GenerateConfig, argv: Sequence[str]) -> Folder:
        """Where a run stands."""
        return SampleFolder(config, argv, self.controls) if isinstance(config, SampleConfig) else Folder(config, argv)

    def parts(self, config: GenerateConfig) -> Parts:
        """The loaded parts of a run. Raises what loading raises."""
        if isinstance(config, SampleConfig):
            return self.controls.load(config)
        key = config.lora, config.lora_steps, config.lora and config.steps
        if key not in self.known:
            self.known[key] = self.load(config)
        return self.known[key]

    def check(self, missing: Sequence[tuple[str, Folder]]) -> None:
        """Load what runs need, and refuse what cannot be drawn of them. Raises what loading raises, and TiltingError."""
        climbing = [folder.config for _, folder in missing if folder.config.preset().needs_reward_gradient]
        for one in (*climbing, *(folder.config for _, folder in missing)):
            self.parts(one)
        for label, folder in missing:
            try:
                plan_missing(folder, self.parts(folder.config))
            except TiltingError as error:
                raise named(label, error) from None

    def run(self, config: GenerateConfig, argv: Sequence[str], quiet: bool) -> dict[str, Any]:
        """Draw what is missing; the manifest."""
        if isinstance(config, SampleConfig):
            return sample_into(config, self.controls, argv, quiet)
        return run(config, argv, quiet, self.parts)


def measure(manifests: Mapping[str, Mapping[str, Any]], places: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The numbers of finished runs of the same prompts and noise.

    Args:
        manifests: by method, in order.
        places: the folder of each under runs/; default its name.

    Returns:
        reference: the method that gains are against, ``base`` where it is among them, else the first. methods: of each its
        reward and judge {mean, sem}, the standard error over prompts (or null), costs per image and in total, ``gain`` and
        ``judge_gain`` {mean, low, high} of the paired difference to the reference (null for itself), ``verdict`` {word,
        reason} of both, ``wins``, the share of images whose reward is above the reference's, equal ones by half. images: of
        every (prompt, which of its images) the file, reward and judge by method.
    """
    where = places or {method: method for method in manifests}
    reference = "base" if "base" in manifests else next(iter(manifests))
    keyed = {m: dict(zip(keys_of(run["images"]), run["images"], strict=True)) for m, run in manifests.items()}
    keys = list(keyed[reference])
    rows = []
    for method, manifest in manifests.items():
        summary, n = manifest["summary"], len(keys)
        ours, theirs = ([keyed[m][key] for key in keys] for m in (method, reference))
        row: dict[str, Any] = {
            "method": method,
            "folder": f"runs/{where[method]}",
            "particles": manifest["config"]["particles"],
        }
        row["preset"] = manifest["config"].get("method", method)
        for key, gain in (("reward", "gain"), ("judge", "judge_gain")):
            row[key] = _mean(ours, key)
            row[gain] = None if method == reference else _gain(ours, theirs, key)
        row["verdict"] = None if method == reference else _verdict(ours, theirs)
        pairs = [(a["reward"], b["reward"]) for a, b in zip(ours, theirs, strict=True)]
        known = method != reference and all(None not in pair for pair in pairs)
        row["wins"] = sum(0.5 if math.isclose(a, b, rel_tol=AS_GOOD) else a > b for a, b in pairs) / n if known else None
        for key in ("evaluations", "decodes", "reward_calls", "seconds"):
            row[key], row[f"{key}_per_image"] = summary[key], summary[key] / n
        rows.append(row)
    shown = []
    for prompt, index in keys:
        records = {m: keyed[m][prompt, index] for m in manifests}
        cells = {
            m: {"file": f"runs/{where[m]}/{r['file']}", "reward": r["reward"], "judge": r["judge"]} for m, r in records.items()
        }
        shown.append({"prompt": prompt, "index": index, "methods": cells})
    return {"reference": reference, "methods": rows, "images": shown}


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, float | None] | None:
    """Mean and standard error over prompts, of a lone one over its images; None where there is no value."""
    known = [record for record in records if record[key] is not None]
    if not known:
        return None
    found = estimate([record[key] for record in known], [record["prompt"] for record in known])
    return {"mean": found.mean, "sem": found.error}


def _verdict(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The word of the rewards and the judge, which no reward reads, and its reason; None where there is no reward."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if None not in (a["reward"], b["reward"])]
    if not pairs:
        return None
    few = too_few([a["prompt"] for a, _ in pairs])
    if few is not None:
        return {"word": TOO_FEW, "reason": few}

    def moved(key: str) -> Estimate | None:
        known = [(a[key] - b[key], a["prompt"]) for a, b in pairs if None not in (a[key], b[key])]
        return estimate([gap for gap, _ in known], [prompt for _, prompt in known]) if known else None

    reward, judge = moved("reward"), moved("judge")
    assert reward is not None
    found = decide(reward, {} if judge is None else {"judge": judge})
    return {"word": found.word, "reason": found.reason}


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
    over = f"over {reference} [95 %]"
    rows = [["method", "reward", "judge", "evaluations", "seconds", f"gain {over}", f"judge {over}", "wins", "verdict"]]
    for row in metrics["methods"]:
        reward = row["reward"]
        mean = "-" if reward is None else f"{reward['mean']:.4f}"
        mean += f" ± {reward['sem']:.4f}" if reward and reward["sem"] is not None else ""
        judge = "-" if row["judge"] is None else f"{row['judge']['mean']:.2f}"
        changes = [_change(row[key], digits) for key, digits in (("gain", 4), ("judge_gain", 2))]
        wins = "-" if row["wins"] is None else f"{row['wins']:.0%}"
        cost = (f"{row['evaluations_per_image']:.4g}", f"{row['seconds_per_image']:.2f}")
        rows.append([row["method"], mean, judge, *cost, *changes, wins, row["verdict"]["word"] if row["verdict"] else "-"])
    images = len(metrics["images"])
    prompts = len({entry["prompt"] for entry in metrics["images"]})
    over = f"{prompts} prompts" if prompts > 1 else "the images of the one prompt"
    line = f"{images} image{'s' if images > 1 else ''} per method, of the same noise; costs are per image"
    told = [f"{row['method']}: {row['verdict']['reason']}" for row in metrics["methods"] if row["verdict"]]
    judge = [f"judge: {TERMS['judge'].short}"] if any(row["judge"] for row in metrics["methods"]) else []
    below = f"{line}; ± is the standard error, [95 %] the t interval, over {over}"
    return "\n".join([*table(rows), *told, below, *judge])


def _change(gain: Mapping[str, float] | None, digits: int) -> str:
    """A gain with its interval."""
    if gain is None:
        return "-"
    bounds = "" if gain["low"] is None else f" [{gain['low']:+.{digits}f}, {gain['high']:+.{digits}f}]"
    return f"{gain['mean']:+.{digits}f}{bounds}"
