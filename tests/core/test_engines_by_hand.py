"""The other drivers of a chain, each written out again draw by draw on a model of one line, image by image."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from support.chains import FLOW, who
from tilting import rng
from tilting.engines.budget import Budget
from tilting.engines.chain import Pcnl
from tilting.engines.lookahead import Lookahead
from tilting.engines.optimise import Begin, Optimise, log_norm, norms, rollout
from tilting.engines.search import NoiseSearch, PathSearch
from tilting.errors import TiltingError
from tilting.method import Method
from tilting.sample import Problem, sample, start, start_from
from tilting.schedule import Time
from tilting.select import Smc
from tilting.types import Prediction

D, PULL = 3, torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
SHAPE = (1, D, 1)
"""Of a latent: nothing takes its axes for particles or images."""


def x0_of(x, t):
    """The model's estimate: bent, and another at every time."""
    return torch.sin(x) + 0.3 * t.sigma * x


def denoise(x, t, rows):
    x0 = x0_of(x, t)
    return Prediction((x - t.alpha * x0) / t.sigma, x0, x0 + 10)


def reward(x0, rows):
    """Curved, and another for every image."""
    flat = x0.reshape(len(x0), D)
    return flat @ PULL - 0.4 * (1 + 0.5 * rows) * flat.square().sum(1)


def step(x, t, s, eta):
    """(mean, std) of x_s, by the lines of `tilting.schedule`."""
    a = t.alpha / s.alpha
    std = eta * s.sigma * math.sqrt(max(t.sigma**2 - a**2 * s.sigma**2, 0.0)) / t.sigma
    x0 = x0_of(x, t)
    return s.alpha * x0 + math.sqrt(s.sigma**2 - std**2) * (x - t.alpha * x0) / t.sigma, std


def problem(steps, images=2, eta=1.0, grid=None, chunk=100, value=reward) -> Problem:
    grid = FLOW.grid(steps) if grid is None else grid
    return Problem(denoise, grid, who(images), SHAPE, value, eta, 1.0, chunk, dtype=torch.float64)


def normal(w, n, step, purpose="noise") -> torch.Tensor:
    """Noise (n, ...) of one image."""
    return rng.normal([w], n, SHAPE, step, purpose)[0].double()


def worth(x, row) -> float:
    return reward(x[None], torch.tensor([row])).item()


# Rollover


def rolled(p: Problem, row: int, quota: int):
    """What each step of one image comes to: (x, best value, children drawn)."""
    w, steps = p.who[row], len(p.grid) - 1
    x, left, told = normal(w, 1, 0)[0], 0, []
    parent = worth(x0_of(x, p.grid[0]), row)
    for i in range(steps):
        t, s = p.grid[i], p.grid[i + 1]
        mean, std = step(x, t, s, p.eta)

        def child(k, mean=mean, std=std, i=i):
            return mean + std * torch.randn(SHAPE, generator=rng.generator(w, k, i + 1)).double()

        if i == steps - 1:
            told.append((child(0), parent, 0))
            break
        left, tried = left + quota, []
        while left > 0:
            drawn = child(len(tried))
            tried.append((worth(x0_of(drawn, s), row), drawn))
            left -= 1
            if tried[-1][0] > parent:
                break
        parent, x = max(tried, key=lambda one: one[0])
        told.append((x, parent, len(tried)))
    return told


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("quota", [1, 2, 4])
def test_a_rollover(quota, noisy):
    """Of a grid that ends in noise too: the last step has one child, whatever its noise."""
    steps, p = 6, problem(6, 3, grid=FLOW.grid(7)[:-1] if noisy else None, chunk=2 if noisy else 100)
    method = Method("rbf", engine=Budget(quota))
    states = list(sample(p, method))
    wanted = [rolled(p, row, quota) for row in range(3)]
    assert len(states) == steps == method.engine.ticks(steps)
    assert max(count for one in wanted for _, _, count in one) > (quota > 1) * quota  # what was saved is spent
    for i, (state, info) in enumerate(states):
        x, value, count = zip(*(one[i] for one in wanted), strict=True)
        assert torch.allclose(state.x[:, 0], torch.stack(x)) and state.x.shape == (3, 1, *SHAPE)
        assert info.value.flatten().tolist() == pytest.approx(list(value)) and info.value.shape == (3, 1)
        assert (info.step, state.step, info.std) == (i + 1, i + 1, pytest.approx(step(x[0], *p.grid[i : i + 2], 1.0)[1]))
        paid = sum(count) + (3 if i == 0 else 0)  # the first step looks at x_T too
        assert (info.evaluations, info.values, info.parents) == (paid, paid, None)
        if i < steps - 1:
            assert torch.allclose(info.x0, x0_of(state.x, p.grid[i + 1])) and state.left.dtype == torch.long
            assert state.value.flatten().tolist() == pytest.approx(list(value))
            for told, own in zip(state.prediction, denoise(state.x, p.grid[i + 1], None), strict=True):
                assert torch.allclose(told, own)
    for cut in (0, 2):
        again = list(sample(p, method, states[cut][0]))
        assert torch.equal(again[-1][0].x, states[-1][0].x) and len(again) == steps - 1 - cut
        looked = replace(states[cut][0], **({"value": None} if cut else {"prediction": None}))  # what is not there is looked up
        assert torch.allclose(list(sample(p, method, looked))[-1][0].x, states[-1][0].x)


