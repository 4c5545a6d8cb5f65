"""Options shared by `tilting finetune` and `tilting condition train`."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from tilting.config.base import BaseConfig
from tilting.config.options import Precision
from tilting.config.settings import one_of
from tilting.declare import Alias, Check, Metavar, Option
from tilting.errors import TiltingError
from tilting.models.placement import FULL

TRACKERS = ("wandb", "trackio")
ADAMW, EIGHT = "adamw", "adamw8bit"


class TrainingConfig(BaseConfig):
    """Fields that every training config has."""

    prompts: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...]
    model: str
    steps: int
    eta: float
    cfg: float
    negative_prompt: str
    batch_size: int
    accumulate: int
    seed: int
    optimizer: Literal["adamw", "adamw8bit"]
    reward_device: str | None
    out: str | None
    device: str
    tracker: tuple[str, ...]
    train_steps: int
    checkpoint_every: int
    keep_every: int
    sample_every: int
    ema: float
    schedule: Literal["constant", "cosine", "linear", "sqrt"]
    warmup: int

    def check_warmup(self) -> None:
        """Refuse a warmup that the run ends in. Raises TiltingError."""
        if self.warmup > self.train_steps:
            raise TiltingError(f"warmup {self.warmup} would not end in {self.train_steps} train-steps: use that many or fewer")


def once(name: str, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Drop repetitions."""
    return None if value is None else tuple(dict.fromkeys(value))


def check_trackers(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse trackers that are not installed or not logged in. Raises TiltingError."""
    for one in value:
        if importlib.util.find_spec(one_of(name, one, TRACKERS)) is None:
            raise TiltingError(f"the tracker {one} is not installed: pip install {one}")
        if one == "wandb" and not _wandb_knows():
            raise TiltingError("the tracker wandb is not logged in: run `wandb login`, or set WANDB_MODE=offline")
    return value


def _wandb_knows() -> bool:
    """Whether wandb has an API key (from the environment or a login) or is offline, so that it will not prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE", "online") != "online":
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    places = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path.home() / name for name in (".netrc", "_netrc")]
    try:
        return any(host in netrc(str(place)).hosts for place in places if place.is_file())
    except (OSError, NetrcParseError):
        return False


def mixed_precision() -> str | None:
    """The launcher's mixed precision, or None."""
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return None if said == "no" else said


def check_mixed(name: str, value: str) -> str:
    """Refuse a precision that contradicts the launcher's mixed precision. Raises TiltingError."""
    mixed = mixed_precision()
    if value != FULL and mixed not in (None, value):
        raise TiltingError(f"precision {value} and the launcher's mixed precision {mixed} are two: leave one of them out")
    return value


def check_optimizer(name: str, value: str) -> str:
    """Refuse an optimiser that is not installed. Raises TiltingError."""
    if value == EIGHT and importlib.util.find_spec("bitsandbytes") is None:
        raise TiltingError(f"{EIGHT} is by bitsandbytes, which is not installed: pip install 'tilting[quantize]'")
    return value


def bytes_trained(weights: int, optimizer: str) -> int:
    """Bytes of a trained float32 tensor of ``weights`` numbers with its gradient and the optimiser's two moments."""
    return weights * (8 + (2 if optimizer == EIGHT and weights >= 4096 else 8))


def check_batch(size: int, units: Sequence[tuple[int, str]], whole: bool = False) -> None:
    """Refuse a batch that does not divide into groups, processes and parts.

    Args:
        size: images of a training step, over all processes.
        units: (count, description) of groups, processes and parts.
        whole: whether a group may be spread over several parts.

    Raises:
        TiltingError: with the nearest batch size that divides.
    """
    counts = [count for count, _ in units]
    unit = counts[1] * math.lcm(counts[0], counts[2]) if whole else math.prod(counts)
    if size < 1 or size % unit:
        said = [words for count, words in units if count > 1] or ["whole images"]
        near = max(unit, round(size / unit) * unit)
        raise TiltingError(f"batch-size {size} does not divide into {' and '.join(said)}: use {near}")


TrainSteps = Annotated[int, Ge(1), Doc("Training steps.")]
BatchSize = Annotated[int, Ge(1), Doc("Images per training step, over all processes.")]
Accumulate = Annotated[int, Ge(1), Doc("Gradient accumulation: parts of a batch computed one after another.")]
Rank = Annotated[int | None, Ge(1), Le(4096), Doc("Rank of the LoRA.")]
TargetModules = Annotated[
    tuple[Literal["attn2", "ff", "attn1"], ...],
    Alias("parts"),
    Metavar("A,B"),
    Option(default="attn2,ff"),
    Check(once),
    Doc("Layers that get a LoRA: attn2, ff, attn1."),
]
WeightDecay = Annotated[float, Ge(0), Doc("Decoupled weight decay of the LoRA.")]
Clip = Annotated[float, Gt(0), Option(default="1"), Doc("Maximum gradient norm.")]
Optimizer = Annotated[
    Literal["adamw", "adamw8bit"],
    Check(check_optimizer),
    Doc("adamw, or adamw8bit of bitsandbytes: 8-bit moments for tensors of 4096 weights or more."),
]
LoraAlpha = Annotated[float | None, Gt(0), Option(default="the rank"), Doc("The LoRA's update is scaled by alpha / rank.")]
Ema = Annotated[float, Ge(0), Lt(1), Option(default="none"), Doc("Decay of the weights' moving average, saved in DIR/ema.")]
Warmup = Annotated[int, Ge(0), Doc("Warmup steps of the learning rate.")]
Schedule = Annotated[
    Literal["constant", "cosine", "linear", "sqrt"],
    Alias("lr-decay"),
    Doc("Learning rate schedule: constant, cosine, linear, sqrt."),
]
KeepEvery = Annotated[int, Ge(0), Option(default="none"), Doc("Training steps between copies of the weights in DIR/kept.")]
CheckpointEvery = Annotated[int, Ge(1), Doc("Training steps between checkpoints.")]
Tracker = Annotated[
    tuple[str, ...], Metavar("NAME"), Check(check_trackers), Option(default="tensorboard"), Doc("wandb or trackio, repeatable.")
]
TrainPrecision = Annotated[Precision, Check(check_mixed)]
