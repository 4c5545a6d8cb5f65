"""Training a control, CTRL's step 3 (Zhao et al. 2024, Alg. 1-2), as a generator of what each step did: no files, no printing.

    maximise  E [ γ Σ_k log p_k(y_k | x_0) - β Σ_t |mean_ψ - mean_pre|² / (2 std²) ],   ψ = LoRA and label embedding

In the steps that have no density (the last, where std is 0) the pre-trained model draws: nothing would price leaving it there.
Without a KL (β = 0) nothing prices any step, and back-propagation trains the last one too; ppo never can.
The same LoRA and embedding are trained on triplets by classifier-free fine-tuning (`condition.free`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tilting.conditioning.batches import ControlBatches
from tilting.conditioning.classifiers import Classifier, by_label, differentiable
from tilting.conditioning.objective import Ctrl, effective_gamma
from tilting.conditioning.triplets import TripletBatches
from tilting.config.condition_train import FREE, Aim, Place, Planner, Truncated, check_planner, own_settings, usual_prompts
from tilting.features.fitted import FittedClassifier
from tilting.features.schema import Schema
from tilting.models.control_file import Control, attach_control
from tilting.models.control_spec import ControlInfo
from tilting.models.labels import Augmented, LabelEmbedding, width_of
from tilting.models.lora import activate, active, lora_off
from tilting.models.lora_file import PAPER_TARGETS
from tilting.models.stable_diffusion import StableDiffusion
from tilting.objectives.batch import Objective
from tilting.objectives.truncate import Truncation
from tilting.schedule import step_std
from tilting.training.batches import Accumulated
from tilting.training.loop import Group, Optimiser, Training
from tilting.training.processes import Engine
from tilting.training.trainer import NAME, Row, Tuning, attach
from tilting.types import TiltingError

if TYPE_CHECKING:
    from tilting.conditioning.classifier_free import Data

EMBEDDING = "embedding."


@dataclass(frozen=True)
class ControlSettings:
    """How a control is trained; the defaults are the paper's (Table 4) but for what follows the size of a model.

    Attributes:
        place: where the embedding enters: latent (§4.2), score (App. D) or time (the published code).
        gamma: γ; 10 in the paper.
        kl: β of the exact path KL; 1 is the theory's.
        planner: backprop (Alg. 2), or ppo for classifiers without gradient (Remark 2).
        truncation: which steps carry gradient: the last K, K ~ Uniform{1..T} (random), or all; of backprop.
        rank, parts: of the LoRA.
        lora_lr, embedding_lr: learning rates; 1e-3 (one label) or 3e-4 (two), and 1e-2.
        weight_decay, clip: of AdamW; the norm of LoRA and of embedding are clipped apart.
        steps, cfg, eta, negative: of the sampler; cfg None is the model's usual.
        batch_size: images per training step over all processes.
        accumulate: parts of a batch that are made one after the other, in less memory.
        seed: of the run.
        objective: ctrl, or classifier-free, which has no use for what is of a chain or of γ.
        label_dropout: the share of the triplets that classifier-free fine-tuning trains as "no label"; .1 in Ho & Salimans.
    """

    place: Place = "latent"
    gamma: float = 10.0
    kl: float = 1.0
    planner: Planner = "backprop"
    truncation: Truncated = "random"
    rank: int = 8
    parts: tuple[str, ...] = PAPER_TARGETS
    lora_lr: float = 1e-3
    embedding_lr: float = 1e-2
    weight_decay: float = 0.1
    clip: float = 1.0
    steps: int = 12
    cfg: float | None = None
    eta: float = 1.0
    negative: str = ""
    batch_size: int = 8
    accumulate: int = 1
    seed: int = 0
    objective: Aim = "ctrl"
    label_dropout: float = 0.1

    def ctrl(self) -> Ctrl:
        """The objective's settings."""
        return Ctrl(self.gamma, Truncation(self.truncation), self.kl, self.planner)

    def optimiser(self) -> Optimiser:
        """AdamW with the two rates."""
        groups = (Group(EMBEDDING, self.embedding_lr / self.lora_lr),)
        return Optimiser(self.lora_lr, self.weight_decay, clip=self.clip, groups=groups)


