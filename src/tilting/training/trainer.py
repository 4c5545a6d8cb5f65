"""Fine-tuning a model's LoRA on a reward, as a generator of what each step did: no files, no arguments, no printing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from tilting.config.finetune import LEARN
from tilting.generation.coerce import objective_of, reward_of
from tilting.generation.plan import Model
from tilting.models.adapt import adapted
from tilting.models.lora import add_lora, load_lora, lora_parameters, lora_state, save_lora
from tilting.models.lora_file import PAPER_TARGETS
from tilting.models.sampler_inputs import SamplerInputs, begin, save_inputs
from tilting.objectives.batch import Objective, World
from tilting.refusals import check_accumulate
from tilting.training.batches import Accumulated, Batches, Counts
from tilting.training.checkpoint import Saved
from tilting.training.diversity import Diversity
from tilting.training.diversity import diversity as make_diversity
from tilting.training.loop import Group, Optimiser, Training, train
from tilting.training.processes import Engine
from tilting.types import Reward, TiltingError

NAME = "tilting"
"""Of the trained adapter."""
GROUPS = (Group("guidance.", 50.0, decays=False), Group("critic."))
"""Guidance weights are large and learn 50 times as fast (Clark et al. 2024, B.12); a critic is clipped apart."""
Given = Reward | str | Callable[[Tensor, list[str]], Any]
"""A reward, its name, or a function of images and prompts; see `tilting.generation.coerce.reward_of`."""
COSTS = ("evaluations", "reward_calls", "images")


class Making(Protocol):
    """(training step, memory) -> the world of that step; what was paid, and what went wrong in it."""

    counts: Counts
    trouble: str | None
    numbers: dict[str, float]

    def __call__(self, step: int, memory: dict[str, Any]) -> World: ...


Drawing = TypeVar("Drawing", bound=Making)


@dataclass(frozen=True)
class Row:
    """A training step.

    Attributes:
        step: training steps made, this one included.
        numbers: a line of metrics.jsonl: step, loss, reward, gradient_norm, the objective's own, rate, skipped (in all), and
            the run's costs so far over all processes. Of a skipped step, reward, loss and gradient_norm are None and ``why``
            says why.
        skipped: why it was skipped, or None.
        seconds: it took.
    """

    step: int
    numbers: dict[str, Any]
    skipped: str | None
    seconds: float


def attach(
    unet: Any, rank: int | None, parts: Sequence[str], seed: int, start: Mapping[str, Tensor] | None = None
) -> dict[str, nn.Parameter]:
    """A LoRA to train in place of one that was trained before; fresh, or from saved weights.

    Returns:
        Its parameters by name, float32, the only trainable ones.

    Raises:
        TiltingError: if saved weights do not fit the model.
    """
    if NAME in getattr(unet, "peft_config", {}):
        unet.delete_adapters(NAME)
    unet.requires_grad_(False)
    if start is None:
        add_lora(unet, rank or 8, parts, NAME, seed)
    else:
        load_lora(unet, start, NAME)
    mine = {id(p) for p in lora_parameters(unet, NAME)}
    found = {}
    for name, p in unet.named_parameters():
        p.requires_grad_(id(p) in mine)
        if id(p) in mine:
            p.data = p.data.float()
            found[name] = p
    if not found:
        raise TiltingError("this model has no layers that a LoRA of these parts would change")
    return found


@dataclass
class Tuning(Generic[Drawing]):
    """A run: who is drawn, what is trained, what was paid. Made by `tuning`.

    Attributes:
        model: with its LoRA attached.
        objective, optimiser, batches, training, engine: its parts.
        before: costs of the processes that this one goes on from.
        inputs: what is learned of the sampler, on in ``model``; None where nothing is.
    """

    model: Model
    objective: Objective
    optimiser: Optimiser
    batches: Drawing
    training: Training
    engine: Engine
    before: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COSTS, 0))
    costs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COSTS, 0))
    inputs: SamplerInputs | None = None

    def steps(self, until: int) -> Iterator[Row]:
        """Train up to a training step. Raises TiltingError after ten skipped steps in a row."""
        begun = time.perf_counter()
        half = self.engine.half or getattr(self.model, "dtype", None) == torch.float16
        for report in train(self.training, self.objective, self.batches, self.optimiser, until, self.engine.reduce, half):
            paid = self.engine.total(self.batches.counts.numbers())
            self.costs = {key: self.before[key] + paid[key] for key in COSTS}
            why = None
            if report.skipped is None:
                numbers: dict[str, Any] = self.engine.mean(report.numbers | self.batches.numbers)
                numbers["skipped"] = self.training.skipped
            else:
                why = self.engine.broadcast(self.batches.trouble or report.skipped)
                numbers = {"loss": None, "reward": None, "gradient_norm": None, "skipped": self.training.skipped, "why": why}
            line = {"step": report.step, **numbers, **self.costs}
            yield Row(report.step, line, why, time.perf_counter() - begun)
            begun = time.perf_counter()

    def lora(self) -> dict[str, Tensor]:
        """The weights as they are, in diffusers' format."""
        return lora_state(getattr(self.model, "backbone"), NAME)  # noqa: B009  not every model has one

    def saved(self, **state: Any) -> Saved:
        """A checkpoint, with the run's costs and more plain values."""
        held = self.training.saved()
        return held._replace(state={**held.state, "run": {"costs": self.costs, **state}})

    def restore(self, held: Saved) -> dict[str, Any]:
        """Go on from a checkpoint; the plain values that were given to `saved`."""
        self.training.restore(held)
        run = dict(held.state.get("run", {}))
        self.before = self.costs = run.pop("costs")
        return run


