"""The pages of a `finetune` run: finetune.html, before-after.png, and curve.png.

All of it is made of the run's folder alone: before/ and after/, the first and the last look at the same prompts and noise, and
metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.config.finetune import FinetuneConfig
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.evaluation.compare import measure
from tilting.evaluation.compare_page import asked_for, render, write_sheet
from tilting.objectives import OBJECTIVES
from tilting.reports.course import CURVE, Course, course, course_png, points_of
from tilting.runs.files import MANIFEST, read_json
from tilting.runs.lock import exclusive
from tilting.training.bar import kl_name
from tilting.training.folder import METRICS, read_lines
from tilting.training.run import describe, run
from tilting.training.samples import AFTER, BEFORE, LOOK

PAGE, SHEET = "finetune.html", "before-after.png"


def courses(folder: Path, summary: Mapping[str, Any]) -> list[Course]:
    """Reward, judge and KL over training, as far as the run has them."""
    rows, looks = read_lines(folder / METRICS), summary.get("samples") or []
    of_training = points_of(rows, "reward")
    return [
        Course("Reward", "line: of training; points: of the samples", of_training, points_of(looks, "sample_reward")),
        Course("Judge", "of the samples", (), points_of(looks, "judge")),
        Course("KL to the model before", "nats per image", points_of(rows, kl_name(rows))),
    ]


def looked(folder: Path) -> dict[str, Any] | None:
    """What `measure` takes of the first and the last look; None where a run was not looked at, or by an older version."""
    found = {}
    for name in (BEFORE, AFTER):
        file = folder / name / LOOK
        if not file.is_file():
            return None
        try:
            told = read_json(file)
        except TiltingError:  # a kill that came between them; the next look writes it anew
            return None
        costs = {"evaluations": told["evaluations"], "decodes": len(told["images"]), "reward_calls": 0, "seconds": 0.0}
        found[name] = {"config": {"particles": None, "method": name}, "images": told["images"], "summary": costs}
    return found


def finetune(config: FinetuneConfig, argv: Sequence[str] = (), quiet: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Train what is missing of a run, and leave what is to be looked at; its manifest, and lines for people.

    Raises:
        TiltingError: see `tilting.training.run.run`.
    """
    manifest = run(config, argv, quiet)
    if not manifest["summary"]:  # of a process that is not the main one
        return manifest, []
    folder = Path(config.out or "")
    files = [name for name in (PAGE, SHEET, CURVE) if (folder / name).is_file()]
    if CURVE not in files or (folder / CURVE).stat().st_mtime_ns < (folder / MANIFEST).stat().st_mtime_ns:
        with exclusive(config.out):
            files = write_tuned(folder, manifest)
    return manifest, [describe(manifest), *(f"to look at: {folder / name}" for name in files)]


def write_tuned(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Make them of a run's folder; the names of what could be made."""
    shown = [one for one in courses(folder, manifest["summary"]) if one.every or one.looks]
    files, found = [], looked(folder)
    if found is not None:
        _write_page(folder, manifest, found, shown)
        files += [PAGE, SHEET]
    if picture := course_png(shown):  # the last one: where it is, the others are
        write_atomically(folder / CURVE, picture)
        files.append(CURVE)
    return files


def _write_page(folder: Path, manifest: Mapping[str, Any], found: Mapping[str, Any], shown: Sequence[Course]) -> None:
    config, summary = manifest["config"], manifest["summary"]
    asked = asked_for(config) or "the pairs"
    about = {"version": manifest["version"], "argv": manifest["argv"]}
    metrics = {**about, "config": {**config, "image": None, "strength": None}, **measure(found)}
    for entry in metrics["images"]:
        for name, cell in entry["methods"].items():
            cell["file"] = cell["file"].removeprefix(f"runs/{name}/")
    write_sheet(folder, metrics, SHEET)
    steps = f"{summary['steps']} training steps by {config['objective']}"
    charts = [{"title": one.title, "note": one.note, "svg": course(one.title, one), "kind": ""} for one in shown]
    page = render(
        folder,
        metrics,
        name="finetune",
        question=f"Did {steps} raise {asked}, or game it?",
        papers={BEFORE: "the model as it was", AFTER: OBJECTIVES[config["objective"]].paper},
        charts=charts,
        note=f"{steps} cost {summary['evaluations']:,} evaluations and {summary['seconds']:,.0f} s.",
    )
    write_atomically(folder / PAGE, page.encode())
