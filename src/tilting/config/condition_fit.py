"""The options of `tilting condition fit`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from annotated_types import Ge, Gt
from typing_extensions import Doc

from tilting.config.base import BaseConfig
from tilting.config.options import Device, Out, check_model
from tilting.declare import Check, Each, Metavar, Option
from tilting.errors import TiltingError, nearest
from tilting.features.schema import NOISY
from tilting.foreign import read_json
from tilting.models.names import check_plain
from tilting.rewards.spec import REWARDS, Spec, check_rewards, parse_spec
from tilting.runs.files import MANIFEST

AUTO = "auto"
KINDS = ("mlp", "cnn", AUTO, NOISY)
"""Kinds of networks; the folder of an image classifier is another."""
TRIED = ("mlp", "cnn")
"""Kinds that auto compares by their likelihood on held-out data."""
WORDS = ("classes", "gaussian")
"""Kinds of labels."""


class Ask(NamedTuple):
    """A parsed ``--label``: NAME, NAME=classes, NAME=gaussian or NAME=CLASS,CLASS,...

    Attributes:
        name: the column.
        kind: "classes", "gaussian", or None to infer it from the values.
        classes: in the order of the outputs; empty to infer them from the values.
    """

    name: str
    kind: str | None = None
    classes: tuple[str, ...] = ()


def parse_label(text: str) -> Ask:
    """Parse one ``--label``. Raises TiltingError: an empty name, an unknown kind, or a class given twice."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not name or "#" in name or name in ("file", "prompt"):
        raise TiltingError(f"--label takes the name of a column of labels, not {text!r}")
    if not equals:
        return Ask(name)
    if rest in WORDS:
        return Ask(name, rest)
    if "," not in rest:
        raise TiltingError(f"--label {text!r}: there is no kind of label {rest!r}{nearest(rest, WORDS)}, or CLASS,CLASS,...")
    classes = tuple(c.strip() for c in rest.split(","))
    if "" in classes or len(set(classes)) < len(classes):
        raise TiltingError(f"--label {text!r}: classes need names, all different")
    return Ask(name, "classes", classes)


def check_bins(ask: Ask, bins: int | None) -> None:
    """Refuse names of classes that are not as many as the bins. Raises TiltingError."""
    if bins is not None and ask.classes and len(ask.classes) != bins:
        raise TiltingError(f"--label {ask.name} names {len(ask.classes)} classes for {bins} bins")


