"""The field's objectives against closed forms: fixed points on the mixture, KLs of Gaussians, published formulas by hand."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from support.drift import AIM, STEPS, ZERO, Drift, gradient, make, moved
from tilting import presets
from tilting.errors import TiltingError
from tilting.objectives import OBJECTIVES, draft_k
from tilting.objectives.advantages import gdpo_advantage, group_advantage, leaders, preferred_rates, rows_of, win_rates
from tilting.objectives.batch import closed
from tilting.objectives.denoising import training_error
from tilting.objectives.distil import steered
from tilting.objectives.matching import improvement
from tilting.objectives.policy import Taken
from tilting.objectives.rollout import mean_kl, rollout
from tilting.objectives.supervised import Noised, noised
from tilting.oracle.mixture import MixtureModel
from tilting.schedule import Schedule, log_prob, output_of, predict, scaled_linear, step_std, transition
from tilting.types import Prediction, Time

FORMS = {"flow": Schedule("flow"), "epsilon": Schedule("epsilon", scaled_linear()), "v": ZERO}
SPOT, WIDTH = torch.tensor([0.5, 0.2], dtype=torch.float64), 0.9


def good(x0):
    """A probability that an image is a good one."""
    return (-(x0 - SPOT).square().sum(1) / (2 * WIDTH**2)).exp()


def weighed(mixture, x, t):
    """E[r | x_t] and E[r x_0 | x_t] of the mixture, closed form: each component's posterior times a Gaussian bump."""
    var = t.alpha**2 * mixture.stds**2 + t.sigma**2
    rho = mixture.log_responsibilities(x, t.alpha, t.sigma).softmax(1)
    mean = mixture.means + (t.alpha * mixture.stds**2 / var)[:, None] * (x[:, None] - t.alpha * mixture.means)
    spread = mixture.stds**2 * t.sigma**2 / var
    both = WIDTH**2 + spread
    mass = rho * (WIDTH**2 / both) * (-(mean - SPOT).square().sum(-1) / (2 * both)).exp()
    middle = (mean * WIDTH**2 + SPOT * spread[:, None]) / both[:, None]
    return mass.sum(1), (mass[..., None] * middle).sum(1)


def at(x, t, x0):
    return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.zeros_like(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_the_optimum_of_nft_is_that_of_its_theorem(mixture, form, beta):
    """f* = f_old + (2/β) E[r (f - f_old) | x_t]: there the loss has no slope along any function of x_t, elsewhere it has."""
    schedule, gen = FORMS[form], torch.Generator().manual_seed(0)
    t = schedule.grid(8)[3]
    clean = mixture.draw(60_000, gen)
    noise = torch.randn(clean.shape, generator=gen, dtype=torch.float64)
    x = t.alpha * clean + t.sigma * noise
    point = Noised(x, t, clean, noise, torch.arange(len(x)))
    old = mixture.tweedie(x, t)
    mass, moment = weighed(mixture, x, t)
    delta = moment - mass[:, None] * old
    batch = make(mixture, None, images=1, kind=schedule.kind)
    features = torch.stack([torch.ones(len(x)), *x.T, *torch.sin(2 * x).T], 1).double()

    def slopes(factor):
        x0 = (old + factor * delta).requires_grad_(True)
        loss = improvement(at(x, t, x0), at(x, t, old), point, good(clean), beta, batch, own=True)
        (each,) = torch.autograd.grad(loss.sum(), x0)
        products = (features[:, :, None] * each[:, None]).flatten(1)
        return (products.mean(0) / (products.std(0) / len(x) ** 0.5)).abs()

    assert slopes(2 / beta).max() < 4
    for wrong in (0.0, 1 / beta, 3 / beta):
        assert slopes(wrong).max() > 8


@pytest.mark.parametrize("form", FORMS)
def test_the_codes_weighting_of_nft_divides_errors_of_x0_by_their_size(mixture, form):
    t = FORMS[form].grid(8)[3]
    gen = torch.Generator().manual_seed(1)
    clean, noise, new, old = (torch.randn(5, 2, generator=gen, dtype=torch.float64) for _ in range(4))
    x, r, beta = t.alpha * clean + t.sigma * noise, torch.rand(5, generator=gen).double(), 0.7
    new.requires_grad_(True)
    batch = make(mixture, None, images=1, kind=FORMS[form].kind)
    found = improvement(at(x, t, new), at(x, t, old), Noised(x, t, clean, noise, torch.arange(5)), r, beta, batch, own=False)
    plus, minus = (1 - beta) * old + beta * new, (1 + beta) * old - beta * new
    wanted = torch.zeros(5, dtype=torch.float64)
    for share, x0 in ((r, plus), (1 - r, minus)):
        off = x0 - clean
        wanted = wanted + share * off.square().mean(1) / off.detach().abs().mean(1) / beta
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(one.sum(), new, retain_graph=True)[0] for one in (found, wanted)), rtol=1e-12)


