"""Every line of guidance on a few numbers, by hand: kernels and guides, correctors, clusters, and what a gradient is of."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from tilting.guidance.clusters import cluster
from tilting.guidance.corrector import Corrected
from tilting.guidance.gradient import RewardGradient
from tilting.guidance.kernel import Clean, Kernel, Mean, Score, Watching
from tilting.guidance.value_and_grad import (
    Estimator,
    GradientContext,
    ValueAndGrad,
    reward_grad,
    rms,
    step_size,
    value_and_grad,
    vjp,
)
from tilting.schedule import step_std
from tilting.types import Prediction, RewardError, TiltingError, Time

T, S, PURE, END = Time(600.0, 0.6, 0.8), Time(300.0, 0.8, 0.6), Time(1000.0, 0.0, 1.0), Time(0.0, 1.0, 0.0)
ROWS = torch.arange(2)


def two(*numbers: float) -> torch.Tensor:
    """(2, 2): two rows of two numbers."""
    return torch.tensor(numbers, dtype=torch.float64).reshape(2, 2)


EPS, X0, CORRECTION = two(1, -2, 0.5, 3), two(0.2, 0.4, -1, 0), two(3, 4, 0, 1)
GRADIENT = two(6, 8, 0, -2)
SEEN = ValueAndGrad(torch.zeros(2, dtype=torch.float64), GRADIENT, Prediction(EPS, X0, CORRECTION))


def kernel(t: Time = T, s: Time = S, eta: float = 1.0, **more) -> Kernel:
    return Kernel(Prediction(EPS, X0, CORRECTION), t, s, eta, **more)


def context(value=None, cfg: float = 3.0, x=None, t: Time = T, noise=None, denoise=None) -> GradientContext:
    x = two(0, 0, 0, 0) if x is None else x
    return GradientContext(x, t, ROWS, denoise, value, cfg, noise)  # type: ignore[arg-type]


def linear(x0, rows):
    """∇ = (2, 1), and 10 more for each image."""
    return x0 @ torch.tensor([2.0, 1.0], dtype=torch.float64) + 10 * rows


def test_a_kernel_is_its_transition_shifted_and_spread():
    """t: α .6, σ .8; s: α .8, σ .6; a = .75, v = .64 - .5625 · .36 = .4375, std = .6 √v / .8."""
    std = 0.6 * math.sqrt(0.4375) / 0.8
    plain, moved = kernel(), kernel(eta=0.5, shift=two(1, 2, 3, 4), spread=2.0)
    assert plain.std == pytest.approx(std) and moved.std == pytest.approx(2 * 0.5 * std)
    assert torch.allclose(plain.mean, 0.8 * X0 + math.sqrt(0.36 - std**2) * EPS)
    assert torch.allclose(moved.mean, 0.8 * X0 + math.sqrt(0.36 - std**2 / 4) * EPS + two(1, 2, 3, 4))
    assert (plain.shift, plain.spread, plain.base, plain.log_weight, plain.law) == (0.0, 1.0, None, 0.0, "posterior")
    cps = kernel(eta=0.5, law="cps")
    assert cps.std == pytest.approx(0.6 * math.sin(math.pi / 4))
    assert torch.allclose(cps.mean, 0.8 * X0 + 0.6 * math.cos(math.pi / 4) * EPS)


def test_the_score_moves_eps_and_the_estimate_to_match():
    moved = Score(0.5)(kernel(), SEEN, context()).prediction
    assert torch.allclose(moved.eps, EPS - 0.8 * 0.5 * GRADIENT)
    assert torch.allclose(moved.x0, X0 + 0.8 / 0.6 * 0.8 * 0.5 * GRADIENT)
    assert torch.equal(moved.correction, CORRECTION)
    assert torch.allclose(Score()(kernel(), SEEN, context()).prediction.eps, EPS - 0.8 * GRADIENT)
    pure = kernel(PURE, T)
    assert Score()(pure, SEEN, context()) is pure
    with pytest.raises(TiltingError, match="needs the gradient"):
        Score()(kernel(), None, context())
    assert (Score().rule, Score.estimator, Score.needs_value_and_grad) == ("plain", None, True)


def test_the_mean_moves_by_each_factor():
    std2, begun = kernel().std ** 2, two(1, 1, 1, 1)
    for guide, scale in (
        (Mean(0.5), 0.5),
        (Mean(), 1.0),
        (Mean(0.5, "plain", "ratio"), 0.5 * 0.8 / 0.6),
        (Mean(0.5, "plain", "variance"), 0.5 * std2),
    ):
        assert torch.allclose(guide(kernel(shift=begun), SEEN, context()).shift, begun + scale * GRADIENT)
    sized = Mean(0.5, "cfg")(kernel(), SEEN, context()).shift  # rms 5 / √2 · 3 · .5 over rms 10 / √2; and 1 · 1.5 over 2
    assert torch.allclose(sized, two(0.75 * 6, 0.75 * 8, 0, 0.75 * -2))
    pure = kernel(PURE, T)
    assert Mean(0.5, "plain", "ratio")(pure, SEEN, context()) is pure
    assert torch.allclose(Mean(0.5)(pure, SEEN, context()).shift, 0.5 * GRADIENT)
    assert (Mean.estimator, Mean.needs_value_and_grad) == (None, True)


def test_steps_on_the_estimate():
    """r = ⟨(2, 1), x0⟩: m steps of c (2, 1), or of c √2.5⁻¹ (2, 1); eps stays, or x does: eps -= .6 / .8 Δ."""
    g = two(2, 1, 2, 1)
    for guide, delta in (
        (Clean(0.5, 2), g),
        (Clean(), g),
        (Clean(0.5, 1, "unit"), 0.5 / math.sqrt(2.5) * g),
        (Clean(0.5, scale="variance"), 0.5 * 0.64 * g),
        (Clean(0.5, 0), 0 * g),
        (Clean(0.5, 1, "cfg"), (rms(CORRECTION) * 3 * 0.5 / math.sqrt(2.5)) * g),
    ):
        found = guide(kernel(), None, context(linear)).prediction
        assert torch.allclose(found.x0, X0 + delta) and torch.equal(found.eps, EPS)
    found = Clean(0.5, keep="x")(kernel(), None, context(linear)).prediction
    assert torch.allclose(found.x0, X0 + 0.5 * g) and torch.allclose(found.eps, EPS - 0.75 * 0.5 * g)
    assert torch.equal(found.correction, CORRECTION)
    pure = Clean(0.5, keep="x")(kernel(PURE, T), None, context(linear)).prediction
    assert torch.equal(pure.eps, EPS) and torch.allclose(pure.x0, X0 + 0.5 * g)
    with pytest.raises(TiltingError, match="must not be negative, not -1"):
        Clean(steps=-1)
    assert not Clean.needs_value_and_grad


def test_steps_on_the_estimate_begin_at_the_unguided_one():
    """r = -|x0|²/2: Δ = -x0/4 of the estimate before another guide moved it, added to what that one made of it."""
    seen = SEEN._replace(prediction=Prediction(EPS, 2 * X0, CORRECTION))
    found = Clean(0.25)(kernel(), seen, context(lambda x0, rows: -0.5 * x0.square().sum(1))).prediction
    assert torch.allclose(found.x0, X0 - 0.25 * 2 * X0) and not found.x0.requires_grad


def test_who_watches_sees_what_was_made_of_the_prediction():
    seen, before = [], kernel()
    assert Watching(lambda *told: seen.append(told))(before, SEEN, context()) is before
    assert seen[0][0] is before.prediction and seen[0][1] is SEEN.prediction and seen[0][2] == T and seen[0][3] is ROWS
    assert Watching(lambda *told: seen.append(told))(before, None, context()) is before and len(seen) == 1
    assert (Watching(print).rule, Watching.estimator, Watching.needs_value_and_grad) == ("plain", None, False)


def test_correctors_weigh_by_both_squares():
    """v = .4375, a = 3, cfg 4: v/2 [3 · 4 · 3 |c / .8|² + 3 · 2 |eps / .8|²]; the drift is -(a - 1) std² eps / .8 at eta 1."""
    before = kernel(shift=two(1, 1, 1, 1), log_weight=torch.tensor([0.5, -0.5], dtype=torch.float64))
    found = Corrected(3.0)(before, None, context(cfg=4.0))
    squares = [(CORRECTION / 0.8).square().sum(1), (EPS / 0.8).square().sum(1)]
    wanted = 0.4375 / 2 * (36 * squares[0] + 6 * squares[1])
    assert torch.allclose(found.log_weight, before.log_weight + wanted)
    assert torch.allclose(found.shift, 1 - 2 * step_std(T, S, 1.0) ** 2 / 0.8 * EPS)
    assert torch.allclose(found.base, found.mean) and found.spread == 1.0 and found.prediction is before.prediction
    half = Corrected(3.0)(kernel(eta=0.5), None, context())  # of a drift half is the posterior's, half the step's own
    assert torch.allclose(half.shift, -(step_std(T, S, 1.0) ** 2) * (1 + 0.25) / 0.8 * EPS)
    plain = Corrected()(kernel(), None, context())
    assert torch.allclose(plain.log_weight, 0.4375 / 2 * 6 * squares[0]) and plain.shift == 0.0


def test_correctors_at_both_ends():
    last = Corrected(2.0)(kernel(S, END), None, context())
    assert last.log_weight == 0.0 and torch.equal(last.base, last.mean) and last.shift == 0.0
    first = Corrected(4.0)(kernel(PURE, T, spread=3.0), None, context())
    assert first.spread == 1.5 and first.log_weight == 0.0 and torch.equal(first.base, first.mean)
    assert Corrected(4.0).spread(PURE) == 0.5 and Corrected(4.0).spread(T) == 1.0
    assert (Corrected().rule, Corrected.needs_reward, Corrected.needs_value_and_grad) == ("plain", False, False)


def test_correctors_weigh_half_precision_in_full():
    """|c|² of 100,000 ones is beyond float16."""
    ones = torch.ones(1, 100_000, dtype=torch.float16)
    kernel = Kernel(Prediction(ones, ones, ones), T, S, 1.0)
    assert Corrected()(kernel, None, context(cfg=2.0)).log_weight.item() == pytest.approx(0.4375 / 2 * 2 * 1e5 / 0.64, rel=1e-2)


def test_a_move_of_the_latents():
    """x + s g at the reward's own gradient; s = 2.5 · 3 · .2 / √2.5 by the CFG rule, cut to the cap."""

    def denoise(x, t, rows):
        return Prediction(EPS, x + 0, two(2.5, 2.5, 2.5, -2.5))

    g = two(2, 1, 2, 1)
    for move, scale in (
        (RewardGradient(), 2.5 * 3 * 0.2 / math.sqrt(2.5)),
        (RewardGradient(0.4, rule="plain"), 0.4),
        (RewardGradient(0.4, rule="unit"), 0.4 / math.sqrt(2.5)),
        (RewardGradient(5.0, cap=0.7), 0.7),
        (RewardGradient(-5.0, cap=0.7), -0.7),
    ):
        x, found = move(context(linear, x=two(1, 2, 3, 4), denoise=denoise))
        assert torch.allclose(x, two(1, 2, 3, 4) + scale * g)
        assert found.value.tolist() == [4.0, 20.0] and torch.equal(found.gradient, g)


