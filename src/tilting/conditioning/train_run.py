"""`tilting condition train`: a control from classifiers (CTRL), or from triplets (classifier-free), in a folder that resumes.
Importing this does not import torch.

    CTL/control.json, lora/, embedding.safetensors, classifiers/    the control (`tilting.models.control_spec`) at the last save
    CTL/metrics.jsonl, timing.jsonl, checkpoints/, manifest.json    the run, as of `tilting finetune`

A run goes on from its newest checkpoint, bit for bit; lines after it are cut and made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.conditioning.dataset import bar, read_tables
from tilting.config.condition_train import FREE, TrainConfig, check_batch
from tilting.errors import TiltingError
from tilting.models import control_spec, load
from tilting.training.driver import Bar, bring, enter, kl_of, patient, record
from tilting.training.folder import TrainingFolder

if TYPE_CHECKING:
    from tilting.conditioning.classifiers import Classifier
    from tilting.conditioning.dataset import Dataset
    from tilting.conditioning.trainer import Controlling, ControlSettings
    from tilting.models.stable_diffusion import StableDiffusion
    from tilting.training.processes import Engine


class Parts(NamedTuple):
    """What a run needs loaded."""

    model: StableDiffusion
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


def settings_of(config: TrainConfig) -> ControlSettings:
    """How it is trained."""
    from tilting.conditioning.trainer import ControlSettings

    c = config
    return ControlSettings(
        c.place, c.gamma, c.kl, c.planner, c.truncation, c.rank, c.parts, c.lora_lr, c.embedding_lr, c.weight_decay, c.clip,
        c.steps, c.cfg, c.eta, c.negative_prompt, c.batch_size, c.accumulate, c.seed, c.objective, c.label_dropout,
    )  # fmt: skip


def load_parts(config: TrainConfig) -> Parts:
    """Load what a config asks for, on the CPU: the classifiers first, so that a wrong one is refused before the model is read,
    and before them a device that is not here."""
    from tilting.conditioning.classifiers import by_label, read_classifier
    from tilting.conditioning.trainer import check_gradient
    from tilting.models.placement import device_of

    device_of(config.device)
    classifiers = [read_classifier(place) for place in config.classifier]
    if config.objective != FREE:
        check_gradient(config.planner, by_label(classifiers))
    model: Any = load(config.model, precision=config.precision)
    return Parts(model, classifiers)


def condition_train(
    config: TrainConfig, argv: Sequence[str] = (), quiet: bool = False, parts: Callable[[TrainConfig], Parts] = load_parts,
) -> dict[str, Any]:  # fmt: skip
    """Train what is missing of a control and return the manifest of its folder.

    Args:
        config: from `resolve_train`; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bar, and no line about skipped steps.
        parts: what loads model and classifiers; only called when something is missing.

    Raises:
        TiltingError: before anything is written, for a request or a folder that cannot work; and when ten steps in a row were
            skipped, the last good state kept.
    """
    place = ControlFolder(config, argv, quiet)
    if not place.finished:
        _train(place, parts(config), quiet)
    return place.manifest


def _run(place: ControlFolder, parts: Parts, engine: Engine, quiet: bool) -> Controlling:
    """What trains the control."""
    config = place.config
    if config.objective != FREE:
        from tilting.conditioning.trainer import controlling

        return controlling(parts.model, parts.classifiers, config.all_prompts(), settings_of(config), engine)
    from tilting.conditioning.classifier_free import free_controlling
    from tilting.conditioning.triplets import labelled

    with bar(sum(len(table.records) for table in place.tables), "latents", quiet) as progress:
        data = labelled(parts.model, place.tables, [c.schema for c in parts.classifiers], progress.update)
    return free_controlling(parts.model, data, parts.classifiers, settings_of(config), engine)


def _train(place: ControlFolder, parts: Parts, quiet: bool) -> None:
    config, (engine, held) = place.config, enter(place)
    check_batch(config, engine.count)
    bring(parts.model, engine)
    run = _run(place, parts, engine, quiet or not engine.main)
    if held is not None:
        run.restore(held)
    if engine.main:
        place.begin(run.training.step)
    engine.track()
    numbers: dict[str, Any] | None = None
    try:
        with patient(engine) as interrupted, Bar(
            "control", config.train_steps, run.training.step, quiet or not engine.main
        ) as bar:  # fmt: skip
            for row in run.steps(config.train_steps):
                numbers = row.numbers if row.skipped is None else numbers
                record(place, engine, row.numbers, seconds=row.seconds)
                shown = {"log p": row.numbers.get("log_prob"), "error": row.numbers.get("error"), **kl_of(row.numbers)}
                bar.show(row.step, row.skipped, **shown, s=row.seconds)
                last, left = row.step == config.train_steps, interrupted()
                if left or (not last and row.step % config.checkpoint_every == 0):  # the last is saved below
                    _save(run, place, numbers, finished=last)
                if left:
                    break
    except TiltingError:
        _save(run, place, numbers)
        raise
    _save(run, place, numbers, finished=True)
    run.control()
    engine.close()


def _save(run: Controlling, place: ControlFolder, last: dict[str, Any] | None, finished: bool = False) -> None:
    """The control, a checkpoint, the manifest; by the main process."""
    from tilting.models.control_file import save_control
    from tilting.training.checkpoint import write

    if not run.engine.main:
        return
    info = run.info(place.head["model"])
    save_control(place.path, info, run.lora(), run.embedding(), run.fitted())
    write(place.checkpoints, run.saved())
    numbers = last or place.summary.get("last") or {}
    shown = {k: v for k, v in numbers.items() if k.startswith("log_prob") or k == "error"} | kl_of(numbers)
    place.sum_up({
        "steps": run.training.step, "finished": finished, "skipped": run.training.skipped, **run.costs, "last": shown,
        "labels": {s.label: list(s.classes) or s.kind for s in info.labels}, "effective_gamma": info.effective_gamma,
        "prompts": len(run.batches.prompts), "processes": run.engine.count,
    })  # fmt: skip


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
