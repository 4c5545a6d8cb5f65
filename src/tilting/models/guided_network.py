"""A pipeline's network outputs before guidance, for controls and learned inputs of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.errors import TiltingError
from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.pipeline import Pipeline
    from tilting.types import Time


@dataclass(frozen=True)
class Conditioning:
    """What a call is told of n images.

    Attributes:
        told: its arguments; one value for images that are told the same.
        subjects: their prompts, or classes.
    """

    told: tuple[Mapping[str, Any], ...]
    subjects: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """Select the images ``rows`` (m,)."""
        index = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
        return Conditioning(tuple(self.told[r] for r in index), tuple(self.subjects[r] for r in index))

    def expand_as(self, other: Conditioning) -> Conditioning:
        """Repeat a single image as often as ``other`` has images."""
        return self[[0] * len(other)]


class Outputs(NamedTuple):
    """Outputs (m, ...) in the network's own terms: guided; what a scale larger by 1 adds to it; of the prompt alone."""

    guided: Tensor
    difference: Tensor
    alone: Tensor


@dataclass(frozen=True)
class GuidedNetwork:
    """A request's outputs.

    Attributes:
        model: whose they are.
        said: of the request.
        alone: of its prompts without a pair.
        apart: each branch in a network call of its own, so that a branch that is computed again by itself is the same to the
            last digit.
        line: refuse guidance that is no line between two branches.
        within: of a time, what it is evaluated in.
    """

    model: Pipeline
    said: Conditioning
    alone: Conditioning
    apart: bool = False
    line: bool = False
    within: Callable[[Time], AbstractContextManager[None]] = lambda t: nullcontext()

    def __call__(self, x: Tensor, t: Time, rows: Tensor) -> Outputs:
        """Of latents x (m, ...) and their rows. A pair is one call of the pipeline; where guidance is no line between two
        branches, the prompt's takes one more."""
        said, without, steps = self.said[rows], self.alone[rows], self.model.steps_at(t)

        def ask(told: Mapping[str, Any], subjects: Sequence[Any], places: Any) -> Outputs:
            out, difference, alone, _ = self.model.call(steps, told).outputs(x[places], t, subjects, self.apart)
            if alone is None and self.line:
                raise TiltingError(f"guidance of {self.model.name!r} is no line between two predictions, which this is of")
            if alone is None:
                at = range(len(x))[places] if isinstance(places, slice) else places
                alone = self.model.network(x[places], t, without[at])
            return Outputs(out, torch.zeros_like(out) if difference is None else difference, alone)

        with self.within(t):
            return self.model.by_rows(said.told, said.subjects, range(len(x)), ask)
