"""Trains a control, CTRL's step 3 (Zhao et al. 2024, Alg. 1-2), as a generator over steps: no files, no printing.

    maximise  E [ γ Σ_k log p_k(y_k | x_0) - β Σ_t |mean_ψ - mean_pre|² / (2 std²) ],   ψ = LoRA and label embedding

In the steps that have no density (the last, where std is 0) the pre-trained model draws: nothing would price leaving it there.
Without a KL (β = 0) nothing prices any step, and back-propagation trains the last one too; ppo never can.
The same LoRA and embedding are trained on triplets by classifier-free fine-tuning (`tilting.conditioning.cfree`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.batches import ControlBatches
from tilting.conditioning.cfree import ClassifierFree
from tilting.conditioning.classifiers import Classifier, by_label, differentiable
from tilting.conditioning.objective import Ctrl, CtrlPpo, effective_gamma
from tilting.conditioning.triplets import Data, Labelled, TripletBatches, read_labelled
from tilting.config.base import keywords
from tilting.config.condition_train import FREE, IN_PYTHON, TrainConfig, usual_prompts
from tilting.config.prompts import prompts_of
from tilting.declare import plain
from tilting.features.fitted import FittedClassifier
from tilting.models.control_file import Control, attach_control, save_control
from tilting.models.control_spec import ControlInfo
from tilting.models.labels import Augmented, LabelEmbedding, width_of
from tilting.models.lora import remove, without
from tilting.models.pipeline import Pipeline
from tilting.objectives.batch import Losses
from tilting.schedule import step_std
from tilting.training.bar import watched
from tilting.training.batches import in_parts
from tilting.training.loop import Group, Info
from tilting.training.processes import Engine
from tilting.training.trainer import NAME, Trainer, attach, optimiser_of, sharded, state_of, told
from tilting.types import TiltingError

EMBEDDING, GAMMA = "embedding.", "gamma"
LEVEL, TREND = "log_kl", "log_kl_trend"
AHEAD, FOLLOWS, FASTEST = 12, 0.05, 3.0
"""Steps ahead that the KL is looked for, the share of log(target / KL) by which log γ moves in a step, and the most that this
may be: Adam's steps are of one size, so that the KL follows γ by some tens of them, and would go far beyond its target if γ
waited until it is there."""
SMOOTH, SMOOTH_TREND = 0.5, 0.15
"""Of Holt's smoothing of log KL, of which a batch gives a noisy estimate."""
TOLD = """place gamma kl planner truncation rank target_modules lora_lr embedding_lr weight_decay clip steps cfg eta
negative_prompt batch_size accumulate seed objective label_dropout""".split()  # noqa: SIM905
"""What a control's folder says of its training."""
FILED = {"target_modules": "parts", "negative_prompt": "negative"}
"""Names in the file that are not the options' of today."""


def follow(gamma: float, kl: float, target: float, memory: dict[str, Any]) -> float:
    """γ of the next training step, where a KL is aimed at.

        log γ += FOLLOWS · clip(log target - log KL_ahead, ±FASTEST),    log KL_ahead = level + AHEAD · trend

    with level and trend of log KL after Holt, which ``memory`` keeps.
    """
    if kl <= 0:  # of the base model, before the first step
        return gamma
    now = math.log(kl)
    before = memory.get(LEVEL, now) + memory.get(TREND, 0.0)
    memory[LEVEL] = before + SMOOTH * (now - before)
    memory[TREND] = memory.get(TREND, 0.0) + SMOOTH_TREND * (now - before)
    short = math.log(target) - memory[LEVEL] - AHEAD * memory[TREND]
    return gamma * math.exp(FOLLOWS * min(max(short, -FASTEST), FASTEST))


