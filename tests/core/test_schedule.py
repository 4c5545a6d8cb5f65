"""The schedule against diffusers' own schedulers, in float64 to 1e-6, and against first principles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from tilting import schedule as sch
from tilting.schedule import Schedule, scaled_linear
from tilting.types import Prediction, TiltingError, Time, Transition

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def in_double(scheduler, zero_snr: bool):
    """The scheduler with its products of betas recomputed in float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    if zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        one = scheduler.config.set_alpha_to_one
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64) if one else scheduler.alphas_cumprod[0]
    return scheduler


def draws(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def kinds_at(kinds: list, t: Time) -> list:
    """An epsilon model says nothing of x0 where alpha is 0 (diffusers gives inf there)."""
    return [k for k in kinds if not (k == "epsilon" and t.alpha == 0)]


@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_bar_is_the_product_of_diffusers_betas(zero_snr):
    theirs = in_double(DDIMScheduler(**SD), zero_snr).alphas_cumprod
    ours = torch.tensor(scaled_linear(zero_snr=zero_snr), dtype=torch.float64)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert (ours[-1] == 0) == zero_snr


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 0), ("leading", 1)])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
def test_the_transition_is_ddim(eta, spacing, offset, zero_snr, to_one):
    steps, compared = 20, 0
    alpha_bar = scaled_linear(zero_snr=zero_snr)
    for kind in ("epsilon", "v_prediction", "sample"):
        theirs = DDIMScheduler(
            **SD, prediction_type=kind, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one
        )
        in_double(theirs, zero_snr).set_timesteps(steps)
        final = 1.0 if to_one else alpha_bar[0]
        grid = Schedule(kind, alpha_bar, final, spacing, offset).grid(steps)
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            if not kinds_at([kind], t):
                continue
            x, output, noise = draws(i)
            ours = sch.transition(Prediction(*sch.predict(kind, output, x, t), torch.zeros_like(x)), t, s, eta)
            step = theirs.step(output, int(t.t), x, eta=eta, variance_noise=noise if eta > 0 else None)
            assert torch.allclose(ours.mean + ours.std * noise, step.prev_sample, rtol=1e-9, atol=1e-6)
            assert torch.allclose(ours.x0, step.pred_original_sample, rtol=1e-9, atol=1e-6)
            assert (ours.std > 0) == (eta > 0 and s.sigma > 0 and t.alpha < s.alpha)
            compared += 1
    lost = 1 if zero_snr and spacing == "trailing" else 0  # epsilon at t = 999 where alpha is 0
    assert compared == 3 * steps - lost


@pytest.mark.parametrize("steps", [20, 50, 30, 7])
@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 1)])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_eta_one_is_ddpm_fixed_small(steps, spacing, offset, zero_snr):
    for kind in ("epsilon", "v_prediction", "sample"):
        theirs = DDPMScheduler(
            **SD, prediction_type=kind, timestep_spacing=spacing, steps_offset=offset, variance_type="fixed_small"
        )
        in_double(theirs, zero_snr).set_timesteps(steps)
        grid = Schedule(kind, scaled_linear(zero_snr=zero_snr), 1.0, spacing, offset).grid(steps)
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            if not kinds_at([kind], t):
                continue
            x, output, _ = draws(i)
            ours = sch.transition(Prediction(*sch.predict(kind, output, x, t), torch.zeros_like(x)), t, s, 1.0)
            std = float(theirs._get_variance(int(t.t))) ** 0.5
            assert ours.std == pytest.approx(std, abs=1e-6, rel=1e-9)
            step = theirs.step(output, int(t.t), x, generator=torch.Generator().manual_seed(9)).prev_sample
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
            assert torch.allclose(ours.mean + ours.std * noise, step, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_eta_zero_of_a_flow_is_the_euler_step(shift):
    steps = 12
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())  # what pipelines pass
    grid = Schedule("flow", shift=shift).grid(steps)
    ours_t = torch.tensor([t.t for t in grid[:-1]])
    assert torch.allclose(ours_t, theirs.timesteps, rtol=1e-6)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        x, output, _ = (v.float() for v in draws(i))  # their step casts to float32
        ours = sch.transition(Prediction(*sch.predict("flow", output, x, t), torch.zeros_like(x)), t, s, 0.0)
        step = theirs.step(output, theirs.timesteps[i], x).prev_sample
        assert torch.allclose(ours.mean, step, atol=1e-6)
        exact = x.double() + (s.sigma - t.sigma) * output.double()
        eps_x0 = sch.predict("flow", output.double(), x.double(), t)
        mean = sch.transition(Prediction(*eps_x0, torch.zeros_like(exact)), t, s, 0.0).mean
        assert torch.allclose(mean, exact, atol=1e-12)


