"""Controls of the plane's chain that are learnt, and those of inference: what `ctrl-theory` compares with the optimum.

The augmented model is a small network of (x_t, x0, t, y), zero at first, that pushes the pre-trained prediction in v,
eps' = eps - α_t f, x0' = x0 + σ_t f: Δmean / std = f α_s sqrt(v) / σ_s stays of one size over the whole chain. It sees the
frozen model's x0 as a LoRA sees the frozen network's features. It is trained by the package's own objectives and loop.

f is a function of (α_t, σ_t) whatever T, so the first half of the training steps is made on a chain of T / 4 steps, at a
quarter of the cost. What kept trained laws short of g*'s was neither the network (which fits Lemma 2's drift closely) nor the
objective (its gradient at g* is 0) but a rate too small for noisy gradients: Adam divides by the noise, so steps shrink with
it, and a control that starts at 0 ends too weak. At a rate that is high enough the end is noisy: the weights are the mean of
those after each of the last steps (Polyak and Juditsky 1992). Batches are antithetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from tilting import rng
from tilting.method import Method
from tilting.objectives.batch import Losses, TrainBatch
from tilting.oracle.control import Chain, Control, shift
from tilting.sample import Problem, finish, sample
from tilting.training.loop import Optimiser, TrainState, train
from tilting.types import Denoise, Prediction, Time

AVERAGED = 0.2
"""Of the training steps, the last, whose weights are averaged."""
LabelledReward = Callable[[Tensor, Tensor], Tensor]
"""(x_0 (m, 2), y (m,)) -> (m,): γ log p(y | x_0), or any reward over β."""


class Push(nn.Module):
    """f(x_t, x0, t, y), (m, 2); zero at first.

    Args:
        width: of its hidden layers.
        seed: of its first weights.
    """

    def __init__(self, width: int = 64, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            layers = [nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
            self.inner, self.last = nn.Sequential(*layers).double(), nn.Linear(width, 2).double()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, x0: Tensor, t: Time, y: Tensor) -> Tensor:
        here = x.new_tensor([t.alpha, t.sigma, 0.5 * math.log((t.alpha + 0.01) / t.sigma)]).expand(len(x), 3)
        return self.last(self.inner(torch.cat([x, x0, here, 2 * y[:, None] - 1], 1)))


def pushed(base: Denoise, push: Push, y: Tensor | float) -> Denoise:
    """The augmented model of a frozen one as a denoiser, for labels y (one, or one of each row)."""

    def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        eps, x0, correction = base(x, t, rows)
        labels = y[rows] if isinstance(y, Tensor) else x.new_full((len(x),), y)
        f = push(x, x0, t, labels)
        return Prediction(eps - t.alpha * f, x0 + t.sigma * f, correction)

    return denoise


def remembered(denoise: Denoise) -> Denoise:
    """A denoiser that keeps its last prediction: the path KL asks the frozen model what the trained one has just asked it."""
    last: list[tuple[Tensor, Time, bool, Prediction]] = []

    def remembering(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        graph = x.requires_grad and torch.is_grad_enabled()
        if not last or last[0][0] is not x or last[0][1] != t or last[0][2] != graph:
            last[:] = [(x, t, graph, denoise(x, t, rows))]
        return last[0][3]

    return remembering


@dataclass(frozen=True)
class Plane(TrainBatch):
    """A batch on the plane: noise of a whole batch is drawn at once, by one generator; the second half is the first negated."""

    def noise(self, step: int, purpose: str = "noise") -> Tensor:
        generator = rng.generator(self.who[0], 0, step, purpose)
        half = torch.randn(-(-len(self.who) // 2), *self.shape, generator=generator, dtype=self.dtype)
        return torch.cat([half, -half])[: len(self.who)]


@dataclass(frozen=True)
class Falling(Optimiser):
    """A learning rate that rises for 20 steps and then falls to almost nothing in a straight line, to land on the optimum."""

    steps: int = 400

    def at(self, step: int) -> float:
        return self.rate * min(1.0, (step + 1) / 20) * max(1 - step / self.steps, 2e-3)


def batch_of(
    chain: Chain, push: Push, terminal: LabelledReward, labels: Sequence[float], images: int, seed: int, step: int
) -> TrainBatch:
    """A training batch: every label as often as any other."""
    y = torch.tensor(labels, dtype=torch.float64).repeat(-(-images // len(labels)))[:images]
    base = remembered(chain.denoise)
    denoise = pushed(base, push, y)
    who = [rng.Identity(seed, "plane", step)] * images
    return Plane(
        denoise,
        base,
        denoise,
        base,
        lambda x0, rows: terminal(x0, y[rows]),
        chain.grid,
        who,
        (2,),
        chain.eta,
        step,
        seed,
        dtype=torch.float64,
        checkpointed=False,
    )


def learn(
    chain: Chain,
    objective: Losses,
    terminal: LabelledReward,
    steps: int,
    labels: Sequence[float] = (0.0, 1.0),
    images: int = 1024,
    seed: int = 0,
    rate: float = 2e-2,
    width: int = 64,
    fine: int = 1,
    see: Callable[[dict[str, float]], None] | None = None,
) -> Callable[[float], Control]:
    """Train the augmented model, the first half of the steps on a chain of T / 4 steps (no fewer than 6).

    Args:
        chain: what is fine-tuned.
        objective: of `tilting.objectives`.
        terminal: the reward in nats.
        steps: training steps.
        labels: values of y.
        images: of a batch.
        seed: of weights and noise.
        rate: Adam's, at its highest.
        width: of the network.
        fine: so many times the images in the second half.
        see: takes the numbers of every training step.

    Returns:
        label -> the learnt control.
    """
    push = Push(width, seed)
    coarse = replace(chain, steps=min(chain.steps, max(6, chain.steps // 4)))
    optimiser = Falling(rate=rate, weight_decay=0.0, clip=10.0, steps=steps)
    means = torch.optim.swa_utils.AveragedModel(push)
    state = TrainState(dict(push.named_parameters()), optimiser.build(list(push.parameters())))

    def world_of(k: int, memory: object) -> TrainBatch:
        first = k < steps // 2
        return batch_of(coarse if first else chain, push, terminal, labels, images if first else fine * images, seed, k)

    for k, report in enumerate(train(state, objective, world_of, optimiser, steps)):
        if k >= (1 - AVERAGED) * steps:
            means.update_parameters(push)
        if see is not None:
            see(report.numbers)
    mean = cast(Push, means.module.requires_grad_(False))
    return lambda y: shift(chain, pushed(chain.denoise, mean, y))


def guided(chain: Chain, method: Method, terminal: Callable[[Tensor], Tensor], count: int, seed: int) -> Tensor:
    """Draws (count, 2) of a method of inference whose value is ``terminal`` of the estimate x0."""
    who = [rng.Identity(seed, "plane", i) for i in range(count)]
    problem = Problem(
        chain.denoise, chain.grid, who, (2,), lambda x0, rows: terminal(x0), 1.0, chain.eta, 10**6, dtype=torch.float64
    )
    state = None
    for state, _ in sample(problem, replace(method, final="first")):  # noqa: B007
        pass
    assert state is not None
    return finish(problem, method, state).x[:, 0]
