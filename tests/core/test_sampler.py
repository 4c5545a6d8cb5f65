"""The loop on the analytic model: convergence, marginals, keyed noise, exact counts, published identities, gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.chains import AIM, DIFFUSION, FLOW, Counter, energy_distance, linear, per_prompt, problem, run, who
from tilting import presets, rng
from tilting.cost import cost
from tilting.guidance.gradient import RewardGradient
from tilting.sample import Every, Method, State, check, evaluate_value, finish, sample, start
from tilting.select import Greedy, Memory, Smc
from tilting.types import Prediction, TiltingError


def build(preset, steps=10) -> Method:
    return preset.build(steps)


# Convergence and marginals


@pytest.mark.parametrize(
    ("schedule", "lengths", "finest"), [(FLOW, (32, 64, 128, 256), 1024), (DIFFUSION, (25, 50, 100, 200), 1000)]
)
def test_ddim_converges_with_order_one(mixture, schedule, lengths, finest):
    """From the same x_T the error to the finest grid falls as 1/T (less 1/finest, the reference's own error)."""
    noise = torch.randn(256, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ends(steps):
        p = problem(mixture, steps, 256, schedule, eta=0.0, cfg=1.0)
        return run(p, Method("all", final="all"), start(p, Method("base"), noise))[0].x

    reference = ends(finest)
    errors = torch.tensor([(ends(n) - reference).square().mean().sqrt().item() for n in lengths], dtype=torch.float64).log()
    sizes = torch.tensor([1 / n - 1 / finest for n in lengths], dtype=torch.float64).log()
    slope = ((sizes - sizes.mean()) * (errors - errors.mean())).sum() / (sizes - sizes.mean()).square().sum()
    assert 0.8 < slope.item() < 1.3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_samplers_marginal_approaches_the_mixture(mixture, eta):
    """n = 2,000. At T = 100 means, covariance and proportions are within 5 standard errors plus the T = 100 bias (2 %); at
    T = 4 they are not, and the energy distance to fresh draws falls to what two samples of the mixture have between them."""
    n, far = 2000, {}
    for steps in (4, 100):
        p = problem(mixture, steps, 1, cfg=1.0, eta=eta)
        x = run(p, Method("all", n, final="all"))[0].x[0]
        draws = [mixture.draw(n, torch.Generator().manual_seed(s)) for s in range(8)]
        far[steps] = sum(energy_distance(x, d) for d in draws) / len(draws)
    null = [energy_distance(draws[i], draws[i + 1]) for i in range(7)]
    assert far[100] < 3 * max(null)
    assert far[4] > 4 * far[100]
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    cov = torch.einsum("k,ki,kj->ij", mixture.weights, mixture.means, mixture.means) - torch.outer(mean, mean)
    cov = cov + (mixture.weights * mixture.stds**2).sum() * torch.eye(2, dtype=torch.float64)
    assert ((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / n).sqrt() + 0.02).all()
    spread = (cov.diagonal()[:, None] * cov.diagonal()[None] * 2 / n).sqrt()
    assert ((x.T.cov() - cov).abs() < 5 * spread + 0.02 * cov.diagonal().max()).all()
    share = mixture.log_responsibilities(x).softmax(1).mean(0)
    assert ((share - mixture.weights).abs() < 5 * (mixture.weights * (1 - mixture.weights) / n).sqrt() + 0.01).all()


# Noise belongs to the image

METHODS = {
    "base": presets.base(),
    "bon": presets.bon(3),
    "code": presets.code(3, block=2),
    "code-tau": presets.code(3, block=2, tau=0.3),
    "codex": presets.codex(3, block=2, gradient_block=2),
    "smc": presets.smc(3, beta=0.2, block=2),
    "rbf": presets.rbf(3),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_the_same_in_any_batch(mixture, name):
    method = build(METHODS[name])
    whole = finish(p := problem(mixture, images=16, value=per_prompt), method, run(p, method)[0]).x
    for size in (1, 3):
        for first in range(0, 4 * size, size):
            p = problem(mixture, images=16, value=per_prompt, chunk=5)
            p = replace(p, who=p.who[first : first + size])
            part = finish(p, method, run(p, method)[0]).x
            assert torch.allclose(part, whole[first : first + size], atol=1e-10)
    assert len({tuple(row) for row in whole.reshape(16, 2).tolist()}) == 16  # and no two images share their noise


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_a_run_resumes_from_any_state(mixture, name, cut):
    method, p = build(METHODS[name]), problem(mixture, images=2)
    states = [state for state, _ in sample(p, method)]
    resumed, infos = run(p, method, states[cut - 1])
    assert [i.step for i in infos] == list(range(cut + 1, 11))
    assert torch.equal(resumed.x, states[-1].x)
    assert torch.equal(resumed.log_w, states[-1].log_w)


@pytest.mark.parametrize("mode", ["independent", "copy"])
def test_particle_zero_starts_from_the_noise_of_base(mixture, mode):
    p = problem(mixture, images=3)
    base = start(p, build(presets.base())).x[:, 0]
    many = start(p, build(presets.codex(4, start=mode))).x
    for make in (presets.bon, presets.code, presets.smc, presets.fk, presets.tds, presets.das):
        assert torch.equal(start(p, build(make(particles=4, start=mode))).x, many)
    assert torch.equal(many[:, 0], base)
    same = (many[:, 1:] == base[:, None]).all(-1)
    assert same.all() if mode == "copy" else not same.any()
    given = torch.full((3, 2), 0.25)
    assert torch.equal(start(p, build(presets.bon(4)), given).x[:, 0], given.double())
    assert torch.equal(start(p, build(presets.bon(4)), given).x[:, 1:], start(p, build(presets.bon(4))).x[:, 1:])
    with pytest.raises(TiltingError, match="latents"):
        start(p, build(presets.bon(4)), torch.zeros(3, 3))


def test_every_draw_has_its_own_noise():
    draw = rng.normal(who(2), 2, (4,), 1)
    others = [
        rng.normal(who(2), 2, (4,), 2),
        rng.normal(who(2), 2, (4,), 1, "probe"),
        rng.normal([rng.Identity(8, "prompt 0", 0)], 1, (4,), 1),
    ]
    rows = torch.cat([v.reshape(-1, 4) for v in (draw, *others)])
    assert len({tuple(r) for r in rows.tolist()}) == len(rows)
    assert torch.equal(draw[1], rng.normal(who(2)[1:], 2, (4,), 1)[0])
    many = rng.normal(who(1), 4000, (4,), 3)
    assert abs(many.mean().item()) < 5 / math.sqrt(16_000)
    assert abs(many.var().item() - 1) < 5 * math.sqrt(2 / 16_000)
    assert (many[0].T.cov() - torch.eye(4)).abs().max() < 5 * math.sqrt(2 / 4000)


def test_children_of_one_parent_get_fresh_noise(mixture):
    p = problem(mixture, images=2)
    method = Method("code", 4, select=Greedy(), select_when=Every(3), final="reward")
    for state, info in sample(p, method):
        if info.parents is not None:
            assert all(len(set(row)) == 1 for row in info.parents.tolist())
            assert torch.equal(info.parents[:, 0], info.value.argmax(1))
            apart = 4 if info.std > 0 else 1  # the last draw has no noise: children of a selection just before it stay one
            assert all(len({tuple(v) for v in row}) == apart for row in state.x.tolist())


# Counts


@pytest.mark.parametrize("steps", [6, 10, 25])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_evaluations_are_exactly_counted(mixture, steps, chunk):
    gradients = len([i for i in range(1, steps) if i % 2 == 0 and 1 - i / steps <= 0.6 + 1e-9])
    selections = len([i for i in range(1, steps) if i % 2 == 0])
    expected = {  # evaluations, values of the draws
        "base": (steps, 0),
        "bon": (3 * steps, 0),
        "code": (3 * steps, 3 * selections),
        "codex": (3 * (steps + gradients), 3 * (selections + gradients)),
        "smc": (3 * steps, 3 * selections),
    }
    for name, (count, values) in expected.items():
        method, images = build(METHODS[name], steps), 2
        denoise, value = Counter(problem(mixture).denoise), Counter(linear)
        p = problem(mixture, steps, images, denoise=denoise, value=value, chunk=chunk)
        _, infos = run(p, method)
        assert denoise.rows == images * count == images * cost(method, steps).evaluations == sum(i.evaluations for i in infos)
        assert value.rows == images * values == sum(i.values for i in infos)


@pytest.mark.parametrize(
    ("high", "low", "expected"), [(1.0, 0.0, [2, 4, 6, 8]), (0.6, 0.0, [4, 6, 8]), (1.0, 0.2, [2, 4, 6, 8]), (0.7, 0.3, [4, 6])]
)
def test_gates_fire_inside_their_window_bounds_included(high, low, expected):
    gate = Every(2, (high, low))
    assert [i for i in range(11) if gate(i, 10)] == expected
    assert gate.count(10) == len(expected)
    assert [i for i in range(11) if Every(1, (1.0, 0.1))(i, 10)] == list(range(1, 10))


# Identities


def test_codex_without_strength_is_code(mixture):
    p = problem(mixture, images=3)
    for tau in (None, 0.2):
        code, codex = build(presets.code(4, block=2, tau=tau)), build(presets.codex(4, block=2, strength=0.0, tau=tau))
        assert torch.equal(run(p, code)[0].x, run(p, codex)[0].x)
    moved = run(p, build(presets.codex(4, block=2, strength=0.2)))[0].x
    assert not torch.allclose(moved, run(p, build(presets.code(4, block=2)))[0].x, atol=1e-3)


def test_code_with_one_block_is_best_of_n(mixture):
    p = problem(mixture, images=5)
    bon, code = build(presets.bon(4)), build(presets.code(4, block=10))
    ends = [finish(p, m, run(p, m)[0]) for m in (bon, code)]
    assert torch.equal(ends[0].x, ends[1].x)
    x, value = run(p, bon)[0].x, ends[0].value
    best = [max(range(4), key=lambda j: (x[i, j] @ AIM).item()) for i in range(5)]
    assert ends[0].kept.tolist() == best
    assert torch.allclose(value, x @ AIM + 0.01 * torch.arange(5)[:, None])
    assert len(set(best)) > 1


def test_methods_order_as_they_should(mixture):
    """More tilt, more reward, by far more than the noise of 200 images."""
    mean = {}
    for name in ("base", "bon", "code", "codex"):
        p = problem(mixture, images=200, value=per_prompt)
        method = build(METHODS[name])
        mean[name] = per_prompt(finish(p, method, run(p, method)[0]).x[:, 0], None).mean().item()
    assert mean["base"] + 0.3 < mean["bon"] < mean["code"] - 0.05
    assert mean["code"] < mean["codex"] - 0.02


def test_gather_moves_every_field():
    def tagged(*trailing):
        return torch.arange(6.0).reshape(2, 3, *[1] * len(trailing)).expand(2, 3, *trailing).clone()

    prediction = Prediction(tagged(5) + 10, tagged(5) + 20, tagged(5) + 30)
    memory = Memory(*(tagged() + 50 + k for k in range(4)))
    state = State(tagged(5), tagged() + 40, memory, prediction, tagged() + 60, tagged(5) + 70, step=4)
    index = torch.tensor([[2, 2, 0], [1, 0, 1]])
    moved = state.gather(index)
    expected = torch.tensor([[2.0, 2.0, 0.0], [4.0, 3.0, 4.0]])
    assert torch.equal(moved.x[..., 0], expected)
    assert torch.equal(moved.log_w, expected + 40)
    for k, part in enumerate(moved.memory):
        assert torch.equal(part, expected + 50 + k)
    assert torch.equal(moved.value, expected + 60)
    assert torch.equal(moved.gradient[..., 2], expected + 70)
    assert moved.prediction is not None
    for k, part in enumerate(moved.prediction):
        assert torch.equal(part[..., 3], expected + 10 * (k + 1))
    assert moved.step == 4


def test_final_choices(mixture):
    p = problem(mixture, images=3)
    smc = Method("smc", 4, select=Smc(0.5, ess_threshold=0.0), select_when=Every(2), final="weight")
    state, _ = run(p, smc)
    end = finish(p, smc, state)
    # Never resampled, so increments telescope to r(x_0) / beta.
    assert torch.allclose(end.log_w, evaluate_value(p, state.x) / 0.5, atol=1e-10)
    assert torch.equal(end.x[:, 0], state.x[torch.arange(3), end.log_w.argmax(1)])
    every = finish(p, replace(smc, final="all"), state)
    assert torch.equal(every.x, state.x)
    assert every.kept is None
    assert torch.equal(finish(p, Method("base", 4), state).x[:, 0], state.x[:, 0])


# Gradients, and what is refused


def test_the_caller_decides_whether_gradients_flow(mixture):
    """The chain differentiates through a parameter of the denoiser as finite differences do; under no_grad it holds no graph."""  # noqa: E501
    model = problem(mixture, 6).denoise

    def ends(w, preset=None):
        def denoise(x, t, rows):
            eps, x0, delta = model(x, t, rows)
            return Prediction(eps, x0 * w, delta)

        return run(problem(mixture, 6, 2, denoise=denoise), build(preset or presets.base(), 6))[0].x

    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ends(w).sum(), w)
    with torch.no_grad():
        plain = ends(w)
        assert plain.grad_fn is None
        numeric = (ends(w + 1e-5) - ends(w - 1e-5)).sum() / 2e-5
        assert gradient.item() == pytest.approx(numeric.item(), rel=1e-6)
        guided = ends(w, METHODS["codex"])
        assert guided.grad_fn is None
        assert not guided.requires_grad
        assert not torch.allclose(guided[:, 0], plain[:, 0], atol=1e-3)  # yet the reward's gradient was taken


def test_a_black_box_reward_with_a_gradient_method_is_refused(mixture):
    for blind in (
        lambda x0, rows: linear(x0.detach(), rows),
        lambda x0, rows: torch.ones(len(x0)) * torch.ones(1, requires_grad=True),
    ):
        with pytest.raises(TiltingError, match="no gradient"):
            run(problem(mixture, value=blind), build(METHODS["codex"]))
    run(problem(mixture, value=lambda x0, rows: linear(x0.detach(), rows)), build(METHODS["code"]))


REFUSED = [
    (presets.code(4), {"eta": 0.0}, "eta 0"),
    (presets.codex(4), {"eta": 0.0}, "eta 0"),
    (presets.smc(4), {"eta": 0.0}, "eta 0"),
    (presets.bon(4, start="copy"), {"eta": 0.0}, "copied starts"),
    (presets.code(4, start="copy"), {"eta": 0.0}, "eta"),
    (presets.codex(4), {"has_gradient": False}, "differentiable"),
    (presets.codex(4), {"cfg": 1.0}, "CFG"),
    (presets.bon(4), {"has_gradient": None}, "needs a reward"),
    (presets.bon(0), {}, "particles"),
    (presets.base(), {"eta": 1.5}, "eta"),
    (presets.base(), {"eta": float("nan")}, "eta"),
]


@pytest.mark.parametrize(("preset", "options", "words"), REFUSED)
def test_what_cannot_work_is_refused(preset, options, words):
    fine = {"eta": 1.0, "cfg": 4.0, "has_gradient": True}
    with pytest.raises(TiltingError, match=words):
        check(preset.build(10), 10, **{**fine, **options})
    if "particles" not in words:
        check(preset.build(10), 10, **fine)


def test_what_works_at_eta_zero_is_let_through():
    check(presets.bon(4).build(10), 10, eta=0.0, cfg=4.0, has_gradient=False)
    check(presets.base().build(10), 10, eta=0.0, cfg=1.0, has_gradient=None)
    check(Method("plain", correct=RewardGradient(rule="plain")), 10, eta=0.0, cfg=1.0, has_gradient=True)
