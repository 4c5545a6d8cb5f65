"""Rules of selection by hand: who is copied, at which temperature, and what the weights and memories of SMC become."""

from __future__ import annotations

import math

import pytest
import torch

from tilting import weights
from tilting.select import Greedy, Memory, Multinomial, SelectionInput, Smc
from tilting.types import TiltingError


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def seen(value, uniforms=None, memory=None, log_w=None, done=0.5, draws=3):
    value = rows(*value)
    uniforms = torch.full_like(value, 0.5) if uniforms is None else rows(*uniforms)
    log_w = torch.zeros_like(value) if log_w is None else rows(*log_w)
    return SelectionInput(value, log_w, memory or Memory.blank(*value.shape), uniforms, done, draws)


def test_the_best_few_are_copied_in_turn_and_of_equal_ones_the_first():
    values = [[1.0, 3.0, 2.0, 3.0], [0.0, -1.0, 5.0, 4.0]]
    for beams, parents in ((1, [[1] * 4, [2] * 4]), (2, [[1, 3, 1, 3], [2, 3, 2, 3]]), (3, [[1, 3, 2, 1], [2, 3, 0, 2]])):
        choice = Greedy(beams)(seen(values, log_w=[[9.0] * 4] * 2))
        assert choice.parents is not None and choice.parents.tolist() == parents
        assert choice.log_w.tolist() == [[0.0] * 4] * 2
    few = Greedy(5)(seen([[1.0, 3.0]], uniforms=[[0.5] * 3]))  # more beams than particles
    assert few.parents is not None and few.parents.tolist() == [[1, 0, 1]]
    assert {part.dtype for part in Memory.blank(1, 2)} == {torch.float64} and Memory.blank(1, 2).best.tolist() == [
        [-math.inf] * 2
    ]
    assert not Smc().one_winner and Smc.importance_weighted
    assert Greedy().one_winner and not Greedy(2).one_winner and not Greedy().importance_weighted
    with pytest.raises(TiltingError, match="at least 1, not 0"):
        Greedy(0)


def test_draws_are_at_a_temperature_that_falls_and_of_one_uniform_where_they_are_shared():
    assert Multinomial(0.1).temperature(0.7) == 0.1 and Multinomial().temperature(0.0) == 0.001
    for done, tau in ((0.0, 0.1), (0.5, 0.01), (1.0, 0.001)):
        assert Multinomial(0.1, 0.001).temperature(done) == pytest.approx(tau)
    p = 1 / (1 + math.e)  # of the first of two that are a temperature apart
    values, uniforms = [[0.0, 0.01]], [[p - 1e-4, p + 1e-4]]
    apart = Multinomial(0.1, 0.001)(seen(values, uniforms, log_w=[[5.0, 6.0]]))
    together = Multinomial(0.1, 0.001, shared=True)(seen(values, uniforms))
    assert apart.parents is not None and apart.parents.tolist() == [[0, 1]] and apart.log_w.tolist() == [[0.0, 0.0]]
    assert together.parents is not None and together.parents.tolist() == [[0, 0]]
    assert Multinomial(shared=True).one_winner and not Multinomial().one_winner
    for wrong in ({"tau": 0.0}, {"tau_end": 0.0}, {"tau_end": -1.0}):
        with pytest.raises(TiltingError, match="must be positive"):
            Multinomial(**wrong)


def test_a_temper_rises_as_powers_to_one_and_a_proposal_has_the_next_level():
    """λ_i = min(1.5^i - 1, 1): 0, .5, 1 (1.25), 1."""
    rule, memory = Smc(temper=0.5), Memory.blank(1, 2)
    assert [rule.level(i) for i in range(4)] == [0.0, 0.5, 1.0, 1.0] and Smc().level(0) == 1.0
    scale = rule.twist_scale(memory, 0)
    assert scale is not None and scale.tolist() == [[0.5, 0.5]] and Smc().twist_scale(memory, 0) is None
    found = memory._replace(level=rows([0.3, 0.3]))
    assert Smc(adaptive=True).twist_scale(found, 7) is found.level
    assert rule.weigh(seen([[1.0, 2.0]], draws=1))[0].tolist() == [[0.5, 1.0]]
    assert rule.weigh(seen([[1.0, 2.0]], draws=1, done=1.0))[0].tolist() == [[1.0, 2.0]]  # real pictures, at λ = 1


