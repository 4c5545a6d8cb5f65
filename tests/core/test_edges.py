"""Where methods are most easily wrong: parts of a run, ties, shapes of latents, values that are not numbers, few of anything.

Each test is of all presets or of a rule that several share.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from support.chains import AIM, DIFFUSION, FLOW, Counter, problem, run
from support.counts import PER_IMAGE
from tilting import presets, rng
from tilting.cost import cost
from tilting.declare import declared
from tilting.generation.plan import identities, plan
from tilting.method import Every, check
from tilting.sample import Problem, finish
from tilting.select import Greedy, Memory, SelectionInput
from tilting.types import Prediction, RewardError, TiltingError

# A part of a run, from a noised picture


@pytest.mark.parametrize(
    ("gate", "steps", "rounds"),
    [
        (Every(4), 500, 124),  # the published counts of gradient rounds: PickScore,
        (Every(2, (0.6, 0.0), begin=0.6), 60, 29),  # and text and picture to picture, 60 of 100 steps
        (Every(5, (0.6, 0.0)), 500, 60),  # aesthetic, where the published count leaves the bound out
        (Every(1, (0.7, 0.3), True, 0.6), 60, 31),  # t of 60 ... 30
        (Every(1, (0.7, 0.3), True, 0.2), 20, 0),
    ],
)
def test_windows_are_of_the_noise_of_the_whole_run(gate, steps, rounds):
    assert gate.count(steps) == rounds


class Model(SimpleNamespace):
    name, latent_shape, image_shape, default_steps, default_cfg, schedule = "plane", (2,), (3, 4, 4), 10, 3.0, DIFFUSION


class Red:
    """A reward that has a gradient."""

    name, differentiable = "red", True

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2))


REWARD = Red()
WHO = identities(["a fox"], 0, 2)


@pytest.mark.parametrize("preset", [presets.codex(2, gradient_block=1), presets.mpgd(), presets.freedom(repeat=2)])
def test_a_run_from_a_picture_is_guided_where_the_whole_run_would_be(mixture, preset):
    """Of 20 steps the last 12 are made: guided at those of them where a run of 20 is, and counted so."""
    made = plan(Model(), WHO, preset, REWARD, steps=20, cfg=3.0, reference=torch.zeros(1, 3, 4, 4), strength=0.6)  # type: ignore[arg-type]
    whole = preset.build(20)
    for gate in ("correct_when", "guide_when", "repeat_when"):
        window = getattr(whole, gate).window
        times = [i for i in range(8, 20) if window[1] - 1e-9 <= 1 - i / 20 <= window[0] + 1e-9]
        one = replace(getattr(made.method, gate), block=1, at_start=True)
        assert [i + 8 for i in range(12) if one(i, 12)] == times
    value = Counter(lambda x0, rows: x0 @ AIM)
    p = problem(mixture, 20, 2, value=value)
    p = replace(p, grid=p.grid[8:])
    finish(p, made.method, run(p, made.method)[0])
    assert value.rows == 2 * cost(made.method, 12).values


# Selection


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_of_equal_values_the_first_are_kept(beams):
    """Whatever the row's company: a rule that ties depend on would make an image depend on its batch."""
    value = torch.zeros(3, 40, dtype=torch.float64)
    value[1, 7:] = 1.0
    look = SelectionInput(value, torch.zeros(3, 40), Memory.blank(3, 40), torch.zeros(3, 6), 0.5, 5)
    kept = Greedy(beams)(look).parents
    assert kept is not None
    assert kept[0].tolist() == [i % beams for i in range(6)]
    assert kept[1].tolist() == [7 + i % beams for i in range(6)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("preset", [presets.code(3), presets.tds(3), presets.rbf(3), presets.bon(3), presets.dps()])
def test_a_value_that_is_not_a_number_stops_a_run_with_its_image(mixture, preset, bad):
    """At any estimate of image 2, wherever it is found."""
    p = problem(mixture, 6, 4, value=lambda x0, rows: torch.where(rows == 2, bad, x0 @ AIM))
    with pytest.raises(RewardError, match="finite") as caught:
        finish(p, preset.build(6), run(p, preset.build(6))[0])
    assert caught.value.row == 2


# The unit of a reward, and its zero


UNITS = {"beta": 1, "tau": 1, "fk.strength": -1, "ug.strength": -1, "dps-score.strength": -1}
"""Settings in the reward's unit, to this power."""


def in_unit(name, unit):
    preset = PER_IMAGE[name][0]
    given = {key.rpartition(".")[2]: power for key, power in UNITS.items() if key.rpartition(".")[0] in ("", name)}
    given = {key: power for key, power in given.items() if getattr(preset, key, None)}
    return replace(preset, **{key: getattr(preset, key) * unit**power for key, power in given.items()})


@pytest.mark.parametrize("schedule", [DIFFUSION, FLOW], ids=["diffusion", "flow"])
@pytest.mark.parametrize("name", [n for n in PER_IMAGE if n != "codex-schedule"])
def test_a_reward_in_another_unit_or_from_another_zero_draws_the_same(mixture, name, schedule):
    """r + c, and c r with what is told in its unit, where gradients are far above the published 1e-8. ReNO's steps are in it by
    their nature; freedom and ug repeat at high noise, where gradients are of that order."""
    ends = []
    for unit, zero in ((1.0, 0.0), (1.0, 700.0), (2.0**-4, 0.0), (2.0**10, 0.0)):
        if unit != 1 and name in ("reno", "freedom", "ug"):
            continue

        def value(x0, rows, unit=unit, zero=zero):
            return unit * (torch.sin(x0 @ AIM) + 0.3 * (x0 @ AIM)) + zero

        eta = 0.5 if PER_IMAGE[name][0].default_eta == 0 else 1.0
        p, method = problem(mixture, 5, 2, schedule, value=value, eta=eta), in_unit(name, unit).build(5)
        ends.append(finish(p, method, run(p, method)[0]).x)
    assert all(torch.allclose(end, ends[0], atol=1e-6) for end in ends)


NOTHING = {"code": {}, "bon": {}, "svdd": {}, "smc": {}, "fk": {}, "rbf": {}, "fkc": {}, "dps": {"strength": 0.0}}
NOTHING |= {"mpgd": {"strength": 0.0}, "freedom": {"strength": 0.0, "repeat": 1}, "ug": {"strength": 0.0, "backward": 0}}
NOTHING |= {"lgd": {"strength": 0.0}, "tfg": {"rho": 0.0, "mu": 0.0}, "codex": {"strength": 0.0}, "lidar": {"strength": 0.0}}


@pytest.mark.parametrize("name", NOTHING)
def test_one_particle_and_no_strength_is_the_model_to_the_bit(mixture, name):
    one = {"particles": 1} if "particles" in declared(presets.METHODS[name]) else {}
    preset = presets.METHODS[name](**NOTHING[name], **one)
    for schedule in (DIFFUSION, FLOW):
        for eta in (0.5, 1.0):
            plain = {"cfg": 1.0} if name == "fkc" else {}  # which weighs guidance itself
            p = problem(mixture, 5, 2, schedule, eta=eta, **plain)
            assert torch.equal(*(finish(p, m, run(p, m)[0]).x for m in (preset.build(5), presets.base().build(5))))


@pytest.mark.parametrize("name", ["smc", "tds", "das", "psi", "fkc"])
def test_the_heaviest_of_equals_does_not_depend_on_rounding(mixture, name):
    """What parted after a last resampling weighs the same, as far as values are known: another batch rounds them otherwise."""
    method, kept = PER_IMAGE[name][0].build(5), []
    for k in range(4):

        def value(x0, rows, k=k):
            noise = torch.sin(1e6 * (x0.detach().sum(1) + k))
            return x0 @ AIM + 5e-7 * noise

        p = problem(mixture, 5, 24, FLOW, value=value)
        kept.append(finish(p, method, run(p, method)[0]).kept)
    assert all(torch.equal(one, kept[0]) for one in kept)


# Latents of any shape, runs of any length


@pytest.mark.parametrize("name", PER_IMAGE)
def test_the_shape_of_a_latent_does_not_matter(name):
    """Latents of 2 x 3 x 5 are latents of 30: nothing takes a height for a width or a row for a channel."""
    pull = torch.linspace(-1, 1, 30)
    ends = []
    for shape in ((30,), (2, 3, 5)):

        def denoise(x, t, rows):
            wide = x.flatten(1)
            eps = (t.sigma * wide + 0.1 * torch.sin(wide.roll(1, 1))).reshape(x.shape)
            return Prediction(eps, t.alpha * x - t.sigma * (eps - t.sigma * x) / max(t.alpha, 0.1), torch.cos(eps))

        def value(x0, rows):
            return torch.sin(x0.flatten(1) @ pull)

        who = [rng.Identity(1, "shape", i) for i in range(2)]
        p = Problem(denoise, FLOW.grid(5), who, shape, value, 1.0, 3.0, 7)
        p = replace(p, eta=0.5)
        method = PER_IMAGE[name][0].build(5)
        ends.append(finish(p, method, run(p, method)[0]).x.flatten(2))
    assert torch.allclose(*ends, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", [n for n in PER_IMAGE if n != "codex-schedule"])
def test_short_runs_of_one_particle_are_counted_and_end(mixture, name, steps):
    """N = 1 and T = 1: what has nobody to choose from or nothing to choose between goes on, at its exact cost."""
    preset = PER_IMAGE[name][0]
    alone = replace(preset, particles=1) if hasattr(preset, "particles") else preset
    for schedule in (DIFFUSION, FLOW):
        denoise, value = Counter(problem(mixture, schedule=schedule).denoise), Counter(lambda x0, rows: x0 @ AIM)
        p = problem(mixture, steps, 2, schedule, denoise=denoise, value=value)
        method = alone.build(steps)
        check(method, steps, 1.0, 3.0, True)
        end = finish(p, method, run(p, method)[0])
        assert torch.isfinite(end.x).all()
        assert (denoise.rows, value.rows) == tuple(2 * n for n in cost(method, steps))


# Settings that cannot be meant


UNMEANT = [
    ("fk", {"strength": 0.0}, "fk.strength must be above 0"),
    ("fk", {"strength": -2.0}, "fk.strength"),
    ("fk", {"potential": "mean"}, "fk.potential"),
    ("code", {"particles": 4, "beams": 2, "tau": 0.1}, "beams"),
    ("codex", {"tau_end": 0.1}, "tau"),
    ("codex", {"schedule": (2, 2, 4, 4, 6, 6)}, "schedule"),
    ("codex", {"schedule": (2, 4), "block": 6}, "selections in 1 of them alone"),
    ("codex", {"window": (0.3, 0.7)}, "window"),
    ("codex", {"gradient_on": "medoids"}, "did you mean 'medoid'"),
    ("codex", {"gradient_on": "medoid", "clusters": -2}, "clusters"),
    ("codex", {"clusters": 2}, "codex.clusters are those of codex.gradient_on=medoid or mean"),
    ("codex", {"gradient_on": "winner", "gradient_block": 2}, "leave codex.gradient_block unset"),
    ("das", {"adaptive": True, "temper": 0.01}, "leave das.temper unset"),
    ("mpgd", {"window": (math.nan, 0.0)}, "window"),
    ("ug", {"backward": -1}, "backward"),
    ("tfg", {"steps": -1}, "steps"),
    ("dps", {"rule": "cgf"}, "did you mean 'cfg'"),
    ("dps", {"strength": math.nan}, "strength"),
    ("das", {"temper": 0.0}, "temper"),
    ("smc", {"scheme": "stratified"}, "scheme"),
    ("rbf", {"particles": 0}, "particles"),
    ("reno", {"rate": -1.0}, "rate"),
    ("doodl", {"iterations": 1}, "iterations must be at least 2"),
    ("svdd", {"tau": -1.0}, "tau"),
    ("bon", {"particles": 1.5}, "particles"),
]


@pytest.mark.parametrize(("name", "settings", "words"), UNMEANT)
def test_settings_made_in_python_are_checked_as_those_of_the_command_line(name, settings, words):
    kind = presets.METHODS[name]
    with pytest.raises(TiltingError, match=words):
        plan(Model(), WHO, kind(**settings), REWARD, steps=5, cfg=3.0)  # type: ignore[arg-type]
    plan(Model(), WHO, kind(), REWARD, steps=5, cfg=3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [(0.3, 0.7), (1.1, 0.0), (1.0, -0.1), (math.nan, 0.0)])
def test_a_window_is_high_and_low(window):
    with pytest.raises(TiltingError, match="window"):
        Every(1, window)


class Together(Red):
    """A reward of the whole batch."""

    batch_dependent = True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": Together()}, "compares the images of a batch"),
        ({"reference": torch.zeros(2, 3, 4, 4)}, "2 references"),
        ({"reference": torch.full((1, 3, 4, 4), 255.0)}, r"floats in \[0, 1\]"),
        ({"reference": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, r"floats in \[0, 1\]"),
        ({"reference": torch.zeros(1, 3, 8, 8)}, "the reference must be"),
    ],
)
def test_what_a_plan_cannot_draw_is_refused_before_it_is(options, words):
    with pytest.raises(TiltingError, match=words):
        plan(Model(), identities(["a fox"], 0, 3), presets.base(), **{"reward": REWARD, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [[3, 3], (1, 2, 1)])
def test_no_image_comes_twice_by_a_seed_given_twice(seeds):
    with pytest.raises(TiltingError, match=r"seed [13] is given twice: give it once"):
        identities(["a fox"], seeds, 1)
    assert len(identities(["a fox"], range(10**5), 1)) == 10**5


def test_latents_are_of_every_image_and_not_beside_a_picture(small):
    import tilting as tl

    shape = (2, *small.latent_shape)
    for latents, more, words in (
        (torch.zeros(3, *shape[1:]), {}, "latents must be"),
        (torch.zeros(1, *shape[1:]), {}, "latents must be"),
        (torch.zeros(shape), {"image": torch.zeros(1, *small.image_shape)}, "not both"),
    ):
        with pytest.raises(TiltingError, match=words):
            tl.generate(small, ["a fox"], images=2, steps=2, latents=latents, **more)
