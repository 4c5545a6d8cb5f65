"""Fine-tuning on the analytic mixture: closed-form gradients, published identities, the tilt itself, skipped steps, resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tilting.errors import TiltingError
from tilting.finetune.checkpoint import read, states, write
from tilting.finetune.loop import Optimiser, Training, train
from tilting.finetune.objectives import (
    OBJECTIVES,
    adjoint,
    alignprop,
    ddpo,
    dpg,
    dpo,
    dpok,
    draft,
    draft_k,
    draft_lv,
    grpo,
    refl,
)  # fmt: skip
from tilting.finetune.objectives.policy import buffered_advantage, group_advantage
from tilting.finetune.rollout import density_steps, rollout, step_log_prob
from tilting.finetune.truncate import Truncation
from tilting.finetune.world import World
from tilting.models.mixture import MixtureModel
from tilting.rng import Identity
from tilting.schedule import Schedule, scaled_linear
from tilting.types import Prediction

ZERO = Schedule("v_prediction", scaled_linear(zero_snr=True))
AIM = torch.tensor([0.7, -0.4], dtype=torch.float64)
STEPS = 8


class Drift(nn.Module):
    """eps_θ = eps_base + θ-dependent push of x0: a little network of (x, t), zero at first."""

    def __init__(self, width: int = 32):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()).double()
        self.last = nn.Linear(width, 2).double()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x, t):
        here = torch.tensor([t.alpha, t.sigma], dtype=x.dtype).expand(len(x), 2)
        return self.last(self.inner(torch.cat([x, here], 1)))


def make(mixture, net, images=16, steps=STEPS, eta=1.0, value=None, seed=0, step=0, prompts=4, **options) -> World:
    base = MixtureModel(mixture, ZERO).denoiser()

    def denoise(x, t, rows):
        eps, x0, c = base(x, t, rows)
        push = net(x, t)
        return Prediction(eps - t.alpha * push, x0 + t.sigma * push, c)  # consistent with x = α x0 + σ eps

    who = [Identity(seed, f"prompt {i % prompts}", step * images + i) for i in range(images)]
    return World(
        denoise, base, denoise, base, value or (lambda x0, rows: x0 @ AIM), ZERO.grid(steps), who, (2,), eta, step, seed,
        dtype=torch.float64, **options,
    )  # fmt: skip


def moved(net, scale=0.3):
    """The same network with its last layer away from zero."""
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        net.last.weight.copy_(scale * torch.randn(net.last.weight.shape, generator=gen, dtype=torch.float64))
        net.last.bias.copy_(scale * torch.randn(2, generator=gen, dtype=torch.float64))
    return net


def gradient(objective, world, net):
    net.zero_grad()
    for loss in objective(world):
        loss.value.backward()
    return torch.cat(
        [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel(), dtype=torch.float64) for p in net.parameters()]
    )


# Gradients against finite differences, and identities


def objective_value(objective, world):
    with torch.no_grad():
        return sum(loss.value.item() for loss in objective(world))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_drafts_gradient_is_that_of_the_whole_chain(mixture, eta, kl):
    if kl and not eta:
        pytest.skip("no density")
    net = moved(Drift())
    world = make(mixture, net, eta=eta, value=lambda x0, rows: -(x0 - 1).square().sum(1))
    objective = draft(kl=kl)
    found = gradient(objective, world, net)
    for index, p in ((0, net.last.bias), (1, net.last.bias)):
        with torch.no_grad():
            p[index] += 1e-5
            up = objective_value(objective, world)
            p[index] -= 2e-5
            down = objective_value(objective, world)
            p[index] += 1e-5
        assert found[-2 + index].item() == pytest.approx((up - down) / 2e-5, rel=1e-5)


def test_checkpointing_changes_nothing(mixture):
    net = moved(Drift())
    world = make(mixture, net)
    held, again = (gradient(draft(kl=0.1), replace(world, checkpointed=c), net) for c in (False, True))
    assert torch.allclose(held, again, rtol=1e-12)


def test_published_identities_of_the_draft_family(mixture):
    net = moved(Drift())
    world = make(mixture, net)
    full, whole = gradient(draft(), world, net), gradient(draft_k(STEPS), world, net)
    assert torch.equal(full, whole)
    one = gradient(draft_k(1), world, net)
    assert torch.allclose(gradient(draft_lv(0), world, net), one, rtol=1e-12)
    assert torch.allclose(gradient(refl(1), world, net), one, rtol=1e-12)  # the last grid value is (1, 0)
    assert not torch.allclose(full, one, rtol=0.05)
    half = gradient(draft_k(STEPS // 2), world, net)
    assert not torch.allclose(half, one, rtol=0.05)
    assert not torch.allclose(half, full, rtol=0.05)


def test_the_copies_of_draft_lv_are_fair_samples_of_the_same_gradient(mixture):
    """Per reward their mean gradient is DRaFT-1's, and their spread is no larger. (Here nearly all variance is between
    images, not within
    one: how much the copies save is a question for a real model.)"""
    net, found = moved(Drift()), {}
    for name, objective, calls in (("one", draft_k(1), 1), ("lv", draft_lv(4), 5)):
        worlds = (make(mixture, net, images=2, step=k, value=lambda x0, rows: -(x0 - 1).square().sum(1)) for k in range(150))
        found[name] = torch.stack([gradient(objective, world, net)[-2:] for world in worlds]) / calls
    apart = found["lv"] - found["one"]  # paired: the same images
    assert (apart.mean(0).abs() < 4 * apart.std(0) / 150**0.5).all()
    assert found["lv"].var(0).sum() < 1.02 * found["one"].var(0).sum()
    assert apart.abs().min() > 0


@pytest.mark.parametrize(("rule", "low", "high"), [("all", 8, 8), ("last", 3, 3), ("random", 1, 8), ("step", 1, 7)])
def test_masks(rule, low, high):
    truncation, counts = Truncation(rule, 3), []
    for k in range(200):
        mask = truncation.mask(8, torch.Generator().manual_seed(k))
        counts.append(int(mask.sum()))
        if rule != "step":
            assert mask[8 - counts[-1] :].all()
    assert min(counts) == low
    assert max(counts) == high
    if rule == "random":
        assert abs(sum(counts) / 200 - 4.5) < 0.6


def test_a_closed_step_still_passes_gradients_of_earlier_ones(mixture):
    """AlignProp's per-step truncation: eps is held where the mask is False, the linear part of the step is not."""
    net = moved(Drift())
    world = make(mixture, net, eta=0.0)
    mask = torch.zeros(STEPS, dtype=torch.bool)
    mask[2] = True
    path = rollout(world, mask)
    path.clean.sum().backward()
    assert net.last.bias.grad.abs().min() > 0
    assert gradient(alignprop("step"), world, net).abs().sum() > 0


