"""FID, CMMD, T-CLIP, I-Gram, diversity, labels and the verdict, each against an independent computation of its formula."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tilting.errors import TiltingError
from tilting.metrics.alignment import caption, i_gram, t_clip
from tilting.metrics.diversity import mean_distance, mean_pairwise
from tilting.metrics.frechet import fid, frechet, moments
from tilting.metrics.labels import read_labels
from tilting.metrics.mmd import KernelSums, cmmd, kernel_sums, mmd
from tilting.metrics.prompts import by_prompt, difference, expected, paired
from tilting.metrics.statistics import Estimate, reach
from tilting.metrics.verdict import decide
from tilting.reports.words import TERMS


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    gen = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=gen, dtype=torch.float64)
    return torch.randn(n, d, generator=gen, dtype=torch.float64) @ mix + shift


def scipy_fid(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.numpy(), y.numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(first @ second)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root.real))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 80, 12), (300, 200, 32)])
def test_fid_is_scipys(n, m, d):
    x, y = features(n, d, 0), features(m, d, 1, 0.3)
    want = scipy_fid(x, y)
    assert fid(x, y) == pytest.approx(want, rel=1e-6, abs=1e-4)
    assert frechet(moments(x), moments(y)) == pytest.approx(want, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(("n", "m", "d"), [(10, 10, 24), (5, 40, 16), (2, 3, 8)])
def test_fid_of_fewer_images_than_dimensions(n, m, d):
    """Singular covariances: by the nuclear norm of centred features, by square roots, and by eigenvalues of the product."""
    x, y = features(n, d, 2), features(m, d, 3, 0.5)
    first, second = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    gap = x.mean(0) - y.mean(0)
    want = float(gap @ gap) + np.trace(first) + np.trace(second) - 2 * root
    assert fid(x, y) == pytest.approx(want, abs=1e-4)
    assert frechet(moments(x), moments(y)) == pytest.approx(want, abs=1e-4)


def test_fid_is_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1)

    gen = torch.Generator().manual_seed(4)
    x, y = torch.rand(50, 3, 2, 2, generator=gen), torch.rand(40, 3, 2, 2, generator=gen) ** 2
    theirs = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2))
    theirs.set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert fid(x.flatten(1), y.flatten(1)) == pytest.approx(theirs.compute().item(), abs=1e-6)


def test_fid_of_known_gaussians_converges_to_the_closed_form():
    """Diagonal Gaussians: d² = Σ (μ_a - μ_b)² + (s_a - s_b)²; the error shrinks as 1/sqrt(n) or faster."""
    s_a, s_b = torch.tensor([1.0, 0.5, 2.0]).double(), torch.tensor([0.7, 1.5, 1.0]).double()
    shift = torch.tensor([0.3, -0.2, 0.5]).double()
    want = (shift.square() + (s_a - s_b).square()).sum().item()
    errors = []
    for n in (100, 1600, 102_400):
        gen = torch.Generator().manual_seed(0)
        draws = [
            abs(
                fid(torch.randn(n, 3, generator=gen).double() * s_a, torch.randn(n, 3, generator=gen).double() * s_b + shift)
                - want
            )
            for _ in range(12)
        ]
        errors.append(sum(draws) / len(draws))
    assert errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 4
    assert errors[2] < 0.01 * want


def test_fid_identities():
    x = features(20, 6, 5)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(x, x + 2.0) == pytest.approx(6 * 4.0, rel=1e-9)
    assert fid(x, features(30, 6, 6)) == pytest.approx(fid(features(30, 6, 6), x), rel=1e-9)
    for a, b, said in ((x[:1], x, "at least 2"), (x, x[:, :3], "cannot be compared")):
        with pytest.raises(TiltingError, match=said):
            fid(a, b)


def double_loop(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    def kernel(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * 10**2))

    def mean(a, b, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and unbiased and i == j)]
        return sum(kernel(a[i], b[j]) for i, j in pairs) / len(pairs)

    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    return 1000 * (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))


@pytest.mark.parametrize("unbiased", [False, True])
def test_cmmd_is_a_double_loop(unbiased):
    x, y = features(9, 5, 7), features(7, 5, 8, 0.7)
    assert cmmd(x, y, unbiased) == pytest.approx(double_loop(x.numpy(), y.numpy(), unbiased), abs=1e-4)


def test_cmmd_identities(monkeypatch):
    x, y = features(30, 8, 9), features(20, 8, 10)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert cmmd(3 * x, 0.1 * y) == pytest.approx(cmmd(x, y), rel=1e-9)  # only directions count
    whole = cmmd(x, y)
    monkeypatch.setattr("tilting.metrics.mmd.ROWS", 7)
    assert cmmd(x, y) == pytest.approx(whole, rel=1e-10)
    with pytest.raises(TiltingError, match="at least 2"):
        cmmd(x[:1], y, unbiased=True)


def test_unbiased_cmmd_is_zero_on_average_and_the_published_one_above():
    draws = [(features(200, 4, 11)[i : i + 10], features(200, 4, 11)[i + 10 : i + 20]) for i in range(0, 200, 20)]
    plain, unbiased = ([cmmd(x, y, u) for x, y in draws] for u in (False, True))
    assert min(plain) > 0
    error = np.std(unbiased) / len(draws) ** 0.5
    assert abs(np.mean(unbiased)) < 3 * error < np.mean(plain)


def _shard(rank: int) -> tuple:
    """One process's part of both statistics: every second row."""
    x, y = features(31, 6, 12), features(24, 6, 13, 0.2)
    own = x[rank::2], y[rank::2]
    return moments(own[0]), moments(own[1]), kernel_sums(*own, x, y)


