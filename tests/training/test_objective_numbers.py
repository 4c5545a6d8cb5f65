"""What objectives are made of, on a few numbers by hand: settings, advantages, masks, a batch, and what each costs."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import pytest
import torch

from tilting import objectives, rng
from tilting.errors import TiltingError
from tilting.objectives import (
    OBJECTIVES,
    BaseObjective,
    ddpo,
    dpok,
    draft,
    draft_k,
    draft_lv,
    drtune,
    grpo,
    opd,
    raft,
    refl,
    srpo,
)
from tilting.objectives.about import about_objective
from tilting.objectives.advantages import (
    Scored,
    among_others,
    buffered_advantage,
    gdpo_advantage,
    group_worth,
    leaders,
    preferred_rates,
    rows_of,
    same,
    score,
    win_rates,
)
from tilting.objectives.batch import Loss, TrainBatch, check_density, closed
from tilting.objectives.cost import Cost, cost_of
from tilting.objectives.denoising import distance, mixed, residual, training_error
from tilting.objectives.matching import Matching
from tilting.objectives.policy import PolicyGradient
from tilting.objectives.recompute import recomputed, slopes_of
from tilting.objectives.truncate import Truncation
from tilting.rng import Identity
from tilting.schedule import Schedule, step_std
from tilting.types import Prediction, Time

FLOW = Schedule("flow")


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def batch(prompts: str = "aabb", steps: int = 4, **options) -> TrainBatch:
    """Images of one-letter prompts; its functions are never called."""
    who = [Identity(7, prompt, i) for i, prompt in enumerate(prompts)]
    return TrainBatch(None, None, None, None, None, FLOW.grid(steps), who, (2, 1), dtype=torch.float64, **options)  # type: ignore[arg-type]


# Settings


KL = {"kl": 0.0, "eps_kl": 0.0, "dropout": 0.0}
POLICY = {"epochs": 1, "minibatches": 1, "kl": 0.0, "reduction": "mean"}
GROUPED = {"group_size": 4, **POLICY, "rewards": "sum"}
MATCHED = {"group_size": 4, "timesteps": 4, "rewards": "sum"}
SETTINGS = {
    "draft": KL,
    "draft-k": {"k": 1, **KL},
    "draft-lv": {"copies": 2, "single": False, "dropout": 0.0, "eps_kl": 0.0},
    "refl": {"last": None, "shape": "linear", "ceiling": 2.0},
    "alignprop": {"rule": "random", "step_probability": 0.5, "kl": 0.0},
    "ddpo": {"ratio": True, "clip": 1e-4, **POLICY, "advantage": "buffer"},
    "dpok": {"kl": 0.01, "reduction": "sum"},
    "grpo": {**GROUPED, "clip": 1e-4},
    "mixgrpo": {**GROUPED, "window": 4, "interval": 25, "stride": 1, "branch": True, "clip": 1e-4},
    "grpo-fast": {**GROUPED, "window": 2, "within": 0.5, "branch": True, "clip": 1e-4},
    "grpo-guard": {**GROUPED, "clip": 1e-4},
    "flow-dppo": {**GROUPED, "threshold": 1e-6},
    "pref-grpo": {"group_size": 4, "clip": 1e-4, **POLICY},
    "dpg": {"last": None, "count": None},
    "drtune": {"k": 5, "last": 1},
    "srpo": {"positive": "", "negative": "", "share": 1.0, "injections": 1, "discount": 1.0},
    "dpo": {"beta": 5000.0, "group_size": 2, "timesteps": 4},
    "raft": {"group_size": 4, "timesteps": 4},
    "rwr": {"beta": 0.05, "timesteps": 4, "source": "current"},
    "awm": {
        **MATCHED,
        "share": 1.0,
        "epochs": 1,
        "clip": 1e-5,
        "weighting": "uniform",
        "distance": 0.0,
        "old_distance": 0.1,
        "decay": 0.9,
    },
    "crd": {
        **MATCHED,
        "beta": 1.0,
        "share": 1.0,
        "scaled": True,
        "distance": 0.1,
        "adaptive": True,
        "old_start": 0.25,
        "old_ramp": 0.005,
        "sampler_start": 75,
        "sampler_ramp": 0.0075,
    },
    "dgpo": {**MATCHED, "beta": 100.0, "share": 0.6, "distance": 0.0},
    "nft": {
        **MATCHED,
        "beta": 1.0,
        "share": 1.0,
        "probability": "group",
        "weighting": "adaptive",
        "distance": 1e-4,
        "ramp": 0.001,
        "most": 0.5,
    },
    "adjoint": {"beta": 0.05, "step_fraction": 1.0, "clip": None},
    "opd": {"method": "code", "steps": None, "timesteps": 4, "epochs": 4},
}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_settings_as_they_are_unset(name):
    one = OBJECTIVES[name]()
    assert {field.name: getattr(one, field.name) for field in fields(one)} == SETTINGS[name]  # type: ignore[arg-type]


def test_what_objectives_are_by_nature():
    """Which need a gradient, a density, a critic, make several updates, see parts of a batch, and keep how much."""
    kinds = {name: OBJECTIVES[name]() for name in OBJECTIVES}

    def those(asked) -> set[str]:
        return {name for name, one in kinds.items() if asked(one)}

    chain = {"draft", "draft-k", "draft-lv", "refl", "alignprop", "srpo", "drtune"}
    policies = {"ddpo", "dpok", "grpo", "mixgrpo", "grpo-fast", "grpo-guard", "flow-dppo", "pref-grpo"}
    matching = {"nft", "awm", "dgpo", "crd"}
    assert those(lambda one: one.needs_gradient) == chain | {"dpg", "adjoint"} == those(lambda one: one.splits)
    assert those(lambda one: one.needs_density) == policies | {"adjoint"}
    assert those(lambda one: one.default_eta == 0.0) == chain | {"dpg"} | matching
    assert those(lambda one: one.default_eta == 1.0) == policies | {"adjoint", "opd", "rwr", "raft", "dpo"}
    assert those(lambda one: one.needs_critic) == {"dpg"} and those(lambda one: one.updates_several) == {"opd"}
    assert those(lambda one: one.takes_teacher) == {"opd"} and those(lambda one: one.takes_pairs) == {"dpo"}
    kept = {"dpok": 20, "grpo-guard": 20, "flow-dppo": 20, "adjoint": 31}
    assert {name: one.latents_kept(10) for name, one in kinds.items()} == {name: kept.get(name, 11) for name in kinds}
    assert replace(kinds["grpo-guard"], kl=0.1).latents_kept(10) == 29 and ddpo(kl=0.1).latents_kept(10) == 20
    graphs = {"draft-lv": 3, "drtune": 5}
    assert {name: one.graphs_at_once for name, one in kinds.items()} == {name: graphs.get(name, 1) for name in kinds}
    several = {"ddpo": {"epochs": 2}, "grpo": {"minibatches": 3}, "awm": {"epochs": 2}}
    assert all(OBJECTIVES[name](**more).updates_several for name, more in several.items())
    assert not opd(epochs=1).updates_several and opd(epochs=2).updates_several
    assert [opd(method="dps", epochs=n).splits for n in (1, 2)] == [True, False]
    assert opd(method="zo").default_eta == 0.0 and opd(method="dps").needs_gradient and not opd().needs_gradient
    assert draft(kl=0.1).needs_density and draft(kl=0.1).default_eta == 1.0 and not draft().needs_density
    sizes = {"dpo": 2} | dict.fromkeys(["grpo", "mixgrpo", "grpo-fast", "grpo-guard", "flow-dppo", "pref-grpo", "raft"], 4)
    assert {name: one.group_size for name, one in kinds.items()} == {
        name: sizes.get(name, 4 if name in matching else 1) for name in kinds
    }


def test_the_bases_as_they_are_unset():
    policy, one = PolicyGradient(), BaseObjective()
    told = ("buffer", True, 1e-4, 5.0, 0.0, "mean", 1, 1, 32, 8, False, "sum", False)
    names = [
        "advantage",
        "ratio",
        "clip",
        "limit",
        "kl",
        "reduction",
        "epochs",
        "minibatches",
        "buffer",
        "least",
        "path_kl",
        "rewards",
        "needs_means",
    ]
    assert tuple(getattr(policy, name) for name in names) == told and policy.needs_density
    names = ["drawn_by", "timesteps", "share", "shared", "epochs", "rewards", "default_eta", "updates_several"]
    assert tuple(getattr(Matching(), name) for name in names) == ("", 4, 1.0, False, 1, "sum", 0.0, False)
    assert (dpok().advantage, dpok().ratio, dpok().clip, dpok().limit) == ("plain", False, 1.0, 1e9)
    assert {name: OBJECTIVES[name].advantage for name in ("grpo", "pref-grpo", "flow-dppo")} == dict.fromkeys(  # type: ignore[attr-defined]
        ("grpo", "pref-grpo", "flow-dppo"), "group"
    )
    assert {name for name in OBJECTIVES if getattr(OBJECTIVES[name], "needs_means", False)} == {"grpo-guard", "flow-dppo"}
    assert [getattr(OBJECTIVES[name], "drawn_by") for name in ("nft", "awm", "dgpo", "crd")] == ["old", "", "", "sampler"]  # noqa: B009
    assert [getattr(OBJECTIVES[name], "shared") for name in ("nft", "awm", "dgpo", "crd")] == [False, False, True, False]  # noqa: B009
    assert (one.averages(), one.updates_several, one.splits, one.needs_density, one.default_eta) == (
        {},
        False,
        False,
        False,
        1.0,
    )
    assert (one.latents_kept(4), one.graphs_at_once, one.group_size) == (5, 1, 1)


def test_averages_follow_at_their_own_pace():
    """d = min(.001 n, .5); .9; min(.25 + .005 n, .999) and min(.0075 (n - 75), .999)."""
    nft, awm, crd = (OBJECTIVES[name]().averages() for name in ("nft", "awm", "crd"))
    assert [nft["old"](n) for n in (0, 100, 500, 900)] == pytest.approx([0.0, 0.1, 0.5, 0.5])
    assert list(nft) == list(awm) == ["old"] and awm["old"](5) == 0.9 and OBJECTIVES["awm"](old_distance=0.0).averages() == {}
    assert [crd["old"](n) for n in (0, 10, 900)] == pytest.approx([0.25, 0.3, 0.999])
    assert [crd["sampler"](n) for n in (0, 75, 85, 900)] == pytest.approx([0.0, 0.0, 0.075, 0.999])


def test_chains_that_cannot_be_learned_from_are_refused():
    for name in ("ddpo", "grpo", "adjoint"):
        for eta, steps in ((0.0, 5), (1.0, 1)):
            with pytest.raises(TiltingError, match=f"{name} needs"):
                OBJECTIVES[name]().check_chain(eta, steps)
        OBJECTIVES[name]().check_chain(0.1, 2)
    for one in (draft(), OBJECTIVES["nft"](), raft()):
        one.check_chain(0.0, 1)
    for eta, steps, words in ((0.0, 5, "draft.kl needs eta above 0"), (1.0, 1, "draft.kl needs at least 2 steps")):
        with pytest.raises(TiltingError, match=words):
            draft(kl=0.1).check_chain(eta, steps)
    check_density("x", 1.0, 2)
    for wrong, words in ((lambda: ddpo(advantage="group"), "use grpo"), (lambda: ddpo(ratio=False, epochs=2), "at 1")):
        with pytest.raises(TiltingError, match=words):
            wrong()
    ddpo(ratio=False), OBJECTIVES["grpo"](group_size=2)
    with pytest.raises(TiltingError, match="K must be at least 1, not 0"):
        Truncation("last", 0)


def test_an_objective_of_a_package_is_an_attribute():
    assert objectives.__getattr__("draft_k") is OBJECTIVES["draft-k"]
    for name in ("no_such", "_draft"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(objectives, name)


# A batch


def test_a_batch_over_two_processes():
    """This one has images 1 and 2 of five."""
    everyone = [Identity(7, prompt, i) for i, prompt in enumerate("abcde")]
    whole = batch("abcde")
    mine = replace(whole, who=everyone[1:3], everyone=everyone, first=1, gather=lambda v: torch.cat([v, v + 10]))
    assert mine.prompts == list("abcde") and mine.rows.tolist() == [0, 1] and mine.processes == 2.5 and whole.processes == 1.0
    assert mine.all(tensor(1, 2)).tolist() == [1, 2, 11, 12] and whole.all(tensor(1, 2)).tolist() == [1, 2]
    assert mine.mine(tensor(0, 1, 2, 3, 4)).tolist() == [1, 2] and whole.mine(tensor(0, 1, 2, 3, 4)).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(mine.noise(3), whole.noise(3)[1:3]) and whole.noise(3).shape == (5, 2, 1)
    assert torch.equal(whole.noise(3, "x"), rng.normal(everyone, 1, (2, 1), 3, "x")[:, 0].double())
    assert torch.equal(mine.noise_of(everyone[4:], 3, "x"), whole.noise(3, "x")[4:])
    assert closed(whole).tolist() == [False] * 4


def test_a_batch_as_it_is_unset():
    one = TrainBatch(None, None, None, None, None, FLOW.grid(3), [Identity(0, "a", 0)], (2,))  # type: ignore[arg-type]
    told = (
        0.0,
        0,
        0,
        (),
        0,
        None,
        True,
        (),
        None,
        "cpu",
        torch.float32,
        "epsilon",
        (),
        "posterior",
        None,
        (),
        None,
        None,
        {},
        1.0,
    )
    names = (
        "eta step seed everyone first gather checkpointed trained critic device dtype kind etas law parts shares prefers worded"
    )
    assert tuple(getattr(one, name) for name in [*names.split(), "averages", "cfg"]) == told
    assert (one.memory, one.teacher, one.given, one.steps) == ({}, None, None, 3) and Loss(tensor(1), {}).update is True


def test_a_step_has_its_own_eta_and_law():
    grid = FLOW.grid(4)
    assert [batch(eta=0.5).std(i) for i in range(4)] == [step_std(grid[i], grid[i + 1], 0.5) for i in range(4)]
    one = batch(eta=0.5, etas=[0.125, 0.25, 0.375, 0.5], law="cps")
    assert [one.std(i) for i in range(4)] == [step_std(grid[i], grid[i + 1], 0.125 * (i + 1), "cps") for i in range(4)]
    kernel = one.kernel(Prediction(tensor(1.0), tensor(2.0), tensor(0.0)), 2)
    assert kernel.std == one.std(2) and kernel.mean.item() == pytest.approx(0.75 * 2 + math.sqrt(0.25**2 - kernel.std**2))


def test_chances_are_of_the_run_and_the_training_step():
    drawn = {
        key: torch.rand((), generator=replace(batch(), seed=key[0], step=key[1]).generator(key[2])).item()
        for key in ((0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"))
    }
    assert len(set(drawn.values())) == 4
    assert drawn[0, 1, "a"] == torch.rand((), generator=rng.generator(Identity(0, "", 1), 0, 0, "a")).item()


def test_a_network_under_an_average_has_no_gradient():
    on = []

    @contextmanager
    def averaged():
        on.append("in")
        yield
        on.append("out")

    theta = torch.ones((), requires_grad=True)

    def network(x, t, rows):
        on.append("call")
        return x * theta

    one = batch(averages={"old": averaged})
    assert not one.average("old", network)(tensor(1), None, None).requires_grad and on == ["in", "call", "out"]
    assert not one.average("other", network)(tensor(1), None, None).requires_grad and on[3:] == ["call"]


# Advantages


def test_groups_of_images():
    assert rows_of("abab") == {"a": [0, 2], "b": [1, 3]} and same(tensor(2, 2, 2)) and not same(tensor(2, 2, 3))
    assert leaders("aabaaab", 2) == [0, 0, 2, 3, 3, 5, 2] and leaders("aaaa", 4) == [0] * 4


def test_gdpo_by_hand():
    """Scores (-1, 1 | 1, -1) and (1, -1 | 0, 0) by 3 and 1: -2, 2, 3, -3; mean 0, std √6.5."""
    parts = torch.stack([tensor(1, 3, 5, 1), tensor(9, 2, 4, 4)], 1)
    assert gdpo_advantage(parts, (3.0, 1.0), "aabb").tolist() == pytest.approx([v / math.sqrt(6.5) for v in (-2, 2, 3, -3)])
    odd = gdpo_advantage(torch.stack([tensor(1, 3, 2), tensor(0, 0, 0)], 1), (1.0, 1.0), "aab")  # -1, 1, 0
    assert odd.tolist() == pytest.approx([-math.sqrt(1.5), math.sqrt(1.5), 0.0])
    assert gdpo_advantage(parts[:, :1] * 0, (1.0,), "aabb").tolist() == [0.0] * 4
    three = gdpo_advantage(torch.stack([tensor(0, 1, 5), tensor(0, 0, 7)], 1), (1.0, 1.0), "aaa")  # not of mean 0 by chance
    each = [(column - column.mean()) / column.std(unbiased=False) for column in (tensor(0, 1, 5), tensor(0, 0, 7))]
    total = each[0] + each[1]
    assert torch.allclose(three, (total - total.mean()) / total.std(unbiased=False))


def test_buffered_advantages_by_hand():
    """Fewer than 3 of a prompt: the batch's mean and std; then the last 3 of the prompt."""
    memory: dict = {}
    first = buffered_advantage(tensor(1, 2, 6), "aab", memory, 3, 3)
    spread = math.sqrt((4 + 1 + 9) / 3)
    assert first.tolist() == pytest.approx([-2 / spread, -1 / spread, 3 / spread], rel=1e-5)
    second = buffered_advantage(tensor(6, 4, 1), "aab", memory, 3, 3)  # a: 2, 6, 4; b: 6, 1
    spread, other = math.sqrt(8 / 3), math.sqrt((((6 - 11 / 3) ** 2) + (1 / 3) ** 2 + (8 / 3) ** 2) / 3)
    assert second.tolist() == pytest.approx([2 / spread, 0.0, (1 - 11 / 3) / other], rel=1e-5, abs=1e-9)
    assert memory == {"rewards": {"a": [2.0, 6.0, 4.0], "b": [6.0, 1.0]}}
    assert buffered_advantage(tensor(5, 5), "cd", {}, 3, 3).tolist() == [0.0, 0.0]


