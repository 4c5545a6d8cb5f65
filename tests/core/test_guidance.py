"""CoDeX's gradient against finite differences, its scale against the rule written out again, no leak between rows.

And the other guided presets, draw by draw, against their papers' formulas on a Gaussian model.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from support.guided import CFG, REFERENCE, ROWS, TIMES, value
from tilting import presets, rng
from tilting.guidance.gradient import RewardGradient
from tilting.guidance.value_and_grad import Estimator, GradientContext, rms, value_and_grad
from tilting.oracle.mixture import MixtureModel
from tilting.sample import Problem, sample, start
from tilting.schedule import Schedule, scaled_linear
from tilting.types import Prediction, TiltingError


@pytest.fixture
def denoise(mixture):
    return MixtureModel(mixture).denoiser(REFERENCE, CFG)


@pytest.fixture
def x():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("through", ["denoiser", "decoder"])
@pytest.mark.parametrize("place", [1, 5, 9])
def test_the_slope_equals_finite_differences(denoise, x, through, place):
    t, h = TIMES[place], 1e-6
    slope = value_and_grad(x, t, ROWS, denoise, value, through)
    held = denoise(x, t, ROWS).eps

    def score(at):
        x0 = denoise(at, t, ROWS).x0 if through == "denoiser" else (at - t.sigma * held) / t.alpha
        return value(x0, ROWS)

    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = h
        numeric = (score(x + step) - score(x - step)) / (2 * h)
        assert torch.allclose(slope.gradient[:, i], numeric, rtol=1e-5, atol=1e-6)
    assert torch.allclose(slope.value, score(x))
    for ours, theirs in zip(slope.prediction, denoise(x, t, ROWS), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
        assert not ours.requires_grad


def test_the_two_gradients_differ(denoise, x):
    one, other = (value_and_grad(x, TIMES[5], ROWS, denoise, value, k).gradient for k in ("denoiser", "decoder"))
    assert (one - other).abs().max() > 0.1


def test_rms_is_per_row():
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert torch.allclose(rms(x), torch.tensor([12.5**0.5, 0.5**0.5]).reshape(2, 1, 1))


@pytest.mark.parametrize("strength", [0.2, 0.4, 3.0])
@pytest.mark.parametrize("place", [1, 5, 9])
def test_the_scale_rule(denoise, x, mixture, strength, place):
    """x moves by γ · w · rms(cond - uncond) along the gradient's direction, the rms taken row by row."""
    t = TIMES[place]
    moved, slope = RewardGradient(strength)(GradientContext(x, t, ROWS, denoise, value, CFG))
    cond, uncond = (MixtureModel(m).denoiser()(x, t, ROWS).eps for m in (mixture, REFERENCE))
    for i in range(6):
        g, c = slope.gradient[i], (cond - uncond)[i]
        s = (c.norm() / 2**0.5) * CFG * strength / (g.norm() / 2**0.5 + 1e-8)
        assert torch.allclose(moved[i], x[i] + s * g, rtol=1e-9, atol=1e-12)
        assert (moved[i] - x[i]).norm().item() == pytest.approx(strength * CFG * c.norm().item(), rel=1e-5)


def test_without_the_rule_strength_is_the_step(denoise, x):
    moved, slope = RewardGradient(0.05, rule="plain")(GradientContext(x, TIMES[5], ROWS, denoise, value, CFG))
    assert torch.allclose(moved, x + 0.05 * slope.gradient, atol=1e-12)


def test_the_cap_binds_only_where_the_scale_exceeds_it(denoise, x):
    t = TIMES[5]
    free, slope = RewardGradient(0.4)(GradientContext(x, t, ROWS, denoise, value, CFG))
    scales = ((free - x).norm(dim=1) / slope.gradient.norm(dim=1)).sort().values
    cap = ((scales[2] + scales[3]) / 2).item()
    capped, _ = RewardGradient(0.4, cap=cap)(GradientContext(x, t, ROWS, denoise, value, CFG))
    found = (capped - x).norm(dim=1) / slope.gradient.norm(dim=1)
    expected = ((free - x).norm(dim=1) / slope.gradient.norm(dim=1)).clamp(max=cap)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert (found.sort().values[3:] - cap).abs().max() < 1e-9


