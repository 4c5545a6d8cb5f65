"""What an objective sees: the trained denoiser and the frozen one, a reward on clean latents, and who is being drawn.

Nothing here knows of models, LoRA or optimisers, so that the same objectives train a UNet's LoRA and a toy drift on the
analytic mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tilting import rng
from tilting.schedule import Kind
from tilting.types import Denoise, Time, ValueFn


@dataclass(frozen=True)
class World:
    """One training batch.

    Attributes:
        denoise: the trained model under CFG; gradients flow to its parameters where the caller has them on.
        base: the frozen model under the same CFG.
        plain, base_plain: both without CFG, what denoising losses are made of.
        value: reward of clean latents (m, ...) of images ``rows``; differentiable where the reward is.
        critic: an estimate of that reward with parameters of its own, which DPG trains; None where there are none.
        grid: T + 1 points.
        who: identity of each of the b images of the batch; their noise is keyed by it.
        shape: of one latent.
        eta: of the sampler.
        step: training step, which random truncations are keyed by.
        seed: of the run.
        memory: what objectives remember between steps (running statistics), plain numbers, saved with checkpoints.
        everyone: identities of the whole batch over all processes, ``who`` being the slice from ``first``; empty if there is
        one.
        first: where this process's images begin.
        gather: values (b,) of this process -> those of all, in order; None if there is one.
        checkpointed: recompute a step's activations on the way back instead of holding them.
        trained: every parameter that gradients are wanted of, which makes that cheaper; empty where they are not known (a
        training loop knows them).
        device, dtype: of the latents.
        kind: what the network's output means, which is what denoising losses are of.
    """

    denoise: Denoise
    base: Denoise
    plain: Denoise
    base_plain: Denoise
    value: ValueFn
    grid: Sequence[Time]
    who: Sequence[rng.Identity]
    shape: tuple[int, ...]
    eta: float = 0.0
    step: int = 0
    seed: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    everyone: Sequence[rng.Identity] = ()
    first: int = 0
    gather: Callable[[Tensor], Tensor] | None = None
    checkpointed: bool = True
    trained: Sequence[Tensor] = ()
    critic: ValueFn | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    kind: Kind = "epsilon"

    @property
    def steps(self) -> int:
        return len(self.grid) - 1

    @property
    def rows(self) -> Tensor:
        """(b,) all images."""
        return torch.arange(len(self.who), device=self.device)

    @property
    def prompts(self) -> list[str]:
        """Of the whole batch, over all processes."""
        return [w.prompt for w in (self.everyone or self.who)]

    def all(self, value: Tensor) -> Tensor:
        """Values of the whole batch, over all processes."""
        return value if self.gather is None else self.gather(value)

    def mine(self, everything: Tensor) -> Tensor:
        """This process's part of a tensor over the whole batch."""
        return everything[self.first : self.first + len(self.who)]

    @property
    def share(self) -> float:
        """Processes: what a sum over the batch must be multiplied by, since gradients are averaged over processes."""
        return len(self.prompts) / len(self.who)

    def noise(self, step: int, purpose: str = "noise") -> Tensor:
        """Keyed noise (b, ...) of a sampling step."""
        return rng.normal(self.who, 1, self.shape, step, purpose)[:, 0].to(self.device, self.dtype)

    def generator(self, purpose: str) -> torch.Generator:
        """Randomness of the whole batch, keyed by the run's seed and the training step."""
        return rng.generator(rng.Identity(self.seed, "", self.step), 0, 0, purpose)


class Loss(NamedTuple):
    """What an objective yields: something to back-propagate.

    Attributes:
        value: a scalar, divided already so that the losses up to an update sum to what is meant.
        numbers: to log, by name; ``reward`` is the batch's mean.
        update: make an optimiser step after this one.
    """

    value: Tensor
    numbers: dict[str, float]
    update: bool = True


class Objective(Protocol):
    """A frozen value that turns a world into losses.

    Attributes:
        name: of the objective.
        needs_gradient: whether the reward must be differentiable.
        group: images of one prompt that must stand together in a batch (1 if it does not matter).

    One that makes a single update a step may say so by ``several = False``: the loop then keeps no copy to undo it by.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_gradient(self) -> bool: ...

    @property
    def group(self) -> int: ...

    def __call__(self, world: World) -> Iterator[Loss]: ...
