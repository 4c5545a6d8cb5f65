"""What a `condition train` run is asked to do, fully resolved and checked, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tilting.errors import TiltingError, nearest
from tilting.experiments.config import _model as check_model
from tilting.experiments.config import texts
from tilting.experiments.finetune.config import PARTS, _trackers, processes
from tilting.experiments.folder import digest
from tilting.experiments.prompts import check_prompts, read_prompts
from tilting.experiments.settings import integer, number, text
from tilting.experiments.yaml_layer import SWITCHES
from tilting.experiments.yaml_layer import read_yaml as read_any
from tilting.features.schema import read_schema
from tilting.models import usual
from tilting.models.words import load_words, write_prompt

if TYPE_CHECKING:
    from tilting.experiments.condition.controlling import ControlSettings

OPTIONS = (
    "prompts", "model", "classifier", "train-steps", "steps", "batch-size", "accumulate", "gamma", "kl", "place", "planner",
    "truncation", "cfg", "eta", "negative-prompt", "lora-lr", "embedding-lr", "rank", "parts", "weight-decay", "clip",
    "precision", "checkpoint-every", "tracker", "out", "seed",
)  # fmt: skip
PLACES, PLANNERS, TRUNCATIONS = ("latent", "score", "time"), ("backprop", "ppo"), ("random", "all")


@dataclass(frozen=True)
class TrainConfig:
    """A checked request, every default filled in.

    Attributes:
        prompts: to draw from; empty for all that pocket draws.
        classifier: folders of `condition fit`, or file.py:function.
        model, train_steps, steps, batch_size, accumulate, gamma, kl, place, planner, truncation, cfg, eta, negative_prompt,
            lora_lr, embedding_lr, rank, parts, weight_decay, clip, precision, checkpoint_every, tracker, out, seed: the options
            of these names; see `tilting.experiments.condition.controlling.ControlSettings`.
    """

    classifier: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    model: str = "pocket"
    train_steps: int = 150
    steps: int = 12
    batch_size: int = 8
    accumulate: int = 1
    gamma: float = 10.0
    kl: float = 1.0
    place: str = "latent"
    planner: str = "backprop"
    truncation: str = "random"
    cfg: float = 4.0
    eta: float = 1.0
    negative_prompt: str = ""
    lora_lr: float = 1e-3
    embedding_lr: float = 1e-2
    rank: int = 8
    parts: tuple[str, ...] = ("attn2", "ff")
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 25
    tracker: tuple[str, ...] = ()
    out: str | None = None
    seed: int = 0

    def settings(self) -> ControlSettings:
        """How it is trained (imports torch)."""
        from tilting.experiments.condition.controlling import ControlSettings

        return ControlSettings(
            self.place, self.gamma, self.kl, self.planner, self.truncation, self.rank, self.parts, self.lora_lr,
            self.embedding_lr, self.weight_decay, self.clip, self.steps, self.cfg, self.eta, self.negative_prompt,
            self.batch_size, self.accumulate, self.seed,
        )  # fmt: skip

    def all_prompts(self) -> list[str]:
        """The prompts to draw from."""
        return list(self.prompts) or usual_prompts(self.model)

    def specs(self) -> list[Any]:
        """No rewards: what a control is trained by are its classifiers."""
        return []

    def digests(self) -> list[dict[str, Any]]:
        """Of each classifier its name and the digest of its weights (or of a user's file)."""
        files = [Path(name.rpartition(":")[0] if ".py:" in name else name) for name in self.classifier]
        return [{"name": n, "sha256": digest(f)} for n, f in zip(self.classifier, files, strict=True)]

    def mapping(self) -> dict[str, Any]:
        """By option name, of plain YAML and JSON values; `resolve_train` of it gives the same config."""
        plain = {name: getattr(self, name.replace("-", "_")) for name in OPTIONS}
        plain = json.loads(json.dumps(plain))
        return {key: value for key, value in plain.items() if key != "prompts" or value}

    def yaml(self) -> str:
        """The config as a YAML file that ``--config`` reads back."""
        return yaml.safe_dump(self.mapping(), sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: str) -> dict[str, Any]:
    """Options of `tilting condition train` from a YAML file, by option name. Raises TiltingError."""
    return read_any(path, OPTIONS)


def resolve_train(options: Mapping[str, Any]) -> TrainConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them.

    Raises:
        TiltingError: one sentence that names the option.
    """
    for key in options:
        if key not in OPTIONS + SWITCHES:
            raise TiltingError(f"there is no option {key!r}{nearest(key, OPTIONS + SWITCHES)}")
    given = {key: value for key, value in options.items() if value is not None and key not in SWITCHES}
    default = TrainConfig

    def above(name: str, least: float = 0.0) -> float:
        found = number(name, given.get(name, getattr(default, name.replace("-", "_"))))
        if found < least or (found == least and name not in ("kl", "weight-decay")):
            word = "at least" if name in ("kl", "weight-decay") else "above"
            raise TiltingError(f"{name} must be {word} {least:g}, not {found:g}")
        return found

    def whole(name: str, least: int) -> int:
        return integer(name, given.get(name, getattr(default, name.replace("-", "_"))), least)

    def one_of(name: str, choices: tuple[str, ...]) -> str:
        found = text(name, given.get(name, getattr(default, name)))
        if found not in choices:
            raise TiltingError(f"{name} cannot be {found!r}{nearest(found, choices)}")
        return found

    model = check_model(text("model", given.get("model", "pocket")))
    planner = one_of("planner", PLANNERS)
    config = TrainConfig(
        _classifiers(given.get("classifier", ()), planner), _prompts(given.get("prompts"), model), model,
        whole("train-steps", 1), whole("steps", 2), whole("batch-size", 1), whole("accumulate", 1), above("gamma"),
        above("kl"), one_of("place", PLACES), planner, one_of("truncation", TRUNCATIONS),
        number("cfg", given.get("cfg", usual(model)[1])), above("eta"),
        text("negative-prompt", given.get("negative-prompt", "")), above("lora-lr"), above("embedding-lr"), whole("rank", 1),
        _parts(given.get("parts", default.parts)), above("weight-decay"), above("clip"), one_of("precision", ("fp32", "bf16")),
        whole("checkpoint-every", 1), _trackers(given.get("tracker", [])),
        text("out", given["out"]) if "out" in given else None, integer("seed", given.get("seed", 0)),
    )  # fmt: skip
    if config.eta > 1:
        raise TiltingError(f"eta must be above 0 and at most 1, not {config.eta:g}")
    check_batch(config, processes())
    if config.planner == "ppo" and config.accumulate > 1:
        raise TiltingError("accumulate splits batches of --planner backprop; ppo looks at whole ones")
    return config


def check_batch(config: TrainConfig, count: int) -> None:
    """Refuse a batch that does not divide into processes and parts. Raises TiltingError."""
    unit = count * config.accumulate
    if config.batch_size % unit:
        near = max(unit, round(config.batch_size / unit) * unit)
        raise TiltingError(f"batch-size {config.batch_size} does not divide into {unit} (processes x parts): use {near}")


def _classifiers(value: object, planner: str) -> tuple[str, ...]:
    places = texts("classifier", value)
    if not places:
        raise TiltingError("a control needs a classifier: give the folder of `tilting condition fit` by --classifier")
    seen: set[str] = set()
    for place in places:
        if ".py:" in place:
            if not Path(place.rpartition(":")[0]).is_file():
                raise TiltingError(f"there is no file {place.rpartition(':')[0]!r} for the classifier {place!r}")
            continue
        label = read_schema(Path(place)).label
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
    return tuple(check_prompts(read_prompts(value) if isinstance(value, str) else texts("prompts", value)))


def usual_prompts(model: str) -> list[str]:
    """The prompts of a model where none are given: everything `pocket` draws. Raises TiltingError for another model."""
    if model != "pocket":
        raise TiltingError(f"say which prompts to train on: the model {model!r} brings no list of its own")
    words = load_words()
    return [write_prompt(words, i) for i in range(len(words.concepts))]


def _parts(value: object) -> tuple[str, ...]:
    found = [part.strip() for part in value.split(",")] if isinstance(value, str) else texts("parts", value)
    for part in found:
        if part not in PARTS:
            raise TiltingError(f"parts cannot be {part!r}{nearest(part, PARTS)}")
    return tuple(dict.fromkeys(found))
