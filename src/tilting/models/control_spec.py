"""Description of a control's folder, and parsing of requested labels. Torch-free.

    CTL/control.json                     this description, written last, with digests of the weights
    CTL/embedding.safetensors            E_y (`tilting.models.labels.LabelEmbedding`)
    CTL/lora/                            a LoRA in diffusers' format (`pipe.load_lora_weights`)
    CTL/classifiers/LABEL/               the fitted classifiers at their temperatures, where there are any

Safetensors and json only: nothing in it executes code, so that a user's own function is not kept as a classifier.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tilting.declare import made
from tilting.errors import TiltingError, nearest
from tilting.features.digest import digest
from tilting.features.packaged import POCKET_BRIGHT
from tilting.features.schema import Schema, schema_of
from tilting.foreign import parse_json, read_text
from tilting.models.lora_file import FILE as LORA_FILE

FILE, EMBEDDING, CLASSIFIERS, LORA = "control.json", "embedding.safetensors", "classifiers", "lora"
WEIGHTS = (EMBEDDING, f"{LORA}/{LORA_FILE}")
CONTROLS = {"pocket-bright": POCKET_BRIGHT}
"""Controls in the package, all of `pocket`, and where they lie."""
FREE = "classifier-free"
"""The objective, and the planner's name, of a control trained on labelled pictures."""


@dataclass(frozen=True)
class ControlInfo:
    """What a control is and how it was trained.

    Attributes:
        labels: the schema of each label it knows, at its classifier's temperature.
        model: {"name", "sha256"} of the pre-trained model.
        place: where the embedding enters: latent, score or time.
        rank: of the LoRA.
        gamma, kl: γ of the label, β of the path KL.
        effective_gamma: γ against the exact KL: γ / β; None where β is 0.
        planner: backprop, ppo, or classifier-free.
        off: the time at and below which it is silent (`tilting.models.labels.Augmented`).
        training: steps, batch and sampler settings, plain values.
    """

    labels: tuple[Schema, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    place: str = "latent"
    rank: int = 8
    gamma: float = 10.0
    kl: float = 1.0
    effective_gamma: float | None = 10.0
    planner: str = "backprop"
    off: float = -1.0
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> dict[str, int | None]:
        """Label -> how many classes, or None for a number: what `LabelEmbedding` is made of."""
        return {s.label: len(s.classes) if s.kind == "classes" else None for s in self.labels}

    @property
    def unlabelled(self) -> bool:
        """Whether it has learnt "no label" too (`tilting.models.labels.Augmented`)."""
        return self.planner == FREE and self.training.get("label_dropout", 0) > 0

    def schema(self, label: str) -> Schema:
        """The schema of a label. Raises TiltingError with the nearest right name."""
        known = {s.label: s for s in self.labels}
        if label not in known:
            raise TiltingError(f"this control knows no label {label!r}{nearest(label, known)}")
        return known[label]

    def partly(self, asked: Iterable[str]) -> str | None:
        """A sentence about being asked for some of its labels only, or None: CTRL gives every label in training. (Of labelled
        pictures many have some labels only, which is then what is learnt.)"""
        given = [name for name in self.classes if name in asked]
        if self.planner == FREE or len(given) in (0, len(self.classes)):
            return None
        return (
            f"the control of {', '.join(self.classes)} was trained with all of these given, not with {', '.join(given)} alone"
        )

    def doubts(self, labels: Mapping[str, str | float]) -> list[str]:
        """Sentences about what is asked for and was not learnt: some labels alone, numbers far from those of the data."""
        far = (self.schema(label).far(value) for label, value in labels.items())
        return [said for said in (self.partly(labels), *far) if said is not None]

    def code(self, label: str, value: str | float) -> float:
        """A label's value as the embedding takes it: the index of a class, or a standardised number."""
        schema = self.schema(label)
        target = schema.target(value)
        return target if schema.kind == "classes" else (target - schema.shift) / schema.scale


def description(info: ControlInfo, folder: Path) -> str:
    """The text of control.json for weights that lie in a folder."""
    files = {name: digest(folder / name) for name in WEIGHTS}
    return json.dumps({**asdict(info), "files": files}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def find_control(name: str | Path) -> Path:
    """The folder behind a control's name. Raises TiltingError: it is neither in the package, nor a folder with a control."""
    folder = CONTROLS.get(str(name), Path(name))
    if not (folder / FILE).is_file():
        raise TiltingError(f"there is no control in {str(name)!r}: it needs {FILE}{nearest(name, CONTROLS)}")
    return folder


def read_control(name: str | Path) -> ControlInfo:
    """The description of the control of a name or in a folder, its weights compared with what it says of them.

    Raises:
        TiltingError: no control there, one that is not whole, or a description that cannot be read.
    """
    folder = find_control(name)
    path = folder / FILE
    what = f"{str(path)!r} is not the description of a control"
    raw = parse_json(read_text(path), repr(str(path)), constant=lambda _: None)  # Infinity was once written for no KL
    if not (isinstance(raw, dict) and isinstance(raw.get("files"), dict) and isinstance(raw.get("labels"), list)):
        raise TiltingError(what)
    files, labels = raw.pop("files"), tuple(schema_of(one, what) for one in raw.pop("labels"))
    info = made(ControlInfo, {**raw, "labels": labels}, what)
    for name in WEIGHTS:
        if not (folder / name).is_file() or digest(folder / name) != files.get(name):
            raise TiltingError(f"the control in {str(folder)!r} is not whole: {name} is not the file it was saved with")
    return info


def parse_labels(asked: Sequence[str], controls: Mapping[str, ControlInfo], what: str = "control") -> dict[str, dict[str, str]]:
    """Share LABEL=VALUE out among controls, or classifiers.

    Args:
        asked: such as "bright=1".
        controls: folder -> description.
        what: they are, in words.

    Returns:
        Folder -> label -> value, every value checked.

    Raises:
        TiltingError: another form, a label that no control or more than one knows, a value that is none of its classes, a
            label given twice, or a control that is asked for nothing.
    """
    values: dict[str, dict[str, str]] = {folder: {} for folder in controls}
    known = {s.label: s for info in controls.values() for s in info.labels}
    for text in asked:
        label, equals, value = (part.strip() for part in text.partition("="))
        if not (label and equals and value):
            raise TiltingError(f"--label takes NAME=VALUE, such as bright=1, not {text!r}")
        owners = [folder for folder, info in controls.items() if label in info.classes]
        if not owners:
            raise TiltingError(f"no {what} here knows a label {label!r}{nearest(label, known)}")
        if len(owners) > 1:
            raise TiltingError(f"the label {label!r} is known to both {owners[0]!r} and {owners[1]!r}: use one of them")
        if label in values[owners[0]]:
            raise TiltingError(f"the label {label!r} is given twice")
        controls[owners[0]].code(label, value)
        values[owners[0]][label] = value
    for folder, mine in values.items():
        if not mine:
            names = " or ".join(f"--label {name}=..." for name in controls[folder].classes)
            raise TiltingError(f"the {what} {folder!r} is asked for nothing: give {names}")
    return values
