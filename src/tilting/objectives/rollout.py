"""The differentiable rollout x_T ... x_0, with gradients in the steps of a mask.

    x_s = mean(x_t, eps_θ(x_t)) + std z_s,   z keyed, so that a re-run is the same path

Open steps may be checkpointed: their activations are made again on the way back (`recompute`). Path KL to the frozen model,
per image:

    KL = Σ_t |mean_θ - mean_base|² / (2 std²)        summed over latent dimensions and the steps whose std is positive

Where the KL is asked for, a step of std 0 (the last) is the frozen model's own: nothing would price leaving it, and the
reward would be climbed there for ever. Of a network in half precision the KL has a floor of rounding as soon as the two differ
at all, in bf16 one that can outweigh what a few steps of training change; before the first update it is 0 in any precision.

The log-density of a step is known where it is drawn, and costs no evaluation there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from tilting.lazy import torch
from tilting.objectives.batch import TrainBatch
from tilting.objectives.recompute import recomputed
from tilting.schedule import log_prob
from tilting.types import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Denoise, Time, Transition

Reduction = Literal["sum", "mean"]


class Point(NamedTuple):
    """A step of a path: from x_t to the x_s that was drawn."""

    x: Tensor
    t: Time
    s: Time
    drawn: Tensor


@dataclass(frozen=True)
class Path:
    """What a rollout leaves.

    Attributes:
        clean: (b, ...) x_0, in the graph where steps were open.
        points: every step, detached.
        kl: (b,) path KL over the open steps, in the graph, or None if it was not asked for.
        densities: by step, log of the density of what was drawn (b,), of closed steps that have one; empty if not asked for.
        frozen: by step, the frozen model's mean (b, ...) of closed steps that have a density; empty if not asked for.
        paid: by step of ``frozen``, its KL (b,) to the frozen model's.
        means: by step, the mean (b, ...) that was drawn around, of closed steps that have a density; empty if not asked for.
    """

    clean: Tensor
    points: tuple[Point, ...]
    kl: Tensor | None
    densities: dict[int, Tensor] = field(default_factory=dict)
    frozen: dict[int, Tensor] = field(default_factory=dict)
    paid: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)


def freeze_eps(prediction: Prediction, x: Tensor, t: Time) -> Prediction:
    """The prediction with eps constant and x0 the linear function of x that eps makes it."""
    eps = prediction.eps.detach()
    x0 = (x - t.sigma * eps) / t.alpha if t.alpha > 0 else prediction.x0.detach()
    return Prediction(eps, x0, prediction.correction.detach())


def rollout(
    batch: TrainBatch,
    mask: Tensor,
    x: Tensor | None = None,
    kl: bool = False,
    stop: int | None = None,
    density: Reduction | None = None,
    frozen: bool = False,
    means: bool = False,
    start: int = 0,
) -> Path:
    """Sample, with gradients through the steps where ``mask`` is True.

    Args:
        batch: the batch.
        mask: (T,) booleans.
        x: where to start; default keyed noise.
        start: the step that ``x`` is the beginning of; ``points`` begins there.
        kl: also the path KL to the frozen model, which then makes the steps that have no density.
        stop: make only the first ``stop`` steps; ``clean`` is then the state reached.
        density: also the log-densities of the steps that ``mask`` closes, reduced so over latent dimensions.
        frozen: also the frozen model's means of those steps, and what they pay in KL.
        means: also their own means.
    """
    x = batch.noise(0) if x is None else x
    rows, points, densities, middles, bases, paid = batch.rows, [], {}, {}, {}, {}
    total = x.new_zeros(len(x)) if kl else None
    for i in range(start, batch.steps if stop is None else stop):
        t, random = batch.grid[i], batch.std(i) > 0
        noise = batch.noise(i + 1) if random else 0.0
        denoise = batch.base if kl and not random else batch.denoise

        def step(
            x: Tensor, i: int = i, t: Time = t, noise: Tensor | float = noise, denoise: Denoise = denoise
        ) -> tuple[Tensor, ...]:
            kernel = batch.kernel(denoise(x, t, rows), i)
            drawn = kernel.mean + kernel.std * noise
            return (drawn, _step_kl(batch, kernel, x, i)) if kl else (drawn,)

        if mask[i]:
            again = batch.checkpointed and torch.is_grad_enabled()
            drawn, *cost = recomputed(step, x, batch.trained) if again else step(x)
            total = None if total is None else total + cost[0]
        else:
            with torch.no_grad():
                prediction = denoise(x, t, rows)
            kernel = batch.kernel(freeze_eps(prediction, x, t) if x.requires_grad else prediction, i)
            drawn = kernel.mean + kernel.std * noise
            if density is not None and random:
                densities[i] = log_prob(drawn, kernel, density).detach()
            if means and random:
                middles[i] = kernel.mean.detach()
            if frozen and random:
                with torch.no_grad():
                    bases[i] = batch.kernel(batch.base(x, t, rows), i).mean
                    paid[i] = mean_kl(kernel, bases[i])
        points.append(Point(x.detach(), t, batch.grid[i + 1], drawn.detach()))
        x = drawn
    return Path(x, tuple(points), total, densities, bases, paid, middles)


def _step_kl(batch: TrainBatch, kernel: Transition, x: Tensor, i: int) -> Tensor:
    """KL of step i to the frozen model's, (b,), a function of x too; 0 where the step has no density."""
    if kernel.std == 0:
        return x.new_zeros(len(x))
    return mean_kl(kernel, batch.kernel(batch.base(x, batch.grid[i], batch.rows), i).mean)


def mean_kl(kernel: Transition, mean: Tensor) -> Tensor:
    """KL (b,) in nats of a step, whose std is positive, to one of the same std and another mean (b, ...)."""
    return (kernel.mean - mean).flatten(1).square().sum(1) / (2 * kernel.std**2)


def density_steps(batch: TrainBatch) -> list[int]:
    """Steps that have a density: all but those with std 0, the last among them."""
    return [i for i in range(batch.steps) if batch.std(i) > 0]