def test_sizes_of_a_step_by_rule():
    g, c = GRADIENT, CORRECTION
    sizes = {"plain": [0.5, 0.5], "unit": [0.5 / math.sqrt(50), 0.5 / math.sqrt(2)], "cfg": [0.75, 0.75]}
    for rule, wanted in sizes.items():
        found = step_size(rule, 0.5, g, c, 3.0)  # type: ignore[arg-type]
        assert found.shape == (2, 1) and found.flatten().tolist() == pytest.approx(wanted)
    assert step_size("unit", 1.0, 0 * g, c, 3.0).flatten().tolist() == pytest.approx([1e8, 1e8])
    assert step_size("plain", -9.0, g, c, 3.0, cap=2.0).flatten().tolist() == [-2.0, -2.0]
    assert rms(torch.full((3, 2, 2, 5), 4.0)).shape == (3, 1, 1, 1) and rms(two(3, 4, 0, 1))[0].item() == math.sqrt(12.5)
    with pytest.raises(TiltingError, match="a rule is cfg, unit or plain, not 'other'"):
        step_size("other", 1.0, g, c, 3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", ["medoid", "mean"])
def test_clusters_of_pictures(at):
    """Three at 0, 1 and 5 in every pixel and two at 20: the means are 2 and 20, and 1 is the nearest to 2."""
    places = torch.tensor([[0.0, 1.0, 20.0, 5.0, 20.0], [20.0, 0.0, 1.0, 20.0, 5.0]])
    x = places[:, :, None, None, None].expand(2, 5, 2, 3, 1)
    found, labels = cluster(x, 2, at)
    middle = {"medoid": 1.0, "mean": 2.0}[at]
    assert found.shape == (2, 2, 2, 3, 1) and labels.shape == (2, 5) and labels.dtype == torch.long
    for i in range(2):
        assert torch.allclose(found[i, labels[i]][:, 0, 0, 0], torch.where(places[i] < 10, middle, 20.0))
        assert (found[i] == found[i, :, :1, :1]).all()
    assert torch.equal(cluster(x, 2)[0], cluster(x, 2, "medoid")[0])


@pytest.mark.parametrize("at", ["medoid", "mean"])
def test_of_particles_that_coincide_a_cluster_may_be_empty(at):
    """3 and three times 5 in four clusters: two of them have nobody, and stand at the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, labels = cluster(torch.tensor([[[3.0], [5.0], [5.0], [5.0]]]), 4, at)
    assert found[0, labels[0], 0].tolist() == [3.0, 5.0, 5.0, 5.0]
    assert sorted(found.flatten().tolist()) == [3.0, 3.0, 3.0, 5.0]


# What a gradient is of


def quadratic(x0, rows):
    return -0.5 * (x0 - 1).square().sum(1) + rows


def half(x, t, rows):
    """x0 = x / 2, eps to match; the network's part in it is a slope of eps."""
    x0 = 0.5 * x
    return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.ones_like(x))


