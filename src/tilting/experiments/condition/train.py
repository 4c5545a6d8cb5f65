"""`tilting condition train`: a control from classifiers, in a folder that resumes. Importing this does not import torch.

    CTL/control.json, lora/, embedding.safetensors, classifiers/    the control (`tilting.models.control_spec`) at the last save
    CTL/metrics.jsonl, timing.jsonl, checkpoints/, manifest.json    the run, as of `tilting finetune`

A run goes on from its newest checkpoint, bit for bit; lines after it are cut and made again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tilting.errors import TiltingError
from tilting.experiments import folder as files
from tilting.experiments.condition.train_config import TrainConfig, check_batch
from tilting.experiments.finetune.folder import METRICS, TIMING, FinetuneFolder
from tilting.models import control_spec, find_model, load

if TYPE_CHECKING:
    from tilting.conditioning.classifiers import Classifier
    from tilting.experiments.condition.controlling import Controlling
    from tilting.models.stable_diffusion import StableDiffusion


class Parts(NamedTuple):
    """What a run needs loaded."""

    model: StableDiffusion
    classifiers: list[Classifier]


class ControlFolder(FinetuneFolder):
    """The folder of a run, which is the folder of its control."""

    longer = "choose another --out"

    def identities(self) -> dict[str, Any]:
        config: Any = self.config
        sha = files.digest(Path(find_model(config.model)))
        return {"model": {"name": config.model, "sha256": sha}, "reward": config.digests()}

    def config_now(self) -> dict[str, Any]:
        return self.config.mapping()

    @property
    def finished(self) -> bool:
        return super().finished and (self.path / control_spec.FILE).is_file()


def load_parts(config: TrainConfig) -> Parts:
    """Load what a config asks for: the classifiers first, so that a wrong one is refused before the model is read."""
    from tilting.conditioning.classifiers import by_label, read_classifier
    from tilting.experiments.condition.controlling import check_planner

    classifiers = [read_classifier(place) for place in config.classifier]
    check_planner(config.planner, by_label(classifiers))
    return Parts(load(config.model), classifiers)


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
    place = ControlFolder(cast(Any, config), argv)
    if not place.finished:
        _train(config, place, parts(config), quiet)
    return place.manifest


def _train(config: TrainConfig, place: ControlFolder, parts: Parts, quiet: bool) -> None:
    from tilting.experiments.condition.controlling import controlling
    from tilting.experiments.finetune.engine import launch
    from tilting.finetune.checkpoint import read

    held = read(place.checkpoints)
    engine = launch(config.precision, config.tracker, str(place.path), config.mapping(), held.step if held else 0)
    check_batch(config, engine.count)
    if config.precision == "bf16":
        import torch

        parts.model.unet.to(torch.bfloat16)
    if str(engine.device) != "cpu":
        parts.model.to(engine.device)
    run = controlling(parts.model, parts.classifiers, config.all_prompts(), config.settings(), engine)
    if held is not None:
        run.restore(held)
    if engine.main:
        place.begin(run.training.step)
    numbers: dict[str, Any] | None = None
    try:
        with _Bar(config, run.training.step, quiet or not engine.main) as bar:
            for row in run.steps(config.train_steps):
                numbers = row.numbers if row.skipped is None else numbers
                if engine.main:
                    place.add(METRICS, row.numbers)
                    place.add(TIMING, {"step": row.step, "seconds": row.seconds})
                    engine.log({k: v for k, v in row.numbers.items() if isinstance(v, int | float) and k != "step"}, row.step)
                bar.show(row.numbers, row.skipped, row.seconds)
                if row.step % config.checkpoint_every == 0 and row.step < config.train_steps:
                    _save(run, place, numbers)
    except TiltingError:
        _save(run, place, numbers)
        raise
    _save(run, place, numbers, finished=True)
    run.control()
    engine.close()


def _save(run: Controlling, place: ControlFolder, last: dict[str, Any] | None, finished: bool = False) -> None:
    """The control, a checkpoint, the manifest; by the main process."""
    from tilting.finetune.checkpoint import write
    from tilting.models.control_file import save_control

    if not run.engine.main:
        return
    info = run.info(place.head["model"])
    save_control(place.path, info, run.lora(), run.embedding(), run.fitted())
    write(place.checkpoints, run.saved())
    numbers = last or place.summary.get("last") or {}
    shown = {k: v for k, v in numbers.items() if k.startswith("log_prob") or k in ("kl", "kl_step")}
    place.sum_up({
        "steps": run.training.step, "finished": finished, "skipped": run.training.skipped, **run.costs, "last": shown,
        "labels": {s.label: list(s.classes) or s.kind for s in info.labels}, "effective_gamma": info.effective_gamma,
        "prompts": len(run.batches.prompts), "processes": run.engine.count,
    })  # fmt: skip


class _Bar:
    """A bar on stderr, of training steps, with log p, KL, seconds a step and the time left."""

    def __init__(self, config: TrainConfig, step: int, quiet: bool):
        from tqdm import tqdm

        self.quiet = quiet
        self.bar = tqdm(total=config.train_steps, initial=step, desc="control", unit="step", file=sys.stderr,
                        disable=quiet, dynamic_ncols=True)  # fmt: skip

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, numbers: dict[str, Any], skipped: str | None, seconds: float) -> None:
        if skipped is not None and not self.quiet:
            self.bar.write(f"tilting: step {numbers['step']} is skipped: {skipped}", file=sys.stderr)
        shown = {"log p": numbers.get("log_prob"), "KL": numbers.get("kl", numbers.get("kl_step")), "s": seconds}
        self.bar.set_postfix_str(", ".join(f"{k} {v:.3g}" for k, v in shown.items() if v is not None), refresh=False)
        self.bar.update(1)


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people."""
    summary, out = manifest["summary"], manifest["config"]["out"]
    parts = [f"{summary['steps']} training steps", f"effective γ {summary['effective_gamma']:g}"]
    parts += [f"{name} {value:.4g}" for name, value in summary["last"].items()]
    if summary["skipped"]:
        parts.append(f"{summary['skipped']} steps skipped")
    parts += [f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"]
    return f"{', '.join(parts)}\ncontrol: {out} ({', '.join(summary['labels'])})"