PAST = Memory(rows([0.25, 1.0]), rows([1.0, 4.0]), rows([2.0, 5.0]), rows([0.1, 0.1]))
WEIGHED = {"difference": [4.0, 2.0], "max": [4.0, 8.0], "sum": [8.0, 12.0]}
"""Of values 2 and 1 at β = .5: the value, the highest and the sum so far, over β."""


@pytest.mark.parametrize("kind", WEIGHED)
def test_potentials_are_of_the_value_the_highest_and_the_sum_so_far(kind):
    rule = Smc(beta=0.5, potential=kind)
    log_w, memory = rule.weigh(seen([[2.0, 1.0]], memory=PAST, log_w=[[0.5, 0.5]]))
    past = [0.25, 1.0]
    added = {"difference": 0.0, "max": 1.0, "sum": 1.0}[kind]  # these two add to what was collected
    wanted = [w + added * p for w, p in zip(WEIGHED[kind], past, strict=True)]
    assert memory.potential.tolist() == [wanted]
    assert log_w.tolist() == [[0.5 + w - p for w, p in zip(wanted, past, strict=True)]]
    assert (memory.best.tolist(), memory.total.tolist(), memory.level.tolist()) == ([[2.0, 4.0]], [[4.0, 6.0]], [[1.0, 1.0]])
    last, _ = rule.weigh(seen([[2.0, 1.0]], memory=PAST, done=1.0))
    assert last.tolist() == [[4.0 - 0.25, 2.0 - 1.0]]  # at the end r / β itself, whatever the potential


def test_only_an_image_below_the_threshold_is_resampled_and_keeps_its_mean_weight():
    """Weights 1, 1 have ESS 2 and 1, 3 have 16 / 10."""
    log_w = [[0.0, 0.0], [0.0, math.log(3)]]
    for threshold, low in ((1.0, [False, True]), (0.801, [False, True]), (0.799, None)):
        choice = Smc(ess_threshold=threshold)(seen([[0.0, 0.0]] * 2, [[0.6, 0.0]] * 2, log_w=log_w))
        if low is None:
            assert choice.parents is None and torch.allclose(choice.log_w, rows(*log_w))
            continue
        assert choice.parents is not None and choice.parents.tolist() == [[0, 1], [1, 1]]  # points .3 and .8 over .25 and .75
        assert torch.allclose(choice.log_w, rows([0.0, 0.0], [math.log(2)] * 2))
    at = Smc(ess_threshold=1.0)(seen([[0.0, 0.0]]))
    room = Smc(ess_threshold=1.0, adaptive=True)(seen([[0.0, 0.0]]))
    assert at.parents is None and room.parents is not None  # an adaptive level sits on the bound
    assert Smc(ess_threshold=0.6, adaptive=True)(seen([[0.0, 0.0]])).parents is None  # and no further than a hundredth of it


@pytest.mark.parametrize("scheme", ["systematic", "ssp", "multinomial"])
def test_resampling_is_by_the_scheme(scheme):
    value, uniforms = [[0.0, 1.0, 2.0, 0.5]], [[0.9, 0.1, 0.7, 0.3]]
    choice = Smc(ess_threshold=2.0, scheme=scheme)(seen(value, uniforms))
    draw = getattr(weights, scheme)
    given = rows(*uniforms)[:, 0] if scheme == "systematic" else rows(*uniforms)
    assert choice.parents is not None
    assert choice.parents.tolist() == draw(torch.softmax(rows(*value), 1), given).tolist()


