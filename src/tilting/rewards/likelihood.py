"""`likelihood`: r(x) = log p(y | x) of a fitted classifier at its calibrated temperature, CTRL's reward (Zhao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.features.fitted import FittedClassifier, load_classifier
from tilting.features.images import check_images
from tilting.rewards.arguments import read_likelihood


@dataclass(frozen=True)
class Likelihood:
    """r(x) = log p(y | x) in nats, at most 0 for classes; for a number it is a log-density per unit of the label.

    Attributes:
        classifier: the frozen network and its schema.
        y: the index of the class asked for, or the number.
        name: the spec that names it.
        differentiable: True.
    """

    classifier: FittedClassifier
    y: float
    name: str
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        return self.classifier.log_prob(images, torch.full((len(images),), self.y, device=images.device))


def likelihood(asked: str) -> Likelihood:
    """The log-likelihood of a label's value.

    Args:
        asked: FOLDER#LABEL=VALUE, such as "FIT#bright=yes" for a folder that `save_classifier` wrote.

    Raises:
        TiltingError: another form, no classifier there, or not its label or value.
    """
    folder, schema, value = read_likelihood(asked)
    return Likelihood(load_classifier(folder), schema.target(value), f"likelihood:{asked}")
