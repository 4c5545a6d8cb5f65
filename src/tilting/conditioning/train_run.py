"""`tilting condition train`: a control from classifiers (CTRL), or from triplets (classifier-free), in a folder that resumes.

    CTL/control.json, lora/, embedding.safetensors, classifiers/    the control (`tilting.models.control_spec`) at the last save
    CTL/metrics.jsonl, timing.jsonl, checkpoints/, manifest.json    the run, as of `tilting finetune`

A run goes on from its newest checkpoint, bit for bit; lines after it are cut and made again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tilting.conditioning.classifiers import Classifier, by_label, read_classifier
from tilting.conditioning.dataset import Dataset, bar, read_tables
from tilting.conditioning.trainer import ControlTrainer, check_gradient, control_trainer_of
from tilting.conditioning.triplets import labelled
from tilting.config.condition_train import FREE, TrainConfig
from tilting.models import control_spec, load
from tilting.models.placement import device_of
from tilting.models.told import asked
from tilting.runs.alone import alone
from tilting.training.driver import Observer, enter, kl_of, train_in_folder
from tilting.training.folder import TrainingFolder
from tilting.training.loop import Info
from tilting.training.processes import Engine
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
    """Load what a config asks for, on the CPU: the classifiers first, so that a wrong one is refused before the model is read,
    and before them a device that is not here."""
    device_of(config.device)
    classifiers = [read_classifier(name) for name in config.classifier]
    if not config.free:
        check_gradient(config.planner, by_label(classifiers))
    told, each = asked(config)
    return Parts(load(config.model, precision=config.precision, each=each, **told), classifiers)


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
    with alone(config.out):
        folder = ControlFolder(config, argv, quiet)
        for table in () if quiet else folder.tables:
            for line in table.told(range(len(table.records))):
                print(f"tilting: {line}", file=sys.stderr)
        if not folder.finished:
            loaded = parts(config)
            engine, saved = enter(folder)
            trainer = _trainer(folder, loaded, engine, quiet or not engine.main)
            train_in_folder(Obedience(folder, trainer), saved, quiet)
            trainer.control()
        return folder.manifest


def _trainer(folder: ControlFolder, parts: Parts, engine: Engine, quiet: bool) -> ControlTrainer:
    """What trains the control, of labelled pictures where it is classifier-free."""
    config, data = folder.config, None
    model: Any = on_device(parts.model, engine)
    if config.objective == FREE:
        with bar(sum(len(table.records) for table in folder.tables), "latents", quiet) as progress:
            data = labelled(model, folder.tables, [c.schema for c in parts.classifiers], progress.update)
    return control_trainer_of(config, model, parts.classifiers, engine, data, folder.head["model"])


class Obedience(Observer[TrainConfig]):
    """How probable the labels asked for are, as training sees it: the last step's numbers go into the summary."""

    name, weights = "control", "."
    trainer: ControlTrainer

    def __init__(self, folder: ControlFolder, trainer: ControlTrainer):
        super().__init__(folder, trainer)
        self.last: Mapping[str, Any] | None = None

    def resume(self, state: Mapping[str, Any]) -> None:
        self.last = state.get("last")  # which an older checkpoint has not

    def state(self) -> dict[str, Any]:
        return {"last": self.last and dict(self.last)}

    def look(self, row: Info) -> dict[str, Any]:
        self.last = row.numbers if row.skipped is None else self.last
        return {}

    def shown(self, row: Info) -> dict[str, float | None]:
        numbers = row.numbers
        return {"log p": numbers.get("log_prob"), "error": numbers.get("error"), **kl_of(numbers), "s": row.seconds}

    def summary(self, finished: bool) -> dict[str, Any]:
        info, numbers = self.trainer.info, self.last or self.folder.summary.get("last") or {}
        return {
            "last": {k: v for k, v in numbers.items() if k.startswith("log_prob") or k == "error"} | kl_of(numbers),
            "labels": {s.label: list(s.classes) or s.kind for s in info.labels},
            "effective_gamma": info.effective_gamma,
            "prompts": len(self.trainer.batches.prompts),
        }


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people; none in a process that is not the main one, whose summary is empty."""
    summary, out = manifest["summary"], manifest["config"]["out"]
    if not summary:
        return ""
    gamma = summary["effective_gamma"]
    parts = [f"{summary['steps']} training steps", "no KL" if gamma is None else f"effective γ {gamma:g}"]
    parts += [f"{name} {value:.4g}" for name, value in summary["last"].items()]
    if summary["skipped"]:
        parts.append(f"{summary['skipped']} steps skipped")
    parts += [f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"]
    return f"{', '.join(parts)}\ncontrol: {out} ({', '.join(summary['labels'])})"
