"""What every preset composes, written out: its parts and their numbers as its paper has them, defaults and published."""

from __future__ import annotations

import re
from dataclasses import fields
from types import SimpleNamespace

import pytest

from tilting import presets
from tilting.engines.budget import Budget
from tilting.engines.chain import Pcnl
from tilting.engines.lookahead import Lookahead
from tilting.engines.optimise import Optimise
from tilting.engines.search import NoiseSearch, PathSearch
from tilting.errors import TiltingError
from tilting.guidance.corrector import Corrected
from tilting.guidance.gradient import RewardGradient
from tilting.guidance.kernel import Clean, Mean, Score, Watching
from tilting.guidance.value_and_grad import Estimator
from tilting.method import ALWAYS, Every, Method
from tilting.presets.common import Preset, method_of_file
from tilting.presets.guided import reconstruction_guidance
from tilting.presets.selecting import block_of, selection
from tilting.select import Greedy, Multinomial, Smc


def found(through="denoiser", probes=None, sigma=0.1, samples=1, radius=0.0, tau=1.0) -> Estimator:
    return Estimator(through, probes, sigma, samples, radius, tau)


def guided(name, *guides, how=None, gate=ALWAYS, n=1, repeat=1) -> Method:
    final = "reward" if n > 1 else "first"
    how = found() if how is None else how
    return Method(name, n, guides=guides, estimator=how, guide_when=gate, repeat=repeat, repeat_when=gate, final=final)


def twisted(name, beta, select, n=4, final="weight", start="independent", begin=None, how=None) -> Method:
    guides, gate, how = (Mean(1 / beta, "plain", "variance"),), Every(1, (1.0, 0.0), True), found() if how is None else how
    return Method(name, n, start, select=select, select_when=gate, guides=guides, estimator=how, final=final, begin=begin)


def codex(block=5, gradients=2, window=(0.6, 0.0), how=None, **other) -> Method:
    made = {
        "correct": RewardGradient(0.2, found() if how is None else how, "cfg", None),
        "correct_when": Every(gradients, window),
        "select": Greedy(1),
        "select_when": Every(block),
        "final": "reward",
    }
    return Method("codex", **{"particles": 4, **made, **other})


