"""The loss of every objective written out again on a model of one line: its value, its slope in θ, what it tells, updates."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tilting import presets, rng
from tilting.errors import TiltingError
from tilting.objectives import (
    OBJECTIVES,
    adjoint,
    alignprop,
    awm,
    crd,
    ddpo,
    dgpo,
    dpg,
    dpo,
    dpok,
    draft,
    draft_k,
    draft_lv,
    drtune,
    flow_dppo,
    grpo,
    grpo_fast,
    grpo_guard,
    mixgrpo,
    nft,
    opd,
    pref_grpo,
    raft,
    refl,
    rwr,
    srpo,
)
from tilting.objectives.batch import TrainBatch, closed
from tilting.objectives.distil import steered
from tilting.objectives.gradient import dropped
from tilting.objectives.policy import PolicyGradient, Taken
from tilting.objectives.rollout import density_steps, freeze_eps, rollout
from tilting.objectives.supervised import draw, noised, ranked
from tilting.rng import Identity
from tilting.sample import Problem, finish, sample, start
from tilting.schedule import Schedule
from tilting.types import Prediction, Time

SHAPE, T = (2, 1), 4
AIM = torch.tensor([0.7, -0.4], dtype=torch.float64).reshape(SHAPE)


def new_theta() -> torch.Tensor:
    return torch.tensor([0.3, -0.2], dtype=torch.float64).reshape(SHAPE).requires_grad_(True)


def x0_of(x, t, rows, push):
    return 0.5 * x + (0.5 + t.sigma) * push + 0.05 * rows.reshape(-1, 1, 1)


def network(push, calls=None):
    def denoise(x, t, rows):
        if calls is not None:
            calls.append(len(x))
        x0 = x0_of(x, t, rows, push)
        return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.zeros_like(x))

    return denoise


def reward(x0, rows):
    return (x0 * AIM).flatten(1).sum(1) - 0.2 * x0.flatten(1).square().sum(1) + 0.1 * rows


def world(theta, prompts="aabb", steps=T, eta=1.0, kind="flow", alpha_bar=False, **options) -> TrainBatch:
    who = [Identity(7, prompt, i) for i, prompt in enumerate(prompts)]
    schedule = Schedule("v_prediction", (0.97, 0.8, 0.5, 0.2, 0.05)) if alpha_bar else Schedule("flow")
    made = {"denoise": network(theta), "base": network(0 * theta.detach()), "plain": network(2 * theta)}
    made |= {"base_plain": network(torch.full_like(theta, -0.1)), "value": reward, "trained": [theta], "seed": 3, "step": 5}
    grid = schedule.grid(steps)
    return TrainBatch(
        **{**made, "grid": grid, "who": who, "shape": SHAPE, "eta": eta, "kind": kind, "dtype": torch.float64, **options}
    )


def step(x0, eps, t, s, eta):
    a = t.alpha / s.alpha
    std = eta * s.sigma * math.sqrt(max(t.sigma**2 - a**2 * s.sigma**2, 0.0)) / t.sigma
    return s.alpha * x0 + math.sqrt(max(s.sigma**2 - std**2, 0.0)) * eps, std


def said(x, t, rows, push):
    x0 = x0_of(x, t, rows, push)
    return x0, (x - t.alpha * x0) / t.sigma


def chain(batch, push, opened=None, base_last=False, upto=None):
    """[(x_t, mean, std, x_s)] of every step by these lines alone; a closed step holds eps."""
    x, out, rows = batch.noise(0), [], torch.arange(len(batch.who))
    for i in range(batch.steps if upto is None else upto):
        t, s = batch.grid[i], batch.grid[i + 1]
        last = i == batch.steps - 1
        x0, eps = said(x, t, rows, 0 * push if last and base_last else push)
        if opened is not None and not opened[i]:
            eps = eps.detach()
            x0 = (x - t.sigma * eps) / t.alpha if t.alpha > 0 else x0.detach()
        mean, std = step(x0, eps, t, s, batch.etas[i] if batch.etas else batch.eta)
        drawn = mean + (std * batch.noise(i + 1) if std > 0 else 0.0)
        out.append((x, mean, std, drawn))
        x = drawn
    return out


def slope(value, theta):
    return torch.autograd.grad(value, theta, retain_graph=True)[0]


def alike(losses, wanted, theta):
    """The sum of losses and its slope are those of ``wanted``."""
    total = sum(loss.value for loss in losses)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-9, abs=1e-12)
    assert torch.allclose(slope(total, theta), slope(wanted, theta), rtol=1e-7, atol=1e-10)


def updates(losses) -> list[bool]:
    return [loss.update for loss in losses]


def kl_of(batch, x, i, mean, std):
    """(b,) KL of a step to the frozen model's at the same x."""
    t, s, rows = batch.grid[i], batch.grid[i + 1], batch.rows
    other = step(*said(x, t, rows, torch.zeros(SHAPE, dtype=torch.float64)), t, s, batch.eta)[0]
    return (mean - other).flatten(1).square().sum(1) / (2 * std**2)


def log_density(x, mean, std, reduce):
    terms = -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    return getattr(terms.flatten(1), reduce)(1)


# Rollouts


