"""Training runs of the DRaFT recipes, evaluated at intervals on fixed prompts and noise.

DIR/runs/NAME is an ordinary fine-tuning folder (`tilting generate --lora` takes it); an interrupted run resumes from its last
evaluation. Its cost is counted in advance (`tilting.objectives.cost`) in denoiser evaluations; a backward pass counts as two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.config.finetune import FinetuneConfig, resolve_finetune
from tilting.errors import TiltingError
from tilting.objectives.cost import cost_of
from tilting.runs.lock import exclusive
from tilting.training.batches import Batches
from tilting.training.checkpoint import read
from tilting.training.driver import Observer, train_in_folder
from tilting.training.folder import FinetuneFolder
from tilting.training.loop import Info
from tilting.training.processes import Engine
from tilting.training.run import Parts, trainer_of
from tilting.training.trainer import Trainer
from tilting_papers.cache import PartsCache
from tilting_papers.draft.evaluate import evaluate
from tilting_papers.draft.study import Protocol, Size, Training, of_fifty
from tilting_papers.recipe import POCKET

ROW_SECONDS = 0.004
"""Seconds of a forward pass of pocket's UNet per row on two idle cores; a CFG pair is two rows."""
VALUE = 2.0
"""Cost of a decode and a score with their gradient, in evaluations."""


def config_of(
    run: Training,
    prompts: Sequence[str],
    reward: Sequence[str],
    size: Size,
    small: bool,
    out: Path,
    seed: int,
    model: str = POCKET,
) -> FinetuneConfig:
    """The validated request of a training run. Raises TiltingError."""
    settings = dict(run.settings) | ({} if run.k is None else {"k": of_fifty(run.k, size.steps)})
    train_steps = size.train_steps if small else run.train_steps or size.train_steps
    if small and "group_size" in settings:
        settings["group_size"] = min(settings["group_size"], size.batch)
    options: dict[str, Any] = {
        "prompts": list(prompts),
        "model": model,
        "reward": list(run.reward or reward),
        "objective": run.objective,
        "train-steps": train_steps,
        "steps": size.steps,
        "batch-size": size.batch if small else run.batch or size.batch,
        "lr": run.lr,
        "clip": run.clip,
        "sample-every": 0,
        "checkpoint-every": max(1, train_steps // size.evaluations),
        "seed": seed,
        "out": str(out / "runs" / run.name),
        "set": {f"{run.objective}.{name}": value for name, value in settings.items()},
    }
    return resolve_finetune(options | dict(run.options))


def seconds_of(config: FinetuneConfig, protocol: Protocol) -> float:
    """Estimated seconds of a run with its evaluations on two idle cores."""
    cost = cost_of(config.made_objective, config.steps)
    images = config.train_steps * config.batch_size
    looks, whole = -(-config.train_steps // config.checkpoint_every), protocol.sets.values()
    drawn = [sum(len(dict.fromkeys(p)) for p in sets) * protocol.images for sets in (whole, protocol.along().sets.values())]
    units = images * (cost.evaluations + 2 * cost.evaluation_grads + VALUE * cost.reward_calls)
    units += (2 * drawn[0] + (looks - 1) * drawn[1]) * (config.steps + VALUE / 2)
    return units * ROW_SECONDS * (1 if config.cfg == 1 else 2)


def train(
    config: FinetuneConfig, protocol: Protocol, cache: PartsCache[FinetuneConfig, Parts], argv: Sequence[str] = ()
) -> dict[str, Any]:
    """Train what is missing of a run and return its manifest, whose summary has the evaluations as "points".

    A run that stops because ten steps in a row were skipped counts as finished; its summary has the reason under "stopped".

    Raises:
        TiltingError: the folder holds another run.
    """
    with exclusive(config.out):
        folder = FinetuneFolder(config, argv)
        if folder.summary and folder.summary.get("looked") != protocol.about:
            raise TiltingError(f"{str(folder.path)!r} was looked at in another way: choose another --out")
        if not folder.finished:
            trainer = trainer_of(config, cache.parts(config), Engine())
            train_in_folder(Evaluated(folder, trainer, protocol, cache), read(folder.checkpoints))
        return folder.manifest


class Evaluated(Observer[FinetuneConfig]):
    """Evaluates a run at every checkpoint, and saves its LoRA there.

    Args:
        folder, trainer: folder and trainer of the run.
        protocol: the evaluation protocol.
        cache: rewards and judge.
    """

    def __init__(self, folder: FinetuneFolder, trainer: Trainer[Batches], protocol: Protocol, cache: PartsCache):
        super().__init__(folder, trainer)
        self.protocol, self.cache = protocol, cache
        self.points: list[dict[str, Any]] = []
        self.took, self.stopped = 0.0, None

    def resume(self, state: Mapping[str, Any]) -> None:
        self.points = state["points"]
        self.took = self.points[-1]["seconds"]

    def state(self) -> dict[str, Any]:
        return {"points": self.points}

    def first(self) -> None:
        self._evaluate()

    def look(self, row: Info) -> dict[str, Any]:
        self.took += row.seconds
        if row.step == self.config.train_steps or row.step % self.config.checkpoint_every == 0:
            self._evaluate()
        return {}

    def _evaluate(self, last: bool = False) -> None:
        trainer, step, place = self.trainer, self.trainer.state.step, self.folder.path
        whole = last or step in (0, self.config.train_steps)
        sets = evaluate(
            self.protocol if whole else self.protocol.along(),
            trainer.model,
            self.cache,
            self.config,
            place / "looks" / f"{step:06d}",
        )
        trainer.save_weights(place / "loras" / f"{step:06d}")
        guidance = trainer.inputs.scales() if trainer.inputs else None
        self.points.append({"step": step, **trainer.costs, "seconds": self.took, "guidance": guidance, "sets": sets})

    def failed(self, error: TiltingError) -> bool:
        self.stopped = str(error)
        if self.points[-1]["step"] == self.trainer.state.step:
            self.points.pop()
        self._evaluate(last=True)
        return True

    def summary(self, finished: bool) -> dict[str, Any]:
        return {"stopped": self.stopped, "looked": self.protocol.about, "points": self.points}
