"""Guidance: what is exact for it, against closed forms; and that what is not exact, is not.

- Reconstruction guidance for a Gaussian base and a linear reward: the guided and the base chain of the same noise differ by a
  constant, so its error is free of Monte-Carlo noise and its order in T is seen plainly.
- Classifier guidance with h(x_t) = E[exp(r / β) | x_t]: the mixture and its tilt, both noised, give log h up to a constant.
- DPS and its kin on the mixture: the energy distance to the chain's tilt is several times that of two exact samples.

Figures are printed: ``pytest -rP``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from support.chains import DIFFUSION, FLOW, REFERENCE, energy_distance
from support.tilt import BETA, CURVATURE, SLOPE, chain, curved_plane, end_of, plane, problem, reward
from tilting import presets, weights
from tilting.guidance.kernel import Score
from tilting.guidance.value_and_grad import GradientContext, ValueAndGrad
from tilting.method import ALWAYS, Method
from tilting.oracle.mixture import Mixture, MixtureModel
from tilting.schedule import Schedule, scaled_linear
from tilting.types import Prediction

# Reconstruction guidance


GAUSSIAN = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.4, -0.7]], [0.8])))
LENGTHS = (10, 20, 40, 80, 160)


def order(errors: list[float], lengths: tuple[int, ...] = LENGTHS) -> float:
    """Of convergence in 1/T, by least squares."""
    n, e = torch.tensor(lengths, dtype=torch.float64).log(), torch.tensor(errors, dtype=torch.float64).log()
    return (-((n - n.mean()) * (e - e.mean())).sum() / (n - n.mean()).square().sum()).item()


def moved(steps: int, schedule: Schedule, eta: float, value, strength: float, form: str = "score") -> torch.Tensor:
    """(4, 2): guided minus base x_0 of the same noise, four images."""
    p = problem(GAUSSIAN, steps, 4, value, schedule, eta=eta)
    guided = presets.dps(strength, rule="plain", form=form).build(steps)
    return (end_of(p, guided).x - end_of(p, presets.base().build(steps)).x)[:, 0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
def test_reconstruction_guidance_is_exact_for_a_gaussian_and_a_linear_reward(schedule, eta):
    """N(μ, s²) tilted by exp(⟨a, x⟩/β) is N(μ + s² a/β, s²): every sample moves by s² a/β, up to order 1/T at eta 0. At eta 1
    each step's mean is exact and only x_T, where guidance has nothing to say, leaves an error: of order 1/T²."""
    wanted, errors = 0.8**2 * SLOPE / BETA, []
    for steps in LENGTHS:
        shift = moved(steps, schedule, eta, reward, 1 / BETA)
        assert (shift - shift[0]).abs().max() < 1e-9  # the law keeps the base chain's covariance exactly
        errors.append((shift[0] - wanted).norm().item())
    print(f"eta {eta}: error of the mean by T {dict(zip(LENGTHS, errors, strict=True))}, order {order(errors):.2f}")
    expected = 2 if eta else 1
    assert 0.9 * expected < order(errors) < 1.15 * expected
    assert errors[-1] < 0.03 * wanted.norm()
    wrong = moved(160, schedule, eta, reward, 1.2 / BETA)[0]
    assert (wrong - wanted).norm() > 5 * errors[-1]  # the strength must be 1/β


def covariance(steps: int, schedule: Schedule, eta: float) -> float:
    """Variance of each coordinate of the chain from N(0, I), by the affine recursion of its conditional means."""
    variance, s2 = 1.0, 0.8**2
    grid = schedule.grid(steps)
    for t, s in itertools.pairwise(grid):
        gain = t.alpha * s2 / (t.alpha**2 * s2 + t.sigma**2)
        a = t.alpha / s.alpha
        std2 = eta**2 * s.sigma**2 * (t.sigma**2 - a**2 * s.sigma**2) / t.sigma**2
        slope = s.alpha * gain + math.sqrt(max(s.sigma**2 - std2, 0)) * (1 - t.alpha * gain) / t.sigma
        variance = slope**2 * variance + std2
    return variance


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_covariance_under_guidance_is_that_of_the_tilt(eta):
    """The recursion tends to s² with order one; 2,000 guided samples have its variance and no correlation."""
    lengths = (125, 250, 500, 1000)
    errors = [abs(covariance(n, DIFFUSION, eta) / 0.8**2 - 1) for n in lengths]
    found = order(errors, lengths)
    print(f"eta {eta}: relative error of the variance by T {dict(zip(lengths, errors, strict=True))}, order {found:.2f}")
    assert 0.8 < found < 1.2
    assert errors[-1] < 0.02
    n = 2000
    p = problem(GAUSSIAN, 10, n, eta=eta)
    x = end_of(p, presets.dps(1 / BETA, form="score").build(10)).x[:, 0]
    wanted = covariance(10, DIFFUSION, eta) * torch.eye(2, dtype=torch.float64)
    assert ((x.T.cov() - wanted).abs() < 4.5 * wanted[0, 0] * torch.tensor([[2, 1], [1, 2]]).sqrt() / math.sqrt(n)).all()


