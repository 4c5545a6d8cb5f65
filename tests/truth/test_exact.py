"""Weighted particles are exact: against importance-weighted draws of the same T-step chain (support/tilt.py).

TDS, DAS in each tempering and FK with each potential: expectations, their rate in N, normalising constants; and that chain's
tilt against the closed form as T grows. Figures are printed: ``pytest -rP``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from support.tilt import BETA, SLOPE, chain, curved_plane, end_of, plane, problem, reward
from tilting import presets, rng, weights
from tilting.oracle import plane as exact_plane
from tilting.oracle.mixture import MixtureModel
from tilting.sample import sample, start
from tilting.schedule import transition

STEPS = 8
GENTLE = 1.0
"""β for FK steering: under a stronger tilt its max and sum potentials leave few particles any weight."""

WEIGHTED = {  # name -> (preset, β)
    "tds": (presets.tds(beta=BETA), BETA),
    "das": (presets.das(beta=BETA, ess_threshold=0.9), BETA),
    "das-slow": (presets.das(beta=BETA, temper=0.05, ess_threshold=0.9), BETA),
    "das-adaptive": (presets.das(beta=BETA, adaptive=True, ess_threshold=0.9), BETA),
    "fk-difference": (presets.fk(strength=1 / GENTLE, potential="difference", block=2), GENTLE),
    "fk-max": (presets.fk(strength=1 / GENTLE, potential="max", block=2), GENTLE),
    "fk-sum": (presets.fk(strength=1 / GENTLE, potential="sum", block=2), GENTLE),
}


def features(x: torch.Tensor) -> torch.Tensor:
    """(..., 8) functions whose expectations are compared: both moments, and the share of every component."""
    a, b = x[..., 0], x[..., 1]
    share = plane().log_responsibilities(x.reshape(-1, 2)).softmax(1).reshape(*x.shape[:-1], 3)
    return torch.cat([torch.stack([a, b, a * a, a * b, b * b], -1), share], -1)


@cache
def truth(beta: float, steps: int = STEPS, count: int = 400_000):
    """log Z of the chain's tilt; expectations of `features` under it, the error of those, and their standard deviations."""
    x = chain(steps, count)
    log_w, f = reward(x, None) / beta, features(x)
    w = weights.normalise(log_w)
    mean = w @ f
    spread = (w @ (f - mean).square()).sqrt()
    return weights.log_mean(log_w).item(), mean, (w.square() @ (f - mean).square()).sqrt(), spread


def particles(name: str, count: int, repeats: int, seed: int = 0, steps: int = STEPS):
    """(repeats,) estimates of Z / Z_true, and (repeats, 8) of the expectations."""
    preset, beta = WEIGHTED[name]
    method = replace(preset.build(steps), particles=count, final="all")
    end = end_of(problem(plane(), steps, repeats, seed=seed), method)
    estimate = torch.einsum("rn,rnf->rf", weights.normalise(end.log_w), features(end.x))
    return (weights.log_mean(end.log_w) - truth(beta, steps)[0]).exp(), estimate


# Weighted particles


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_particles_are_the_tilt_of_the_same_chain(name):
    """2,000 particles, five times: their mean is within 5 of its standard errors, and those would see β 30 % off."""
    beta, repeats = WEIGHTED[name][1], 5
    _, expected, uncertain, _ = truth(beta)
    _, found = particles(name, 2000, repeats)
    error = (found.var(0) / repeats + uncertain.square()).sqrt()
    away = (found.mean(0) - expected).abs() / error
    print(f"{name}: distances from the truth in standard errors {[round(v, 1) for v in away.tolist()]}")
    assert (away < 6).all()
    assert ((found.mean(0) - truth(1e9)[1]).abs() / error).max() > 8  # no tilt at all would be seen,
    if name != "fk-sum":  # whose few heavy particles see no more than that,
        assert ((found.mean(0) - truth(1.3 * beta)[1]).abs() / error).max() > 8  # and another β


@pytest.mark.parametrize("name", WEIGHTED)
def test_normalising_constants_are_unbiased(name):
    """E[Z^] = Z for any N, here 16, however the weights are tempered and the particles resampled (300 runs)."""
    z, _ = particles(name, 16, 300, seed=5)
    error = z.std().item() / math.sqrt(300)
    print(f"{name}: Z^/Z = {z.mean():.3f} ± {error:.3f}")
    assert abs(z.mean().item() - 1) < 4.5 * error
    assert error < 0.1


