"""`tilting evaluate`: runs of `tilting generate`, from manifests and pictures only, to metrics.json and report.html.

Expected reward and every judge: mean within a prompt, then across prompts. Distances to a reference run of the base model, in
two modes: pooled (all images of all prompts as one set), and per prompt (a distance of each prompt's few images, then the mean
over prompts: what the CoDe/CoDeX tables hold). Beside each stands the floor: the same distance between two base runs. A
reference may be a folder of pictures, which have no prompts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tilting.config.evaluate import EvaluateConfig
from tilting.disk import remove, unique_beside, write_atomically
from tilting.errors import TiltingError
from tilting.evaluation.distances import distances, shown
from tilting.evaluation.measure import (
    Measured,
    brief_metrics,
    features_of,
    heads,
    load_instruments,
    measure,
    says,
    score_images,
)
from tilting.evaluation.read_runs import Setup, setup
from tilting.evaluation.report import floors, render, too_few
from tilting.evaluation.rows import brief, per_prompt, row_of
from tilting.features.video import read_frames
from tilting.reports.tables import as_csv, as_latex
from tilting.reports.text import table
from tilting.rewards.spec import REWARDS
from tilting.runs.files import MANIFEST, digest_of, read_json, records_of, write_json
from tilting.runs.lock import exclusive
from tilting.runs.owner import EVALUATION, folder_of
from tilting.runs.processes import Processes, join_processes
from tilting.version import __version__

NEVER = {name for name, entry in REWARDS.items() if entry.together or entry.remote}
"""Rewards not computed here: a manifest does not get to send pictures away (nor to run a file); some are of a batch."""


def evaluate(config: EvaluateConfig, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Measure runs and write their report.

    Args:
        config: checked; ``out`` must be set, and be no folder with something else in it.
        argv: the command, for the record.
        quiet: no progress bar.

    Returns:
        What metrics.json holds.

    Raises:
        TiltingError: in one sentence; nothing is written then. The same evaluation, finished before, is given back.
    """
    together = join_processes()
    quiet = quiet or not together.main
    with exclusive(config.out, beside=True):
        folder = folder_of(config.out, EVALUATION)
        there = folder.exists() and any(folder.iterdir())
        if there and not (folder / EVALUATION.file).exists():
            raise TiltingError(f"--out {config.out!r} is there already: choose another, or remove it")
        parts = setup(config)
        if config.reference_image is None:
            config = replace(config, reference_image=parts.picture)
        asked = {
            "config": config.mapping(),
            "read": [digest_of((run.folder / MANIFEST, *records_of(run.folder))) for run in parts.runs]
            + ([digest_of(parts.pictures)] if parts.pictures else [])
            + ([digest_of(sorted(set(parts.inputs.values())))] if parts.inputs and parts.picture is None else []),
        }
        if there:
            before = read_json(folder / EVALUATION.file)
            if not (isinstance(before, dict) and asked == {key: before.get(key) for key in asked}):
                raise TiltingError(
                    f"--out {config.out!r} is there already, of other runs or options: choose another, or remove it"
                )
            if not quiet:
                print(f"tilting: {config.out!r} holds this evaluation already: nothing is measured again", file=sys.stderr)
            return before
        metrics = {"version": __version__, "argv": list(argv), **asked, **_metrics(config, parts, quiet, together)}
        if together.main:
            _write(folder, metrics, render(metrics, {run.name: run.folder for run in parts.runs}))
        return metrics


REPORT = "report.html"
FILES = (EVALUATION.file, REPORT, "table.csv", "table.tex")


