"""`tilting condition train`: trains a control from classifiers (CTRL) or triplets (classifier-free), in a resumable folder.

    CTL/control.json, lora/, embedding.safetensors, classifiers/    the control (`tilting.models.control_spec`) at the last save
    CTL/metrics.jsonl, timing.jsonl, checkpoints/, manifest.json    the run, as of `tilting finetune`
    CTL/samples/NNNNNN.png, curve.png                               what it draws, and how that went

A run goes on from its newest checkpoint, bit for bit; lines after it are cut and made again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tilting.conditioning.classifiers import Classifier, by_label, read_classifier
from tilting.conditioning.dataset import Dataset, bar, read_tables
from tilting.conditioning.looks import look_at, write_control_look
from tilting.conditioning.readings import obedience
from tilting.conditioning.trainer import ControlTrainer, check_gradient, control_trainer_of
from tilting.conditioning.triplets import labelled
from tilting.config.condition_train import FREE, TrainConfig
from tilting.disk import write_atomically
from tilting.generation.generate import Judge, judge_of
from tilting.models import control_spec, load
from tilting.models.inputs import resolve_inputs
from tilting.models.placement import device_of
from tilting.reports.course import CURVE, Course, course_png, points_of
from tilting.runs.lock import exclusive
from tilting.runs.run_folder import costs_told
from tilting.training.bar import kl_name, kl_of
from tilting.training.driver import Observer, enter, train_in_folder
from tilting.training.folder import METRICS, TrainingFolder, already_told, read_lines
from tilting.training.loop import Info
from tilting.training.processes import Engine, place_before
from tilting.training.trainer import on_device


class Parts(NamedTuple):
    """What a run needs loaded."""

    model: Any
    classifiers: list[Classifier]


class ControlFolder(TrainingFolder[TrainConfig]):
    """The folder of a run, which is the folder of its control.

    Args:
        config, argv: see `TrainingFolder`.
        quiet: no bars while tables are read.
    """

    def __init__(self, config: TrainConfig, argv: Sequence[str] = (), quiet: bool = True):
        self.tables: list[Dataset] = read_tables(config.data, config.label, config.skip_bad, quiet)
        super().__init__(config, argv)

    def rewards(self) -> list[dict[str, Any]]:
        """No rewards: what a control is trained by are its classifiers, or tables."""
        data = zip(self.config.data, self.tables, strict=True)
        return [*self.config.digests(), *({"name": name, "sha256": table.digest()} for name, table in data)]

    @property
    def finished(self) -> bool:
        return super().finished and (self.path / control_spec.FILE).is_file()


def load_parts(config: TrainConfig) -> Parts:
    """Load what a config asks for: the classifiers first, so that a wrong one is refused before the model is read,
    and before them a device that is not here."""
    device_of(config.device)
    device_of(config.reward_device or "auto", "reward-device")
    classifiers = [read_classifier(name) for name in config.classifier]
    if not config.free:
        check_gradient(config.planner, by_label(classifiers))
    told, each = resolve_inputs(config)
    return Parts(load(config.model, place_before(config.device), config.precision, each=each, **told), classifiers)


def condition_train(
    config: TrainConfig, argv: Sequence[str] = (), quiet: bool = False, parts: Callable[[TrainConfig], Parts] = load_parts
) -> dict[str, Any]:
    """Train what is missing of a control and return the manifest of its folder.

    Args:
        config: from `TrainConfig.resolve`; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bar, and no line about skipped steps.
        parts: what loads model and classifiers; only called when something is missing.

    Raises:
        TiltingError: before anything is written, for a request or a folder that cannot work; and when ten steps in a row were
            skipped, the last good state kept.
    """
    with exclusive(config.out):
        folder = ControlFolder(config, argv, quiet)
        for table in () if quiet else folder.tables:
            for line in table.told(range(len(table.records))):
                print(f"tilting: {line}", file=sys.stderr)
        if not folder.finished:
            loaded = parts(config)
            engine, saved = enter(folder)
            trainer = _trainer(folder, loaded, engine, quiet or not engine.main)
            judge = judge_of(config.model) if config.sample_every else None
            train_in_folder(Obedience(folder, trainer, judge), saved, quiet)
            trainer.control()
        return folder.answer


def courses(folder: TrainingFolder[TrainConfig], looks: Sequence[Mapping[str, Any]]) -> list[Course]:
    """How probable labels became, at which price, and what the judge says of the pictures, over training."""
    rows = read_lines(folder.path / METRICS)
    kl = kl_name(rows)
    return [
        Course("Obedience", "log p of the labels asked for, nats", points_of(rows, "log_prob")),
        Course("KL to the model", "nats per image" + (", of the open steps" if kl == "kl_open" else ""), points_of(rows, kl)),
        Course("Judge", "of the samples", (), points_of(looks, "judge")),
    ]


def _trainer(folder: ControlFolder, parts: Parts, engine: Engine, quiet: bool) -> ControlTrainer:
    """What trains the control, of labelled pictures where it is classifier-free."""
    config, data = folder.config, None
    model: Any = on_device(parts.model, engine)
    if config.objective == FREE:
        with bar(sum(len(table.records) for table in folder.tables), "latents", quiet) as progress:
            data = labelled(model, folder.tables, [c.schema for c in parts.classifiers], progress.update)
    return control_trainer_of(config, model, parts.classifiers, engine, data, folder.head["model"])


class Obedience(Observer[TrainConfig]):
    """How probable the labels asked for are, as training sees it, and what a few pictures are like now and then.

    Args:
        folder, trainer: of the run.
        judge: of the model's pictures.
    """

    name, weights = "control", "."
    trainer: ControlTrainer

    def __init__(self, folder: ControlFolder, trainer: ControlTrainer, judge: Judge | None = None):
        super().__init__(folder, trainer)
        self.last: Mapping[str, Any] | None = None
        self.judge = judge

    def resume(self, state: Mapping[str, Any]) -> None:
        self.last, self.samples = state.get("last"), state.get("samples", [])  # which older checkpoints have not

    def state(self) -> dict[str, Any]:
        return {"last": self.last and dict(self.last), "samples": self.samples}

    def look(self, row: Info) -> dict[str, Any]:
        self.last = row.numbers if row.skipped is None else self.last
        return super().look(row)

    def save(self, finished: bool = False) -> None:
        if finished and self.trainer.engine.main and (picture := course_png(courses(self.folder, self.samples))):
            write_atomically(self.folder.path / CURVE, picture)  # before the run is over for those who come later
        super().save(finished)

    def sample(self) -> dict[str, Any]:
        engine, step = self.trainer.engine, self.trainer.state.step
        numbers: dict[str, Any] | None = None
        if engine.main or engine.shard is not None:  # all call a network in shards
            seen = look_at(self.trainer, self.judge)
            numbers = {"step": step, **seen.numbers(), "evaluations": seen.evaluations}
            if engine.main:
                title = f"control, step {step} of {self.config.train_steps}"
                self.folder.make()
                path = self.folder.path / self.folder.inside / f"{step:06d}.png"
                write_control_look(seen, path, title, self.samples[0] if self.samples else numbers)
        self.samples.append(dict(engine.broadcast(numbers)))
        return {}

    def shown(self, row: Info) -> dict[str, float | None]:
        numbers, seen = row.numbers, self.samples[-1] if self.samples else {}
        share = [one["obeys"] for one in seen.get("labels", {}).values() if "obeys" in one]
        now = {"obeyed": min(share) if share else None, "judge": seen.get("judge")}
        return {"log p": numbers.get("log_prob"), "error": numbers.get("error"), **kl_of(numbers), **now}

    def summary(self, finished: bool) -> dict[str, Any]:
        info, numbers = self.trainer.info, self.last or self.folder.summary.get("last") or {}
        return {
            "last": {k: v for k, v in numbers.items() if k.startswith("log_prob") or k == "error"} | kl_of(numbers),
            "labels": {s.label: list(s.classes) or s.kind for s in info.labels},
            "effective_gamma": info.effective_gamma,
            "prompts": len(self.trainer.batches.prompts),
            "samples": self.samples,
            "sampling_evaluations": sum(one["evaluations"] for one in self.samples),
        }


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people; none in a process that is not the main one, whose summary is empty."""
    summary, out = manifest["summary"], manifest["config"]["out"]
    if not summary:
        return ""
    gamma = summary["effective_gamma"]
    parts = [f"{summary['steps']} training steps{already_told(manifest)}"]
    parts += ["no KL" if gamma is None else f"effective γ {gamma:g}"]
    alone = f"log_prob.{next(iter(summary['labels']))}" if len(summary["labels"]) == 1 else ""  # is log_prob itself
    parts += [f"{name} {value:.4g}" for name, value in summary["last"].items() if name != alone]
    if summary["skipped"]:
        parts.append(f"{summary['skipped']} steps skipped")
    parts += costs_told(summary, manifest.get("call"))
    lines, samples = [", ".join(parts)], summary.get("samples") or []
    if samples:
        before, now = samples[0], samples[-1]
        known = before["step"] == 0 and None not in (before["judge"], now["judge"])  # an older run was not looked at then
        labels = {name: {**one, "asked": "any"} for name, one in now["labels"].items() if "obeys" in one}
        plain = {"images": before["images"], "labels": {name: before["labels"][name] for name in labels}}
        base = {"base": {"judge": before["judge"], "own": now["judge"], **plain}} if known else {}
        lines.append(f"samples: {obedience({'images': now['images'], 'kl_mean': now['kl'], 'labels': labels, **base})}")
    return "\n".join([*lines, f"control: {out} ({', '.join(summary['labels'])})"])