MIDDLE, PUBLISHED = Every(1, (0.7, 0.3), True), (2, 2, 2, 4, 4, 4, 4, 6, 6, 6)
SOFT = found(samples=4, radius=0.3)
BUILT = [  # preset, steps, what it composes
    (presets.base(), 20, Method("base")),
    (presets.sdedit(), 20, Method("sdedit")),
    (presets.bon(), 20, Method("bon", 4, "independent", final="reward")),
    (presets.bon(3, "copy"), 20, Method("bon", 3, "copy", final="reward")),
    (presets.code(), 20, Method("code", 4, select=Greedy(1), select_when=Every(5), final="reward")),
    (presets.code(block=7, beams=2), 20, Method("code", 4, select=Greedy(2), select_when=Every(7), final="reward")),
    (
        presets.code(tau=0.5, start="copy"),
        9,
        Method("code", 4, "copy", (), None, select=Multinomial(0.5), select_when=Every(4), final="reward"),
    ),
    (presets.svdd(), 20, Method("svdd", 4, "copy", select=Greedy(1), select_when=Every(1), final="first")),
    (presets.svdd(tau=0.5), 20, Method("svdd", 4, "copy", select=Multinomial(0.5, None, True), select_when=Every(1))),
    (presets.smc(), 20, Method("smc", 4, select=Smc(0.05, 0.5), select_when=Every(5), final="weight")),
    (
        presets.smc(3, 0.2, 2, 0.9, "ssp", "copy"),
        20,
        Method("smc", 3, "copy", select=Smc(0.2, 0.9, scheme="ssp"), select_when=Every(2), final="weight"),
    ),
    (
        presets.fk(),
        20,
        Method("fk", 4, select=Smc(0.05, 1.0, "max", scheme="multinomial"), select_when=Every(4), final="reward"),
    ),
    (
        presets.fk(2, 4.0, "sum", 3, 0.5, "copy"),
        20,
        Method("fk", 2, "copy", select=Smc(0.25, 0.5, "sum", scheme="multinomial"), select_when=Every(3), final="reward"),
    ),
    (
        presets.fk(),
        23,
        Method("fk", 4, select=Smc(0.05, 1.0, "max", scheme="multinomial"), select_when=Every(4), final="reward"),
    ),
    (presets.fk(strength=0.5), 4, Method("fk", 4, select=Smc(2.0, 1.0, "max", scheme="multinomial"), final="reward")),
    (presets.rbf(), 20, Method("rbf", 1, engine=Budget(4), interpolant="own")),
    (presets.rbf(7, "vp"), 20, Method("rbf", 1, engine=Budget(7), interpolant="vp")),
    (presets.prompt(), 20, Method("prompt", 5, final="reward")),
    (presets.codex(), 20, codex()),
    (presets.codex(), 6, codex(2, 2)),
    (presets.codex(), 3, codex(1, 1)),
    (
        presets.codex(2, 3, 4, 0.7, (0.9, 0.1), 0.5, 0.1, start="copy", source="code", rule="unit"),
        20,
        codex(
            3,
            4,
            (0.9, 0.1),
            particles=2,
            start="copy",
            correct=RewardGradient(0.7, found("decoder"), "unit", 150.0),
            select=Multinomial(0.5, 0.1),
        ),
    ),
    (presets.codex(gradient_on="winner", block=3), 20, codex(3, 3, correct_on="winner")),
    (presets.codex(gradient_on="mean", clusters=3), 20, codex(correct_on="mean", clusters=3)),
    (presets.codex(schedule=(2, 4, 6), probes=8, sigma=0.3), 20, codex(how=found("denoiser", 8, 0.3), counts=(2, 4, 6))),
    (presets.codex(schedule=(2, 4, 6, 8, 9)), 20, codex(4, counts=(2, 4, 6, 8, 9))),
    (presets.codex(schedule=(2, 4, 6, 8, 9)), 5, codex(1, counts=(2, 4, 6, 8, 9))),
    (presets.codex(schedule=(2, 4), block=6), 20, codex(6, counts=(2, 4))),
    (presets.dps(), 20, guided("dps", Mean(0.05, "unit", "one"))),
    (presets.dps(0.3, "plain", "score", particles=2), 20, guided("dps", Score(0.3), n=2)),
    (
        presets.dps(probes=6, sigma=0.2, window=(0.9, 0.2)),
        20,
        guided("dps", Mean(0.05, "unit", "one"), how=found(probes=6, sigma=0.2), gate=Every(1, (0.9, 0.2), True)),
    ),
    (presets.mpgd(), 20, guided("mpgd", Clean(0.2, 1, "unit", "eps", "one", found()), gate=MIDDLE)),
    (
        presets.mpgd(0.4, "plain", "code", probes=3),
        20,
        guided("mpgd", Clean(0.4, 1, "plain", "x", "one", found(probes=3)), how=found(probes=3), gate=MIDDLE),
    ),
    (presets.freedom(), 20, guided("freedom", Mean(0.2, "cfg", "one"), gate=MIDDLE, repeat=3)),
    (presets.freedom(0.4, 2, "unit", particles=3), 20, guided("freedom", Mean(0.4, "unit"), gate=MIDDLE, repeat=2, n=3)),
    (presets.ug(), 20, guided("ug", Score(5.0), Clean(0.05, 1, "unit", "x", "one", found()))),
    (presets.ug(2.0, 0, 0.1, 4), 20, guided("ug", Score(2.0), repeat=4)),
    (
        presets.ug(2.0, 3, 0.1, probes=2),
        20,
        guided("ug", Score(2.0), Clean(0.1, 3, "unit", "x", "one", found(probes=2)), how=found(probes=2)),
    ),
    (presets.lgd(), 20, guided("lgd", Mean(0.05, "unit", "one"), how=SOFT)),
    (
        presets.lgd(0.1, "plain", samples=2, radius=0.7, tau=3.0),
        20,
        guided("lgd", Mean(0.1, "plain"), how=found(samples=2, radius=0.7, tau=3.0)),
    ),
    (presets.tfg(), 20, guided("tfg", Mean(0.05, "unit", "ratio"), Clean(0.05, 1, "unit", "eps", "one", found()))),
    (
        presets.tfg(0.1, 0.2, 3, 2, "plain", radius=0.4, samples=2),
        20,
        guided(
            "tfg",
            Mean(0.1, "plain", "ratio"),
            Clean(0.2, 3, "plain", "eps", "one", found(samples=2, radius=0.4)),
            how=found(samples=2, radius=0.4),
            repeat=2,
        ),
    ),
    (presets.tfg(rho=0), 20, guided("tfg", Clean(0.05, 1, "unit", "eps", "one", found()))),
    (presets.tfg(mu=0), 20, guided("tfg", Mean(0.05, "unit", "ratio"))),
    (presets.tfg(steps=0), 20, guided("tfg", Mean(0.05, "unit", "ratio"))),
    (presets.tds(), 20, twisted("tds", 0.05, Smc(0.05, 0.5))),
    (
        presets.tds(3, 0.2, ess_threshold=0.8, final="sample", start="copy", probes=2),
        20,
        twisted("tds", 0.2, Smc(0.2, 0.8), 3, "sample", "copy", how=found(probes=2)),
    ),
    (presets.das(), 100, twisted("das", 0.05, Smc(0.05, 0.5, temper=2 ** (1 / 87) - 1, scheme="ssp"))),
    (presets.das(), 1, twisted("das", 0.05, Smc(0.05, 0.5, temper=1.0, scheme="ssp"))),
    (presets.das(temper=0.3, beta=2.0), 20, twisted("das", 2.0, Smc(2.0, 0.5, temper=0.3, scheme="ssp"))),
    (presets.das(adaptive=True), 20, twisted("das", 0.05, Smc(0.05, 0.5, adaptive=True, scheme="ssp"))),
    (presets.psi(), 20, twisted("psi", 0.05, Smc(0.05, 0.5), begin=Pcnl(4, 0.05, 0.5))),
    (presets.psi(2, 0.3, 7, 1.5), 20, twisted("psi", 0.3, Smc(0.3, 0.5), 2, begin=Pcnl(7, 0.3, 1.5))),
    (
        presets.fkc(),
        20,
        Method(
            "fkc", 4, select=Smc(0.05, 0.5), guides=(Corrected(1.0),), guide_when=Every(1, (1.0, 0.0), True), final="weight"
        ),
    ),
    (
        presets.fkc(3, None, 4.0, 2, (0.8, 0.1), 0.9, "sample"),
        20,
        Method(
            "fkc",
            3,
            spread=0.5,
            select=Smc(float("inf"), 0.9),
            select_when=Every(2),
            guides=(Corrected(4.0),),
            guide_when=Every(1, (0.8, 0.1), True),
            final="sample",
        ),
    ),
    (presets.reno(), 20, Method("reno", engine=Optimise(10, 5.0, "nesterov", 0.01, 0.1, False, None, 0.1))),
    (
        presets.reno(3, 2.0, 0.5, 0.7, probes=4, sigma=0.3),
        20,
        Method("reno", engine=Optimise(3, 2.0, "nesterov", 0.5, 0.7, False, 4, 0.3)),
    ),
    (presets.doodl(), 20, Method("doodl", engine=Optimise(10, 0.05, "adam", 0.0, None, True, None, 0.1))),
    (presets.doodl(3, 0.2, probes=4, sigma=0.3), 20, Method("doodl", engine=Optimise(3, 0.2, "adam", 0.0, None, True, 4, 0.3))),
    (presets.zo(), 20, Method("zo", engine=NoiseSearch(4, 4, 0.5))),
    (presets.zo(2, 3, 0.7), 20, Method("zo", engine=NoiseSearch(3, 2, 0.7))),
    (presets.paths(), 20, Method("paths", 2, engine=PathSearch(2, 1, 3, 0.2), final="reward")),
    (presets.paths(3, 4, 2, 5, 0.3), 20, Method("paths", 3, engine=PathSearch(4, 2, 5, 0.3), final="reward")),
    (presets.lidar(), 20, Method("lidar", 1, engine=Lookahead(8, 3, 0.05, 1.0), final="first")),
    (presets.lidar(2, 5, 4, 0.3, 0.7), 20, Method("lidar", 2, engine=Lookahead(5, 4, 0.3, 0.7), final="reward")),
]


