"""Every mode of the gradient estimator against finite differences of its reward, written out again row by row.

Modes: through the denoiser or the decoder, plain or smoothed (log-mean-exp), back-propagated or probed. A zero-order gradient
whose d probes are sqrt(d) times an orthonormal basis *is* the central difference; with random probes its mean is the gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from support.guided import CFG, REFERENCE, ROWS, TIMES, value
from tilting.guidance.value_and_grad import Estimator, GradientContext
from tilting.oracle.mixture import MixtureModel
from tilting.types import Prediction, RewardError, TiltingError

D, M = 2, 6
SMOOTH = {"samples": 3, "radius": 0.5, "tau": 0.7}
THROUGH = ("denoiser", "decoder")


@pytest.fixture
def denoise(mixture):
    return MixtureModel(mixture).denoiser(REFERENCE, CFG)


@pytest.fixture
def x():
    return torch.randn(M, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def keyed(purpose: str, count: int) -> torch.Tensor:
    """The same noise however often it is asked for, another for another purpose."""
    generator = torch.Generator().manual_seed(sum(map(ord, purpose)) + 1000 * count)
    return torch.randn(M, count, D, generator=generator, dtype=torch.float64)


def basis(purpose: str, count: int) -> torch.Tensor:
    """Probes along sqrt(d) times each axis; the smoothing keeps its own noise."""
    if purpose.partition("/")[0] != "probe":
        return keyed(purpose, count)
    assert count == D
    return (math.sqrt(D) * torch.eye(D, dtype=torch.float64)).expand(M, D, D)


def score(estimator: Estimator, denoise, x, place: int, begun=None):
    """(M,) the reward that ``estimator`` climbs, as a function of one row at a time: r, or τ log mean exp(r / τ)."""
    t = TIMES[place]
    held = denoise(x if begun is None else begun, t, ROWS).eps
    noise, out = keyed("smooth", estimator.samples), []
    for i in range(M):
        row = ROWS[i : i + 1]
        if estimator.through == "denoiser":
            x0 = denoise(x[i : i + 1], t, row).x0[0]
        else:
            x0 = (x[i] - t.sigma * held[i]) / t.alpha
        if estimator.radius:
            copies = [x0 + estimator.radius * t.sigma * noise[i, j] for j in range(estimator.samples)]
            mean = sum(math.exp(value(c[None], row).item() / estimator.tau) for c in copies) / estimator.samples
            out.append(estimator.tau * math.log(mean))
        else:
            out.append(value(x0[None], row).item())
    return torch.tensor(out, dtype=torch.float64)


def differences(estimator: Estimator, denoise, x, place: int, h: float) -> torch.Tensor:
    """Central differences with step h, (M, D)."""
    columns = []
    for axis in h * torch.eye(D, dtype=torch.float64):
        up, down = (score(estimator, denoise, x + sign * axis, place, x) for sign in (1, -1))
        columns.append((up - down) / (2 * h))
    return torch.stack(columns, 1)


def site(denoise, x, place: int, noise=keyed, chunk: int = 1_000_000) -> GradientContext:
    return GradientContext(x, TIMES[place], ROWS, denoise, value, CFG, noise, chunk)


@pytest.mark.parametrize("place", [1, 5, 9])
@pytest.mark.parametrize("smooth", [{}, SMOOTH], ids=["plain", "smoothed"])
@pytest.mark.parametrize("through", THROUGH)
def test_back_propagated_gradients_equal_finite_differences(denoise, x, through, smooth, place):
    estimator = Estimator(through, **smooth)
    slope = estimator(site(denoise, x, place))
    numeric = differences(estimator, denoise, x, place, 1e-5)
    assert torch.allclose(slope.gradient, numeric, rtol=1e-5, atol=1e-7)
    assert torch.allclose(slope.value, score(estimator, denoise, x, place), rtol=1e-9)


@pytest.mark.parametrize("probes", [None, D])
def test_smoothing_holds_no_more_copies_at_once_than_the_batch_has_rows(denoise, x, probes):
    """However many copies a row has; value and gradient are those of all at once."""
    estimator, seen = Estimator(probes=probes, **SMOOTH), []

    def counted(x0, rows):
        seen.append(len(x0))
        return value(x0, rows)

    for chunk in (1, 2):
        here = site(denoise, x, 5, basis, chunk)
        one, whole = replace(here, value=counted), estimator(site(denoise, x, 5, basis))
        found = estimator(one)
        assert max(seen) == chunk < SMOOTH["samples"]
        assert torch.allclose(found.value, whole.value, rtol=1e-12)
        assert torch.allclose(found.gradient, whole.gradient, rtol=1e-12)
    with pytest.raises(TiltingError, match="no gradient of this reward"):
        Estimator(**SMOOTH)(replace(site(denoise, x, 5, keyed, 2), value=lambda x0, rows: value(x0.detach(), rows)))


def test_the_modes_are_not_one_and_the_same(denoise, x):
    """So that none of the comparisons above could pass for another mode's formula."""
    found = [Estimator(k, **s)(site(denoise, x, 5)).gradient for k in THROUGH for s in ({}, SMOOTH)]
    found.append(Estimator(**{**SMOOTH, "tau": 5.0})(site(denoise, x, 5)).gradient)
    for i in range(5):
        for j in range(i):
            assert (found[i] - found[j]).abs().max() > 0.02