def test_a_rollover_as_it_is_unset():
    one = Budget()
    assert (one.quota, one.needs_reward_gradient, one.stochastic, one.may_cost_less) == (4, False, True, True)


# pCNL


def looking(p: Problem, asked: list):
    """What `tilting.sample` looks with: value, gradient and prediction at x_T."""

    def look(state, k):
        asked.append(k)
        with torch.enable_grad():
            x = state.x.detach().flatten(0, 1).requires_grad_(True)
            value = reward(x0_of(x, p.grid[0]), torch.arange(len(p.who)).repeat_interleave(state.x.shape[1]))
            gradient = torch.autograd.grad(value.sum(), x)[0].reshape(state.x.shape)
        prediction = denoise(state.x, p.grid[0], None)
        return replace(state, value=value.detach().reshape(state.x.shape[:2]), gradient=gradient, prediction=prediction)

    return look


@pytest.mark.parametrize(("pictured", "late"), [(False, False), (False, True), (True, True)])
def test_pcnl_by_the_rule_of_metropolis_and_hastings(pictured, late):
    """π(z) ∝ N(z; 0, I) exp(U(z)); q(z' | z) = N(ρ z + √(1 - ρ²) √ε/2 ∇U, (1 - ρ²) I): accepted by π q over π q, for each."""
    beta, size, moves, n = 0.6, 1.3, 5, 3
    p = problem(4, 2, grid=FLOW.grid(8)[3:] if late else None)
    rho, sigma = (1 - size / 4) / (1 + size / 4), p.grid[0].sigma if pictured else 1.0
    method, picture = Method("psi", n), 0.4 * torch.ones(2, *SHAPE, dtype=torch.float64)
    begun, asked = start_from(p, method, picture) if pictured else start(p, method), []
    end = Pcnl(moves, beta, size)(p, None, begun, looking(p, asked))
    assert asked == list(range(moves + 1)) and (end.memory.potential == 0).all()
    around, kept, refused = p.grid[0].alpha * picture if pictured else 0 * picture, 0, 0
    for row, w in enumerate(p.who):
        for j in range(n):
            z = (begun.x[row, j] - around[row]) / sigma

            def u(z, row=row):
                with torch.enable_grad():
                    z = z.detach().requires_grad_(True)
                    value = reward(x0_of(around[row] + sigma * z, p.grid[0])[None], torch.tensor([row]))[0] / beta
                    return value.item(), torch.autograd.grad(value, z)[0]

            def log_pi(z, u=u):
                return u(z)[0] - 0.5 * z.square().sum().item()

            def log_q(to, z, u=u):
                mean = rho * z + math.sqrt(1 - rho**2) * math.sqrt(size) / 2 * u(z)[1]
                return -0.5 * (to - mean).square().sum().item() / (1 - rho**2)

            for k in range(moves):
                mean = rho * z + math.sqrt(1 - rho**2) * math.sqrt(size) / 2 * u(z)[1]
                then = mean + math.sqrt(1 - rho**2) * normal(w, n, k, "pcnl")[j]
                ratio = log_pi(then) + log_q(z, then) - log_pi(z) - log_q(then, z)
                taken = rng.uniform([w], n, k, "pcnl/accept")[0, j].log().item() < ratio
                z, kept, refused = then if taken else z, kept + taken, refused + (not taken)
            x = around[row] + sigma * z
            assert torch.allclose(end.x[row, j], x, atol=1e-6)
            assert end.value[row, j].item() == pytest.approx(u(z)[0] * beta, abs=1e-6)
            assert torch.allclose(end.gradient[row, j], u(z)[1] * beta / sigma, atol=1e-6)
            for told, own in zip(end.prediction, denoise(x[None], p.grid[0], None), strict=True):
                assert torch.allclose(told[row, j], own[0], atol=1e-6)
    assert kept > 5 and refused > 5
    weighed = Pcnl(moves, beta, size)(p, Smc(beta), begun, looking(p, []))
    assert torch.equal(weighed.x, end.x) and torch.allclose(weighed.memory.potential, end.value / beta)
    assert (weighed.log_w == 0).all()


