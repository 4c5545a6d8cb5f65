"""CTRL on the analytic mixture, where p_γ is known: Theorem 1's law, KL 0 at the start, the labels' draw, the units of γ."""

from __future__ import annotations

import pytest
import torch
from test_finetune import ZERO, moved
from torch import nn

from tilting.conditioning.train import Ctrl, draw_labels, effective_gamma
from tilting.finetune.loop import Optimiser, Training, train
from tilting.finetune.rollout import rollout
from tilting.finetune.truncate import Truncation
from tilting.finetune.world import World
from tilting.models.mixture import MixtureModel
from tilting.rng import Identity
from tilting.types import Prediction

STEPS = 16
AIM = torch.tensor([1.2, -0.8], dtype=torch.float64)


def log_classifier(x, y):
    """log p(y | x) of a logistic classifier with a known boundary: log sigmoid(±(⟨a, x⟩ + .3))."""
    return torch.nn.functional.logsigmoid((2 * y - 1) * (x @ AIM + 0.3))


class Drift(nn.Module):
    """A push of x0 that knows (x, t, y); zero at first."""

    def __init__(self, width=48):
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Sequential(nn.Linear(5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()).double()
        self.last = nn.Linear(width, 2).double()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x, t, y):
        here = torch.tensor([t.alpha, t.sigma], dtype=x.dtype).expand(len(x), 2)
        return self.last(self.inner(torch.cat([x, here, y[:, None]], 1)))


def make(mixture, net, gamma, images, step, y=None, checkpointed=False):
    base = MixtureModel(mixture, ZERO).denoiser()
    y = (
        draw_labels({"y": (2, (0, 0))}, images, 0, step)["y"].double()
        if y is None
        else torch.full((images,), float(y)).double()
    )

    def denoise(x, t, rows):
        eps, x0, c = base(x, t, rows)
        push = net(x, t, y[rows])
        return Prediction(eps - t.alpha * push, x0 + t.sigma * push, c)

    who = [Identity(0, f"y{int(v)}", step * images + i) for i, v in enumerate(y)]
    return World(
        denoise, base, denoise, base, lambda x0, rows: gamma * log_classifier(x0, y[rows]), ZERO.grid(STEPS), who, (2,), 1.0,
        step, 0, dtype=torch.float64, checkpointed=checkpointed,
    )  # fmt: skip


def energy_distance(x, y):
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def base_draws(mixture, count, seed):
    world = make(mixture, Drift(), 1.0, count, seed + 10_000)
    with torch.no_grad():
        return rollout(world, torch.zeros(STEPS, dtype=torch.bool)).clean


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_the_trained_sampler_draws_p_gamma(mixture, gamma):
    """Theorem 1: for both labels 2,000 draws lie an eighth or less as far from importance-weighted draws of the same chain
    as the base model's do (what is left is the optimiser's and the 16 steps'), and their mean p(y | x) has come two thirds
    or more of the way to theirs."""
    net = Drift()
    optimiser = Optimiser(rate=5e-3, weight_decay=0.0, clip=10.0)
    training = Training(dict(net.named_parameters()), optimiser.build(list(net.parameters())))
    objective = Ctrl(gamma, Truncation("all")).objective()
    steps = 220
    for report in train(training, objective, lambda k, memory: make(mixture, net, gamma, 192, k), optimiser, steps):
        if report.step == 1:
            assert report.numbers["kl"] == 0.0
        optimiser_rate = 5e-3 * (1 - report.step / steps)
        object.__setattr__(optimiser, "rate", max(optimiser_rate, 1e-4))  # a falling rate, to land on the optimum
    n = 2000
    pool = base_draws(mixture, 40_000, 0)
    for y in (0, 1):
        weights = (gamma * log_classifier(pool, torch.full((len(pool),), float(y)))).softmax(0)
        gen = torch.Generator().manual_seed(y)
        exact = [pool[torch.multinomial(weights, n, replacement=True, generator=gen)] for _ in range(6)]
        null = max(energy_distance(exact[i], exact[i + 1]) for i in range(5))
        with torch.no_grad():
            mine = rollout(make(mixture, net, gamma, n, 77_777, y), torch.zeros(STEPS, dtype=torch.bool)).clean
        far = sum(energy_distance(mine, e) for e in exact) / 6
        start = sum(energy_distance(pool[:n], e) for e in exact) / 6
        print(f"gamma {gamma} y {y}: trained {far:.4f}, base {start:.4f}, two exact draws {null:.4f}")
        assert far < 0.12 * start + 3 * null
        share = (log_classifier(mine, torch.full((n,), float(y))).exp()).mean()
        wanted = (weights * log_classifier(pool, torch.full((len(pool),), float(y))).exp()).sum()
        begun = log_classifier(pool, torch.full((len(pool),), float(y))).exp().mean()
        assert (share - wanted).abs() < 0.35 * (begun - wanted).abs()


def test_more_gamma_means_more_of_the_label_and_more_kl(mixture):
    """One training step's gradient: γ scales the reward's part alone."""
    net = moved(Drift())
    found = []
    for gamma in (1.0, 3.0):
        net.zero_grad()
        world = make(mixture, net, gamma, 32, 0)
        next(iter(Ctrl(gamma, Truncation("all"), kl_weight=1e-9).objective()(world))).value.backward()
        found.append(net.last.bias.grad.clone())
    assert torch.allclose(found[1], 3 * found[0], rtol=1e-6)


def test_the_units_of_gamma():
    assert effective_gamma(0.1, 0.01, 16_384, mean=True) == pytest.approx(163_840)
    assert effective_gamma(10, 1, 768, mean=False) == 10


def test_labels_are_drawn_evenly_and_keyed():
    schemas = {"a": (4, (0.0, 0.0)), "b": (None, (-2.0, 2.0))}
    first = draw_labels(schemas, 8, 0, 3)
    assert first["a"].long().bincount(minlength=4).tolist() == [2, 2, 2, 2]
    assert torch.equal(first["b"], draw_labels(schemas, 8, 0, 3)["b"])
    assert not torch.equal(first["b"], draw_labels(schemas, 8, 0, 4)["b"])
    many = draw_labels(schemas, 4000, 0, 5)["b"]
    assert many.min() >= -2
    assert many.max() <= 2
    assert abs(many.mean()) < 0.1
