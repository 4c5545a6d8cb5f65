"""Any image classifier of transformers: log-probabilities of its labels, differentiable in the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError, nearest
from tilting.features.checkpoints import here, pretrained
from tilting.features.images import check_images
from tilting.features.pixels import pixels_of


class ImageClassifier(nn.Module):
    """A frozen classifier in eval mode and float32; moves to the device of the images it is given.

    Args:
        folder: a folder that an ``...ForImageClassification.save_pretrained`` wrote, with its preprocessor_config.json, or
            the name of one on the hub.

    Raises:
        TiltingError: it does not load, has one label only, or a preprocessing that is not followed here.
    """

    def __init__(self, folder: str | Path):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        super().__init__()
        self.folder = str(folder)
        self.model: Any = pretrained(AutoModelForImageClassification, folder, "image classifier")
        try:
            place, local = here(folder)
            processor = AutoImageProcessor.from_pretrained(place, local_files_only=local)
        except Exception as error:
            raise TiltingError(f"{self.folder!r} has no image processor that loads: {str(error).splitlines()[0]}") from error
        self.pixels = pixels_of(processor.to_dict(), self.folder)
        self.labels: tuple[str, ...] = tuple(str(v) for _, v in sorted(self.model.config.id2label.items()))
        self.several = self.model.config.problem_type == "multi_label_classification"
        if len(self.labels) < 2 or self.model.config.problem_type == "regression":
            raise TiltingError(f"the classifier {self.folder!r} has no classes to choose from")
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ImageClassifier:
        """Stays in eval mode whatever a trainer says to the modules around it."""
        return super().train(False)

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

    def forward(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w) float in [0, 1], b at least 1 -> (b, labels) log-probabilities, in nats.

        Softmax over the labels; of a classifier of several labels at once, the log-sigmoid of each.

        Raises:
            TiltingError: what `check_images` refuses.
        """
        check_images(images)
        if images.device != self.pixels.mean.device:
            self.to(images.device)
        logits = self.model(pixel_values=self.pixels(images)).logits
        return F.logsigmoid(logits) if self.several else logits.log_softmax(-1)