def test_two_processes_give_what_one_gives():
    x, y = features(31, 6, 12), features(24, 6, 13, 0.2)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        (a0, b0, k0), (a1, b1, k1) = pool.map(_shard, (0, 1))
    assert frechet(a0.plus(a1), b0.plus(b1)) == pytest.approx(fid(x, y), rel=1e-9)
    assert mmd(k0.plus(k1)) == pytest.approx(cmmd(x, y), rel=1e-9)
    assert mmd(k0.plus(k1), unbiased=True) == pytest.approx(cmmd(x, y, unbiased=True), rel=1e-9)


def test_empty_shards_change_nothing():
    x = features(10, 4, 14)
    whole = moments(x)
    joined = moments(x[:0]).plus(moments(x[:3])).plus(moments(x[3:]))
    assert joined.number == 10
    torch.testing.assert_close(joined.covariance(), whole.covariance(), rtol=1e-12, atol=1e-12)
    sums = kernel_sums(x[:0], x[:0], x, x)
    assert sums == KernelSums(0, 0, 0.0, 0.0, 0.0)


def test_t_clip_is_clipscore():
    images = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.0, 5.0]])
    torch.testing.assert_close(t_clip(images, texts), torch.tensor([2.5 * 0.6, 0.0, 2.5]).double())
    assert caption("a fox") == "A photo depicts a fox"