def test_a_step_of_pcnl_is_between_0_and_4():
    assert (Pcnl().moves, Pcnl().beta, Pcnl().step) == (4, 1.0, 0.5)
    Pcnl(step=3.9), Pcnl(step=0.1)
    for wrong in (0.0, 4.0, 4.5, -1.0):
        with pytest.raises(TiltingError, match="between 0 and 4"):
            Pcnl(step=wrong)


# Looking ahead


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("pictured", [False, True])
def test_looking_ahead(eta, pictured):
    """Samples of two of five steps, then every step from x0 + s Σ (w* - w) x_0^i; four steps of a chain of three are three."""
    p = problem(5, 2, eta, FLOW.grid(8)[3:] if pictured else None)
    steps, picture = 5, 0.4 * torch.ones(2, *SHAPE, dtype=torch.float64)
    method = Method("lidar", 2, engine=Lookahead(4, 2, 0.5, 0.8))
    begun = start_from(p, method, picture) if pictured else start(p, method)
    states = list(sample(p, method, begun))
    few = [p.grid[0], p.grid[2], p.grid[5]]  # round(2.5) is 2
    infos = [info for _, info in states]
    assert len(states) == 1 + steps == method.engine.ticks(steps) and states[0][0] is begun
    assert [(i.step, i.evaluations, i.values) for i in infos] == [(0, 2 * 4 * 2, 8)] + [(k, 4, 0) for k in range(1, 6)]
    assert infos[0].std == 0.0 and [state.step for state, _ in states] == list(range(6))
    for row, w in enumerate(p.who):
        ahead = normal(w, 4, 0, "lookahead")
        if pictured:
            ahead = p.grid[0].alpha * picture[row] + p.grid[0].sigma * ahead
        for t, s in itertools.pairwise(few):
            ahead = step(ahead, t, s, 0.0)[0]
        value = reward(ahead, torch.full((4,), row))
        assert torch.allclose(infos[0].value[row], value)
        for j in range(2):
            x = begun.x[row, j]
            for i in range(steps):
                t, s = p.grid[i], p.grid[i + 1]
                near = -((x - t.alpha * ahead).flatten(1) ** 2).sum(1) / (2 * t.sigma**2)
                shift = (near + value / 0.5).softmax(0) - near.softmax(0)
                x0 = x0_of(x, t) + 0.8 * (shift[:, None, None, None] * ahead).sum(0)
                a = t.alpha / s.alpha
                std = eta * s.sigma * math.sqrt(t.sigma**2 - a**2 * s.sigma**2) / t.sigma
                x = s.alpha * x0 + math.sqrt(s.sigma**2 - std**2) * (x - t.alpha * x0) / t.sigma
                x = x + std * normal(w, 2, i + 1)[j]
                assert torch.allclose(states[i + 1][0].x[row, j], x) and infos[i + 1].std == pytest.approx(std)


