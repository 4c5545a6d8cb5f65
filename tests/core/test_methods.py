"""Every preset: exact counts against formulas written out again, batch independence, and the identities between methods."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.chains import AIM, Counter, linear, per_prompt, problem, run
from support.counts import PER_IMAGE, STEPS
from tilting import presets
from tilting.config.generate import GenerateConfig
from tilting.config.variants import parse_variant
from tilting.cost import cost, rows_of
from tilting.errors import TiltingError
from tilting.generation.folder import Folder
from tilting.guidance.kernel import Clean, Mean
from tilting.guidance.value_and_grad import Estimator
from tilting.method import Every, Method, check
from tilting.presets import METHODS
from tilting.sample import finish


def test_every_preset_is_counted():
    assert {p.name for p, *_ in PER_IMAGE.values()} | {"rbf", "sdedit"} == set(METHODS)


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize("chunk", [3, 1000])
def test_counts_are_exact(mixture, name, chunk):
    preset, evaluations, values = PER_IMAGE[name]
    method, images = preset.build(STEPS), 2
    denoise, value = Counter(problem(mixture).denoise), Counter(linear)
    p = problem(mixture, STEPS, images, denoise=denoise, value=value, chunk=chunk)
    state, infos = run(p, method)
    told = (sum(i.evaluations for i in infos), sum(i.values for i in infos))
    assert told == (denoise.rows, value.rows)
    finish(p, method, state)
    assert (denoise.rows, value.rows) == (images * evaluations, images * values)
    assert cost(method, STEPS) == (evaluations, values)
    assert chunk == 3 or max(denoise.most, value.most) == images * rows_of(method, STEPS)  # what memory is planned for


@pytest.mark.parametrize("name", PER_IMAGE)
def test_an_image_is_the_same_in_any_batch(mixture, name):
    method = PER_IMAGE[name][0].build(STEPS)
    whole = problem(mixture, STEPS, 5, value=per_prompt)
    x = finish(whole, method, run(whole, method)[0]).x
    for first, size, chunk in ((0, 1, 1000), (3, 2, 5), (1, 3, 1)):
        part = replace(whole, who=whole.who[first : first + size], chunk=chunk)
        assert torch.allclose(finish(part, method, run(part, method)[0]).x, x[first : first + size], atol=1e-8)


FIT = {  # settings that fit a reward of this size: defaults are pocket's
    "dps": presets.dps(strength=0.3),
    "lgd": presets.lgd(strength=0.3),
    "tds": presets.tds(4, beta=0.3),
    "das": presets.das(4, beta=0.3),
    "psi": presets.psi(4, beta=0.3, moves=2),
}


@pytest.mark.parametrize("name", [n for n in PER_IMAGE if n not in ("base", "sdedit", "prompt", "reno", "fkc-alone")])
def test_every_method_raises_the_reward(mixture, name):
    """By more than four standard errors of the paired difference to the base model, over 200 images."""
    preset = FIT.get(name, PER_IMAGE[name][0])
    p = problem(mixture, STEPS, 200, value=lambda x0, rows: x0 @ AIM, eta=preset.default_eta)
    method, base = preset.build(STEPS), presets.base().build(STEPS)
    gain = (finish(p, method, run(p, method)[0]).x - finish(p, base, run(p, base)[0]).x)[:, 0] @ AIM
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_optimised_noise_never_does_worse_than_its_start(mixture):
    """The first iteration is the base model's own picture, and the best is kept."""
    for preset in (presets.reno(8, rate=1.0, clip=1.0), presets.doodl(8)):
        p = problem(mixture, STEPS, 100, value=lambda x0, rows: x0 @ AIM, eta=0.0)
        method = preset.build(STEPS)
        gain = (finish(p, method, run(p, method)[0]).x - run(p, presets.base().build(STEPS))[0].x)[:, 0] @ AIM
        assert (gain > -1e-9).all()
        assert (gain > 1e-3).float().mean() > 0.2


# Identities


def test_svdd_is_code_with_block_one_but_for_the_last_step(mixture):
    p = problem(mixture, STEPS, 4)
    svdd = presets.svdd(4).build(STEPS)
    code = presets.code(4, block=1, start="copy").build(STEPS)
    one, other = run(p, svdd)[0], run(p, code)[0]
    assert torch.equal(one.x, other.x)
    ranked = finish(p, code, other)
    assert torch.equal(finish(p, svdd, one).x, one.x[:, :1])
    assert torch.equal(ranked.x[:, 0], other.x[torch.arange(4), ranked.value.argmax(1)])