@pytest.mark.parametrize(("preset", "steps", "method"), BUILT)
def test_what_a_preset_composes(preset, steps, method):
    made = preset.build(steps)
    for one in fields(Method):
        assert getattr(made, one.name) == getattr(method, one.name), one.name


PAPERS = {
    "sdedit": {"steps": 100, "strength": 0.6},
    "bon": {"particles": 16},
    "code": {"particles": 4, "block": 5, "start": "copy", "steps": 500, "cfg": 5},
    "svdd": {"particles": 20, "tau": None},
    "fk": {"particles": 4, "strength": 10, "potential": "max", "block": 20, "steps": 100},
    "rbf": {"particles": 50, "interpolant": "vp", "steps": 10},
    "codex": {
        "particles": 4,
        "block": 5,
        "gradient_block": 5,
        "strength": 0.2,
        "window": (0.6, 0.0),
        "tau": 0.001,
        "schedule": PUBLISHED,
        "steps": 500,
        "cfg": 5,
    },
    "dps": {"strength": 0.3, "rule": "plain", "steps": 1000},
    "mpgd": {"strength": 7.5, "rule": "plain", "window": (0.7, 0.3), "source": "code", "steps": 100},
    "freedom": {"strength": 0.2, "repeat": 10, "window": (0.7, 0.3), "steps": 100},
    "ug": {"strength": 30, "backward": 0, "repeat": 6, "steps": 100},
    "lgd": {"samples": 10, "radius": 1.0, "rule": "plain"},
    "tfg": {"steps": 4, "repeat": 1, "rho": 1, "mu": 2, "radius": 0.1, "rule": "plain"},
    "tds": {"particles": 8, "ess_threshold": 0.5, "steps": 100},
    "das": {"particles": 16, "beta": 0.005, "temper": 0.008, "steps": 100, "cfg": 5},
    "psi": {"particles": 10, "beta": 0.1, "moves": 50, "move": 0.5, "ess_threshold": 0.5, "steps": 25},
    "fkc": {"particles": 8, "block": 1, "ess_threshold": 1.0},
    "reno": {"iterations": 50, "rate": 5, "prior": 0.01, "clip": 0.1, "steps": 1},
    "doodl": {"iterations": 20, "steps": 50},
    "lidar": {"samples": 50, "lookahead": 8},
}
CASES = {
    ("codex", "pickscore"): {
        "gradient_block": 4,
        "window": (1.0, 0.0),
        "tau": 0.0003,
        "schedule": (2, 6, 6, 2, 2, 2, 4, 4, 6, 6),
    },
    ("codex", "image"): {
        "gradient_block": 2,
        "strength": 0.4,
        "window": (1.0, 0.0),
        "tau": 0.0003,
        "schedule": None,
        "steps": 100,
    },
    ("code", "image"): {"steps": 100},
    ("ug", "pickscore"): {"strength": 150},
    ("das", "pickscore"): {"beta": 1e-4},
}


