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
from typing import TYPE_CHECKING

from tilting.errors import TiltingError
from tilting.features.once import loaded
from tilting.features.sources import Source, explained, find_folder
from tilting.rewards.check import Scorer
from tilting.rewards.declaration import REWARDS, Argument

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.owlvit import Detector

WEIGHTS = Source("detect", "google/owlvit-base-patch32", size="0.6 GB", licence="Apache-2.0")


@dataclass(frozen=True)
class Detect(Scorer):
    """The weighted sum of scores and box areas over patches and queries; the prompt has no part in it.

    Attributes:
        embedder: the frozen detector.
        queries: what to look for, each with +1 to include it or -1 to remove it.
        score: weight of the scores.
        area: weight of the areas of the boxes, which count by their scores.
        threshold: boxes of a lower score than this count nothing.
    """

    embedder: Detector
    queries: tuple[tuple[str, int], ...]
    score: float = 1.0
    area: float = 0.0
    threshold: float = 0.0
    name: str = "detect"
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        seen = self.embedder(images, tuple(query for query, _ in self.queries))
        scores = seen.logits.sigmoid()
        scores = scores * (scores >= self.threshold) if self.threshold else scores
        weight = self.score + self.area * seen.boxes[..., 2] * seen.boxes[..., 3]
        signs = scores.new_tensor([sign for _, sign in self.queries])
        return ((scores * signs).sum(-1) * weight).sum(-1)


def read_queries(text: str) -> tuple[tuple[str, int], ...]:
    """What to look for: "cat,-dog" -> (("cat", 1), ("dog", -1)), -1 to remove it.

    Raises:
        TiltingError: a query is empty or given twice.
    """
    queries: dict[str, int] = {}
    for part in text.split(","):
        query = part.strip().removeprefix("-").strip()
        if not query:
            raise TiltingError(f"a query of the reward {f'detect:{text}'!r} is empty; write detect:cat or detect:cat,-dog")
        if query in queries:
            raise TiltingError(f"the query {query!r} is given twice in the reward {f'detect:{text}'!r}")
        queries[query] = -1 if part.strip().startswith("-") else 1
    return tuple(queries.items())


@REWARDS.declare(
    "detect",
    "objects found, or -removed",
    "sum of scores",
    differentiable=True,
    argument=Argument("QUERY[,QUERY]", read_queries, required=True, files=False),
    weights=True,
    sources=(WEIGHTS,),
)
def detect(
    queries: str | Sequence[str],
    folder: str | Path | None = None,
    *,
    score: float = 1.0,
    area: float = 0.0,
    threshold: float = 0.0,
) -> Detect:
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
    from tilting.features.owlvit import Detector

    text = queries if isinstance(queries, str) else ",".join(queries)
    asked = read_queries(text)
    if not (math.isfinite(score) and math.isfinite(area) and (score or area)):
        raise TiltingError(f"the weights of 'detect' must be finite and not both 0, not score {score} and area {area}")
    if not 0 <= threshold < 1:
        raise TiltingError(f"the threshold of 'detect' must be in [0, 1), not {threshold}")
    source = find_folder(WEIGHTS, folder)
    with explained(WEIGHTS, source):
        detector = loaded(Detector, source)
    return Detect(detector, asked, score, area, threshold, f"detect:{text}")
