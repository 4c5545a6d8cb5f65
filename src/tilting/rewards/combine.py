"""A weighted sum of rewards, itself a reward."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.errors import TiltingError
from tilting.rewards.check import checked
from tilting.types import Reward


@dataclass(frozen=True)
class Combined:
    """r(x, c) = Σ_i w_i r_i(x, c).

    Attributes:
        parts: the rewards and their weights.
        keys: the name of each part in reports, unique; the spec that asked for it when there was one.
    """

    parts: tuple[tuple[Reward, float], ...]
    keys: tuple[str, ...]

    def __post_init__(self):
        if not self.parts:
            raise TiltingError("a combined reward needs at least one part")
        if len(self.keys) != len(self.parts):
            raise TiltingError(f"{len(self.parts)} rewards need as many keys, not {len(self.keys)}")
        for i, key in enumerate(self.keys):
            if key in self.keys[:i]:
                raise TiltingError(f"the reward {key!r} is given twice; give it once with the sum of the weights")
        for key, (_, weight) in zip(self.keys, self.parts, strict=True):
            if not math.isfinite(weight):
                raise TiltingError(f"the weight of {key!r} must be finite, not {weight}")

    @property
    def name(self) -> str:
        """The keys, joined by " + "."""
        return " + ".join(self.keys)

    @property
    def differentiable(self) -> bool:
        """Whether every part is."""
        return all(reward.differentiable for reward, _ in self.parts)

    def each(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """The raw (unweighted) values (b,) of every part by key, each `checked`: a RewardError names its part."""
        return {key: checked(r, images, prompts) for key, (r, _) in zip(self.keys, self.parts, strict=True)}

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum (b,) of what `each` gave, for those who need both and pay once."""
        terms = [weight * values[key] for key, (_, weight) in zip(self.keys, self.parts, strict=True)]
        return torch.stack([t.to(terms[0].device) for t in terms]).sum(0) if len(terms) > 1 else terms[0]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,). Raises RewardError as `checked` does."""
        return self.total(self.each(images, prompts))


def combine(parts: Iterable[Reward | tuple[Reward, float]], keys: Iterable[str] | None = None) -> Combined:
    """The weighted sum of rewards.

    Args:
        parts: rewards, or (reward, weight); the weight is 1 by default.
        keys: their names in reports, the rewards' own by default.

    Raises:
        TiltingError: no part, a name twice, or a weight that is not finite.
    """
    pairs = tuple((part[0], float(part[1])) if isinstance(part, tuple) else (part, 1.0) for part in parts)
    return Combined(pairs, tuple(reward.name for reward, _ in pairs) if keys is None else tuple(keys))
