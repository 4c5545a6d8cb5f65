"""What a `condition train` run is asked to do, fully resolved and checked, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from tilting.config import options, training
from tilting.config.training import TrainingConfig, check_batch
from tilting.declare import Metavar, Option
from tilting.errors import TiltingError
from tilting.features.schema import noisy_model, read_schema
from tilting.models.control_spec import FREE
from tilting.models.inputs import resolve_inputs
from tilting.models.lora_file import PAPER_TARGETS
from tilting.models.names import check_pipeline, defaults
from tilting.models.placement import FULL
from tilting.models.words import load_words, write_prompt
from tilting.rewards.classifiers import files_of_classifier
from tilting.runs.files import named_digest
from tilting.runs.owner import processes

OF_CTRL = (
    "prompts",
    "steps",
    "gamma",
    "kl",
    "kl-target",
    "planner",
    "truncation",
    "cfg",
    "eta",
    "negative-prompt",
    "reward-device",
)
OF_FREE = ("data", "label", "label-dropout", "skip-bad")
"""Options that only one of the two objectives uses."""
IN_PYTHON = """objective label_dropout train_steps steps batch_size accumulate gamma kl kl_target place planner truncation
cfg eta negative_prompt lora_lr embedding_lr rank lora_alpha target_modules weight_decay clip optimizer schedule warmup
ema seed""".split()  # noqa: SIM905
"""Fields that are keywords of `tilting.condition_train`; the others are objects there, or only make sense for a run folder."""
OWN: dict[str, dict[str, Any]] = {"pocket": {"gamma": 7680.0, "place": "time", "lora_lr": 4e-3, "embedding_lr": 4e-2}}
"""Defaults by model, with planner backprop. The paper's γ = 10 goes with a KL that its code averages over latent dimensions;
with the exact KL, which is a sum, that is 10 · 768 here. γ = 10 itself hardly moves the model."""


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """A validated request with all defaults, which are the paper's (Table 4) except where they depend on the model's size.
    ``prompts`` is empty for all prompts of pocket. Classifier-free fine-tuning ignores the options of chain and γ."""

    prompts: options.Prompts = ()
    model: options.Model = "pocket"
    classifier: Annotated[
        tuple[str, ...], Metavar("FIT"), Doc("Folder of `condition fit`, or file.py:function; repeatable.")
    ] = ()
    objective: Annotated[
        Literal["ctrl", "classifier-free"],
        Metavar("ctrl|classifier-free"),
        Doc("ctrl learns from --classifier, classifier-free from --data."),
    ] = "ctrl"
    data: Annotated[tuple[str, ...], Metavar("PATH"), Doc("Labelled pictures, as for `condition fit`; repeatable.")] = ()
    label: Annotated[
        tuple[str, ...], Metavar("NAME[=KIND]"), Option(default="all"), Doc("Column of --data to learn, repeatable.")
    ] = ()
    label_dropout: Annotated[float, Ge(0), Lt(1), Doc("Share of --data trained without label.")] = 0.1
    skip_bad: Annotated[bool, Doc("Leave bad rows of --data out.")] = False
    train_steps: training.TrainSteps = 150
    steps: Annotated[int, Ge(2), Le(10_000), Doc("T, denoising steps.")] = 12
    batch_size: Annotated[training.BatchSize, Option(default="8; 32 of --data")] = 8
    accumulate: training.Accumulate = 1
    gamma: Annotated[
        float, Gt(0), Option(default="10; pocket 7680; or --kl-target"), Doc("γ, weight of log p(label) in the target.")
    ] = 10.0
    kl: Annotated[float, Ge(0), Option(default="1"), Doc("β of the exact path KL to the model.")] = 1.0
    kl_target: Annotated[float | None, Gt(0), Option(default="none"), Doc("Target KL per picture in nats, by adapting γ.")] = (
        None
    )
    place: Annotated[
        Literal["latent", "score", "time"],
        Metavar("latent|score|time"),
        Option(default="latent; pocket time"),
        Doc("Where labels enter the network."),
    ] = "latent"
    planner: Annotated[Literal["backprop", "ppo"], Metavar("backprop|ppo"), Doc("ppo needs no gradient of the classifier.")] = (
        "backprop"
    )
    truncation: Annotated[Literal["random", "all"], Metavar("random|all"), Doc("Steps that carry gradient.")] = "random"
    cfg: options.Cfg = 4.0
    eta: Annotated[float, Gt(0), Le(1), Option(default="1"), Doc("Noise of the chain, above 0.")] = 1.0
    negative_prompt: options.NegativePrompt = ""
    lora_lr: Annotated[float, Gt(0), Option(default="1e-3; pocket 4e-3"), Doc("Learning rate of the LoRA.")] = 1e-3
    embedding_lr: Annotated[float, Gt(0), Option(default="1e-2; pocket 4e-2"), Doc("Learning rate of the embedding.")] = 1e-2
    rank: Annotated[int, Ge(1), Le(4096), Doc("Rank of the LoRA.")] = 8
    lora_alpha: training.LoraAlpha = None
    target_modules: training.TargetModules = PAPER_TARGETS
    weight_decay: training.WeightDecay = 0.1
    clip: training.Clip = 1.0
    optimizer: training.Optimizer = "adamw"
    schedule: training.Schedule = "constant"
    warmup: training.Warmup = 0
    ema: training.Ema = 0.0
    device: options.Device = "auto"
    reward_device: options.RewardDevice = None
    precision: training.TrainPrecision = FULL
    checkpoint_every: training.CheckpointEvery = 25
    keep_every: training.KeepEvery = 0
    sample_every: Annotated[int, Ge(0), Doc("Steps between sheets of samples; 0 for none.")] = 50
    tracker: training.Tracker = ()
    out: options.Out = None
    seed: options.Seed = 0
    input: options.Inputs = ()
    height: options.Side = None
    width: options.Side = None
    frames: options.Frames = None
    metadata: options.Metadata = ()

    @property
    def free(self) -> bool:
        """Whether it is classifier-free fine-tuning."""
        return self.objective == FREE

    def all_prompts(self) -> list[str]:
        """The prompts to draw from."""
        return list(self.prompts) or usual_prompts(self.model)

    def digests(self) -> list[dict[str, Any]]:
        """Name of each classifier, and digest of its weights (or of a user's file)."""
        return [named_digest(name, files_of_classifier(name)) for name in self.classifier]

    def mapping(self) -> dict[str, Any]:
        other = OF_CTRL if self.free else (*OF_FREE, "objective")
        other += ("truncation",) if self.planner == "ppo" else ()
        return {k: v for k, v in super().mapping().items() if k not in other and (k != "prompts" or v)}

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Fill in defaults and refuse what cannot work, before torch is imported.

        Args:
            options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them.

        Raises:
            TiltingError: one sentence that names the option.
        """
        prompts = options.get("prompts")
        given = cls.checked({**options, "prompts": None if prompts in ([], ()) else prompts})
        model, free = given.get("model", cls.model), given.get("objective") == FREE
        _check_objective({name.replace("_", "-") for name in given}, free)
        if free and not given.get("data"):
            raise TiltingError(f"--objective {FREE} learns from labelled pictures: give --data labels.csv")
        if not free and "prompts" not in given:
            usual_prompts(model)
        check_pipeline(model, "controls")
        resolve_inputs(cls, given, model)
        given["classifier"] = _classifiers(given.get("classifier", ()), free)
        config = cls(**cls.completed(given, model, defaults(model)[1]))
        config.check("truncation" in given, processes())
        return config

    @classmethod
    def completed(cls, given: Mapping[str, Any], model: str, cfg: float) -> dict[str, Any]:
        """The given fields, with the defaults that depend on model and objective."""
        free = given.get("objective") == FREE
        own = OWN.get(model, {}) if not free and given.get("planner", "backprop") == "backprop" else {}
        # A target needs the KL of the whole path, which of a tilt is γ/2 times the gain in log p, some nats: γ begins near it.
        aimed = {"truncation": "all", "gamma": given["kl_target"]} if given.get("kl_target") else {}
        return {"cfg": cfg, "batch_size": 32 if free else cls.batch_size, **own, **aimed, **given}

    def check(self, truncated: bool, count: int) -> None:
        """Refuse options that contradict each other.

        Args:
            truncated: whether a truncation was given.
            count: number of processes.

        Raises:
            TiltingError: naming the option.
        """
        if self.planner == "ppo" and truncated:
            raise TiltingError(
                "truncation says where --planner backprop has a gradient; ppo has one of every step: leave it out"
            )
        if self.kl_target is not None:
            if self.planner == "ppo" or self.truncation != "all":
                raise TiltingError("kl-target is of the whole path: use --planner backprop and --truncation all with it")
            if not self.kl:
                raise TiltingError("kl-target is reached by γ beside a KL, and kl 0 has none: leave --kl out")
        self.check_warmup()
        self.check_batch(count)

    def check_batch(self, count: int) -> None:
        """Refuse a batch that does not divide into processes and parts. Raises TiltingError."""
        units = [(count, f"{count} processes"), (self.accumulate, f"{self.accumulate} parts by --accumulate")]
        check_batch(self.batch_size, units)


def _check_objective(given: set[str], free: bool) -> None:
    """Refuse options that the objective does not use. Raises TiltingError."""
    for key in OF_CTRL if free else OF_FREE:
        if key in given and free:
            raise TiltingError(f"{key} has a use in --objective ctrl alone: {FREE} learns from pictures and their prompts")
        if key in given:
            raise TiltingError(
                f"{key} has a use in --objective {FREE} alone: ctrl learns from --classifier, made by `tilting condition fit`"
            )


def _classifiers(places: tuple[str, ...], free: bool) -> tuple[str, ...]:
    if not places and not free:
        raise TiltingError("a control needs a classifier: give the folder of `tilting condition fit` by --classifier")
    seen: set[str] = set()
    for place in places:
        if ".py:" in place:
            if free:
                raise TiltingError(f"{FREE} fine-tuning keeps folders of `tilting condition fit`, not the function {place!r}")
            if not Path(place.rpartition(":")[0]).is_file():
                raise TiltingError(f"there is no file {place.rpartition(':')[0]!r} for the classifier {place!r}")
            continue
        label = read_schema(Path(place)).label
        if noisy_model(Path(place)) is not None:
            raise TiltingError(f"the classifier {place!r} is of noisy latents: a control needs one of clean pictures")
        if label in seen:
            raise TiltingError(f"two classifiers have the label {label!r}: a control needs one of each")
        if set("/\\\0") & set(label) or label.startswith("."):
            raise TiltingError(f"the label {label!r} cannot be the name of a folder, which a control keeps its classifier in")
        seen.add(label)
    return places


def usual_prompts(model: str) -> list[str]:
    """Default prompts of a model: everything `pocket` draws. Raises TiltingError for another model."""
    if model != "pocket":
        raise TiltingError(f"say which prompts to train on: the model {model!r} brings no list of its own")
    words = load_words()
    return [write_prompt(words, i) for i in range(len(words.concepts))]


resolve_train = TrainConfig.resolve
