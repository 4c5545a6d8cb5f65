"""SMC against the same chain's tilt: constant, its posterior, its rate in N; and that tilt against the closed form.

The same chain is simulated a second time in support/tilt.py, by the textbook posterior q(x_s | x_t, x_0) written out, and
its draws weighted with exp(r/β): 100,000 of them. Comparisons of laws use n = 2,000 particles; T = 20 unless said.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from support.tilt import BETA, SLOPE, STEPS, chain, plane, reward, tilted_chain
from tilting import presets, rng, weights
from tilting.oracle.mixture import MixtureModel
from tilting.sample import Every, Method, Problem, finish, sample
from tilting.schedule import Schedule, scaled_linear
from tilting.select import Smc


def smc(particles: int, repeats: int, share: float = 0.5, block: int = 2, seed: int = 0, steps: int = STEPS):
    """(repeats,) log Z, (repeats, 2) means, (repeats, 2, 2) second moments, and how often each run resampled."""
    model = MixtureModel(plane())
    who = [rng.Identity(seed, "smc", i) for i in range(repeats)]
    problem = Problem(model.denoiser(), model.schedule.grid(steps), who, (2,), reward, 1.0, 1.0, 10**6, dtype=torch.float64)
    method = Method("smc", particles, select=Smc(BETA, share), select_when=Every(block), final="all")
    resampled, state = 0, None
    for state, info in sample(problem, method):  # noqa: B007
        resampled += info.parents is not None
    end = finish(problem, method, state)
    w = weights.normalise(end.log_w)
    second = torch.einsum("rn,rni,rnj->rij", w, end.x, end.x)
    return weights.log_mean(end.log_w), torch.einsum("rn,rni->ri", w, end.x), second, resampled


def test_constant_and_posterior_equal_the_tilt_of_the_same_chain():
    """n = 2,000, T = 20, 8 repeats: their mean is within 5 of its own standard errors, which are themselves small."""
    log_z, mean, second = tilted_chain(STEPS)
    found_z, found_mean, found_second, resampled = smc(2000, 8)
    assert resampled >= 1
    for found, expected, small in (
        (found_z.exp() / math.exp(log_z), torch.ones(()), 0.02),
        (found_mean, mean, 0.03),
        (found_second, second, 0.05),
    ):
        error = found.std(0) / math.sqrt(8)
        assert (error < small).all()
        assert ((found.mean(0) - expected).abs() < 5 * error + 0.006).all()
    # It has power: the untilted chain, a mean at β 30 % off and a constant at β 5 % off are all outside these bounds.
    x, error = chain(STEPS), found_mean.std(0) / math.sqrt(8)
    for wrong in (x.mean(0), weights.normalise(reward(x, None) / (1.3 * BETA)) @ x):
        assert ((found_mean.mean(0) - wrong).abs() > 5 * error + 0.006).any()
    wrong = (found_z - weights.log_mean(reward(x, None) / (1.05 * BETA))).exp()
    assert abs(wrong.mean() - 1) > 5 * wrong.std() / math.sqrt(8) + 0.006


@pytest.mark.parametrize(("share", "block"), [(0.0, 2), (1.01, 1)])
def test_the_constant_is_unbiased_however_often_it_resamples(share, block):
    """Never, or at every draw: E[Z^] = Z for any N (N = 16, 400 repeats)."""
    log_z, _, _ = tilted_chain(STEPS)
    z = (smc(16, 400, share, block)[0] - log_z).exp()
    assert abs(z.mean().item() - 1) < 5 * z.std().item() / 20
    assert z.std().item() / 20 < 0.06


def test_errors_fall_as_one_over_the_root_of_n():
    log_z, mean, _ = tilted_chain(STEPS)
    sizes = (16, 64, 256)
    z_error, mean_error = [], []
    for n in sizes:
        found_z, found_mean, _, _ = smc(n, 100, seed=n)
        z_error.append((found_z - log_z).exp().sub(1).square().mean().sqrt().item())
        mean_error.append((found_mean - mean).square().sum(1).mean().sqrt().item())
    for errors in (z_error, mean_error):
        rate = math.log(errors[0] / errors[-1]) / math.log(sizes[-1] / sizes[0])
        assert 0.33 < rate < 0.72, errors
        assert errors[0] > errors[1] > errors[2]


def test_the_tilt_of_the_chain_converges_to_the_closed_form():
    """50,000 weighted draws of the chain at T = 10, 40, 160 against Mixture.tilt: the bias of few steps, and how it goes."""
    tilted, log_z = plane().tilt(SLOPE / BETA)
    expected = (tilted.weights[:, None] * tilted.means).sum(0)
    errors = {}
    for steps in (10, 40, 160):
        found_z, found_mean, _ = tilted_chain(steps, 50_000)
        errors[steps] = abs(math.exp(found_z - log_z.item()) - 1) + (found_mean - expected).norm().item()
    assert errors[10] > 2 * errors[40] > 4 * errors[160], errors
    assert errors[160] < 0.1, errors


OTHERS = {
    "flow": Schedule("flow", shift=3.0),
    "stable-diffusion": Schedule("epsilon", scaled_linear(), 0.99915, "leading", 1),  # whose last step has noise of its own
}


@cache
def other_chain(kind: str, eta: float, steps: int, count: int = 200_000) -> torch.Tensor:
    """Draws of another schedule's chain, x_s written as its conditional given x_0 and the noise that x_t implies."""
    mixture, grid = plane(), OTHERS[kind].grid(steps)
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        x0 = mixture.tweedie(x, t)
        a = t.alpha / s.alpha
        std = eta * s.sigma * math.sqrt(t.sigma**2 - a**2 * s.sigma**2) / t.sigma
        x = s.alpha * x0 + math.sqrt(s.sigma**2 - std**2) * (x - t.alpha * x0) / t.sigma
        x = x + std * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


