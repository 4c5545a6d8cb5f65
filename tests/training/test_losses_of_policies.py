"""The losses of policies, their windows and surrogates, written out again: value, slope in θ, what they tell, updates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.line import chain, kl_of, log_density, network, new_theta, reward, said, slope, standard, step, updates, world
from tilting.errors import TiltingError
from tilting.objectives import ddpo, dpok, flow_dppo, grpo, grpo_fast, grpo_guard, mixgrpo, pref_grpo
from tilting.objectives.batch import closed
from tilting.objectives.policy import PolicyGradient, Taken
from tilting.objectives.rollout import rollout
from tilting.rng import Identity

# Policies


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
    value, numbers = grpo_guard(clip=0.1).surrogate(taken([1.1, 0.8], [1.0, -1.0], [0.04, 0.0]))
    one, two = math.exp(0.5 * (math.log(1.1) + 0.04)), math.exp(0.5 * math.log(0.8))
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
