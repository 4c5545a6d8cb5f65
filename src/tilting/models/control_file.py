"""Saving and loading of a control: a folder with a LoRA, a label embedding, classifiers and a description, as safetensors and
JSON.

It loads on plain diffusers and this package: `load_control` for the whole, ``pipe.load_lora_weights(CTL + "/lora")`` for the
LoRA alone. In a model's network a control is an adapter of its own that is on in its own term alone, so that the model with
controls attached still is the pre-trained model everywhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from tilting.disk import folder_given, inner_path, make_folder, write_atomically, write_tensors
from tilting.features.fitted import FittedClassifier, load_classifier, save_classifier
from tilting.features.schema import FILE as CLASSIFIER
from tilting.foreign import read_tensors
from tilting.models import control_spec as spec
from tilting.models.control_spec import ControlInfo, find_control, read_control
from tilting.models.labels import Augmented, Controlled, LabelEmbedding, width_of
from tilting.models.lora import activate, active, adapters, beside, load_lora, lora_state
from tilting.models.lora_weights import read_lora, save_lora
from tilting.models.pipeline import Pipeline
from tilting.types import TiltingError


class Control:
    """A trained control, attached to a model.

    Attributes:
        augmented: the model with its labels.
        info: labels and training.
        classifiers: those it was trained by, by label, which say whether images obey; a black-box one is not kept.
        adapter: the name of its LoRA in the model's network.
    """

    def __init__(self, augmented: Augmented, info: ControlInfo, classifiers: Mapping[str, FittedClassifier], adapter: str):
        self.augmented, self.info, self.classifiers, self.adapter = augmented, info, dict(classifiers), adapter

    def __repr__(self) -> str:
        return f"Control(of {self.augmented.model.name}; {'; '.join(schema.told for schema in self.info.labels)})"

    def at(self, /, strength: float = 1.0, **labels: str | float) -> Controlled:
        """The control with labels fixed, as a model to draw with: ``control.at(bright="yes", strength=2)``.

        Arguments as of `fixed`, which a label called strength, or one with a space, is given to.
        """
        warn_of(self.info, labels)
        return self.fixed(labels, strength)

    def fixed(self, labels: Mapping[str, str | float], strength: float = 1.0) -> Controlled:
        """The control with labels fixed, as a model to draw with.

        Args:
            labels: label -> the name of a class, or a number in the label's own unit.
            strength: γ2.

        Raises:
            TiltingError: a label or class it does not know, with the nearest right one.
        """
        if not labels:
            raise TiltingError(f"say what the control shall draw: {', '.join(self.info.classes)}")
        return Controlled(self.augmented, {name: self.info.code(name, value) for name, value in labels.items()}, strength)

    def tests(self, labels: Mapping[str, str | float]) -> dict[str, tuple[FittedClassifier, str | float]]:
        """Label -> (classifier, what is asked), of the labels whose classifier it keeps."""
        return {name: (self.classifiers[name], value) for name, value in labels.items() if name in self.classifiers}

    def lora(self) -> dict[str, Tensor]:
        """Its LoRA under diffusers' names."""
        return lora_state(self.augmented.model.backbone, self.adapter)

    def save(self, folder: str | Path) -> Path:
        """Write the control's folder; see `save_control`."""
        return save_control(
            folder_given(folder), self.info, self.lora(), self.augmented.embedding.state_dict(), self.classifiers
        )


def warn_of(info: ControlInfo, labels: Mapping[str, str | float]) -> None:
    """Warn where a control, or a classifier, is asked for what it has not learnt; see `ControlInfo.doubts`."""
    for said in info.doubts(labels):
        warnings.warn(said, stacklevel=3)


def attach_control(
    model: Pipeline,
    info: ControlInfo,
    lora: Mapping[str, Tensor],
    embedding: Mapping[str, Tensor],
    classifiers: Mapping[str, FittedClassifier] | None = None,
) -> Control:
    """Make a control of its parts. Raises TiltingError if they do not fit the model."""
    labels = LabelEmbedding(info.classes, width_of(model, info.place))  # type: ignore[arg-type]
    try:
        labels.load_state_dict(dict(embedding))
    except RuntimeError:
        raise TiltingError(f"this control is of another model than {model.name!r}: its embedding has another width") from None
    labels.to(model.device).eval().requires_grad_(False)
    unet = model.backbone
    before = list(active(unet))
    name = next(f"control{i}" for i in count() if f"control{i}" not in adapters(unet))
    load_lora(unet, lora, name)
    activate(unet, before)
    own = partial(beside, unet, name)
    augmented = Augmented(model, labels, info.place, nullcontext, own, info.off, info.unlabelled)  # type: ignore[arg-type]
    return Control(augmented, info, classifiers or {}, name)


def save_control(
    folder: Path,
    info: ControlInfo,
    lora: Mapping[str, Tensor],
    embedding: Mapping[str, Tensor],
    classifiers: Mapping[str, FittedClassifier],
) -> Path:
    """Write a control's folder; the description comes last, and without it there is no control.

    Args:
        folder: made if it is not there; other files in it stay.
        info: the description.
        lora: weights under diffusers' names.
        embedding: the state of a `LabelEmbedding`.
        classifiers: by label.
    """
    make_folder(folder)
    (folder / spec.FILE).unlink(missing_ok=True)
    save_lora(lora, folder / spec.LORA)
    write_tensors(folder / spec.EMBEDDING, {k: v.detach().cpu().contiguous() for k, v in embedding.items()})
    for label, classifier in classifiers.items():
        save_classifier(classifier, inner_path(folder / spec.CLASSIFIERS, label, "label"))
    write_atomically(folder / spec.FILE, spec.description(info, folder).encode())
    return folder


def load_control(name: str | Path, model: Pipeline) -> Control:
    """Attach the control of a name ("pocket-bright", in the package) or in a folder to a model.

    Raises:
        TiltingError: no control there, one that is not whole, or one of another model.
    """
    folder = find_control(name)
    info, classifiers = read_control(folder), {}
    for schema in info.labels:
        fit = inner_path(folder / spec.CLASSIFIERS, schema.label, "label")
        if (fit / CLASSIFIER).is_file():
            classifiers[schema.label] = load_classifier(fit)
    with torch.no_grad():
        return attach_control(model, info, read_lora(folder), read_tensors(folder / spec.EMBEDDING), classifiers)