# Policy gradients


def test_ratio_is_one_and_kl_is_zero_before_the_first_update(mixture):
    world = make(mixture, Drift())
    for objective in (ddpo(kl=0.5, epochs=1), grpo(size=4, kl=0.5)):
        for loss in objective(world):
            assert loss.numbers["ratio_far"] == 0.0
            assert loss.numbers["kl_step"] == 0.0
    assert rollout(world, torch.ones(STEPS, dtype=torch.bool), kl=True).kl.abs().max() == 0.0
    assert next(iter(dpo()(make(mixture, Drift(), memory={})))).value.item() == pytest.approx(0.6931 / 4, rel=1e-3)


def test_the_policy_gradient_is_unbiased(mixture):
    """REINFORCE with plain advantages against the gradient of the same expectation through the chain (the last step, which
    has no density, left out of both)."""
    net = moved(Drift(), 0.1)
    policy = replace(dpok(kl=0.0), advantage="plain", limit=1e9)
    score, path = [], []
    for k in range(120):
        world = make(mixture, net, images=128, step=k, steps=4)
        score.append(gradient(policy, world, net)[-2:] * len(density_steps(world)))
        mask = torch.tensor([True, True, True, False])
        path.append(_through_mean_only(net, world, mask))
    score, path = torch.stack(score), torch.stack(path)
    wanted, error = path.mean(0), score.std(0) / len(score) ** 0.5
    bias = 127 / 128  # the baseline contains the sample itself
    assert ((score.mean(0) / bias - wanted).abs() < 4 * error + 0.02 * wanted.abs()).all()
    assert (wanted.abs() > 6 * error).any()