@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 0), ("leading", 1), ("linspace", 0)])
def test_grids_are_diffusers_times(spacing, offset):
    ours, theirs = (
        Schedule("epsilon", scaled_linear(), 1.0, spacing, offset),
        DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=offset),
    )
    for steps in [*range(1, 130), 192, 250, 333, 448, 500, 999]:
        theirs.set_timesteps(steps)
        grid = ours.grid(steps)
        if len(theirs.timesteps) == steps + 1:  # numpy.arange overshoots at a few lengths (61, 103): a time of -1, not ours
            assert theirs.timesteps[-1] == -1
            theirs.timesteps = theirs.timesteps[:-1]
        assert [t.t for t in grid[:-1]] == [float(t) for t in theirs.timesteps], steps
        assert all(t.alpha**2 == pytest.approx(ours.alpha_bar[int(t.t)], rel=1e-12) for t in grid[:-1])
        assert len(grid) == steps + 1
        assert (grid[-1].alpha, grid[-1].sigma) == (1.0, 0.0)


def test_a_grid_that_does_not_exist_is_refused():
    for steps in (0, -1, 1001):
        with pytest.raises(TiltingError, match="steps"):
            Schedule("epsilon", scaled_linear()).grid(steps)
    with pytest.raises(TiltingError, match="offset"):
        Schedule("epsilon", scaled_linear(), spacing="leading", offset=1).grid(1000)


finite = st.floats(-5, 5)
angles = st.floats(0.01, math.pi / 2 - 0.01)


@given(angle=angles, x0=finite, eps=finite)
def test_every_kind_of_output_says_the_same_eps_and_x0(angle, x0, eps):
    """From x_t = α x0 + σ eps and each parametrisation of the output, both must come back."""
    x0, eps = torch.tensor([x0], dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)
    diffusion, flow = Time(1.0, math.cos(angle), math.sin(angle)), Time(1.0, 1 - angle / 2, angle / 2)
    outputs = {"epsilon": eps, "sample": x0, "v_prediction": diffusion.alpha * eps - diffusion.sigma * x0, "flow": eps - x0}
    for kind, output in outputs.items():
        t = flow if kind == "flow" else diffusion
        found = sch.predict(kind, output, t.alpha * x0 + t.sigma * eps, t)
        assert torch.allclose(found[0], eps, atol=1e-10)
        assert torch.allclose(found[1], x0, atol=1e-10)


@given(angle=angles, a=finite, b=finite, x=finite)
def test_correction_is_the_difference_of_the_two_eps(angle, a, b, x):
    a, b, x = (torch.tensor([v], dtype=torch.float64) for v in (a, b, x))
    for kind in ("epsilon", "v_prediction", "flow", "sample"):
        t = Time(1.0, 1 - angle / 2, angle / 2) if kind == "flow" else Time(1.0, math.cos(angle), math.sin(angle))
        difference = sch.predict(kind, a, x, t)[0] - sch.predict(kind, b, x, t)[0]
        assert torch.allclose(sch.correction(kind, a - b, t), difference, atol=1e-9)


def test_noise_then_the_exact_prediction_recovers_both_ends():
    t = Schedule("epsilon", scaled_linear()).grid(10)[3]
    x0, noise, _ = draws(0)
    x = sch.add_noise(x0, noise, t)
    assert torch.allclose((x - t.alpha * x0) / t.sigma, noise, atol=1e-12)
    assert torch.allclose(sch.predict("epsilon", noise, x, t)[1], x0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [Schedule("v_prediction", scaled_linear(zero_snr=True)), Schedule("flow")])