def test_advantages_among_others():
    """Each less the mean of the others: 1 - 4, 2 - 3.5, 6 - 1.5."""
    assert among_others(batch("abc"), tensor(1, 2, 6)).tolist() == pytest.approx([-3.0, -1.5, 4.5])
    assert (
        among_others(batch("a"), tensor(3)).tolist() == [0.0] and among_others(batch("ab"), tensor(3, 3)).tolist() == [0.0] * 2
    )
    assert among_others(batch("ab"), tensor(1, 2)).tolist() == [-1.0, 1.0]
    pair = replace(batch("ab"), gather=lambda v: torch.cat([v, tensor(9, 0)]))
    assert among_others(pair, tensor(1, 2)).tolist() == pytest.approx([1 - 11 / 3, 2 - 10 / 3])


def test_shares_of_wins():
    assert win_rates(tensor(1, 3, 3, 7, 5, 2), "aaaabb").tolist() == [0.0, 0.5, 0.5, 1.0, 1.0, 0.0]
    assert win_rates(tensor(4, 4, 9), "aab").tolist() == [0.5, 0.5, 0.5]


def test_a_judge_of_pairs_is_asked_of_every_ordered_one():
    """P(a better than b) = .8 where a is the larger, .3 where it is not: 1 meets two larger ones, twice each."""
    asked = []

    def prefers(a, b, rows):
        asked.extend(zip(a.flatten().tolist(), b.flatten().tolist(), rows.tolist(), strict=True))
        return torch.where(a > b, 0.8, 0.3).flatten()

    found = preferred_rates(replace(batch("aaab"), prefers=prefers), tensor(1, 2, 3, 9)[:, None])
    wins = [0.3 + 0.2, 0.8 + 0.7]  # against a larger one, asked first and second; against a smaller one
    assert found.tolist() == pytest.approx([2 * wins[0] / 4, sum(wins) / 4, 2 * wins[1] / 4, 0.5])
    assert sorted(asked) == [(1, 2, 0), (1, 3, 0), (2, 1, 1), (2, 3, 1), (3, 1, 2), (3, 2, 2)]
    assert preferred_rates(replace(batch("ab"), prefers=prefers), tensor(1, 2)[:, None]).tolist() == [0.5, 0.5]
    cut = replace(batch("aa"), everyone=[Identity(7, "a", i) for i in range(3)], prefers=prefers)
    with pytest.raises(TiltingError, match="whole groups"):
        preferred_rates(cut, tensor(1, 2)[:, None])


