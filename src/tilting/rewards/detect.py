"""`detect:QUERY[,QUERY...]`: objects a detector finds in the picture, to include or (``-QUERY``) to remove.

    r(x) = Σ_q ± Σ_p s_pq (score + area · a_p)

over OWL-ViT's patches p: s_pq is its score of query q and a_p the area of its box as a fraction of the picture. DRaFT (Clark
et al. 2023, B.6) reports both the sum of scores and the areas and gives no formula: here areas are weighted by the scores, so
that both have a gradient, and no box is left out unless ``threshold`` says so. Range: [0, patches] per query included (576
of google/owlvit-base-patch32), its negative per query removed. Source: the hub's google/owlvit-base-patch32 (Apache-2.0) or any
transformers OwlViTForObjectDetection; raw logits, no suppression of overlapping boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tilting.errors import TiltingError
from tilting.features.checkpoints import Source, explained, find_folder
from tilting.features.images import check_images
from tilting.features.owlvit import Detector
from tilting.rewards.arguments import read_queries

WEIGHTS = Source("detect", "google/owlvit-base-patch32")


@dataclass(frozen=True)
class Detect:
    """The weighted sum of scores and box areas over patches and queries; the prompt has no part in it.

    Attributes:
        embedder: the frozen detector.
        queries: what to look for, each with +1 to include it or -1 to remove it.
        score: weight of the scores.
        area: weight of the areas of the boxes, which count by their scores.
        threshold: boxes of a lower score than this count nothing.
        name: the spec that names it.
        differentiable: True.
    """

    embedder: Detector
    queries: tuple[tuple[str, int], ...]
    score: float = 1.0
    area: float = 0.0
    threshold: float = 0.0
    name: str = "detect"
    differentiable: bool = True

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1]; prompts are only counted -> (b,). Raises what `check_images` raises."""
        check_images(images, prompts)
        if not len(images):
            return images.flatten(1).sum(1)
        found = self.embedder(images, tuple(query for query, _ in self.queries))
        scores = found.logits.sigmoid()
        scores = scores * (scores >= self.threshold) if self.threshold else scores
        weight = self.score + self.area * found.boxes[..., 2] * found.boxes[..., 3]
        signs = scores.new_tensor([sign for _, sign in self.queries])
        return ((scores * signs).sum(-1) * weight).sum(-1)


def detect(queries: str | Sequence[str], folder: str | Path | None = None, *, score: float = 1.0, area: float = 0.0,
           threshold: float = 0.0) -> Detect:  # fmt: skip
    """Include or remove objects.

    Args:
        queries: "cat", "-cat", "cat,-dog" or a list of such; "a photo of a cat" is as good a query.
        folder: an OWL-ViT, a folder or a name on the hub; by default ``~/.cache/tilting/detect``, then the hub.
        score: weight of the scores.
        area: weight of the areas of the boxes.
        threshold: boxes of a lower score count nothing, in [0, 1).

    Raises:
        TiltingError: an empty query, weights or a threshold out of range, or a detector that does not load.
    """
    text = queries if isinstance(queries, str) else ",".join(queries)
    asked = read_queries(text)
    if not (math.isfinite(score) and math.isfinite(area) and (score or area)):
        raise TiltingError(f"the weights of 'detect' must be finite and not both 0, not score {score} and area {area}")
    if not 0 <= threshold < 1:
        raise TiltingError(f"the threshold of 'detect' must be in [0, 1), not {threshold}")
    place = find_folder(WEIGHTS, folder)
    with explained(WEIGHTS, place):
        detector = Detector(place)
    return Detect(detector, asked, score, area, threshold, f"detect:{text}")