def test_reconstruction_guidance_is_biased_for_a_curved_reward():
    """r = -|x|²/2 narrows the Gaussian; guidance at the estimate narrows it by another amount, and more steps do not help."""

    def curved(x0, rows):
        return -0.5 * x0.square().sum(1)

    tilted, _ = GAUSSIAN.tilt(torch.zeros(2, dtype=torch.float64), 1 / BETA)
    n, far = 2000, []
    for steps in (20, 80):
        x = end_of(problem(GAUSSIAN, steps, n, curved, seed=1), presets.dps(1 / BETA, form="score").build(steps)).x[:, 0]
        far.append(((x.var(0).mean() - tilted.stds[0] ** 2) / (tilted.stds[0] ** 2 / math.sqrt(n))).item())
    print(f"curved reward: variance away from the tilt's by {far} standard errors at T = 20, 80")
    assert min(abs(v) for v in far) > 8


# Classifier guidance


@dataclass(frozen=True)
class NoiseConditional:
    """The exact log E[exp(r / β) | x_t] and its gradient, in an estimator's place."""

    tilted: Mixture
    base: Mixture
    evaluations, values, samples, black_box = 1, 1, 1, False

    def __call__(self, site: GradientContext) -> ValueAndGrad:
        with torch.enable_grad():
            x = site.x.detach().requires_grad_(True)
            at = (site.t.alpha, site.t.sigma)
            log_h = self.tilted.log_density(x, *at) - self.base.log_density(x, *at)
            (gradient,) = torch.autograd.grad(log_h.sum(), x)
        return ValueAndGrad(log_h.detach(), gradient, site.denoise(site.x, site.t, site.rows))


TILTED = plane().tilt(SLOPE / BETA, CURVATURE / BETA)[0]


def classifier() -> Method:
    slope = NoiseConditional(TILTED, plane())
    return Method("classifier", guides=(Score(1.0),), estimator=slope, guide_when=ALWAYS)  # type: ignore[arg-type]


def test_the_noise_conditional_value_is_the_expectation_of_the_tilt():
    """log h against draws of x_0 given x_t, by importance from the mixture: so that the tests below lean on nothing assumed."""
    t = DIFFUSION.grid(10)[6]
    x0 = plane().draw(400_000, torch.Generator().manual_seed(0))
    _, log_z = plane().tilt(SLOPE / BETA, CURVATURE / BETA)
    for point in ([0.3, -0.2], [-1.0, 0.9]):
        x = torch.tensor([point], dtype=torch.float64)
        near = -0.5 * (x - t.alpha * x0).square().sum(1) / t.sigma**2
        by_draws = (near + curved_plane(x0, None) / BETA).logsumexp(0) - near.logsumexp(0)
        log_h = TILTED.log_density(x, t.alpha, t.sigma) - plane().log_density(x, t.alpha, t.sigma) + log_z
        assert log_h.item() == pytest.approx(by_draws.item(), abs=0.03)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_classifier_guidance_is_the_tilted_model_itself(eta):
    """Sample by sample: eps - σ_t ∇ log h is the tilted mixture's own eps, wherever α > 0."""
    schedule = Schedule("v_prediction", scaled_linear())
    p = problem(plane(), 12, 20, curved_plane, schedule, eta=eta)
    other = replace(p, denoise=MixtureModel(TILTED).denoiser())
    one, two = end_of(p, classifier()).x, end_of(other, presets.base().build(12)).x
    assert torch.allclose(one, two, atol=1e-9)
    assert not torch.allclose(one, end_of(p, presets.base().build(12)).x, atol=0.1)


