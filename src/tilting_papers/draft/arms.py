"""The training runs of the DRaFT recipes: an arm is one run, trained once, looked at every so often on fixed prompts and noise.

Clark et al. 2024 at the size of pocket: T = 20 for their 50, 100 steps for their thousands. An arm's folder in DIR/runs/NAME
is a fine-tuning run's own (`tilting generate --lora` takes it); a killed arm goes on from its last look. K of T = 50 is
scaled to T. What an arm costs is counted before it is trained, in evaluations of the denoiser per image:

    forward   T + K (checkpointed steps are made again)          draft, draft-k
              T + 1 + n                                          draft-lv
              T - (m - 1) / 2 on average, less m                 refl (no step after the one it looks at)
              T + 2 D, D the steps with a density                ddpo
              3 T - 1                                            dpg
    backward  K, 1 + n, 1, D, 2 T - 1, at twice a forward each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.config.finetune import FinetuneConfig, resolve_finetune
from tilting.errors import TiltingError
from tilting.training.driver import Observer, train_in_folder
from tilting.training.folder import FinetuneFolder
from tilting.training.run import Parts, load_parts, trainer_of
from tilting_papers.loader import Loader
from tilting_papers.rows import ANIMALS

if TYPE_CHECKING:
    from tilting.training.batches import Batches
    from tilting.training.trainer import Row, Trainer
    from tilting_papers.draft.looks import Looks

TRAIN, HELD = ANIMALS[:12], ANIMALS[12:]
"""What is trained on, and prompts that training never sees. Looks are at the first eight."""
ROW_SECONDS = 0.004
"""A row through pocket's UNet, forward, on two idle cores; a CFG pair is two rows."""
VALUE = 2.0
"""A decode and a score with their gradient, in evaluations."""


@dataclass(frozen=True)
class Size:
    """How much is trained and looked at.

    Attributes:
        steps: T.
        train_steps: of an arm that has none of its own.
        batch: images of a training step.
        images: of each prompt in a look.
        looks: after training has begun, evenly spaced.
    """

    steps: int = 20
    train_steps: int = 100
    batch: int = 4
    images: int = 4
    looks: int = 5


FULL = Size()
SMALL = Size(steps=5, train_steps=4, batch=2, images=2, looks=2)
SMALL_PROMPTS = 2


@dataclass(frozen=True)
class Arm:
    """One training run.

    Attributes:
        name: of its line and folder.
        objective: of `tilting finetune`.
        settings: of the objective.
        k: K of the paper's 50 steps, scaled to T and given to draft-k; None leaves the settings alone.
        reward: instead of the recipe's.
        lr, clip: of the optimiser.
        batch, train_steps: instead of the size's, in the full run.
        options: more options of `tilting finetune`.
        published: the paper's row to print beside it.
        small: whether ``--small`` has it.
    """

    name: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    k: int | None = None
    reward: tuple[str, ...] | None = None
    lr: float = 4e-4
    clip: float = 1.0
    batch: int | None = None
    train_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    small: bool = True


def of_fifty(k: int, steps: int) -> int:
    """So many of the paper's 50 sampling steps as steps of T: the same share, at least 1."""
    return min(steps, max(1, round(k * steps / 50)))