def test_nft_takes_a_probability_as_it_is_and_refuses_what_is_none(mixture):
    nft = OBJECTIVES["nft"](probability="given", distance=0.0)
    world = make(mixture, moved(Drift()), value=lambda x0, rows: good(x0))
    assert next(iter(nft(world))).numbers["reward"] == pytest.approx(good(rollout(world, closed(world)).clean).mean().item())
    with pytest.raises(TiltingError, match=r"needs a reward in \[0, 1\].*use group"):
        list(nft(make(mixture, Drift(), value=lambda x0, rows: 1 + good(x0))))


# Policies: ratios, KLs, windows


def two_kernels(world, before, after, i):
    """The kernels of step i of a path of the old net: (path, old kernel, new one, the noise drawn)."""
    path = rollout(world, closed(world), density="sum", means=True)
    x, t, s, drawn = path.points[i]
    kernels = []
    for net in (before, after):
        eps, x0, c = world.base(x, t, world.rows)
        push = net(x, t)
        kernels.append(transition(Prediction(eps - t.alpha * push, x0 + t.sigma * push, c), t, s, world.eta))
    return path, *kernels, (drawn - kernels[0].mean) / kernels[0].std


def after_one_update(objective, world, net, rate):
    """Losses of an objective of two epochs, an SGD step after the first; the net is left as it is after it."""
    optimiser, seen = torch.optim.SGD(net.parameters(), lr=rate), []
    for loss in objective(world):
        seen.append(loss)
        if len(seen) <= STEPS - 1:
            loss.value.backward()
            if loss.update:
                optimiser.step()
                optimiser.zero_grad()
    return seen[STEPS - 1 :]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["flow-dppo", "grpo-guard"])
def test_the_kl_to_the_old_policy_is_that_of_two_gaussians(mixture, name, reduction):
    """In the second epoch, step by step, against torch's own normal distributions."""
    net = moved(Drift())
    before, world = copy.deepcopy(net), make(mixture, net, prompts=4)
    frozen = replace(world, denoise=make(mixture, before).denoise)
    objective = OBJECTIVES[name](epochs=2, reduction=reduction)
    with_update = after_one_update(objective, world, net, 0.05)
    found = sorted(loss.numbers["kl_old"] for loss in with_update)
    wanted = []
    for i in range(STEPS - 1):
        _, old, new, _ = two_kernels(frozen, before, net, i)
        kl = kl_divergence(Normal(new.mean, new.std), Normal(old.mean, old.std))
        wanted.append((kl.sum(1) if reduction == "sum" else kl.mean(1)).mean().item())
    assert found == pytest.approx(sorted(wanted), rel=1e-9) and min(found) > 0