def test_through_the_denoiser_and_through_the_decoder():
    """∇ of -(x/2 - 1)²/2 is (1 - x/2)/2; with eps held x0 moves as x / α."""
    x = two(1, 2, 3, 4)
    through = value_and_grad(x, T, ROWS, half, quadratic)
    assert torch.allclose(through.gradient, 0.5 * (1 - 0.5 * x)) and torch.allclose(through.value, quadratic(0.5 * x, ROWS))
    decoder = value_and_grad(x, T, ROWS, half, quadratic, "decoder")
    assert torch.allclose(decoder.gradient, (1 - 0.5 * x) / 0.6) and torch.allclose(decoder.value, through.value)
    assert torch.allclose(decoder.prediction.x0, 0.5 * x) and torch.equal(decoder.prediction.correction, torch.ones_like(x))
    assert not any(part.requires_grad for part in (*through.prediction, *decoder.prediction, through.value, decoder.value))
    pure = value_and_grad(two(1, 2, 0, 4), PURE, ROWS, half, quadratic, "decoder")  # x says nothing of x0 there
    assert torch.equal(pure.gradient, 0 * x) and torch.allclose(pure.value, quadratic(two(0.5, 1, 0, 2), ROWS))


def test_a_reward_without_a_gradient_has_none():
    x = two(1, 2, 3, 4).requires_grad_(True)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    for blind in (x.detach().sum(1), x.detach().sum(1) * weight):
        with pytest.raises(TiltingError, match="no gradient of this reward"):
            reward_grad(blind, x, ROWS)
    with pytest.raises(TiltingError, match="no gradient of this reward"):
        reward_grad(x.sum(1), x.detach(), ROWS)
    with pytest.raises(RewardError, match="not finite") as caught:
        reward_grad((x * torch.tensor([[1.0], [math.inf]])).sum(1), x, torch.tensor([4, 7]))
    assert caught.value.row == 7


