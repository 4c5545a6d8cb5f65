"""Deterministic policy gradient (Silver et al. 2014) as in Clark et al. 2024, C.2: sampling as a policy, with a learned critic.

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
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from typing_extensions import Doc

from tilting.lazy import torch
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.rollout import Path, rollout

if TYPE_CHECKING:
    from torch import Tensor


@OBJECTIVES.register
@dataclass(frozen=True)
class Dpg(BaseObjective):
    """Deterministic policy gradient with the reward, adapted by a LoRA of its own, as critic.

        x_T .. x_0 = a chain, without gradients;  R = r(decode(x_0))
        for each step t of those chosen:
            Q = r_φ(x̂_0(x_s)),  x̂_0 by θ, held
            loss_θ = -⟨∇_{x_s} Q, step_θ(x_t)⟩
            loss_φ = (r_φ(x̂_0(x_s)) - R)²
        θ, φ <- AdamW(mean over the steps of ∇ (loss_θ + loss_φ))

    Where the batch has no critic (a reward without a network), r itself is the critic and nothing of it is trained.
    """

    name, paper, through = "dpg", "Clark et al. 2024, C.2", "of the reward"
    needs_gradient = needs_critic = True

    last: Annotated[
        int | None,
        Ge(1),
        Doc("only the last m steps are learned from (the remedy C.2 names for poor returns of noisy states); None is all"),
    ] = None
    count: Annotated[
        int | None,
        Ge(1),
        Doc("steps of a trajectory that are learned from, drawn afresh in every training step; None is all of them"),
    ] = None

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        with torch.no_grad():
            path = rollout(batch, closed(batch))
            value = batch.value(path.clean, batch.rows)
        if not batch.all(value).isfinite().all():
            raise FloatingPointError("the reward is not finite")
        chosen = self._steps(batch)
        for n, i in enumerate(chosen):
            policy, critic = self._step(batch, path, i, value)
            numbers = {"critic_error": critic.item() ** 0.5}
            if n == 0:
                numbers["reward"] = value.mean().item()
            loss = policy if not critic.requires_grad else policy + critic
            yield Loss(loss / len(chosen), numbers, update=n == len(chosen) - 1)

    def _steps(self, batch: TrainBatch) -> list[int]:
        first = batch.steps - min(self.last or batch.steps, batch.steps)
        order = torch.randperm(batch.steps - first, generator=batch.generator("steps"), device="cpu") + first
        return order[: self.count].tolist()

    def _step(self, batch: TrainBatch, path: Path, i: int, value: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of θ, loss of φ) of one step. The first one's value is -mean Q."""
        point, critic = path.points[i], batch.critic or batch.value
        drawn = point.drawn.clone().requires_grad_(True)
        clean = self.ahead(batch, drawn, i + 1)
        worth = critic(clean, batch.rows)
        slope = torch.autograd.grad(worth.sum(), drawn)[0]
        kernel = batch.kernel(batch.denoise(point.x, point.t, batch.rows), i)
        policy = -(slope * (kernel.mean - kernel.mean.detach())).flatten(1).sum(1).mean() - worth.detach().mean()
        if batch.critic is None:
            return policy, (worth.detach() - value).square().mean()
        return policy, (batch.critic(clean.detach(), batch.rows) - value).square().mean()

    def ahead(self, batch: TrainBatch, x: Tensor, i: int) -> Tensor:
        """x̂_0 of the state at grid point i, differentiable in it; the last state is what is decoded."""
        return x if i == batch.steps else batch.denoise(x, batch.grid[i], batch.rows).x0