def null_of(draws: list[torch.Tensor]) -> float:
    """The largest energy distance between two exact samples."""
    return max(energy_distance(a, b) for a, b in itertools.pairwise(draws))


def test_classifier_guidance_reaches_the_closed_form_and_reconstruction_guidance_does_not():
    """n = 2,000, T = 5, 80, from pure noise: mean energy distance to 6 samples of the closed form."""
    draws = [TILTED.draw(2000, torch.Generator().manual_seed(s)) for s in range(6)]
    null, far = null_of(draws), {}
    for steps in (5, 80):
        p = problem(plane(), steps, 2000, curved_plane)
        x = end_of(p, classifier()).x[:, 0]
        far[steps] = sum(energy_distance(x, d) for d in draws) / 6
    rough = end_of(p, presets.dps(1 / BETA, form="score").build(80)).x[:, 0]
    biased = sum(energy_distance(rough, d) for d in draws) / 6
    print(f"classifier guidance by T {far}, two exact samples at most {null:.5f}, dps (score) at T = 80 {biased:.5f}")
    assert far[80] < 1.5 * null
    assert far[5] > 10 * far[80]
    assert biased > 5 * null


# And what is not exact


BIASED = {
    "base": presets.base(),
    "dps-score": presets.dps(1 / BETA, form="score"),
    "dps-step": presets.dps(0.1),
    "mpgd": presets.mpgd(0.2),
    "mpgd-code": presets.mpgd(1 / BETA, rule="plain", source="code", window=(1, 0)),
    "freedom": presets.freedom(0.2),
    "ug": presets.ug(1 / BETA, backward=0),
    "lgd": presets.lgd(0.1),
    "tfg": presets.tfg(),
    "bon": presets.bon(2),
    "code": presets.code(2),
    "svdd": presets.svdd(2),
    "codex": presets.codex(2),
}


@cache
def exact_draws() -> list[torch.Tensor]:
    """Six samples of 2,000 from the tilt of the 20-step chain: importance resampling of parts of 240,000 draws."""
    x = chain(20, 240_000)
    parts = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))].chunk(6)
    w = torch.stack([weights.normalise(curved_plane(part[:40_000], None) / BETA) for part in parts])
    index = weights.systematic(w, torch.full((6,), 0.5, dtype=torch.float64), 2000)
    return [part[i] for part, i in zip(parts, index, strict=True)]


@pytest.mark.parametrize("name", BIASED)
def test_the_bias_of_approximate_methods_is_seen(name):
    """At T = 20 and n = 2,000 each is several times farther from the chain's tilt than exact samples are from one another."""
    draws = exact_draws()
    p = problem(plane(), 20, 2000, curved_plane)
    cond, reference = MixtureModel(plane()).denoiser(), MixtureModel(REFERENCE).denoiser()

    def denoise(x, t, rows):  # the correction of scale 1: the law is the mixture's own
        eps, x0, _ = cond(x, t, rows)
        return Prediction(eps, x0, eps - reference(x, t, rows).eps)

    p = replace(p, denoise=denoise)
    x = end_of(p, BIASED[name].build(20)).x[:, 0]
    far = sum(energy_distance(x, d) for d in draws) / len(draws)
    print(f"{name}: {far:.5f}, {far / null_of(draws):.1f} times the largest of two exact samples")
    assert far > 3 * null_of(draws)


def test_the_same_measure_passes_an_exact_method():
    """So that the tests above can fail: 2,000 draws by weight out of TDS runs of 48 particles are as near as exact ones."""
    draws, p = exact_draws(), problem(plane(), 20, 2000, curved_plane)
    runs = replace(p, who=p.who[:200])
    end = end_of(runs, replace(presets.tds(beta=BETA).build(20), particles=48, final="all"))
    uniforms = torch.rand(200, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    index = weights.multinomial(weights.normalise(end.log_w), uniforms)
    x = torch.stack([row[i] for row, i in zip(end.x, index, strict=True)]).reshape(-1, 2)
    far = sum(energy_distance(x, d) for d in draws) / len(draws)
    print(f"tds, 48 particles: {far:.5f}, {far / null_of(draws):.1f} times the largest of two exact samples")
    assert far < 1.5 * null_of(draws)