def tuning(
    model: Model, prompts: Sequence[str], reward: Given, objective: Objective | str | None = None,
    optimiser: Optimiser | None = None, steps: int | None = None, eta: float | None = None, cfg: float | None = None,
    batch_size: int = 4, rank: int | None = 8, parts: Sequence[str] = PAPER_TARGETS, seed: int = 0, negative: str = "",
    accumulate: int = 1, start: Mapping[str, Tensor] | None = None, engine: Engine | None = None,
    learn: Sequence[str] = ("lora",), inputs: SamplerInputs | None = None, diversity: Diversity | None = None,
) -> Tuning:  # fmt: skip
    """Attach a LoRA to a model and put together what trains it; the arguments are those of `finetune`.

    Raises:
        TiltingError: for settings that cannot work.
    """
    objective, engine, reward = objective_of(objective), engine or Engine.of(model), _reward(reward)
    if objective.needs_gradient and not reward.differentiable:
        raise TiltingError(f"{objective.name} needs a differentiable reward and {reward.name!r} is black-box: use ddpo with it")
    check_accumulate(objective.name, objective.needs_gradient, accumulate)
    unit = objective.group * engine.count * accumulate
    if batch_size < 1 or batch_size % unit:
        raise TiltingError(f"batch_size {batch_size} does not divide into {unit} (groups x processes x parts): use {unit}")
    unet = getattr(model, "backbone", None)
    if unet is None:
        raise TiltingError(f"the model {model.name!r} has no network for a LoRA to train")
    gentle = objective.needs_gradient and objective.name != "adjoint" and not getattr(objective, "kl", 0.0)
    eta = (0.0 if gentle else 1.0) if eta is None else eta
    cfg = model.default_cfg if cfg is None else cfg
    if not learn or set(learn) - set(LEARN):
        raise TiltingError(f"what is learned is some of {', '.join(LEARN)}, not {', '.join(learn) or 'nothing'}")
    parameters = attach(unet, rank, parts, seed, start)
    if "lora" not in learn:
        for p in parameters.values():
            p.requires_grad_(False)
        parameters = {}
    steps = model.default_steps if steps is None else steps
    inputs = begin(model, learn, model.schedule.grid(steps), cfg, seed, inputs)
    if inputs is not None:
        inputs.to(engine.device)
        model = cast(Any, inputs.on(model))
        for name, p in inputs.named_parameters():
            p.requires_grad_(name.partition(".")[0] in learn)
            parameters |= {name: p} if p.requires_grad else {}
    critic = adapted(reward, rank or 8, seed) if objective.name == "dpg" else None
    if critic is not None:
        parameters |= {f"critic.{name}": p for name, p in critic[1].items()}
    batches = Batches(
        model, prompts, reward, steps, eta, cfg, batch_size, objective.group, seed, negative, engine.part, engine.context,
        engine.device, critic[0] if critic else None, diversity,
    )  # fmt: skip
    optimiser = optimiser or Optimiser()
    optimiser = optimiser if optimiser.groups else replace(optimiser, groups=GROUPS)
    training = Training(parameters, optimiser.build(parameters))
    whole = Accumulated(objective, accumulate) if accumulate > 1 else objective
    return Tuning(model, whole, optimiser, batches, training, engine, inputs=inputs)