def test_rewards_one_by_one_and_their_sum():
    clean, slope = tensor(1, 2), torch.ones((), dtype=torch.float64, requires_grad=True)
    one = replace(batch("ab"), value=lambda x, rows: (x + rows) * slope, shares=(2.0, -1.0))
    plain = score(one, clean, "sum")
    assert plain.value.tolist() == [1.0, 3.0] and plain.parts is None and not plain.value.requires_grad
    alone = score(one, clean, "gdpo")
    assert alone.parts is not None and alone.parts.tolist() == [[1.0], [3.0]] and alone.value.tolist() == [1.0, 3.0]
    several = score(replace(one, parts=lambda x, rows: torch.stack([x, x**2], 1) * slope), clean, "gdpo")
    assert (
        several.value.tolist() == [1.0, 0.0]
        and several.parts is not None
        and several.parts.tolist() == [[1.0, 1.0], [2.0, 4.0]]
    )
    assert group_worth(batch("aab"), Scored(tensor(1, 3, 9))).tolist() == pytest.approx([-1.0, 1.0, 0.0])
    together = group_worth(batch("aab"), Scored(tensor(0, 0, 0), tensor(1, 3, 9)[:, None]))
    assert together.tolist() == pytest.approx([-math.sqrt(1.5), math.sqrt(1.5), 0.0])


