"""Fine-tunes a model's LoRA on a reward, as a generator over steps: no files, no arguments, no printing."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from tilting.config.base import keywords
from tilting.config.finetune import IN_PYTHON, LEARN, FinetuneConfig, black_box
from tilting.config.pairs import read_pairs
from tilting.config.prompts import prompts_of
from tilting.config.training import TrainingConfig
from tilting.disk import folder_given
from tilting.errors import TiltingError
from tilting.generation.coerce import reward_of
from tilting.generation.plan import Model
from tilting.models.adapt import adapted, with_dropout
from tilting.models.lora import TRAINED as NAME
from tilting.models.lora import add_lora, load_lora, lora_parameters, lora_state, parts, remove, tells
from tilting.models.lora_file import lora_file, parse_lora
from tilting.models.lora_stack import in_place_of
from tilting.models.lora_targets import is_clip
from tilting.models.lora_weights import rank_of, read_lora, save_lora
from tilting.models.sampler_inputs import SamplerInputs, begin, read_inputs, save_inputs
from tilting.models.switches import networks
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Losses, TrainBatch
from tilting.rewards.elsewhere import Elsewhere
from tilting.rewards.metadata import informed
from tilting.rewards.user_file import why_blind
from tilting.rewards.weighted_sum import framed
from tilting.training.average import EMA, Average
from tilting.training.bar import watched
from tilting.training.batches import Batches, Counts, in_parts
from tilting.training.checkpoint import Saved
from tilting.training.diversity import diversity
from tilting.training.loop import Group, Info, Optimiser, TrainState, check_moved, train
from tilting.training.processes import Engine
from tilting.types import Reward

GROUPS = (Group("guidance.", 50.0, decays=False), Group("critic."))
"""Guidance weights are large and learn 50 times as fast (Clark et al. 2024, B.12); a critic is clipped apart."""
Given = Reward | str | Callable[[Tensor, list[str]], Any]
"""A reward, its name, or a function of images and prompts; see `tilting.generation.coerce.reward_of`."""
COSTS = ("evaluations", "reward_calls", "images")


@runtime_checkable
class Trainable(Model, Protocol):
    """A model with a network that a LoRA can be attached to."""

    @property
    def backbone(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


class BatchMaker(Protocol):
    """(training step, memory) -> the batch of that step; what was paid, and what went wrong in it."""

    counts: Counts
    trouble: str | None
    numbers: dict[str, float]

    def __call__(self, step: int, memory: dict[str, Any]) -> TrainBatch: ...


Maker = TypeVar("Maker", bound=BatchMaker)


@dataclass
class Trainer(Generic[Maker]):
    """A run: who is drawn, what is trained, what was paid. Made by `make_trainer`.

    Attributes:
        model: with its LoRA attached.
        objective, optimiser, batches, engine: its parts.
        state: what a checkpoint holds.
        before: costs of the processes that this one goes on from.
        inputs: what is learned of the sampler, on in ``model``; None where nothing is.
    """

    model: Trainable
    objective: Losses
    optimiser: Optimiser
    batches: Maker
    state: TrainState
    engine: Engine
    before: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COSTS, 0))
    costs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COSTS, 0))
    inputs: SamplerInputs | None = None

    def steps(self, until: int) -> Iterator[Info]:
        """Train up to a training step; numbers are a line of metrics.jsonl: step, loss, reward, gradient_norm, the objective's
        own, rate, skipped (in all), and the run's costs so far over all processes. Of a skipped step, reward, loss and
        gradient_norm are None and ``why`` says why. Raises TiltingError after ten skipped steps in a row, and after ten
        at the beginning without a gradient."""
        begun = time.perf_counter()
        half = self.engine.half or self.model.dtype == torch.float16
        parts = (self.state, self.objective, self.batches, self.optimiser, until, self.engine.reduce, half)
        for info in train(*parts, trouble=lambda: self.batches.trouble, lockstep=self.engine.shard is not None):
            paid = self.engine.total(self.batches.counts.numbers())
            self.costs = {key: self.before[key] + paid[key] for key in COSTS}
            if info.skipped is None:
                why, more = None, self.more_numbers()
                numbers: dict[str, Any] = self.engine.mean(info.numbers | self.batches.numbers)
                numbers["skipped"] = self.state.skipped
            else:
                why, more = self.engine.broadcast(self.batches.trouble or info.skipped), {}
                numbers = {"loss": None, "reward": None, "gradient_norm": None, "skipped": self.state.skipped, "why": why}
            line = {"step": info.step, **numbers, **self.costs, **more}
            yield Info(info.step, line, why, time.perf_counter() - begun)
            begun = time.perf_counter()

    def more_numbers(self) -> dict[str, float]:
        """What else a line of a step that was made has."""
        return {}

    def lora(self) -> dict[str, Tensor]:
        """The weights as they are, in diffusers' format."""
        return lora_state(self.model, NAME)

    def save_weights(self, folder: Path) -> None:
        """Write the files of what is trained."""
        save_weights(self.lora(), self.inputs, folder)

    def averaged(self) -> AbstractContextManager[None] | None:
        """A block in which what is trained is its average; None where the run keeps none."""
        return self.state.averages[EMA].on() if EMA in self.state.averages else None

    def saved(self, **more: Any) -> Saved:
        """A checkpoint, with the run's costs and more plain values."""
        saved = self.state.saved()
        return saved._replace(state={**saved.state, "run": {"costs": self.costs, **more}})

    def restore(self, saved: Saved) -> dict[str, Any]:
        """Go on from a checkpoint; the plain values that were given to `saved`."""
        self.state.restore(saved)
        run = dict(saved.state.get("run", {}))
        self.before = self.costs = run.pop("costs")
        return run


