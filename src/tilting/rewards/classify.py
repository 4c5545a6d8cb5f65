"""`classify:FOLDER#LABEL`: how surely an image classifier sees a label.

    r(x) = log p(label | x)

At most 0, in nats. Any transformers image classifier, a folder or a name on the hub: an ImageNet one makes the adversarial
examples of DRaFT (Clark et al. 2023, the negative cross-entropy to a target class, with microsoft/resnet-50), one of safe and
unsafe pictures a safety reward (ask for the safe label: the negative of an unsafe label's log-probability has no upper bound).
Expected files: config.json, model.safetensors, preprocessor_config.json. The licence is the classifier's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tilting.features.classifier import ImageClassifier
from tilting.features.images import check_images
from tilting.rewards.arguments import read_classifier


@dataclass(frozen=True)
class Classify:
    """r(x) = log p(label | x); the prompt has no part in it.

    Attributes:
        embedder: the frozen classifier.
        label: the number of the label.
        name: the spec that names it.
        differentiable: True.
    """

    embedder: ImageClassifier
    label: int
    name: str = "classify"
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        if not len(images):
            return images.flatten(1).sum(1)
        return self.embedder(images)[:, self.label]


def classify(where: str | Path, label: str | int | None = None) -> Classify:
    """The log-probability of a label.

    Args:
        where: the classifier, a folder or a name on the hub; "FOLDER#LABEL" when no label is given apart.
        label: its name or its number.

    Raises:
        TiltingError: no label, an unknown one (with the nearest right one), or a classifier that does not load.
    """
    name = f"classify:{where}" if label is None else f"classify:{where}#{label}"
    if label is None:
        where, label = read_classifier(str(where))
    path = Path(where).expanduser()
    classifier = ImageClassifier(path if path.is_dir() else str(where))
    return Classify(classifier, classifier.index(label), name)
