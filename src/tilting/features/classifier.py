"""Any image classifier of transformers: log-probabilities of its labels, differentiable in the images; and a new linear head on
its frozen body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError, nearest
from tilting.features.checkpoints import Frozen, pixels_in, pretrained
from tilting.features.images import check_images
from tilting.features.once import asked_once


class ImageClassifier(Frozen):
    """A frozen classifier in eval mode and float32; moves to the device of the images it is given.

    Args:
        folder: a folder that an ``...ForImageClassification.save_pretrained`` wrote, with its preprocessor_config.json, or
            the name of one on the hub.

    Raises:
        TiltingError: it does not load, has one label only, or a preprocessing that is not followed here.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoModelForImageClassification

        super().__init__()
        self.folder = str(folder)
        self.model: Any = pretrained(AutoModelForImageClassification, folder, "image classifier")
        self.pixels = pixels_in(folder)
        self.labels: tuple[str, ...] = tuple(str(v) for _, v in sorted(self.model.config.id2label.items()))
        self.several = self.model.config.problem_type == "multi_label_classification"
        if len(self.labels) < 2 or self.model.config.problem_type == "regression":
            raise TiltingError(f"the classifier {self.folder!r} has no classes to choose from")
        self.freeze()

    def index(self, label: str | int) -> int:
        """The number of a label, given as such or by name (or one of the names ImageNet joins by commas).

        Raises:
            TiltingError: there is no such label.
        """
        text = str(label).strip()
        names = [name.lower() for name in self.labels]
        if text.lower() in names:
            return names.index(text.lower())
        if text.isdigit():
            if int(text) >= len(names):
                raise TiltingError(f"the classifier {self.folder!r} has labels 0 to {len(names) - 1}, not {text}")
            return int(text)
        for k, name in enumerate(names):
            if text.lower() in (part.strip() for part in name.split(",")):
                return k
        raise TiltingError(f"the classifier {self.folder!r} has no label {text!r}{nearest(text, self.labels)}")

    @asked_once
    def forward(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w) float in [0, 1], b at least 1 -> (b, labels) log-probabilities, in nats.

        Softmax over the labels; of a classifier of several labels at once, the log-sigmoid of each.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images)
        self.follow(images)
        logits = self.model(pixel_values=self.pixels(images)).logits
        return F.logsigmoid(logits) if self.several else logits.log_softmax(-1)


class Body(Frozen):
    """The frozen classifier up to its last linear layer, always in eval mode.

    Args:
        folder: as `ImageClassifier` takes it.

    Attributes:
        dim: of its vectors.

    Raises:
        TiltingError: what `ImageClassifier` refuses, or no single linear layer that gives the labels.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        classifier = ImageClassifier(folder)
        self.model, self.pixels = classifier.model, classifier.pixels
        count = len(classifier.labels)
        heads = [(k, m) for k, m in self.model.named_modules() if isinstance(m, nn.Linear) and m.out_features == count]
        heads = [(name, linear) for name, linear in heads if "." not in name or name.split(".")[0] in ("classifier", "head")]
        if len(heads) != 1:
            raise TiltingError(f"the classifier {str(folder)!r} has no single linear layer that gives its {count} labels")
        name, linear = heads[0]
        above, _, last = name.rpartition(".")
        self.model.get_submodule(above).add_module(last, nn.Identity())
        self.dim: int = linear.in_features
        self.freeze()

    def image(self, images: Tensor) -> Tensor:
        """(b, dim) of images (b, 3, h, w) in [0, 1], what the last layer was given; differentiable. Raises TiltingError."""
        check_images(images)
        self.follow(images)
        return self.model(pixel_values=self.pixels(images)).logits


class HeadedClassifier(nn.Module):
    """A linear layer of its own on a frozen `Body`.

    Args:
        outputs: how many numbers per image.
        folder: of the classifier.
    """

    def __init__(self, outputs: int, folder: str):
        super().__init__()
        self.config: dict[str, Any] = {"name": "folder", "folder": folder}
        self.embedder = Body(folder)
        self.head = nn.Linear(self.embedder.dim, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(b, outputs) of images (b, 3, h, w) in [0, 1]; ``head`` does it from the body's vectors (b, dim)."""
        return self.head(self.embedder.image(images))
