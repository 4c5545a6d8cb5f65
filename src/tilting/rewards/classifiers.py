"""Rewards by classifiers: the log-probability of a class.

    likelihood    r(x) = log p(y | x)        of a fitted classifier at its calibrated temperature: CTRL's (Zhao et al. 2024)
    classify      r(x) = log p(label | x)    of any transformers image classifier, at most 0, in nats

Of the second, an ImageNet one makes the adversarial examples of DRaFT (Clark et al. 2023, the negative cross-entropy to a
target class, with microsoft/resnet-50), one of safe and unsafe pictures a safety reward (ask for the safe label: the negative
of an unsafe label's log-probability has no upper bound). Expected files: config.json, model.safetensors,
preprocessor_config.json. The licence is the classifier's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.features.digest import weights_in
from tilting.features.once import loaded
from tilting.features.schema import FILE, Schema, read_config, read_schema
from tilting.lazy import torch
from tilting.rewards.check import Scorer
from tilting.rewards.declaration import REWARDS, Argument, Reads, clip_at

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.classifier import ImageClassifier
    from tilting.features.fitted import FittedClassifier


@dataclass(frozen=True)
class Likelihood(Scorer):
    """r(x) = log p(y | x) in nats, at most 0 for classes; for a number it is a log-density per unit of the label.

    Attributes:
        classifier: the frozen network and its schema.
        y: the index of the class asked for, or the number.
    """

    classifier: FittedClassifier
    y: float
    name: str
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.classifier.log_prob(images, torch.full((len(images),), self.y, device=images.device))


def read_likelihood(text: str) -> tuple[Path, Schema, str]:
    """FOLDER#LABEL=VALUE of a fitted classifier.

    Returns:
        The folder, what its classifier knows, and the value as written.

    Raises:
        TiltingError: another form, no classifier there, a label that is not its own, or a value it does not know.
    """
    folder, mark, asked = text.rpartition("#")
    label, equals, value = asked.partition("=")
    if not (mark and folder and label and equals and value):
        raise TiltingError(f"the reward 'likelihood:{text}' must be likelihood:FOLDER#LABEL=VALUE")
    schema = read_schema(Path(folder))
    if label != schema.label:
        raise TiltingError(f"the classifier in {folder!r} tells {schema.label!r}, not {label!r}")
    schema.target(value)
    return Path(folder), schema, value


def fitted_reads(folder: Path) -> Reads:
    """What a fitted classifier stands on: its folder, and the frozen network under its head."""
    network, own = read_config(folder)["network"], (folder, folder / FILE)
    if network.get("name") == "mlp":
        files, clip = clip_at(network.get("embedder"))
        return Reads((*own, *files), clip)
    return Reads((*own, *(weights_in(network["folder"]) if network.get("folder") else ())))


def files_of_classifier(source: str) -> tuple[Path, ...]:
    """What p(y | x) stands on: the folder of a fit with what `fitted_reads` says, or a user's file of FILE.py:NAME."""
    return (Path(source.rpartition(":")[0]),) if ".py:" in source else fitted_reads(Path(source)).files


@REWARDS.declare(
    "likelihood",
    "as a fitted classifier",
    "log p(y | x)",
    differentiable=True,
    argument=Argument("FOLDER#LABEL=VALUE", read_likelihood, required=True),
    reads=lambda text: fitted_reads(read_likelihood(text or "")[0]),
)
def likelihood(asked: str) -> Likelihood:
    """The log-likelihood of a label's value.

    Args:
        asked: FOLDER#LABEL=VALUE, such as "FIT#bright=yes" for a folder that `save_classifier` wrote.

    Raises:
        TiltingError: another form, no classifier there, or not its label or value.
    """
    from tilting.features.fitted import load_classifier

    folder, schema, value = read_likelihood(asked)
    return Likelihood(loaded(load_classifier, folder), schema.target(value), f"likelihood:{asked}")


@dataclass(frozen=True)
class Classify(Scorer):
    """r(x) = log p(label | x); the prompt has no part in it.

    Attributes:
        embedder: the frozen classifier.
        label: the number of the label.
    """

    embedder: ImageClassifier
    label: int
    name: str = "classify"
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.embedder(images)[:, self.label]


def read_classifier(text: str) -> tuple[str, str]:
    """FOLDER#LABEL -> the classifier, a folder or a name on the hub, and the label; raises TiltingError."""
    folder, _, label = text.rpartition("#")
    if not (folder.strip() and label.strip()):
        raise TiltingError(f"the reward {f'classify:{text}'!r} must be classify:FOLDER#LABEL")
    return folder.strip(), label.strip()


@REWARDS.declare(
    "classify",
    "as a classifier sees it",
    "log-probability",
    differentiable=True,
    argument=Argument("FOLDER#LABEL", read_classifier, required=True),
    weights=True,
)
def classify(where: str | Path, label: str | int | None = None) -> Classify:
    """The log-probability of a label.

    Args:
        where: the classifier, a folder or a name on the hub; "FOLDER#LABEL" when no label is given apart.
        label: its name or its number.

    Raises:
        TiltingError: no label, an unknown one (with the nearest right one), or a classifier that does not load.
    """
    from tilting.features.classifier import ImageClassifier

    name = f"classify:{where}" if label is None else f"classify:{where}#{label}"
    if label is None:
        where, label = read_classifier(str(where))
    path = Path(where).expanduser()
    classifier = loaded(ImageClassifier, path if path.is_dir() else str(where))
    return Classify(classifier, classifier.index(label), name)
