"""What a line does, by hand: one move, one draw, where a slip would still steer somewhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import tilting as tl
from support.chains import FLOW, problem, run, who
from tilting import presets, rng
from tilting.engines.optimise import Optimise, log_norm
from tilting.guidance.kernel import Clean, Kernel
from tilting.guidance.value_and_grad import Estimator, GradientContext
from tilting.method import Method
from tilting.sample import Problem, sample, start_from
from tilting.schedule import Schedule, scaled_linear, transition
from tilting.select import Multinomial
from tilting.types import Prediction


def test_a_winner_draws_from_where_its_gradient_took_it(mixture):
    """Of one particle the winner is the particle: CoDeX's gradients after selecting are its gradients before."""
    p = problem(mixture, 8, 3)
    winner, every, without = (
        run(p, preset.build(8))[0].x
        for preset in (
            presets.codex(1, block=2, gradient_on="winner", window=(1.0, 0.0)),
            presets.codex(1, block=2, gradient_block=2, window=(1.0, 0.0)),
            presets.code(1, block=2),
        )
    )
    assert torch.allclose(winner, every, atol=1e-12)
    assert not torch.allclose(winner, without, atol=1e-3)


def test_uniforms_are_of_their_image_step_and_purpose():
    draws = [rng.uniform(who(2), 4, 1), rng.uniform(who(2), 4, 2), rng.uniform(who(2), 4, 1, "final")]
    assert len({tuple(row) for row in torch.cat(draws).tolist()}) == 6
    assert torch.equal(draws[0][1:], rng.uniform(who(2)[1:], 4, 1))


def test_a_temperature_falls_geometrically_to_its_end():
    assert [Multinomial(1.0, 0.01).temperature(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.1, 0.01])


def test_a_smoothed_probe_keeps_to_the_chunk(mixture):
    """Two probes of four copies each, both ways: never more than eight estimates are scored at once."""
    sizes = []

    def value(x0, rows):
        sizes.append(len(x0))
        return x0.sum(1)

    model = problem(mixture, 4)
    site = GradientContext(
        torch.zeros(3, 2, dtype=torch.float64),
        model.grid[1],
        torch.arange(3),
        model.denoise,
        value,
        1.0,
        lambda purpose, count: torch.randn(3, count, 2, dtype=torch.float64),
        8,
    )
    Estimator(probes=2, samples=4, radius=0.5).clean(site, site.x)
    assert max(sizes) == 8
    assert sum(sizes) == 3 * 2 * 2 * 4


def test_steps_on_the_estimate_probe_in_directions_of_their_own():
    """With one probe a step, six steps up a linear reward do not all move along one direction."""
    seen, who_ = [], who(1)

    def value(x0, rows):
        seen.append(x0)
        return x0.sum(1)

    grid, rows, x = FLOW.grid(4), torch.arange(1), torch.zeros(1, 64, dtype=torch.float64)
    site = GradientContext(
        x,
        grid[2],
        rows,
        lambda x, t, rows: Prediction(x, x, x),
        value,
        noise=lambda purpose, count: rng.normal(who_, count, (64,), 1, purpose),
    )
    Clean(1.0, 6, estimator=Estimator(probes=1))(Kernel(Prediction(x, x, x), grid[2], grid[3], 1.0), None, site)
    directions = torch.stack([torch.nn.functional.normalize(pair[0] - pair[1], dim=0) for pair in seen])
    assert len(seen) == 6
    assert (directions @ directions.T - torch.eye(6)).abs().max() < 0.5  # four standard deviations of a chance cosine


def test_the_last_step_of_a_rollover_draws_what_the_chain_draws():
    """Where the grid ends with noise (final ᾱ < 1, as SD 1.5's DDIM), x_0 has the chain's spread around the mean."""
    grid = replace(Schedule("epsilon", scaled_linear()), final=0.9).grid(2)

    def denoise(x, t, rows):
        return Prediction(x / t.sigma, 0 * x, 0 * x)  # a point mass at 0

    p = Problem(denoise, grid, who(4000), (1,), lambda x0, rows: 0 * x0[:, 0], 1.0, 1.0, 4000, dtype=torch.float64)
    ends = run(p, presets.rbf(1).build(2))[0].x[:, 0, 0]
    base = run(replace(p, value=None), presets.base().build(2))[0].x[:, 0, 0]
    kernel = transition(denoise(torch.ones(1, 1, dtype=torch.float64), grid[1], None), grid[1], grid[2], 1.0)
    assert kernel.std > 0.2
    assert abs(ends.std() / base.std() - 1) < 0.06  # five standard errors of a ratio