def attach(
    target: Any,
    rank: int | None,
    targets: Sequence[str],
    seed: int,
    start: Mapping[str, Tensor] | None = None,
    alpha: float | None = None,
    text: bool = False,
) -> dict[str, nn.Parameter]:
    """A LoRA to train in place of one that was trained before, beside those that are active; fresh, or from saved weights.

    Args:
        target: a network, or a model with its text encoders.
        rank, targets, seed, alpha: see `add_lora`.
        start: weights to go on from.
        text: train text encoders too; those that ``start`` has nothing of begin afresh.

    Returns:
        Its parameters by name, float32, the only trainable ones.

    Raises:
        TiltingError: if saved weights do not fit the model.
    """
    remove(target, [NAME])
    networks = parts(target)
    clips = {component: one for component, one in networks.items() if is_clip(one)} if text else {}
    if text and not clips:
        raise TiltingError("this model has no CLIP text encoder, which --train-text-encoder trains a LoRA of")
    for network in networks.values():
        network.requires_grad_(False)
    if start is not None:
        load_lora(target, start, NAME)
    for component, network in networks.items():
        if (start is None and not is_clip(network)) or (component in clips and NAME not in getattr(network, "peft_config", {})):
            add_lora(network, rank or (rank_of(start) if start else 8), targets, NAME, seed, alpha)
    trained = {}
    for component, network in networks.items():
        mine = {id(p) for p in lora_parameters(network, NAME)} if component in clips or not is_clip(network) else set()
        for name, p in network.named_parameters():
            p.requires_grad_(id(p) in mine)
            if id(p) in mine:
                p.data = p.data.float()
                trained[f"{component}.{name}" if component in clips else name] = p
    if not trained:
        raise TiltingError("this model has no layers that a LoRA of these parts would change")
    return trained


def trainable(model: Any) -> Trainable:
    """A model whose network a LoRA can train. Raises TiltingError for another."""
    if not isinstance(model, Trainable):
        raise TiltingError(f"the model {getattr(model, 'name', model)!r} has no network for a LoRA to train")
    if getattr(model, "from_picture", False):
        raise TiltingError(f"{model.name!r} begins from pictures, and training from noise: train the text-to-image pipeline")
    return model


def on_device(model: Any, engine: Engine) -> Trainable:
    """A model on the process's device, unless its network is to be sharded first. Raises TiltingError for one that a LoRA
    cannot train."""
    if engine.shard is None and str(getattr(model, "device", "cpu")) != str(engine.device):
        model.to(engine.device)
    return trainable(model)


def sharded(model: Any, engine: Engine, trained: Mapping[str, nn.Parameter]) -> None:
    """Shard a model's network, where the process is asked to, and bring what is left of the model to the process's device."""
    if engine.shard is not None:
        engine.shard(model.backbone, trained.values())
        if str(engine.device) != "cpu":
            model.to(engine.device)