# Masks and gradients made again


def test_masks_of_a_truncation():
    def chance():
        return torch.Generator().manual_seed(3)

    assert Truncation().mask(3, chance()).tolist() == [True] * 3
    lasts = {count: Truncation("last", count).mask(4, chance()).tolist() for count in (None, 1, 3, 9)}
    assert lasts == {None: [False] * 3 + [True], 1: [False] * 3 + [True], 3: [False] + [True] * 3, 9: [True] * 4}
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        mask = Truncation("random").mask(3, generator).tolist()
        seen.add(tuple(mask))
    assert seen == {(False, False, True), (False, True, True), (True, True, True)}
    k = int(torch.randint(1, 5, (1,), generator=chance()))
    assert sum(Truncation("random").mask(4, chance()).tolist()) == k
    drawn = torch.rand(400, generator=chance())
    assert torch.equal(Truncation("step", step_probability=0.3).mask(400, chance())[:-1], (drawn < 0.3)[:-1])
    assert torch.equal(Truncation("step").mask(400, chance())[:-1], (drawn < 0.5)[:-1])
    assert Truncation("step", step_probability=1e-9).mask(3, chance()).tolist() == [False, False, True]  # never none
    one = Truncation("step", step_probability=0.5).mask(8, chance())
    assert one.any() and one[-1].item() == (torch.rand(8, generator=chance())[-1] < 0.5).item()


