"""A diversity term for the images of a minibatch (Clark et al. 2024, B.8), by `--diversity`.

    r_i + w d(x_i, x_{b-1-i})

Pairs are made by reversing the minibatch: b/2 of them instead of b(b-1)/2; the middle one of an odd number has none (d = 0).
Over several processes the minibatch is that of all: the other image comes without its graph, and the gradient of d is doubled,
which is what the other side of the pair would have sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tilting.config.diversity import parse_diversity
from tilting.rewards import diversity as reward

Measure = Callable[[Tensor, Tensor], Tensor]
"""(a, b), images (m, 3, h, w) in [0, 1] each -> (m,), symmetric, 0 for equal ones."""


@dataclass(frozen=True)
class Diversity:
    """The term of a run.

    Attributes:
        weight: w, in the reward's units over those of d; below 0 it draws images together.
        measure: d.
        name: of it.
    """

    weight: float
    measure: Measure = field(repr=False, compare=False)
    name: str = "euclid"


def diversity(text: str) -> Diversity:
    """The term that a spec asks for. Raises TiltingError."""
    name, argument, weight = parse_diversity(text)
    return Diversity(weight, _of_frames(_measure(name, argument)), name if argument is None else f"{name}:{argument}")


def _of_frames(measure: Measure) -> Measure:
    """The same of videos (m, frames, 3, h, w), the mean over their frames."""

    def measured(a: Tensor, b: Tensor) -> Tensor:
        return measure(a, b) if a.ndim == 4 else measure(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2]).mean(1)

    return measured


def _measure(name: str, argument: str | None) -> Measure:
    if name == "euclid":
        return root_mean_square
    space: Any = reward(argument).space
    if name == "lpips":
        return space
    return lambda a, b: (space.image(a) - space.image(b)).square().sum(1).add(1e-12).sqrt()


def root_mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance over the root of the number of entries, (m,) in [0, 1]; its gradient at 0 is 0."""
    square = (a - b).flatten(1).square().mean(1)
    return torch.where(square > 0, square.clamp(min=1e-20).sqrt(), square * 0)


def to_reverse(images: Tensor, measure: Measure, gather: Callable[[Tensor], Tensor] | None = None, index: int = 0) -> Tensor:
    """(m,) dissimilarity of each image and its partner, with the gradient of Σ d over all of the minibatch.

    Args:
        images: (m, 3, h, w) in [0, 1], this process's.
        measure: of a pair.
        gather: tensors of this process -> those of all, in order; None if there is one.
        index: which process this is.
    """
    every = images.detach() if gather is None else gather(images.detach())
    other = every.flip(0)[index * len(images) : (index + 1) * len(images)]
    far = measure(images, other)
    return 2 * far - far.detach()