def trainer_of(
    config: FinetuneConfig,
    model: Trainable,
    reward: Reward | None,
    objective: BaseObjective,
    engine: Engine,
    start: Mapping[str, Tensor] | None = None,
    inputs: SamplerInputs | None = None,
) -> Trainer[Batches]:
    """Attach a LoRA to a model and put together what trains it.

    Args:
        config: how; its model, reward and objective are those given here.
        model, reward, objective: what is trained, on what (None: on the config's pairs), and by what.
        engine: the process.
        start: weights to go on from.
        inputs: of the sampler, learned before.

    Raises:
        TiltingError: for what cannot work together.
    """
    pairs = read_pairs(config.pairs) if config.pairs else ()
    if pairs and len(model.image_shape) != 3:
        raise TiltingError(f"pairs are of pictures, and {model.name!r} draws videos")
    if reward is not None and objective.needs_gradient and not reward.differentiable:
        raise black_box(objective.name, reward.name, why_blind(reward))
    if not config.learn or set(config.learn) - set(LEARN):
        raise TiltingError(f"what is learned is some of {', '.join(LEARN)}, not {', '.join(config.learn) or 'nothing'}")
    asked = [parse_lora(one) for one in config.teacher] if objective.takes_teacher else []
    teacher = in_place_of(model, (NAME,), asked) if asked else None
    text = config.train_text_encoder and "lora" in config.learn
    how = config.rank, config.target_modules or (), config.seed, start, config.lora_alpha, text
    parameters = attach(model, *how)
    sharded(model, engine, parameters)
    told = tells(model, None if asked else (NAME,))
    if "lora" not in config.learn:
        for p in parameters.values():
            p.requires_grad_(False)
        parameters = {}
    bare, backbone = None, model if told else model.backbone
    inputs = begin(model, config.learn, model.schedule.grid(config.steps), config.cfg, config.seed, inputs)
    if inputs is not None:
        inputs.to(engine.device)
        bare, model = model, cast(Any, inputs.on(model))
        for name, p in inputs.named_parameters():
            p.requires_grad_(name.partition(".")[0] in config.learn)
            parameters |= {name: p} if p.requires_grad else {}
    thin = with_dropout(reward, config.reward_dropout) if config.reward_dropout and reward is not None else None
    reward = framed(thin or reward, config.reward_frames)
    critic = adapted(reward, config.rank or 8, config.seed) if objective.needs_critic and reward is not None else None
    if critic is not None:
        place = critic[0].device if isinstance(critic[0], Elsewhere) else engine.device
        for network in networks(critic[0]):  # before what is made of its parameters: averages, and the optimiser's moments
            network.to(place)
        parameters |= {f"critic.{name}": p for name, p in critic[1].items()}
    batches = Batches(
        model,
        backbone,
        config,
        engine,
        reward,
        objective.group_size,
        critic=critic[0] if critic else None,
        diversity=diversity(config.diversity) if config.diversity else None,
        bare=bare,
        redraw=thin.redraw if thin else None,
        teacher=teacher,
        law=config.sde,
        told=told,
        pairs=pairs,
    )
    optimiser = optimiser_of(config, config.lr, config.weight_decay, config.clip, GROUPS)
    state = state_of(config, parameters, optimiser)
    state.averages |= {name: Average(parameters, decay) for name, decay in objective.averages().items()}
    whole = in_parts(objective, config.accumulate)
    return Trainer(model, whole, optimiser, batches, state, engine, inputs=inputs)


def optimiser_of(config: TrainingConfig, rate: float, weight_decay: float, clip: float, groups: tuple[Group, ...]) -> Optimiser:
    """The optimiser of a run, on the schedule that its config asks for."""
    about = {"schedule": config.schedule, "warmup": config.warmup, "steps": config.train_steps}
    return Optimiser(rate, weight_decay, clip=clip, groups=groups, kind=config.optimizer, **about)


def state_of(config: TrainingConfig, parameters: dict[str, nn.Parameter], optimiser: Optimiser) -> TrainState:
    """The state that a run begins with, with the average that its config asks for."""
    averages = {EMA: Average(parameters, lambda step: config.ema)} if config.ema else {}
    return TrainState(parameters, optimiser.build(parameters), averages=averages)


@keywords(FinetuneConfig, *IN_PYTHON)
def make_trainer(
    model: Model,
    prompts: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    reward: Given,
    objective: BaseObjective | str | None = None,
    *,
    start: Mapping[str, Tensor] | None = None,
    inputs: SamplerInputs | None = None,
    engine: Engine | None = None,
    **options: Any,
) -> Trainer[Batches]:
    """What `finetune` runs, step by step: ``for row in make_trainer(...).steps(200)``. Arguments are those of `finetune`, and
    the process. Raises TiltingError for settings that cannot work."""
    made, scored, unet = objective_of(objective), reward_of(reward), trainable(model)
    if scored is None:
        raise TiltingError("fine-tuning needs a reward: give a function of images and prompts, or a name such as 'clip'")
    if start is not None or "init_lora" in options:
        if {"rank", "lora_alpha", "target_modules"} & set(options):
            raise TiltingError(
                "weights to start from have a rank, an alpha and parts: leave rank, lora_alpha, target_modules out"
            )
        if start is None:
            start, inputs = read_lora(options["init_lora"], model), read_inputs(lora_file(options["init_lora"]).parent)
        options |= {"rank": None, "target_modules": None}
    words = prompts_of(prompts)
    scored = informed(scored, *words)
    engine = engine or Engine(device=unet.device)
    fields = FinetuneConfig.completed(options, made, model.default_steps, model.default_cfg)
    config = FinetuneConfig(words.texts, model=model.name, reward=(), objective=made.name, metadata=words.metadata, **fields)
    config.check(made, engine.count)
    return trainer_of(config, unet, scored, made, engine, start, inputs)


