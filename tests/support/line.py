"""A model of one line, its chain and its reward written out once more, which losses of objectives are held against."""

from __future__ import annotations

import math

import pytest
import torch

from tilting.objectives.batch import TrainBatch
from tilting.rng import Identity
from tilting.schedule import Schedule
from tilting.types import Prediction

SHAPE, T = (1, 2), 4
AIM = torch.tensor([0.7, -0.4], dtype=torch.float64).reshape(SHAPE)


def new_theta() -> torch.Tensor:
    return torch.tensor([0.3, -0.2], dtype=torch.float64).reshape(SHAPE).requires_grad_(True)


def x0_of(x, t, rows, push):
    """x_0 that a network with a push says of x, another of every image."""
    which = rows.reshape(-1, 1, 1)
    return 0.5 * x + (0.5 + t.sigma) * (1 + 0.2 * which) * push + 0.05 * which


def network(push, calls=None):
    def denoise(x, t, rows):
        if calls is not None:
            calls.append(len(x))
        x0 = x0_of(x, t, rows, push)
        return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.zeros_like(x))

    return denoise


def reward(x0, rows):
    return (x0 * AIM).flatten(1).sum(1) - 0.2 * x0.flatten(1).square().sum(1) + 0.1 * rows


def world(theta, prompts="aabb", steps=T, eta=1.0, kind="flow", alpha_bar=False, **options) -> TrainBatch:
    who = [Identity(7, prompt, i) for i, prompt in enumerate(prompts)]
    schedule = Schedule("v_prediction", (0.97, 0.8, 0.5, 0.2, 0.05)) if alpha_bar else Schedule("flow")
    made = {"denoise": network(theta), "base": network(0 * theta.detach()), "plain": network(2 * theta)}
    made |= {"base_plain": network(torch.full_like(theta, -0.1)), "value": reward, "trained": [theta], "seed": 3, "step": 5}
    grid = schedule.grid(steps)
    return TrainBatch(
        **{**made, "grid": grid, "who": who, "shape": SHAPE, "eta": eta, "kind": kind, "dtype": torch.float64, **options}
    )


def step(x0, eps, t, s, eta):
    a = t.alpha / s.alpha
    std = eta * s.sigma * math.sqrt(max(t.sigma**2 - a**2 * s.sigma**2, 0.0)) / t.sigma
    return s.alpha * x0 + math.sqrt(max(s.sigma**2 - std**2, 0.0)) * eps, std


def said(x, t, rows, push):
    x0 = x0_of(x, t, rows, push)
    return x0, (x - t.alpha * x0) / t.sigma


def chain(batch, push, opened=None, base_last=False, upto=None):
    """[(x_t, mean, std, x_s)] of every step by these lines alone; a closed step holds eps."""
    x, out, rows = batch.noise(0), [], torch.arange(len(batch.who))
    for i in range(batch.steps if upto is None else upto):
        t, s = batch.grid[i], batch.grid[i + 1]
        last = i == batch.steps - 1
        x0, eps = said(x, t, rows, 0 * push if last and base_last else push)
        if opened is not None and not opened[i]:
            eps = eps.detach()
            x0 = (x - t.sigma * eps) / t.alpha if t.alpha > 0 else x0.detach()
        mean, std = step(x0, eps, t, s, batch.etas[i] if batch.etas else batch.eta)
        drawn = mean + (std * batch.noise(i + 1) if std > 0 else 0.0)
        out.append((x, mean, std, drawn))
        x = drawn
    return out


def slope(value, theta):
    return torch.autograd.grad(value, theta, retain_graph=True)[0]


def alike(losses, wanted, theta):
    """The sum of losses and its slope are those of ``wanted``."""
    total = sum(loss.value for loss in losses)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-9, abs=1e-12)
    assert torch.allclose(slope(total, theta), slope(wanted, theta), rtol=1e-7, atol=1e-10)


def updates(losses) -> list[bool]:
    return [loss.update for loss in losses]


def kl_of(batch, x, i, mean, std):
    """(b,) KL of a step to the frozen model's at the same x."""
    t, s, rows = batch.grid[i], batch.grid[i + 1], batch.rows
    other = step(*said(x, t, rows, torch.zeros(SHAPE, dtype=torch.float64)), t, s, batch.eta)[0]
    return (mean - other).flatten(1).square().sum(1) / (2 * std**2)


def log_density(x, mean, std, reduce):
    terms = -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    return getattr(terms.flatten(1), reduce)(1)


def standard(value, groups):
    out = torch.zeros_like(value)
    for rows in groups:
        out[rows] = (value[rows] - value[rows].mean()) / (value[rows].std(unbiased=False) + 1e-8)
    return out


def error_of(push, point):
    """(m,) of u = eps - x0, which a flow's network says."""
    x0, eps = said(point.x, point.t, point.rows, push)
    return ((eps - x0) - (point.noise - point.clean)).flatten(1).square().mean(1)
