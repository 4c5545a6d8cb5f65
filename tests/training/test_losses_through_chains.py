"""The losses of objectives that go through a chain, written out again: value, slope in θ, what they tell, updates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.line import (
    AIM,
    SHAPE,
    alike,
    chain,
    kl_of,
    log_density,
    network,
    new_theta,
    reward,
    said,
    slope,
    step,
    updates,
    world,
    x0_of,
)
from tilting.errors import TiltingError
from tilting.objectives import adjoint, alignprop, dpg, draft, draft_k, draft_lv, drtune, refl, srpo
from tilting.objectives.batch import closed
from tilting.objectives.gradient import dropped
from tilting.objectives.rollout import density_steps, freeze_eps, rollout
from tilting.objectives.truncate import Truncation
from tilting.rng import Identity
from tilting.types import Time

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


def test_which_steps_alignprop_and_draft_k_open():
    assert alignprop("step", 0.4).truncation == Truncation("step", None, 0.4) and alignprop().truncation == Truncation(
        "random", None, 0.5
    )
    assert draft_k(3).truncation == Truncation("last", 3) and draft().truncation == Truncation("all")


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