def test_one_beam_is_code_and_all_beams_are_best_of_n(mixture):
    p = problem(mixture, STEPS, 4)
    plain, one = presets.code(4, block=3).build(STEPS), presets.code(4, block=3, beams=1).build(STEPS)
    assert torch.equal(run(p, plain)[0].x, run(p, one)[0].x)
    two = presets.code(4, block=3, beams=2).build(STEPS)
    parents = [info.parents for info in run(p, two)[1] if info.parents is not None]
    values = [info.value for info in run(p, two)[1] if info.parents is not None]
    for chosen, value in zip(parents, values, strict=True):
        best = value.argsort(1, descending=True)[:, :2]
        assert torch.equal(chosen, best.repeat(1, 2))


@pytest.mark.parametrize("repeat", [1, 3])
def test_tfg_without_its_x0_part_has_freedoms_form(mixture, repeat):
    """ρ alone, carried to s, is a mean shift of α_s / α_t times FreeDoM's."""
    p = problem(mixture, STEPS, 3, chunk=7)
    gate = Every(1, at_start=True)
    tfg = presets.tfg(rho=0.1, mu=0, rule="plain", repeat=repeat).build(STEPS)
    by_hand = Method("x", guides=(Mean(0.1, "plain", "ratio"),), repeat=repeat, guide_when=gate, repeat_when=gate)
    assert torch.equal(run(p, tfg)[0].x, run(p, by_hand)[0].x)
    cfg = Method("y", guides=(Mean(0.2, "cfg"),), repeat=repeat, guide_when=gate, repeat_when=gate)
    freedom = presets.freedom(strength=0.2, repeat=repeat, window=(1, 0)).build(STEPS)
    assert torch.equal(run(p, cfg)[0].x, run(p, freedom)[0].x)


def test_tfg_without_its_xt_part_is_mpgd(mixture):
    p = problem(mixture, STEPS, 3)
    tfg = presets.tfg(rho=0, mu=0.1, steps=1, rule="plain").build(STEPS)
    mpgd = presets.mpgd(strength=0.1, rule="plain", window=(1, 0)).build(STEPS)
    assert torch.equal(run(p, tfg)[0].x, run(p, mpgd)[0].x)


def test_lgd_without_noise_is_dps(mixture):
    p = problem(mixture, STEPS, 3)
    lgd = presets.lgd(strength=0.1, samples=3, radius=0, rule="plain").build(STEPS)
    dps = presets.dps(strength=0.1, rule="plain").build(STEPS)
    assert torch.allclose(run(p, lgd)[0].x, run(p, dps)[0].x, atol=1e-10)


def test_universal_guidance_backward_folds_back_into_eps(mixture):
    """eps' = eps - α/σ Δ is x0' = x0 + Δ with x_t kept, MPGD's published code; MPGD's paper keeps eps, which moves further."""
    p = problem(mixture, STEPS, 200, value=lambda x0, rows: x0 @ AIM)
    gate = Every(1, at_start=True)

    def ends(keep):
        return run(p, Method("m", guides=(Clean(0.1, 2, keep=keep),), guide_when=gate))[0].x[:, 0]

    base = run(p, presets.base().build(STEPS))[0].x[:, 0]
    ug = run(p, presets.ug(strength=0, backward=2, rate=0.1).build(STEPS))[0].x[:, 0]
    unit = Method("u", guides=(Clean(0.1, 2, "unit", "x"),), guide_when=gate)
    assert torch.allclose(ug, run(p, unit)[0].x[:, 0], atol=1e-10)
    code, paper = (((ends(k) - base) @ AIM).mean() for k in ("x", "eps"))
    assert 0 < 1.3 * code < paper


def test_tempering_at_its_end_is_tds(mixture):
    """γ so large that λ is 1 from the first draw on leaves only x_T, where the mixture's model says nothing of x_0."""
    p = problem(mixture, STEPS, 3)
    tds, das = presets.tds(4, beta=0.4).build(STEPS), presets.das(4, beta=0.4, temper=1e9).build(STEPS)
    das = replace(das, select=replace(das.select, scheme="systematic"))
    assert torch.allclose(run(p, tds)[0].x, run(p, das)[0].x, atol=1e-8)


