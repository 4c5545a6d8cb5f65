"""Fine-tuning on the analytic mixture: closed-form gradients, published identities, the tilt itself, skipped steps, resume."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from support.drift import AIM, STEPS, ZERO, Drift, gradient, make, moved, run
from tilting.errors import TiltingError
from tilting.objectives import OBJECTIVES, adjoint, alignprop, ddpo, dpg, dpo, dpok, draft, draft_k, draft_lv, grpo, refl
from tilting.objectives.advantages import buffered_advantage, group_advantage
from tilting.objectives.batch import TrainBatch
from tilting.objectives.cost import cost_of
from tilting.objectives.rollout import density_steps, rollout
from tilting.objectives.supervised import denoising_error, draw
from tilting.objectives.truncate import Truncation
from tilting.rng import Identity
from tilting.schedule import Schedule, predict, scaled_linear
from tilting.training.bar import kl_of
from tilting.training.checkpoint import read, states, write
from tilting.training.loop import Group, Optimiser, TrainState, train
from tilting.types import Prediction

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


def test_the_eps_term_is_the_same_of_draft_lv_and_draft_1_and_a_mean_over_dimensions(mixture):
    net = moved(Drift())
    world = make(mixture, net)
    with torch.no_grad():
        x, t = rollout(world, torch.zeros(STEPS, dtype=torch.bool)).points[-1][:2]
        wanted = (t.alpha * net(x, t)).square().sum(1).mean().item() / 2  # of two dimensions: |.|² over them
    pushes = []
    for make_one in (partial(draft_k, 1), partial(draft_lv, 0)):
        found, none = (gradient(make_one(eps_kl=w), world, net) for w in (3.0, 0.0))
        assert next(iter(make_one(eps_kl=3.0)(world))).numbers["eps_kl"] == pytest.approx(wanted, rel=1e-9)
        pushes.append(found - none)
    assert torch.allclose(*pushes, rtol=1e-9) and pushes[0].abs().max() > 0


def test_the_logged_kl_says_which_steps_it_is_of(mixture):
    """Of a truncated path the closed steps' is not known: it is not called the path's."""
    world = make(mixture, moved(Drift()))
    whole = rollout(world, torch.ones(STEPS, dtype=torch.bool), kl=True).kl.mean().item()
    found = {o.name: next(iter(o(world))).numbers for o in (draft(kl=0.1), draft_k(2, kl=0.1), alignprop(kl=0.1))}
    assert found["draft"]["kl"] == pytest.approx(whole)
    for name in ("draft-k", "alignprop"):
        assert "kl" not in found[name] and 0 < found[name]["kl_open"] <= whole * (1 + 1e-9)
        assert kl_of(found[name]) == {"kl_open": found[name]["kl_open"]}
    assert kl_of(found["draft"]) == {"kl": found["draft"]["kl"]} and kl_of({"reward": 1.0}) == {}


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
    for objective in (ddpo(kl=0.5, epochs=1), grpo(group_size=4, kl=0.5)):
        for loss in objective(world):
            assert loss.numbers["ratio_far"] == 0.0
            assert loss.numbers["kl_step"] == 0.0
    assert rollout(world, torch.ones(STEPS, dtype=torch.bool), kl=True).kl.abs().max() == 0.0
    assert next(iter(dpo()(make(mixture, Drift(), memory={})))).value.item() == pytest.approx(0.6931 / 4, rel=1e-3)


def test_the_policy_gradient_is_unbiased(mixture):
    """REINFORCE with plain advantages against the gradient of the same expectation through the chain (the last step, which
    has no density, left out of both)."""
    net = moved(Drift(), 0.1)
    policy = dpok(kl=0.0)
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


def test_a_policy_gradient_that_cannot_learn_is_refused():
    for wrong in ({"epochs": 2}, {"minibatches": 2}):
        with pytest.raises(TiltingError, match=r"ddpo\.epochs and ddpo\.minibatches at 1"):
            ddpo(ratio=False, **wrong)
    with pytest.raises(TiltingError, match="use grpo"):
        ddpo(advantage="group")  # of one image: 0 for all


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


def test_the_densities_of_a_rollout_are_those_of_the_model_at_its_points(mixture):
    """Against torch's own normal distribution, with the network evaluated again; of two dimensions the mean is half the sum."""
    from tilting.schedule import step_std

    net = moved(Drift())
    world, closed = make(mixture, net), torch.zeros(STEPS, dtype=torch.bool)
    with torch.no_grad():
        total, mean = (rollout(world, closed, density=reduction) for reduction in ("sum", "mean"))
    assert list(total.densities) == list(mean.densities) == density_steps(world) == list(range(STEPS - 1))
    for i, found in total.densities.items():
        x, t, s, drawn = total.points[i]
        prediction, std = world.denoise(x, t, world.rows), step_std(t, s, world.eta)
        middle = s.alpha * prediction.x0 + (s.sigma**2 - std**2) ** 0.5 * prediction.eps
        want = torch.distributions.Normal(middle, std).log_prob(drawn).sum(1)
        assert torch.allclose(found, want, rtol=1e-9) and torch.allclose(found, 2 * mean.densities[i], rtol=1e-12)
    assert not rollout(world, closed).densities