@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_a_rollout_with_every_step_closed(eta):
    theta = new_theta()
    one = world(theta, eta=eta)
    path = rollout(one, closed(one), density="mean", frozen=True, means=True)
    steps = chain(one, theta.detach())
    random = [0, 1, 2] if eta else []
    assert torch.allclose(path.clean, steps[-1][3]) and not path.clean.requires_grad and path.kl is None
    assert list(path.densities) == list(path.frozen) == list(path.paid) == list(path.means) == random == density_steps(one)
    for i, (x, mean, std, drawn) in enumerate(steps):
        point = path.points[i]
        assert (
            torch.allclose(point.x, x)
            and torch.allclose(point.drawn, drawn)
            and (point.t, point.s) == tuple(one.grid[i : i + 2])
        )
        if i in random:
            paid = kl_of(one, x, i, mean, std)
            assert torch.allclose(path.densities[i], log_density(drawn, mean, std, "mean")) and torch.allclose(
                path.paid[i], paid
            )
            assert torch.allclose(path.means[i], mean) and paid.min() > 0
    part = rollout(one, closed(one), stop=2)
    assert (
        torch.allclose(part.clean, steps[1][3]) and len(part.points) == 2 and not (part.densities or part.frozen or part.means)
    )
    rest = rollout(one, closed(one), part.clean, start=2)
    assert torch.allclose(rest.clean, path.clean) and torch.allclose(rest.points[0].x, steps[2][0]) and len(rest.points) == 2
    assert torch.allclose(
        rollout(one, closed(one), 0 * part.clean, start=3, stop=4).clean, one.denoise(0 * part.clean, one.grid[3], one.rows).x0
    )


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("alpha_bar", [False, True])
@pytest.mark.parametrize(
    "opened", [(True,) * 4, (True, False, False, True), (False, True, True, False), (False, False, True, True)]
)
def test_a_rollout_with_some_steps_open(opened, alpha_bar, checkpointed):
    """Closed steps pass on what is linear of them; the KL is of the open ones, and the last step then the frozen model's."""
    theta, calls = new_theta(), []
    one = world(theta, checkpointed=checkpointed, alpha_bar=alpha_bar, denoise=network(theta, calls), eta=0.8)
    for kl in (False, True):
        calls.clear()
        path = rollout(one, torch.tensor(opened), kl=kl)
        steps = chain(one, theta, opened, base_last=kl)
        assert calls == [4] * (4 - kl)
        wanted = (steps[-1][3] ** 2).sum()
        assert torch.allclose(path.clean, steps[-1][3]) and torch.allclose(
            slope((path.clean**2).sum(), theta), slope(wanted, theta)
        )
        assert len(calls) == 4 - kl + checkpointed * (sum(opened) - (kl and opened[3]))
        if not kl:
            assert path.kl is None
            continue
        wanted = sum(kl_of(one, x, i, mean, std) for i, (x, mean, std, _) in enumerate(steps) if opened[i] and std > 0)
        assert path.kl is not None and torch.allclose(path.kl, wanted)
        assert torch.allclose(slope(path.kl.sum(), theta), slope(wanted.sum(), theta), atol=1e-10)
        assert not any(point.x.requires_grad or point.drawn.requires_grad for point in path.points)


def test_an_estimate_with_eps_held():
    """x0 = (x - σ eps) / α; at pure noise x0 itself is held."""
    x, push = torch.ones(1, *SHAPE, dtype=torch.float64, requires_grad=True), new_theta()
    for t, gain in ((Time(0.0, 0.5, 0.5), 2.0), (Time(0.0, 0.0, 1.0), None)):
        free = network(push)(x, t, torch.zeros(1))
        held = freeze_eps(free, x, t)
        assert all(torch.allclose(a, b) for a, b in zip(held, free, strict=True)) and not held.eps.requires_grad
        assert held.x0.requires_grad == (gain is not None)
        if gain is not None:
            assert torch.allclose(torch.autograd.grad(held.x0.sum(), x)[0], torch.full_like(x, gain))


# Through the chain


@pytest.mark.parametrize("eps_kl", [0.0, 0.4])
@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize(
    ("make", "opened", "name"),
    [
        (draft, [True] * 4, "kl"),
        (draft_k, [False, False, False, True], "kl_open"),
        (lambda **more: draft_k(2, **more), [False, False, True, True], "kl_open"),
        (lambda **more: alignprop("step", 0.4, more["kl"]), None, "kl_open"),
        (lambda **more: alignprop(kl=more["kl"]), None, "kl_open"),
    ],
)
def test_losses_through_the_chain(make, opened, name, kl, eps_kl):
    """-mean r + β mean KL + weight mean (eps_θ - eps_base)² at the last step; with a KL K counts the steps that have one."""
    theta = new_theta()
    one, objective = world(theta, eta=0.8), make(kl=kl, eps_kl=eps_kl)
    (loss,) = objective(one)
    trained = 3 if kl else 4
    if opened is None:
        generator = one.generator("truncation")
        if objective.rule == "step":
            opened = (torch.rand(trained, generator=generator) < 0.4).tolist()
            opened[-1] |= not any(opened)
        else:
            k = int(torch.randint(1, trained + 1, (1,), generator=generator))
            opened = [i >= trained - k for i in range(trained)]
        opened = [*opened, True][:4]
        eps_kl = 0.0
    elif kl and name == "kl_open":
        opened = [*opened[1:], True]
    steps = chain(one, theta, opened, base_last=bool(kl))
    wanted = -reward(steps[-1][3], one.rows).mean()
    numbers = {"reward": -wanted.item(), "open_steps": float(sum(opened))}
    if kl:
        paid = sum(kl_of(one, x, i, mean, std) for i, (x, mean, std, _) in enumerate(steps) if opened[i] and std > 0).mean()
        wanted, numbers[name] = wanted + kl * paid, paid.item()
    if eps_kl:
        x, t = steps[-1][0].detach(), one.grid[3]
        far = (said(x, t, one.rows, theta)[1] - said(x, t, one.rows, 0 * theta)[1]).square().mean()
        wanted, numbers["eps_kl"] = wanted + eps_kl * far, far.item()
    alike([loss], wanted, theta)
    assert loss.numbers == pytest.approx(numbers) and loss.update
    if kl:
        for wrong in (replace(one, eta=0.0), world(theta, steps=1)):
            with pytest.raises(TiltingError, match="a deterministic chain has no density"):
                next(iter(objective(wrong)))


def test_a_dropped_reward_scales_up_the_rest():
    """Of five images over two processes each stays with probability .6, by the chances of the whole batch."""
    everyone = [Identity(7, "a", i) for i in range(40)]
    one = replace(world(new_theta(), "aaa"), everyone=everyone, first=20)
    keep = (torch.rand(40, generator=one.generator("dropout")) >= 0.4)[20:23]
    value = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.allclose(dropped(value, 0.4, one), value * keep / 0.6) and dropped(value, 0.0, one) is value
    share = (dropped(torch.ones(40, dtype=torch.float64), 0.4, replace(one, who=everyone, first=0)) > 0).double().mean().item()
    assert share == pytest.approx(0.6, abs=0.25)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_copies_of_a_finished_sample(single, share):
    """-mean r of x_0 and of each of three copies noised to the last time; or -mean ⟨∇r(x_0), copy⟩."""
    theta = new_theta()
    one = world(theta, "aabbcc", eta=0.8)
    (loss,) = draft_lv(3, single, share, 0.2)(one)
    x, _, _, clean = chain(one, theta.detach(), upto=4)[-1]
    t, s = one.grid[3], one.grid[4]
    finished = step(*said(x, t, one.rows, theta), t, s, 0.8)[0]
    keep = (torch.rand(6, generator=one.generator("dropout")) >= share) / (1 - share) if share else torch.ones(6)
    wanted = -(reward(finished, one.rows) * keep).mean()
    for j in range(3):
        noisy = t.alpha * clean + t.sigma * one.noise(4, f"copy{j}")
        copy = step(*said(noisy, t, one.rows, theta), t, s, 0.8)[0]
        if single:
            climbed = ((AIM - 0.4 * clean) * keep[:, None, None] * copy).flatten(1).sum(1)
            wanted = wanted - climbed.mean()
        else:
            wanted = wanted - (reward(copy, one.rows) * keep).mean()
    far = (said(x, t, one.rows, theta)[1] - said(x, t, one.rows, 0 * theta)[1]).square().mean()
    alike([loss], wanted + 0.2 * far, theta)
    assert loss.numbers == pytest.approx({"reward": reward(clean, one.rows).mean().item(), "eps_kl": far.item()})
    assert draft_lv(3).graphs_at_once == 4 and len(draft_lv(0)(one).__next__().numbers) == 1