def _reward(given: Given) -> Reward:
    reward = reward_of(given)
    if reward is None:
        raise TiltingError("fine-tuning needs a reward: give a function of images and prompts, or a name such as 'clip'")
    return reward


@dataclass(frozen=True)
class Tuned:
    """What `finetune` returns.

    Attributes:
        lora: the weights under diffusers' names; `tilting.models.lora.save_lora` writes them. They are active in the model too.
        history: a mapping of numbers per training step.
        inputs: what was learned of the sampler; ``inputs.on(model)`` draws with it, `save` writes it beside the LoRA.
    """

    lora: dict[str, Tensor]
    history: list[dict[str, Any]]
    inputs: SamplerInputs | None = None

    def save(self, folder: str | Path) -> None:
        """Write the weights as a diffusers LoRA folder, which `tilting generate --lora` draws with, sampler inputs too."""
        save_lora(self.lora, Path(folder))
        if self.inputs is not None:
            save_inputs(self.inputs, Path(folder))


def finetune(
    model: Model, prompts: str | Sequence[str], reward: Given, objective: Objective | str | None = None,
    train_steps: int = 200, optimiser: Optimiser | None = None, steps: int | None = None, eta: float | None = None,
    cfg: float | None = None, batch_size: int = 4, rank: int | None = None, parts: Sequence[str] | None = None,
    seed: int = 0, negative: str = "", accumulate: int = 1, start: Mapping[str, Tensor] | None = None,
    learn: Sequence[str] = ("lora",), inputs: SamplerInputs | None = None, diversity: str | Diversity | None = None,
) -> Tuned:  # fmt: skip
    """Train a LoRA of a model on a reward, in this process.

    Args:
        model: from `tilting.load`, which says where it runs and in which precision; what is trained is float32. Its LoRA
            stays active afterwards, and a second call replaces it.
        prompts: one or several; each training step draws some.
        reward: such as ``tilting.rewards.clip()``; or its name, or a function of images and prompts, as `generate` takes it.
        objective: such as ``tilting.objectives.ddpo()``, or its name; default draft-lv.
        train_steps: optimiser steps (of objectives that make one a step).
        optimiser: learning rate and so on.
        steps, cfg: of the sampler; default the model's own.
        eta: default 0 where gradients go through the chain, else 1.
        batch_size: images per training step.
        rank, parts: of the LoRA, 8 and ("attn2", "ff") unless told; not beside ``start``, which has its own.
        seed: of the run; everything random is keyed by it and the training step.
        negative: the negative prompt.
        accumulate: parts of a batch that are made one after the other, in less memory.
        start: weights to train further.
        learn: some of "lora", "guidance" (a scale for each step) and "negative" (a negative prompt for each prompt).
        inputs: of the sampler, learned before; those of ``learn`` are trained further.
        diversity: a term for the dissimilarity of a minibatch's images, such as "euclid=0.5" or "clip=0.2".

    Raises:
        TiltingError: for settings that cannot work, and after ten skipped steps in a row.
    """
    words = [prompts] if isinstance(prompts, str) else list(prompts)
    if not words or any(not p.strip() for p in words):
        raise TiltingError("a prompt is empty: say what to draw")
    if start is not None and (rank is not None or parts is not None):
        raise TiltingError("the weights to start from have their own rank and parts: leave out rank and parts")
    term = make_diversity(diversity) if isinstance(diversity, str) else diversity
    run = tuning(model, words, reward, objective, optimiser, steps, eta, cfg, batch_size, rank, parts or PAPER_TARGETS, seed,
                 negative, accumulate, start, None, learn, inputs, term)  # fmt: skip
    history = [row.numbers for row in run.steps(train_steps)]
    with torch.no_grad():
        return Tuned(run.lora(), history, run.inputs)
