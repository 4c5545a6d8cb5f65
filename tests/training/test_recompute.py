"""Steps made again on the way back: the gradients of held ones, to the bit; what is held, what is paid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.drift import STEPS, Drift, gradient, make, moved
from tilting.objectives import alignprop, draft, draft_k, draft_lv
from tilting.objectives.recompute import recomputed
from tilting.objectives.rollout import rollout
from tilting.training.loop import Optimiser, TrainState, train

ALL = torch.ones(STEPS, dtype=torch.bool)


def known(net, world):
    return replace(world, trained=list(net.parameters()))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", ["draft", "draft-3", "alignprop", "per step", "lv-single", "kl"])
def test_the_gradient_is_that_of_held_activations(mixture, name, eta):
    if name == "kl" and not eta:
        pytest.skip("no density")
    net = moved(Drift())
    world = make(mixture, net, eta=eta, value=lambda x0, rows: -(x0 - 1).square().sum(1))
    objective = {
        "draft": draft(),
        "draft-3": draft_k(3),
        "alignprop": alignprop(),
        "per step": alignprop("step"),
        "lv-single": draft_lv(2, single=True),
        "kl": draft(kl=0.3),
    }[name]
    found = gradient(objective, known(net, world), net)
    assert found.abs().max() > 0
    assert torch.equal(found, gradient(objective, world, net))
    assert torch.allclose(found, gradient(objective, replace(world, checkpointed=False), net), rtol=1e-12, atol=1e-15)


def test_gradients_reach_parameters_and_start_without_backward_too(mixture):
    net = moved(Drift())
    world = make(mixture, net, eta=0.0)
    parameters, begin = list(net.parameters()), world.noise(0).requires_grad_(True)
    worlds = known(net, world), replace(world, checkpointed=False)
    first, second = (torch.autograd.grad(rollout(w, ALL, x=begin).clean.sum(), [begin, *parameters]) for w in worlds)
    assert all(p.grad is None for p in parameters)
    for a, b in zip(first, second, strict=True):
        assert b.abs().max() > 0
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_a_step_holds_its_latent_and_nothing_of_the_network(mixture):
    """What grows with T: a latent per step."""
    net = moved(Drift())
    given = {p.data_ptr() for p in net.parameters()}

    def held(world):
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda v: found.setdefault(v.data_ptr(), v), lambda v: v):
            path = rollout(world, torch.ones(world.steps, dtype=torch.bool))
        assert path.clean.requires_grad
        return sum(v.nbytes for place, v in found.items() if place not in given)

    for steps in (4, 8):
        world = make(mixture, net, steps=steps)
        latent = world.noise(0).nbytes
        assert held(known(net, world)) == steps * latent
        assert held(replace(world, checkpointed=False)) > 8 * steps * latent


@pytest.mark.parametrize("opened", [1, 3, STEPS])
def test_every_step_is_paid_once_and_open_ones_twice(mixture, opened):
    net = moved(Drift())
    world = make(mixture, net)
    modes = []

    def denoise(x, t, rows):
        modes.append(torch.is_grad_enabled())
        return world.denoise(x, t, rows)

    gradient(draft_k(opened), known(net, replace(world, denoise=denoise)), net)
    assert modes == [False] * STEPS + [True] * opened


def test_only_what_is_named_gets_a_gradient():
    a, b, x = (torch.tensor([v], requires_grad=True) for v in (2.0, 3.0, 5.0))
    y, z = recomputed(lambda v: (a * b * v, v.detach() + 1), x, [a])
    (y + z).backward()
    assert (a.grad.item(), x.grad.item(), b.grad) == (15.0, 6.0, None)


def test_the_loop_says_what_is_trained(mixture):
    """Training steps are those of held activations made by hand: backward, clip, AdamW."""
    net, other = moved(Drift()), moved(Drift())
    settings = Optimiser(rate=1e-2)
    training = TrainState(dict(net.named_parameters()), settings.build(dict(net.named_parameters())))
    seen = []

    class Watched:
        name, updates_several = "watched", False

        def __call__(self, world):
            seen.append([id(p) for p in world.trained])
            yield from draft()(world)

    list(train(training, Watched(), lambda k, memory: make(mixture, net, step=k), settings, 2))
    assert seen == [[id(p) for p in net.parameters()]] * 2
    by_hand = settings.build(list(other.parameters()))
    for k in range(2):
        gradient(draft(), make(mixture, other, step=k, checkpointed=False), other)
        torch.nn.utils.clip_grad_norm_(other.parameters(), settings.clip)
        by_hand.step()
    for mine, hers in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, hers, rtol=1e-9, atol=1e-12)
