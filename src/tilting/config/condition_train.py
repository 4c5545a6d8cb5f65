"""What a `condition train` run is asked to do, fully resolved and checked, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tilting.config.base import LegacyConfig as BaseConfig
from tilting.config.base import check_model, given_of, prompts_of
from tilting.config.finetune import precision_of, trackers
from tilting.config.settings import integer, number, one_of, scale_of, some_of, text, texts
from tilting.errors import TiltingError
from tilting.features.schema import noisy_model, read_schema
from tilting.models.control_spec import FREE
from tilting.models.lora_file import PAPER_TARGETS, TARGET_MODULES
from tilting.models.names import defaults
from tilting.models.placement import FULL, check_device
from tilting.models.words import load_words, write_prompt
from tilting.rewards.classifiers import files_of_classifier
from tilting.runs.files import digest_of
from tilting.runs.owner import processes

OPTIONS = (
    "prompts", "model", "classifier", "train-steps", "steps", "batch-size", "accumulate", "gamma", "kl", "place", "planner",
    "truncation", "cfg", "eta", "negative-prompt", "lora-lr", "embedding-lr", "rank", "parts", "weight-decay", "clip",
    "device", "precision", "checkpoint-every", "tracker", "out", "seed", "objective", "data", "label", "label-dropout",
    "skip-bad",
)  # fmt: skip
OF_CTRL = ("prompts", "steps", "gamma", "kl", "planner", "truncation", "cfg", "eta", "negative-prompt")
OF_FREE = ("data", "label", "label-dropout", "skip-bad")
"""Options that one objective alone has a use for."""
OWN: dict[str, dict[str, Any]] = {"pocket": {"gamma": 7680, "place": "time", "lora-lr": 4e-3, "embedding-lr": 4e-2}}
"""Of models of ours, where unset and the planner is backprop. The paper's γ = 10 stands beside a KL that its code averages over
latent dimensions; against the exact KL, a sum, that is 10 · 768 here, and γ = 10 itself hardly moves the model."""
Aim = Literal["ctrl", "classifier-free"]
Place = Literal["latent", "score", "time"]
Planner = Literal["backprop", "ppo"]
Truncated = Literal["random", "all"]


@dataclass(frozen=True)
class TrainConfig(BaseConfig):
    """A checked request, every default filled in.

    Attributes:
        prompts: to draw from; empty for all that pocket draws.
        classifier: folders of `condition fit`, or file.py:function.
        model, train_steps, steps, batch_size, accumulate, gamma, kl, place, planner, truncation, cfg, eta, negative_prompt,
            lora_lr, embedding_lr, rank, parts, weight_decay, clip, device, precision, checkpoint_every, tracker, out, seed: the
            options of these names; see `tilting.conditioning.trainer.ControlSettings`.
        objective: ctrl or classifier-free.
        data, label, label_dropout, skip_bad: tables to learn from, their columns, the share trained as "no label", and whether
            bad rows are left out; of classifier-free fine-tuning.
    """

    options = OPTIONS

    classifier: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    model: str = "pocket"
    train_steps: int = 150
    steps: int = 12
    batch_size: int = 8
    accumulate: int = 1
    gamma: float = 10.0
    kl: float = 1.0
    place: Place = "latent"
    planner: Planner = "backprop"
    truncation: Truncated = "random"
    cfg: float = 4.0
    eta: float = 1.0
    negative_prompt: str = ""
    lora_lr: float = 1e-3
    embedding_lr: float = 1e-2
    rank: int = 8
    parts: tuple[str, ...] = PAPER_TARGETS
    weight_decay: float = 0.1
    clip: float = 1.0
    device: str = "auto"
    precision: str = FULL
    checkpoint_every: int = 25
    tracker: tuple[str, ...] = ()
    out: str | None = None
    seed: int = 0
    objective: Aim = "ctrl"
    data: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    label_dropout: float = 0.1
    skip_bad: bool = False

    def all_prompts(self) -> list[str]:
        """The prompts to draw from."""
        return list(self.prompts) or usual_prompts(self.model)

    def digests(self) -> list[dict[str, Any]]:
        """Of each classifier its name and the digest of what it stands on (or of a user's file)."""
        return [{"name": name, "sha256": digest_of(files_of_classifier(name))} for name in self.classifier]

    def mapping(self) -> dict[str, Any]:
        """By option name, of plain YAML and JSON values; `resolve_train` of it gives the same config."""
        other = OF_CTRL if self.objective == FREE else (*OF_FREE, "objective")
        other += ("truncation",) if self.planner == "ppo" else ()
        return {k: v for k, v in super().mapping().items() if k not in other and (k != "prompts" or v)}


def resolve_train(options: Mapping[str, Any]) -> TrainConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them.

    Raises:
        TiltingError: one sentence that names the option.
    """
    given = given_of(options, OPTIONS)
    objective: Aim = one_of("objective", given.get("objective", "ctrl"), get_args(Aim))
    free = objective == FREE
    _check_objective(given, free)

    model = check_model(text("model", given.get("model", "pocket")))
    planner: Planner = one_of("planner", given.get("planner", TrainConfig.planner), get_args(Planner))
    check_planner(planner, integer("accumulate", given.get("accumulate", 1), 1), "truncation" in given)
    own = own_settings(model, objective, planner)

    def value(name: str) -> Any:
        return given.get(name, own.get(name, getattr(TrainConfig, name.replace("-", "_"))))

    def whole(name: str, least: int) -> int:
        return integer(name, value(name), least)

    def above(name: str) -> float:
        return number(name, value(name), above=0)

    given.setdefault("batch-size", 32 if free else TrainConfig.batch_size)
    config = TrainConfig(
        _classifiers(given.get("classifier", ()), free), () if free else _prompts(given.get("prompts"), model), model,
        whole("train-steps", 1), whole("steps", 2), whole("batch-size", 1), whole("accumulate", 1), above("gamma"),
        number("kl", value("kl"), least=0), one_of("place", value("place"), get_args(Place)), planner,
        one_of("truncation", value("truncation"), get_args(Truncated)),
        scale_of(given.get("cfg", defaults(model)[1])), above("eta"),
        text("negative-prompt", given.get("negative-prompt", "")), above("lora-lr"), above("embedding-lr"), whole("rank", 1),
        some_of("parts", value("parts"), TARGET_MODULES), number("weight-decay", value("weight-decay"), least=0), above("clip"),
        check_device(text("device", value("device"))), precision_of(given), whole("checkpoint-every", 1),
        trackers(given.get("tracker", [])),
        text("out", given["out"]) if "out" in given else None, integer("seed", given.get("seed", 0)),
        objective, tuple(texts("data", given.get("data", ()))), tuple(texts("label", given.get("label", ()))),
        number("label-dropout", value("label-dropout"), least=0), given.get("skip-bad", False),
    )  # fmt: skip
    if config.label_dropout >= 1:
        raise TiltingError(f"label-dropout must be below 1, not {config.label_dropout:g}: no label would be learnt")
    if config.eta > 1:
        raise TiltingError(f"eta must be above 0 and at most 1, not {config.eta:g}")
    check_batch(config, processes())
    return config


def check_planner(planner: str, accumulate: int = 1, truncated: bool = False) -> None:
    """Refuse what ppo has no use for: parts of a batch, and a truncation that is given. Raises TiltingError."""
    if planner == "ppo" and accumulate > 1:
        raise TiltingError("accumulate splits batches of --planner backprop; ppo looks at whole ones")
    if planner == "ppo" and truncated:
        raise TiltingError("truncation says where --planner backprop has a gradient; ppo has one of every step: leave it out")


def own_settings(model: str, objective: str = "ctrl", planner: str = "backprop") -> dict[str, Any]:
    """What a model of ours has in the place of the paper's settings, by option name."""
    return OWN.get(model, {}) if objective == "ctrl" and planner == "backprop" else {}


def check_batch(config: TrainConfig, count: int) -> None:
    """Refuse a batch that does not divide into processes and parts. Raises TiltingError."""
    unit = count * config.accumulate
    if config.batch_size % unit:
        near = max(unit, round(config.batch_size / unit) * unit)
        raise TiltingError(f"batch-size {config.batch_size} does not divide into {unit} (processes x parts): use {near}")


def _check_objective(given: Mapping[str, Any], free: bool) -> None:
    """Refuse options that the objective has no use for, or no data for one that learns from them. Raises TiltingError."""
    for key in OF_CTRL if free else OF_FREE:
        if key in given and free:
            raise TiltingError(f"{key} has a use in --objective ctrl alone: {FREE} learns from pictures and their prompts")
        if key in given:
            raise TiltingError(
                f"{key} has a use in --objective {FREE} alone: ctrl learns from --classifier, made by `tilting condition fit`"
            )
    if free and not given.get("data"):
        raise TiltingError(f"--objective {FREE} learns from labelled pictures: give --data labels.csv")
    if not isinstance(given.get("skip-bad", False), bool):
        raise TiltingError(f"skip-bad must be true or false, not {given['skip-bad']!r}")


def _classifiers(value: object, free: bool) -> tuple[str, ...]:
    places = texts("classifier", value)
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
    return tuple(places)


def _prompts(value: object, model: str) -> tuple[str, ...]:
    if value is None or value == []:
        usual_prompts(model)
        return ()
    return prompts_of(value)


def usual_prompts(model: str) -> list[str]:
    """The prompts of a model where none are given: everything `pocket` draws. Raises TiltingError for another model."""
    if model != "pocket":
        raise TiltingError(f"say which prompts to train on: the model {model!r} brings no list of its own")
    words = load_words()
    return [write_prompt(words, i) for i in range(len(words.concepts))]
