"""Search of the starting noise and over paths: what is tried, what is kept, what is paid."""

from __future__ import annotations

import math

import pytest
import torch

from support.chains import problem, run
from tilting import presets, rng
from tilting.engines.search import NoiseSearch, PathSearch
from tilting.errors import TiltingError
from tilting.sample import finish
from tilting.schedule import transition

STEPS, AIM = 6, torch.tensor([0.7, -0.4], dtype=torch.float64)


def reward(x0, rows):
    return x0.to(AIM) @ AIM


def chain(p, x):
    """x_0 of x_T, by the deterministic chain."""
    for t, s in zip(p.grid, p.grid[1:], strict=False):
        x = transition(p.denoise(x, t, torch.arange(len(x))), t, s, 0.0).mean
    return x


def test_zero_order_search_by_hand(mixture):
    """Every neighbour of every pivot, the best of all so far kept; in chunks of any size."""
    ends = []
    for chunk in (3, 16):
        p = problem(mixture, STEPS, 4, value=reward, eta=0.0, chunk=chunk)
        state, infos = run(p, presets.zo(3, iterations=2, radius=0.6).build(STEPS))
        ends.append(state.x)
        pivot = rng.normal(p.who, 1, p.shape, 0)[:, 0].to(p.dtype)
        kept, best = chain(p, pivot), reward(chain(p, pivot), None)
        for k in (1, 2):
            noise = rng.normal(p.who, 3, p.shape, k, "neighbour").to(pivot)
            tried = [math.sqrt(1 - 0.36) * pivot + 0.6 * noise[:, j] for j in range(3)]
            for row in range(4):
                clean = [chain(p, x)[row] for x in tried]
                worth = [reward(c[None], None).item() for c in clean]
                top = max(range(3), key=worth.__getitem__)
                assert infos[k].value[row].tolist() == pytest.approx(worth, rel=1e-5)
                if worth[top] > best[row]:
                    best[row], kept[row] = worth[top], clean[top]
            pivot = torch.stack([next_pivot(tried, infos[k].value, infos, k, row, pivot) for row in range(4)])
        assert torch.allclose(state.x[:, 0], kept, rtol=1e-5)
        assert [info.evaluations for info in infos] == [4 * STEPS, 12 * STEPS, 12 * STEPS]
    assert torch.allclose(*ends, rtol=1e-6)


def next_pivot(tried, value, infos, k, row, pivot):
    """The next pivot of an image: the best neighbour if it is above all before."""
    before = max(infos[j].value[row].max().item() for j in range(k))
    top = int(value[row].argmax())
    return tried[top][row] if value[row][top].item() > before else pivot[row]


def test_a_neighbour_of_a_standard_normal_is_one_whatever_the_radius(mixture):
    p = problem(mixture, STEPS, 4000, value=reward, eta=0.0)
    pivot = rng.normal(p.who, 1, p.shape, 0)[:, 0]
    for radius in (0.2, 0.7, 1.0):
        near = NoiseSearch(1, 1, radius)._around(p, pivot, 1)[:, 0]
        assert abs(near.std().item() - 1) < 0.03 and abs(near.mean().item()) < 0.04
        along = (near * pivot).mean().item()
        assert along == pytest.approx(math.sqrt(1 - radius**2), abs=0.04)


def test_search_over_paths_goes_back_and_on(mixture):
    """Where it draws between, what is noised back keeps the marginal, and the best ways on are kept."""
    search = PathSearch(2, 1, 3, 0.2)
    assert search.begin(12) == 2 and search.rounds(12) == [(1, 4), (3, 6), (5, 8), (7, 10), (9, 12)]
    assert PathSearch(2, 5, 6, 0.01).rounds(3) == [(0, 3)]
    with pytest.raises(TiltingError, match="more steps than it noises back, not 2 after 2"):
        presets.paths(forward=2, backward=2).build(STEPS)
    p = problem(mixture, STEPS, 5, value=reward, eta=0.0)
    method = presets.paths(2, branches=3, start=0.3).build(STEPS)
    state, infos = run(p, method)
    assert state.x.shape == (5, 2, 2) and state.step == STEPS and len(infos) == method.engine.ticks(STEPS)
    for info in infos[1:]:
        assert info.value.shape == (5, 6) and info.parents.shape == (5, 2)
        kept = info.value.gather(1, info.parents)
        assert torch.equal(kept, info.value.sort(1, descending=True).values[:, :2])
    final = finish(p, method, state)
    assert torch.equal(final.x[:, 0], state.x[torch.arange(5), reward(state.x.flatten(0, 1), None).reshape(5, 2).argmax(1)])


def test_noised_back_samples_have_the_law_of_the_noisier_level(mixture):
    """Of a model whose samples are exact, at an ODE's every level: mean and spread of x at the point gone back to."""
    p = problem(mixture, 40, 1500, value=reward, eta=0.0, chunk=100_000)
    search = PathSearch(1, 8, 9, 0.5)
    seen = {}
    denoise = p.denoise

    def watch(x, t, rows):
        seen.setdefault(t, []).append(x)
        return denoise(x, t, rows)

    from dataclasses import replace

    p = replace(p, denoise=watch)
    run(p, replace(presets.paths(1, branches=1).build(40), engine=search))
    t = p.grid[12]  # drawn first on the way to 20, and again after going back to it
    first, again = seen[t][:2]
    assert len(seen[t]) >= 2 and not torch.equal(first, again)
    spread = 4 * first.std(0) / len(first) ** 0.5
    assert ((first.mean(0) - again.mean(0)).abs() < 2 * spread).all()
    assert torch.allclose(first.std(0), again.std(0), rtol=0.1)


@pytest.mark.parametrize("name", ["zo", "paths"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_chains_are_searched_too(mixture, name, steps):
    p = problem(mixture, steps, 3, value=reward, eta=0.0)
    method = getattr(presets, name)().build(steps)
    state, infos = run(p, method)
    assert state.step == steps and state.x.isfinite().all() and len(infos) == method.engine.ticks(steps)
