"""Input of an objective: the trained and the frozen denoiser, a reward of clean latents, and the identities of the images.

Nothing here knows of models, LoRA or optimisers, so that the same objectives train a UNet's LoRA and a toy drift on the
analytic mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tilting import rng
from tilting.declare import Registry, check_fields
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.schedule import step_std, transition

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.schedule import Kind, Law
    from tilting.types import Denoise, Prediction, Time, Transition, ValueFn


NETWORKS = ("denoise", "base", "plain", "base_plain", "teacher")
"""Fields of a batch that are denoisers; the last is None where nothing is distilled."""


@dataclass(frozen=True)
class TrainBatch:
    """One training batch.

    Attributes:
        denoise: the trained model under CFG; gradients flow to its parameters where the caller has them on.
        base: the frozen model under the same CFG.
        plain, base_plain: both without CFG, a guidance-distilled network at its scale: what denoising losses are made of.
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
        etas: of every step, where they differ; else empty.
        law: of the noise of a step.
        parts: rewards of clean latents (m, ...) of images ``rows`` one by one, (m, R), weighted and summed by ``shares`` in
            ``value``; None where there is one.
        shares: (R,) their weights.
        prefers: (clean latents a, b (m, ...), images ``rows``) -> (m,) the probability that a is the better picture, where the
            reward compares pictures; else None.
        worded: a change of the prompts -> the reward under them; None where prompts are nothing to it.
        averages: blocks in which the trained weights are an average of themselves, by its name; see `BaseObjective.averages`.
        teacher: what is distilled, under CFG; None where nothing is.
        cfg: the guidance scale.
        given: clean latents (b, ...) of pictures that were given, the chosen and the rejected one of each pair in turn; None
            where images are drawn.
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
    dtype: torch.dtype = field(default_factory=lambda: torch.float32)
    kind: Kind = "epsilon"
    etas: Sequence[float] = ()
    law: Law = "posterior"
    parts: ValueFn | None = None
    shares: Sequence[float] = ()
    prefers: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    worded: Callable[[Callable[[str], str]], ValueFn] | None = None
    averages: Mapping[str, Callable[[], AbstractContextManager[None]]] = field(default_factory=dict)
    teacher: Denoise | None = None
    cfg: float = 1.0
    given: Callable[[], Tensor] | None = None

    @property
    def steps(self) -> int:
        return len(self.grid) - 1

    @property
    def rows(self) -> Tensor:
        """(b,) all images; on the CPU, where their prompts are looked up."""
        return torch.arange(len(self.who), device="cpu")

    @property
    def prompts(self) -> list[str]:
        """The prompts of the whole batch, over all processes."""
        return [w.prompt for w in (self.everyone or self.who)]

    def all(self, value: Tensor) -> Tensor:
        """Values of the whole batch, over all processes."""
        return value if self.gather is None else self.gather(value)

    def mine(self, everything: Tensor) -> Tensor:
        """This process's part of a tensor over the whole batch."""
        return everything[self.first : self.first + len(self.who)]

    @property
    def processes(self) -> float:
        """What a sum over the batch must be multiplied by, since gradients are averaged over processes."""
        return len(self.prompts) / len(self.who)

    def std(self, step: int) -> float:
        """The standard deviation of a sampling step, counted from 0."""
        return step_std(self.grid[step], self.grid[step + 1], self._eta(step), self.law)

    def kernel(self, prediction: Prediction, step: int) -> Transition:
        """What a sampling step draws from, given the prediction of where it begins."""
        return transition(prediction, self.grid[step], self.grid[step + 1], self._eta(step), self.law)

    def _eta(self, step: int) -> float:
        return self.etas[step] if self.etas else self.eta

    def average(self, name: str, network: Denoise) -> Denoise:
        """A network under an average of the trained weights, without gradients; under the weights as they are where the run
        keeps no average of that name."""
        on = self.averages.get(name, nullcontext)

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with torch.no_grad(), on():
                return network(x, t, rows)

        return denoise

    def noise(self, step: int, purpose: str = "noise") -> Tensor:
        """Keyed noise (b, ...) of a sampling step."""
        return self.noise_of(self.who, step, purpose)

    def noise_of(self, who: Sequence[rng.Identity], step: int, purpose: str) -> Tensor:
        """The same of others, of the whole batch."""
        return rng.normal(who, 1, self.shape, step, purpose)[:, 0].to(self.device, self.dtype)

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


