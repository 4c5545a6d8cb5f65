"""The classifiers that train a control: fitted ones, or a user's function, which may have no gradient.

    r(x, y) = Σ_k log p_k(y_k | x)          labels that are independent given x add (Zhao et al. 2024, Example 2)

A user's function is ``file.py:function`` with an attribute ``classes``: (images (b, 3, h, w) in [0, 1], prompts) ->
(b, classes) log-probabilities. Its label is ``function.label``, or its name. Unless ``function.differentiable`` is True it is
a black box, which PPO climbs (Remark 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tilting.errors import outlived
from tilting.features.fitted import FittedClassifier, load_classifier
from tilting.features.images import check_images
from tilting.features.schema import Schema
from tilting.rewards import UserReward, user
from tilting.types import RewardError, TiltingError


@dataclass(frozen=True)
class UserClassifier:
    """log p(y | x, c) by a user's function.

    Attributes:
        reward: the function.
        schema: its label and classes.
    """

    reward: UserReward
    schema: Schema

    @property
    def differentiable(self) -> bool:
        """Whether the function says so itself."""
        return self.reward.differentiable

    def log_prob(self, images: Tensor, y: Tensor, prompts: Sequence[str]) -> Tensor:
        """log p(y | x, c) (b,) for class indices y (b,). Raises RewardError for what is no table of log-probabilities."""
        name, shape = self.reward.name, (len(images), self.schema.outputs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            try:
                table = torch.as_tensor(self.reward.function(images.clone(), list(prompts)))
            except BaseException as error:
                raise RewardError(f"the classifier {name!r} raised {outlived(error)}") from error
        if tuple(table.shape) != shape or not table.is_floating_point():
            raise RewardError(f"the classifier {name!r} must return log-probabilities {shape}, not {tuple(table.shape)}")
        if (table.detach().exp().sum(1) - 1).abs().max() > 1e-2:
            raise RewardError(f"the classifier {name!r} must return log-probabilities: those of each image sum to 1")
        return table.to(images.device).gather(1, y.long().to(images.device)[:, None])[:, 0]


Classifier = FittedClassifier | UserClassifier


def differentiable(classifier: Classifier) -> bool:
    """Whether log p has a gradient with respect to the images."""
    return isinstance(classifier, FittedClassifier) or classifier.differentiable


def read_classifier(source: str) -> Classifier:
    """A fitted classifier's folder, or file.py:function. Raises TiltingError if it is neither."""
    if ".py:" not in source:
        return load_classifier(Path(source))
    reward = user(source)
    classes = getattr(reward.function, "classes", None)
    if not isinstance(classes, list | tuple):
        raise TiltingError(f"the classifier {source!r} needs an attribute classes, such as classify.classes = ('no', 'yes')")
    label = str(getattr(reward.function, "label", source.rpartition(":")[2]))
    return UserClassifier(reward, Schema(label, classes=tuple(str(c) for c in classes)))


def by_label(classifiers: Sequence[Classifier]) -> dict[str, Classifier]:
    """Classifiers by their label. Raises TiltingError: none, or two of one label."""
    labelled: dict[str, Classifier] = {}
    for one in classifiers:
        if one.schema.label in labelled:
            raise TiltingError(f"two classifiers have the label {one.schema.label!r}: a control needs one of each")
        labelled[one.schema.label] = one
    if not labelled:
        raise TiltingError("a control needs a classifier: give one by --classifier")
    return labelled


def units(schema: Schema, codes: Tensor) -> Tensor:
    """Labels as `log_prob` takes them, of codes as an embedding takes them: indices as they are, numbers in their own unit."""
    return codes if schema.kind == "classes" else schema.shift + schema.scale * codes


@dataclass(frozen=True)
class Obedience:
    """γ Σ_k log p_k(y_k | x) of images whose labels are fixed, as a reward.

    Attributes:
        classifiers: by label.
        codes: label -> (b,) what each image is asked for, as an embedding takes it.
        gamma: γ.
        seen: label -> mean log p of the last images, for logs.
    """

    classifiers: Mapping[str, Classifier]
    codes: Mapping[str, Tensor]
    gamma: float = 1.0
    seen: dict[str, float] = field(default_factory=dict)
    name: str = "obedience"

    @property
    def differentiable(self) -> bool:
        return all(differentiable(c) for c in self.classifiers.values())

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and their prompts -> (b,) in nats."""
        check_images(images, prompts)
        total = images.new_zeros(len(images))
        for label, classifier in self.classifiers.items():
            y = units(classifier.schema, self.codes[label]).to(images.device)
            asked = (images, y) if isinstance(classifier, FittedClassifier) else (images, y, prompts)
            value = classifier.log_prob(*asked)  # type: ignore[arg-type]
            self.seen[label] = value.detach().mean().item()
            total = total + value
        return self.gamma * total