def test_flow_dppo_masks_what_left_the_region_and_goes_on_away():
    dppo = OBJECTIVES["flow-dppo"](threshold=0.1)
    far = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.05, 0.05])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    ratio = torch.tensor([1.5, 0.5, 0.5, 1.5, 1.5, 0.5])
    log_ratio = ratio.log().requires_grad_(True)
    loss, numbers = dppo.surrogate(Taken(advantage, log_ratio, far, 0.3, 0.1))
    loss.backward()
    kept = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert loss.item() == pytest.approx((-(advantage * ratio) * kept).mean().item())
    assert torch.allclose(log_ratio.grad, -advantage * ratio * kept / 6) and numbers["masked"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_grpo_guards_ratio_is_of_the_noise_alone(mixture, reduction):
    """log ratio' = ⟨mean_θ - mean_old, z⟩, whatever std: its mean is 0; and the loss is over the time of the step."""
    before, after = moved(Drift()), moved(Drift(), 0.4)
    world, guard = make(mixture, before), OBJECTIVES["grpo-guard"](clip=1e9, reduction=reduction)
    advantage = torch.linspace(-1, 1, 16, dtype=torch.float64)
    for i in (1, STEPS - 2):
        path, old, new, z = two_kernels(world, before, after, i)
        drawn, t, s = path.points[i].drawn, path.points[i].t, path.points[i].s
        log_ratio = log_prob(drawn, new, reduction) - log_prob(drawn, old, reduction)
        far = mean_kl(new, old.mean) / (2 if reduction == "mean" else 1)
        time = t.sigma / (t.alpha + t.sigma) - s.sigma / (s.alpha + s.sigma)
        loss, _ = guard.surrogate(Taken(advantage, log_ratio, far, new.std, time))
        along = ((new.mean - old.mean) * z).sum(1) / (2 if reduction == "mean" else 1)
        assert loss.item() == pytest.approx((-advantage * along.exp()).mean().item() / time, rel=1e-9)
    net = moved(Drift())
    first = next(iter(OBJECTIVES["grpo-guard"]()(make(mixture, net))))
    plain = next(iter(OBJECTIVES["grpo"]()(make(mixture, net))))
    i = int(torch.randperm(STEPS - 1, generator=make(mixture, net).generator("order"))[0])
    t, s = ZERO.grid(STEPS)[i], ZERO.grid(STEPS)[i + 1]
    share = [torch.autograd.grad(one.value, net.last.bias)[0] for one in (first, plain)]
    time = t.sigma / (t.alpha + t.sigma) - s.sigma / (s.alpha + s.sigma)
    assert torch.allclose(share[0], share[1] * step_std(t, s, 1.0) / time, rtol=1e-9)


def test_the_window_of_mixgrpo_slides_and_nothing_is_random_outside(mixture):
    mix = OBJECTIVES["mixgrpo"](window=3, interval=2, stride=1, branch=False)
    seen = []
    for step in range(12):
        batch = mix.chain(make(mixture, Drift(), step=step))
        seen.append([i for i in range(STEPS) if batch.std(i) > 0])
    places = STEPS - 1 - 3 + 1
    assert seen == [list(range(step // 2 % places, step // 2 % places + 3)) for step in range(12)]
    assert len({tuple(s) for s in seen}) == places
    batch = mix.chain(make(mixture, moved(Drift()), step=4))
    inside = mix.draw(batch)
    assert sorted(inside.densities) == [2, 3, 4]
    ode = rollout(replace(batch, etas=[0.0] * STEPS), closed(batch))
    assert torch.equal(inside.points[2].x, ode.points[2].x) and not torch.equal(inside.points[3].x, ode.points[3].x)
    wide = OBJECTIVES["mixgrpo"](window=99)
    assert sorted(wide.draw(wide.chain(make(mixture, Drift()))).densities) == list(range(STEPS - 1))


@pytest.mark.parametrize("name", ["mixgrpo", "grpo-fast"])
def test_a_group_is_one_image_until_its_window_and_pays_for_one(mixture, name):
    net, paid = moved(Drift()), []
    objective = OBJECTIVES[name](group_size=4, window=2)
    for step in range(4):
        world = make(mixture, net, images=16, prompts=2, step=step)
        calls = []

        def denoise(x, t, rows, calls=calls, world=world):
            calls.append(len(x))
            return world.denoise(x, t, rows)

        batch = objective.chain(replace(world, denoise=denoise))
        path = objective.draw(batch)
        first = min(path.densities)
        paid.append((first, sum(calls)))
        groups = leaders(batch.prompts, 4)
        assert groups[:5] == [0, 1, 0, 1, 0] and groups[8] == 8  # a prompt that comes again is another group
        for i, point in enumerate(path.points):
            alike = all(torch.equal(point.x[k], point.x[g]) for k, g in enumerate(groups))
            assert alike == (i <= first)
        assert torch.equal(path.points[0].x[0], world.noise(0)[0])
        again = rollout(batch, closed(batch), path.points[first].x, start=first, density="mean")
        assert torch.equal(again.clean, path.clean)
    assert paid == [(first, 4 * first + 16 * (STEPS - first)) for first, _ in paid]
    if name == "grpo-fast":
        firsts = [min(objective.draw(objective.chain(make(mixture, net, step=k))).densities) for k in range(30)]
        assert set(firsts) == set(range(STEPS // 2))


def test_a_window_learns_from_its_steps_alone(mixture):
    """The gradient is that of GRPO on the same chain, whose other steps are deterministic."""
    net = moved(Drift())
    mix = OBJECTIVES["mixgrpo"](window=2, interval=1, branch=False)
    world = make(mixture, net, step=3)
    found = gradient(mix, world, net)
    random = [3, 4]
    etas = [1.0 if i in random else 0.0 for i in range(STEPS)]
    assert torch.allclose(found, gradient(OBJECTIVES["grpo"](), replace(world, etas=etas), net), rtol=1e-12)
    assert found.abs().max() > 0


# Laws of a step


@pytest.mark.parametrize("form", FORMS)
def test_cps_keeps_the_coefficients_of_the_marginal(form):
    """std as in Flow-CPS, and the noise of eps and of the draw add up to σ_s."""
    grid = FORMS[form].grid(6)
    for a in (0.3, 0.7, 1.0):
        for t, s in itertools.pairwise(grid):
            zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
            of_eps = transition(Prediction(one, zero, zero), t, s, a, "cps")
            of_x0 = transition(Prediction(zero, one, zero), t, s, a, "cps")
            assert of_eps.std == pytest.approx(s.sigma * math.sin(a * math.pi / 2))
            assert of_eps.mean.item() ** 2 + of_eps.std**2 == pytest.approx(s.sigma**2)
            assert of_x0.mean.item() == pytest.approx(s.alpha)


def test_the_euler_law_is_flow_grpos_step():
    """In its own words: x (1 + σ²/2t dt) + v (1 + σ² (1 - t)/2t) dt + σ sqrt(-dt) z, σ = a sqrt(t/(1 - t)), where t = 1 in its
    1 - t stands the next time; the last step draws no noise."""
    grid, gen = Schedule("flow").grid(5), torch.Generator().manual_seed(0)
    for t, s in itertools.pairwise(grid):
        x, v = (torch.randn(4, 3, generator=gen, dtype=torch.float64) for _ in range(2))
        eps, x0 = predict("flow", v, x, t)
        found = transition(Prediction(eps, x0, eps), t, s, 0.7, "euler")
        now, dt = t.sigma, s.sigma - t.sigma
        sigma = 0.7 * math.sqrt(now / (1 - (s.sigma if now == 1 else now))) if s.sigma > 0 else 0.0
        wanted = x * (1 + sigma**2 / (2 * now) * dt) + v * (1 + sigma**2 * (1 - now) / (2 * now)) * dt
        assert torch.allclose(found.mean, wanted, rtol=1e-9)
        assert found.std == pytest.approx(sigma * math.sqrt(-dt), rel=1e-9)


@pytest.mark.parametrize("law", ["posterior", "cps", "euler"])
def test_a_law_is_that_of_the_flow_which_a_schedule_is(law):
    """x_t / (α + σ) is a flow at time σ / (α + σ): means and stds scale."""
    grid, gen = Schedule("epsilon", scaled_linear()).grid(6), torch.Generator().manual_seed(0)
    for t, s in itertools.pairwise(grid):
        eps, x0 = (torch.randn(4, 3, generator=gen, dtype=torch.float64) for _ in range(2))
        flow = [Time(0.0, p.alpha / (p.alpha + p.sigma), p.sigma / (p.alpha + p.sigma)) for p in (t, s)]
        mine = transition(Prediction(eps, x0, eps), t, s, 0.6, law)
        theirs = transition(Prediction(eps, x0, eps), *flow, 0.6, law)
        scale = s.alpha + s.sigma
        assert mine.std == pytest.approx(scale * theirs.std, rel=1e-9)
        assert torch.allclose(mine.mean, scale * theirs.mean, rtol=1e-9)


def test_euler_leaves_more_noise_than_the_marginal_and_less_with_more_steps():
    def excess(steps):
        """Of the step that begins at t = 1/2."""
        t, s = Schedule("flow").grid(steps)[steps // 2 : steps // 2 + 2]
        one = torch.ones(1, 1, dtype=torch.float64)
        kernel = transition(Prediction(one, 0 * one, one), t, s, 0.7, "euler")
        return kernel.mean.item() ** 2 + kernel.std**2 - s.sigma**2

    assert excess(8) > 40 * excess(64) > 0  # the square of a step


# What an image is worth


def test_gdpo_knows_no_units_and_a_constant_reward_is_nothing():
    prompts = ["a"] * 4 + ["b"] * 4
    gen = torch.Generator().manual_seed(0)
    parts = torch.rand(8, 2, generator=gen, dtype=torch.float64)
    found = gdpo_advantage(parts, (1.0, 0.5), prompts)
    units = parts * torch.tensor([1000.0, 0.01]) + torch.tensor([5.0, -3.0])
    assert torch.allclose(gdpo_advantage(units, (1.0, 0.5), prompts), found, rtol=1e-5, atol=1e-6)
    each = [group_advantage(parts[:, k], prompts) for k in range(2)]
    total = each[0] + 0.5 * each[1]
    assert torch.allclose(found, (total - total.mean()) / total.std(unbiased=False), rtol=1e-6)
    assert abs(found.mean().item()) < 1e-9 and found.std(unbiased=False).item() == pytest.approx(1)
    constant = torch.cat([parts[:, :1], torch.full((8, 1), 7.0)], 1)
    assert torch.allclose(
        gdpo_advantage(constant, (1.0, 9.0), prompts), gdpo_advantage(parts[:, :1], (1.0,), prompts), atol=1e-12
    )
    assert gdpo_advantage(torch.ones(8, 2), (1.0, 1.0), prompts).tolist() == [0.0] * 8
    summed = [group_advantage(p @ torch.tensor([1.0, 0.5]).double(), prompts) for p in (parts, units)]
    assert not torch.allclose(*summed, rtol=0.1)  # which a sum is not


@pytest.mark.parametrize("name", ["grpo", "mixgrpo", "grpo-fast", "grpo-guard", "flow-dppo", "nft", "awm", "dgpo", "crd"])
def test_every_policy_objective_takes_several_rewards_by_gdpo(mixture, name):
    """Its gradient does not know the units of a reward, and knows its weight; its reward is their weighted sum."""
    net, sums = moved(Drift()), {}

    def parts(units):
        return lambda x0, rows: torch.stack([x0 @ AIM, units * x0[:, 1].square()], 1)

    for key, units, shares in (("own", 1.0, (1.0, 1.0)), ("other", 500.0, (1.0, 1.0)), ("less", 1.0, (1.0, 0.1))):
        made = OBJECTIVES[name](rewards="gdpo")
        world = replace(make(mixture, net, images=16, prompts=2), parts=parts(units), shares=shares)
        sums[key] = gradient(made, world, net)
        number = next(iter(made(world))).numbers["reward"]
        drawn = made.draw(made.chain(world)) if hasattr(made, "draw") else rollout(world, closed(world))
        values = parts(units)(drawn.clean, world.rows) @ torch.tensor(shares, dtype=torch.float64)
        assert number == pytest.approx(values.mean().item(), rel=1e-9)
    assert torch.allclose(sums["own"], sums["other"], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(sums["own"], sums["less"], rtol=0.05) and sums["own"].abs().max() > 0


def test_win_rates_and_a_judge_of_pairs(mixture):
    prompts = ["a", "a", "a", "a", "b", "b", "c"]
    value = torch.tensor([1.0, 2.0, 2.0, 9.0, 0.5, 0.1, 3.0], dtype=torch.float64)
    wanted = [0.0, 0.5, 0.5, 1.0, 1.0, 0.0, 0.5]
    assert win_rates(value, prompts).tolist() == wanted
    world = make(mixture, Drift(), images=7)
    who = [replace_prompt(w, p) for w, p in zip(world.who, prompts, strict=True)]
    clean = value[:, None] * torch.ones(7, 2, dtype=torch.float64)

    def biased(a, b, rows):
        """Of who is shown first 0.2 more; else a logistic of the difference."""
        return 0.8 * torch.sigmoid(a[:, 0] - b[:, 0]) + 0.2

    found = preferred_rates(replace(world, who=who, prefers=biased), clean)
    for i, prompt in enumerate(prompts):
        others = [j for j, p in enumerate(prompts) if p == prompt and j != i]
        fair = [
            0.5 * (0.8 * torch.sigmoid(value[i] - value[j]) + 0.2 + 0.8 * torch.sigmoid(value[i] - value[j])) for j in others
        ]
        assert found[i].item() == pytest.approx((sum(fair) / len(fair)).item() if fair else 0.5)
    with pytest.raises(TiltingError, match="whole groups"):
        preferred_rates(replace(world, who=who[:2], everyone=who, prefers=biased), clean[:2])


def replace_prompt(who, prompt):
    return type(who)(who.seed, prompt, who.index)


def test_pref_grpo_learns_from_wins_and_asks_a_judge_of_pairs(mixture):
    net, asked = moved(Drift()), []
    world = make(mixture, net, prompts=4)
    pref = OBJECTIVES["pref-grpo"]()
    found = gradient(pref, world, net)
    cubed = gradient(pref, replace(world, value=lambda x0, rows: (x0 @ AIM) ** 3), net)
    assert torch.equal(found, cubed) and found.abs().max() > 0  # of the order alone
    assert not torch.allclose(found, gradient(OBJECTIVES["grpo"](), world, net), rtol=0.01)

    def prefers(a, b, rows):
        asked.append(len(a))
        return ((a @ AIM) > (b @ AIM)).double()

    judged = gradient(pref, replace(world, prefers=prefers), net)
    assert torch.allclose(judged, found, rtol=1e-9) and asked == [4 * 4 * 3]


# The forward process


def points_of(world, objective):
    """The noised points of a training step, as the objective draws them, and their worths."""
    clean = rollout(world, closed(world)).clean
    value = world.value(clean, world.rows)
    keys = torch.tensor(leaders(world.prompts, objective.group_size)) if objective.shared else None
    times = range(objective.timesteps)
    return [noised(clean, world.rows, world, k, keys, objective.share) for k in times], group_advantage(value, world.prompts)


def errors(world, net_of, point):
    return training_error(net_of(point.x, point.t, point.rows), point.clean, point.noise, point.t, world.kind)


@pytest.mark.parametrize("weighting", ["uniform", "t", "t2", "huber", "ghuber"])
def test_awms_first_gradient_is_that_of_the_weighed_pre_training_loss(mixture, weighting):
    net = moved(Drift())
    world, awm = make(mixture, net), OBJECTIVES["awm"](weighting=weighting, old_distance=0.0)
    found = gradient(awm, world, net)
    net.zero_grad()
    points, advantage = points_of(world, awm)
    total = 0.0
    for point in points:
        e, t = errors(world, world.plain, point), point.t.sigma / (point.t.alpha + point.t.sigma)
        w = {"uniform": e, "t": t * e, "t2": t * t * e, "huber": t * e.sqrt(), "ghuber": 4 * t * e**0.25}[weighting]
        total = total + (advantage * w).mean() / len(points)
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-9) and wanted.abs().max() > 0


def test_awms_clip_binds_from_the_second_epoch_on(mixture):
    """There ratio = exp(e_before - e_now) at the same points; of one beyond the clip, the gradient is 0 on that side."""
    net = moved(Drift())
    world, awm = make(mixture, net), OBJECTIVES["awm"](epochs=2, clip=1e-3, old_distance=0.0)
    points, advantage = points_of(world, awm)
    before = [errors(world, world.plain, p).detach() for p in points]
    optimiser, losses = torch.optim.SGD(net.parameters(), lr=0.3), []
    for loss in awm(world):
        losses.append(loss)
        if len(losses) <= awm.timesteps:
            loss.value.backward()
            if loss.update:
                optimiser.step()
                optimiser.zero_grad()
    assert all(one.numbers["ratio_far"] == 0 for one in losses[: awm.timesteps])
    for point, e_before, loss in zip(points, before, losses[awm.timesteps :], strict=True):
        ratio = (e_before - errors(world, world.plain, point)).exp()
        wanted = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-3, 1 + 1e-3)).mean() / awm.timesteps
        assert loss.value.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert loss.numbers["ratio_far"] == pytest.approx((ratio - 1).abs().max().item())


def test_dgpos_gradient_is_that_of_a_dpo_loss_of_groups(mixture):
    """-log σ(-β/K Σ A (e_θ - e_base)) over a prompt's K images, of which A is, differentiated as it stands."""
    net = moved(Drift())
    world, dgpo = make(mixture, net, images=16, prompts=2), OBJECTIVES["dgpo"](beta=8.0)
    found = gradient(dgpo, world, net)
    net.zero_grad()
    points, advantage = points_of(world, dgpo)
    groups, total = leaders(world.prompts, 4), 0.0
    for point in points:
        assert all(torch.equal(point.noise[i], point.noise[g]) for i, g in enumerate(groups))
        gain = advantage * (errors(world, world.plain, point) - errors(world, world.base_plain, point))
        means = torch.stack([gain[rows].mean() for rows in rows_of(world.prompts).values()])
        total = total - torch.nn.functional.logsigmoid(-8.0 * means).mean() / len(points)
    assert len(set(groups)) == 4 and len(rows_of(world.prompts)) == 2  # noise is drawn once for each four
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12) and wanted.abs().max() > 0


@pytest.mark.parametrize("scaled", [True, False])
def test_crd_matches_centred_rewards(mixture, scaled):
    """Against the loss as the paper has it, whose means are differentiated too; with "old" another model, as a run has it."""
    net, other = moved(Drift()), moved(Drift(), 0.2)
    crd = OBJECTIVES["crd"](distance=0.0, scaled=scaled, beta=0.7)
    world = replace(make(mixture, net, images=16, prompts=2), averages={"old": lambda: exchanged(net, other)})
    found = gradient(crd, world, net)
    net.zero_grad()
    points, advantage = points_of(world, crd)
    old, total = make(mixture, other).plain, 0.0
    for point in points:
        reward = 0.0
        for sign, network in ((1, old), (-1, world.plain)):
            prediction = network(point.x, point.t, point.rows)
            off = output_of(world.kind, prediction, point.t) - output_of(
                world.kind, Prediction(point.noise, point.clean, point.noise), point.t
            )
            size = off.detach().abs().mean(1) if scaled else 1.0
            reward = reward + sign * off.square().mean(1) / size
        for prompt in set(world.prompts):
            rows = [i for i, p in enumerate(world.prompts) if p == prompt]
            centred = 0.7 * (reward[rows] - reward[rows].mean()) - (advantage[rows] - advantage[rows].mean())
            total = total + centred.square().sum() / 16 / len(points)
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-10) and wanted.abs().max() > 0


class exchanged:
    """A block in which a network has another's parameters."""

    def __init__(self, net, other):
        self.pairs = list(zip(net.parameters(), other.parameters(), strict=True))

    def __enter__(self):
        for p, q in self.pairs:
            p.data, q.data = q.data, p.data

    __exit__ = lambda self, *failed: self.__enter__()  # noqa: E731


def test_nft_draws_by_the_old_policy_and_compares_with_it(mixture):
    net, other = moved(Drift()), moved(Drift(), 0.8)
    world = make(mixture, net)
    old = replace(world, averages={"old": lambda: exchanged(net, other)})
    nft = OBJECTIVES["nft"](distance=0.0)
    by_old, alone = (next(iter(nft(one))).numbers for one in (old, world))
    drawn = rollout(make(mixture, other), closed(world)).clean
    assert by_old["reward"] == pytest.approx((drawn @ AIM).mean().item()) and by_old["reward"] != alone["reward"]
    assert alone["from_old"] == 0.0 < by_old["from_old"]


# To early steps


@pytest.mark.parametrize("form", FORMS)
def test_direct_align_takes_off_known_noise(mixture, form):
    """x_0' is x_0 where eps is the noise; elsewhere its slope in the output is that of one step, by hand."""
    schedule, srpo = FORMS[form], OBJECTIVES["srpo"]()
    grid, clean = schedule.grid(STEPS), torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    world = make(mixture, Drift(), images=5)
    for i in (1, 4, STEPS - 1):
        t, s = grid[i], grid[i + 1]

        def exact(x, t, rows):
            eps = (x - t.alpha * clean) / t.sigma
            return Prediction(eps, clean, eps)

        there = replace(world, denoise=exact, grid=grid, kind=schedule.kind)
        assert torch.allclose(srpo.recovered(there, clean, i), clean, atol=1e-9)
        output = torch.full((5, 2), 0.3, dtype=torch.float64, requires_grad=True)

        def fixed(x, t, rows, output=output):
            return Prediction(*predict(schedule.kind, output, x, t), x)

        found = srpo.recovered(replace(there, denoise=fixed), clean, i)
        (slope,) = torch.autograd.grad(found.sum(), output)
        moved_eps, moved_x0 = {
            "flow": (t.alpha, -t.sigma),
            "epsilon": (1.0, -t.sigma / t.alpha),
            "v_prediction": (t.alpha, -t.sigma),
        }[schedule.kind]
        if schedule.kind == "flow":
            assert slope[0, 0].item() == pytest.approx((s.sigma - t.sigma) / (1 - s.sigma))
        assert torch.allclose(slope, torch.full_like(slope, moved_x0 + s.sigma * moved_eps / s.alpha), rtol=1e-9)


def test_srpos_reward_is_relative_to_two_wordings(mixture):
    world = make(mixture, moved(Drift()))

    def worded(change):
        weight = len(change("a fox"))
        return lambda x0, rows: weight * (x0 @ AIM)

    world = replace(world, worded=worded)
    relative = OBJECTIVES["srpo"](positive="sharp, ", negative="dull ", share=0.5)
    plain, both = (next(iter(o(world))).numbers["reward"] for o in (OBJECTIVES["srpo"](), relative))
    assert both == pytest.approx((12 - 0.5 * 10) * plain)
    with pytest.raises(TiltingError, match="does not see"):
        list(relative(replace(world, worded=None)))


def test_srpo_is_at_every_time_but_pure_noise(mixture):
    srpo, steps = OBJECTIVES["srpo"](discount=0.5), {}
    for k in range(60):
        loss = next(iter(srpo(make(mixture, moved(Drift()), images=2, step=k))))
        steps[loss.numbers["from_step"]] = -loss.value.item() / loss.numbers["reward"]
    assert sorted(steps) == list(range(1, STEPS))
    assert steps == pytest.approx({i: 0.5 ** (STEPS - 1 - i) for i in steps})


def test_drtune_is_the_chains_gradient_with_inputs_held(mixture):
    """Against the chain written out; with K = 1 at the last step DRaFT-1; every step learns with K = T."""
    net = moved(Drift())
    world, drtune = make(mixture, net, eta=0.0, value=lambda x0, rows: -(x0 - 1).square().sum(1)), OBJECTIVES["drtune"]
    found = gradient(drtune(k=STEPS), world, net)
    net.zero_grad()
    x = world.noise(0)
    for t, s in zip(world.grid, world.grid[1:], strict=False):
        held = world.denoise(x.detach(), t, world.rows)
        v = t.alpha * held.eps - t.sigma * held.x0
        eps, x0 = t.alpha * v + t.sigma * x, t.alpha * x - t.sigma * v
        x = s.alpha * x0 + s.sigma * eps
    (x - 1).square().sum(1).mean().backward()
    wanted = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(found, wanted, rtol=1e-9) and wanted.abs().max() > 0
    for k in range(40):
        steps = drtune(k=1).learning(STEPS, make(mixture, net, step=k).generator("spread"))
        if steps == {STEPS - 1}:
            world = make(mixture, net, eta=0.0, step=k)
            assert torch.allclose(gradient(drtune(k=1), world, net), gradient(draft_k(1), world, net), rtol=1e-9)
            break
    else:
        raise AssertionError("the last step was never drawn")


def test_drtunes_steps_are_evenly_spread_and_the_chain_is_left_early(mixture):
    drtune, seen, ends = OBJECTIVES["drtune"](k=3, last=2), set(), set()
    for k in range(40):
        world = make(mixture, Drift(), images=2, step=k)
        ends.add(next(iter(drtune(world))).numbers["made"])
        steps = sorted(drtune.learning(STEPS, world.generator("spread")))
        assert len(steps) == 3 and {b - a for a, b in itertools.pairwise(steps)} == {STEPS // 3}
        seen |= set(steps)
    assert ends == {STEPS - 1.0, float(STEPS)} and seen == set(range(STEPS))


# Distillation


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_the_optimum_of_opd_is_the_teacher(mixture, eta):
    """There the loss and its gradient are 0; elsewhere it is the KL of every step, per dimension, or of outputs."""
    teacher, student = moved(Drift()), moved(Drift(), 0.5)
    taught = replace(make(mixture, student, eta=eta), teacher=make(mixture, teacher).denoise)
    opd = OBJECTIVES["opd"]()
    losses = list(opd(taught))
    path = rollout(taught, closed(taught))
    for i, loss in zip(torch.randperm(STEPS, generator=taught.generator("steps")).tolist(), losses, strict=True):
        x, t, s, _ = path.points[i]
        mine, theirs = (one(x, t, taught.rows) for one in (taught.denoise, taught.teacher))
        std = step_std(t, s, eta)
        if std > 0:
            means = [transition(one, t, s, eta).mean for one in (mine, theirs)]
            wanted = kl_divergence(*(Normal(mean, std) for mean in means)).mean()
        else:
            wanted = (output_of(taught.kind, mine, t) - output_of(taught.kind, theirs, t)).square().mean()
        assert loss.value.item() == pytest.approx(wanted.item() / STEPS, rel=1e-9)
    assert gradient(opd, taught, student).abs().max() > 1e-3
    same = replace(make(mixture, teacher, eta=eta), teacher=make(mixture, copy.deepcopy(teacher)).denoise)
    assert gradient(opd, same, teacher).abs().max() == 0.0
    optimiser = torch.optim.AdamW(student.parameters(), lr=2e-2, weight_decay=0.0)
    far = []
    for k in range(60):
        optimiser.zero_grad()
        world = replace(make(mixture, student, eta=eta, step=k), teacher=taught.teacher)
        total = 0.0
        for loss in opd(world):
            loss.value.backward()
            total += loss.value.item()
        optimiser.step()
        far.append(total)
    assert sum(far[-5:]) < 0.02 * sum(far[:5])


def test_a_sampler_is_baked_by_its_finished_samples(mixture):
    world = make(mixture, moved(Drift()), images=8)
    assert torch.equal(steered(world, presets.base()), rollout(replace(world, denoise=world.base), closed(world)).clean)
    best = steered(world, presets.bon(8))
    assert (best @ AIM).mean() > (steered(world, presets.base()) @ AIM).mean() + 0.3
    opd = OBJECTIVES["opd"](method="bon", epochs=2, timesteps=1)
    losses = list(opd(world))
    clean = steered(world, presets.bon())
    for k, loss in enumerate(losses):
        wanted = errors(world, world.denoise, noised(clean, world.rows, world, k)).mean()
        assert loss.value.item() == pytest.approx(wanted.item(), rel=1e-12) and loss.update
    assert losses[0].value.item() != losses[1].value.item()
    with pytest.raises(TiltingError, match="did you mean 'codex'"):
        OBJECTIVES["opd"](method="codx")
    assert OBJECTIVES["opd"](method="codex").needs_gradient and not opd.needs_gradient
    deterministic = steered(replace(world, eta=0.0), presets.code())
    assert deterministic.isfinite().all()  # which selects, and so draws with noise though the student's chain has none


def test_the_mixture_as_a_model_under_every_form_is_its_own_best(mixture):
    """What these tests stand on: the pre-training error is least at the exact denoiser."""
    for schedule in FORMS.values():
        t, gen = schedule.grid(8)[3], torch.Generator().manual_seed(0)
        clean = mixture.draw(20_000, gen)
        noise = torch.randn(clean.shape, generator=gen, dtype=torch.float64)
        x = t.alpha * clean + t.sigma * noise
        exact = MixtureModel(mixture, schedule).denoiser()(x, t, torch.arange(len(x)))
        least = training_error(exact, clean, noise, t, schedule.kind).mean()
        for push in (0.1, -0.1):
            other = training_error(at(x, t, exact.x0 + push), clean, noise, t, schedule.kind).mean()
            assert other > least