def test_looking_ahead_takes_no_more_steps_than_there_are():
    short = problem(3, 1, 0.0)
    ends = [next(sample(short, Method("lidar", engine=Lookahead(4, few, 0.5, 1.0))))[1] for few in (3, 9)]
    assert torch.equal(ends[0].value, ends[1].value) and ends[1].evaluations == 12
    one = Lookahead()
    assert (one.samples, one.steps, one.beta, one.scale) == (8, 3, 1.0, 1.0)
    assert (one.needs_reward_gradient, one.stochastic, one.may_cost_less) == (False, False, False)
    told = one._guided(
        torch.zeros(1, 1, 2), Prediction(*torch.ones(3, 1, 1, 2)), Time(1, 0.6, 0.8), torch.zeros(1, 3, 2), torch.ones(1, 3)
    )
    assert torch.equal(told.correction, torch.ones(1, 1, 2))


# Optimised noise


def chained(x, w, p: Problem):
    """x_0 of one image's x_T with the chain's own keyed noise."""
    for i in range(len(p.grid) - 1):
        mean, std = step(x, p.grid[i], p.grid[i + 1], p.eta)
        x = mean + (std * normal(w, 1, i + 1)[0] if std else 0.0)
    return x


@pytest.mark.parametrize("pictured", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize(
    ("rule", "prior", "clip", "renormalise"),
    [("nesterov", 0.05, 0.4, False), ("nesterov", 0.0, 9.0, False), ("nesterov", 0.0, None, False), ("adam", 0.3, None, True)],
)
def test_optimised_noise(rule, prior, clip, renormalise, eta, pictured):
    """g of r and of log p(|n|), clipped by image; Nesterov or Adam written out; the best picture of four kept."""
    p = problem(3, 2, eta, FLOW.grid(6)[3:] if pictured else None, chunk=1)
    picture, rate = 0.4 * torch.ones(2, *SHAPE, dtype=torch.float64), 0.3
    method = Method("reno", engine=Optimise(4, rate, rule, prior, clip, renormalise))
    begun = start_from(p, method, picture) if pictured else start(p, method)
    states = list(sample(p, method, begun))
    sigma = p.grid[0].sigma if pictured else 1.0
    around = p.grid[0].alpha * picture if pictured else 0 * picture
    assert [(s.step, i.step, i.evaluations, i.values) for s, i in states] == [
        (0, 1, 12, 2),
        (0, 2, 12, 2),
        (0, 3, 12, 2),
        (3, 4, 6, 2),
    ]
    for row, w in enumerate(p.who):
        n = (begun.x[row, 0] - around[row]) / sigma
        speed, square, best = torch.zeros_like(n), torch.zeros_like(n), None
        for k, (state, info) in enumerate(states):
            with torch.enable_grad():
                at = n.detach().requires_grad_(True)
                clean = chained(around[row] + sigma * at, w, p)
                value = reward(clean[None], torch.tensor([row]))[0]
                (g,) = torch.autograd.grad(value, at)
            value, clean, before = value.item(), clean.detach(), n
            if best is None or value > best[0]:
                best = value, clean
            assert info.value[row].tolist() == pytest.approx([value]) and info.value.shape == (2, 1)
            assert torch.allclose(info.x0[row, 0], clean) and torch.allclose(state.x[row, 0], best[1])
            if k == 3:
                assert info.guided is None
                break
            g = g + prior * ((D - 1) / n.square().sum() - 1) * n
            if clip is not None:
                g = g * min(1.0, clip / g.norm().item())
            if rule == "nesterov":
                speed = 0.9 * speed + g
                n = n + rate * (g + 0.9 * speed)
            else:
                speed, square = 0.9 * speed + 0.1 * g, 0.999 * square + 0.001 * g**2
                n = n + rate * speed / (1 - 0.9 ** (k + 1)) / ((square / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            if renormalise:
                n = n * math.sqrt(D) / n.norm()
            assert info.guided[row].tolist() == pytest.approx([(n - before).square().mean().sqrt().item()], rel=1e-4)
    assert states[-1][0].x.shape == (2, 1, *SHAPE)


def test_of_equal_pictures_the_first_is_kept_and_a_single_image_is_on_the_sphere():
    engine = Optimise(3, 0.1, "nesterov", 0.5, None, renormalise=True)
    ((one, first), (two, _), (three, last)) = sample(
        problem(2, 1, value=lambda x0, rows: 0 * x0.sum((1, 2, 3))), Method("x", engine=engine)
    )
    assert torch.equal(one.x, two.x) and torch.equal(one.x, three.x) and not torch.allclose(first.x0, last.x0)


def test_processes_share_what_is_looked_at():
    class Over:
        asked: list[int] = []  # noqa: RUF012

        def map_rows(self, function, *columns):
            self.asked.append(len(columns[0]))
            return function(*columns)

    p = replace(problem(2, 2), over=Over())
    for engine, rows in ((NoiseSearch(1, 3, 0.5), [2, 6]), (Budget(1), [2, 2])):
        Over.asked.clear()
        list(sample(p, Method("x", engine=engine)))
        assert Over.asked == rows


def test_probes_of_optimised_noise_are_keyed_by_image_and_iteration():
    """r of a black box: Σ_j (r(x_0 + .2 z) - r(x_0 - .2 z)) / .4 z / N', pulled back through the chain; two probes of each."""
    asked = []

    def blind(x0, rows):
        asked.append(len(x0))
        return reward(x0.detach(), rows) + x0.detach().pow(3).sum((1, 2, 3))

    def worth(x0, row):
        return blind(x0[None], torch.tensor([row])).item()

    p = problem(2, 2, 0.0, value=blind)
    engine = Optimise(2, 0.1, "nesterov", 0.0, None, probes=2, sigma=0.2)
    states = list(sample(p, Method("reno", engine=engine)))
    assert not engine.needs_reward_gradient and Optimise().needs_reward_gradient and sum(asked) == 2 + 2 * 4 + 2
    assert states[0][1].value.flatten().tolist() == pytest.approx([worth(states[0][1].x0[row, 0], row) for row in range(2)])
    for row, w in enumerate(p.who):
        n = normal(w, 1, 0)[0]
        with torch.enable_grad():
            at = n.detach().requires_grad_(True)
            clean = chained(at, w, p)
            z = torch.randn((2, *SHAPE), generator=rng.generator(w, 0, 0, "probe/clean0/optimise")).double()
            slope = sum(
                (worth(clean.detach() + 0.2 * one, row) - worth(clean.detach() - 0.2 * one, row)) / 0.4 * one for one in z
            )
            (g,) = torch.autograd.grad((clean * slope / 2).sum(), at)
        assert torch.allclose(states[1][1].x0[row, 0], chained(n + 0.1 * 1.9 * g, w, p), rtol=1e-6)


def test_optimised_noise_as_it_is_unset():
    one = Optimise()
    settings = (one.iterations, one.rate, one.rule, one.prior, one.clip, one.renormalise, one.probes, one.sigma)
    assert settings == (50, 5.0, "nesterov", 0.01, 0.1, False, None, 0.1) and one.ticks(9) == 50
    assert (one.stochastic, one.may_cost_less, one.parallel) == (False, False, False)
    Optimise(2)
    with pytest.raises(TiltingError, match="at least 2, the first being of x_T as it is, not 1"):
        Optimise(1)


def test_norms_and_the_prior_of_them():
    """|(1, 2, 2)| = 3 of every row by itself; (d - 1) log 3 - 9 / 2, d = 3."""
    x = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 1.0]]).reshape(2, 3, 1)
    assert norms(x).shape == (2, 1, 1) and norms(x).flatten().tolist() == [3.0, 1.0]
    assert log_norm(x).tolist() == pytest.approx([2 * math.log(3) - 4.5, -0.5])


