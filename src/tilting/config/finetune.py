"""What a `finetune` run is asked to do, fully resolved and checked, without torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tilting.config import objectives as known
from tilting.config.base import LegacyConfig as BaseConfig
from tilting.config.base import check_model, given_of, plain, prompts_of
from tilting.config.diversity import parse_diversity
from tilting.config.settings import integer, number, one_of, scale_of, some_of, text, texts
from tilting.config.yaml_file import flat
from tilting.errors import TiltingError, nearest
from tilting.models.lora_file import PAPER_TARGETS, TARGET_MODULES
from tilting.models.names import defaults
from tilting.models.placement import FULL, check_device, check_precision
from tilting.refusals import check_accumulate
from tilting.rewards.spec import REWARDS, Spec, parse_spec, parse_specs, split_weight
from tilting.runs.owner import processes

if TYPE_CHECKING:
    from tilting.objectives.batch import Objective

OPTIONS = (
    "prompts", "model", "reward", "objective", "train-steps", "steps", "batch-size", "accumulate", "eta", "cfg",
    "negative-prompt", "lr", "rank", "parts", "weight-decay", "clip", "lr-decay", "device", "precision", "set",
    "checkpoint-every", "sample-every", "sample-images", "judge", "early-stop", "init-lora", "learn", "diversity",
    "reward-dropout", "tracker", "out", "seed",
)  # fmt: skip
LEARN = ("lora", "guidance", "negative")
DECAYS = ("constant", "sqrt")
TRACKERS = ("wandb", "trackio")


@dataclass(frozen=True)
class FinetuneConfig(BaseConfig):
    """A checked request, every default filled in.

    Attributes:
        prompts, model, reward, objective, train_steps, steps, batch_size, accumulate, eta, cfg, negative_prompt, lr, rank,
            parts, weight_decay, clip, lr_decay, device, precision, checkpoint_every, sample_every, sample_images, judge,
            early_stop, init_lora, learn, diversity, reward_dropout, tracker, out, seed: the options of these names.
            ``batch_size`` counts images per training step over all processes; ``rank`` and ``parts`` are None where they are
            those of ``init_lora``; ``device`` "auto" is what accelerate finds.
        settings: every setting of the objective, by "objective.field".
        unused: settings of another objective and options that were given and have no use.
    """

    options = OPTIONS

    prompts: tuple[str, ...]
    model: str = "pocket"
    reward: tuple[str, ...] = ("clip",)
    objective: str = "draft-lv"
    train_steps: int = 200
    steps: int = 50
    batch_size: int = 4
    accumulate: int = 1
    eta: float = 0.0
    cfg: float = 4.0
    negative_prompt: str = ""
    lr: float = 4e-4
    rank: int | None = 8
    parts: tuple[str, ...] | None = PAPER_TARGETS
    weight_decay: float = 0.1
    clip: float = 1.0
    lr_decay: str = "constant"
    device: str = "auto"
    precision: str = FULL
    checkpoint_every: int = 50
    sample_every: int = 50
    sample_images: int = 2
    judge: str | None = None
    early_stop: int | None = None
    init_lora: str | None = None
    learn: tuple[str, ...] = ("lora",)
    diversity: str | None = None
    reward_dropout: float = 0.0
    tracker: tuple[str, ...] = ()
    out: str | None = None
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def group(self) -> int:
        """Images of one prompt that stand together in a batch."""
        return known.group_of({key.partition(".")[2]: value for key, value in self.settings})

    def made_objective(self) -> Objective:
        """The objective this asks for (imports torch)."""
        from tilting.objectives import OBJECTIVES

        return OBJECTIVES[self.objective](**{key.partition(".")[2]: value for key, value in self.settings})

    def specs(self) -> list[Spec]:
        """The parsed rewards."""
        return parse_specs(self.reward)

    def mapping(self) -> dict[str, Any]:
        """By option name, of plain YAML and JSON values; `resolve_finetune` of it gives the same config."""
        return {**super().mapping(), "set": plain(dict(self.settings))}


def resolve_finetune(options: Mapping[str, Any]) -> FinetuneConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them; ``parts``
            a list, or text with commas.

    Raises:
        TiltingError: one sentence that names the option.
    """
    given = given_of(options)
    objective = text("objective", given.get("objective", "draft-lv"))
    if objective not in known.factories():
        raise TiltingError(f"there is no objective {objective!r}{nearest(objective, known.factories())}")
    model = check_model(text("model", given.get("model", "pocket")))
    prompts = prompts_of(given.get("prompts", []))
    settings, unused = _settings(objective, given)
    eta = number("eta", given.get("eta", known.usual_eta(objective, settings)))
    if not 0 <= eta <= 1:
        raise TiltingError(f"eta must be between 0 and 1, not {eta:g}")
    known.check_settings(objective, settings)
    steps, cfg = defaults(model)
    steps = integer("steps", given.get("steps", steps), 1)
    known.check_chain(objective, settings, eta, steps)
    config = FinetuneConfig(
        prompts=prompts, model=model, objective=objective, eta=eta, steps=steps,
        train_steps=integer("train-steps", given.get("train-steps", 200), 1),
        batch_size=integer("batch-size", given.get("batch-size", _usual_batch(settings, given)), 1),
        accumulate=integer("accumulate", given.get("accumulate", 1), 1),
        cfg=scale_of(given.get("cfg", cfg)),
        negative_prompt=text("negative-prompt", given.get("negative-prompt", "")),
        lr=number("lr", given.get("lr", 4e-4), above=0), rank=_rank(given),
        parts=_parts(given),
        weight_decay=number("weight-decay", given.get("weight-decay", 0.1), least=0),
        clip=number("clip", given.get("clip", 1.0), above=0),
        lr_decay=one_of("lr-decay", given.get("lr-decay", "constant"), DECAYS),
        device=check_device(text("device", given.get("device", "auto"))), precision=precision_of(given),
        checkpoint_every=integer("checkpoint-every", given.get("checkpoint-every", 50), 1),
        sample_every=integer("sample-every", given.get("sample-every", 50), 0),
        sample_images=integer("sample-images", given.get("sample-images", 2), 1),
        judge=text("judge", given["judge"]) if "judge" in given else None,
        early_stop=integer("early-stop", given["early-stop"], 1) if "early-stop" in given else None,
        init_lora=text("init-lora", given["init-lora"]) if "init-lora" in given else None,
        learn=some_of("learn", given.get("learn", "lora"), LEARN),
        diversity=text("diversity", given["diversity"]) if "diversity" in given else None,
        reward_dropout=number("reward-dropout", given.get("reward-dropout", 0.0)),
        tracker=trackers(given.get("tracker", [])), reward=_rewards(objective, model, given),
        out=text("out", given["out"]) if "out" in given else None, seed=integer("seed", given.get("seed", 0)),
        settings=tuple((f"{objective}.{field}", value) for field, value in settings.items()), unused=unused,
    )  # fmt: skip
    _check(config)
    return replace(config, unused=(*unused, *_unused(config, given)))


