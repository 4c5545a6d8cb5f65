"""The losses of objectives that fit samples, or a teacher, written out again: value, slope in θ, what they tell, updates."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from support.line import SHAPE, T, alike, chain, error_of, network, new_theta, reward, said, standard, step, updates, world
from tilting import presets, rng
from tilting.errors import TiltingError
from tilting.objectives import OBJECTIVES, awm, crd, dgpo, dpo, nft, opd, raft, rwr
from tilting.objectives.distil import steered
from tilting.objectives.supervised import draw, noised, ranked
from tilting.rng import Identity
from tilting.sample import Problem, finish, sample, start

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


def test_a_prompt_that_dgpo_draws_twice_is_one_group():
    """A is of all its images; within half of them its sum is not 0, and the normalising constants would not cancel."""
    theta = new_theta()
    one = world(theta, "aaaa", eta=0.8)
    loss = next(iter(dgpo(2, 1.5, 1)(one)))
    clean = chain(one, theta.detach())[-1][3]
    a = standard(reward(clean, one.rows), [[0, 1, 2, 3]])
    assert abs(a[:2].sum()) > 0.1
    point = noised(clean, one.rows, one, 0, torch.tensor([0, 0, 2, 2]), 0.6)
    e, reference = error_of(2 * theta, point), error_of(torch.full_like(theta, -0.1), point)
    weight = torch.sigmoid(1.5 * (a * (e - reference)).mean())
    assert loss.numbers["weight"] == pytest.approx(weight.item())
    assert loss.value.item() == pytest.approx((1.5 * weight * a * e).mean().item())


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
        e = error_of(theta, noised(clean, one.rows, one, k)).mean()  # of what draws: under CFG
        total, errors = total + e / 2, [*errors, e.item()]
    alike(losses, total, theta)
    assert [loss.numbers["error"] for loss in losses] == pytest.approx(errors) and updates(losses) == [False, True] * 2
    value = reward(clean, one.rows).mean().item()
    assert [loss.numbers.get("reward") for loss in losses] == [pytest.approx(value), None, None, None]
    with pytest.raises(TiltingError, match="did you mean 'bon'"):
        opd("bom")
