"""FK correctors, the Ψ-sampler's chain, LiDAR's guidance and rbf's interpolant against closed forms.

A base of one Gaussian makes every chain linear: the law of a weighted chain is then a Gaussian over all of its points, whose
matrix is written down here, coordinate by coordinate, and solved.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from support.tilt import BETA, SLOPE, plane
from tilting import presets, rng, weights
from tilting.engines.chain import Pcnl
from tilting.engines.lookahead import Lookahead
from tilting.errors import TiltingError
from tilting.generation.plan import grid_of
from tilting.oracle.mixture import Mixture, MixtureModel
from tilting.sample import Problem, _look, finish, sample, start
from tilting.schedule import Schedule, scaled_linear, transition, variance_preserving
from tilting.types import Prediction, Time

SCHEDULES = {"flow": Schedule("flow", shift=2.0), "diffusion": Schedule("epsilon", scaled_linear(), 0.99915, "leading", 1)}


def gaussian(mean, std) -> Mixture:
    return Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [mean], [std])))


CONDITIONAL, UNCONDITIONAL, W = gaussian([0.6, -0.3], 0.8), gaussian([-0.2, 0.4], 1.1), 2.0


def reward(x0, rows):
    return x0 @ SLOPE


def line(function) -> tuple[float, torch.Tensor]:
    """(A, b) of an affine function of the plane, A x + b."""
    b = function(torch.zeros(1, 2, dtype=torch.float64))[0]
    return (function(torch.ones(1, 2, dtype=torch.float64))[0] - b)[0].item(), b


def law(grid, guided: bool, power: float = 1.0, beta: float | None = None):
    """(log Z, mean, variance) of x_0 of the weighted chain, the constant against the one that is drawn unweighted."""
    kernels = {name: MixtureModel(base).denoiser() for name, base in (("c", CONDITIONAL), ("u", UNCONDITIONAL))}
    w = W if guided else 1.0
    noisy = [i for i in range(len(grid) - 1) if transition_std(grid[i], grid[i + 1]) > 0]
    size = len(noisy) + 1  # x_T and what each noisy step draws
    log_z, mean, var = 0.0, torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for j in range(2):
        target, drawn = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
        push, drew = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        constant = 0.0
        target[0, 0] = drawn[0, 0] = power
        end = (1.0, torch.zeros(2, dtype=torch.float64))
        for k, i in enumerate(range(len(grid) - 1)):
            t, s = grid[i], grid[i + 1]
            std = transition_std(t, s)

            def mean_of(name, t=t, s=s):
                return lambda x: transition(kernels[name](x, t, torch.zeros(1)), t, s, 1.0).mean

            (ac, bc), (au, bu) = line(mean_of("c")), line(mean_of("u"))
            a, b = w * ac + (1 - w) * au, w * bc[j] + (1 - w) * bu[j]
            (ec, fc), (eu, fu) = (line(lambda x, n=n, t=t: -kernels[n](x, t, torch.zeros(1)).eps / t.sigma) for n in ("c", "u"))
            score, shift = w * ec + (1 - w) * eu, w * fc[j] + (1 - w) * fu[j]
            if std == 0:
                end = (a, torch.full((2,), float(b), dtype=torch.float64))
                continue
            terms = []
            if t.alpha == 0:
                std /= math.sqrt(power)
            else:
                a, b = a + (power - 1) * std**2 * score, b + (power - 1) * std**2 * shift
                v = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
                terms = [(power * w * (w - 1) * v, ec - eu, float(fc[j] - fu[j]))]
                terms += [(power * (power - 1) * v, score, float(shift))]
            for matrix, vector in ((target, push), (drawn, drew)):
                matrix[k + 1, k + 1] += 1 / std**2
                matrix[k, k] += a**2 / std**2
                matrix[k, k + 1] -= a / std**2
                matrix[k + 1, k] -= a / std**2
                vector[k + 1] += b / std**2
                vector[k] -= a * b / std**2
            for factor, slope, offset in terms:  # exp(factor/2 (slope x + offset)²)
                target[k, k] -= factor * slope**2
                push[k] += factor * slope * offset
                constant += 0.5 * factor * offset**2
        if beta is not None:
            assert torch.linalg.eigvalsh(target).min() > 0
            push[-1] += end[0] * SLOPE[j] / beta
            constant += float(end[1][j] * SLOPE[j] / beta)
        solved, before = torch.linalg.solve(target, push), torch.linalg.solve(drawn, drew)
        log_z += constant + 0.5 * float(push @ solved - drew @ before - torch.logdet(target) + torch.logdet(drawn))
        mean[j] = end[0] * solved[-1] + end[1][j]
        var[j] = end[0] ** 2 * torch.linalg.inv(target)[-1, -1]
    return log_z, mean, var


def transition_std(t: Time, s: Time) -> float:
    x = torch.zeros(1, 1)
    return transition(Prediction(x, x, x), t, s, 1.0).std


def problem(kind: str, steps: int, images: int, guided: bool = True, value=reward) -> Problem:
    model, grid = MixtureModel(CONDITIONAL), SCHEDULES[kind].grid(steps)
    denoise = model.denoiser(UNCONDITIONAL, W) if guided else model.denoiser()
    who = [rng.Identity(0, "field", i) for i in range(images)]
    return Problem(denoise, grid, who, (2,), value, 1.0, W if guided else 1.0, 10**6, dtype=torch.float64)


def end_of(p: Problem, method):
    *_, (state, _) = sample(p, replace(method, final="all"))
    return finish(p, replace(method, final="all"), state)


@pytest.mark.parametrize(
    ("kind", "power", "beta"), [("flow", 1.0, None), ("diffusion", 1.0, 0.5), ("diffusion", 1.6, None), ("flow", 1.3, 0.5)]
)
def test_correctors_have_the_law_of_their_score(kind, power, beta):
    """Constant, mean and variance of CFG's chain as weighed, sharpened and tilted; 8 runs of 1,500 particles, T = 6."""
    p = problem(kind, 6, 8)
    log_z, mean, var = law(p.grid, True, power, beta)
    end = end_of(p, presets.fkc(1500, beta, power, block=2).build(6))
    w = weights.normalise(end.log_w)
    z = (weights.log_mean(end.log_w) - log_z).exp()
    means = torch.einsum("rn,rni->ri", w, end.x)
    spread = torch.einsum("rn,rni->ri", w, (end.x - mean).square())
    for found, wanted in ((z, torch.ones(())), (means, mean), (spread, var)):
        error = found.std(0) / math.sqrt(8)
        assert (error < 0.05).all(), (kind, power, error)
        assert ((found.mean(0) - wanted).abs() < 5 * error + 0.004).all(), (found.mean(0), wanted, error)
    assert abs(log_z) > 0.3  # unweighted, the constant would be 1