def test_an_adaptive_level_is_where_the_effective_sample_size_meets_the_threshold():
    """Weights 1 and z have ESS 1.8 = .9 · 2 at z = 2: λ = log 2 of values one apart, 2 log 2 of a half apart, but at most 1."""
    rule = Smc(ess_threshold=0.9, adaptive=True)
    log_w, memory = rule.weigh(seen([[0.0, 1.0], [0.0, 0.5], [3.0, 1.0]]))
    levels = [math.log(2), 1.0, math.log(2) / 2]
    assert memory.level[:, 0].tolist() == pytest.approx(levels) and memory.level[:, 1].tolist() == pytest.approx(levels)
    assert log_w[0].tolist() == pytest.approx([0.0, math.log(2)])
    started = Memory.blank(1, 2)._replace(level=rows([0.8, 0.8]), potential=rows([0.0, 0.8]))
    _, later = rule.weigh(seen([[0.0, 1.0]], memory=started, log_w=[[0.0, 0.8]]))  # too uneven already: it stays
    assert later.level[0].tolist() == pytest.approx([0.8, 0.8])
    going = Memory.blank(1, 3)._replace(level=rows([0.3] * 3), potential=rows([0.0, 0.3, 0.0]))
    _, on = Smc(ess_threshold=0.9, adaptive=True).weigh(seen([[0.0, 1.0, 0.0]], memory=going, log_w=[[0.0, 0.5, 0.0]]))
    x = math.exp(0.5 + on.level[0, 0].item() - 0.3)  # the weight of the second, of three
    assert (2 + x) ** 2 / (2 + x**2) == pytest.approx(2.7) and x > 1 and on.level[0].unique().numel() == 1
    _, even = Smc(ess_threshold=1.0, adaptive=True).weigh(seen([[1.0, 1.0]]))  # on the bound at every level: as far as it goes
    assert even.level.tolist() == [[1.0, 1.0]]
    halved, _ = Smc(beta=2.0, ess_threshold=0.9, adaptive=True).weigh(seen([[0.0, 1.8]]))
    assert halved[0].tolist() == pytest.approx([0.0, math.log(2)])  # λ v / β
    _, end = rule.weigh(seen([[0.0, 9.0]], done=1.0))
    assert end.level.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 0.0},
        {"temper": 0.0},
        {"ess_threshold": -0.1},
        {"potential": "mean"},
        {"scheme": "none"},
        {"temper": 0.1, "potential": "max"},
        {"adaptive": True, "potential": "sum"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(TiltingError):
        Smc(**wrong)
    Smc(ess_threshold=0.0, beta=1e-9, temper=1e-9)
    Smc(potential="max")


def test_what_particles_were_drawn_by():
    """The best few as sure, the others never; value over τ; a log-weight with what the potential has grown by."""
    low = -math.inf
    values = [[1.0, 3.0, 2.0, 3.0], [5.0, -1.0, 0.0, 4.0]]
    wanted = {1: [[low, 0, low, low], [0, low, low, low]], 2: [[low, 0, low, 0], [0, low, low, 0]], 9: [[0] * 4] * 2}
    for beams, told in wanted.items():
        assert Greedy(beams).drawn_by(seen(values), Memory.blank(2, 4)).tolist() == told
    assert Greedy().drawn_by(seen([[2.0] * 40]), Memory.blank(1, 40)).argmax().item() == 0
    assert Multinomial(0.5).drawn_by(seen(values), Memory.blank(2, 4)).tolist() == [[2 * v for v in row] for row in values]
    before, after = (Memory.blank(1, 2)._replace(potential=rows([a, b])) for a, b in ((1.0, 2.0), (4.0, 8.0)))
    found = Smc(0.3).drawn_by(seen([[0.0, 0.0]], memory=before, log_w=[[10.0, 20.0]]), after)
    assert found.tolist() == [[13.0, 26.0]]
    assert Greedy().needs_reward and Multinomial().needs_reward and Smc(1.0).needs_reward and not Smc(math.inf).needs_reward