def counted(world):
    """A world that counts the evaluations of its trained and its frozen network, with CFG and without."""
    paid = {"denoise": 0, "base": 0}

    def count(name):
        network = getattr(world, name)

        def denoise(x, t, rows):
            paid[name] += len(x)
            return network(x, t, rows)

        return denoise

    trained, frozen = count("denoise"), count("base")
    return replace(world, denoise=trained, base=frozen, plain=trained, base_plain=frozen), paid


@pytest.mark.parametrize("kl", [0.0, 0.5])
@pytest.mark.parametrize(("ratio", "epochs", "minibatches"), [(True, 1, 3), (True, 2, 3), (False, 1, 1)])
def test_a_policy_gradient_pays_for_no_evaluation_twice(mixture, epochs, kl, ratio, minibatches):
    world, paid = counted(make(mixture, moved(Drift()), images=4))
    policy = ddpo(ratio=ratio, kl=kl, epochs=epochs, minibatches=minibatches)
    updates = [loss.update for loss in policy(world)]
    assert paid == {"denoise": 4 * (STEPS + epochs * (STEPS - 1)), "base": 4 * (STEPS - 1) * bool(kl)}
    assert updates.count(True) == minibatches * epochs and len(updates) == epochs * (STEPS - 1)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_adjoint_matching_pays_for_no_evaluation_twice(mixture, share):
    """The chain and the chosen steps of the model, its last step and the Jacobians of the frozen one."""
    world, paid = counted(make(mixture, moved(Drift()), images=4))
    taken = len(list(adjoint(step_fraction=share)(world)))
    assert taken == round(share * (STEPS - 1))
    assert paid == {"denoise": 4 * (STEPS - 1 + taken), "base": 4 * (1 + STEPS)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_an_objective_costs_is_what_is_counted_here(mixture, name):
    """Evaluations per image and step of every network, those made again on the way back included, as the objective is unset;
    of one that draws how many steps it opens, or where it begins, by what it drew."""
    made, paid, drawn, begun, steps = OBJECTIVES[name](), 0.0, [], [], 4
    for k in range(steps):
        world, counts = counted(make(mixture, moved(Drift()), images=8, step=k, prompts=2, memory={}))
        numbers = []
        for loss in made(world):
            loss.value.backward()
            numbers.append(loss.numbers)
        paid += sum(counts.values()) / 8
        drawn.append(numbers[0].get("open_steps", 0.0))
        begun.append(numbers[0].get("from_step", 0.0))
    cost = cost_of(made, STEPS)
    expected = steps * cost.evaluations
    if name == "alignprop":
        assert cost.drawn and STEPS + 1 < cost.evaluations < 2 * STEPS
        expected = steps * STEPS + sum(drawn)
    if name == "refl":  # of the last 3 of 8
        assert cost.drawn and STEPS - 2 < cost.evaluations < STEPS
        expected = sum(begun) + steps
    assert paid == pytest.approx(expected)


def test_ratios_are_one_until_the_first_update_and_no_longer(mixture):
    net, far = moved(Drift()), []
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    for loss in ddpo(epochs=2, minibatches=2, clip=1e9, reduction="sum")(make(mixture, net)):
        far.append(loss.numbers["ratio_far"])
        loss.value.backward()
        if loss.update:
            optimiser.step()
            optimiser.zero_grad()
    first = (STEPS - 1 + 1) // 2
    assert far[:first] == [0.0] * first and min(far[first:]) > 0


class NoDouble(torch.Tensor):
    """A tensor of a device without float64: making it one raises, as on MPS, until it comes to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return found.as_subclass(torch.Tensor)
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return found


def test_what_stands_for_a_device_without_float64_refuses_it():
    x = torch.ones(3).as_subclass(NoDouble)
    for cast in (lambda: x.double(), lambda: (x + 1).to(torch.float64), lambda: x.mean().double()):
        with pytest.raises(TypeError, match="no float64"):
            cast()
    assert x.cpu().double().dtype == torch.float64


class Elsewhere(TrainBatch):
    """A world whose latents, and all that comes of them, are of a device without float64."""

    def noise(self, step, purpose="noise"):
        return super().noise(step, purpose).as_subclass(NoDouble)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_where_there_is_no_float64(name):
    """The same numbers as on the CPU, in float32; gradients come without float64 too, those of two groups among them."""
    found = []
    for kind in (TrainBatch, Elsewhere):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        near = Optimiser(rate=1e-2, groups=(Group("2."),))

        def denoise(x, t, rows, push=True, net=net):
            at = torch.tensor([t.alpha, t.sigma]).expand(len(x), 2)
            x0 = t.alpha * x + (t.sigma * net(torch.cat([x, at.as_subclass(type(x))], 1)) if push else 0.0)
            return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.zeros_like(x))

        def base(x, t, rows, denoise=denoise):
            return denoise(x, t, rows, push=False)

        def world_of(step, memory, kind=kind, denoise=denoise, base=base):
            who = [Identity(0, f"prompt {i % 2}", 8 * step + i) for i in range(8)]
            value = lambda x0, rows: x0.sum(1)  # noqa: E731
            return kind(denoise, base, denoise, base, value, ZERO.grid(4), who, (2,), 1.0, step, 0, memory, kind=ZERO.kind)

        reduce = None if kind is TrainBatch else lambda value: value.as_subclass(NoDouble)
        parameters = dict(net.named_parameters())
        training = TrainState(parameters, near.build(parameters))
        reports = list(train(training, LEARNING[name][0], world_of, near, 2, reduce))
        assert [report.skipped for report in reports] == [None, None]
        found.append([report.numbers for report in reports])
    assert found[0] == found[1]


# Fits of the model's own samples


def test_what_fits_samples_has_the_gradient_of_pre_training(mixture):
    """Of the network's own output against its own target, by hand; at t = 1 of a flow too, where an error of ε has none."""
    clean = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for schedule in (ZERO, Schedule("flow"), Schedule("epsilon", scaled_linear()), Schedule("sample", scaled_linear())):
        kind, output = schedule.kind, torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)

        def plain(x, t, rows, kind=kind, output=output):
            return Prediction(*predict(kind, output.expand_as(x), x, t), torch.zeros_like(x))

        for t in schedule.grid(4)[:-1]:
            world = replace(make(mixture, None, images=6, kind=kind), grid=[t, schedule.grid(4)[-1]])
            noise = world.noise(0, "fit0")
            target = {
                "epsilon": noise,
                "v_prediction": t.alpha * noise - t.sigma * clean,
                "flow": noise - clean,
                "sample": clean,
            }
            wanted = (output - target[kind]).square().mean(1)
            found = denoising_error(plain, clean, world.rows, world)
            slopes = [torch.autograd.grad(e.mean(), output, retain_graph=True)[0] for e in (found, wanted)]
            assert torch.allclose(found, wanted) and torch.allclose(*slopes) and slopes[1].abs().min() > 1e-3