def test_a_gradient_goes_back_scaled_to_between_a_half_and_one():
    """Of each row 2^k: what arrives behind the network is in [1/2, 1), whatever the reward's scale, and the end is Jᵀ v."""
    arrived = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 3 * x

        @staticmethod
        def backward(ctx, slope):
            arrived.append(slope)
            return 3 * slope

    x = torch.ones(4, 2, 1, dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[3e-9, 1e-9], [5.0, -7.0], [0.0, 0.0], [2.0**-130, 0.0]], dtype=torch.float64)[:, :, None]
    assert torch.equal(vjp(v, Probe.apply(x), x, torch.arange(4)), 3 * v)
    largest = arrived[0].abs().amax((1, 2))
    assert ((largest[:2] >= 0.5) & (largest[:2] < 1)).all() and largest[2] == 0 and largest[3] == 2.0**-30
    huge = torch.full((1, 2), 2.0**120, dtype=torch.float64)
    y = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(vjp(huge, Probe.apply(y), y, ROWS[:1]), 3 * huge) and arrived[1].max() == 2.0**20


@pytest.mark.parametrize(
    "wrong", [{"probes": 0}, {"samples": 0}, {"sigma": 0.0}, {"sigma": -1.0}, {"tau": 0.0}, {"tau": -1.0}, {"radius": -0.1}]
)
def test_what_an_estimator_cannot_be(wrong):
    with pytest.raises(TiltingError, match=next(iter(wrong))):
        Estimator(**wrong)
    Estimator(probes=1, samples=1, sigma=0.01, tau=0.01, radius=0.0)