def test_i_gram_in_the_vgg_sense_is_the_mean_cosine_of_gram_matrices():
    from tilting.features.gram import GATYS
    from tilting.features.vgg import Vgg16
    from tilting.metrics.perceptual import gram_vectors

    torch.manual_seed(0)
    vgg, gen = Vgg16((4, 4, 6, 6, 8)), torch.Generator().manual_seed(1)
    images, reference = torch.rand(3, 3, 32, 32, generator=gen), torch.rand(1, 3, 32, 32, generator=gen)
    got = i_gram(gram_vectors(vgg, images), gram_vectors(vgg, reference)[0])
    for i in range(3):
        cosines = []
        for f, r in zip(vgg(images[i : i + 1], GATYS), vgg(reference, GATYS), strict=True):
            a, b = (np.einsum("chw,dhw->cd", v[0].double().numpy(), v[0].double().numpy()) for v in (f, r))
            cosines.append((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
        assert got[i].item() == pytest.approx(np.mean(cosines), abs=1e-5)
    same = i_gram(gram_vectors(vgg, reference), gram_vectors(vgg, reference)[0])
    assert same.item() == pytest.approx(1, abs=1e-5)


def test_diversity_is_the_mean_over_pairs():
    x = features(5, 3, 15)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    want = np.mean([np.linalg.norm(unit[i] - unit[j]) for i in range(5) for j in range(i)])
    assert mean_pairwise(x) == pytest.approx(want, rel=1e-9)
    assert mean_pairwise(torch.stack([x[0], 2 * x[0]])) == pytest.approx(0, abs=1e-7)
    for n in (2, 4, 37):  # within a block, and over three of them
        images = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        got = mean_distance(images, lambda a, b: torch.cdist(a.flatten(1), (a if b is None else b).flatten(1)).square())
        want = np.mean([((images[i] - images[j]) ** 2).sum().item() for i in range(n) for j in range(i)])
        assert got == pytest.approx(want, rel=1e-5)
    with pytest.raises(TiltingError, match="at least 2"):
        mean_pairwise(x[:1])


def test_labels_by_hand():
    r = read_labels(["cat", "cat", "dog", "dog", "fox"], ["cat", "dog", "dog", "owl", "cat"])
    assert r.accuracy == pytest.approx(2 / 5)
    assert r.classes == ("cat", "dog", "fox")
    assert r.confusion == ((1, 1, 0, 0), (0, 1, 0, 1), (1, 0, 0, 0))
    # cat: TP 1, FP 1, FN 1; dog: TP 1, FP 1, FN 1; fox: never read
    assert r.macro_f1 == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_expected_reward_is_within_prompts_then_across():
    values, prompts = [1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]
    assert by_prompt(values, prompts) == {"a": 1.0, "b": 5.0}
    found = expected(values, prompts)
    half = 5 / 4 * 12.706204736 * 2.0  # t_1(95 %) times the standard error of the two prompt means, 1 and 5, and 1/4 wider
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    alone, half = expected([1.0, 2.0, 3.0, 4.0], ["a"] * 4), 9 / 8 * 3.182446305 * (5 / 12) ** 0.5  # over images: t_3
    assert (alone.mean, alone.low, alone.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


def test_paired_differences():
    ours = {("a", 0): 2.0, ("a", 1): 4.0, ("b", 0): 1.0}
    theirs = {("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 1.0}
    assert paired(ours, theirs).mean == pytest.approx((2.0 + 0.0) / 2)
    assert difference({"a": 1.0}, {"a": 3.0}).mean == -2.0
    with pytest.raises(TiltingError, match="'b'"):
        difference({"a": 1.0, "b": 2.0}, {"a": 1.0})
    lone = paired({("a", i): 1.0 + i for i in range(4)}, {("a", i): 0.0 for i in range(4)})
    assert lone == (2.5, ((pytest.approx((5 / 12) ** 0.5), 3),))


def moved(mean: float, half: float, judges: int = 1) -> Estimate:
    """A mean whose interval among so many judges is mean ± half, over 8 prompts."""
    return Estimate(mean, ((half / reach(1 - 0.05 / judges, 8), 7),))


UP, FLAT, DOWN = moved(0.2, 0.1), moved(0.01, 0.1), moved(-0.2, 0.1)
FELL_OF_TWO = moved(-0.2, 0.1, 2)
SURE = Estimate(0.3, ((0.0, 7),))
"""As of eight prompts whose differences are all the same."""


@pytest.mark.parametrize(
    ("reward", "judges", "word", "said"),
    [
        (UP, {"pocket-judge": FELL_OF_TWO, "diversity": FLAT}, "gamed", "while pocket-judge -0.2 [-0.3, -0.1] fell"),
        (UP, {"pocket-judge": UP, "diversity": DOWN}, "less diverse", "more alike: diversity -0.2"),
        (UP, {"pocket-judge": FELL_OF_TWO, "diversity": FELL_OF_TWO}, "gamed", "fell; pictures of a prompt are more alike"),
        (UP, {"pocket-judge": FLAT, "diversity": UP}, "better", "no fall of pocket-judge was found"),
        (UP, {"diversity": FLAT}, "better", "no held-out judge"),
        (SURE, {"pocket-judge": UP}, "too few to say", "+0.3 [no interval], is of too few pictures"),
        (Estimate(0.3, ()), {}, "too few to say", "+0.3 [no interval]"),
        (Estimate(0.0, ((0.0, 7),)), {}, "no gain", "did not rise"),
        (UP, {"pocket-judge": Estimate(-1.0, ((0.0, 7),))}, "too few to say", "of pocket-judge there is too little to say"),
        (UP, {}, "better", "no held-out judge"),
        (FLAT, {"pocket-judge": UP}, "no gain", "did not rise beyond chance"),
        (FLAT, {"pocket-judge": DOWN}, "no gain", "pocket-judge -0.2 [-0.3, -0.1] fell"),
        (DOWN, {}, "no gain", "the reward fell"),
    ],
)
def test_verdict(reward, judges, word, said):
    verdict = decide(reward, judges)
    assert verdict.word in TERMS
    assert verdict.word == word and said in verdict.reason
    assert "\n" not in verdict.reason and not verdict.reason.endswith(".")


@pytest.mark.parametrize("size", [3, 64, 299, 512])
def test_inception_resizes_as_tensorflow_1_does(size):
    from tilting.metrics.inception import resize

    image = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0)) * 255
    got, want, rows = resize(image)[0, 0].numpy(), np.zeros((299, 299)), image[0, 0].numpy().astype(np.float64)
    for i in range(0, 299, 23):
        for j in range(0, 299, 19):
            y, x = i * size / 299, j * size / 299
            a, b = int(y), int(x)
            c, d = min(a + 1, size - 1), min(b + 1, size - 1)
            top = rows[a, b] + (rows[a, d] - rows[a, b]) * (x - b)
            low = rows[c, b] + (rows[c, d] - rows[c, b]) * (x - b)
            want[i, j] = top + (low - top) * (y - a)
            assert got[i, j] == pytest.approx(want[i, j], abs=2e-3)


def test_inception_is_the_published_one(tmp_path):
    """21,785,568 parameters without the classifier (Keras reports 21,802,784, with moving means and without BN scales)."""
    from safetensors.torch import save_file

    from tilting.metrics.inception import Inception, Mixed, inception

    torch.manual_seed(0)
    net = Inception()
    means = sum(m.running_mean.numel() for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    total = sum(p.numel() for p in net.parameters())
    assert total == 21_785_568 and total - means + 2 * means == 21_802_784
    for key in ("Conv2d_4a_3x3.bn.running_var", "Mixed_6c.branch7x7dbl_5.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.bias"):
        assert key in net.state_dict()
    ones = torch.ones(1, 1, 4, 4)
    assert isinstance(net.Mixed_5b, Mixed) and torch.equal(net.Mixed_5b.pooled(ones), ones)  # padding is not in the mean
    assert torch.equal(net.Mixed_7b.pooled(ones), ones) and net.Mixed_7c.pool == "max"
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    images = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    found = inception(tmp_path / "w.safetensors")
    torch.testing.assert_close(found(images), net(images).double())
    del state["Mixed_6c.branch7x7dbl_5.conv.weight"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(TiltingError, match=r"short\.safetensors.*lacks 'Mixed_6c\.branch7x7dbl_5"):
        inception(tmp_path / "short.safetensors")