def test_a_cluster_of_its_own_for_every_stream_is_codex(mixture):
    p = problem(mixture, STEPS, 3)
    plain = presets.codex(4, block=3, gradient_block=2).build(STEPS)
    for share in ("medoid", "mean"):
        each = presets.codex(4, block=3, gradient_block=2, gradient_on=share, clusters=4).build(STEPS)
        assert torch.allclose(run(p, plain)[0].x, run(p, each)[0].x, atol=1e-8)
    half = presets.codex(4, block=3, gradient_block=2, gradient_on="medoid", clusters=2).build(STEPS)
    assert not torch.allclose(run(p, plain)[0].x, run(p, half)[0].x, atol=1e-3)


def test_rollover_never_overspends_and_saves_for_later(mixture):
    images, quota = 40, 3
    denoise = Counter(problem(mixture).denoise)
    p = problem(mixture, STEPS, images, denoise=denoise, value=lambda x0, rows: x0 @ AIM)
    method = presets.rbf(quota).build(STEPS)
    state, infos = run(p, method)
    assert sum(i.evaluations for i in infos) == denoise.rows <= images * cost(method, STEPS).evaluations
    one = replace(p, who=p.who[:1])
    each = [i.evaluations for i in run(one, method)[1]][:-1]
    assert min(each[1:]) < quota < max(each)  # fewer children than the quota where one is enough, more where they were saved
    base = run(p, presets.base().build(STEPS))[0]
    gain = (finish(p, method, state).x - base.x)[:, 0] @ AIM
    assert gain.mean() > 4 * gain.std() / images**0.5


@pytest.mark.parametrize("steps", [10, 13, 20, 25, 49, 50, 100, 500])
def test_every_value_of_a_schedule_is_in_force_in_runs_of_any_length(steps):
    """The thesis' ten values: at T = 500 in blocks of 5, each for a tenth of the run, and so in short runs."""
    counts = (2, 6, 3, 4, 5, 7, 8, 9, 10, 11)
    method = presets.codex(schedule=counts).build(steps)
    check(method, steps, 1.0, 4.0, True)
    n, seen = counts[0], []
    for i in range(steps):
        if i and method.select_when(i, steps):
            n = method.particles_at(i, steps)
        seen.append(n)
    assert list(dict.fromkeys(seen)) == list(counts)
    if steps % 10 == 0:
        assert seen == [n for n in counts for _ in range(steps // 10)]
    assert (steps < 60) or method.select_when == Every(5)


def test_the_schedule_changes_the_number_of_streams(mixture):
    p = problem(mixture, STEPS, 2)
    method = presets.codex(block=2, gradient_block=2, schedule=(2, 4, 6)).build(STEPS)
    from tilting.sample import sample

    shapes = [state.x.shape[1] for state, _ in sample(p, method)]
    assert shapes == [2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6]


REFUSED = [
    (presets.dps(), {"has_gradient": False}, "probes"),
    (presets.codex(), {"has_gradient": False}, "codex.probes"),
    (presets.freedom(), {"cfg": 1.0}, "CFG"),
    (presets.rbf(), {"eta": 0.0}, "eta"),
    (presets.svdd(), {"eta": 0.0}, "eta"),
    (presets.tds(), {"eta": 0.0}, "eta"),
    (presets.tds(), {"has_gradient": None}, "reward"),
    (presets.codex(schedule=(2, 0)), {}, "particles"),
    (presets.reno(), {"has_gradient": False}, "differentiable"),
]


@pytest.mark.parametrize(("preset", "options", "words"), REFUSED)
def test_what_cannot_work_is_refused(preset, options, words):
    fine = {"eta": 1.0, "cfg": 4.0, "has_gradient": True}
    with pytest.raises(TiltingError, match=words):
        check(preset.build(STEPS), STEPS, **{**fine, **options})


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("final", "best", "final of codex must be 'reward' or 'weight' or 'sample' or 'first' or 'all', not 'best'"),
        ("start", "copies", "'independent' or 'copy', not 'copies'"),
        ("correct_on", "mediod", "not 'mediod'"),
        ("interpolant", "VP", "'own' or 'vp', not 'VP'"),
        ("final", None, "not None"),
    ],
)
def test_a_word_that_a_method_of_ones_own_misspells_is_refused(name, word, said):
    """It would draw something else in silence: no type is looked at while a program runs."""
    with pytest.raises(TiltingError, match=said):
        check(replace(presets.codex().build(STEPS), **{name: word}), STEPS, 1.0, 4.0, True)