def test_an_estimator_as_it_is_unset():
    plain = Estimator()
    assert (plain.through, plain.probes, plain.sigma, plain.samples, plain.radius, plain.tau) == (
        "denoiser",
        None,
        0.1,
        1,
        0.0,
        1.0,
    )
    assert not plain.black_box and Estimator(probes=1).black_box
    with pytest.raises(TiltingError, match="draws noise"):
        Estimator(probes=1)(context(quadratic, denoise=half))
    here = GradientContext(two(0, 0, 0, 0), T, ROWS, half, quadratic)
    assert (here.cfg, here.noise, here.chunk) == (1.0, None, 1_000_000)


AXES = math.sqrt(2) * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)


def axes(purpose: str, count: int) -> torch.Tensor:
    """Probes along √2 times each axis, of which the mean is the central difference; copies at 1 and -1."""
    if purpose.startswith("probe"):
        return AXES[:, :count]
    return torch.tensor([1.0, -1.0], dtype=torch.float64)[:count, None].expand(2, count, 2)


def test_probes_are_of_a_tenth_of_the_noise_and_never_of_nothing():
    """r = Σ x³: a central difference of step h is 3 x² + h²; h = .1 · .8 · √2, and .1 · .001 · √2 where there is no noise."""

    sizes = []

    def cubic(x0, rows):
        sizes.append(len(x0))
        return x0.pow(3).sum(1)

    x = two(1, 2, 3, 4)
    for t, h in ((T, 0.08), (END, 1e-4)):
        for chunk in (1, 3, 1000):
            here = GradientContext(x, t, ROWS, half, cubic, noise=axes, chunk=chunk)
            found = Estimator(probes=2).clean(here, x)
            assert torch.allclose(found, 3 * x.square() + 2 * h**2, rtol=1e-9)
            assert max(sizes[-8:]) == min(chunk, 8)
    whole = Estimator(probes=2)(GradientContext(x, T, ROWS, half, cubic, noise=axes))
    assert torch.allclose(whole.gradient, (3 * x.square() + 2 * 0.08**2) / 8) and torch.allclose(
        whole.value, cubic(x / 2, ROWS)
    )
    held = Estimator("decoder", probes=2)(GradientContext(x, T, ROWS, half, cubic, noise=axes))
    assert torch.allclose(held.gradient, (3 * (x / 2).square() + 2 * (0.08 / 0.6) ** 2) / 0.6)
    assert torch.allclose(held.prediction.x0, x / 2) and not held.gradient.requires_grad