@dataclass(kw_only=True)
class ControlTrainer(Trainer[ControlBatches | TripletBatches]):
    """A run; `Trainer` says what it is made of.

    Attributes:
        augmented: the model with labels, its LoRA attached.
        config: how it is trained.
        identity: of the pre-trained model, as `ControlInfo` has it.
    """

    augmented: Augmented
    config: TrainConfig
    identity: Mapping[str, Any] | None = None

    def steps(self, until: int) -> Iterator[Info]:
        """See `Trainer.steps`; where a KL is aimed at, γ follows it after every step."""
        for info in super().steps(until):
            kl = info.numbers.get("kl")
            if self.config.kl_target is not None and kl is not None:
                self.state.memory[GAMMA] = follow(self.gamma, kl, self.config.kl_target, self.state.memory)
            yield info

    @property
    def gamma(self) -> float:
        """γ as it is."""
        return float(self.state.memory.get(GAMMA, self.config.gamma))

    def more_numbers(self) -> dict[str, float]:
        """For CTRL the mean log p of the requested labels, in total and for each; γ, if it is adapted."""
        each = self.engine.mean({f"log_prob.{name}": value for name, value in self.batches.seen.items()})
        aimed = {} if self.config.kl_target is None else {GAMMA: self.gamma}
        return ({"log_prob": sum(each.values()), **each} if each else {}) | aimed

    @property
    def info(self) -> ControlInfo:
        """The description of the control as it is."""
        config = self.config
        gamma, kl = (1.0, 1.0) if config.free else (self.gamma, config.kl)  # p(x | c, y) is γ = 1
        training = {FILED.get(name, name): plain(getattr(config, name)) for name in TOLD}
        return ControlInfo(
            labels=tuple(self.batches.schemas),
            model=dict(self.identity or {"name": self.model.name}),
            place=config.place,
            rank=config.rank,
            gamma=gamma,
            kl=kl,
            effective_gamma=effective_gamma(gamma, kl, 1, mean=False) if kl else None,
            planner=FREE if config.free else config.planner,
            off=self.augmented.off,
            training={**training, "train_steps": self.state.step, "prompts": len(self.batches.prompts)},
        )

    def classifiers(self) -> dict[str, FittedClassifier]:
        """The classifiers that a folder can keep."""
        return {name: c for name, c in self.batches.classifiers.items() if isinstance(c, FittedClassifier)}

    def embedding(self) -> dict[str, Tensor]:
        """The embedding as it is."""
        return {k: v.detach().clone() for k, v in self.augmented.embedding.state_dict().items()}

    def save_weights(self, folder: Path) -> None:
        """Write the control's folder."""
        save_control(folder, self.info, self.lora(), self.embedding(), self.classifiers())

    def control(self, identity: Mapping[str, Any] | None = None) -> Control:
        """The control, its LoRA under a name of its own; the model, of that identity, is the pre-trained one again. Ends the
        run."""
        self.identity = identity or self.identity
        lora, unet = self.lora(), self.augmented.model.backbone
        unet.requires_grad_(False)
        remove(unet, [NAME])
        with torch.no_grad():
            return attach_control(self.augmented.model, self.info, lora, self.embedding(), self.classifiers())


