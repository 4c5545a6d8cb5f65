"""The loop on the analytic model: a problem in the plane, its rewards, and a run of it."""

from __future__ import annotations

from dataclasses import replace

import torch

from tilting import rng
from tilting.oracle.mixture import Mixture, MixtureModel
from tilting.sample import Method, Problem, State, sample
from tilting.schedule import Schedule, scaled_linear

DIFFUSION, FLOW = Schedule("v_prediction", scaled_linear(zero_snr=True)), Schedule("flow")
REFERENCE = Mixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [[0.2, 0.1]], [1.6])))
AIM = torch.tensor([0.7, -0.4], dtype=torch.float64)


def linear(x0, rows):
    """A differentiable reward that also depends on which image it is."""
    return x0 @ AIM + 0.01 * rows


def who(count: int) -> list[rng.Identity]:
    return [rng.Identity(7, f"prompt {i % 2}", i // 2) for i in range(count)]


def problem(mixture, steps=10, images=1, schedule=DIFFUSION, **options) -> Problem:
    model = MixtureModel(mixture, schedule)
    base = Problem(
        model.denoiser(REFERENCE, 3.0), schedule.grid(steps), who(images), (2,), linear, 1.0, 3.0, 10**6, dtype=torch.float64
    )
    if "cfg" not in options:
        return replace(base, **options)
    return replace(base, **{"denoise": model.denoiser(), **options})


def run(p: Problem, method: Method, state: State | None = None) -> tuple[State, list]:
    infos = []
    for state, info in sample(p, method, state):  # noqa: B007, B020
        infos.append(info)
    assert state is not None
    return state, infos


def energy_distance(x, y):
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def per_prompt(x0, rows):
    return x0 @ AIM


class Counter:
    def __init__(self, inner):
        self.inner, self.rows, self.most = inner, 0, 0

    def __call__(self, x, *rest):
        self.rows, self.most = self.rows + len(x), max(self.most, len(x))
        return self.inner(x, *rest)