def config_of(
    arm: Arm, prompts: Sequence[str], reward: Sequence[str], size: Size, small: bool, out: Path, seed: int
) -> FinetuneConfig:
    """An arm as a checked request. Raises TiltingError for one that cannot work."""
    settings = dict(arm.settings) | ({} if arm.k is None else {"k": of_fifty(arm.k, size.steps)})
    steps = size.train_steps if small else arm.train_steps or size.train_steps
    options: dict[str, Any] = {
        "prompts": list(prompts), "reward": list(arm.reward or reward), "objective": arm.objective, "train-steps": steps,
        "steps": size.steps, "batch-size": size.batch if small else arm.batch or size.batch, "lr": arm.lr, "clip": arm.clip,
        "sample-every": 0, "checkpoint-every": max(1, steps // size.looks), "seed": seed, "out": str(out / "runs" / arm.name),
        "set": {f"{arm.objective}.{name}": value for name, value in settings.items()},
    }  # fmt: skip
    return resolve_finetune(options | dict(arm.options))


class Cost(NamedTuple):
    """Of one image of a training step: forward and backward evaluations of the denoiser, reward calls."""

    forward: float
    backward: float
    rewards: float


def cost_of(config: FinetuneConfig) -> Cost | None:
    """What an image costs, on average; None for an objective that is not counted here."""
    s, t = {key.partition(".")[2]: value for key, value in config.settings}, config.steps
    if config.objective in ("draft", "draft-k"):
        k = t if config.objective == "draft" else min(int(s["k"]), t)  # type: ignore[call-overload]
        held = 1 if s["eps_kl"] else 0
        based = 2 * (k if k < t else t - 1) if s["kl"] else 0
        return Cost(t + k + based + 2 * held, k + held, 1)
    if config.objective == "draft-lv":
        n = int(s["copies"])  # type: ignore[call-overload]
        held = 1 if s["eps_kl"] else 0
        return Cost(t + 1 + n + 2 * held, 1 + n + held, 1 if s["single"] else 1 + n)
    if config.objective == "refl":
        m = min(int(s["last"] or max(1, round(0.4 * t))), t)  # type: ignore[call-overload]
        return Cost(t - m + (m - 1) / 2 + 1, 1, 1)
    if config.objective == "dpg":  # the state after the last step is what is decoded: nothing to estimate there
        m = min(int(s["last"] or t), t)  # type: ignore[call-overload]
        n = min(int(s["count"] or m), m)  # type: ignore[call-overload]
        ahead = n - n / m
        return Cost(t + n + ahead, n + ahead, 1 + 2 * n)
    if config.objective == "ddpo":
        dense, epochs = t - 1, int(s["epochs"])  # type: ignore[call-overload]
        return Cost(t + dense * epochs + (dense if s["kl"] else 0), dense * epochs, 1)
    return None


def seconds_of(config: FinetuneConfig, looked: int, looks: int) -> float:
    """Seconds that an arm takes on two idle cores, by its counted evaluations.

    Args:
        config: of the arm.
        looked: images of a look.
        looks: how many.
    """
    cost = cost_of(config) or Cost(2.0 * config.steps, config.steps / 2, 2)
    images = config.train_steps * config.batch_size
    units = images * (cost.forward + 2 * cost.backward + VALUE * cost.rewards) + looks * looked * (config.steps + VALUE / 2)
    return units * ROW_SECONDS * (1 if config.cfg == 1 else 2)


class Shelf(Loader[FinetuneConfig, Parts]):
    """What arms and looks need loaded.

    Args:
        own: scores of a study that are no rewards of `tilting rewards`, by name.
    """

    def __init__(self, own: Mapping[str, Any] | None = None) -> None:
        super().__init__(load_parts, own)


def train_arm(config: FinetuneConfig, looks: Looks, shelf: Shelf, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Train what is missing of an arm and return its manifest, whose summary holds the looks as "points".

    A run that stops because ten steps in a row were skipped is finished too: its summary says so under "stopped".

    Raises:
        TiltingError: a folder that holds another run.
    """
    place = FinetuneFolder(config, argv)
    if place.summary and place.summary.get("looked") != looks.about:
        raise TiltingError(f"{str(place.path)!r} was looked at in another way: choose another --out")
    if not place.finished:
        from tilting.training.checkpoint import read
        from tilting.training.processes import Engine

        trainer = trainer_of(config, shelf.parts(config), Engine())
        train_in_folder(_Looked(place, trainer, looks, shelf), read(place.checkpoints))
    return place.manifest


class _Looked(Observer[FinetuneConfig]):
    """Looks at checkpoints, each with its LoRA."""

    def __init__(self, folder: FinetuneFolder, trainer: Trainer[Batches], looks: Looks, shelf: Shelf):
        super().__init__(folder, trainer)
        self.looks, self.shelf = looks, shelf
        self.points: list[dict[str, Any]] = []
        self.taken, self.stopped = 0.0, None

    def resume(self, state: Mapping[str, Any]) -> None:
        self.points = state["points"]
        self.taken = self.points[-1]["seconds"]

    def state(self) -> dict[str, Any]:
        return {"points": self.points}

    def first(self) -> None:
        self._look()

    def look(self, row: Row) -> dict[str, Any]:
        self.taken += row.seconds
        if row.step == self.config.train_steps or row.step % self.config.checkpoint_every == 0:
            self._look()
        return {}

    def _look(self) -> None:
        trainer, step, place = self.trainer, self.trainer.state.step, self.folder.path
        sets = self.looks(trainer.model, self.shelf, self.config, place / "looks" / f"{step:06d}")
        trainer.save_weights(place / "loras" / f"{step:06d}")
        guidance = trainer.inputs.scales() if trainer.inputs else None
        self.points.append({"step": step, **trainer.costs, "seconds": self.taken, "guidance": guidance, "sets": sets})

    def failed(self, error: TiltingError) -> bool:
        self.stopped = str(error)
        if self.points[-1]["step"] != self.trainer.state.step:
            self._look()
        return True

    def summary(self, finished: bool) -> dict[str, Any]:
        return {"stopped": self.stopped, "looked": self.looks.about, "points": self.points}