@pytest.mark.parametrize(("last", "m"), [(None, 2), (1, 1), (3, 3), (9, 5)])
@pytest.mark.parametrize("shape", ["linear", "relu"])
def test_refl_by_hand(last, m, shape):
    """The estimate at one of the last m of five steps, two fifths of them unless told; -r or relu(ceiling - r)."""
    theta = new_theta()
    one = world(theta, steps=5, eta=0.8)
    ceiling = 0.47
    (loss,) = refl(last, shape, ceiling)(one)
    i = 5 - m + int(torch.randint(m, (1,), generator=one.generator("refl")))
    x = chain(one, theta.detach(), upto=i)[-1][3] if i else one.noise(0)
    value = reward(x0_of(x, one.grid[i], one.rows, theta), one.rows)
    alike([loss], (-value if shape == "linear" else (ceiling - value).clamp(min=0)).mean(), theta)
    assert loss.numbers == pytest.approx({"reward": value.mean().item(), "from_step": float(i)})
    assert (value > ceiling).any() and (value < ceiling).any()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("k", "last"), [(1, 1), (2, 1), (9, 1), (2, 3)])
def test_drtune_by_hand(k, last, checkpointed):
    """The network's input is held, and so is its output where the step does not learn; x alone stays in the graph."""
    theta, calls = new_theta(), []
    one = world(theta, steps=5, eta=0.8, checkpointed=checkpointed, denoise=network(theta, calls))
    (loss,) = drtune(k, last)(one)
    end = 5 - int(torch.randint(last, (1,), generator=one.generator("stop")))
    count = min(k, end)
    apart = end // count
    first = int(torch.randint(end - apart * (count - 1), (1,), generator=one.generator("spread")))
    learn = [first + apart * n for n in range(count)]
    x = one.noise(0)
    for i in range(end):
        t, s = one.grid[i], one.grid[i + 1]
        x0, eps = said(x.detach(), t, one.rows, theta)
        u = eps - x0 if i in learn else (eps - x0).detach()  # the flow's output
        x0, eps = x - t.sigma * u, x + t.alpha * u
        mean, std = step(x0, eps, t, s, 0.8)
        x = x0 if i == end - 1 and end < 5 else mean + (std * one.noise(i + 1) if std else 0.0)
    wanted = reward(x, one.rows).mean()
    assert len(calls) == end
    alike([loss], -wanted, theta)
    assert len(calls) == end + checkpointed * count
    assert loss.numbers == pytest.approx({"reward": wanted.item(), "open_steps": float(count), "made": float(end)})
    assert drtune(k).graphs_at_once == k


@pytest.mark.parametrize("words", [("", ""), ("good ", ""), ("good ", "bad "), ("", "bad ")])
@pytest.mark.parametrize("alpha_bar", [False, True])
def test_srpo_by_hand(words, alpha_bar):
    """λ^(steps left after t) of r(x_0') - share r'(x_0'), at any time but pure noise; known noise is taken off again."""
    theta, asked = new_theta(), []

    def worded(change):
        asked.append(change("a fox"))
        gain = 1.0 if change("") == "good " else 0.3 if change("") == "bad " else 0.7
        return lambda x0, rows: gain * reward(x0, rows) ** 3

    one = world(theta, steps=3, eta=0.5, alpha_bar=alpha_bar, worded=worded)
    losses = list(srpo(*words, share=0.4, injections=5, discount=0.8)(one))
    clean, first, total, told = chain(one, theta.detach())[-1][3], 0 if alpha_bar else 1, 0.0, []
    for j, loss in enumerate(losses):
        i = first + int(torch.randint(3 - first, (1,), generator=one.generator(f"inject{j}")))
        t, s, noise = one.grid[i], one.grid[i + 1], one.noise(i, f"inject{j}")
        x = t.alpha * clean + t.sigma * noise
        back = (step(*said(x, t, one.rows, theta), t, s, 0.0)[0] - s.sigma * noise) / s.alpha
        plain = reward(back, one.rows)
        climbed = {"good ": 1.0, "": 0.7}[words[0]] * plain**3
        value = plain if words == ("", "") else climbed - 0.4 * 0.3 * plain**3 if words[1] else climbed
        total = total - 0.8 ** (2 - i) * value.mean() / 5
        told.append(i)
        assert loss.numbers == pytest.approx({"reward": value.mean().item(), "from_step": float(i)})
    alike(losses, total, theta)
    assert updates(losses) == [False] * 4 + [True] and len(set(told)) > 1
    assert asked == [word + "a fox" for word in words[: 2 if words[1] else 1]] * (words != ("", ""))
    single = world(theta, steps=1)  # pure noise is all there is
    assert next(iter(srpo()(single))).numbers["from_step"] == 0.0 and srpo().graphs_at_once == 1
    with pytest.raises(TiltingError, match="words of prompts"):
        next(iter(srpo("x")(replace(one, worded=None))))