def test_that_law_is_the_geometric_mean_and_its_power_as_steps_shrink():
    """q_u^(1 - w) q_c^w and its power, which are Gaussians."""
    precision = W / CONDITIONAL.stds[0] ** 2 + (1 - W) / UNCONDITIONAL.stds[0] ** 2
    centre = W * CONDITIONAL.means[0] / CONDITIONAL.stds[0] ** 2 + (1 - W) * UNCONDITIONAL.means[0] / UNCONDITIONAL.stds[0] ** 2
    for kind in SCHEDULES:
        for power in (1.0, 1.6):
            far = []
            for steps in (10, 40, 100):
                _, mean, var = law(SCHEDULES[kind].grid(steps), True, power)
                wanted = (centre / precision, 1 / (power * precision))
                far.append((mean - wanted[0]).norm().item() + (var - wanted[1]).abs().max().item())
            assert far[0] > 1.5 * far[1] > 2.25 * far[2] and far[2] < 0.1, (kind, power, far)


def test_without_guidance_or_a_power_correctors_are_smc_bit_for_bit():
    p = problem("diffusion", 6, 2, guided=False)
    mine, smc = end_of(p, presets.fkc(5, 0.3).build(6)), end_of(p, presets.smc(5, 0.3, block=1).build(6))
    assert torch.equal(mine.x, smc.x) and torch.equal(mine.log_w, smc.log_w)