def _through_mean_only(net, world, mask):
    """Gradient of E[r] with the last step's parameters held but its input free: the reparameterised counterpart."""
    net.zero_grad()
    x = world.noise(0)
    from tilting.schedule import transition

    for i, (t, s) in enumerate(zip(world.grid, world.grid[1:], strict=False)):
        if mask[i]:
            kernel = transition(world.denoise(x, t, world.rows), t, s, world.eta)
        else:
            for p in net.parameters():
                p.requires_grad_(False)
            kernel = transition(world.denoise(x, t, world.rows), t, s, world.eta)
            for p in net.parameters():
                p.requires_grad_(True)
        x = kernel.mean + kernel.std * world.noise(i + 1)
    (-x @ AIM).mean().backward()
    return net.last.bias.grad.clone()


def test_advantages():
    value = torch.tensor([1.0, 3.0, 10.0, 10.0, 5.0], dtype=torch.float64)
    found = group_advantage(value, ["a", "a", "b", "b", "c"])
    assert torch.allclose(found, torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64), atol=1e-6)
    memory: dict = {}
    first = buffered_advantage(value[:2], ["a", "b"], memory, 4, 2)
    assert torch.allclose(first, (value[:2] - 2) / 1.0, atol=1e-4)  # too few of each: the batch's own statistics
    second = buffered_advantage(torch.tensor([5.0], dtype=torch.float64), ["a"], memory, 4, 2)
    assert second.item() == pytest.approx((5 - 3) / 2, abs=1e-4)
    for _ in range(5):
        buffered_advantage(value[2:3], ["a"], memory, 4, 2)
    assert memory["rewards"] == {"a": [10.0] * 4, "b": [3.0]}


def test_log_prob_of_a_path_is_a_density(mixture):
    net = moved(Drift())
    world = make(mixture, net)
    path = rollout(world, torch.zeros(STEPS, dtype=torch.bool))
    i = density_steps(world)[2]
    total = step_log_prob(world.denoise, path.points[i], world.rows, world.eta, "sum")
    mean = step_log_prob(world.denoise, path.points[i], world.rows, world.eta, "mean")
    assert torch.allclose(total, 2 * mean)


# Every objective learns, and what stops it


def run(objective, mixture, steps, images=16, value=None, eta=1.0, folder=None, until=None):
    net, optimiser = Drift(), Optimiser(rate=5e-3, weight_decay=0.0)
    parameters = dict(net.named_parameters())
    training = Training(parameters, optimiser.build(list(parameters.values())))
    if folder is not None and (held := read(folder)) is not None:
        training.restore(held)

    def world_of(step, memory):
        return make(mixture, net, images=images, eta=eta, value=value, step=step, memory=memory)

    reports = []
    for report in train(training, objective, world_of, optimiser, steps):
        reports.append(report)
        if folder is not None:
            write(folder, training.saved())
        if until is not None and report.step == until:
            break
    return net, reports