def _tables(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """The summary as CSV, and as LaTeX."""
    lines, rewards = metrics["summary"], list(dict.fromkeys(key for line in metrics["summary"] for key in line["rewards"]))
    keys = (*(name for name, _ in heads()), "evaluations_per_image", "seconds_per_image", "verdict")
    titles = ["run", "method", *rewards, *(title for _, title in heads()), "evaluations", "seconds", "verdict"]
    few = too_few(metrics)
    rows = [
        [line["run"], line["method"], *map(line["rewards"].get, rewards), *(None if k in few else line[k] for k in keys)]
        for line in lines
    ]
    return as_csv(titles, rows), as_latex(titles, rows, "Means over prompts")


def _write(folder: Path, metrics: Mapping[str, Any], page: str) -> None:
    """A new folder with all files, or none."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = unique_beside(folder)
        made.mkdir()
        try:
            write_json(made / EVALUATION.file, metrics)
            for name, text in zip(FILES[1:], (page, *_tables(metrics)), strict=True):
                write_atomically(made / name, text.encode())
            if folder.exists():
                folder.rmdir()
            os.replace(made, folder)
        finally:
            remove(made, FILES)
    except OSError as error:
        raise TiltingError(f"cannot write {str(folder)!r}: {error.strerror}") from error


def _metrics(config: EvaluateConfig, parts: Setup, quiet: bool, together: Processes) -> dict[str, Any]:
    one = config.reference_image
    references = dict.fromkeys(parts.runs[0].prompts, Path(one)) if one else parts.inputs
    tools = together.agree(lambda: load_instruments(config, references))
    measured = {}
    for run in tqdm(parts.runs, desc="evaluate", unit="run", file=sys.stderr, disable=quiet, leave=False):
        measured[run.name] = measure(run, tools, together)
    if parts.reference and parts.pictures:
        measured[parts.reference] = Measured(features_of(parts.pictures, tools, together), {}, {}, {}, {}, {})
    notes = [parts.no_distances] if parts.no_distances else []
    notes += [*parts.notes, *_complete_rewards(parts, measured, together), *_lacking(config, parts)]
    far, floor = distances(config, parts, measured, notes)
    rows = [row_of(run, parts, measured, far.get(run.name), tools) for run in parts.runs]
    return {
        "extractors": tools.names(),
        "reference": parts.reference,
        "pictures": len(parts.pictures),
        "floor": shown(floor),
        "summary": [brief(row) for row in rows],
        "runs": rows,
        "per_prompt": per_prompt(parts, measured, far, floor),
        "notes": notes,
        "no_distances": parts.no_distances,
    }


def _complete_rewards(parts: Setup, measured: dict[str, Measured], together: Processes) -> list[str]:
    """Score from its pictures what a manifest does not hold; sentences for what was, and what cannot be."""
    notes = []
    for bare in dict.fromkeys(key for run in parts.runs for key in run.weights):
        lacking = [run.name for run in parts.runs if bare not in measured[run.name].rewards]
        if not lacking:
            continue
        if bare.partition(":")[0] not in REWARDS.keys() - NEVER:
            notes.append(f"The reward {bare} is missing for {', '.join(lacking)}: its manifest does not record it.")
            continue
        try:
            steered = [run for run in parts.runs if bare in run.weights]
            for run in parts.runs:
                measured[run.name].pictured[bare] = score_images(run, bare, together, steered)
                measured[run.name].rewards.setdefault(bare, measured[run.name].pictured[bare])
            names = ", ".join(lacking)
            notes.append(f"The reward {bare} of {names} was computed from the pictures (8 bits): no manifest there records it.")
        except TiltingError as error:
            notes.append(f"The reward {bare} is missing where a manifest does not record it: {error}.")
    return notes


def _lacking(config: EvaluateConfig, parts: Setup) -> list[str]:
    """Sentences for metrics that need something that was not given."""
    notes = []
    if config.reference_image is None and not parts.inputs:
        notes.append("I-Gram compares with one reference picture: give --reference-image FILE.")
    elif config.vgg is None:
        notes.append("I-Gram in its VGG sense needs weights: give --vgg FILE; the CLIP sense is reported.")
    if parts.inputs and config.lpips is None:
        notes.append("LPIPS to the input needs weights: give --vgg FILE and --lpips FILE.")
    if all(run.kl is None for run in parts.runs):
        notes.append("KL to the base is not recorded in these manifests.")
    if parts.pictures and config.inception is None:
        sizes = [
            read_frames(file).shape[-2:]
            for file in (parts.runs[0].folder / parts.runs[0].records[0]["file"], parts.pictures[0])
        ]
        if sizes[0] != sizes[1]:
            notes.append(
                f"FID in pocket-judge's features compares pictures of one size, and those of {parts.reference} have another "
                "than the runs: give Inception weights by --inception, or look at CMMD."
            )
    count = len(set(parts.runs[0].prompts))
    over = f"{count} prompts" if count > 1 else "the images of the one prompt"
    notes.append(
        f"Intervals are 95 % t intervals over {over}; those of a verdict's judges hold for all of them together (Holm)."
    )
    if max(len([r for r in run.prompts if r == run.prompts[0]]) for run in parts.runs) < 2:
        notes.append("Diversity and distances per prompt need 2 images of a prompt or more: generate with --images 2.")
    return notes


def describe(metrics: Mapping[str, Any]) -> str:
    """A table for people: one line per run, the floor, and the verdicts."""

    def cell(value: object) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    rewards = list(dict.fromkeys(key for line in metrics["summary"] for key in line["rewards"]))
    measures = heads()
    keys = (*(name for name, _ in measures), "evaluations_per_image", "verdict")
    rows = [["run", *rewards, *(title for _, title in measures), "evaluations", "verdict"]]
    counts = {row["name"]: row["images"] for row in metrics["runs"]}
    theirs = counts.get(metrics["reference"], metrics.get("pictures", 0))
    few = [metric for metric in brief_metrics("sets") if metrics["reference"] and not says(metric, theirs, *counts.values())]

    def value_of(line: Mapping[str, Any], key: str) -> object:
        return "too few" if line[key] is not None and key in {metric.name for metric in few} else line[key]

    for line in metrics["summary"]:
        means = [line["rewards"].get(key) for key in rewards]
        rows.append([cell(value) for value in (line["run"], *means, *(value_of(line, key) for key in keys))])
    floor, extractors, ground = metrics["floor"], metrics["extractors"], floors(metrics)
    if floor:
        few = [metric for metric in brief_metrics("sets") if metric in few or metric.name not in ground]
        pooled = [cell(ground.get(name, "too few")) if name in floor else "-" for name, _ in measures]
        rows.append(["floor", *["-"] * len(rewards), *pooled, "-", "-"])
    lines = [f"FID in {extractors['fid']}, CMMD in {extractors['cmmd']}" + (f"; floor: {floor['how']}" if floor else "")]
    lines += [f"{metric.title}: fewer than {metric.fewest} pictures a side say nothing" for metric in few]
    lines += [
        f"{row['name']}: {row['verdict']['word'] or 'no verdict'}, {row['verdict']['reason']}"
        for row in metrics["runs"]
        if row["verdict"]
    ]
    return "\n".join([*table(rows), *lines, *metrics["notes"]])
