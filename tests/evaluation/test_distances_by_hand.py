"""Distances of a few numbers by hand, and which images of which run they are of."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from tilting.config.evaluate import EvaluateConfig
from tilting.errors import TiltingError
from tilting.evaluation.distances import compare, distances, halves, shown, with_means
from tilting.evaluation.measure import Measured
from tilting.evaluation.read_runs import Run, Setup
from tilting.metrics import METRICS
from tilting.metrics.diversity import AT_ONCE, diversity, lpips_input, mean_distance, mean_pairwise
from tilting.metrics.frechet import fid, frechet, moments
from tilting.metrics.mmd import KernelSums, cmmd, kernel_sums, mmd, unbiased
from tilting.metrics.prompts import across


def rows(*numbers: float, d: int = 1) -> torch.Tensor:
    """(n, d), each number in the first place."""
    return torch.tensor(numbers)[:, None] * torch.eye(d)[0]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_fid_of_two_numbers_a_side(d):
    """Means 1 and 3, variances 2 and 8 over n - 1: 4 + (√8 - √2)² = 6; whichever way is taken."""
    x, y = rows(0.0, 2.0, d=d), rows(1.0, 5.0, d=d)
    assert fid(x, y) == pytest.approx(6.0) and frechet(moments(x), moments(y)) == pytest.approx(6.0)
    assert fid(x, rows(1.0, 5.0, 3.0, 3.0, d=d)) == pytest.approx(4 + (math.sqrt(32 / 12) - math.sqrt(2)) ** 2)
    assert 0.0 <= fid(x, x) < 1e-12
    for few in (x[:1], x[:0]):
        with pytest.raises(TiltingError, match=f"at least 2 images, not {len(few)}"):
            fid(x, few)
    with pytest.raises(TiltingError, match=f"features of {d} and 4 numbers"):
        fid(x, rows(1.0, 5.0, d=4))
    for a, b in ((torch.zeros(2, 3), torch.zeros(2, 2)), (torch.zeros(2, 3), torch.zeros(3, 4))):
        with pytest.raises(TiltingError, match="cannot be compared"):
            fid(a, b)
    parts = [moments(y[:1]), moments(y[1:])]
    assert frechet(moments(x), parts[0].plus(parts[1])) == pytest.approx(6.0) and parts[0].plus(parts[1]).number == 2
    assert METRICS["fid"].fewest == 50 and METRICS["fid"].better == METRICS["cmmd"].better == "lower"


def test_fid_of_covariances_that_turn():
    """Σ = diag(4, 0) and [[1, 1], [1, 1]], of rank one: tr (Σ_a Σ_b)^½ = √(uᵀ Σ_b u) = 2, u = (2, 0); no mean apart."""
    x = torch.tensor([[math.sqrt(2), 0.0], [-math.sqrt(2), 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.5, 0.5], [-0.5, -0.5]], dtype=torch.float64) * math.sqrt(2)
    assert fid(x, y) == pytest.approx(4 + 2 - 2 * 2) and fid(x, 3 * y) == pytest.approx(4 + 18 - 2 * 6)


def test_cmmd_of_directions():
    """Unit vectors at a right angle are √2 apart: k = exp(-2 / 2σ²), σ 10 unless told."""
    x, y = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * math.exp(-0.01)))
    assert cmmd(x, y, sigma=1.0) == pytest.approx(1000 * (2 - 2 * math.exp(-1)))
    two, one = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    k = math.exp(-0.01)
    assert cmmd(two, one) == pytest.approx(1000 * ((1 + k) / 2 + 1 - (1 + k)))
    assert unbiased(two, one) == pytest.approx(1000 * (k + 1 - (1 + k)), abs=1e-9)
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])  # Σ_{i≠j} k = 4 k + 2 of 6 pairs, and 3 with the other's
    assert unbiased(three, two) == pytest.approx(1000 * ((4 * k + 2) / 6 + k - 2 * (3 + 3 * k) / 6), abs=1e-9)
    assert unbiased(two, three) == pytest.approx(unbiased(three, two), abs=1e-9)
    assert (
        cmmd(three, two)
        == mmd(kernel_sums(three, two, three, two))
        == pytest.approx(1000 * ((5 + 4 * k) / 9 + (1 + k) / 2 - 2 * (3 + 3 * k) / 6))
    )
    assert kernel_sums(x, y, torch.cat([x, y]), y) == KernelSums(1, 1, *map(pytest.approx, (1 + k, 1.0, k)))
    assert KernelSums(1, 2, 3.0, 4.0, 5.0).plus(KernelSums(10, 20, 30.0, 40.0, 50.0)) == KernelSums(11, 22, 33.0, 44.0, 55.0)
    assert KernelSums() == KernelSums(0, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("n", "m", "without_bias", "said"),
    [(0, 1, False, "at least 1 image of either kind, not 0"), (1, 2, True, "at least 2 images of either kind, not 1")],
)
def test_cmmd_of_too_few(n, m, without_bias, said):
    for sums in (KernelSums(n, m, 1.0, 1.0, 1.0), KernelSums(m, n, 1.0, 1.0, 1.0)):
        with pytest.raises(TiltingError, match=said):
            mmd(sums, without_bias)
    mmd(KernelSums(n + 1, m, 1.0, 1.0, 1.0), without_bias)
    with pytest.raises(TiltingError, match="features of 2 and 3 numbers"):
        cmmd(torch.ones(2, 2), torch.ones(2, 3))


def test_diversity_by_hand():
    """Directions (1, 0), (0, 1) and (-1, 0): √2, √2 and 2 apart."""
    x = torch.tensor([[5.0, 0.0], [0.0, 0.1], [-2.0, 0.0]])
    assert mean_pairwise(x) == pytest.approx((2 * math.sqrt(2) + 2) / 3) and mean_pairwise(x[:2]) == pytest.approx(math.sqrt(2))
    assert diversity(x, torch.empty(0), None) == mean_pairwise(x)
    for measure in (mean_pairwise, lambda few: mean_distance(few, lambda a, b: a)):
        with pytest.raises(TiltingError, match="at least 2 images of a prompt, not 1"):
            measure(x[:1])


class Apart:
    """In LPIPS' place, the difference of two pictures' brightness; of itself too, as `Lpips.table` has it."""

    def __init__(self):
        self.blocks: list[tuple[int, int]] = []

    def table(self, a, b):
        assert not torch.is_grad_enabled()
        other = a if b is None else b
        self.blocks.append((len(a), len(other)))
        return (a.mean((1, 2, 3))[:, None] - other.mean((1, 2, 3))[None]).abs()

    def __call__(self, images, reference):
        assert not torch.is_grad_enabled()
        return (images - reference).flatten(1).mean(1)


def test_diversity_of_blocks_of_pictures():
    """0, 1, ... 17: mean distance over pairs (n + 1) / 3 = 19 / 3; blocks of 16, of each pair of them once."""
    lpips, images = Apart(), torch.arange(18.0)[:, None, None, None].expand(18, 3, 2, 2)
    assert diversity(torch.empty(0), images, lpips) == pytest.approx(19 / 3)  # type: ignore[arg-type]
    assert AT_ONCE == 16 and lpips.blocks == [(16, 16), (16, 2), (2, 2)]
    assert mean_distance(images[:2], lpips.table) == pytest.approx(1.0)
    assert lpips_input(lpips, images[:2], images[2:4]).tolist() == [-2.0, -2.0]  # type: ignore[arg-type]
    other = torch.cat([images[2:3], torch.full_like(images[:1], torch.nan)])  # of a prompt without an input
    assert lpips_input(lpips, images[:2], other).nan_to_num(9).tolist() == [-2.0, 9.0]  # type: ignore[arg-type]


# Of runs


def told(*prompts: str, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[str]]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(len(prompts), 3, generator=draw) for name in ("fid", "clip", "spread")}, list(prompts)


def measured(features: dict[str, torch.Tensor]) -> Measured:
    return Measured(features, {}, {}, {}, {}, {})


def run(name: str, prompts: list[str]) -> Run:
    return Run(name, Path(name), {"images": [{"prompt": prompt} for prompt in prompts], "config": {}})


def of(a, b, mine=slice(None), other=slice(None)) -> dict[str, float]:
    """The three distances of some rows."""
    fids, clips = (a[0]["fid"][mine], b[0]["fid"][other]), (a[0]["clip"][mine], b[0]["clip"][other])
    return {"fid": fid(*fids), "cmmd": cmmd(*clips), "cmmd_unbiased": cmmd(*clips, unbiased=True)}


def test_runs_are_compared_pooled_and_by_the_prompts_that_both_have_twice():
    a, b = told("p", "q", "p", "q", "r", "t", "t"), told("p", "p", "q", "s", "s", "p", "t", "t", seed=1)
    far = compare(a, b)
    assert far["images"] == [7, 8] and list(far) == ["fid", "cmmd", "cmmd_unbiased", "images"]
    for name in ("fid", "cmmd", "cmmd_unbiased"):
        assert far[name]["pooled"] == pytest.approx(of(a, b)[name])
        assert far[name]["each"] == {
            "p": pytest.approx(of(a, b, [0, 2], [0, 1, 5])[name]),
            "t": pytest.approx(of(a, b, [5, 6], [6, 7])[name]),
        }
    assert compare(told("p"), told("p", "p"))["fid"] == {"pooled": None, "each": {}}
    assert compare(told("p", "q"), told("q", "r"))["fid"]["pooled"] is not None
    means = with_means(far)
    each = far["cmmd"]["each"]
    assert means["cmmd"] == {"pooled": far["cmmd"]["pooled"], "per_prompt": across(each)._asdict(), "each": each}
    assert means["images"] == [7, 8] and with_means(compare(told("p"), told("q")))["fid"]["per_prompt"] is None
    brief = shown({**means, "kind": "runs"})
    assert brief is not None and brief["kind"] == "runs" and brief["images"] == [7, 8]
    assert brief["cmmd"] == {"pooled": far["cmmd"]["pooled"], "per_prompt": means["cmmd"]["per_prompt"]} and shown(None) is None


def test_halves_are_of_every_prompt_and_its_own():
    prompts = ["a", "b"] * 5 + ["b", "c"]
    first, second = halves(prompts, 3)
    own = {"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9, 10], "c": [11]}
    for prompt, half in (("a", 2), ("b", 3), ("c", 0)):
        parts = [[i for i in rows if i in own[prompt]] for rows in (first, second)]
        assert [len(part) for part in parts] == [half, half] and not set(parts[0]) & set(parts[1])
        shuffled = own[prompt].copy()
        random.Random(f"3 {prompt}").shuffle(shuffled)
        assert parts == [sorted(shuffled[:half]), sorted(shuffled[half : 2 * half])]
    assert first == sorted(first) and second == sorted(second)
    assert halves(prompts, 3) == (first, second) != halves(prompts, 4)


REFERENCE, OTHER, STEERED = told("p", "p", "p", "q", "q", "p"), told("p", "p", "q", "q", seed=1), told("p", "p", "q", seed=2)
NAMED = {"reference": REFERENCE, "other": OTHER, "steered": STEERED}
SEEN = {name: measured(features) for name, (features, _) in NAMED.items()}
CONFIG = EvaluateConfig(seed=3)


def parts(*names: str, reference: str | None = "reference", floor: str | None = None, **more) -> Setup:
    return Setup(tuple(run(name, NAMED[name][1]) for name in names), reference, {}, floor, (), **more)


def test_without_a_reference_there_is_no_distance():
    assert distances(CONFIG, parts("steered", reference=None), SEEN, []) == ({}, None)


def test_of_two_base_runs_one_is_the_reference_and_the_other_the_floor():
    notes: list[str] = []
    far, floor = distances(CONFIG, parts("steered", "other", "reference", floor="other"), SEEN, notes)
    assert far == {"steered": compare(STEERED, REFERENCE), "other": compare(OTHER, REFERENCE)} and not notes
    how = "two runs of the base model, other and the reference reference"
    assert floor == {"kind": "runs", "how": how, **with_means(far["other"])}


def test_of_a_lone_reference_the_floor_is_of_its_halves():
    far, floor = distances(CONFIG, parts("steered", "reference"), SEEN, [])
    first, second = halves(REFERENCE[1], 3)
    pair = [({k: v[rows] for k, v in REFERENCE[0].items()}, [REFERENCE[1][i] for i in rows]) for rows in (first, second)]
    assert pair[0][1] != pair[1][1]  # of the same prompts in another order
    assert list(far) == ["steered"] and floor is not None and floor["kind"] == "halves" and floor["images"] == [3, 3]
    assert floor == {"kind": "halves", "how": floor["how"], **with_means(compare(pair[0], pair[1]))}
    assert floor["how"].startswith("two halves of the reference reference (3 images each")


@pytest.mark.parametrize(("prompts", "floor"), [(["p", "p"], False), (["p", "p", "q", "q"], True), (["p", "q", "r"], False)])
def test_a_reference_of_too_few_pictures_has_no_floor_and_it_is_said(prompts, floor):
    few, notes = told(*prompts, seed=5), []
    setup = Setup((run("steered", STEERED[1]), run("few", prompts)), "few", {}, None, ())
    far, found = distances(CONFIG, setup, {**SEEN, "few": measured(few[0])}, notes)
    assert far == {"steered": compare(STEERED, few)} and (found is not None) == floor
    assert [note.startswith("There is no floor: give a second run") for note in notes] == [True] * (not floor)


@pytest.mark.parametrize(("count", "half"), [(5, 2), (4, 2), (3, None), (2, None)])
def test_pictures_without_prompts_are_each_one_of_their_own(count, half):
    files = tuple(Path(f"picture {i}") for i in range(count))
    features = told(*[""] * count, seed=6)[0]
    setup = parts("steered", reference="folder", pictures=files)
    far, floor = distances(CONFIG, setup, {**SEEN, "folder": measured(features)}, [])
    assert far == {"steered": compare(STEERED, (features, [str(file) for file in files]))}
    assert far["steered"]["fid"]["each"] == {}
    if half is None:
        assert floor is None
        return
    first, second = halves([""] * count, 3)
    pair = [({k: v[rows] for k, v in features.items()}, [str(files[i]) for i in rows]) for rows in (first, second)]
    assert floor == {"kind": "pictures", "how": floor["how"], **with_means(compare(*pair))} and floor["images"] == [half, half]
    assert floor["how"].startswith(f"two halves of the pictures of folder ({half} each")