def test_what_is_made_again_has_the_same_slopes():
    """y = (θ x², φ), of which φ has no slope in x and ψ is in neither."""
    theta, psi = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, 1.0))
    x, calls = tensor(2.0, 5.0).requires_grad_(True), []

    def function(x):
        calls.append(torch.is_grad_enabled())
        return theta * x**2, 2 * theta

    one, other = recomputed(function, x, (theta, psi))
    assert calls == [False]
    found = torch.autograd.grad(one.sum() + other, (x, theta, psi), allow_unused=True)
    assert found[0].tolist() == [12.0, 30.0] and found[1].item() == 29.0 + 2.0 and found[2] is None and calls == [False, True]
    one, other = recomputed(function, x.detach(), (theta, psi))
    assert torch.autograd.grad(other, theta)[0].item() == 2.0  # a value nobody asks of has no slope to arrive
    assert torch.autograd.grad(recomputed(function, x, (theta, psi))[1], x, allow_unused=True) == (None,)
    calls.clear()
    (plain, _) = recomputed(function, x)
    assert torch.autograd.grad(plain.sum(), x)[0].tolist() == [12.0, 30.0] and len(calls) == 2
    assert slopes_of([one.detach()], [one.detach()], [x], [True]) == [None]
    assert slopes_of([theta * 2], [torch.ones((), dtype=torch.float64)], [theta, x], [False, False]) == [None, None]
    assert slopes_of([theta * 2], [None], [theta], [True]) == [None]