def test_a_step_keeps_the_marginal_of_one_clean_point(schedule, eta):
    """With the true x0 and eps: mean + std · noise must have the signal α_s x0 and the noise σ_s, whatever eta."""
    grid = schedule.grid(13)
    for t, s in itertools.pairwise(grid):
        zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        signal = sch.transition(Prediction(zero, one, zero), t, s, eta).mean.item()
        step = sch.transition(Prediction(one, zero, zero), t, s, eta)
        assert signal == pytest.approx(s.alpha, abs=1e-12)
        assert step.mean.item() ** 2 + step.std**2 == pytest.approx(s.sigma**2, abs=1e-12)
        # eta 1 is the true posterior q(x_s | x_t, x_0): its variance is that of two Gaussians multiplied.
        if t.alpha > 0 and s.sigma > 0:
            v = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
            posterior = 1 / (1 / s.sigma**2 + (t.alpha / s.alpha) ** 2 / v)
            assert step.std == pytest.approx(eta * math.sqrt(posterior), rel=1e-8)


def test_log_prob_is_the_normal_density():
    x, mean, _ = draws(5)
    step = Transition(mean, 0.37, mean)
    each = torch.distributions.Normal(mean, 0.37).log_prob(x).flatten(1)
    assert torch.allclose(sch.log_prob(x, step), each.sum(1), rtol=1e-12)
    assert torch.allclose(sch.log_prob(x, step, reduction="mean"), each.mean(1), rtol=1e-12)


def test_a_step_without_noise_has_no_density():
    grid = Schedule("v_prediction", scaled_linear(zero_snr=True)).grid(5)
    x, eps, _ = draws(1)
    prediction = Prediction(eps, x, eps)
    for t, s, eta in ((grid[1], grid[2], 0.0), (grid[-2], grid[-1], 1.0)):
        step = sch.transition(prediction, t, s, eta)
        assert step.std == 0
        with pytest.raises(TiltingError, match="no density"):
            sch.log_prob(x, step)


# By hand


def places(schedule: Schedule, steps: int) -> list[float]:
    grid = schedule.grid(steps)
    assert all(point.alpha == pytest.approx(1 - point.sigma, abs=1e-15) for point in grid)
    assert [point.t for point in grid] == pytest.approx([1000 * point.sigma for point in grid])
    return pytest.approx([point.sigma for point in grid], abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (Schedule("flow"), [1, 0.75, 0.5, 0.25, 0]),
        (Schedule("flow", shift=3.0), [1, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0]),
        (Schedule("flow", spacing="linspace", last=0.1), [1, 0.7, 0.4, 0.1, 0]),
        (Schedule("flow", spacing="linspace", last=0.2), [1, 0.2, 0]),
        (Schedule("flow", spacing="linspace", last=0.2), [1, 0]),
        (Schedule("flow", spacing="linspace"), [1, 0.5, 0, 0]),
        (Schedule("flow", spacing="linspace", last=0.4, shift=0.5), [1, 0.35 / 0.65, 0.2 / 0.8, 0]),
    ],
)
def test_times_of_a_flow(schedule, times):
    """1 - i/T, or evenly from 1 to the last and then 0; t -> shift t / (1 + (shift - 1) t)."""
    assert times == places(schedule, len(times) - 1)


@pytest.mark.parametrize(
    ("spacing", "offset", "steps", "times"),
    [
        ("trailing", 0, 2, [3, 1]),
        ("trailing", 0, 4, [3, 2, 1, 0]),
        ("leading", 0, 2, [2, 0]),
        ("leading", 1, 2, [3, 1]),
        ("linspace", 0, 2, [3, 0]),
        ("linspace", 0, 1, [0]),
    ],
)
@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_times_of_four(kind, spacing, offset, steps, times):
    """A flow that has ᾱ of its own goes by it; the end is at the final ᾱ."""
    alpha_bar = (0.81, 0.64, 0.36, 0.19)
    grid = Schedule(kind, alpha_bar, 0.96, spacing, offset).grid(steps)
    assert [point.t for point in grid] == [*times, 0]
    assert [point.alpha**2 for point in grid] == pytest.approx([*(alpha_bar[t] for t in times), 0.96])
    assert [point.sigma**2 for point in grid] == pytest.approx([*(1 - alpha_bar[t] for t in times), 0.04])


def test_a_schedule_ends_clean_and_has_no_offset_unless_told():
    plain = Schedule("epsilon", (0.9, 0.5), spacing="leading").grid(2)
    assert [(point.t, point.sigma) for point in plain] == [(1.0, 0.5**0.5), (0.0, pytest.approx(0.1**0.5)), (0.0, 0.0)]