@pytest.mark.parametrize(
    ("name", "kind", "eta"),
    [
        ("tds", "flow", 1.0),
        ("tds", "flow", 0.7),
        ("tds", "stable-diffusion", 0.7),
        ("das", "flow", 0.7),
        ("das", "stable-diffusion", 1.0),
        ("fk", "flow", 0.7),
    ],
)
def test_densities_are_right_for_flow_for_part_of_the_noise_and_for_a_noisy_last_step(name, kind, eta):
    """E[Z^ f^] = Z E*[f] at N = 16 (250 runs), f = 1 and both coordinates: with a wrong density it is not."""
    x, steps = other_chain(kind, eta, 8), 8
    log_z, w = weights.log_mean(reward(x, None) / BETA), weights.normalise(reward(x, None) / BETA)
    preset = {"tds": presets.tds(16, BETA), "das": presets.das(16, BETA), "fk": presets.fk(16, 1 / BETA, "difference", 2)}[name]
    who = [rng.Identity(3, "other", i) for i in range(250)]
    denoise, grid = MixtureModel(plane()).denoiser(), OTHERS[kind].grid(steps)
    problem = Problem(denoise, grid, who, (2,), reward, eta, 1.0, 10**6, dtype=torch.float64)
    method = replace(preset.build(steps), final="all")
    *_, (state, _) = sample(problem, method)
    end = finish(problem, method, state)
    z = (weights.log_mean(end.log_w) - log_z).exp()
    means = torch.einsum("rn,rni->ri", weights.normalise(end.log_w), end.x)
    found, wanted = torch.cat([z[:, None], z[:, None] * means], 1), torch.cat([torch.ones(1), w @ x])
    own = torch.cat([torch.zeros(1), (w.square() @ (x - w @ x).square()).sqrt()])  # of the draws compared with
    error = (found.var(0) / 250 + own.square() + 0.005**2).sqrt()  # Z of 200,000 draws is within half a percent
    print(f"{name} {kind} eta {eta}: distances in standard errors {((found.mean(0) - wanted) / error).tolist()}")
    assert ((found.mean(0) - wanted).abs() < 4.5 * error).all()
    assert ((found.mean(0) - x.mean(0)[[0, 0, 1]]).abs()[1:] > 4.5 * error[1:]).any()  # the untilted chain would be seen