# Errors


@pytest.mark.parametrize(
    ("kind", "off"), [("epsilon", 0.5), ("sample", -2.0), ("v_prediction", 0.6 * 0.5 + 0.8 * 2), ("flow", 2.5)]
)
def test_an_error_is_of_the_networks_own_output(kind, off):
    """eps is .5 off and x0 -2, at α = .6, σ = .8; and half of that in another number."""
    clean, noise, t = tensor(1, 7)[None], tensor(3, 2)[None], Time(0.0, 0.6, 0.8)
    said = Prediction(noise + tensor(0.5, 0.25), clean - tensor(2, 1), clean)
    assert torch.allclose(residual(said, clean, noise, t, kind), off * tensor(1, 0.5)[None])
    assert training_error(said, clean, noise, t, kind).tolist() == pytest.approx([off**2 * 1.25 / 2])
    assert distance(said, Prediction(noise, clean, clean), t, kind).tolist() == pytest.approx([off**2 * 1.25 / 2])


def test_outputs_are_mixed_on_a_line():
    new, old = (Prediction(*(tensor(v + k) for k in range(3))) for v in (4.0, 1.0))
    for share, first in ((0.0, 1.0), (1.0, 4.0), (0.5, 2.5), (-1.0, -2.0), (2.0, 7.0)):
        assert [part.item() for part in mixed(new, old, share)] == [first, first + 1, first + 2]


