"""Adjoint matching and the KL-regularised draft (eta = 1, memoryless) on the mixture, where the tilt is closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tilting.objectives import adjoint, draft
from tilting.objectives.rollout import rollout
from tilting.oracle.control import Chain, drift_error, solve, tilt
from tilting.oracle.plane import AIM, BASE, energy_distance
from tilting.schedule import transition
from tilting_papers.ctrl.learned import batch_of, learn

BETA = 0.5
ORIGIN = torch.zeros(1, 2, dtype=torch.float64)


def reward(x):
    """-|x - aim|² / 2 over β: its tilt of a mixture is a mixture."""
    return -0.5 * (x - AIM).square().sum(-1) / BETA


def closed_form(count, seed):
    return BASE.tilt(AIM / BETA, 1 / BETA)[0].draw(count, torch.Generator().manual_seed(seed))


def test_gaussian_steps_reach_the_closed_form_as_t_grows():
    """The chain's own optimum: to the tilt of the same chain, and to the mixture's closed form, nearer with T. The constant
    E[exp r] of the chain, found on a grid, tends to the mixture's."""
    known = BASE.tilt(AIM / BETA, 1 / BETA)[1] - 0.5 * AIM.square().sum() / BETA
    exact, found, off = closed_form(3000, 0), {}, {}
    null = abs(energy_distance(closed_form(1500, 1), exact))
    for steps in (6, 24):
        chain = Chain(steps)
        best = solve(chain, reward, 27)
        x = chain.draw(1500, 7, best).end
        same = energy_distance(x, tilt(chain, lambda d: reward(d.end), 1500, 100, 10))
        found[steps], off[steps] = energy_distance(x, exact), abs(best.log_h(ORIGIN).item() - known.item())
        print(
            f"T {steps}: g* to the chain's tilt {same:.4f}, to the closed form {found[steps]:.4f}; two exact draws {null:.4f}"
        )
        if steps == 24:
            assert same < 0.01
    assert found[24] < 0.5 * found[6]
    assert found[24] < 0.012
    assert off[24] < 0.4 * off[6]


class Spline(torch.autograd.Function):
    """A `Surface` with its slope."""

    @staticmethod
    def forward(ctx, x, surface):
        ctx.save_for_backward(x)
        ctx.surface = surface
        return surface(x)

    @staticmethod
    def backward(ctx, grad):
        x, y = (column.numpy() for column in ctx.saved_tensors[0].T)
        slope = [torch.from_numpy(ctx.surface.spline.ev(x, y, **{d: 1})) for d in ("dx", "dy")]
        return grad[:, None] * torch.stack(slope, 1), None


class Near(nn.Module):
    """A share of g*'s push, and six features of (x, x0, t) whose weights are 0: the ways in which a gradient could lead off."""

    def __init__(self, chain, best, share):
        super().__init__()
        self.chain, self.best, self.share = chain, best, share
        self.weights = nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))

    def forward(self, x, x0, t, y):
        i = self.chain.grid.index(t)
        s = self.chain.grid[i + 1]
        unit = s.alpha / s.sigma * math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)  # Δmean / std of a push of 1
        push = torch.stack([Spline.apply(x, surface) for surface in self.best.controls[i]], 1) * self.share / unit
        seen = [torch.ones_like(x[:, 0]), *x.T, *x0.tanh().T, t.alpha * x0[:, 0]]
        return push + torch.stack(seen, 1) @ self.weights


