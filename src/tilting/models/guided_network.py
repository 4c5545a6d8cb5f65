"""A pipeline's network outputs before and after classifier-free guidance, for controls and learned inputs of the sampler."""

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
    """The arguments of a call for n images.

    Attributes:
        arguments: of each image but its prompt; images with the same share one value.
        conditions: their prompts, or classes.
    """

    arguments: tuple[Mapping[str, Any], ...]
    conditions: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.conditions)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """Select the images ``rows`` (m,)."""
        index = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
        return Conditioning(tuple(self.arguments[r] for r in index), tuple(self.conditions[r] for r in index))

    def expand_as(self, other: Conditioning) -> Conditioning:
        """Repeat a single image as often as ``other`` has images."""
        return self[[0] * len(other)]


class Outputs(NamedTuple):
    """Outputs (m, ...) in the network's own terms.

    Attributes:
        guided: of both branches.
        difference: what a scale larger by 1 adds to it.
        conditional: the branch of the prompt.
        seen: the latents that they are of: those asked about, but for what the pipeline blended in.
    """

    guided: Tensor
    difference: Tensor
    conditional: Tensor
    seen: Tensor


@dataclass(frozen=True)
class GuidedNetwork:
    """The network with guidance, for a list of prompts.

    Attributes:
        model: whose they are.
        conditioning: of the images.
        conditional: the same without guidance.
        split: each branch in a network call of its own, so that a branch that is computed again by itself is the same to the
            last digit.
        linear: refuse guidance that is not linear in two branches.
        within: time -> the context of its evaluation.
        noise: see `Pipeline.denoiser`.
    """

    model: Pipeline
    conditioning: Conditioning
    conditional: Conditioning
    split: bool = False
    linear: bool = False
    within: Callable[[Time], AbstractContextManager[None]] = lambda t: nullcontext()
    noise: Tensor | None = None

    def __call__(self, x: Tensor, t: Time, rows: Tensor) -> Outputs:
        """Outputs for latents x (m, ...) of images ``rows`` (m,), by one call of the pipeline; where guidance is not linear in
        two branches, the conditional one takes another."""
        conditioning, plain, steps = self.conditioning[rows], self.conditional[rows], self.model.steps_at(t)

        def ask(arguments: Mapping[str, Any], conditions: Sequence[Any], places: Any) -> Outputs:
            own = None if self.noise is None else self.noise[rows.to(self.noise.device)][places]
            call = self.model.call(steps, arguments)
            out, difference, conditional, seen = call.outputs(x[places], t, conditions, self.split, own)
            if conditional is None and self.linear:
                raise TiltingError(f"guidance of {self.model.name!r} is no line between two predictions, which this is of")
            if conditional is None:
                at = range(len(x))[places] if isinstance(places, slice) else places
                conditional = self.model.network(x[places], t, plain[at])
            return Outputs(out, torch.zeros_like(out) if difference is None else difference, conditional, seen)

        with self.within(t):
            found = self.model.by_rows(conditioning.arguments, conditioning.conditions, range(len(x)), ask)
        return found if self.model.blends else found._replace(seen=x)
