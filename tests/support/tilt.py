"""The plane's mixture, its chain simulated a second time, and rewards whose tilt is known."""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch

from support.chains import DIFFUSION
from tilting import rng, weights
from tilting.method import Method
from tilting.oracle.mixture import Mixture, MixtureModel
from tilting.sample import Problem, finish, sample, start
from tilting.schedule import Schedule
from tilting.types import Time

SLOPE, BETA, STEPS = torch.tensor([0.5, -0.3], dtype=torch.float64), 0.4, 20


def reward(x0, rows):
    return x0 @ SLOPE


@cache
def chain(steps: int, count: int = 100_000) -> torch.Tensor:
    """Draws of the T-step ancestral chain."""
    mixture, grid = plane(), MixtureModel(plane()).schedule.grid(steps)
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        x0 = mixture.tweedie(x, Time(t.t, t.alpha, t.sigma))
        a = t.alpha / s.alpha
        v = t.sigma**2 - a**2 * s.sigma**2
        mean = (s.alpha * v * x0 + a * s.sigma**2 * x) / t.sigma**2
        x = mean + s.sigma * math.sqrt(v) / t.sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def plane() -> Mixture:
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-1.5, 0.5], [1.5, 1.0], [0.3, -1.8]], dtype=torch.float64),
        torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64),
    )


def tilted_chain(steps: int, count: int = 100_000) -> tuple[float, torch.Tensor, torch.Tensor]:
    """log Z, mean and second moments of the chain's tilt, by importance weighting."""
    x = chain(steps, count)
    log_w = reward(x, None) / BETA
    w = weights.normalise(log_w)
    return weights.log_mean(log_w).item(), w @ x, torch.einsum("n,ni,nj->ij", w, x, x)


CURVATURE = 0.6


def curved_plane(x0, rows):
    """A curved reward."""
    return x0 @ SLOPE - CURVATURE / 2 * x0.square().sum(1)


def problem(base: Mixture, steps: int, images: int, value=reward, schedule: Schedule = DIFFUSION, seed: int = 0, **options):
    who = [rng.Identity(seed, "exact", i) for i in range(images)]
    fixed = {"eta": 1.0, "chunk": 10**6, "dtype": torch.float64, **options}
    return Problem(MixtureModel(base).denoiser(), schedule.grid(steps), who, (2,), value, **fixed)


def end_of(p: Problem, method: Method, latents=None):
    for state, _ in sample(p, method, None if latents is None else start(p, method, latents)):  # noqa: B007
        pass
    return finish(p, method, state)