@pytest.mark.parametrize("name", list(presets.METHODS))
def test_what_a_paper_used(name):
    """As published; and with a reward or from a picture what it used instead, over that. Steps and CFG are the caller's."""
    kind, paper = presets.METHODS[name], PAPERS.get(name, {})
    assert kind.of_paper() == paper and {(name, case) for case in kind.published_for} == {k for k in CASES if k[0] == name}
    mine = {key: value for key, value in paper.items() if key in {one.name for one in fields(kind)}}
    assert kind.as_published() == kind(**mine)
    for (_, case), more in ((key, value) for key, value in CASES.items() if key[0] == name):
        assert kind.of_paper(case) == {**paper, **more} and kind.of_paper("other", case) == {**paper, **more}
        theirs = {key: value for key, value in {**paper, **more}.items() if key in {one.name for one in fields(kind)}}
        assert kind.as_published(case) == kind(**theirs)
    with pytest.raises(TiltingError, match="no published settings of its own for 'other'"):
        kind.as_published("other")


def test_settings_go_over_the_papers():
    assert presets.codex.as_published("image", strength=0.9, particles=7).build(100).particles == 7
    assert presets.ug.as_published("pickscore", repeat=2) == presets.ug(150, 0, repeat=2)
    with pytest.raises(TiltingError, match="Universal has no published settings of its own for 'x': it has pickscore"):
        presets.ug.as_published("x")
    with pytest.raises(TiltingError, match=r"CoDeX .* for 'x': it has pickscore and image$"):
        presets.codex.as_published("image", "x")
    with pytest.raises(TiltingError, match=r"Base has no published settings of its own for 'x'$"):
        presets.base.as_published("x")