def test_correctors_alone_ask_no_reward():
    p = replace(problem("flow", 4, 1), value=None)  # the law above has no reward either
    method = presets.fkc(3, None).build(4)
    assert not method.needs_reward
    end = end_of(p, method)
    assert end.value is None and end.log_w.std() > 0


def curved(x0, rows):
    return x0 @ SLOPE - 0.4 * x0.square().sum(1)


def test_pcnl_keeps_the_tilted_noise_at_any_step_size():
    """N(0, I) noise of an N(0, I) base seen at α = .8: exp(u) makes it another Gaussian; a large ε needs the acceptance."""
    grid, base, beta = [Time(600.0, 0.8, 0.6), Time(0.0, 1.0, 0.0)], gaussian([0.0, 0.0], 1.0), 0.5
    who = [rng.Identity(0, "pcnl", i) for i in range(4)]
    p = Problem(MixtureModel(base).denoiser(), grid, who, (2,), curved, 1.0, 1.0, 10**6, dtype=torch.float64)
    var = 1 / (1 + 0.8 * 0.64 / beta)  # x0(x) = .8 x
    mean = 0.8 * SLOPE / beta * var
    for step in (0.5, 2.0):
        method = replace(presets.psi(500, beta, moves=25, move=step).build(1), final="all")
        state = start(p, method)
        found = method.begin(p, method.select, state, looking(p, method))
        assert torch.equal(found.memory.potential, found.value / beta) and (found.log_w == 0).all()
        x = found.x.flatten(0, 1)
        assert ((x.mean(0) - mean).abs() < 5 * math.sqrt(var / len(x))).all(), (step, x.mean(0), mean)
        assert ((x.var(0) / var - 1).abs() < 5 * math.sqrt(2 / len(x))).all(), (step, x.var(0), var)
        assert (curved(x @ torch.eye(2, dtype=x.dtype) * 0.8, None) - found.value.flatten()).abs().max() < 1e-9


def test_what_is_accepted_does_not_hang_on_the_proposals_noise():
    """One particle an image, of many images: with the words of particle 0's noise for its uniform, the mean of a direction
    that the reward does not see was 9 standard errors off."""
    grid = [Time(600.0, 0.8, 0.6), Time(0.0, 1.0, 0.0)]
    who = [rng.Identity(0, "pcnl", i) for i in range(2500)]
    p = Problem(
        MixtureModel(gaussian([0.0, 0.0], 1.0)).denoiser(),
        grid,
        who,
        (2,),
        lambda x0, rows: -(x0[:, 0] / 0.8 - 1).square(),  # x0(x) = .8 x
        1.0,
        1.0,
        10**6,
        dtype=torch.float64,
    )
    method = presets.psi(1, 1.0, moves=20, move=0.5).build(1)
    x = method.begin(p, method.select, start(p, method), looking(p, method)).x[:, 0]
    for i, (mean, var) in enumerate(((2 / 3, 1 / 3), (0.0, 1.0))):
        assert abs(x[:, i].mean() - mean) < 4.5 * math.sqrt(var / len(x)), (i, x[:, i].mean())


def looking(p, method):
    return lambda one, k: _look(p, method, one, p.grid[0], True, f"/begin{k}")


def test_the_psi_sampler_has_the_tilt_of_its_chain():
    """The same base through four steps: weighted as the tilt of the chain, whose law is solved; with what it began by counted
    twice it is not."""
    times = [Time(1000 * s, math.sqrt(1 - s * s), s) for s in (0.6, 0.5, 0.35, 0.2)] + [Time(0.0, 1.0, 0.0)]
    base = gaussian([0.0, 0.0], 1.0)
    who = [rng.Identity(1, "psi", i) for i in range(8)]
    p = Problem(MixtureModel(base).denoiser(), times, who, (2,), reward, 1.0, 1.0, 10**6, dtype=torch.float64)
    gain, spread = 1.0, 0.0  # x_0 of that chain is N(0, spread + gain²)
    for t, s in itertools.pairwise(times):
        a, _ = line(lambda x, t=t, s=s: transition(p.denoise(x, t, torch.zeros(1)), t, s, 1.0).mean)
        gain, spread = a * gain, a * a * spread + transition_std(t, s) ** 2
    wanted = (spread + gain**2) * SLOPE / BETA
    end = end_of(p, presets.psi(500, BETA, moves=20, move=1.0).build(4))
    means = torch.einsum("rn,rni->ri", weights.normalise(end.log_w), end.x)
    error = means.std(0) / math.sqrt(8)
    assert ((means.mean(0) - wanted).abs() < 5 * error + 0.004).all() and (error < 0.05).all()
    assert ((1.5 * wanted - wanted).abs() > 5 * error).all()


