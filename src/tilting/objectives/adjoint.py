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

import torch
from torch import Tensor

from tilting.objectives.batch import Loss, World
from tilting.objectives.rollout import Path, density_steps, rollout
from tilting.schedule import transition
from tilting.types import TiltingError


@dataclass(frozen=True)
class AdjointMatching:
    """The objective.

    Attributes:
        beta: temperature of the tilt, in the reward's units.
        share: of the steps whose loss is taken, drawn afresh in every training step (1 is all of them).
        clip: largest rms of an adjoint per image, or None; a bound costs exactness.
        name: of the objective.
    """

    beta: float = 0.05
    share: float = 1.0
    clip: float | None = None
    name: str = "adjoint"
    needs_gradient = True
    several = False
    group = 1

    def __call__(self, world: World) -> Iterator[Loss]:
        steps = density_steps(world)
        if not steps:
            raise TiltingError("adjoint matching needs eta > 0 (1, to be exact) and at least 2 steps")
        with torch.no_grad():
            closed = torch.zeros(world.steps, dtype=torch.bool, device="cpu")
            path = rollout(world, closed, kl=True)  # the last step is the base's own
        value, adjoints, means = self.adjoints(world, path)
        count = max(1, round(self.share * len(steps)))
        order = torch.randperm(len(steps), generator=world.generator("steps"), device="cpu")
        chosen = [steps[i] for i in order[:count].tolist()]
        for n, i in enumerate(chosen):
            point = path.points[i]
            kernel = transition(world.denoise(point.x, point.t, world.rows), point.t, point.s, world.eta)
            off = (kernel.mean - means[i]) / kernel.std + kernel.std * adjoints[i]
            loss = off.flatten(1).square().sum(1).mean() * (len(steps) / count)
            numbers = {"reward": value.mean().item()} if n == 0 else {}
            with torch.no_grad():
                far = (kernel.mean - means[i]).flatten(1).square().sum(1) / (2 * kernel.std**2)
                numbers["kl"] = far.mean().item() * len(steps)  # numbers of a training step are averaged: this is the path's
            yield Loss(loss, numbers, update=n == len(chosen) - 1)

    def adjoints(self, world: World, path: Path) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """The reward (b,) of a path's end, and by step ã_s and the frozen model's mean, (b, ...) both."""
        with torch.enable_grad():
            clean = path.clean.detach().requires_grad_(True)
            value = world.value(clean, world.rows)
            adjoint = -torch.autograd.grad(value.sum(), clean)[0] / self.beta
        adjoints: dict[int, Tensor] = {}
        means: dict[int, Tensor] = {}
        for i in reversed(range(world.steps)):
            adjoints[i] = adjoint
            point = path.points[i]
            with torch.enable_grad():
                x = point.x.clone().requires_grad_(True)
                mean = transition(world.base(x, point.t, world.rows), point.t, point.s, world.eta).mean
                adjoint = torch.autograd.grad(mean, x, adjoint)[0]
            means[i] = mean.detach()
            if self.clip is not None:
                size = adjoint.flatten(1).square().mean(1).sqrt().clamp(min=1e-12)
                adjoint = adjoint * (self.clip / size).clamp(max=1).reshape(-1, *[1] * (adjoint.dim() - 1))
        return value.detach(), adjoints, means