def control_trainer_of(
    config: TrainConfig,
    model: Pipeline,
    classifiers: Sequence[Classifier],
    engine: Engine,
    data: Labelled | None = None,
    identity: Mapping[str, Any] | None = None,
) -> ControlTrainer:
    """Attach a LoRA and an embedding to a model and put together what trains them.

    Args:
        config: how.
        model: what is trained.
        classifiers: what trains them; of classifier-free fine-tuning, what can look at its control's images afterwards.
        engine: the process.
        data: labelled latents, which classifier-free fine-tuning learns from.
        identity: of the model.

    Raises:
        TiltingError: for what cannot work together.
    """
    named = {c.schema.label: c for c in classifiers} if config.free else by_label(classifiers)
    schemas = [c.schema for c in named.values()] if data is None else data.schemas
    parameters = attach(model.backbone, config.rank, config.target_modules, config.seed, alpha=config.lora_alpha)
    sharded(model, engine, parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        kinds = {schema.label: len(schema.classes) or None for schema in schemas}
        embedding = LabelEmbedding(kinds, width_of(model, config.place)).to(engine.device)
    augmented = Augmented(model, embedding, config.place, partial(without, model.backbone, (NAME,)))
    parameters |= {EMBEDDING + name: p for name, p in embedding.named().items()}
    groups = (Group(EMBEDDING, config.embedding_lr / config.lora_lr),)
    optimiser = optimiser_of(config, config.lora_lr, config.weight_decay, config.clip, groups)
    if data is not None:
        objective, batches = _triplets(config, augmented, data, named, engine)
    else:
        objective, batches = _labels(config, augmented, named, engine)
    whole = in_parts(objective, config.accumulate)
    state = state_of(config, parameters, optimiser)
    return ControlTrainer(
        model, whole, optimiser, batches, state, engine, augmented=augmented, config=config, identity=identity
    )


def _labels(
    config: TrainConfig, augmented: Augmented, classifiers: dict[str, Classifier], engine: Engine
) -> tuple[Losses, ControlBatches]:
    """CTRL's objective and batches."""
    model = augmented.model
    if config.kl or config.planner == "ppo":
        grid = model.schedule.grid(config.steps)
        augmented.off = max((t.t for t, to in pairwise(grid) if step_std(t, to, 1.0) == 0), default=-1.0)
    drawn = replace(config, prompts=tuple(config.all_prompts()))
    batches = ControlBatches(
        model, model.backbone, drawn, engine, augmented=augmented, classifiers=classifiers, gamma=config.gamma
    )
    return CtrlPpo(config.kl) if config.planner == "ppo" else Ctrl(config.truncation, config.kl), batches


def _triplets(
    config: TrainConfig, augmented: Augmented, data: Labelled, classifiers: dict[str, Classifier], engine: Engine
) -> tuple[Losses, TripletBatches]:
    """The objective and batches of classifier-free fine-tuning."""
    sizes = config.batch_size, config.label_dropout, config.seed
    batches = TripletBatches(augmented, data.triplets, data.schemas, classifiers, *sizes, engine)
    return ClassifierFree(batches.of, augmented.model.schedule.kind), batches


def check_gradient(planner: str, classifiers: Mapping[str, Classifier]) -> None:
    """Refuse to back-propagate through what has no gradient. Raises TiltingError."""
    for label, one in classifiers.items():
        if planner == "backprop" and not differentiable(one):
            raise TiltingError(f"backprop needs a classifier with a gradient and that of {label!r} has none: use --planner ppo")


@keywords(TrainConfig, *IN_PYTHON)
def make_control_trainer(
    model: Pipeline,
    classifiers: Classifier | Sequence[Classifier] = (),
    prompts: str | Sequence[str] | None = None,
    *,
    data: Data | None = None,
    labels: Sequence[str] = (),
    engine: Engine | None = None,
    **options: Any,
) -> ControlTrainer:
    """What `condition_train` runs, step by step. Arguments are its own, and the process. Raises TiltingError for settings that
    cannot work."""
    known = list(classifiers) if isinstance(classifiers, Sequence) else [classifiers]
    words = () if prompts is None or (isinstance(prompts, list | tuple) and not prompts) else prompts_of(prompts).texts
    engine = engine or Engine(device=model.device)
    config = TrainConfig(words, model=model.name, **TrainConfig.completed(options, model.name, model.default_cfg))
    config.check("truncation" in options, engine.count)
    if config.free:
        if data is None or prompts is not None:
            raise TiltingError(f"the objective {FREE} learns from labelled data and their prompts: give data, and no prompts")
        return control_trainer_of(config, model, known, engine, read_labelled(model, data, labels, known))
    if data is not None or labels:
        raise TiltingError(f"the objective ctrl learns from a classifier, not from data: fit one, or ask for {FREE!r}")
    if not words:
        usual_prompts(model.name)
    check_gradient(config.planner, by_label(known))
    return control_trainer_of(config, model, known, engine)


@dataclass(frozen=True, repr=False)
class TrainedControl:
    """What `condition_train` returns.

    Attributes:
        control: attached to the model; ``control.save(folder)`` writes it.
        history: a mapping of numbers per training step.
        ema: the control of the averaged weights, attached too, where ``ema`` asked for it.
    """

    control: Control
    history: list[dict[str, Any]]
    ema: Control | None = None

    def __repr__(self) -> str:
        return f"TrainedControl({told(self.history, 'log_prob', 'kl')}; {self.control!r})"


@keywords(TrainConfig, *IN_PYTHON)
def condition_train(
    model: Pipeline,
    classifiers: Classifier | Sequence[Classifier] = (),
    prompts: str | Sequence[str] | None = None,
    *,
    data: Data | None = None,
    labels: Sequence[str] = (),
    progress: bool = True,
    **options: Any,
) -> TrainedControl:
    """Train a control of a model, in this process.

    Args:
        model: from `tilting.load`; it is the pre-trained model again afterwards, whatever controls are attached.
        classifiers: one per label, such as `condition_fit` gives; classifier-free fine-tuning needs none, and keeps them.
        prompts: to draw from; default everything that pocket draws.
        data: tables of labelled pictures, with prompts or without, for classifier-free fine-tuning.
        labels: NAME[=KIND] of the columns to learn; default all.
        progress: show a bar on stderr.
        options: those of `tilting condition train`, with underscores (`tilting.config.condition_train.TrainConfig`):
            objective, train_steps, steps, gamma, kl, place, planner and so on; unset ones have the same defaults.

    Raises:
        TiltingError: for settings that cannot work, and after ten skipped steps in a row.
    """
    trainer = make_control_trainer(model, classifiers, prompts, data=data, labels=labels, **options)
    until = trainer.config.train_steps
    history = watched("control", trainer.steps(until), until, progress, "log_prob", "error")
    averaged = trainer.averaged()
    with averaged or nullcontext():
        lora, embedding = trainer.lora(), trainer.embedding()
    control = trainer.control()
    with torch.no_grad():
        ema = attach_control(model, trainer.info, lora, embedding, trainer.classifiers()) if averaged else None
    return TrainedControl(control, history, ema)
