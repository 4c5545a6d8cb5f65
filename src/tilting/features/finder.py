"""Open-vocabulary object detection by OWL-ViT or Grounding-DINO of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, loaded, pretrained
from tilting.features.owlvit import Detector


class Finder(Protocol):
    """A detector of named objects."""

    def __call__(self, image: Tensor, names: tuple[str, ...]) -> dict[str, list[tuple[float, float, float, float, float]]]:
        """All boxes of each name in an image (3, h, w) in [0, 1], as (left, top, right, bottom, score) in pixels."""
        ...


def _rows(boxes: Tensor, scores: Tensor, height: int, width: int) -> list[tuple[float, float, float, float, float]]:
    """Rows (left, top, right, bottom, score) in pixels, from boxes (n, 4) as centre and size in [0, 1] and scores (n,)."""
    x, y, w, h = boxes.cpu().double().unbind(-1)
    corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return [tuple(row) for row in torch.stack((*corners, scores.cpu().double()), -1).tolist()]  # type: ignore[misc]


class OwlFinder(Frozen):
    """OWL-ViT; each patch is assigned to its best name, as in transformers' own post-processing."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.detector = Detector(folder)
        self.freeze()

    def forward(self, image: Tensor, names: tuple[str, ...]) -> dict[str, list[tuple[float, float, float, float, float]]]:
        """See `Finder`."""
        seen = self.detector(image[None], tuple(f"a photo of a {name}" for name in names))
        scores, best = seen.logits[0].sigmoid().max(-1)
        own = {name: best == k for k, name in enumerate(names)}
        return {name: _rows(seen.boxes[0][mine], scores[mine], *image.shape[1:]) for name, mine in own.items()}


class DinoFinder(Frozen):
    """Grounding-DINO; each box is assigned to the name of its token with the highest score."""

    def __init__(self, folder: str | Path):
        from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoForObjectDetection

        super().__init__()
        self.model: Any = pretrained(GroundingDinoForObjectDetection, folder, "Grounding-DINO")
        self.tokenizer = loaded(AutoTokenizer, folder, "Grounding-DINO")
        self.processor = loaded(AutoImageProcessor, folder, "Grounding-DINO")
        self.freeze()

    def forward(self, image: Tensor, names: tuple[str, ...]) -> dict[str, list[tuple[float, float, float, float, float]]]:
        """See `Finder`."""
        self.follow(image)
        pixels = (image.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        parts = [self.tokenizer(f"{name.lower()}.", add_special_tokens=False).input_ids for name in names]
        ends = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        ids = torch.tensor([[*ends[0], *(token for part in parts for token in part), *ends[1]]], device=image.device)
        given = self.processor(pixels, return_tensors="pt").to(image.device)
        out = self.model(**given, input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
        shown, at = [], 1
        for part in parts:
            shown.append(out.logits[0, :, at : at + len(part) - 1].sigmoid().amax(-1))  # without the full stop
            at += len(part)
        scores, best = torch.stack(shown, -1).max(-1)
        own = {name: best == k for k, name in enumerate(names)}
        return {name: _rows(out.pred_boxes[0][mine], scores[mine], *image.shape[1:]) for name, mine in own.items()}


def read_finder(folder: str | Path) -> Finder:
    """The detector of a folder, or of a name on the hub. Raises TiltingError: it does not load, or is another."""
    from transformers import AutoConfig

    kind = loaded(AutoConfig, folder, "detector").model_type
    if kind not in ("owlvit", "grounding-dino"):
        raise TiltingError(f"{str(folder)!r} is a {kind}, neither OWL-ViT nor Grounding-DINO")
    return OwlFinder(folder) if kind == "owlvit" else DinoFinder(folder)