# Of a value's slope


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_adjoint_matching_by_hand(share):
    """ã_0 = -∇r / β, ã_t = J ã_s by the base's J, a number; Σ |(mean_θ - mean_base) / std + std ã|², kl of the path told."""
    theta = new_theta()
    one = world(theta, steps=5, eta=0.9)
    losses = list(adjoint(beta=0.5, step_fraction=share)(one))
    steps = chain(one, theta.detach(), base_last=True)
    clean, zero = steps[-1][3], torch.zeros(SHAPE, dtype=torch.float64)
    a, held = -(AIM - 0.4 * clean) / 0.5, {}
    for i in reversed(range(5)):
        held[i], (t, s) = a, one.grid[i : i + 2]
        lines = [
            step(*said(torch.full((1, *SHAPE), v, dtype=torch.float64), t, torch.zeros(1), zero), t, s, 0.9)[0]
            for v in (0.0, 1.0)
        ]
        a = a * (lines[1] - lines[0])
    count = max(1, round(share * 4))
    order = torch.randperm(4, generator=one.generator("steps")).tolist()[:count]
    total, told = 0.0, []
    for i in order:
        x, _, std, _ = steps[i]
        t, s = one.grid[i], one.grid[i + 1]
        mean = step(*said(x, t, one.rows, theta), t, s, 0.9)[0]
        base = step(*said(x, t, one.rows, zero), t, s, 0.9)[0]
        total = total + ((mean - base) / std + std * held[i]).flatten(1).square().sum(1).mean() * 4 / count
        told.append(4 * kl_of(one, x, i, mean, std).mean().item())
    alike(losses, total, theta)
    assert [loss.numbers["kl"] for loss in losses] == pytest.approx(told) and updates(losses) == [False] * (count - 1) + [True]
    assert [loss.numbers.get("reward") for loss in losses] == [pytest.approx(reward(clean, one.rows).mean().item())] + [
        None
    ] * (count - 1)
    for wrong in (replace(one, eta=0.0), world(theta, steps=1)):
        with pytest.raises(TiltingError, match="needs eta > 0"):
            next(iter(adjoint()(wrong)))


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize(("last", "count"), [(None, None), (2, None), (3, 2), (9, 9)])
def test_deterministic_policy_gradients_by_hand(critic, last, count):
    """-⟨∇_{x_s} Q, x_s(θ)⟩ and (Q - R)², Q the critic's of the estimate at x_s, by θ held."""
    theta, phi = new_theta(), torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    one = world(theta, steps=4, eta=0.8, critic=(lambda x0, rows: phi * reward(x0, rows)) if critic else None)
    losses = list(dpg(last, count)(one))
    steps = chain(one, theta.detach())
    real, first = reward(steps[-1][3], one.rows), 4 - min(last or 4, 4)
    order = (torch.randperm(4 - first, generator=one.generator("steps")) + first).tolist()[: count or 4]
    total, gain = 0.0, (phi if critic else 1.0)
    for loss, i in zip(losses, order, strict=True):
        x, _, _, drawn = steps[i]
        at = drawn.clone().requires_grad_(True)
        ahead = at if i == 3 else x0_of(at, one.grid[i + 1], one.rows, theta.detach())
        q = gain * reward(ahead, one.rows)
        g = torch.autograd.grad(q.sum(), at, retain_graph=True)[0].detach()
        mean = step(*said(x, one.grid[i], one.rows, theta), one.grid[i], one.grid[i + 1], 0.8)[0]
        error = (gain * reward(ahead.detach(), one.rows) - real).square().mean()
        policy = -(g * (mean - mean.detach())).flatten(1).sum(1).mean() - q.detach().mean()
        total = total + (policy + error * critic) / len(order)
        assert loss.numbers["critic_error"] == pytest.approx(error.item() ** 0.5)
    alike(losses, total, theta)
    if critic:
        assert slope(sum(loss.value for loss in losses), phi).item() == pytest.approx(slope(total, phi).item())
    assert updates(losses) == [False] * (len(order) - 1) + [True]
    assert [("reward" in loss.numbers) for loss in losses] == [True] + [False] * (len(order) - 1)
    assert losses[0].numbers["reward"] == pytest.approx(real.mean().item())
    with pytest.raises(FloatingPointError):
        next(iter(dpg()(replace(one, value=lambda x0, rows: x0.sum((1, 2)) * math.nan))))


# Policies


def standard(value, groups):
    out = torch.zeros_like(value)
    for rows in groups:
        out[rows] = (value[rows] - value[rows].mean()) / (value[rows].std(unbiased=False) + 1e-8)
    return out


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("objective", "advantage"),
    [
        (lambda **more: ddpo(advantage="plain", **more), "others"),
        (lambda **more: ddpo(advantage="plain", ratio=False, **more), "others"),
        (lambda **more: dpok(**more), "others"),
        (lambda **more: grpo(group_size=2, **more), "group"),
        (lambda **more: grpo(group_size=2, minibatches=2, epochs=2, **more), "group"),
        (lambda **more: flow_dppo(group_size=2, **more), "group"),
        (lambda **more: pref_grpo(group_size=2, **more), "wins"),
        (lambda **more: ddpo(**more), "buffer"),
    ],
)
def test_losses_of_policies(objective, advantage, reduction, kl):
    """Mean over a part's steps of -A ratio (or -A log p) + β KL; where all ratios are 1 their slope is A times log p's."""
    theta = new_theta()
    one, policy = world(theta, steps=5, eta=0.9), objective(kl=kl, reduction=reduction)
    losses, steps = list(policy(one)), chain(one, theta.detach())
    value = reward(steps[-1][3], one.rows)
    a = {
        "others": (value - value.mean()) * 4 / 3,
        "group": standard(value, [[0, 1], [2, 3]]),
        "wins": standard((value > value[[1, 0, 3, 2]]).double(), [[0, 1], [2, 3]]),
        "buffer": standard(value, [[0, 1, 2, 3]]),
    }[advantage]
    order = torch.randperm(4, generator=one.generator("order")).tolist()
    parts = [order[0::2], order[1::2]] * 2 if policy.minibatches == 2 else [order]
    total, told, ratio = 0.0, [], policy.ratio
    for part in parts:
        for i in part:
            x, before, std, drawn = steps[i]
            t, s = one.grid[i], one.grid[i + 1]
            mean = step(*said(x, t, one.rows, theta), t, s, 0.9)[0]
            now, then = (log_density(drawn, m, std, reduction) for m in (mean, before))
            loss = -(a * (now - then).exp()).mean() if ratio else -(a * now).mean()
            paid = kl_of(one, x, i, mean, std).mean()
            told.append(paid.item())
            total = total + (loss + kl * paid / (2 if reduction == "mean" else 1)) / len(part)
    assert len(losses) == len(told) and updates(losses) == [k == len(part) - 1 for part in parts for k in range(len(part))]
    total_slope = sum(slope(loss.value, theta) for loss in losses)
    assert sum(loss.value.item() for loss in losses) == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
    assert torch.allclose(total_slope, slope(total, theta), rtol=1e-4, atol=1e-6)
    assert [loss.numbers.get("reward") for loss in losses] == [pytest.approx(value.mean().item())] + [None] * (len(losses) - 1)
    if kl:
        assert [loss.numbers["kl_step"] for loss in losses] == pytest.approx(told)
    else:
        assert not any("kl_step" in loss.numbers for loss in losses)
    with pytest.raises(TiltingError, match="needs eta > 0 and at least 2 steps"):
        next(iter(policy(replace(one, eta=0.0))))


def test_advantages_of_a_policy_are_cut():
    """± 5 of a group: of 40 images, 39 alike, the other is √39 above; dpok's are not."""
    theta = new_theta()
    one = world(theta, "a" * 40, steps=2, value=lambda x0, rows: (rows == 7).double())
    policy = grpo(group_size=40)
    path = rollout(one, closed(one), density="mean")
    found = policy._advantages(one, type("S", (), {"value": one.value(path.clean, one.rows), "parts": None})(), path, [0])
    assert found[0].max().item() == 5.0 and math.sqrt(39) > 6