@dataclass(kw_only=True)
class Controlling(Tuning[ControlBatches | TripletBatches]):
    """A run; `Tuning` says what it is made of.

    Attributes:
        augmented: the model with labels, its LoRA attached.
        settings: how it is trained.
        around: the adapters that were active before.
    """

    augmented: Augmented
    settings: ControlSettings
    around: tuple[str, ...] = ()

    def steps(self, until: int) -> Iterator[Row]:
        """Train up to a training step; a row of CTRL also has the mean log p, of all labels (``log_prob``) and of each."""
        for row in super().steps(until):
            if row.skipped is None and self.batches.seen:
                each = self.engine.mean({f"log_prob.{name}": value for name, value in self.batches.seen.items()})
                row = Row(row.step, {**row.numbers, "log_prob": sum(each.values()), **each}, None, row.seconds)
            yield row

    def info(self, identity: Mapping[str, Any] | None = None, step: int | None = None) -> ControlInfo:
        """The description of the control as it is."""
        s = self.settings
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(s).items()}
        done = self.training.step if step is None else step
        gamma, kl = (1.0, 1.0) if s.objective == FREE else (s.gamma, s.kl)  # p(x | c, y) is γ = 1
        return ControlInfo(
            tuple(self.batches.schemas), dict(identity or {"name": self.model.name}), s.place, s.rank, gamma, kl,
            effective_gamma(gamma, kl, 1, mean=False) if kl else None, FREE if s.objective == FREE else s.planner,
            self.augmented.off, {**plain, "cfg": self.batches.cfg, "train_steps": done, "prompts": len(self.batches.prompts)},
        )  # fmt: skip

    def fitted(self) -> dict[str, FittedClassifier]:
        """The classifiers that a folder can keep."""
        return {name: c for name, c in self.batches.classifiers.items() if isinstance(c, FittedClassifier)}

    def embedding(self) -> dict[str, Tensor]:
        """The embedding as it is."""
        return {k: v.detach().clone() for k, v in self.augmented.embedding.state_dict().items()}

    def control(self, identity: Mapping[str, Any] | None = None) -> Control:
        """The control, its LoRA under a name of its own; the model is the pre-trained one again. Ends the run."""
        lora, unet = self.lora(), self.augmented.model.unet
        unet.requires_grad_(False)
        activate(unet, self.around)
        unet.delete_adapters(NAME)
        with torch.no_grad():
            return attach_control(self.augmented.model, self.info(identity), lora, self.embedding(), self.fitted())


def controlling(
    model: StableDiffusion, classifiers: Sequence[Classifier], prompts: Sequence[str],
    settings: ControlSettings | None = None, engine: Engine | None = None,
) -> Controlling:  # fmt: skip
    """Attach a LoRA and an embedding to a model and put together what trains them.

    Raises:
        TiltingError: for settings that cannot work.
    """
    s, engine = settings or ControlSettings(), engine or Engine.of(model)
    named = by_label(classifiers)
    check_gradient(s.planner, named)
    check_planner(s.planner, s.accumulate)
    if not 0 < s.eta <= 1:
        raise TiltingError(f"eta must be above 0 and at most 1, not {s.eta:g}: the path KL needs a chain with noise")
    if s.steps < 2:
        raise TiltingError("a control needs at least 2 steps: the last one has no density")
    around, parameters, augmented = attach_labels(model, [c.schema for c in named.values()], s, engine)
    grid = model.schedule.grid(s.steps)
    if s.kl or s.planner == "ppo":
        augmented.off = max((t.t for t, to in pairwise(grid) if step_std(t, to, 1.0) == 0), default=-1.0)
    batches = ControlBatches(
        model, prompts, _NoReward(), s.steps, s.eta, model.default_cfg if s.cfg is None else s.cfg, s.batch_size, 1, s.seed,
        s.negative, engine.part, engine.context, engine.device, augmented=augmented, classifiers=named, gamma=s.gamma,
    )  # fmt: skip
    return running(model, s.ctrl().objective(), batches, parameters, augmented, s, engine, around)