def test_a_single_probe_is_a_slope_along_it():
    """Along √2 (1, 0): ⟨∇, z⟩ z, of both coordinates the first alone, twice."""
    found = Estimator(probes=1).clean(GradientContext(two(1, 2, 3, 4), T, ROWS, half, linear, noise=axes), two(1, 2, 3, 4))
    assert torch.allclose(found, two(4, 0, 4, 0))


def test_a_smoothed_reward_is_the_log_mean_exp_of_its_copies():
    """Copies at x0 ± .5 · .8 of r = Σ x²: values 2 (x ± .4)²; τ log ((e^{a/τ} + e^{b/τ}) / 2), its slope their softmax."""

    def square(x0, rows):
        return x0.square().sum(1)

    x, tau = two(1, 1, 2, 2), 3.0
    here = GradientContext(x, T, ROWS, half, square, noise=axes)
    estimator = Estimator(samples=2, radius=0.5, tau=tau)
    a, b = (2 * (torch.tensor([1.0, 2.0], dtype=torch.float64) + sign * 0.4) ** 2 for sign in (1, -1))
    wanted = tau * (((a / tau).exp() + (b / tau).exp()) / 2).log()
    assert torch.allclose(estimator.smoothed(here)(x, ROWS), wanted)
    share = torch.stack([a / tau, b / tau]).softmax(0)
    slope = 2 * (share[0] * (torch.tensor([1.0, 2.0]) + 0.4) + share[1] * (torch.tensor([1.0, 2.0]) - 0.4))
    assert torch.allclose(estimator.clean(here, x), slope[:, None].expand(2, 2))
    assert torch.allclose(estimator(GradientContext(2 * x, T, ROWS, half, square, noise=axes)).gradient, slope[:, None] / 2)
    one = Estimator(samples=1, radius=0.5).smoothed(here)(x, ROWS)  # one copy, moved
    assert torch.allclose(one, a)
    still = Estimator(samples=2, radius=0.0).smoothed(here)(x, ROWS)  # two copies, where it is
    assert torch.allclose(still, square(x, ROWS))
    index = torch.tensor([1, 0])  # rows of the context out of order, with the noise of their own
    apart = GradientContext(x, T, ROWS, half, square, noise=lambda purpose, count: two(1, 1, 0, 0)[:, None])
    assert torch.allclose(
        Estimator(radius=0.5).smoothed(apart)(x, ROWS, index), torch.tensor([2.0, 2 * 2.4**2], dtype=torch.float64)
    )


def test_noise_of_the_estimate_is_of_its_step():
    asked = []

    def noise(purpose, count):
        asked.append((purpose, count))
        return axes(purpose, count)

    here = GradientContext(two(1, 2, 3, 4), T, ROWS, half, linear, noise=noise)
    Estimator(probes=2, samples=2, radius=0.1).clean(here, two(1, 2, 3, 4), 3)
    Estimator(probes=2).clean(here, two(1, 2, 3, 4))
    assert asked == [("smooth/clean3", 2), ("probe/clean3", 2), ("probe/clean0", 2)]