def test_importance_weights_need_a_density(mixture):
    tds = presets.tds().build(STEPS)
    with pytest.raises(TiltingError, match="density"):
        check(replace(tds, repeat=2), STEPS, 1.0, 4.0, True)


def test_a_black_box_reward_works_with_probes(mixture):
    blind = lambda x0, rows: x0.detach() @ AIM  # noqa: E731
    p = problem(mixture, STEPS, 400, value=blind)
    base = run(p, presets.base().build(STEPS))[0].x[:, 0]
    for preset in (
        presets.dps(0.3, probes=4),
        presets.mpgd(probes=4),
        presets.codex(2, probes=4),
        presets.freedom(probes=4),
        presets.tds(2, beta=0.3, probes=4),
        presets.tfg(probes=4),
        presets.ug(probes=4),
        presets.lgd(0.3, probes=4),
    ):
        method = preset.build(STEPS)
        check(method, STEPS, 1.0, 4.0, False)
        gain = (finish(p, method, run(p, method)[0]).x[:, 0] - base) @ AIM
        assert gain.mean() > 4 * gain.std() / 20


@pytest.mark.parametrize("probes", [1, 10, 50])
@pytest.mark.parametrize("dims", [16, 768])
def test_the_cosine_of_a_zero_order_gradient(probes, dims):
    """For a linear reward it is about sqrt(N' / (d + N' + 1)), whatever sigma."""
    from tilting.guidance.value_and_grad import GradientContext
    from tilting.types import Prediction, Time

    gen = torch.Generator().manual_seed(0)
    aim, m = torch.randn(dims, generator=gen, dtype=torch.float64), 64

    def noise(purpose, count):
        return torch.randn(m, count, dims, generator=gen, dtype=torch.float64)

    for sigma in (0.01, 1.0):
        site = GradientContext(
            torch.zeros(m, dims, dtype=torch.float64),
            Time(500.0, 0.6, 0.8),
            torch.zeros(m, dtype=torch.long),
            lambda x, t, rows: Prediction(x, x, x),
            lambda x0, rows: x0 @ aim,
            noise=noise,
        )
        g = Estimator(probes=probes, sigma=sigma)(site).gradient
        error = 5 * math.sqrt(2 / (m * probes))  # of a mean of m · N' squares of normal numbers
        cosine = torch.nn.functional.cosine_similarity(g, aim[None], dim=1).mean().item()
        assert cosine == pytest.approx((probes / (dims + probes + 1)) ** 0.5, rel=0.25)
        assert torch.allclose(g.mean(0) @ aim / aim.square().sum(), torch.ones((), dtype=torch.float64), atol=error)


OF_FILES = """
from dataclasses import replace
import tilting as tl

class Mine(tl.presets.codex):
    pass

def built(steps):
    return replace(tl.presets.codex(particles=2).build(steps), repeat=2)

def preset():
    return tl.presets.das(particles=3)

def other(steps):
    return "codex"

def broken(steps):
    raise KeyError("never mind")
"""


def test_a_method_of_ones_own_file(tmp_path):
    """It is what its function composes, found by every command that takes a method's name, and not listed."""
    file = tmp_path / "m.py"
    file.write_text(OF_FILES)
    built = METHODS[f"{file}:built"]()
    assert built.build(10) == replace(presets.codex(particles=2).build(10), repeat=2) and built.needs_reward_gradient
    assert METHODS[f"{file}:preset"]().build(10) == presets.das(particles=3).build(10)
    assert METHODS[f"{file}:Mine"]().build(10) == presets.codex().build(10)
    assert f"{file}:built" not in list(METHODS)
    for name, said in (
        ("other", "must give a tilting.method.Method"),
        ("broken", "raised KeyError"),
        ("build", "mean 'built'"),
    ):
        with pytest.raises(TiltingError, match=said):
            METHODS.find(f"{file}:{name}")
    variant = parse_variant(f"{file}:built")
    assert (variant.method, variant.options) == (f"{file}:built", {})
    config = GenerateConfig.resolve({"prompts": ["a fox"], "method": f"{file}:built", "reward": ["clip"], "out": str(tmp_path)})
    assert config.preset() == built and Folder(config).config_now()["method-code"]