def _labels(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    names = [parse_label(one).name for one in value]
    for i, one in enumerate(names):
        if one in names[:i]:
            raise TiltingError(f"the label {one!r} is given twice")
        if len(names) > 1 and (one in (".", "..") or one.startswith(".") or set("/\\\0") & set(one)):
            raise TiltingError(f"the label {one!r} cannot be the name of a folder, which each of several labels has")
    return value


def _labeller(name: str, value: str) -> str:
    check_rewards(name, (value,))
    spec = parse_spec(value)
    if spec.weight != 1:
        raise TiltingError(f"--label-by {spec.text} has a weight, which a label has no use for")
    entry = REWARDS.get(spec.name)
    if entry is not None and (entry.together or entry.remote):  # the latter would send pictures away by the thousand
        raise TiltingError(f"--label-by {spec.text} cannot label pictures one by one: choose another reward, or a function")
    return spec.text


def _kind(name: str, value: str) -> str:
    if value not in KINDS and not Path(value).is_dir():
        raise TiltingError(f"--kind is {', '.join(KINDS)} or the folder of an image classifier, and {value!r} is none of them")
    return value


@dataclass(frozen=True)
class FitConfig(BaseConfig):
    """A validated request; an empty ``label`` means all columns, and only kind noisy has a ``model``."""

    data: Annotated[
        str, Metavar("PATH"), Doc("Table (.csv, .tsv, .jsonl, .json, .parquet), a folder with one, or class folders.")
    ] = ""
    label: Annotated[
        tuple[str, ...],
        Metavar("NAME[=KIND]"),
        Check(_labels),
        Option(default="all"),
        Doc("Column; KIND is classes, gaussian or A,B,...; repeatable."),
    ] = ()
    label_by: Annotated[
        str | None, Metavar("SPEC"), Check(_labeller), Doc("Label by a reward such as jpeg, or file.py:function.")
    ] = None
    bins: Annotated[int | None, Ge(2), Doc("Bin a numeric label into this many classes at its quantiles.")] = None
    kind: Annotated[
        str,
        Metavar("mlp|cnn|auto|noisy|FOLDER"),
        Check(_kind),
        Doc("mlp on CLIP features (seconds), cnn (minutes), auto: the better; noisy latents; a transformers FOLDER."),
    ] = "mlp"
    widths: Annotated[
        tuple[int, ...], Metavar("N,N,..."), Each(Ge(1)), Option(default="the paper's"), Doc("Channels or hidden layers.")
    ] = ()
    embedder: Annotated[str | None, Metavar("FOLDER"), Option(default="pocket-clip"), Doc("CLIP of --kind mlp.")] = None
    epochs: Annotated[int, Ge(1), Doc("Maximum number of epochs.")] = 100
    batch_size: Annotated[int, Ge(2), Doc("Pictures per training step.")] = 64
    lr: Annotated[float, Gt(0), Doc("Adam's learning rate.")] = 1e-3
    size: Annotated[
        int | None, Ge(4), Option(default="64, or the embedder's"), Doc("Pixels of a side that pictures are resized to.")
    ] = None
    patience: Annotated[int, Ge(1), Doc("Stop after this many epochs without improvement.")] = 20
    skip_bad: Annotated[bool, Doc("Skip bad rows, and list them.")] = False
    seed: Annotated[int, Ge(0), Doc("Seed of the run.")] = 0
    out: Out = None
    model: Annotated[
        str | None, Check(check_model), Option(default="pocket"), Doc("Model whose latents --kind noisy is fitted on.")
    ] = None
    group: Annotated[str | None, Metavar("COLUMN"), Doc("Rows with the same value are held out together.")] = None
    device: Device = "auto"

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Check options by name. Raises TiltingError: an unknown option, no data, or a value that cannot be."""
        values = cls.checked({key: value for key, value in options.items() if value not in ((), [])})
        if "data" not in values:
            raise TiltingError("no data are given: --data labels.csv, or a folder of class folders")
        if "kind" not in values and values.get("out"):
            values["kind"] = _kind_there(Path(values["out"])) or cls.kind
        if values.get("kind") == NOISY:
            values.setdefault("model", check_model("model", "pocket"))
            check_plain(values["model"], "classifiers of noisy latents")
        config = cls(**values)
        _check_kind(config)
        if config.label_by is not None and len(config.label) > 1:
            raise TiltingError(f"--label-by {config.label_by} gives one label, but {len(config.label)} are named")
        for ask in config.asks():
            check_bins(ask, config.bins)
        if not Path(config.data).exists():
            raise TiltingError(f"there is no file or folder {config.data!r} of labelled pictures")
        return config

    def asks(self) -> list[Ask]:
        """The labels; of a function that labels, its own name where none is given."""
        asks = [parse_label(one) for one in self.label]
        spec = self.spec()
        if spec is not None and not asks:
            return [Ask(str(spec.argument) if spec.is_file else spec.name)]
        return asks

    def spec(self) -> Spec | None:
        """What labels the pictures, if a function does."""
        return None if self.label_by is None else parse_spec(self.label_by)

    def mapping(self) -> dict[str, Any]:
        """See `BaseConfig.mapping`; model and group only if they are used."""
        return {key: value for key, value in super().mapping().items() if key not in ("model", "group") or value}


def _kind_there(folder: Path) -> str | None:
    """The kind of network of the fit in a folder, which goes on as it is where none is asked for."""
    try:
        manifest = read_json(folder / MANIFEST, "it")
        return str(manifest["config"]["kind"]) if "labels" in manifest else None
    except (TiltingError, OSError, KeyError, TypeError):
        return None


def _check_kind(config: FitConfig) -> None:
    if config.kind == NOISY:
        if config.size is not None:
            raise TiltingError("--size is of pictures that a network reads: --kind noisy reads latents of --model")
        if len(config.widths) > 1 or any(width % 8 for width in config.widths):
            raise TiltingError(f"--widths of --kind noisy is one multiple of 8, not {','.join(map(str, config.widths))}")
    elif config.model is not None:
        raise TiltingError(f"--model is whose latents --kind noisy learns from, which --kind {config.kind} does not")
    if config.embedder is not None and config.kind not in ("mlp", AUTO):
        raise TiltingError(f"--embedder is the CLIP of --kind mlp, which --kind {config.kind} does not have")
    if config.embedder is not None and not Path(config.embedder).is_dir() and config.embedder.count("/") != 1:
        raise TiltingError(f"there is no folder {config.embedder!r} for --embedder")
    if config.widths and config.kind == AUTO:
        raise TiltingError("--widths are of one network, and --kind auto fits two: leave them out, or name a kind")
    if config.widths and config.kind not in KINDS:
        raise TiltingError("--widths are of a cnn or an mlp; a classifier's head is one linear layer")
