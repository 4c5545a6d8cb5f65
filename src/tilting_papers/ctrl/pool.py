"""Several classifiers of one label as one, which `ctrl-data` trains controls by.

    log p(y | x) = log softmax(1/K Σ_k z_k(x) / T_k)_y        each at its own temperature

The mean of log-probabilities, renormalised: where the members disagree, no class is likely, so that a control that climbs
what is wrong in one of them gains nothing. log p = mean_k log p_k(y) - log Σ_y' exp mean_k log p_k(y'), of which the last is
the members' mean KL divergence from the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tilting.features.fitted import FittedClassifier, load_classifier


class Pool:
    """A user's classifier: (images (b, 3, h, w) in [0, 1], prompts) -> (b, classes) log-probabilities, differentiable.

    Args:
        folders: of classifiers that `tilting condition fit` made of one label.
    """

    differentiable = True
    __name__ = "pool"

    def __init__(self, folders: Sequence[Path]):
        self.members: list[FittedClassifier] = [load_classifier(folder) for folder in folders]
        schema = self.members[0].schema
        self.label, self.classes = schema.label, tuple(schema.classes)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        each = [(one(images) / one.schema.temperature).log_softmax(-1) for one in self.members]
        return torch.stack(each).mean(0).log_softmax(-1)