def optimised(engine: Optimise, shape=(5,), slope=0.0) -> list[torch.Tensor]:
    """x_T of every iteration: the chain is one step whose estimate is its noise."""
    seen = []

    def value(x0, rows):
        seen.append(x0.detach().clone())
        return slope * x0.sum(1)

    p = Problem(
        lambda x, t, rows: Prediction(x, x, 0 * x), FLOW.grid(1), who(2), shape, value, 0.0, 1.0, 8, dtype=torch.float64
    )
    run(p, Method("reno", engine=engine))
    return seen


def test_reno_climbs_the_prior_of_its_noise():
    """Nesterov's first update is (1 + .9) lr g, g = w ∇ log p(|x|) = w ((d - 1) / |x|² - 1) x."""
    first, second = optimised(Optimise(2, 0.1, "nesterov", 0.5, None))
    slope = 0.5 * ((5 - 1) / first.square().sum(1, keepdim=True) - 1) * first
    assert torch.allclose(second - first, 1.9 * 0.1 * slope)
    assert (log_norm(second) > log_norm(first)).all()


def test_doodl_stays_on_the_sphere_of_noise():
    first, second, third = optimised(Optimise(3, 0.1, "adam", 0.0, None, renormalise=True), slope=1.0)
    for x in (second, third):
        assert torch.allclose(x.norm(dim=1), torch.full((2,), math.sqrt(5), dtype=torch.float64))
    assert (second.sum(1) / second.norm(dim=1) > first.sum(1) / first.norm(dim=1)).all()


@pytest.mark.parametrize("shade", [0.0, 3.0])
def test_from_a_picture_the_noise_alone_is_brought_to_the_sphere(shade):
    """x = α c + σ n: at a rate of next to nothing a renormalised n moves x by what |n| was off, and c stays as it is."""
    seen = []

    def value(x0, rows):
        seen.append(x0.detach().clone())
        return x0.sum(1)

    grid = FLOW.grid(4)[2:]
    p = Problem(lambda x, t, rows: Prediction(x, x, 0 * x), grid, who(2), (5,), value, 0.0, 1.0, 8, dtype=torch.float64)
    clean = torch.full((2, 5), shade, dtype=torch.float64)
    method = Method("doodl", engine=Optimise(3, 1e-12, "adam", 0.0, None, renormalise=True))
    first = start_from(p, method, clean).x[:, 0]
    noise = (first - grid[0].alpha * clean) / grid[0].sigma
    for _ in sample(p, method, start_from(p, method, clean)):
        pass
    wanted = grid[0].alpha * clean + grid[0].sigma * noise * (math.sqrt(5) / noise.norm(dim=1, keepdim=True))
    chain = seen[0] / first  # one factor: the chain is linear in x here
    assert torch.allclose(chain, chain[:1, :1].expand_as(chain))
    assert torch.allclose(seen[1] / chain, wanted) and torch.allclose(seen[2] / chain, wanted)


def test_probes_climb_a_black_box_through_the_chain():
    """The zero-order ∇_{x_0}, pulled back through the chain itself: of many probes the update of the reward's own gradient."""
    plain = optimised(Optimise(2, 0.1, "nesterov", 0.0, None), slope=1.0)
    probed = optimised(Optimise(2, 0.1, "nesterov", 0.0, None, probes=4000), slope=1.0)
    assert torch.equal(probed[0], plain[0])
    step, wanted = probed[-1] - probed[0], plain[1] - plain[0]
    assert torch.nn.functional.cosine_similarity(step, wanted).min() > 0.99
    assert (step.norm(dim=1) / wanted.norm(dim=1) - 1).abs().max() < 0.1


def test_prompt_draws_each_template(small):
    """Every particle is drawn with its own words and scored by the plain ones."""
    drawn, scored = [], []

    class Heard:
        def __getattr__(self, name):
            return getattr(small, name)

        def denoiser(self, prompts, *more):
            drawn.append(list(prompts))
            return small.denoiser(prompts, *more)

    def score(images, prompts):
        scored.extend(prompts)
        return images.mean((1, 2, 3))

    tl.generate(Heard(), ["a fox"], reward=score, method=presets.prompt("{}; a beautiful {};{} at night"), steps=2)
    assert drawn == [["a fox", "a beautiful fox", "a fox at night"]]
    assert set(scored) == {"a fox"}