def test_rwr_fits_samples_of_the_model_that_it_is_told(mixture):
    world = make(mixture, moved(Drift()))
    base = replace(world, denoise=world.base)
    drawn = {
        source: next(iter(OBJECTIVES["rwr"](source=source)(world))).numbers["reward"] for source in ("current", "pretrained")
    }
    assert drawn == {"current": draw(world)[1].mean().item(), "pretrained": draw(base)[1].mean().item()}
    assert drawn["current"] != drawn["pretrained"]


def test_a_pair_of_equal_rewards_is_no_preference(mixture):
    """It weighs nothing and is counted; what is preferred weighs what it would alone."""
    net = moved(Drift())

    def found(value, images):
        world = make(mixture, net, images=4, prompts=2, value=lambda x0, rows: value[: len(x0)])
        world = replace(world, who=[world.who[i] for i in images])
        return gradient(dpo(beta=20.0), world, net), next(iter(dpo(beta=20.0)(world))).numbers["tied"]

    ranks = torch.tensor([1.0, 2.0, 3.0, 3.0], dtype=torch.float64)
    alone, none = found(ranks, [0, 2])
    half, one = found(ranks, [0, 2, 1, 3])
    tied, both = found(torch.ones(4, dtype=torch.float64), [0, 2, 1, 3])
    assert (none, one, both) == (0.0, 0.5, 1.0)
    assert torch.allclose(half, alone / 2, rtol=1e-12) and alone.abs().max() > 0 == tied.abs().max()


def test_winner_and_loser_share_time_and_noise(mixture):
    """As in the published code of Diffusion-DPO; two pairs do not."""
    world, seen = make(mixture, moved(Drift()), images=8), []

    def plain(x, t, rows):
        seen.append(((x - t.alpha * clean[rows]) / t.sigma, t))
        return world.plain(x, t, rows)

    clean, _ = draw(world)
    list(dpo(timesteps=2)(replace(world, plain=plain, base_plain=plain)))
    for noise, _ in seen:
        win, lose = noise.chunk(2)
        assert torch.allclose(win, lose) and not torch.allclose(win[0], win[1])
    assert torch.allclose(seen[0][0], seen[1][0]) and not torch.allclose(seen[0][0], seen[2][0])