LEARNING = {
    "draft": (draft(), 40), "draft-k": (draft_k(2), 40), "draft-lv": (draft_lv(), 40), "refl": (refl(), 40),
    "alignprop": (alignprop(), 40), "ddpo": (ddpo(clip=0.2, chunks=7, reduction="sum"), 60), "dpok": (dpok(0.001), 60),
    "grpo": (grpo(4, clip=0.2, chunks=7, reduction="sum"), 60), "rwr": (OBJECTIVES["rwr"](beta=0.3, times=4), 80),
    "raft": (OBJECTIVES["raft"](times=4), 80), "dpo": (dpo(beta=20.0, size=4, times=4), 80), "adjoint": (adjoint(beta=0.5), 40),
    "dpg": (dpg(), 40),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_raises_the_reward(mixture, name):
    """Reward of fresh draws of the trained model over the base model's, same noise, more than five standard errors."""
    objective, steps = LEARNING[name]
    net, _ = run(objective, mixture, steps, images=32)
    world = make(mixture, net, images=400, step=999)
    mask = torch.zeros(STEPS, dtype=torch.bool)
    with torch.no_grad():
        after = world.value(rollout(world, mask).clean, world.rows)
        before = world.value(rollout(replace(world, denoise=world.base), mask).clean, world.rows)
    gain = after - before
    assert gain.mean() > 5 * gain.std() / 20


def test_a_broken_step_is_skipped_whole_and_ten_in_a_row_stop(mixture):
    calls = {"n": 0}

    def value(x0, rows):
        calls["n"] += 1
        return x0 @ AIM * (float("nan") if calls["n"] in (3, 4) else 1.0)

    _, reports = run(draft_k(1), mixture, 6, value=value)
    assert [r.skipped is not None for r in reports] == [False, False, True, True, False, False]
    assert reports[-1].numbers["skipped"] == 2
    with pytest.raises(TiltingError, match="10 steps in a row"):
        run(draft_k(1), mixture, 40, value=lambda x0, rows: x0 @ AIM * float("inf"))
    whole, _ = run(draft_k(1), mixture, 2)
    calls["n"] = 2
    same, _ = run(draft_k(1), mixture, 2, value=value)  # both its steps are broken: nothing of them remains
    assert torch.equal(same.last.bias, Drift().last.bias)
    assert not torch.equal(whole.last.bias, same.last.bias)


def test_a_run_resumed_at_any_step_is_the_same_run(mixture, tmp_path):
    for objective in (draft_lv(), ddpo(chunks=3)):
        whole, reports = run(objective, mixture, 6)
        for cut in (1, 4):
            folder = tmp_path / f"{objective.name}{cut}"
            _, first = run(objective, mixture, 6, folder=folder, until=cut)
            again, rest = run(objective, mixture, 6, folder=folder)
            assert [r.numbers for r in first + rest] == [r.numbers for r in reports]
            for a, b in zip(whole.parameters(), again.parameters(), strict=True):
                assert torch.equal(a, b)


def test_a_kill_at_any_point_of_a_save_leaves_a_readable_state(mixture, tmp_path, monkeypatch):
    """Every file operation of a save is made to fail in turn; the state before is still there, whole."""
    import os
    import shutil

    import tilting.finetune.checkpoint as module

    net = Drift()
    optimiser = Optimiser()
    training = Training(dict(net.named_parameters()), optimiser.build(list(net.parameters())))
    write(tmp_path, training.saved())
    operations = ("save_file", "rename", "rmtree", "_synced", "mkdir")
    killed = 0
    for name in operations:
        for nth in range(4):
            seen = {"n": 0}
            training.step += 1

            def deadly(real, seen=seen, nth=nth):
                def call(*args, **kwargs):
                    seen["n"] += 1
                    if seen["n"] == nth + 1:
                        raise KeyboardInterrupt
                    return real(*args, **kwargs)

                return call

            with monkeypatch.context() as patch:
                owner = {"rename": os, "rmtree": shutil}.get(name, module)
                if name == "mkdir":
                    owner, patched = type(tmp_path), "mkdir"
                else:
                    patched = name
                patch.setattr(owner, patched, deadly(getattr(owner, patched)))
                try:
                    write(tmp_path, training.saved())
                except KeyboardInterrupt:
                    killed += 1
            held = read(tmp_path)
            assert held is not None
            assert held.step in (training.step - 1, training.step)
            write(tmp_path, training.saved())  # and the next save works
            assert set(held.weights) == set(training.parameters)
    assert killed >= 10
    assert read(tmp_path) is not None
    assert len(states(tmp_path)) <= 2


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path):
    net = Drift()
    optimiser = Optimiser()
    training = Training(dict(net.named_parameters()), optimiser.build(list(net.parameters())))
    write(tmp_path, training.saved(), keep=2)
    training.step = 1
    place = write(tmp_path, training.saved(), keep=2)
    data = (place / "weights.safetensors").read_bytes()
    (place / "weights.safetensors").write_bytes(data[: len(data) // 2])
    assert read(tmp_path).step == 0
    (tmp_path / "00000000" / "state.json").write_text("{")
    with pytest.raises(TiltingError, match=r"no checkpoint in .* can be read"):
        read(tmp_path)