def test_lidar_steps_from_the_tilts_own_estimate():
    """Σ (w* - w) x_0^i over exact samples of the plane: x0 becomes that of the tilt, at every noise."""
    base, (tilted, _) = plane(), plane().tilt(SLOPE / BETA)
    ahead = base.draw(40_000, torch.Generator().manual_seed(0))[None]
    for sigma in (0.9, 0.5):
        t = Time(0.0, math.sqrt(1 - sigma**2), sigma)
        x = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        before = base.tweedie(x[0], t)
        prediction = Prediction((x - t.alpha * before) / t.sigma, before[None], torch.zeros_like(x))
        moved = Lookahead(beta=BETA)._guided(x, prediction, t, ahead, reward(ahead[0], None)[None])
        wanted = tilted.tweedie(x[0], t)
        assert (moved.x0[0] - wanted).norm(dim=1).mean() < 0.05 * (before - wanted).norm(dim=1).mean()
        assert torch.allclose(t.alpha * moved.x0 + t.sigma * moved.eps, x)


def test_lidar_draws_from_the_tilt():
    """500 particles guided by 2,000 samples, 20 steps each: means of the tilt, which the model's own are far from."""
    base, (tilted, _) = plane(), plane().tilt(SLOPE / BETA)
    wanted, own = tilted.weights @ tilted.means, base.weights @ base.means
    who = [rng.Identity(0, "lidar", 0)]
    grid = Schedule("flow", shift=2.0).grid(20)
    p = Problem(MixtureModel(base).denoiser(), grid, who, (2,), reward, 1.0, 1.0, 10**6, dtype=torch.float64)
    end = end_of(p, presets.lidar(500, samples=2000, lookahead=20, beta=BETA).build(20))
    far = (end.x[0].mean(0) - wanted).norm().item()
    assert far < 0.15 * (own - wanted).norm().item(), (far, own, wanted)


def test_rbfs_interpolant_is_the_variance_preserving_chain():
    """The flow at those times, its x over sqrt(α² + σ²), is the variance-preserving model's chain with the same noise."""
    who = [rng.Identity(0, "vp", i) for i in range(3)]
    flow = variance_preserving(7)
    size = [math.hypot(t.alpha, t.sigma) for t in flow]
    kept = [Time(t.t, t.alpha / n, t.sigma / n) for t, n in zip(flow, size, strict=True)]
    betas = [-2 * math.log(t.alpha) for t in kept[1:]]
    assert betas == pytest.approx([9.95 * r**2 + 0.1 * r for r in [1 - i / 7 for i in range(1, 8)]], abs=1e-9)
    ends = []
    for grid in (flow, kept):
        p = Problem(MixtureModel(plane()).denoiser(), grid, who, (2,), reward, 1.0, 1.0, 10**6, dtype=torch.float64)
        *_, (state, _) = sample(p, presets.rbf(3).build(7))
        ends.append(state.x)
    assert torch.allclose(*ends, atol=1e-9)


def test_another_interpolant_is_refused_where_there_is_none():
    method = presets.rbf(interpolant="vp").build(4)
    model = MixtureModel(plane(), SCHEDULES["flow"])
    object.__setattr__(model, "name", "mine")
    assert grid_of(model, method, 4) == variance_preserving(4) and grid_of(model, presets.rbf().build(4), 4)[1].sigma < 1
    model = MixtureModel(plane())
    object.__setattr__(model, "name", "mine")
    with pytest.raises(TiltingError, match=r"rbf.interpolant=vp is of flow models, and 'mine' is none"):
        grid_of(model, method, 4)


def test_a_step_of_pcnl_is_bounded():
    with pytest.raises(TiltingError, match="between 0 and 4"):
        Pcnl(step=4.0)
