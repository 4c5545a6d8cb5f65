"""CoDeX's gradient against finite differences, its scale against the rule written out again, and no leak between rows."""

from __future__ import annotations

import pytest
import torch

from tilting.guidance.gradient import RewardGradient
from tilting.guidance.slope import Estimator, Site, reward_slope, rms
from tilting.models.mixture import Mixture, MixtureModel
from tilting.schedule import Schedule, scaled_linear
from tilting.types import TiltingError

REFERENCE = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.2, 0.1]], [1.6])))
CENTRE = torch.tensor([0.7, -0.4], dtype=torch.float64)
CFG = 3.0
TIMES = Schedule("v_prediction", scaled_linear(zero_snr=True)).grid(10)


def value(x0, rows):
    """Curved, and different for every row's image."""
    return -(x0 - CENTRE).square().sum(1) + torch.sin(x0[:, 0] * (1 + rows))


@pytest.fixture
def denoise(mixture):
    return MixtureModel(mixture).denoiser(REFERENCE, CFG)


@pytest.fixture
def x():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


ROWS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("through", ["denoiser", "decoder"])
@pytest.mark.parametrize("place", [1, 5, 9])
def test_the_slope_equals_finite_differences(denoise, x, through, place):
    t, h = TIMES[place], 1e-6
    slope = reward_slope(x, t, ROWS, denoise, value, through)
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
    one, other = (reward_slope(x, TIMES[5], ROWS, denoise, value, k).gradient for k in ("denoiser", "decoder"))
    assert (one - other).abs().max() > 0.1


def test_rms_is_per_row():
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert torch.allclose(rms(x), torch.tensor([12.5**0.5, 0.5**0.5]).reshape(2, 1, 1))


@pytest.mark.parametrize("strength", [0.2, 0.4, 3.0])
@pytest.mark.parametrize("place", [1, 5, 9])
def test_the_scale_rule(denoise, x, mixture, strength, place):
    """x moves by γ · w · rms(cond - uncond) along the gradient's direction, the rms taken row by row."""
    t = TIMES[place]
    moved, slope = RewardGradient(strength)(Site(x, t, ROWS, denoise, value, CFG))
    cond, uncond = (MixtureModel(m).denoiser()(x, t, ROWS).eps for m in (mixture, REFERENCE))
    for i in range(6):
        g, c = slope.gradient[i], (cond - uncond)[i]
        s = (c.norm() / 2**0.5) * CFG * strength / (g.norm() / 2**0.5 + 1e-8)
        assert torch.allclose(moved[i], x[i] + s * g, rtol=1e-9, atol=1e-12)
        assert (moved[i] - x[i]).norm().item() == pytest.approx(strength * CFG * c.norm().item(), rel=1e-5)


def test_without_the_rule_strength_is_the_step(denoise, x):
    moved, slope = RewardGradient(0.05, rule="plain")(Site(x, TIMES[5], ROWS, denoise, value, CFG))
    assert torch.allclose(moved, x + 0.05 * slope.gradient, atol=1e-12)


def test_the_cap_binds_only_where_the_scale_exceeds_it(denoise, x):
    t = TIMES[5]
    free, slope = RewardGradient(0.4)(Site(x, t, ROWS, denoise, value, CFG))
    scales = ((free - x).norm(dim=1) / slope.gradient.norm(dim=1)).sort().values
    cap = ((scales[2] + scales[3]) / 2).item()
    capped, _ = RewardGradient(0.4, cap=cap)(Site(x, t, ROWS, denoise, value, CFG))
    found = (capped - x).norm(dim=1) / slope.gradient.norm(dim=1)
    expected = ((free - x).norm(dim=1) / slope.gradient.norm(dim=1)).clamp(max=cap)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert (found.sort().values[3:] - cap).abs().max() < 1e-9


@pytest.mark.parametrize("through", ["denoiser", "decoder"])
def test_no_row_depends_on_its_companions(denoise, x, through):
    move = RewardGradient(0.4, Estimator(through), cap=5.0)
    together, _ = move(Site(x, TIMES[5], ROWS, denoise, value, CFG))
    for i in range(6):
        alone, _ = move(Site(x[i : i + 1], TIMES[5], ROWS[i : i + 1], denoise, value, CFG))
        assert torch.allclose(alone[0], together[i], atol=1e-12)
    loud = x.clone()
    loud[1:] *= 50
    assert torch.allclose(move(Site(loud, TIMES[5], ROWS, denoise, value, CFG))[0][0], together[0], atol=1e-12)


def test_a_small_move_raises_the_reward(denoise, x):
    t = TIMES[6]
    moved, slope = RewardGradient(1e-3, rule="plain")(Site(x, t, ROWS, denoise, value, CFG))
    gain = value(denoise(moved, t, ROWS).x0, ROWS) - slope.value
    assert torch.allclose(gain, 1e-3 * slope.gradient.square().sum(1), rtol=0.1, atol=1e-6)
    assert (gain > 0).all()


def test_a_flat_reward_moves_nothing(denoise, x):
    moved, _ = RewardGradient(0.4)(Site(x, TIMES[5], ROWS, denoise, lambda x0, rows: (0 * x0).sum(1), CFG))
    assert torch.equal(moved, x)


def test_gradients_are_taken_when_the_caller_switched_them_off(denoise, x):
    with torch.no_grad():
        off = reward_slope(x, TIMES[5], ROWS, denoise, value).gradient
    assert torch.equal(off, reward_slope(x, TIMES[5], ROWS, denoise, value).gradient)
    assert not x.requires_grad


def test_rewards_without_gradient_are_refused(denoise, x):
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for blind in (lambda x0, rows: value(x0.detach(), rows), lambda x0, rows: value(x0.detach(), rows) * weight):
        with pytest.raises(TiltingError, match="no gradient"):
            reward_slope(x, TIMES[5], ROWS, denoise, blind)