class Losses(Protocol):
    """What a training loop asks of an objective."""

    @property
    def name(self) -> str: ...

    @property
    def updates_several(self) -> bool:
        """Whether a training step makes more than one update: the loop then keeps a copy to undo them by."""
        ...

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]: ...


class BaseObjective:
    """An objective: a frozen dataclass that turns a batch into losses. One of its own derives from this, declares its settings
    as fields (see `tilting.declare`), is registered by `OBJECTIVES.register`, and says what else of this is not so.

    Attributes:
        name: what the command line, YAML and manifests call it.
        paper: where it comes from; further ones after a semicolon.
        needs_gradient: whether the reward must be differentiable.
        through: what the reward's gradient goes through, for people.
        needs_critic: whether it trains an estimate of the reward beside the model.
        group_size: images of one prompt that must stand together in a batch (1 if it does not matter).
        takes_teacher: whether it learns from other LoRAs.
        takes_pairs: whether it learns from preference pairs that are given, in place of a reward.
    """

    name: str = ""
    paper: str = ""
    needs_gradient: bool = False
    through: str = ""
    needs_critic: bool = False
    group_size: int = 1
    takes_teacher: bool = False
    takes_pairs: bool = False

    def __post_init__(self) -> None:
        check_fields(self, f"{self.name}.")

    def averages(self) -> dict[str, Callable[[int], float]]:
        """Averages of the trained weights that it learns from, by name: the decay after so many training steps."""
        return {}

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        raise NotImplementedError

    @property
    def updates_several(self) -> bool:
        """Whether a training step makes more than one update: the loop then keeps a copy to undo them by."""
        return False

    @property
    def splits(self) -> bool:
        """Whether its loss is a mean over images, each by itself, and a step makes one update: parts of a batch then give it
        one after the other. Of another the networks alone see parts, and it sees the whole batch."""
        return self.needs_gradient and not self.updates_several

    @property
    def needs_density(self) -> bool:
        """Whether steps must have a density, which those of a deterministic chain have not."""
        return False

    @property
    def default_eta(self) -> float:
        """eta of the sampler unless told."""
        return 0.0 if self.needs_gradient and not self.needs_density else 1.0

    def check_chain(self, eta: float, steps: int) -> None:
        """Refuse a chain that it cannot learn from. Raises TiltingError."""
        if self.needs_density:
            check_density(self.name, eta, steps)

    def latents_kept(self, steps: int) -> int:
        """Latents that an image's path leaves."""
        return steps + 1

    @property
    def graphs_at_once(self) -> int:
        """Graphs of a step and its reward that are held at once."""
        return 1


OBJECTIVES: Registry[type[BaseObjective]] = Registry("objective", "tilting.objectives")
"""The objectives by name, other packages' too."""


def check_density(who: str, eta: float, steps: int) -> None:
    """Refuse a chain without densities, which ``who`` asks for. Raises TiltingError."""
    if eta == 0:
        raise TiltingError(f"{who} needs eta above 0 (1 is usual): a deterministic chain has no density")
    if steps == 1:
        raise TiltingError(f"{who} needs at least 2 steps: the last one has no density")


def closed(batch: TrainBatch) -> Tensor:
    """(T,) the mask of a rollout in which no step carries gradient."""
    return torch.zeros(batch.steps, dtype=torch.bool, device="cpu")