def test_what_later_steps_pay_counts_in_an_advantage():
    """path_kl: A at step t is r less β times the KL of later steps, less the mean of the others."""

    class Planner(PolicyGradient):
        name, kl, path_kl, limit = "planner", 0.5, True, 1e9

    theta = new_theta()
    one = world(theta, steps=4, eta=0.9)
    path = Planner().draw(one)
    assert list(path.frozen) == [0, 1, 2] and list(path.densities) == [0, 1, 2] and not path.means
    value = reward(path.clean, one.rows)
    scored = type("S", (), {"value": value, "parts": None})()
    found, ahead = Planner()._advantages(one, scored, path, [0, 1, 2]), value
    for i in (2, 1, 0):
        assert torch.allclose(found[i], (ahead - ahead.mean()) * 4 / 3)
        ahead = ahead - 0.5 * path.paid[i]
    calls: list[int] = []
    list(Planner()(replace(one, base=network(0 * theta.detach(), calls))))
    assert calls == [4] * 3  # the frozen model's means are those of the draw
    assert not ddpo(kl=0.5).draw(one).frozen and not ddpo(ratio=False).draw(one).densities and grpo_guard().draw(one).means


def taken(ratio, a, far=None, std=0.5, time=0.25) -> Taken:
    made = [torch.tensor(v, dtype=torch.float64) for v in (a, [math.log(r) for r in ratio])]
    return Taken(*made, None if far is None else torch.tensor(far, dtype=torch.float64), std, time)


def test_surrogates_by_hand():
    """Ratios 1.3, 1.3, .8, .8, 1 with A 1, -1, 1, -1, 2 and a clip of .1."""
    ratio, a = [1.3, 1.3, 0.8, 0.8, 1.0], [1.0, -1.0, 1.0, -1.0, 2.0]
    value, numbers = ddpo(clip=0.1).surrogate(taken(ratio, a))
    assert value.item() == pytest.approx((-1.1 + 1.3 - 0.8 + 0.9 - 2.0) / 5)
    assert numbers == pytest.approx({"ratio_far": 0.3, "clipped": 0.8})
    far = [0.2, 0.2, 0.2, 0.2, 0.05]
    value, numbers = flow_dppo(threshold=0.1).surrogate(taken(ratio, a, far))  # away: 1.3 with A > 0, .8 with A < 0
    assert value.item() == pytest.approx((1.3 - 0.8 - 2.0) / 5)
    assert numbers == pytest.approx({"ratio_far": 0.3, "masked": 0.4, "kl_old": 0.17})
    assert flow_dppo(threshold=0.2).surrogate(taken(ratio, a, far))[1]["masked"] == 0.0  # at δ it is within
    assert flow_dppo(threshold=0.1).surrogate(taken([1.0], [1.0], [0.2]))[0].item() == -1.0
    value, numbers = grpo_guard(clip=0.1).surrogate(taken([1.3, 0.8], [1.0, -1.0], [0.04, 0.0]))
    one, two = math.exp(0.5 * (math.log(1.3) + 0.04)), math.exp(0.5 * math.log(0.8))
    assert value.item() == pytest.approx((-min(one, 1.1) + max(two, 0.9)) / 2 / 0.25) and numbers["kl_old"] == pytest.approx(
        0.02
    )


def test_a_step_of_the_guard_takes_its_flows_time():
    theta, seen = new_theta(), []

    class Watched(type(grpo_guard(group_size=2))):  # type: ignore[misc]
        def surrogate(self, taken):
            seen.append(taken)
            return super().surrogate(taken)

    one = world(theta, steps=4, eta=0.9, alpha_bar=True)
    list(Watched(group_size=2, reduction="sum")(one))
    order = torch.randperm(3, generator=one.generator("order")).tolist()
    for told, i in zip(seen, order, strict=True):
        t, s = one.grid[i], one.grid[i + 1]
        assert told.time == pytest.approx(t.sigma / (t.alpha + t.sigma) - s.sigma / (s.alpha + s.sigma))
        assert told.std == one.std(i) and torch.allclose(told.far, torch.zeros(4, dtype=torch.float64), atol=1e-12)


# Windows


@pytest.mark.parametrize(
    ("training_step", "interval", "stride", "begin"), [(0, 2, 1, 0), (5, 2, 1, 2), (6, 2, 1, 0), (5, 2, 2, 1), (3, 9, 1, 0)]
)
def test_the_window_of_mixgrpo(training_step, interval, stride, begin):
    """Of five steps four have a density; a window of two has three places."""
    one = world(new_theta(), steps=5, eta=0.9, step=training_step)
    found = mixgrpo(group_size=2, window=2, interval=interval, stride=stride).chain(one)
    assert list(found.etas) == [0.9 if begin <= i < begin + 2 else 0.0 for i in range(5)]
    wide = mixgrpo(group_size=2, window=9).chain(one)
    assert list(wide.etas) == [0.9] * 4 + [0.0] and mixgrpo(group_size=2).chain(replace(one, eta=0.0)).etas == ()


@pytest.mark.parametrize(("within", "among"), [(0.5, 2), (0.01, 1), (1.0, 3)])
def test_the_window_of_grpo_fast(within, among):
    for k in range(12):
        one = world(new_theta(), steps=5, eta=0.9, step=k)
        found = list(grpo_fast(group_size=2, window=2, within=within).chain(one).etas)
        drawn = int(torch.randint(among, (1,), generator=one.generator("window")))
        assert found.index(0.9) == drawn and sum(found) == pytest.approx(1.8)


@pytest.mark.parametrize("branch", [False, True])
def test_a_group_is_one_image_up_to_its_window(branch):
    """Images a a b a, groups of two: the trunk is of the first, the third and the fourth; the second goes with the first."""
    theta, calls = new_theta(), []
    prompts, first = "aaba", [0, 0, 2, 3]
    one = world(theta, prompts, steps=5, eta=0.9, step=2, denoise=network(theta, calls))
    policy = mixgrpo(group_size=2, window=2, interval=1, branch=branch)
    random = policy.chain(one)
    assert list(random.etas) == [0, 0, 0.9, 0.9, 0]
    path = policy.draw(random)
    assert calls == ([3, 3, 4, 4, 4] if branch else [4] * 5) and len(path.points) == 5 and list(path.densities) == [2, 3]
    x = one.noise(0)[first] if branch else one.noise(0)
    rows = torch.tensor(first) if branch else one.rows
    for i in range(5):
        t, s = one.grid[i], one.grid[i + 1]
        mean, std = step(*said(x, t, rows if i < 2 else one.rows, theta), t, s, random.etas[i])
        drawn = mean + (std * one.noise(i + 1) if std else 0.0)
        assert torch.allclose(path.points[i].x, x) and torch.allclose(path.points[i].drawn, drawn)
        x = drawn
    assert torch.allclose(path.clean, x)
    everyone = [Identity(7, "a", 10 + i) for i in range(4)]
    mine = replace(random, who=everyone[2:], everyone=everyone, first=2)  # the second process' images are a group of its own
    if branch:
        trunk, place = policy._trunk(mine)
        assert (
            list(trunk.who) == [everyone[2]]
            and place.tolist() == [0, 0]
            and (trunk.everyone, trunk.first, trunk.gather) == ((), 0, None)
        )
    still = policy.draw(replace(random, etas=[0.0] * 5))  # no window: each has its own
    assert torch.allclose(still.points[0].x, one.noise(0)[first] if branch else one.noise(0))