@pytest.mark.parametrize("gamma", [0.05, 0.3])
def test_the_push_of_das_is_tempered_as_the_paper_has_it(gamma):
    """Each draw is the base kernel's plus std² λ_{i+1} / β ∇_{x_t} r(x0), λ_i = min((1 + γ)^i - 1, 1)."""
    p = problem(plane(), STEPS, 3, curved_plane)
    method = replace(presets.das(2, beta=BETA, temper=gamma, ess_threshold=0.0).build(STEPS), final="all")
    before, model, pushed = start(p, method).x, MixtureModel(plane()), 0.0
    for i, (state, _) in enumerate(sample(p, method)):
        t, s = p.grid[i], p.grid[i + 1]
        x = before.flatten(0, 1).requires_grad_(True)
        x0 = plane().tweedie(x, t)
        (g,) = torch.autograd.grad(curved_plane(x0, None).sum(), x)
        step = transition(model.denoiser()(x.detach(), t, torch.zeros(6)), t, s, 1.0)
        level = min((1 + gamma) ** (i + 1) - 1, 1.0)
        expected = (
            step.mean + step.std**2 * level / BETA * g + step.std * rng.normal(p.who, 2, (2,), i + 1).double().flatten(0, 1)
        )
        assert torch.allclose(state.x.flatten(0, 1), expected, atol=1e-10)
        pushed, before = max(pushed, (step.std**2 * g).abs().max().item()), state.x
    assert pushed > 0.05


SIZES = {16: 160, 64: 80, 256: 40, 1024: 10}


@pytest.mark.parametrize("name", ["tds", "das", "das-adaptive"])
def test_errors_fall_as_one_over_the_root_of_n(name):
    """The slope of log rms error against log N, fit over 16 ... 1024 particles; its own error from bootstrapped runs."""
    _, expected, _, spread = truth(WEIGHTED[name][1])
    squares = [((particles(name, n, runs, seed=n)[1] - expected) / spread).square().mean(1) for n, runs in SIZES.items()]
    logs = torch.tensor(list(SIZES), dtype=torch.float64).log()
    centred = logs - logs.mean()

    def fit(means: torch.Tensor) -> torch.Tensor:
        return (means.log() / 2) @ centred / centred.square().sum()

    slope = fit(torch.stack([s.mean() for s in squares])).item()
    g = torch.Generator().manual_seed(0)
    again = torch.stack([s[torch.randint(len(s), (500, len(s)), generator=g)].mean(1) for s in squares], 1)
    error = fit(again).std().item()
    errors = {n: round(s.mean().sqrt().item(), 4) for n, s in zip(SIZES, squares, strict=True)}
    print(f"{name}: rms error by N {errors}, slope {slope:.3f} ± {error:.3f}")
    assert error < 0.06
    assert abs(slope + 0.5) < 4 * error


@cache
def closed_form(count: int = 400_000):
    """Expectations of `features` under Mixture.tilt, and their standard deviations, by draws of it."""
    f = features(plane().tilt(SLOPE / BETA)[0].draw(count, torch.Generator().manual_seed(0)))
    return f.mean(0), f.std(0)


def test_the_tilt_of_the_chain_reaches_the_closed_form_as_steps_grow():
    """Expectations under importance-weighted draws of the chain against those under Mixture.tilt: the error falls at every
    doubling of T, towards order one (about .7 over these few steps)."""
    log_z = plane().tilt(SLOPE / BETA)[1]
    (expected, spread), lengths, errors = closed_form(), (5, 10, 20, 40), []
    for steps in lengths:
        found_z, found, _, _ = truth(BETA, steps, 60_000)
        errors.append(((found - expected) / spread).norm().item() + abs(math.expm1(found_z - log_z.item())))
    rate = math.log(errors[0] / errors[-1]) / math.log(lengths[-1] / lengths[0])
    print(f"chain's tilt to the closed form: error by T {dict(zip(lengths, errors, strict=True))}, order {rate:.2f}")
    assert all(a > 1.4 * b for a, b in itertools.pairwise(errors))
    assert 0.55 < rate < 1.3


@pytest.mark.parametrize("name", ["tds", "das"])
def test_weighted_particles_reach_the_closed_form_as_steps_grow(name):
    """600 particles: as far from it as the chain's own tilt is, which is 4 times farther at T = 4 than at T = 40."""
    (expected, spread), away = closed_form(), []
    for steps in (4, 40):
        found = particles(name, 600, 1, steps=steps)[1][0]
        away.append(((found - expected) / spread).norm().item())
    print(f"{name}: distance from the closed form at T = 4, 40: {away}")
    assert away[0] > 2.5 * away[1]
    assert away[1] < 0.35


# The command that prints the table


def test_the_table_compares_with_the_same_draws_and_the_right_distance():
    """D² by loops over pairs that leave out a draw's distance to itself; the recipe's exact draws against this file's."""
    x, y = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (5, 7))

    def mean(a, b, skip):
        terms = [math.dist(p, q) for i, p in enumerate(a.tolist()) for j, q in enumerate(b.tolist()) if not (skip and i == j)]
        return sum(terms) / len(terms)

    by_hand = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert exact_plane.energy_distance(x, y) == pytest.approx(by_hand, rel=1e-9)
    mine = chain(20, 240_000)
    w = weights.normalise(exact_plane.reward(mine) / exact_plane.BETA)
    theirs = exact_plane.exact(20, 4000, seed=3)
    wanted, spread = w @ mine, (w @ (mine - w @ mine).square()).sqrt()
    error = spread * math.sqrt(1 / 4000 + w.square().sum())
    assert ((theirs.mean(0) - wanted).abs() < 4.5 * error).all()
    assert ((theirs.mean(0) - mine.mean(0)).abs() > 20 * error).any()
