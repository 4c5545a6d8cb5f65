"""Adjoint matching (Domingo-Enrich et al. 2024, arXiv 2409.08861): regression onto the gradient of the value, for the exact
tilt.

    ã_0 = -∇r(x_0) / β,   ã_t = (∂ mean_base(x_t) / ∂ x_t)ᵀ ã_s         the lean adjoint, along a path of the current model
    loss = Σ_t | (mean_θ(x_t) - mean_base(x_t)) / std + std ã_s |²       ã and x_t held constant

KL-regularised control from a random x_T carries a value-function bias V(0, x_T) unless the schedule is memoryless: eta = 1
with ᾱ_T = 0. Then the optimum is p* as T grows. The last step (std 0) is the base's own and is left out; its Jacobian is in
the adjoint. The frozen model is evaluated once a step: its mean and its Jacobian are of the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt, Le
from typing_extensions import Doc

from tilting.declare import Alias
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.rollout import Path, density_steps, mean_kl, rollout

if TYPE_CHECKING:
    from torch import Tensor


@OBJECTIVES.register
@dataclass(frozen=True)
class AdjointMatching(BaseObjective):
    """Adjoint matching: the exact tilt, on a memoryless schedule.

        x_T .. x_0 = a chain of θ, without gradients; its last step is the base model's
        ã = -∇r(decode(x_0)) / β
        for s = 0 .. T - 1, t = s + 1:
            ã_s = ã;  ã = (∂ mean_base(x_t) / ∂ x_t)ᵀ ã
        for each step t of those chosen:
            loss += |(mean_θ(x_t) - mean_base(x_t)) / std_t + std_t ã_s|²
        θ <- AdamW(∇_θ mean loss)

    Exact where x_0 forgets x_T (eta 1, ᾱ_T = 0) as T grows. The last step (std 0) is left out, its Jacobian is not.
    """

    name, paper, through = "adjoint", "Domingo-Enrich et al. 2024", "of the reward"
    needs_gradient = True

    beta: Annotated[float, Gt(0), Doc("temperature of the tilt, in the reward's units")] = 0.05
    step_fraction: Annotated[
        float,
        Gt(0),
        Le(1),
        Alias("share"),
        Doc("of the steps whose loss is taken, drawn afresh in every training step (1 is all of them)"),
    ] = 1.0
    clip: Annotated[float | None, Gt(0), Doc("largest rms of an adjoint per image, or None; a bound costs exactness")] = None

    @property
    def needs_density(self) -> bool:
        return True

    def latents_kept(self, steps: int) -> int:
        return 3 * steps + 1  # states, adjoints, and the frozen model's means

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        steps = density_steps(batch)
        if not steps:
            raise TiltingError("adjoint matching needs eta > 0 (1, to be exact) and at least 2 steps")
        with torch.no_grad():
            path = rollout(batch, closed(batch), kl=True)  # the last step is the base's own
        value, adjoints, means = self.adjoints(batch, path)
        count = max(1, round(self.step_fraction * len(steps)))
        order = torch.randperm(len(steps), generator=batch.generator("steps"), device="cpu")
        chosen = [steps[i] for i in order[:count].tolist()]
        for n, i in enumerate(chosen):
            point = path.points[i]
            kernel = batch.kernel(batch.denoise(point.x, point.t, batch.rows), i)
            off = (kernel.mean - means[i]) / kernel.std + kernel.std * adjoints[i]
            loss = off.flatten(1).square().sum(1).mean() * (len(steps) / count)
            numbers = {"reward": value.mean().item()} if n == 0 else {}
            with torch.no_grad():
                # numbers of a training step are averaged: this is the path's
                numbers["kl"] = mean_kl(kernel, means[i]).mean().item() * len(steps)
            yield Loss(loss, numbers, update=n == len(chosen) - 1)

    def adjoints(self, batch: TrainBatch, path: Path) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """The reward (b,) of a path's end, and by step ã_s and the frozen model's mean, (b, ...) both."""
        with torch.enable_grad():
            clean = path.clean.detach().requires_grad_(True)
            value = batch.value(clean, batch.rows)
            adjoint = -torch.autograd.grad(value.sum(), clean)[0] / self.beta
        adjoints: dict[int, Tensor] = {}
        means: dict[int, Tensor] = {}
        for i in reversed(range(batch.steps)):
            adjoints[i] = adjoint
            point = path.points[i]
            with torch.enable_grad():
                x = point.x.clone().requires_grad_(True)
                mean = batch.kernel(batch.base(x, point.t, batch.rows), i).mean
                adjoint = torch.autograd.grad(mean, x, adjoint)[0]
            means[i] = mean.detach()
            if self.clip is not None:
                size = adjoint.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
                adjoint = adjoint * (self.clip / size).clamp(max=1).reshape(-1, *[1] * (adjoint.dim() - 1))
        return value.detach(), adjoints, means
