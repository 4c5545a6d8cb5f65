"""Runs a training in a folder: resumes it from its newest checkpoint, evaluates, saves and summarises it.

Lines after that checkpoint are cut, and made again bit for bit, for everything random is keyed by (seed, training step).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from tilting.config.training import TrainingConfig
from tilting.errors import TiltingError
from tilting.runs.signals import deferred_interrupt
from tilting.training import checkpoint
from tilting.training.average import EMA
from tilting.training.bar import Bar, kl_of
from tilting.training.checkpoint import Saved
from tilting.training.folder import METRICS, TIMING, TrainingFolder
from tilting.training.loop import Info, check_moved
from tilting.training.processes import Engine, launch
from tilting.training.trainer import Trainer

Config = TypeVar("Config", bound=TrainingConfig)


class Observer(Generic[Config]):
    """What is looked at while a run trains, and what it leaves in its folder. A run's own says what it adds.

    Attributes:
        config, folder, trainer: of the run.
        name: on the bar.
        weights: where in a folder the files of what is trained are.
    """

    name = "train"
    weights = "lora"

    def __init__(self, folder: TrainingFolder[Config], trainer: Trainer[Any]):
        self.config, self.folder, self.trainer = folder.config, folder, trainer
        self.samples: list[dict[str, Any]] = []
        self.sampling = 0.0

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave to a checkpoint."""

    def sample(self) -> dict[str, Any]:
        """Draw with what is trained as it is, note it in ``samples``; what a line of metrics has of it. On every process."""
        return {}

    def first(self) -> None:
        """Look at what has not been trained, before anything is written: it may be refused."""
        if self.config.sample_every:
            self._sampled()

    def look(self, row: Info) -> dict[str, Any]:
        """See a training step, and what more its line of metrics has; on every process."""
        every, last = self.config.sample_every, row.step == self.config.train_steps
        return self._sampled() if every and (last or row.step % every == 0) else {}

    def _sampled(self) -> dict[str, Any]:
        begun = time.perf_counter()
        numbers = self.sample()
        self.sampling += time.perf_counter() - begun
        return numbers

    def shown(self, row: Info) -> dict[str, float | None]:
        """What the bar shows of a step."""
        return {"reward": row.numbers.get("reward"), **kl_of(row.numbers)}

    def seconds(self) -> dict[str, float]:
        """What a step's line of timing has beside its own seconds."""
        seconds, self.sampling = self.sampling, 0.0
        return {"sampling": seconds}

    @property
    def over(self) -> bool:
        """Whether the run is to end before its last step."""
        return False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the trainer's own, of plain values."""
        return {}

    def write(self, folder: Path) -> None:
        """The files of what is trained, and in ``ema`` those of its average, by the main process."""
        self.trainer.save_weights(folder / self.weights)
        if averaged := self.trainer.averaged():
            with averaged:
                self.trainer.save_weights(folder / EMA)

    def summary(self, finished: bool) -> dict[str, Any]:
        """What the manifest's summary has beside steps, costs and whether it is finished."""
        return {}

    def failed(self, error: TiltingError) -> bool:
        """Whether a run whose steps were skipped ten in a row counts as finished."""
        return False

    def save(self, finished: bool = False) -> None:
        """What is trained, a checkpoint, the manifest; by the main process."""
        trainer = self.trainer
        if not trainer.engine.main:
            return
        self.write(self.folder.path)
        checkpoint.write(self.folder.checkpoints, trainer.saved(**self.state()))
        self.folder.sum_up(
            {
                "steps": trainer.state.step,
                "finished": finished,
                "skipped": trainer.state.skipped,
                **trainer.costs,
                "processes": trainer.engine.count,
                **self.summary(finished),
            }
        )


def enter(folder: TrainingFolder[Any]) -> tuple[Engine, Saved | None]:
    """This process of a run, its trackers not begun yet, and the newest checkpoint of the folder, if there is one."""
    config, saved = folder.config, None if folder.before is None else checkpoint.read(folder.checkpoints)
    engine = launch(config.device, config.tracker, str(folder.path), config.mapping(), saved.step if saved else 0)
    if folder.before is None and engine.main:
        checkpoint.clear(folder.checkpoints)  # of a run that learnt nothing
    return engine, saved


def train_in_folder(observer: Observer[Any], saved: Saved | None = None, quiet: bool = True) -> None:
    """Train what is missing of a run.

    Args:
        observer: of its folder and trainer.
        saved: the checkpoint that it goes on from.
        quiet: no progress bar, and no line about skipped steps.

    Raises:
        TiltingError: when ten steps in a row were skipped, or nothing is learnt, the last good state kept.
    """
    folder, trainer, config = observer.folder, observer.trainer, observer.config
    engine, quiet = trainer.engine, quiet or not trainer.engine.main
    if saved is None:
        observer.first()
    else:
        observer.resume(trainer.restore(saved))
    if engine.main:
        folder.begin(trainer.state.step)
    engine.track()
    try:
        about = observer.name, config.train_steps, trainer.state.step, quiet
        with deferred_interrupt(several=engine.count > 1) as interrupted, Bar(*about) as bar:
            for row in () if observer.over else trainer.steps(config.train_steps):
                line = row.numbers | observer.look(row)
                if engine.main:
                    folder.add(METRICS, line)
                    folder.add(TIMING, {"step": row.step, "seconds": row.seconds, **observer.seconds()})
                    engine.log({k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}, row.step)
                    if config.keep_every and row.step % config.keep_every == 0:
                        observer.write(folder.path / "kept" / f"{row.step:06d}")
                bar.show(row.step, row.skipped, **observer.shown(row))
                over, left = row.step == config.train_steps or observer.over, interrupted()
                if over or left or row.step % config.checkpoint_every == 0:
                    observer.save(finished=over and trainer.state.moved)
                if over or left:
                    break
            else:
                observer.save(finished=trainer.state.moved)
        check_moved(trainer.state, trainer.objective)
    except TiltingError as error:
        finished = observer.failed(error)
        observer.save(finished)
        if not finished:
            raise
        return
    engine.close()