def test_where_a_chain_begins():
    p = problem(3, 2, grid=FLOW.grid(6)[3:])
    picture = torch.arange(2.0, dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, *SHAPE)
    method = Method("reno")
    plain, around = Begin.of(p, start(p, method)), Begin.of(p, start_from(p, method, picture))
    assert (
        plain.around is None
        and plain.sigma == 1.0
        and torch.equal(plain.at(plain.noise[1:], torch.tensor([1])), plain.noise[1:])
    )
    assert around.sigma == 0.5 and torch.allclose(around.noise, plain.noise, atol=1e-6)
    assert torch.allclose(around.at(2 * around.noise[1:], torch.tensor([1])), 0.5 + plain.noise[1:], atol=1e-6)


def test_a_rollout_is_the_chain_of_its_images():
    p = problem(3, 3, 0.8)
    x = torch.stack([normal(w, 1, 0)[0] for w in p.who])
    rows = torch.tensor([2, 0])
    found = rollout(p, x[rows], rows)
    assert torch.allclose(found, torch.stack([chained(x[r], p.who[r], p) for r in rows.tolist()]))


# Searches


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("pictured", [False, True])
def test_search_of_the_noise(pictured, chunk):
    """√(1 - λ²) n + λ z; a pivot moves where the best of a round is better than all before; ties stay."""
    p = problem(3, 3, 0.6, FLOW.grid(6)[3:] if pictured else None, chunk)
    picture = 0.4 * torch.ones(3, *SHAPE, dtype=torch.float64)
    method = Method("zo", engine=NoiseSearch(4, 2, 0.6))
    begun = start_from(p, method, picture) if pictured else start(p, method)
    states = list(sample(p, method, begun))
    around, sigma = (p.grid[0].alpha * picture, p.grid[0].sigma) if pictured else (0 * picture, 1.0)
    assert [(s.step, i.step, i.evaluations, i.values, i.std) for s, i in states] == [
        (3 if k == 4 else 0, k + 1, 3 * 3 * (2 if k else 1), 3 * (2 if k else 1), 0.0) for k in range(5)
    ]
    assert method.engine.ticks(3) == 5 and states[-1][0].x.shape == (3, 1, *SHAPE)
    moved = 0
    for row, w in enumerate(p.who):
        pivot = (begun.x[row, 0] - around[row]) / sigma
        best, kept = -math.inf, None
        for k, (state, info) in enumerate(states):
            tried = [0.8 * pivot + 0.6 * z for z in normal(w, 2, k, "neighbour")] if k else [pivot]
            ends = [chained(around[row] + sigma * n, w, p) for n in tried]
            values = [worth(end, row) for end in ends]
            top = values.index(max(values))
            assert info.value[row].tolist() == pytest.approx(values, abs=1e-6)
            assert torch.allclose(info.x0[row], torch.stack(ends), atol=1e-6)
            assert info.parents[row].tolist() == [top if values[top] > best else -1]
            if values[top] > best:
                best, pivot, kept, moved = values[top], tried[top], ends[top], moved + (k > 0)
            assert torch.allclose(state.x[row, 0], kept, atol=1e-6)
    assert 0 < moved < 12
    tied = list(sample(problem(2, 2, value=lambda x0, rows: 0 * rows), Method("zo", engine=NoiseSearch(1, 2, 0.6))))
    assert tied[1][1].parents.flatten().tolist() == [-1, -1] and torch.equal(tied[0][0].x, tied[1][0].x)