def objective_of(objective: BaseObjective | str | None) -> BaseObjective:
    """An objective from itself, or from its name with its defaults; ``draft-lv`` for None. Raises TiltingError."""
    if objective is None or isinstance(objective, str):
        return OBJECTIVES.find(objective or FinetuneConfig.objective)()
    if not isinstance(objective, BaseObjective):
        raise TiltingError(f"the objective must be such as tilting.objectives.ddpo(), or its name, not {objective!r}")
    return objective


def told(history: Sequence[Mapping[str, Any]], *keys: str) -> str:
    """How long a training was, and where its numbers began and ended, such as "40 steps, reward 0.1 to 0.3"."""
    lines = [[one[key] for one in history if one.get(key) is not None] for key in keys]
    moved = [f"{key} {line[0]:.4g} to {line[-1]:.4g}" for key, line in zip(keys, lines, strict=True) if line]
    return ", ".join([f"{len(history)} step{'' if len(history) == 1 else 's'}", *moved])


@dataclass(frozen=True, repr=False)
class Tuned:
    """What `finetune` returns.

    Attributes:
        lora: the weights under diffusers' names, for `tilting.models.lora_weights.save_lora`. They are active in the model too.
        history: a mapping of numbers per training step.
        inputs: what was learned of the sampler; ``inputs.on(model)`` draws with it, `save` writes it beside the LoRA.
        ema: the same of the averaged weights, where ``ema`` asked for them.
    """

    lora: dict[str, Tensor]
    history: list[dict[str, Any]]
    inputs: SamplerInputs | None = None
    ema: Tuned | None = None

    def __repr__(self) -> str:
        return f"Tuned({told(self.history, 'reward')}; a LoRA of {sum(map(Tensor.numel, self.lora.values())):,} weights)"

    def save(self, folder: str | Path) -> None:
        """Write the weights as a diffusers LoRA folder, which `tilting generate --lora` draws with, sampler inputs too."""
        save_weights(self.lora, self.inputs, folder_given(folder))


def save_weights(lora: Mapping[str, Tensor], inputs: SamplerInputs | None, folder: Path) -> None:
    """A LoRA, and beside it what was learned of the sampler."""
    save_lora(lora, folder)
    if inputs is not None:
        save_inputs(inputs, folder)


@keywords(FinetuneConfig, *IN_PYTHON)
def finetune(
    model: Model,
    prompts: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    reward: Given,
    objective: BaseObjective | str | None = None,
    *,
    start: Mapping[str, Tensor] | None = None,
    inputs: SamplerInputs | None = None,
    progress: bool = True,
    **options: Any,
) -> Tuned:
    """Train a LoRA of a model on a reward, in this process.

    Args:
        model: from `tilting.load`, which says where it runs and in which precision; what is trained is float32. Its LoRA
            stays active afterwards, and a second call replaces it.
        prompts: one or several; each training step draws some.
        reward: such as ``tilting.rewards.clip()``; or its name, or a function of images and prompts, as `generate` takes it.
        objective: such as ``tilting.objectives.ddpo()``, or its name; default draft-lv.
        start: weights to train further; or ``init_lora``, the folder of a LoRA.
        inputs: of the sampler, learned before; those of ``learn`` are trained further.
        progress: show a bar on stderr.
        options: those of `tilting finetune`, with underscores (`tilting.config.finetune.FinetuneConfig`): train_steps, steps,
            batch_size, lr, rank, target_modules, learn, diversity, seed and so on; unset ones have the same defaults.

    Raises:
        TiltingError: for settings that cannot work, after ten skipped steps in a row, and where nothing is learnt.
    """
    trainer = make_trainer(model, prompts, reward, objective, start=start, inputs=inputs, **options)
    until = options.get("train_steps", FinetuneConfig.train_steps)
    history = watched("finetune", trainer.steps(until), until, progress, "reward")
    check_moved(trainer.state, trainer.objective)
    ema = None
    if averaged := trainer.averaged():
        with averaged:
            ema = Tuned(trainer.lora(), history, copy.deepcopy(trainer.inputs))
    return Tuned(trainer.lora(), history, trainer.inputs, ema)