def test_as_much_signal_to_noise_as_the_variance_preserving_process():
    """∫β = .1 τ + 19.9 τ² / 2 at τ = 1/2 is 2.5375; α² = e^-2.5375 = .0791, and x is over α + σ."""
    grid = sch.variance_preserving(2)
    alpha, sigma = math.sqrt(math.exp(-2.5375)), math.sqrt(1 - math.exp(-2.5375))
    wanted = [Time(1000.0, 0.0, 1.0), Time(1000 * sigma / (alpha + sigma), alpha / (alpha + sigma), sigma / (alpha + sigma))]
    assert [tuple(point) for point in grid] == [pytest.approx(tuple(point)) for point in [*wanted, Time(0.0, 1.0, 0.0)]]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow", "sample"])
def test_an_output_is_what_its_prediction_was_made_of(kind):
    output, x, t = torch.tensor([[0.3, -2.0]]), torch.tensor([[1.5, 0.25]]), Time(500.0, 0.4, 0.6)
    t = t if kind == "flow" else Time(500.0, 0.8, 0.6)
    eps, x0 = sch.predict(kind, output, x, t)
    assert torch.allclose(sch.output_of(kind, Prediction(eps, x0, eps), t), output)


def test_an_epsilon_model_says_nothing_of_pure_noise():
    x = torch.ones(1, 1)
    with pytest.raises(TiltingError, match="pure noise"):
        sch.predict("epsilon", x, x, Time(1000.0, 0.0, 1.0))
    assert sch.predict("epsilon", x, 3 * x, Time(0.0, 1.0, 0.5))[1] == 2.5


def test_steps_of_the_other_laws():
    """t = .8, s = .5 of a flow at eta .6: cps .5 sin(.3 π); euler .6 √(.8 / .2 · .3), and (.5 - std² / 1.6) eps + .5 x0."""
    t, s, pure = Time(800.0, 0.2, 0.8), Time(500.0, 0.5, 0.5), Time(1000.0, 0.0, 1.0)
    cps, euler = 0.5 * math.sin(0.3 * math.pi), 0.6 * math.sqrt(0.8 / 0.2 * 0.3)
    one, two = torch.ones(1, 1, dtype=torch.float64), 2 * torch.ones(1, 1, dtype=torch.float64)
    for law, std, mean in (("cps", cps, 2 * 0.5 + math.sqrt(0.25 - cps**2)), ("euler", euler, 2 * 0.5 + 0.5 - euler**2 / 1.6)):
        step = sch.transition(Prediction(one, two, one), t, s, 0.6, law)
        assert (step.std, step.mean.item(), step.x0.item()) == pytest.approx((std, mean, 2.0))
    assert sch.step_std(pure, s, 0.6, "euler") == pytest.approx(0.6 * math.sqrt(1 / (1 - 0.5) * 0.5))  # s stands for t in 1 - t
    half = Time(500.0, 1.0, 1.0)  # n = 2, of flow time 1/2, from t = .8: twice the noise
    assert sch.step_std(t, half, 0.6, "euler") == pytest.approx(2 * euler)
    for law in ("posterior", "cps", "euler"):
        assert sch.step_std(t, Time(0.0, 1.0, 0.0), 0.6, law) == 0.0


def test_zero_snr_is_the_root_less_its_end_scaled_to_its_beginning():
    """β = .25, .36 (roots evenly spaced): √ᾱ = .866, .693; less .693, times .866 / (.866 - .693)."""
    assert sch.scaled_linear(2, 0.25, 0.36) == pytest.approx((0.75, 0.48))
    assert sch.scaled_linear(2, 0.25, 0.36, zero_snr=True) == pytest.approx((0.75, 0.0))
    a, b, c = 0.75, 0.75 * (1 - 0.55**2), 0.75 * (1 - 0.55**2) * 0.64
    middle = (math.sqrt(b) - math.sqrt(c)) * math.sqrt(a) / (math.sqrt(a) - math.sqrt(c))
    assert sch.scaled_linear(3, 0.25, 0.36, zero_snr=True) == pytest.approx((a, middle**2, 0.0))
    assert (len(sch.scaled_linear()), sch.scaled_linear()[0]) == (1000, pytest.approx(1 - 0.00085))