# What it costs


def drawn_steps(purpose: str, least: int, among: int, count: int = 24) -> list[int]:
    """What keyed chance says in so many training steps."""
    return [
        least + int(torch.randint(among, (1,), generator=rng.generator(Identity(0, "", k), 0, 0, purpose)))
        for k in range(count)
    ]


@pytest.mark.parametrize(
    ("objective", "cost"),
    [
        (draft(), Cost(8, 1, False, 4, 1)),  # drawn, and made again on the way back
        (draft_k(2), Cost(6, 1, False, 2, 1)),
        (draft(kl=0.1), Cost(2 * (2 * 3 + 1), 1, False, 2 * 3 + 1, 1)),  # of both models, but of the last step the frozen one's
        (draft_lv(copies=2), Cost(4 + 1 + 2, 3, False, 3, 3)),
        (ddpo(), Cost(4 + 3, 1, False, 3, 0)),
        (ddpo(kl=0.1), Cost(4 + 3 + 3, 1, False, 3, 0)),
        (ddpo(epochs=2, kl=0.1), Cost(4 + 6 + 3, 1, False, 6, 0)),
        (grpo(), Cost(4 + 3, 1, False, 3, 0)),
        (raft(timesteps=3), Cost(4 + 3 / 4, 1, False, 3 / 4, 0)),
        (srpo(injections=2), Cost(4 + 2, 2, False, 2, 2)),
        (drtune(k=2), Cost(4 + 2, 1, False, 2, 1)),
        (OBJECTIVES["nft"](timesteps=3), Cost(4 + 3 * 3, 1, False, 3, 0)),
        (OBJECTIVES["adjoint"](), Cost(4 + 4 + 3, 1, False, 4 + 3, 1)),
    ],
)
def test_costs_by_hand(objective, cost):
    assert cost_of(objective, 4) == cost


