"""Deterministic policy gradient and single-reward DRaFT-LV on the mixture, against full DRaFT and computations by hand; what
the loop undoes, and what it steps apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from support.drift import AIM, STEPS, Drift, gradient, make, moved
from tilting.objectives import OBJECTIVES, ddpo, dpg, draft, draft_k, draft_lv
from tilting.objectives.batch import Loss
from tilting.objectives.dpg import Dpg
from tilting.objectives.gradient import dropped
from tilting.objectives.rollout import rollout
from tilting.schedule import add_noise, transition
from tilting.training.loop import Group, Optimiser, TrainState, train


def bowl(x0, rows):
    return -(x0 - 1).square().sum(1)


class Exact(Dpg):
    """The critic is given the end of the chain itself: the exact return."""

    def ahead(self, world, x, i):
        for k in range(i, world.steps):
            t, s = world.grid[k], world.grid[k + 1]
            kernel = transition(world.denoise(x, t, world.rows), t, s, world.eta)
            x = kernel.mean + kernel.std * world.noise(k + 1)
        return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_the_exact_return_dpg_is_full_draft(mixture, eta):
    """The deterministic policy gradient theorem: ∇J = Σ_t ∇_a Q*(s_t, a_t) ∇_θ a_t, the noise of eta > 0 being the world's."""
    net = moved(Drift())
    world = make(mixture, net, eta=eta, value=bowl)
    wanted = gradient(draft(), world, net)
    assert torch.allclose(STEPS * gradient(Exact(), world, net), wanted, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(STEPS * gradient(dpg(), world, net), wanted, rtol=0.05)  # one-step estimates are not returns
    assert torch.allclose(gradient(dpg(last=1), world, net), gradient(draft_k(1), world, net), rtol=1e-9, atol=1e-12)


def test_the_critic_is_regressed_on_the_return_and_leaves_the_policy_alone(mixture):
    """Q_φ = φ · x̂_0: both gradients written out, with x̂_0 of the next state by the network's own estimate."""
    net, phi = moved(Drift()), nn.Parameter(torch.tensor([0.3, 0.2], dtype=torch.float64))
    world = make(mixture, net, eta=0.0, value=bowl, critic=lambda x0, rows: x0 @ phi)
    found = gradient(dpg(), world, net)
    learned = phi.grad.clone()
    phi.grad = None
    with torch.no_grad():
        path = rollout(world, torch.zeros(STEPS, dtype=torch.bool))
        value = bowl(path.clean, None)
        wanted = torch.zeros(2, dtype=torch.float64)
        for i, point in enumerate(path.points):
            clean = point.drawn if i == STEPS - 1 else world.denoise(point.drawn, world.grid[i + 1], world.rows).x0
            wanted += (2 * (clean @ phi - value)[:, None] * clean).mean(0) / STEPS
    assert torch.allclose(learned, wanted, rtol=1e-10)
    # θ sees φ as a constant reward: the same as with r(x_0) = φ · x_0 and nothing to train
    fixed = phi.detach().clone()
    assert torch.allclose(
        found, gradient(dpg(), make(mixture, net, eta=0.0, value=lambda x0, rows: x0 @ fixed), net), rtol=1e-10
    )
    assert found.abs().max() > 1e-3


def test_a_trained_critic_knows_its_returns(mixture):
    """From a wrong reward, the critic alone (no rate for the drift) comes to the least squares solution of its own features."""
    net, head = Drift(), nn.Linear(2, 1).double()
    parameters = {
        **{f"net.{k}": p for k, p in net.named_parameters()},
        **{f"critic.{k}": p for k, p in head.named_parameters()},
    }
    optimiser = Optimiser(rate=0.1, weight_decay=0.0, clip=10.0, groups=(Group("net.", 0.0),))
    training = TrainState(parameters, optimiser.build(parameters))

    def world_of(step, memory):
        return make(mixture, net, images=32, steps=4, eta=0.0, memory=memory, critic=lambda x0, rows: head(x0)[:, 0])

    errors = [r.numbers["critic_error"] for r in train(training, dpg(), world_of, optimiser, 80)]
    world = world_of(0, {})
    with torch.no_grad():
        path = rollout(world, torch.zeros(4, dtype=torch.bool))
        clean = [world.denoise(p.drawn, world.grid[i + 1], world.rows).x0 for i, p in enumerate(path.points[:-1])] + [
            path.clean
        ]
        features = torch.cat([torch.cat([c, torch.ones(32, 1).double()], 1) for c in clean])
        target = (path.clean @ AIM).repeat(4)
        best = torch.linalg.lstsq(features, target[:, None]).solution[:, 0]
    assert torch.allclose(head.weight[0], best[:2], atol=0.03)
    assert errors[-1] < errors[0] / 2
    assert torch.equal(net.last.weight, Drift().last.weight)


def test_single_reward_draft_lv_is_one_reward_gradient_through_every_copy(mixture):
    """∇_x r(x_0) Σ_j ∇_θ x̂_j by hand; for a linear reward, whose gradient is the same everywhere, it is DRaFT-LV itself."""
    net = moved(Drift())
    line = make(mixture, net)
    assert torch.allclose(gradient(draft_lv(2, single=True), line, net), gradient(draft_lv(2), line, net), rtol=1e-10)
    world = make(mixture, net, value=bowl)
    found = gradient(draft_lv(2, single=True), world, net)
    one = gradient(draft_k(1), world, net)
    with torch.no_grad():
        clean = rollout(world, torch.zeros(STEPS, dtype=torch.bool)).clean
    t, s = world.grid[-2], world.grid[-1]
    net.zero_grad()
    for j in range(2):
        again = world.denoise(add_noise(clean, world.noise(STEPS, f"copy{j}"), t), t, world.rows)
        (-(-2 * (clean - 1)) * transition(again, t, s, world.eta).mean).sum(1).mean().backward()
    rest = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(found, one + rest, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found, gradient(draft_lv(2), world, net), rtol=0.01)


def test_a_dropped_reward_is_dropped_with_its_copies(mixture):
    net = moved(Drift())
    world = make(mixture, net, value=bowl)
    kept = dropped(torch.ones(16, dtype=torch.float64), 0.5, world)
    assert set(kept.tolist()) == {0.0, 2.0}
    weighed = replace(world, value=lambda x0, rows: kept[rows] * bowl(x0, rows))
    for single in (False, True):
        assert torch.allclose(
            gradient(draft_lv(2, single, dropout=0.5), world, net), gradient(draft_lv(2, single), weighed, net), rtol=1e-10
        )


# The loop


def losses(net, broken=()):
    """An objective of |p - 1|² whose gradient is infinite where it is broken; two updates a step, which it does not say."""

    class Twice:
        name, updates_several = "twice", True

        def __call__(self, world):
            for k in range(2):
                far = sum((p - 1).square().sum() for p in net.parameters())
                world.memory["seen"] = world.memory.get("seen", 0) + 1
                yield Loss(_steep(far) if (world.step, k) in broken else far, {})

    return Twice()


def _steep(value):
    """Finite, with a gradient that is not."""
    return value + (value - value.detach()).abs().sqrt()


def go(net, objective, mixture, steps, **options):
    parameters = dict(net.named_parameters())
    optimiser = Optimiser(rate=1e-2, weight_decay=0.0, **options)
    training = TrainState(parameters, optimiser.build(parameters))
    reports = list(
        train(training, objective, lambda step, memory: make(mixture, net, step=step, memory=memory), optimiser, steps)
    )
    return training, reports


def test_a_second_update_that_breaks_takes_the_first_one_back(mixture):
    """Step 1 breaks in its second update: weights, moments and memory are those of a run of which it was never a part."""
    broken, whole = Drift(4), Drift(4)
    training, reports = go(broken, losses(broken, {(1, 1)}), mixture, 2)
    wanted, _ = go(whole, losses(whole), mixture, 1)
    assert [r.skipped for r in reports] == [None, "the gradient is not finite"]
    for (name, mine), theirs in zip(training.parameters.items(), wanted.parameters.values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert training.memory == wanted.memory == {"seen": 2}
    for mine, theirs in zip(training.saved().optimiser.values(), wanted.saved().optimiser.values(), strict=True):
        assert torch.equal(mine, theirs)


def test_steps_of_one_update_keep_no_copy_and_leave_no_trace(mixture, monkeypatch):
    copies = []
    saved = TrainState.saved
    monkeypatch.setattr(TrainState, "saved", lambda self: copies.append(self.step) or saved(self))
    calls = {"n": 0}

    def value(x0, rows):
        calls["n"] += 1
        bad = calls["n"] == 2
        return _steep(x0 @ AIM) if bad else x0 @ AIM

    for objective, paid in ((draft_k(1), []), (ddpo(), []), (ddpo(minibatches=2), [0, 1, 2])):
        copies.clear()
        before: list = []
        assert objective.updates_several == bool(paid)
        net = Drift(4)
        parameters = dict(net.named_parameters())
        optimiser = Optimiser(rate=1e-2)
        training = TrainState(parameters, optimiser.build(parameters))
        for report in train(
            training, objective, lambda step, memory: make(mixture, net, step=step, memory=memory, value=value), optimiser, 3
        ):
            if objective.name == "draft-k":
                now = [p.detach().clone() for p in net.parameters()] + list(saved(training).optimiser.values())
                if report.step == 2:
                    assert report.skipped == "the gradient is not finite"
                    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
                before = now
        assert copies == paid


def test_every_objective_says_rightly_whether_it_makes_several_updates(mixture):
    for name, factory in OBJECTIVES.items():
        objective = factory()
        world = make(mixture, Drift(4), images=8, prompts=2, memory={})
        count = sum(loss.update for loss in objective(world))
        assert objective.updates_several == (count > 1), name


def test_groups_have_their_own_rate_decay_and_clip(mixture):
    """Against AdamW written out for one step: m / sqrt(v) is the gradient's sign, and decay is rate · weight_decay · p."""
    net = nn.ParameterDict(
        {"a": nn.Parameter(torch.full((3,), 2.0).double()), "b": nn.Parameter(torch.full((2,), 5.0).double())}
    )

    class Steep:
        name, updates_several = "steep", False

        def __call__(self, world):
            yield Loss(3 * net["a"].sum() - 40 * net["b"].sum(), {})

    parameters = dict(net.items())
    optimiser = Optimiser(rate=1e-2, weight_decay=0.5, clip=1.0, groups=(Group("b", 50.0, decays=False),))
    training = TrainState(parameters, optimiser.build(parameters))
    (report,) = train(training, Steep(), lambda step, memory: make(mixture, Drift(4), memory=memory), optimiser, 1)
    assert torch.allclose(net["a"], torch.full((3,), 2 - 1e-2 * 0.5 * 2 - 1e-2).double(), atol=1e-6)
    assert torch.allclose(net["b"], torch.full((2,), 5 + 0.5).double(), atol=1e-6)
    assert report.numbers["gradient_norm"] == pytest.approx((3 * 9 + 2 * 1600) ** 0.5)
    moments = training.saved().optimiser  # first moment: (1 - .9) of the clipped gradient, of norm 1 in each group
    assert (10 * moments["0.exp_avg"]).norm().item() == pytest.approx(1, rel=1e-4)
    assert (10 * moments["1.exp_avg"]).norm().item() == pytest.approx(1, rel=1e-4)
