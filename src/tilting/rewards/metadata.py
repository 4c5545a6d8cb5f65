"""Metadata of prompts for rewards that use it: GenEval's objects, the words of OCR.

A prompts file's further columns are its metadata. They are bound to a reward where it is built, so that whatever scores a
picture needs no more than its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tilting.errors import TiltingError
from tilting.rewards.check import Scorer
from tilting.rewards.weighted_sum import Combined

if TYPE_CHECKING:
    from torch import Tensor

Some = TypeVar("Some")


class Told(Scorer):
    """A reward that takes metadata. A subclass is a frozen dataclass, has a field ``metadata``, prompt -> mapping, and gives
    `score`."""

    metadata: Mapping[str, Mapping[str, Any]]

    def score(self, images: Tensor, prompts: list[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The values (b,) of checked images, b at least 1; the metadata of a prompt of which nothing is known is empty."""
        raise NotImplementedError

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.score(images, prompts, [_lower(self.metadata.get(prompt, {})) for prompt in prompts])


def _lower(told: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with its keys in lower case too, as names of columns are read in any."""
    return {**{key.lower(): value for key, value in told.items()}, **told}


def asks(reward: object) -> bool:
    """Whether a reward takes metadata."""
    return isinstance(reward, Told) or getattr(reward, "asks", False) is True


def informed(reward: Some, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Some:
    """A reward that knows the metadata of prompts; one that does not ask stays as it is.

    Args:
        reward: any, or None.
        prompts: in order.
        metadata: of each, or empty where nothing is known of any.

    Raises:
        TiltingError: it asks, and a prompt stands twice with other metadata: pictures know their prompt's text alone.
    """
    if isinstance(reward, Combined):
        parts = tuple((informed(part, prompts, metadata), weight) for part, weight in reward.parts)
        return cast(Some, replace(reward, parts=parts))
    if not (metadata and asks(reward)):
        return reward
    known: dict[str, Mapping[str, Any]] = {}
    for prompt, told in zip(prompts, metadata, strict=True):
        if known.setdefault(prompt, told) != told:
            name = getattr(reward, "name", "reward")
            raise TiltingError(f"the prompt {prompt!r} stands twice with other metadata, which {name!r} cannot tell apart")
    return cast(Some, replace(cast(Any, reward), metadata=known))
