"""A weighted sum of rewards, itself a reward; optionally with running normalisation.

Scales: rewards of different units can be put on one by their running mean and deviation (Welford's recurrence, in the form of
Chan et al. 1983 for batches). The moments are a value, `Scales`, that the caller updates, keeps and saves: a reward that
changed by being asked would make an image depend on those before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.features.once import once
from tilting.lazy import torch
from tilting.rewards.check import checked, precise, waits

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Reward


@dataclass(frozen=True)
class Moments:
    """Running moments of values: count, mean, and sum of squared deviations from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor) -> Moments:
        """These and more values (b,)."""
        if not values.numel():
            return self
        x = values.detach().cpu().double()
        count, mean = self.count + x.numel(), x.mean().item()
        gap = mean - self.mean
        squares = self.squares + (x - mean).square().sum().item() + gap**2 * self.count * x.numel() / count
        return Moments(count, self.mean + gap * x.numel() / count, squares)

    @property
    def std(self) -> float:
        """The sample deviation; 1 where it is not known yet or is 0, so that it can be divided by."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 1e-16 * max(self.mean**2, 1e-16) else 1.0


@dataclass(frozen=True)
class Scales:
    """The moments of each part by key. `json` and `Scales.of` save and restore it.

    Attributes:
        moments: by key; a part that is not in it has seen nothing.
    """

    moments: Mapping[str, Moments]

    def add(self, values: Mapping[str, Tensor]) -> Scales:
        """With the raw values (b,) of parts by key, such as `Combined.each` gives."""
        return Scales({**self.moments, **{key: self.moments.get(key, Moments()).add(v) for key, v in values.items()}})

    def scaled(self, key: str, values: Tensor) -> Tensor:
        """(values - mean) / std of a part; unchanged where nothing was seen."""
        seen = self.moments.get(key, Moments())
        return (values - seen.mean) / seen.std

    def json(self) -> dict[str, list[float]]:
        """As plain values for a file."""
        return {key: [seen.count, seen.mean, seen.squares] for key, seen in self.moments.items()}

    @classmethod
    def of(cls, plain: Mapping[str, Iterable[float]]) -> Scales:
        """What `json` gave."""
        rows = {key: tuple(row) for key, row in plain.items()}
        return cls({key: Moments(int(count), float(mean), float(squares)) for key, (count, mean, squares) in rows.items()})


@dataclass(frozen=True)
class Combined:
    """r(x, c) = Σ_i w_i r_i(x, c), or Σ_i w_i (r_i(x, c) - mean_i) / std_i with scales.

    The means and deviations are those of the values that `observed` was given, constants to the gradient. Nothing is observed
    by asking for scores: a loop that wants running scales writes ``reward = reward.observed(values)`` after each batch, with
    what `each` gave. Raw values are what `each` gives, scales or not.

    Attributes:
        parts: the rewards and their weights.
        keys: the name of each part in reports, unique; the spec that asked for it when there was one.
        scales: None, the default, for the plain sum.
        frames: of videos, those that parts which score pictures see; see `tilting.rewards.check.chosen`.
    """

    parts: tuple[tuple[Reward, float], ...]
    keys: tuple[str, ...]
    scales: Scales | None = None
    frames: str = "all"
    videos = True  # which are given to each part as it takes them

    def __post_init__(self):
        if not self.parts:
            raise TiltingError("a combined reward needs at least one part")
        if len(self.keys) != len(self.parts):
            raise TiltingError(f"{len(self.parts)} rewards need as many keys, not {len(self.keys)}")
        for i, key in enumerate(self.keys):
            if key in self.keys[:i]:
                raise TiltingError(f"the reward {key!r} is given twice; give it once with the sum of the weights")
        for key, (reward, weight) in zip(self.keys, self.parts, strict=True):
            if isinstance(reward, type):
                raise TiltingError(f"the reward {reward.__name__} is a class: give one of it, {reward.__name__}()")
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

    @property
    def batch_dependent(self) -> bool:
        """Whether the value of an image depends on those beside it, for any part."""
        return any(getattr(reward, "batch_dependent", False) for reward, _ in self.parts)

    @property
    def waits(self) -> bool:
        """Whether any part is waited for; see `tilting.rewards.check.waits`."""
        return any(waits(reward) for reward, _ in self.parts)

    def each(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """The raw (unweighted, unscaled) values (b,) of every part by key, each `checked`: a RewardError names its part.
        A network that several stand on is asked once."""
        with once():
            return {key: checked(r, images, prompts, self.frames) for key, (r, _) in zip(self.keys, self.parts, strict=True)}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum (b,) of what `each` gave, in float32 at least, for those who need both and pay once."""
        terms = []
        for key, (_, weight) in zip(self.keys, self.parts, strict=True):
            value = precise(values[key])  # 100 by a weight of 1,000 is infinite in half precision
            terms.append(weight * (value if self.scales is None else self.scales.scaled(key, value)))
        return torch.stack([t.to(terms[0].device) for t in terms]).sum(0) if len(terms) > 1 else terms[0]

    def observed(self, values: Mapping[str, Tensor]) -> Combined:
        """The same reward, scaled by all it has observed so far and by these raw values, from `each`."""
        return replace(self, scales=(self.scales or Scales({})).add({key: values[key] for key in self.keys}))

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] and b prompts -> (b,). Raises RewardError as `checked` does."""
        return self.total(self.each(images, prompts))


def combine(
    parts: Iterable[Reward | tuple[Reward, float]], keys: Iterable[str] | None = None, scales: Scales | None = None
) -> Combined:
    """The weighted sum of rewards.

    Args:
        parts: rewards, or (reward, weight); the weight is 1 by default.
        keys: their names in reports, the rewards' own by default.
        scales: moments to normalise each part by, such as ``Scales.of(saved)`` or ``Scales({})`` to begin; none by default.

    Raises:
        TiltingError: no part, a name twice, or a weight that is not finite.
    """
    pairs = tuple((part[0], float(part[1])) if isinstance(part, tuple) else (part, 1.0) for part in parts)
    return Combined(pairs, tuple(reward.name for reward, _ in pairs) if keys is None else tuple(keys), scales)


def as_sum(reward: Reward) -> Combined:
    """The reward as a sum of parts: one that is none is its only part."""
    return reward if isinstance(reward, Combined) else combine([reward])


def of_latents(reward: Any) -> Any:
    """The reward of latents that this is, or None. Raises TiltingError for a sum of one with others."""
    parts = [part for part, _ in as_sum(reward).parts]
    found = [part for part in parts if getattr(part, "latents", False)]
    if found and len(parts) > 1:
        raise TiltingError(f"reward {found[0].name!r} scores latents, not pictures: it stands alone, so leave the others out")
    return found[0] if found else None


def framed(reward: Reward | None, frames: str) -> Reward | None:
    """A reward that scores these frames of videos (`tilting.rewards.check.chosen`); one of all frames stays as it is."""
    return reward if reward is None or frames == "all" else replace(as_sum(reward), frames=frames)