@pytest.mark.parametrize("through", ["denoiser", "decoder"])
def test_no_row_depends_on_its_companions(denoise, x, through):
    move = RewardGradient(0.4, Estimator(through), cap=5.0)
    together, _ = move(GradientContext(x, TIMES[5], ROWS, denoise, value, CFG))
    for i in range(6):
        alone, _ = move(GradientContext(x[i : i + 1], TIMES[5], ROWS[i : i + 1], denoise, value, CFG))
        assert torch.allclose(alone[0], together[i], atol=1e-12)
    loud = x.clone()
    loud[1:] *= 50
    assert torch.allclose(move(GradientContext(loud, TIMES[5], ROWS, denoise, value, CFG))[0][0], together[0], atol=1e-12)


def test_a_small_move_raises_the_reward(denoise, x):
    t = TIMES[6]
    moved, slope = RewardGradient(1e-3, rule="plain")(GradientContext(x, t, ROWS, denoise, value, CFG))
    gain = value(denoise(moved, t, ROWS).x0, ROWS) - slope.value
    assert torch.allclose(gain, 1e-3 * slope.gradient.square().sum(1), rtol=0.1, atol=1e-6)
    assert (gain > 0).all()


def test_a_flat_reward_moves_nothing(denoise, x):
    moved, _ = RewardGradient(0.4)(GradientContext(x, TIMES[5], ROWS, denoise, lambda x0, rows: (0 * x0).sum(1), CFG))
    assert torch.equal(moved, x)


def test_gradients_are_taken_when_the_caller_switched_them_off(denoise, x):
    with torch.no_grad():
        off = value_and_grad(x, TIMES[5], ROWS, denoise, value).gradient
    assert torch.equal(off, value_and_grad(x, TIMES[5], ROWS, denoise, value).gradient)
    assert not x.requires_grad


def test_rewards_without_gradient_are_refused(denoise, x):
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for blind in (lambda x0, rows: value(x0.detach(), rows), lambda x0, rows: value(x0.detach(), rows) * weight):
        with pytest.raises(TiltingError, match="no gradient"):
            value_and_grad(x, TIMES[5], ROWS, denoise, blind)


# Every guided preset as its paper writes it: a Gaussian model, closed-form gradients, no autograd


BASE, NULL = (0.5, 0.8), (-0.3, 1.4)  # mean and std of the condition's and of the unconditional model, N(m, s²) per coordinate
PULL, BEND = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.5
NOISY = Schedule("epsilon", scaled_linear()).grid(8)
FLOWING = Schedule("flow", shift=2.0).grid(9)[1:]  # pure noise, where nothing is guided, left out


def up(x0):
    """∇ r of r(x) = ⟨PULL, x⟩ - BEND / 2 |x|²."""
    return PULL - BEND * x0


def said(x, t):
    """x0, eps, the correction, and the slope ∂x0/∂x, a number since all is isotropic."""
    both = []
    for mean, std in (BASE, NULL):
        gain = t.alpha * std**2 / (t.alpha**2 * std**2 + t.sigma**2)
        both.append(((x - t.alpha * (mean + gain * (x - t.alpha * mean))) / t.sigma, (1 - t.alpha * gain) / t.sigma))
    (eps_c, slope_c), (eps_u, slope_u) = both
    eps, slope = eps_u + CFG * (eps_c - eps_u), slope_u + CFG * (slope_c - slope_u)
    return (x - t.sigma * eps) / t.alpha, eps, eps_c - eps_u, (1 - t.sigma * slope) / t.alpha


def unit(g):
    return g / g.square().mean(-1, keepdim=True).sqrt()


def size(correction):
    return CFG * correction.square().mean(-1, keepdim=True).sqrt()


def posterior(x0, x, t, s):
    """Mean of q(x_s | x_t, x_0)."""
    a = t.alpha / s.alpha
    v = t.sigma**2 - a**2 * s.sigma**2
    return (s.alpha * v * x0 + a * s.sigma**2 * x) / t.sigma**2


def climb(x0, steps, rate):
    for _ in range(steps):
        x0 = x0 + rate * unit(up(x0))
    return x0


def dps(x, t, s, noise):
    x0, _, _, slope = said(x, t)
    return posterior(x0, x, t, s) + 0.3 * slope * up(x0)


def freedom(x, t, s, noise):
    x0, _, correction, slope = said(x, t)
    return posterior(x0, x, t, s) + 0.2 * size(correction) * unit(slope * up(x0))