# Fits


def test_samples_put_back_into_the_chain():
    """Of the first .6 of five times; noise of the images' own, or of others'."""
    one = world(new_theta(), "aabb", steps=5)
    clean = torch.arange(4.0, dtype=torch.float64).reshape(2, *SHAPE)
    rows, seen = torch.tensor([3, 1]), set()
    for repeat in range(20):
        point = noised(clean, rows, one, repeat, share=0.6)
        i = int(torch.randint(3, (1,), generator=one.generator(f"time{repeat}")))
        seen.add(i)
        assert point.t == one.grid[i] and torch.equal(point.noise, one.noise(i, f"fit{repeat}")[[3, 1]]) and point.rows is rows
        assert torch.allclose(point.x, one.grid[i].alpha * clean + one.grid[i].sigma * point.noise) and point.clean is clean
        shared = noised(clean, rows, one, repeat, torch.tensor([2, 2]), 0.6)
        assert torch.equal(shared.noise, one.noise(i, f"fit{repeat}")[[2, 2]])
        other = replace(one, everyone=[Identity(1, "c", k) for k in range(3)])
        assert torch.equal(
            noised(clean, rows, other, repeat, torch.tensor([1, 0]), 0.6).noise[1],
            rng.normal(other.everyone, 1, SHAPE, i, f"fit{repeat}")[0, 0].double(),
        )
    assert seen == {0, 1, 2}
    assert noised(clean, rows, one, 0, share=0.01).t == one.grid[0]
    assert {noised(clean, rows, one, k).t for k in range(40)} == set(one.grid[:5])


def error_of(push, point, kind="flow"):
    """(m,) of u = eps - x0, which a flow's network says."""
    x0, eps = said(point.x, point.t, point.rows, push)
    return ((eps - x0) - (point.noise - point.clean)).flatten(1).square().mean(1)


def test_groups_from_worst_to_best():
    one = world(new_theta(), "abaabaa")
    value = torch.tensor([5.0, 1, 2, 9, 0, 3, 8])
    assert ranked(one, value, 2) == [[2, 0], [5, 3], [6], [4, 1]] and ranked(one, value, 9) == [[2, 5, 0, 6, 3], [4, 1]]


@pytest.mark.parametrize("source", ["current", "pretrained"])
def test_reward_weighted_regression(source):
    theta = new_theta()
    one = world(theta, "aab", eta=0.8)
    losses = list(rwr(0.4, 3, source)(one))
    clean, value = draw(one, source)
    assert torch.allclose(clean, chain(one, theta.detach() * (source == "current"))[-1][3]) and not clean.requires_grad
    points = [noised(clean, one.rows, one, k) for k in range(3)]
    errors = [error_of(2 * theta, point) for point in points]
    weight = (value / 0.4).softmax(0)
    alike(losses, sum((weight * error).sum() for error in errors) / 3, theta)
    told = {"reward": reward(clean, one.rows).mean().item(), "error": errors[0].mean().item()}
    assert losses[0].numbers == pytest.approx(told) and losses[1].numbers == {} and updates(losses) == [False, False, True]
    two = replace(one, everyone=[*one.who, *[Identity(9, "z", k) for k in range(3)]], gather=lambda v: torch.cat([v, v]))
    halves = list(rwr(0.4, 3, source)(two))  # each of two processes has half of the weight, and gradients are averaged
    assert sum(loss.value.item() for loss in halves) == pytest.approx(sum(loss.value.item() for loss in losses))
    with pytest.raises(FloatingPointError):
        draw(replace(one, value=lambda x0, rows: x0.sum((1, 2)) * math.nan))


def test_raft_by_hand():
    theta = new_theta()
    one = world(theta, "aabb", eta=0.8)
    losses = list(raft(2, 3)(one))
    clean, value = draw(one)
    best = torch.tensor([0 if value[0] > value[1] else 1, 2 if value[2] > value[3] else 3])
    points = [noised(clean[best], best, one, k) for k in range(3)]
    alike(losses, sum(error_of(2 * theta, point).mean() for point in points) / 3, theta)
    assert losses[0].numbers == pytest.approx({"reward": value.mean().item(), "kept": value[best].mean().item()})


@pytest.mark.parametrize("given", [False, True])
def test_preference_pairs_by_hand(given):
    """-log σ(-β/2 gain) of winner and loser at one time and one noise; of equal rewards neither, and it weighs nothing."""
    theta = new_theta()
    pictures = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(x0, rows):
        return torch.where(rows < 2, reward(x0, rows), 0.0 * rows)  # the second prompt's are alike

    one = world(theta, "aabb", eta=0.8, value=value, given=(lambda: pictures) if given else None)
    losses = list(dpo(beta=3.0, timesteps=3)(one))
    clean = pictures if given else draw(one)[0]
    found = value(clean, one.rows)
    win, lose = ([0, 2], [1, 3]) if given or found[0] > found[1] else ([1, 2], [0, 3])
    total, right = 0.0, []
    for k in range(3):
        errors = []
        for push in (2 * theta, torch.full_like(theta, -0.1)):
            e = [error_of(push, noised(clean[side], torch.tensor(side), one, k, torch.tensor([0, 2]))) for side in (win, lose)]
            errors.append(e[0] - e[1])
        gain = errors[0] - errors[1]
        each = -torch.nn.functional.logsigmoid(-1.5 * gain)
        total = total + (each.mean() if given else each[0] / 2) / 3
        right.append((gain < 0).double().mean().item() if given else float(gain[0] < 0))
    alike(losses, total, theta)
    told = {"accuracy": right[0], "tied": 0.0 if given else 0.5} | ({} if given else {"reward": found.mean().item()})
    assert losses[0].numbers == pytest.approx(told) and updates(losses) == [False, False, True]
    with pytest.raises(TiltingError, match="two images of a prompt"):
        next(iter(dpo()(world(theta, "abc"))))
    alone = list(dpo(beta=3.0, timesteps=1)(world(theta, "aab", eta=0.8)))  # b has nobody to be compared with
    assert len(alone) == 1 and alone[0].numbers["tied"] == 0.0