def _unused(config: FinetuneConfig, given: Mapping[str, Any]) -> list[str]:
    """Options that were given and that this run has no use for."""
    idle = ["negative-prompt"] if config.cfg == 1 and not {"guidance", "negative"} & set(config.learn) else []
    idle += ["sample-images", "judge"] if not config.sample_every else []
    idle += ["rank", "parts"] if "lora" not in config.learn else []
    return [option for option in idle if given.get(option) not in (None, "")]


def _settings(objective: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    values, unused = known.defaults(objective), []
    for key, value in flat(given.get("set", {})).items():
        whose, field, checked = known.setting(key, value)
        if whose == objective:
            values[field] = checked
        else:
            unused.append(key)
    return values, tuple(unused)


def _usual_batch(settings: dict[str, Any], given: Mapping[str, Any]) -> int:
    """4 images, or the next number that divides into groups, processes and parts."""
    accumulate = given.get("accumulate", 1)
    unit = known.group_of(settings) * processes() * (accumulate if isinstance(accumulate, int) and accumulate > 0 else 1)
    return -(-4 // unit) * unit


def _rank(given: Mapping[str, Any]) -> int | None:
    if "rank" in given:
        if "init-lora" in given:
            raise TiltingError("rank is that of --init-lora: leave --rank out")
        return integer("rank", given["rank"], 1)
    return None if "init-lora" in given else 8


def _parts(given: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "parts" in given:
        if "init-lora" in given:
            raise TiltingError("parts are those of --init-lora: leave --parts out")
        return some_of("parts", given["parts"], TARGET_MODULES)
    return None if "init-lora" in given else FinetuneConfig.parts


def trackers(value: object) -> tuple[str, ...]:
    """Trackers that are installed. Raises TiltingError."""
    found = texts("tracker", value)
    for name in found:
        if importlib.util.find_spec(one_of("tracker", name, TRACKERS)) is None:
            raise TiltingError(f"the tracker {name} is not installed: pip install {name}")
    return tuple(found)


def _rewards(objective: str, model: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = texts("reward", given.get("reward", [])) or (["clip"] if model == "pocket" else [])
    if not wanted:
        raise TiltingError("fine-tuning needs a reward: give one by --reward")
    for spec in parse_specs(wanted):
        if objective in known.GRADIENT and spec.name in REWARDS and not REWARDS[spec.name].differentiable:
            raise black_box(objective, spec.text)
    return tuple(wanted)


def black_box(objective: str, reward: str) -> TiltingError:
    """The refusal of a reward without gradient."""
    return TiltingError(f"{objective} needs a differentiable reward and {reward!r} is black-box: use --objective ddpo with it")


def mixed_precision() -> str | None:
    """What a launcher says networks are run under besides, None for nothing."""
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return None if said == "no" else said


def precision_of(given: Mapping[str, Any]) -> str:
    """The precision of the network. Raises TiltingError for what is not one, or one that a launcher's contradicts."""
    found, mixed = check_precision(text("precision", given.get("precision", FULL))), mixed_precision()
    if found != FULL and mixed not in (None, found):
        raise TiltingError(f"precision {found} and the launcher's mixed precision {mixed} are two: leave one of them out")
    return found


def check_batch(config: FinetuneConfig, count: int) -> None:
    """Refuse a batch that does not divide into processes and groups. Raises TiltingError."""
    unit = config.group * count * config.accumulate
    if config.batch_size % unit:
        parts = [f"groups of {config.group} images of a prompt for {config.objective}"] if config.group > 1 else []
        parts += [f"{count} processes"] if count > 1 else []
        parts += [f"{config.accumulate} parts by --accumulate"] if config.accumulate > 1 else []
        near = max(unit, round(config.batch_size / unit) * unit)
        raise TiltingError(f"batch-size {config.batch_size} does not divide into {' and '.join(parts)}: use {near}")


def _check(config: FinetuneConfig) -> None:
    check_batch(config, processes())
    check_accumulate(config.objective, config.objective in known.GRADIENT, config.accumulate)
    if config.judge is not None:
        judge = parse_spec(config.judge)
        if judge.name in REWARDS and REWARDS[judge.name].together:
            raise TiltingError(f"the judge {config.judge!r} is of a batch: a judge is of each picture by itself")
        if split_weight(config.judge)[0] in (split_weight(spec)[0] for spec in config.reward):
            raise TiltingError(f"the judge {config.judge!r} is the reward itself: a judge is what training does not see")
    if config.early_stop is not None:
        if not config.sample_every:
            raise TiltingError("early-stop needs sample-every above 0: it looks at the samples")
        if config.judge is None and config.model != "pocket":
            raise TiltingError("early-stop needs a judge: give a held-out reward by --judge")
    if config.diversity is not None:
        parse_diversity(config.diversity)
        if config.batch_size // processes() // config.accumulate * processes() < 2:
            raise TiltingError("diversity needs at least 2 images at once: it is the distance between them")
    if not 0 <= config.reward_dropout < 1:
        raise TiltingError(f"reward-dropout must be at least 0 and below 1, not {config.reward_dropout:g}")