def mpgd(x, t, s, noise):
    x0, eps, _, _ = said(x, t)
    std = s.sigma * math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0)) / t.sigma
    return s.alpha * (x0 + 0.4 * up(x0)) + math.sqrt(max(s.sigma**2 - std**2, 0)) * eps


def mpgd_code(x, t, s, noise):
    x0 = said(x, t)[0]
    return posterior(x0 + 0.4 * up(x0), x, t, s)


def universal(x, t, s, noise):
    x0, eps, _, slope = said(x, t)
    eps = eps - t.sigma * 1.5 * slope * up(x0) - t.alpha / t.sigma * (climb(x0, 2, 0.1) - x0)
    return posterior((x - t.sigma * eps) / t.alpha, x, t, s)


def tfg(x, t, s, noise):
    x0, _, _, slope = said(x, t)
    step = posterior(x0, x, t, s) + s.alpha / t.alpha * 0.1 * unit(slope * up(x0))
    return step + s.alpha * (climb(x0, 3, 0.05) - x0)


def lgd(x, t, s, noise):
    x0, _, _, slope = said(x, t)
    near = x0[:, None] + 0.5 * t.sigma * noise("smooth", 3)
    score = near @ PULL - BEND / 2 * near.square().sum(-1)
    return posterior(x0, x, t, s) + 0.2 * slope * ((score / 0.7).softmax(1)[..., None] * up(near)).sum(1)


GUIDED = {  # name -> (preset, mean of x_s as published, K, window)
    "dps": (presets.dps(0.3, rule="plain"), dps, 1, (1, 0)),
    "freedom": (presets.freedom(), freedom, 3, (0.7, 0.3)),
    "mpgd": (presets.mpgd(0.4, rule="plain"), mpgd, 1, (0.7, 0.3)),
    "mpgd-code": (presets.mpgd(0.4, rule="plain", source="code"), mpgd_code, 1, (0.7, 0.3)),
    "ug": (presets.ug(1.5, backward=2, rate=0.1, repeat=2), universal, 2, (1, 0)),
    "tfg": (presets.tfg(0.1, 0.05, steps=3, repeat=2), tfg, 2, (1, 0)),
    "lgd": (presets.lgd(0.2, rule="plain", samples=3, radius=0.5, tau=0.7), lgd, 1, (1, 0)),
}


@pytest.mark.parametrize("grid", [NOISY, FLOWING], ids=["diffusion", "flow"])
@pytest.mark.parametrize("name", GUIDED)
def test_a_guided_chain_is_as_its_paper_writes_it(name, grid):
    """All draws of eta 1, repeats and windows included, against the formulas above."""
    preset, mean_of, repeat, (high, low) = GUIDED[name]
    who, steps = [rng.Identity(3, "paper", i) for i in range(4)], len(grid) - 1
    p = Problem(gaussian, grid, who, (2,), bent, 1.0, CFG, dtype=torch.float64)
    chain = sample(p, preset.build(steps))
    x = start(p, preset.build(steps)).x[:, 0]
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        inside = low - 1e-9 <= 1 - i / steps <= high + 1e-9
        a = t.alpha / s.alpha
        spread, drawn = t.sigma**2 - a**2 * s.sigma**2, x
        for k in range(repeat if inside else 1):
            suffix = f"/{k}" if k else ""

            def noise(purpose, count, i=i, suffix=suffix):
                keys = [rng.generator(w, 0, i, purpose + suffix) for w in who]
                return torch.stack([torch.randn(count, 2, generator=key) for key in keys]).double()

            mean = mean_of(x, t, s, noise) if inside else posterior(said(x, t)[0], x, t, s)
            drawn = mean + s.sigma * math.sqrt(spread) / t.sigma * rng.normal(who, 1, (2,), i + 1, "noise" + suffix)[:, 0]
            x = a * drawn + math.sqrt(spread) * rng.normal(who, 1, (2,), i + 1, f"renoise/{k}")[:, 0]
        x = drawn
        assert torch.allclose(next(chain)[0].x[:, 0], x, atol=1e-6, rtol=1e-6), f"step {i}"


def gaussian(x, t, rows):
    x0, eps, correction, _ = said(x, t)
    return Prediction(eps, x0, correction)


def bent(x0, rows):
    return x0 @ PULL - BEND / 2 * x0.square().sum(-1)
