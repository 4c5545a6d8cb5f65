"""A picture as a cat: log p(cat | x) among all of pocket's concepts, by pocket-clip's zero-shot classifier, and by the judge.

    p(y | x) = softmax_y s cos(image(x), text("a y")),   s CLIP's own scale (Radford et al. 2021)

The first is a reward (`zero_shot.py:cat`); the second is another network, which never trains anything.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from tilting.features.clip import ClipEmbedder
from tilting.features.packaged import POCKET_CLIP
from tilting.metrics.judge import PocketJudge
from tilting.models.words import load_words, write_prompt

TARGET = "cat"


@cache
def _clip() -> ClipEmbedder:
    return ClipEmbedder(POCKET_CLIP)


@cache
def _judge() -> PocketJudge:
    return PocketJudge()


def log_probabilities(images: Tensor) -> Tensor:
    """pocket-clip's log p (b, concepts) of images (b, 3, h, w) in [0, 1], differentiable in them."""
    words = load_words()
    texts = _clip().text([write_prompt(words, i) for i in range(len(words.concepts))])
    scale = _clip().model.logit_scale.exp().detach()
    return (scale * _clip().image(images) @ texts.to(images.device).T).log_softmax(-1)


def cat(images: Tensor, prompts: list[str]) -> Tensor:
    """log p(cat) by pocket-clip, (b,) in nats: the negative cross-entropy to the target class."""
    return log_probabilities(images)[:, load_words().concepts.index(TARGET)]


cat.differentiable = True  # type: ignore[attr-defined]


def judged_cat(images: Tensor, prompts: list[str]) -> Tensor:
    """log p(cat) by pocket-judge, (b,) in nats, whatever the prompts ask."""
    return _judge().log_probabilities(images)["concept"][:, load_words().concepts.index(TARGET)]