def test_a_preference_is_right_where_the_winners_error_falls_more():
    """θ = 0 and both networks alike: gain 0 is not right."""
    theta = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    one = world(theta, "aa", eta=0.8, base_plain=network(0 * theta.detach()))
    (loss,) = dpo(beta=3.0, timesteps=1)(one)
    assert loss.numbers["accuracy"] == 0.0 and loss.value.item() == pytest.approx(math.log(2))


# Matching


OLD_PUSH = torch.tensor([0.1, 0.4], dtype=torch.float64).reshape(SHAPE)


def averaged(one, theta, name="old"):
    """A batch that keeps an average, under which θ is another."""

    @contextmanager
    def swapped():
        kept = theta.detach().clone()
        with torch.no_grad():
            theta.copy_(OLD_PUSH)
        yield
        with torch.no_grad():
            theta.copy_(kept)

    def plain(x, t, rows):
        return network(2 * theta)(x, t, rows)

    return replace(one, averages={name: swapped}, plain=plain)


def a_point(one, clean=None, k=0, share=1.0, keys=None):
    clean = chain(one, one.trained[0].detach())[-1][3] if clean is None else clean
    return noised(clean, one.rows, one, k, keys, share)


def u_of(push, point):
    x0, eps = said(point.x, point.t, point.rows, push)
    return eps - x0