@pytest.mark.parametrize("name", ["adjoint", "draft"])
def test_at_g_star_the_gradient_vanishes(name):
    """Neither objective is biased, at any T: g*, found by dynamic programming and without either, is where their gradients are
    0, within the error of 16,000 paths; four fifths of it is not."""
    chain = Chain(6)
    best, objective = solve(chain, reward, 31), adjoint(beta=1.0) if name == "adjoint" else draft(kl=1.0)

    def gradient(share):
        found = []
        for step in range(8):
            push = Near(chain, best, share)
            for loss in objective(batch_of(chain, push, lambda x, y: reward(x), (0.0,), 2000, 0, step)):
                loss.value.backward()
            found.append(push.weights.grad.flatten())
        found = torch.stack(found)
        return found.mean(0), found.std(0) / math.sqrt(8)

    (at, error), (off, _), (start, _) = (gradient(share) for share in (1.0, 0.8, 0.0))
    print(f"{name}: {at.norm():.3f} at g* (error {error.norm():.3f}), {off.norm():.3f} at .8 g*, {start.norm():.3f} at 0")
    assert (at.abs() < 5 * error + 0.01 * start.norm()).all()
    assert at.norm() < 0.04 * start.norm()
    assert off.norm() > 3 * at.norm()


@pytest.mark.parametrize("name", ["adjoint", "draft"])
def test_the_learnt_law_is_the_tilt_of_the_same_chain(name):
    """Both objectives end where the best Gaussian steps do: in law, in drift and in nats; KL is 0 at first."""
    chain, numbers = Chain(6), []
    # draft: reward in its own units and β of the KL beside it; adjoint: β divides the reward. Both the same tilt.
    objective = adjoint(beta=BETA) if name == "adjoint" else draft(kl=BETA)
    control = learn(chain, objective, lambda x, y: BETA * reward(x), 300, labels=(0.0,), see=numbers.append)(0.0)
    assert numbers[0]["kl"] == 0.0
    best = solve(chain, reward, 31)
    exact = [chain.draw(4000, 70 + k, best).end for k in range(3)]
    null = max(abs(energy_distance(exact[i], exact[j])) for i, j in ((0, 1), (1, 2), (0, 2)))
    drawn, ideal = chain.draw(2000, 7, control), chain.draw(2000, 7, best)
    far = sum(energy_distance(chain.draw(4000, 80 + k, control).end, e) for k, e in enumerate(exact)) / 3
    short = ((reward(ideal.end) - ideal.kl) - (reward(drawn.end) - drawn.kl)).mean().item()
    error = drift_error(chain, control, best, 1000, 8)
    tilted = tilt(chain, lambda d: reward(d.end), 2000, 100, 10)
    print(f"{name}: D² to g*'s law {far:.4f}, null {null:.4f}; drift off by {error:.3f}, {short:.4f} nats short")
    assert far < max(2 * null, 0.003)
    assert short < 0.015
    assert error < 0.12
    assert energy_distance(drawn.end, tilted) < 1.3 * energy_distance(ideal.end, tilted) + 0.003


def test_the_lean_adjoint_is_the_gradient_along_the_frozen_chain():
    """At initialisation the loss's gradient in a step's push is 2 ã std · ∂u: against finite differences of the reward of the
    frozen chain started from each state, its noise held."""
    from tilting_papers.ctrl.learned import Push

    chain, push = Chain(4), Push(8)
    world = batch_of(chain, push, lambda x, y: reward(x), (0.0,), 3, 0, 0)
    path = rollout(world, torch.zeros(4, dtype=torch.bool), kl=True)

    def rest(x, i):
        for k in range(i, 4):
            t, s = chain.grid[k], chain.grid[k + 1]
            step = transition(world.base(x, t, world.rows), t, s, 1.0)
            x = step.mean + step.std * world.noise(k + 1)
        return reward(x)

    expected = 0.0
    for i in range(3):
        point = path.points[i]
        std = transition(world.base(point.x, point.t, world.rows), point.t, point.s, 1.0).std
        slope = torch.stack(
            [
                (rest(point.drawn + 1e-5 * e, i + 1) - rest(point.drawn - 1e-5 * e, i + 1)) / 2e-5
                for e in torch.eye(2, dtype=torch.float64)
            ],
            1,
        )
        expected = expected + (std * slope).square().sum(1).mean()
    losses = list(adjoint(beta=1.0)(world))
    assert sum(loss.value.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-6)