@pytest.mark.parametrize(
    ("block", "steps", "usual", "length"),
    [(None, 100, 5, 5), (None, 11, 5, 5), (None, 10, 5, 4), (None, 3, 5, 1), (None, 1, 5, 1), (None, 6, 2, 2), (7, 3, 5, 7)],
)
def test_an_unset_block_fires_in_a_short_run(block, steps, usual, length):
    assert block_of(block, steps, usual) == length


def test_how_particles_are_chosen():
    assert selection(None) == Greedy(1) == selection(0.0) and selection(None, beams=3) == Greedy(3)
    assert selection(0.2) == Multinomial(0.2, None) and selection(0.2, 0.1) == Multinomial(0.2, 0.1)
    for wrong, words in (
        (lambda: selection(None, 0.1), "set tau as well"),
        (lambda: selection(0.1, beams=2), "set one of them"),
    ):
        with pytest.raises(TiltingError, match=words):
            wrong()


@pytest.mark.parametrize(
    ("preset", "steps"),
    [
        (presets.codex(source="codes"), 5),
        (presets.codex(gradient_on="winner", tau=0.1), 5),
        (presets.codex(gradient_on="winner", gradient_block=2), 5),
        (presets.codex(clusters=2, gradient_on="winner"), 5),
        (presets.fk(strength=0.0), 5),
        (presets.dps(form="steps"), 5),
        (presets.mpgd(source="codes"), 5),
        (presets.das(adaptive=True, temper=0.1), 5),
        (presets.prompt("a {};fox"), 5),
        (presets.prompt(" ; "), 5),
    ],
)
def test_what_cannot_be_composed_is_refused(preset, steps):
    with pytest.raises(TiltingError):
        preset.build(steps)


@pytest.mark.parametrize(
    ("templates", "prompt", "told"),
    [
        ("{}", "a fox", ["a fox"]),
        (
            "a beautiful {}; an {} ;a {};{} at night",
            "the red fox",
            ["a beautiful red fox", "an red fox", "a red fox", "the red fox at night"],
        ),
        ("a beautiful {}", "two red foxes", ["a beautiful two red foxes"]),
        ("a beautiful {}", "an", ["a beautiful an"]),
        ("a beautiful {}", "an owl", ["a beautiful owl"]),
        ("{}, {};a", "a fox", None),
        ("{} and {}", "a fox", ["a fox and a fox"]),
    ],
)
def test_an_article_is_dropped_behind_another_word(templates, prompt, told):
    preset = presets.prompt(templates)
    if told is None:
        with pytest.raises(TiltingError, match=r"must contain \{\}, not 'a'"):
            preset.variants(prompt)
        return
    assert preset.variants(prompt) == told and preset.build(3).particles == len(told)
    assert presets.bon().variants(prompt) == [prompt]