@pytest.mark.parametrize("weighting", ["adaptive", "own"])
@pytest.mark.parametrize("probability", ["group", "given"])
def test_nft_by_hand(weighting, probability):
    """5 mean (r e(f+) + (1 - r) e(f-)) / β + distance mean (f_θ - f_base)², at two times, drawn by "old"."""
    theta = new_theta()

    def value(x0, rows):
        return torch.sigmoid(reward(x0, rows))

    one = averaged(world(theta, eta=0.8, value=value), theta)
    drawn = chain(one, OLD_PUSH)[-1][3]
    found = value(drawn, one.rows)
    r = found if probability == "given" else 0.5 + 0.5 * standard(found, [[0, 1], [2, 3]]).clamp(-5, 5) / 5
    objective = nft(2, 0.5, 2, 1.0, probability, weighting, 0.3)
    losses, total, told = [], 0.0, []
    for loss in objective(one):
        losses.append(loss)
    for k in range(2):
        point = noised(drawn, one.rows, one, k)
        old, new, base = (u_of(push, point) for push in (2 * OLD_PUSH, 2 * theta, torch.full_like(theta, -0.1)))

        def e(u, point=point):
            if weighting == "own":
                return (u - (point.noise - point.clean)).flatten(1).square().mean(1)
            off = (point.x - point.t.sigma * u - point.clean).flatten(1)
            return off.square().mean(1) / off.detach().abs().mean(1)

        plus, minus = old + 0.5 * (new - old), old - 0.5 * (new - old)
        far = (new - base).flatten(1).square().mean(1).mean()
        total = total + (5 * ((r * e(plus) + (1 - r) * e(minus)) / 0.5).mean() + 0.3 * far) / 2
        told.append({"from_old": (new - old).square().mean().item(), "from_base": far.item()})
    alike(losses, total, theta)
    told[0]["reward"] = found.mean().item()
    assert [loss.numbers for loss in losses] == [pytest.approx(one) for one in told] and updates(losses) == [False, True]
    plain = list(nft(2, 0.5, 1, distance=0.0)(one))
    assert "from_base" not in plain[0].numbers and nft().drawn_by == "old"
    for low, high in ((-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(TiltingError, match="needs a reward in"):
            next(
                iter(
                    nft(2, probability="given")(
                        replace(one, value=lambda x0, rows, a=low, b=high: torch.where(rows < 2, a, b).double())
                    )
                )
            )
    list(nft(2, probability="given", timesteps=1)(replace(one, value=lambda x0, rows: (rows % 2).double())))


@pytest.mark.parametrize(
    ("weighting", "weigh"),
    [
        ("uniform", lambda e, t: e),
        ("t", lambda e, t: t * e),
        ("t2", lambda e, t: t * t * e),
        ("huber", lambda e, t: t * (e + 1e-10).sqrt()),
        ("ghuber", lambda e, t: t * (e + 1e-10) ** 0.25 / 0.25),
    ],
)
@pytest.mark.parametrize("alpha_bar", [False, True])
def test_awm_by_hand(weighting, weigh, alpha_bar):
    """max(-A ratio, -A clip(ratio)), ratio = exp(w before - w now); a second epoch remembers what was; two distances."""
    theta = new_theta()
    one = averaged(world(theta, eta=0.8, alpha_bar=alpha_bar), theta)
    clean = chain(one, theta.detach())[-1][3]
    a = standard(reward(clean, one.rows), [[0, 1], [2, 3]])
    objective = awm(2, 2, 1.0, 2, 0.01, weighting, 0.2, 0.3, 0.9)
    run, kept = iter(objective(one)), {}
    for epoch in range(2):
        for k in range(2):
            loss, point = next(run), noised(clean, one.rows, one, k)
            time = point.t.sigma / (point.t.alpha + point.t.sigma)
            w = weigh(error_of(2 * theta, point), time)
            before = kept.setdefault(k, w.detach().clone())
            ratio = (before - w).exp()
            wanted = torch.maximum(-a * ratio, -a * ratio.clamp(0.99, 1.01)).mean()
            new, old, base = (u_of(push, point) for push in (2 * theta, 2 * OLD_PUSH, torch.full_like(theta, -0.1)))
            near, far = (new - base).square().mean(), (new - old).square().mean()
            wanted = (wanted + 0.2 * near + 0.3 * far) / 2
            alike([loss], wanted, theta)
            told = {"error": error_of(2 * theta, point).mean().item(), "ratio_far": (ratio - 1).abs().max().item()}
            told |= {"from_base": near.item(), "from_old": far.item()}
            told |= {"reward": reward(clean, one.rows).mean().item()} if epoch == k == 0 else {}
            assert loss.numbers == pytest.approx(told) and loss.update == (k == 1)
        with torch.no_grad():
            theta += 0.05
    assert next(run, None) is None
    plain = next(iter(awm(2, old_distance=0.0)(one))).numbers
    assert "from_old" not in plain and "from_base" not in plain


def test_dgpo_by_hand():
    """β mean σ(S) A e with S = β/K Σ A (e - e_base) of the group, noise the group's own; and the distance to the base."""
    theta = new_theta()
    one = world(theta, "abab", eta=0.8)
    losses = list(dgpo(2, 1.5, 2, 0.6, 0.3)(one))
    clean = chain(one, theta.detach())[-1][3]
    a, total, told = standard(reward(clean, one.rows), [[0, 2], [1, 3]]), 0.0, []
    for k in range(2):
        point = noised(clean, one.rows, one, k, torch.tensor([0, 1, 0, 1]), 0.6)
        assert torch.equal(point.noise[0], point.noise[2])
        base = torch.full_like(theta, -0.1)
        e, reference = error_of(2 * theta, point), error_of(base, point)
        gain = a * (e.detach() - reference)
        weight = torch.sigmoid(1.5 / 2 * torch.stack([gain[0] + gain[2], gain[1] + gain[3]] * 2))
        far = (u_of(2 * theta, point) - u_of(base, point)).square().mean()
        total = total + (1.5 * (weight * a * e).mean() + 0.3 * far) / 2
        told.append({"error": e.mean().item(), "weight": weight.mean().item(), "from_base": far.item()})
    alike(losses, total, theta)
    told[0]["reward"] = reward(clean, one.rows).mean().item()
    assert [loss.numbers for loss in losses] == [pytest.approx(each) for each in told]
    assert "from_base" not in next(iter(dgpo(2)(one))).numbers


@pytest.mark.parametrize(("scaled", "adaptive"), [(True, True), (False, False)])
def test_crd_by_hand(scaled, adaptive):
    """(β (R - mean R) - (A - mean A))² of implicit rewards R = e_old - e_θ; the anchor is the base under CFG, by κ."""
    theta = new_theta()
    one = averaged(world(theta, eta=0.8), theta)
    losses = list(crd(2, 1.5, 1, 1.0, scaled, 0.3, adaptive)(one))
    clean = chain(one, theta.detach())[-1][3]
    a, point = standard(reward(clean, one.rows), [[0, 1], [2, 3]]), noised(clean, one.rows, one, 0)

    def e(push):
        off = (u_of(push, point) - (point.noise - point.clean)).flatten(1)
        return off.square().mean(1) / (off.detach().abs().mean(1) if scaled else 1.0)

    r = e(2 * OLD_PUSH) - e(2 * theta)
    middle = torch.stack([r[:2].mean(), r[2:].mean()]).repeat_interleave(2).detach()
    off = 1.5 * (r - middle) - a
    far = (u_of(2 * theta, point) - u_of(0 * theta, point)).flatten(1).square().mean(1)
    kappa = 0.5 + 0.1 * a if adaptive else torch.ones_like(a)
    alike(losses, off.square().mean() + 0.3 * (kappa * far).mean(), theta)
    told = {
        "reward": reward(clean, one.rows).mean().item(),
        "unexplained": off.square().mean().item(),
        "from_base": far.mean().item(),
    }
    assert losses[0].numbers == pytest.approx(told) and "from_base" not in next(iter(crd(2, distance=0.0)(one))).numbers


@pytest.mark.parametrize("name", ["nft", "awm", "dgpo", "crd"])
def test_matching_needs_a_finite_reward(name):
    one = world(new_theta(), value=lambda x0, rows: x0.sum((1, 2)) * math.nan)
    with pytest.raises(FloatingPointError):
        next(iter(OBJECTIVES[name](group_size=2)(one)))


# Distillation


@pytest.mark.parametrize("eta", [0.0, 0.8])
@pytest.mark.parametrize("count", [None, 2])
def test_a_teacher_that_is_a_network(eta, count):
    """|mean_θ - mean_teacher|² / (2 std²), a mean over dimensions; of outputs where a step has no noise."""
    theta, aim = new_theta(), torch.tensor([0.6, 0.1], dtype=torch.float64).reshape(SHAPE)
    one = world(theta, eta=eta, teacher=network(aim))
    losses = list(opd(steps=count)(one))
    steps = chain(one, theta.detach())
    order = torch.randperm(4, generator=one.generator("steps")).tolist()[:count]
    total, told = 0.0, []
    for i in order:
        x, _, std, _ = steps[i]
        t, s = one.grid[i], one.grid[i + 1]
        if std > 0:
            means = [step(*said(x, t, one.rows, push), t, s, eta)[0] for push in (theta, aim)]
            far = (means[0] - means[1]).flatten(1).square().mean(1).mean() / (2 * std**2)
        else:
            both = [said(x, t, one.rows, push) for push in (theta, aim)]
            far = ((both[0][1] - both[0][0]) - (both[1][1] - both[1][0])).square().mean()
        total, told = total + far / len(order), [*told, far.item()]
    alike(losses, total, theta)
    assert [loss.numbers["from_teacher"] for loss in losses] == pytest.approx(told)
    value = reward(steps[-1][3], one.rows).mean().item()
    assert [loss.numbers.get("reward") for loss in losses] == [pytest.approx(value)] + [None] * (len(order) - 1)
    assert updates(losses) == [False] * (len(order) - 1) + [True]


def test_a_teacher_that_is_a_sampler():
    """Finished samples of the frozen model under the method, fitted at new times in every epoch; eta 1 where it selects."""
    theta = new_theta()
    one = world(theta, eta=0.0, cfg=2.0, law="cps")
    method = presets.code(3).build(T)
    ends = {}
    for eta in (0.5, 1.0):
        p = Problem(one.base, one.grid, one.who, SHAPE, reward, eta, 2.0, 4, dtype=torch.float64, law="cps")
        state = start(p, method)
        for state, _ in sample(p, method, state):  # noqa: B007, B020
            pass
        ends[eta] = finish(p, method, state).x[:, 0]
    assert torch.allclose(steered(one, presets.code(3)), ends[1.0]) and not torch.allclose(ends[0.5], ends[1.0])
    assert torch.allclose(steered(replace(one, eta=0.5), presets.code(3)), ends[0.5])
    deterministic = steered(one, presets.bon(2))
    assert torch.allclose(deterministic, steered(replace(one, law="posterior"), presets.bon(2)))  # eta stays 0
    losses = list(opd("bon", timesteps=2, epochs=2)(one))
    clean, total, errors = steered(one, presets.bon()), 0.0, []
    for k in range(4):
        e = error_of(2 * theta, noised(clean, one.rows, one, k)).mean()
        total, errors = total + e / 2, [*errors, e.item()]
    alike(losses, total, theta)
    assert [loss.numbers["error"] for loss in losses] == pytest.approx(errors) and updates(losses) == [False, True] * 2
    value = reward(clean, one.rows).mean().item()
    assert [loss.numbers.get("reward") for loss in losses] == [pytest.approx(value), None, None, None]
    with pytest.raises(TiltingError, match="did you mean 'bon'"):
        opd("bom")