# Every objective learns, and what stops it


LEARNING = {
    "draft": (draft(), 40),
    "draft-k": (draft_k(2), 40),
    "draft-lv": (draft_lv(), 40),
    "refl": (refl(), 40),
    "alignprop": (alignprop(), 40),
    "ddpo": (ddpo(clip=0.2, minibatches=7, reduction="sum"), 60),
    "dpok": (dpok(0.001), 60),
    "grpo": (grpo(4, clip=0.2, minibatches=7, reduction="sum"), 60),
    "rwr": (OBJECTIVES["rwr"](beta=0.3, timesteps=4), 80),
    "raft": (OBJECTIVES["raft"](timesteps=4), 80),
    "dpo": (dpo(beta=20.0, group_size=4, timesteps=4), 80),
    "adjoint": (adjoint(beta=0.5), 40),
    "dpg": (dpg(), 40),
    "mixgrpo": (OBJECTIVES["mixgrpo"](clip=0.2, minibatches=2, reduction="sum", interval=2), 60),
    "grpo-fast": (OBJECTIVES["grpo-fast"](clip=0.2, reduction="sum"), 80),
    "grpo-guard": (OBJECTIVES["grpo-guard"](clip=0.2, minibatches=7, reduction="sum"), 60),
    "flow-dppo": (OBJECTIVES["flow-dppo"](threshold=0.05, minibatches=7, reduction="sum"), 60),
    "pref-grpo": (OBJECTIVES["pref-grpo"](clip=0.2, minibatches=7, reduction="sum"), 60),
    "srpo": (OBJECTIVES["srpo"](injections=2), 40),
    "drtune": (OBJECTIVES["drtune"](), 40),
    "nft": (OBJECTIVES["nft"](), 80),
    "awm": (OBJECTIVES["awm"](clip=0.2), 80),
    "dgpo": (OBJECTIVES["dgpo"](beta=5.0), 80),
    "crd": (OBJECTIVES["crd"](), 80),
    "opd": (OBJECTIVES["opd"](epochs=2), 40),
}


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
    for objective in (draft_lv(), ddpo(minibatches=3)):
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

    net = Drift()
    training = TrainState(dict(net.named_parameters()), Optimiser().build(list(net.parameters())))
    optimiser = training.optimiser
    kept = {0: training.saved()}

    def train_on():
        """Other weights and other moments, remembered by their step."""
        training.step += 1
        for p in training.parameters.values():
            p.grad = torch.full_like(p, float(training.step))
        optimiser.step()
        kept[training.step] = training.saved()

    def check(held):
        truth = kept[held.step]
        assert held.state == truth.state
        for mine, theirs in ((held.weights, truth.weights), (held.optimiser, truth.optimiser)):
            assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)

    write(tmp_path, training.saved())
    operations = {"fsync": os, "replace": os, "rename": os, "unlink": type(tmp_path), "mkdir": type(tmp_path)}
    killed = 0
    for name, owner in operations.items():
        for nth in range(4):
            seen = {"n": 0}
            train_on()

            def deadly(real, seen=seen, nth=nth):
                def call(*args, **kwargs):
                    seen["n"] += 1
                    if seen["n"] == nth + 1:
                        raise KeyboardInterrupt
                    return real(*args, **kwargs)

                return call

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, deadly(getattr(owner, name)))
                try:
                    write(tmp_path, training.saved())
                except KeyboardInterrupt:
                    killed += 1
            held = read(tmp_path)
            assert held is not None
            assert held.step in (training.step - 1, training.step)
            check(held)
            write(tmp_path, training.saved())  # and the next save works
    assert killed >= 10
    last = read(tmp_path)
    assert last is not None and last.step == training.step
    check(last)
    assert len(states(tmp_path)) <= 2


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path):
    net = Drift()
    optimiser = Optimiser()
    training = TrainState(dict(net.named_parameters()), optimiser.build(list(net.parameters())))
    write(tmp_path, training.saved(), keep=2)
    training.step = 1
    place = write(tmp_path, training.saved(), keep=2)
    data = (place / "weights.safetensors").read_bytes()
    (place / "weights.safetensors").write_bytes(data[: len(data) // 2])
    assert read(tmp_path).step == 0
    (tmp_path / "00000000" / "state.json").write_text("{")
    with pytest.raises(TiltingError, match=r"no checkpoint in .* can be read"):
        read(tmp_path)
