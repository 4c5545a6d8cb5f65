"""The options of `tilting condition fit`, checked. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tilting.config.base import BaseConfig, check_model, given_of
from tilting.config.settings import integer, number, text
from tilting.errors import TiltingError, nearest
from tilting.features.schema import NOISY
from tilting.models.placement import check_device
from tilting.rewards.spec import CATALOG, Spec, parse_spec

OPTIONS = (
    "data", "label", "label-by", "bins", "kind", "widths", "embedder", "epochs", "batch-size", "lr", "size", "patience",
    "skip-bad", "seed", "out", "model", "group", "device",
)  # fmt: skip
KINDS = ("cnn", "mlp", NOISY)


WORDS = ("classes", "gaussian")


class Ask(NamedTuple):
    """A label as it is asked for: NAME, NAME=classes, NAME=gaussian or NAME=CLASS,CLASS,...

    Attributes:
        name: the column.
        kind: "classes", "gaussian", or None to be seen from the values.
        classes: in the order of the outputs; empty to be seen from the values.
    """

    name: str
    kind: str | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitConfig(BaseConfig):
    """A checked request.

    Attributes:
        data, label, label_by, bins, kind, widths, embedder, epochs, batch_size, lr, size, patience, skip_bad, seed, out,
            model, group, device: the options of these names; ``label`` may be empty: all there are. ``model`` is of kind noisy
            alone.
    """

    options = OPTIONS

    data: str
    label: tuple[str, ...] = ()
    label_by: str | None = None
    bins: int | None = None
    kind: str = "cnn"
    widths: tuple[int, ...] = ()
    embedder: str | None = None
    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    size: int | None = None
    patience: int = 20
    skip_bad: bool = False
    seed: int = 0
    out: str | None = None
    model: str | None = None
    group: str | None = None
    device: str = "auto"

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
        """By option name, of plain YAML and JSON values; model and group only where they have a use."""
        return {key: value for key, value in super().mapping().items() if key not in ("model", "group") or value}


def resolve_fit(options: Mapping[str, Any]) -> FitConfig:
    """Check options by name. Raises TiltingError: an unknown option, no data, or a value that cannot be."""
    given = given_of(options, OPTIONS)
    if "data" not in given:
        raise TiltingError("no data are given: --data labels.csv, or a folder of class folders")
    skip = given.get("skip-bad", False)
    if not isinstance(skip, bool):
        raise TiltingError(f"skip-bad must be true or false, not {skip!r}")
    rate = number("lr", given.get("lr", FitConfig.lr))
    if rate <= 0:
        raise TiltingError(f"lr must be above 0, not {rate:g}")
    config = FitConfig(
        text("data", given["data"]),
        _labels(given.get("label", ())),
        _labeller(given.get("label-by")),
        _whole(given, "bins", 2),
        text("kind", given.get("kind", FitConfig.kind)),
        _widths(given.get("widths", ())),
        text("embedder", given["embedder"]) if "embedder" in given else None,
        integer("epochs", given.get("epochs", FitConfig.epochs), 1),
        integer("batch-size", given.get("batch-size", FitConfig.batch_size), 2),
        rate,
        _whole(given, "size", 4),
        integer("patience", given.get("patience", FitConfig.patience), 1),
        skip,
        integer("seed", given.get("seed", 0), 0),
        text("out", given["out"]) if "out" in given else None,
        _model(given),
        text("group", given["group"]) if "group" in given else None,
        check_device(text("device", given.get("device", FitConfig.device))),
    )
    _check_kind(config)
    if config.label_by is not None and len(config.label) > 1:
        raise TiltingError(f"--label-by {config.label_by} gives one label, but {len(config.label)} are named")
    if not Path(config.data).exists():
        raise TiltingError(f"there is no file or folder {config.data!r} of labelled pictures")
    return config


def _whole(given: Mapping[str, Any], key: str, least: int) -> int | None:
    return integer(key, given[key], least) if key in given else None


def _labels(value: object) -> tuple[str, ...]:
    labels = [value] if isinstance(value, str) else value
    if not isinstance(labels, list | tuple):
        raise TiltingError(f"label must be a name or a list of names, not {value!r}")
    names = [parse_label(text("label", one)).name for one in labels]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise TiltingError(f"the label {name!r} is given twice")
        if len(names) > 1 and (name in (".", "..") or name.startswith(".") or set("/\\\0") & set(name)):
            raise TiltingError(f"the label {name!r} cannot be the name of a folder, which each of several labels has")
    return tuple(labels)


def _labeller(value: object) -> str | None:
    if value is None:
        return None
    spec = parse_spec(text("label-by", value))
    if spec.weight != 1:
        raise TiltingError(f"--label-by {spec.text} has a weight, which a label has no use for")
    entry = CATALOG.get(spec.name)
    if entry is not None and (entry.together or entry.remote):  # the latter would send pictures away by the thousand
        raise TiltingError(f"--label-by {spec.text} cannot label pictures one by one: choose another reward, or a function")
    return spec.text


def _model(given: Mapping[str, Any]) -> str | None:
    """Whose latents; pocket's where kind noisy does not say."""
    noisy = given.get("kind") == NOISY
    return check_model(text("model", given.get("model", "pocket"))) if noisy or "model" in given else None


def _widths(value: object) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise TiltingError(f"widths must be whole numbers such as 16,32,64, not {value!r}")
    numbers = (int(p) if isinstance(p, str) and p.strip().isdigit() else p for p in parts)
    return tuple(integer("widths", n, 1) for n in numbers)


def _check_kind(config: FitConfig) -> None:
    if config.kind not in KINDS and not Path(config.kind).is_dir():
        known = "cnn, mlp, noisy or the folder of an image classifier"
        raise TiltingError(f"--kind is {known}, and {config.kind!r} is none of them")
    if config.kind == NOISY:
        if config.size is not None:
            raise TiltingError("--size is of pictures that a network reads: --kind noisy reads latents of --model")
        if len(config.widths) > 1 or any(width % 8 for width in config.widths):
            raise TiltingError(f"--widths of --kind noisy is one multiple of 8, not {','.join(map(str, config.widths))}")
    elif config.model is not None:
        raise TiltingError(f"--model is whose latents --kind noisy learns from, which --kind {config.kind} does not")
    if config.embedder is not None and config.kind != "mlp":
        raise TiltingError(f"--embedder is the CLIP of --kind mlp, which --kind {config.kind} does not have")
    if config.embedder is not None and not Path(config.embedder).is_dir() and config.embedder.count("/") != 1:
        raise TiltingError(f"there is no folder {config.embedder!r} for --embedder")
    if config.widths and config.kind not in KINDS:
        raise TiltingError("--widths are of a cnn or an mlp; a classifier's head is one linear layer")


def parse_label(text: str) -> Ask:
    """Read one ``--label``. Raises TiltingError: an empty name, a kind there is not, or a class given twice."""
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