@pytest.mark.parametrize("place", [1, 5, 9])
@pytest.mark.parametrize("smooth", [{}, SMOOTH], ids=["plain", "smoothed"])
@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_probes_along_the_axes_are_central_differences(denoise, x, through, smooth, place, chunk):
    """The step is sigma · σ_t · sqrt(d): equal to the difference with that step, and to the gradient as sigma falls."""
    for sigma in (0.3, 0.01):
        estimator = Estimator(through, probes=D, sigma=sigma, **smooth)
        slope = estimator(site(denoise, x, place, basis, chunk))
        h = sigma * TIMES[place].sigma * math.sqrt(D)
        assert torch.allclose(slope.gradient, differences(estimator, denoise, x, place, h), rtol=1e-7, atol=1e-8)
        assert torch.allclose(slope.value, score(estimator, denoise, x, place), rtol=1e-9)


@pytest.mark.parametrize("through", THROUGH)
def test_the_error_of_probes_falls_as_sigma_squared(denoise, x, through):
    true, errors = Estimator(through)(site(denoise, x, 5)).gradient, []
    for sigma in (0.08, 0.04, 0.02):
        found = Estimator(through, probes=D, sigma=sigma)(site(denoise, x, 5, basis)).gradient
        errors.append((found - true).norm().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("smooth", [{}, SMOOTH], ids=["plain", "smoothed"])
@pytest.mark.parametrize("through", THROUGH)
def test_the_mean_of_random_probes_is_the_gradient(denoise, x, through, smooth):
    """200 gradients of 100 probes each: their mean is within 5 standard errors, and those are small."""
    true = Estimator(through, **smooth)(site(denoise, x, 5)).gradient
    generator, found = torch.Generator().manual_seed(8), []

    def noise(purpose, count):
        if purpose == "probe":
            return torch.randn(M, count, D, generator=generator, dtype=torch.float64)
        return keyed(purpose, count)

    for _ in range(200):
        found.append(Estimator(through, probes=100, sigma=0.002, **smooth)(site(denoise, x, 5, noise)).gradient)
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(200)
    assert error.norm() < 0.03 * true.norm()
    assert ((found.mean(0) - true).abs() < 5 * error + 1e-3 * true.norm()).all()
    assert ((found.mean(0) - 1.2 * true).abs() > 5 * error + 1e-3 * true.norm()).any()  # it would see a factor 1.2


@pytest.mark.parametrize("probes", [None, D])
@pytest.mark.parametrize("smooth", [{}, SMOOTH], ids=["plain", "smoothed"])
def test_the_gradient_at_the_estimate_equals_finite_differences(denoise, x, smooth, probes):
    """`Estimator.clean`: with respect to x0 itself, no denoiser asked."""

    def refuse(*_):
        raise AssertionError("the denoiser was asked")

    estimator, t, h = Estimator(probes=probes, sigma=1e-4, **smooth), TIMES[5], 1e-5
    found = estimator.clean(site(refuse, torch.zeros_like(x), 5, basis), x)
    noise = keyed("smooth/clean0", estimator.samples) if smooth else torch.zeros(M, 1, D, dtype=torch.float64)

    def reward(x0):
        near = x0[:, None] + estimator.radius * t.sigma * noise
        each = torch.stack([value(near[:, j], ROWS) for j in range(near.shape[1])], 1)
        return estimator.tau * (each / estimator.tau).exp().mean(1).log()

    for i, axis in enumerate(h * torch.eye(D, dtype=torch.float64)):
        numeric = (reward(x + axis) - reward(x - axis)) / (2 * h)
        assert torch.allclose(found[:, i], numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("probes", [None, 3])
def test_no_row_depends_on_its_companions(denoise, x, through, probes):
    """A row alone, with its own noise, has the gradient that it has among others."""
    estimator = Estimator(through, probes=probes, **SMOOTH)
    together = estimator(site(denoise, x, 5)).gradient
    for i in range(M):

        def own(purpose, count, i=i):
            return keyed(purpose, count)[i : i + 1]

        one = GradientContext(x[i : i + 1], TIMES[5], ROWS[i : i + 1], denoise, value, CFG, own)
        assert torch.allclose(estimator(one).gradient[0], together[i], atol=1e-10)


@pytest.mark.parametrize("through", THROUGH)
def test_at_pure_noise_the_estimate_says_nothing_of_x(mixture, x, through):
    """α = 0: the slope is 0, found either way, and not a division by zero."""
    plain = MixtureModel(mixture).denoiser()
    for probes in (None, D):
        slope = Estimator(through, probes=probes)(site(plain, x, 0, basis))
        assert TIMES[0].alpha == 0
        assert slope.gradient.abs().max() < 1e-9


# Networks in half precision, and gradients that are not numbers


class Half:
    """A denoiser whose network is in float16, cast to and from at its door as models are."""

    def __init__(self, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(2)
        self.dtype, self.mix = dtype, (torch.randn(64, 64, generator=generator) / 8).to(dtype)

    def __call__(self, x, t, rows):
        eps = torch.tanh(x.to(self.dtype) @ self.mix).to(x.dtype) @ self.mix.to(x.dtype).T
        return Prediction(eps, (x - t.sigma * eps) / t.alpha, torch.zeros_like(x))


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7, 1e6])
def test_a_half_precision_network_does_not_lose_a_small_gradient(scale):
    """A mean over a picture has gradients of 1e-5 and less, below float16's normal numbers; the direction must survive."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))

    def mean(x0, rows):
        return scale * torch.sin(x0).mean(1)

    full, half = (
        Estimator()(GradientContext(x, TIMES[5], ROWS[:3], Half(d), mean)).gradient for d in (torch.float32, torch.float16)
    )
    assert (torch.nn.functional.cosine_similarity(full, half) > 0.9999).all()
    assert torch.allclose(full.norm(dim=1), half.norm(dim=1), rtol=1e-2)
    held = Half(torch.float32)(x, TIMES[5], ROWS)
    decoder = scale * torch.cos(held.x0) / 64 / TIMES[5].alpha
    assert (torch.nn.functional.cosine_similarity(full, decoder) < 0.99).all()  # the network has a part in it


def test_scaling_on_the_way_back_changes_no_bit_in_full_precision(denoise, x):
    for make in (torch.float32, torch.float64):
        at = x.to(make).requires_grad_(True)

        def network(a, t, rows, make=make):
            return Prediction(*(p.to(make) for p in denoise(a.double(), t, rows)))

        (whole,) = torch.autograd.grad(value(network(at, TIMES[5], ROWS).x0, ROWS).sum(), at)
        assert torch.equal(Estimator()(GradientContext(at.detach(), TIMES[5], ROWS, network, value)).gradient, whole)


@pytest.mark.parametrize("through", ["denoiser", "decoder", "estimate"])
def test_a_gradient_that_is_not_a_number_is_refused_with_its_image(denoise, x, through):
    """The value is finite: sqrt(0) is, its slope is not; only the rows of image 1 are to blame."""

    def broken(x0, rows):
        return value(x0, rows) + torch.where(rows == 1, 0 * x0[:, 0], x0[:, 0].square() + 1).sqrt()

    here = GradientContext(x, TIMES[5], ROWS, denoise, broken, CFG)
    with pytest.raises(RewardError, match="gradient") as caught:
        Estimator().clean(here, x) if through == "estimate" else Estimator(through)(here)
    assert caught.value.row == 1