def test_a_search_as_it_is_unset():
    noise, path = NoiseSearch(), PathSearch()
    assert (noise.iterations, noise.neighbours, noise.radius) == (4, 4, 0.5)
    assert (path.branches, path.forward, path.backward, path.start) == (2, 1, 2, 0.2)
    for one in (noise, path):
        assert (one.needs_reward_gradient, one.stochastic, one.may_cost_less) == (False, False, False)


@pytest.mark.parametrize(
    ("search", "steps", "begin", "rounds"),
    [
        (PathSearch(2, 1, 2, 0.2), 10, 2, [(1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8), (7, 9), (8, 10)]),
        (PathSearch(2, 2, 5, 0.5), 8, 4, [(2, 7), (5, 8)]),
        (PathSearch(2, 4, 5, 0.1), 6, 1, [(0, 5), (1, 6)]),
        (PathSearch(2, 1, 2, 0.99), 4, 3, [(2, 4)]),
        (PathSearch(2, 1, 2, 0.01), 2, 1, [(0, 2)]),
    ],
)
def test_rounds_of_a_search_over_paths(search, steps, begin, rounds):
    assert search.begin(steps) == begin and search.rounds(steps) == rounds and search.ticks(steps) == 1 + len(rounds)
    assert search.ticks(1) == 1
    for forward in (search.backward, search.backward + 1):
        with pytest.raises(TiltingError, match="more steps than it noises back"):
            replace(search, forward=forward)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_search_over_paths(eta):
    """Each of two noised back by a x + √(σ² - a² σ_s²) z, three ways on from each, the best two estimates kept in order."""
    steps, p = 5, problem(5, 2, eta)
    method = Method("paths", 2, engine=PathSearch(3, 1, 3, 0.4))
    states = list(sample(p, method))
    rounds = [(1, 4), (3, 5)]
    assert method.engine.rounds(steps) == rounds
    paid = [(2, 8, 0), (4, 2 * 6 * 3, 12), (5, 2 * 6 * 2, 12)]
    assert [(info.step, info.evaluations, info.values) for _, info in states] == paid
    assert [state.step for state, _ in states] == [2, 4, 5] and [info.std for _, info in states] == [0.0] * 3
    for row, w in enumerate(p.who):

        def draw(xs, first, last, purpose, w=w):
            for i in range(first, last):
                noise = normal(w, len(xs), i + 1, purpose)
                clean = [x0_of(x, p.grid[i]) for x in xs]
                moved = [step(x, p.grid[i], p.grid[i + 1], eta) for x in xs]
                xs = [mean + std * z for (mean, std), z in zip(moved, noise, strict=True)]
            return xs, clean

        xs, clean = draw(list(normal(w, 2, 0)), 0, 2, "begin")
        assert torch.allclose(states[0][1].x0[row], torch.stack(clean)) and states[0][1].value is None
        at = 2
        for k, (first, last) in enumerate(rounds):
            t, s = p.grid[first], p.grid[at]
            a, noise = t.alpha / s.alpha, normal(w, 6, first, f"back{k}")
            spread = math.sqrt(t.sigma**2 - (a * s.sigma) ** 2)
            wide, clean = draw([a * xs[j // 3] + spread * noise[j] for j in range(6)], first, last, f"path{k}")
            values = [worth(one, row) for one in clean]
            best = sorted(range(6), key=lambda j: -values[j])[:2]
            xs, at, (state, info) = [wide[j] for j in best], last, states[k + 1]
            assert info.value[row].tolist() == pytest.approx(values) and info.parents[row].tolist() == best
            assert torch.allclose(info.x0[row], torch.stack(clean)) and torch.allclose(state.x[row], torch.stack(xs))
    tied = list(sample(problem(5, 2, value=lambda x0, rows: 0.0 * rows), method))
    assert all(info.parents.tolist() == [[0, 1]] * 2 for _, info in tied[1:])


def test_a_path_of_one_step_is_drawn():
    p = problem(1, 2, 0.6)
    ((state, info),) = list(sample(p, Method("paths", 2, engine=PathSearch())))
    assert (state.step, info.step, info.evaluations, info.values, info.std) == (1, 1, 4, 0, 0.0) and info.value is None
    begun = torch.stack([normal(w, 2, 0) for w in p.who])
    assert torch.allclose(state.x, x0_of(begun, p.grid[0])) and torch.allclose(info.x0, state.x)