def attach_labels(
    model: StableDiffusion, schemas: Sequence[Schema], s: ControlSettings, engine: Engine
) -> tuple[tuple[str, ...], dict[str, nn.Parameter], Augmented]:
    """A fresh LoRA and embedding on a model: the adapters that were active before, what is trained, the augmented model.

    Raises:
        TiltingError: a batch that does not divide into processes and parts.
    """
    unit = engine.count * s.accumulate
    if s.batch_size < 1 or s.batch_size % unit:
        raise TiltingError(f"batch_size {s.batch_size} does not divide into {unit} (processes x parts): use {unit}")
    around = tuple(name for name in active(model.unet) if name != NAME)
    parameters = attach(model.unet, s.rank, s.parts, s.seed)
    kinds = {schema.label: len(schema.classes) or None for schema in schemas}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        embedding = LabelEmbedding(kinds, width_of(model, s.place)).to(engine.device)
    augmented = Augmented(model, embedding, s.place, partial(lora_off, model.unet))
    parameters |= {EMBEDDING + name: p for name, p in embedding.named().items()}
    return around, parameters, augmented


def running(
    model: StableDiffusion, objective: Objective, batches: ControlBatches | TripletBatches,
    parameters: dict[str, nn.Parameter], augmented: Augmented, s: ControlSettings, engine: Engine, around: tuple[str, ...],
) -> Controlling:  # fmt: skip
    """A run of its parts."""
    optimiser = s.optimiser()
    training = Training(parameters, optimiser.build(parameters))
    whole = Accumulated(objective, s.accumulate) if s.accumulate > 1 else objective
    return Controlling(model, whole, optimiser, batches, training, engine, augmented=augmented, settings=s, around=around)


class _NoReward:
    """In the place of a reward: what a batch is worth is said by its labels."""

    name, differentiable = "labels", True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        raise TiltingError("a control is trained by its classifiers alone")


def check_gradient(planner: str, classifiers: Mapping[str, Classifier]) -> None:
    """Refuse to back-propagate through what has no gradient. Raises TiltingError."""
    for label, one in classifiers.items():
        if planner == "backprop" and not differentiable(one):
            raise TiltingError(f"backprop needs a classifier with a gradient and that of {label!r} has none: use --planner ppo")


@dataclass(frozen=True)
class TrainedControl:
    """What `condition_train` returns.

    Attributes:
        control: attached to the model; ``control.save(folder)`` writes it.
        history: a mapping of numbers per training step.
    """

    control: Control
    history: list[dict[str, Any]]


def condition_train(
    model: StableDiffusion, classifiers: Classifier | Sequence[Classifier] = (), prompts: Sequence[str] | None = None,
    train_steps: int = 150, settings: ControlSettings | None = None, data: Data | None = None, labels: Sequence[str] = (),
    **options: Any,
) -> TrainedControl:  # fmt: skip
    """Train a control of a model, in this process.

    Args:
        model: from `tilting.load`; it is the pre-trained model again afterwards, whatever controls are attached.
        classifiers: one per label, such as `condition_fit` gives; classifier-free fine-tuning needs none, and keeps them.
        prompts: to draw from; default everything that pocket draws.
        train_steps: optimiser steps (of ppo: rounds).
        settings: how; or its fields as keywords, such as ``objective="classifier-free"``, over the model's own defaults.
        data: tables of labelled pictures, with prompts or without, for classifier-free fine-tuning.
        labels: NAME[=KIND] of the columns to learn; default all.

    Raises:
        TiltingError: for settings that cannot work, and after ten skipped steps in a row.
    """
    given = classifiers if isinstance(classifiers, Sequence) else [classifiers]
    asked = {k: options[k] for k in ("objective", "planner") if k in options}
    own = {k.replace("-", "_"): v for k, v in own_settings(model.name, **asked).items()}
    check_planner(options.get("planner", "backprop"), truncated="truncation" in options)
    s = settings or ControlSettings(**own | options)
    if s.objective == FREE:
        from tilting.conditioning.classifier_free import free_controlling, read_labelled

        if data is None or prompts is not None:
            raise TiltingError(f"the objective {FREE} learns from labelled data and their prompts: give data, and no prompts")
        run = free_controlling(model, read_labelled(model, data, labels, given), given, s)
    else:
        if data is not None or labels:
            raise TiltingError(f"the objective ctrl learns from a classifier, not from data: fit one, or ask for {FREE!r}")
        words = [prompts] if isinstance(prompts, str) else list(usual_prompts(model.name) if prompts is None else prompts)
        run = controlling(model, given, words, s)
    history = [row.numbers for row in run.steps(train_steps)]
    return TrainedControl(run.control(), history)
