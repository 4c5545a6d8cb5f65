"""The oracle itself, against quadrature and autograd: nothing else may lean on it before this holds."""

from __future__ import annotations

import math

import pytest
import torch

from tilting.oracle.mixture import Mixture, MixtureModel
from tilting.schedule import Schedule
from tilting.types import Time

TIMES = [Time(0.0, 0.999, math.sqrt(1 - 0.999**2)), Time(1.0, 0.8, 0.6), Time(2.0, 0.1, math.sqrt(0.99)), Time(3.0, 0.4, 0.6)]


@pytest.fixture
def line() -> Mixture:
    """One-dimensional, for quadrature."""
    return Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.4], [[-1.0], [1.5]], [0.3, 0.7])))


def normal(x: torch.Tensor, mean: torch.Tensor | float, var: torch.Tensor | float) -> torch.Tensor:
    var = torch.as_tensor(var, dtype=torch.float64)
    return torch.exp(-0.5 * (x - mean) ** 2 / var) / torch.sqrt(2 * math.pi * var)


def density(line: Mixture, x: torch.Tensor) -> torch.Tensor:
    return sum(w * normal(x, m, s**2) for w, m, s in zip(line.weights, line.means[:, 0], line.stds, strict=True))


NODES = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
STEP = 24 / 48_000


@pytest.mark.parametrize("t", TIMES)
def test_density_and_tweedie_equal_quadrature(line, t):
    x = torch.tensor([-2.0, -0.3, 0.1, 0.9, 3.0], dtype=torch.float64)
    joint = density(line, NODES) * normal(x[:, None], t.alpha * NODES, t.sigma**2)
    total = joint.sum(1) * STEP
    assert torch.allclose(line.log_density(x[:, None], t.alpha, t.sigma), total.log(), atol=1e-8)
    assert torch.allclose(line.tweedie(x[:, None], t)[:, 0], (joint * NODES).sum(1) * STEP / total, atol=1e-8)


@pytest.mark.parametrize("t", TIMES)
def test_tweedie_is_the_score(mixture, t):
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    (score,) = torch.autograd.grad(mixture.log_density(x, t.alpha, t.sigma).sum(), x)
    assert torch.allclose(mixture.tweedie(x, t), (x + t.sigma**2 * score) / t.alpha, atol=1e-9)
    prediction = MixtureModel(mixture).denoiser()(x.detach(), t, torch.zeros(16, dtype=torch.long))
    assert torch.allclose(prediction.eps, -t.sigma * score, atol=1e-9)
    assert torch.allclose(t.alpha * prediction.x0 + t.sigma * prediction.eps, x, atol=1e-12)
    assert torch.equal(prediction.correction, torch.zeros_like(x))


def test_from_pure_noise_the_estimate_is_the_mean(mixture):
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prediction = MixtureModel(mixture).denoiser()(x, Time(999.0, 0.0, 1.0), torch.zeros(5, dtype=torch.long))
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    assert torch.allclose(prediction.x0, mean.expand(5, 2), atol=1e-12)
    assert torch.allclose(prediction.eps, x)


def test_guidance_mixes_the_two_scores(mixture):
    reference = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.0, 0.0]], [1.2])))
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t, rows = TIMES[1], torch.zeros(8, dtype=torch.long)
    cond, uncond = (MixtureModel(m).denoiser()(x, t, rows).eps for m in (mixture, reference))
    guided = MixtureModel(mixture).denoiser(reference, cfg=2.5)(x, t, rows)
    assert torch.allclose(guided.correction, cond - uncond, atol=1e-12)
    assert torch.allclose(guided.eps, uncond + 2.5 * (cond - uncond), atol=1e-12)
    assert torch.allclose(guided.x0, (x - t.sigma * guided.eps) / t.alpha, atol=1e-12)


@pytest.mark.parametrize(("slope", "curvature"), [(0.0, 0.0), (1.3, 0.0), (-0.7, 2.0), (0.0, 0.5), (0.4, -0.8)])
def test_tilt_equals_quadrature(line, slope, curvature):
    tilted, log_z = line.tilt(torch.tensor([slope], dtype=torch.float64), curvature)
    unnormalised = density(line, NODES) * torch.exp(slope * NODES - curvature / 2 * NODES**2)
    z = unnormalised.sum() * STEP
    assert log_z.item() == pytest.approx(z.log().item(), abs=1e-9)
    assert torch.allclose(tilted.log_density(NODES[::100, None]).exp(), unnormalised[::100] / z, atol=1e-9)
    assert tilted.weights.sum().item() == pytest.approx(1, abs=1e-12)


def test_tilt_in_the_plane_equals_importance_weighted_draws(mixture):
    slope, curvature, n = torch.tensor([0.8, -0.5], dtype=torch.float64), 0.6, 200_000
    tilted, log_z = mixture.tilt(slope, curvature)
    x = mixture.draw(n, torch.Generator().manual_seed(0))
    w = (x @ slope - curvature / 2 * x.square().sum(1)).exp()
    z = w.mean()
    assert abs((z / log_z.exp() - 1).item()) < 5 * (w.std() / z).item() / math.sqrt(n)
    mean = (w[:, None] * x).mean(0) / z
    expected = (tilted.weights[:, None] * tilted.means).sum(0)
    error = (w[:, None] * (x - mean) / z).std(0) / math.sqrt(n)
    assert ((mean - expected).abs() < 5 * error).all()


def test_draws_have_the_mixtures_moments(mixture):
    n = 200_000
    x = mixture.draw(n, torch.Generator().manual_seed(1))
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    second = torch.einsum("k,ki,kj->ij", mixture.weights, mixture.means, mixture.means)
    cov = second + (mixture.weights * mixture.stds**2).sum() * torch.eye(2, dtype=torch.float64) - torch.outer(mean, mean)
    assert ((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / n).sqrt()).all()
    assert (x.T.cov() - cov).abs().max() < 5 * 3 * cov.max().item() / math.sqrt(n)


def test_the_default_schedule_ends_in_noise(mixture):
    grid = MixtureModel(mixture).schedule.grid(10)
    assert (grid[0].alpha, grid[0].sigma) == (0.0, 1.0)
    assert MixtureModel(mixture, Schedule("flow")).schedule.grid(4)[2] == Time(500.0, 0.5, 0.5)