def test_the_cost_of_a_drawn_step_is_the_mean_of_24():
    """ReFL: i steps without a gradient and one with it, i of the last two of five; in half of 24 training steps or so."""
    steps = drawn_steps("refl", 3, 2)
    assert len(set(steps[:3])) == 2  # so that three steps tell that it is drawn
    assert cost_of(refl(last=2), 5) == Cost(sum(steps) / 24 + 1, 1, True, 1, 1)
    assert cost_of(refl(last=1), 5) == Cost(5, 1, False, 1, 1)


def test_what_is_told_of_an_objective():
    told = {name: about_objective(name) for name in ("draft", "ddpo", "adjoint", "srpo", "raft")}
    assert [one["gradient"] for one in told.values()] == ["through T steps", "none", "of the reward", "through 1 step", "none"]
    assert [one["differentiable"] for one in told.values()] == [True, False, True, True, False]
    assert [one["density"] for one in told.values()] == [False, True, True, False, False]
    assert [one["eta"] for one in told.values()] == [0.0, 1.0, 1.0, 0.0, 1.0] and told["raft"]["group_size"] == 4
    assert all(one["counted_at"] == 50 for one in told.values()) and told["draft"]["evaluations"] == 100
    assert told["draft"]["reward_calls"] == 1 and not told["draft"]["drawn"] and told["ddpo"]["paper"] == "Black et al. 2023"
    assert told["draft"]["about"] == "DRaFT: back-propagation through the whole chain, one checkpoint a step"
    assert told["draft"]["more"][0].lstrip().startswith("x ~ N(0, I)")
    assert told["ddpo"]["settings"]["clip"]["default"] == 1e-4 and told["ddpo"]["settings"]["reduction"]["choices"] == [
        "sum",
        "mean",
    ]


def test_what_is_told_of_an_objective_that_does_not_say_what_its_gradient_goes_through():
    @OBJECTIVES.register
    @dataclass(frozen=True)
    class Mine(BaseObjective):
        """The reward of noise.

        A note.
        """

        name, paper, needs_gradient = "mine", "none", True

        def __call__(self, batch):
            yield Loss(-batch.value(batch.denoise(batch.noise(0), batch.grid[0], batch.rows).x0, batch.rows).mean(), {})

    try:
        told = about_objective("mine")
    finally:
        del OBJECTIVES._parts["mine"]  # type: ignore[attr-defined]
    assert (told["gradient"], told["evaluations"], told["reward_calls"], told["more"]) == ("of the reward", 1, 1, ["A note."])
