"""A new linear head on any image classifier of transformers, whose body stays frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.classifier import ImageClassifier
from tilting.features.images import check_images


class Body(nn.Module):
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
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Body:
        """Stays in eval mode whatever a trainer says to the modules around it."""
        return super().train(False)

    def image(self, images: Tensor) -> Tensor:
        """(b, dim) of images (b, 3, h, w) in [0, 1], what the last layer was given; differentiable. Raises TiltingError."""
        check_images(images)
        if images.device != self.pixels.mean.device:
            self.to(images.device)
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