def test_the_templates_of_the_default():
    assert presets.prompt().variants("a fox") == [
        "a fox",
        "a fox, highly detailed",
        "a fox, simple flat drawing",
        "a beautiful fox",
        "a fox on a white background",
    ]


def test_reconstruction_guidance_is_watched_where_one_asks():
    def watch(*seen):
        raise AssertionError

    plain, watched = reconstruction_guidance(2.0), reconstruction_guidance(0.5, 3, watch)
    assert plain.build(9) == guided("dps", Score(2.0))
    assert watched.build(9) == guided("dps", Score(0.5), Watching(watch), n=3)
    assert watched == reconstruction_guidance(0.5, 3)  # who watches is no setting


def test_what_presets_are_by_nature():
    """What selects, has a density, starts from a picture, needs a gradient, and at which eta: written out once more."""
    kinds = {name: presets.METHODS[name] for name in presets.METHODS}
    traits = {"selects": {"code", "svdd", "smc", "fk", "rbf", "codex", "tds", "das", "psi", "fkc"}, "needs_picture": {"sdedit"}}
    for trait, names in traits.items():
        assert {name for name, kind in kinds.items() if getattr(kind, trait)} == names
    without = {"code", "svdd", "rbf", "codex", "freedom", "reno", "doodl", "zo", "paths", "lidar"}
    assert {name for name, kind in kinds.items() if not kind.density} == without
    assert {name: kind.default_eta for name, kind in kinds.items() if kind.default_eta != 1.0} == dict.fromkeys(
        ("reno", "doodl", "zo", "paths"), 0.0
    )
    needing = {"codex", "dps", "mpgd", "freedom", "ug", "lgd", "tfg", "tds", "das", "psi", "reno", "doodl"}
    assert {name for name, kind in kinds.items() if kind().needs_reward_gradient} == needing
    assert not any(kinds[name](probes=2).needs_reward_gradient for name in needing)


def test_a_method_of_a_package_is_an_attribute():
    assert presets.__getattr__("base") is presets.METHODS["base"]
    for name in ("no_such", "_base"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(presets, name)


FILE = """
import tilting as tl

def whole():
    return tl.presets.code(particles=3)

def picture(steps):
    return tl.presets.sdedit()

def words():
    return tl.presets.prompt("{};{} at night")

def still(steps):
    return tl.presets.zo(particles=steps)

def own(steps):
    "A run of mine."
    return tl.presets.dps(particles=steps).build(steps)

def chosen(steps):
    return tl.presets.smc(particles=2, block=steps).build(steps)
"""


def test_a_file_of_ones_own_tells_what_its_method_is(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    kinds = {name: method_of_file(f"{file}:{name}") for name in ("whole", "picture", "words", "still", "own", "chosen")}
    told = {name: SimpleNamespace(kind=kind, one=kind()) for name, kind in kinds.items()}
    assert issubclass(kinds["own"], Preset) and told["own"].kind.__doc__ == "A run of mine."
    assert re.match("A method of your own file", told["whole"].kind.__doc__)
    assert told["own"].one.name == f"{file}:own" and told["own"].one.paper == "your own"
    assert {name for name, it in told.items() if it.one.selects} == {"whole", "chosen"}
    assert {name for name, it in told.items() if it.one.density} == {"picture", "words"}
    assert {name for name, it in told.items() if it.one.needs_picture} == {"picture"}
    assert {name for name, it in told.items() if it.one.default_eta != 1.0} == {"still"}
    assert {name for name, it in told.items() if it.one.needs_reward_gradient} == {"own"}
    assert told["words"].one.variants("a fox") == ["a fox", "a fox at night"] and told["own"].one.variants("a") == ["a"]
    assert told["still"].one.build(7).engine.neighbours == 7 and told["own"].one.build(9) == presets.dps(particles=9).build(9)
    assert told["whole"].one.build(20) == presets.code(particles=3).build(20)
