"""Deterministic policy gradient (Silver et al. 2014) as Clark et al. 2024 try it, C.2: sampling as a policy, a critic for what
it will be worth.

    state s_t = (x_t, t, c),   action a_t = eps_θ(x_t, t, c),   next state x_s = f(x_t, a_t), the sampler's own step
    Q_φ(s_t, a_t) = r_φ(x̂_0(x_s)),   x̂_0(x_s) = (x_s - σ_s eps_θ(x_s, s, c)) / α_s          Eq. 3 (whose α, σ are those of s)
    θ:  ∇_a Q_φ · ∇_θ eps_θ(x_t)          φ:  (Q_φ(s_t, a_t) - r(x_0))²,   averaged over the steps of a trajectory

r_φ is the reward with a LoRA of its own; θ in x̂_0 is held. A step moves x_s by the action alone, so that ∇_a Q ∇_θ a is
∇_{x_s} Q ∇_θ x_s: written so, there is nothing to divide by where α_t = 0. With the exact return in Q's place the sum over
steps is full DRaFT's gradient on the deterministic chain; with r itself and the last step alone it is DRaFT-1's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tilting.objectives.batch import Loss, World
from tilting.objectives.rollout import Path, rollout
from tilting.schedule import transition


@dataclass(frozen=True)
class Dpg:
    """DPG. Where the world has no critic (a reward without a network), r itself is the critic and nothing of it is trained.

    Attributes:
        last: only the last m steps are learned from (the remedy C.2 names for poor returns of noisy states); None is all.
        count: steps of a trajectory that are learned from, drawn afresh in every training step; None is all of them.
        name: of the objective.
    """

    last: int | None = None
    count: int | None = None
    name: str = "dpg"
    needs_gradient = True
    several = False
    group = 1

    def __call__(self, world: World) -> Iterator[Loss]:
        with torch.no_grad():
            path = rollout(world, torch.zeros(world.steps, dtype=torch.bool, device="cpu"))
            value = world.value(path.clean, world.rows)
        if not world.all(value).isfinite().all():
            raise FloatingPointError("the reward is not finite")
        chosen = self._steps(world)
        for n, i in enumerate(chosen):
            policy, critic = self._step(world, path, i, value)
            numbers = {"critic_error": critic.item() ** 0.5}
            if n == 0:
                numbers["reward"] = value.mean().item()
            loss = policy if not critic.requires_grad else policy + critic
            yield Loss(loss / len(chosen), numbers, update=n == len(chosen) - 1)

    def _steps(self, world: World) -> list[int]:
        first = world.steps - min(self.last or world.steps, world.steps)
        order = torch.randperm(world.steps - first, generator=world.generator("steps"), device="cpu") + first
        return order[: self.count].tolist()

    def _step(self, world: World, path: Path, i: int, value: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of θ, loss of φ) of one step. The first one's value is -mean Q."""
        point, critic = path.points[i], world.critic or world.value
        drawn = point.drawn.clone().requires_grad_(True)
        clean = self.ahead(world, drawn, i + 1)
        worth = critic(clean, world.rows)
        slope = torch.autograd.grad(worth.sum(), drawn)[0]
        kernel = transition(world.denoise(point.x, point.t, world.rows), point.t, point.s, world.eta)
        policy = -(slope * (kernel.mean - kernel.mean.detach())).flatten(1).sum(1).mean() - worth.detach().mean()
        if world.critic is None:
            return policy, (worth.detach() - value).square().mean()
        return policy, (world.critic(clean.detach(), world.rows) - value).square().mean()

    def ahead(self, world: World, x: Tensor, i: int) -> Tensor:
        """x̂_0 of the state at grid point i, differentiable in it; the last state is what is decoded."""
        return x if i == world.steps else world.denoise(x, world.grid[i], world.rows).x0
