"""The request of a `finetune` run, fully resolved and validated, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Lt
from typing_extensions import Doc

from tilting.config import options, training
from tilting.config.diversity import parse_diversity
from tilting.config.generate import tried
from tilting.config.objectives import settings_of
from tilting.config.pairs import read_pairs
from tilting.config.training import TrainingConfig, check_batch, once
from tilting.declare import Check, Metavar, Option
from tilting.errors import TiltingError
from tilting.models.inputs import resolve_inputs
from tilting.models.lora_file import PAPER_TARGETS
from tilting.models.names import check_pipeline, defaults
from tilting.models.placement import FULL, Switches, check_switches
from tilting.objectives import OBJECTIVES
from tilting.objectives.batch import BaseObjective
from tilting.rewards.spec import REWARDS, Spec, check_rewards, parse_spec, parse_specs, same
from tilting.runs.owner import processes

LEARN = ("lora", "guidance", "negative")
IN_PYTHON = """train_steps steps batch_size accumulate eta sde cfg negative_prompt lr rank lora_alpha target_modules
weight_decay teacher clip optimizer schedule warmup ema train_text_encoder init_lora learn diversity reward_dropout
reward_frames seed""".split()  # noqa: SIM905
"""Fields that are keywords of `tilting.finetune`; the others are objects there, or only make sense for a run folder."""


def _term(name: str, value: str) -> str:
    parse_diversity(value)
    return value


@dataclass(frozen=True)
class FinetuneConfig(Switches, TrainingConfig):
    """A validated request with all defaults: ``rank`` and ``target_modules`` are None if they are those of ``init_lora``;
    ``device`` "auto" is accelerate's choice; ``settings`` has every setting of the objective."""

    prompts: options.Prompts
    model: options.Model = "pocket"
    reward: options.Reward = ("clip",)
    objective: Annotated[str, Doc("See `tilting objectives`.")] = "draft-lv"
    train_steps: training.TrainSteps = 200
    steps: options.Steps = 50
    batch_size: Annotated[training.BatchSize, Option(default="4, or what divides into groups, processes and parts")] = 4
    accumulate: training.Accumulate = 1
    eta: Annotated[options.Eta, Option(default="what the objective needs")] = 0.0
    sde: options.Sde = "posterior"
    cfg: options.Cfg = 4.0
    negative_prompt: options.NegativePrompt = ""
    lr: Annotated[float, Gt(0), Option(default="4e-4"), Doc("Learning rate.")] = 4e-4
    rank: training.Rank = 8
    lora_alpha: training.LoraAlpha = None
    target_modules: training.TargetModules | None = PAPER_TARGETS
    weight_decay: training.WeightDecay = 0.1
    clip: training.Clip = 1.0
    optimizer: training.Optimizer = "adamw"
    schedule: training.Schedule = "constant"
    warmup: training.Warmup = 0
    ema: training.Ema = 0.0
    device: options.Device = "auto"
    reward_device: options.RewardDevice = None
    precision: training.TrainPrecision = FULL
    input: options.Inputs = ()
    height: options.Side = None
    width: options.Side = None
    frames: options.Frames = None
    reward_frames: options.RewardFrames = "all"
    controlnet: options.Controlnet = None
    ip_adapter: options.IpAdapter = None
    mask: options.Mask = None
    settings: Annotated[options.Settings, Metavar("OBJECTIVE.FIELD=VALUE"), Doc("An objective's own setting, repeatable.")] = ()
    checkpoint_every: training.CheckpointEvery = 50
    keep_every: training.KeepEvery = 0
    sample_every: Annotated[int, Ge(0), Doc("Steps between samples; 0 for none.")] = 50
    sample_images: Annotated[int, Ge(1), Doc("Sampled images per prompt.")] = 2
    judge: Annotated[str | None, Metavar("SPEC"), Option(default="pocket-judge"), Doc("A held-out reward for the samples.")] = (
        None
    )
    early_stop: Annotated[int | None, Ge(1), Metavar("N"), Doc("Stop when the judge has not improved for N samplings.")] = None
    init_lora: Annotated[str | None, Metavar("DIR"), Doc("A LoRA to start from.")] = None
    teacher: Annotated[
        tuple[str, ...],
        Metavar("DIR[=SCALE]"),
        Check(options.loras),
        Doc("A LoRA that opd distils; repeatable, they are summed."),
    ] = ()
    pairs: Annotated[
        str | None, Metavar("FILE"), Doc("Table of prompt, chosen and rejected picture, for dpo without a reward.")
    ] = None
    train_text_encoder: Annotated[bool, Doc("Train a LoRA of the CLIP text encoders too.")] = False
    learn: Annotated[
        tuple[Literal["lora", "guidance", "negative"], ...],
        Metavar("A,B"),
        Option(default="lora"),
        Check(once),
        Doc("What is trained: lora, guidance, negative."),
    ] = ("lora",)
    diversity: Annotated[
        str | None, Metavar("MEASURE=WEIGHT"), Check(_term), Doc("Reward distances within a batch: euclid, clip, lpips:VGG.")
    ] = None
    reward_dropout: Annotated[float, Ge(0), Lt(1), Doc("Share of units dropped inside the reward.")] = 0.0
    tracker: training.Tracker = ()
    out: options.Out = None
    seed: options.Seed = 0
    long_prompts: options.LongPrompts = None
    metadata: options.Metadata = ()
    unused: options.Unused = ()

    @property
    def made_objective(self) -> BaseObjective:
        """The objective with its settings."""
        return OBJECTIVES[self.objective](**{key.partition(".")[2]: value for key, value in self.settings})

    def specs(self) -> list[Spec]:
        """The parsed rewards."""
        return parse_specs(self.reward)

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Fill in defaults and refuse what cannot work, before torch is imported.

        Args:
            options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them;
                ``target-modules`` and ``learn`` a list, or text with commas.

        Raises:
            TiltingError: one sentence that names the option.
        """
        name = options.get("objective") or cls.objective
        takes_pairs = OBJECTIVES.find(name).takes_pairs
        if isinstance(file := options.get("pairs"), str):
            if not takes_pairs:
                able = ", ".join(one for one in OBJECTIVES if OBJECTIVES[one].takes_pairs)
                raise TiltingError(f"{name} learns from a reward, not from --pairs: use --objective {able} with them")
            prompts = [pair.prompt for pair in read_pairs(file)]
            if options.get("prompts") and list(options["prompts"]) != prompts:
                raise TiltingError("the prompts are those of --pairs: leave other prompts out")
            if options.get("reward"):
                raise TiltingError("--pairs say what is preferred, and a reward would go unheard: leave --reward out")
            options = {**options, "prompts": prompts, "reward": None}
        given = cls.checked({"prompts": (), **options})
        settings, unused = settings_of(name, given.pop("settings", {}))
        objective = OBJECTIVES[name](**settings)
        given["settings"] = tuple((f"{name}.{field}", value) for field, value in settings.items())
        if "pairs" in given:
            given["reward"] = ()
        elif not given.get("reward"):
            if given.get("model", cls.model) != "pocket":
                raise TiltingError("fine-tuning needs a reward: give one by --reward")
            given["reward"] = cls.reward
        if "init_lora" in given:
            for key, its in (("rank", "rank is that"), ("target_modules", "target-modules are those")):
                if key in given:
                    raise TiltingError(f"{its} of --init-lora: leave --{key.replace('_', '-')} out")
                given[key] = None
            if given.get("lora_alpha") is not None:
                raise TiltingError("alpha is that of --init-lora: leave --lora-alpha out")
        resolve_inputs(cls, given, given.get("model", cls.model))
        if {"guidance", "negative"} & set(given.get("learn", ())):
            check_pipeline(given.get("model", cls.model), "learned sampler inputs")
        config = cls(**cls.completed(given, objective, *defaults(given.get("model", cls.model))))
        config.check(objective, processes())
        check_switches(config.model, Switches.of(config))
        return replace(config, unused=(*unused, *config._unused(given)))

    @classmethod
    def completed(cls, given: Mapping[str, Any], objective: BaseObjective, steps: int, cfg: float) -> dict[str, Any]:
        """The given fields, with the defaults that depend on objective and model: eta, steps, cfg, batch size."""
        group, parts = objective.group_size, given.get("accumulate", 1)
        unit = processes() * (group * parts if objective.splits else math.lcm(group, parts))
        values = {"steps": steps, "cfg": cfg, "eta": objective.default_eta, "batch_size": -(-4 // unit) * unit}
        return values | dict(given)

    def check(self, objective: BaseObjective, count: int) -> None:
        """Refuse options that contradict each other, for ``count`` processes. Raises TiltingError."""
        objective.check_chain(self.eta, self.steps)
        if self.memory is not None:
            way = "`tilting doctor --size` says what fits, and --accumulate, --recompute and --offload text make it less"
            raise TiltingError(f"nothing is chosen for a training by --memory: {way}")
        if self.cache is not None:
            raise TiltingError("a first-block cache has no gradient of its own, which training needs: leave --cache out")
        if self.offload not in (None, "text") or (self.offload and self.train_text_encoder):
            raise TiltingError(
                "what is trained, and what its gradient goes through, cannot wait in main memory: use --offload text"
            )
        self.check_warmup()
        self.check_batch(objective, count)
        parts = self.accumulate if objective.splits else 1
        if self.diversity is not None and self.batch_size // count // parts * count < 2:
            raise TiltingError("diversity needs at least 2 images at once: it is the distance between them")
        if self.pairs is not None:
            if objective.group_size != 2:
                raise TiltingError("pairs are two pictures of a prompt: leave group_size at 2")
            if self.diversity is not None or self.reward_dropout:
                raise TiltingError("diversity and reward-dropout change a reward, and --pairs have none: leave them out")
        if self.reward_dropout and getattr(objective, "rewards", "sum") == "gdpo":
            raise TiltingError("reward-dropout is of the sum of rewards, which gdpo takes one by one: leave one of the two out")
        for spec in self.specs():
            if objective.needs_gradient and spec.name in REWARDS and not REWARDS[spec.name].differentiable:
                raise black_box(objective.name, spec.text)
        if self.judge is not None:
            check_rewards("judge", (self.judge,))
            judge = parse_spec(self.judge)
            if judge.name in REWARDS and REWARDS[judge.name].together:
                raise TiltingError(f"the judge {self.judge!r} is of a batch: a judge is of each picture by itself")
            if any(same(judge, spec) for spec in self.specs()):
                raise TiltingError(f"the judge {self.judge!r} is the reward itself: a judge is what training does not see")
        if self.early_stop is not None:
            if not self.sample_every:
                raise TiltingError("early-stop needs sample-every above 0: it looks at the samples")
            if self.judge is None and self.model != "pocket":
                raise TiltingError("early-stop needs a judge: give a held-out reward by --judge")

    def check_batch(self, objective: BaseObjective, count: int) -> None:
        """Refuse a batch that does not divide into groups, processes and parts. Raises TiltingError."""
        groups = f"groups of {objective.group_size} images of a prompt for {objective.name}"
        parts = f"{self.accumulate} parts by --accumulate"
        check_batch(
            self.batch_size,
            [(objective.group_size, groups), (count, f"{count} processes"), (self.accumulate, parts)],
            whole=not objective.splits,
        )

    def _unused(self, given: Mapping[str, Any]) -> list[str]:
        """Options that were given and have no effect in this run."""
        idle = ["negative-prompt"] if self.cfg == 1 and not {"guidance", "negative"} & set(self.learn) else []
        idle += ["sample-images", "judge"] if not self.sample_every else []
        idle += [] if OBJECTIVES[self.objective].takes_teacher else ["teacher"]
        idle += [] if self.reward else ["reward-device"]
        idle += ["rank", "lora-alpha", "target-modules", "train-text-encoder"] if "lora" not in self.learn else []
        return [option for option in idle if given.get(option.replace("-", "_")) not in (None, "", ())]


def black_box(objective: str, reward: str, why: str = "") -> TiltingError:
    """The error for a black-box reward; ``why`` is what trying its gradient gave."""
    what = f"a differentiable reward and {reward!r} is black-box{tried(why)}"
    return TiltingError(f"{objective} needs {what}: use --objective ddpo with it")


resolve_finetune = FinetuneConfig.resolve
