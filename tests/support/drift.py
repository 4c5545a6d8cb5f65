"""A small trained push of the analytic model: its world, its gradient and a run of training."""

from __future__ import annotations

import torch
from torch import nn

from tilting.objectives.batch import TrainBatch
from tilting.oracle.mixture import MixtureModel
from tilting.rng import Identity
from tilting.schedule import Schedule, scaled_linear
from tilting.training.average import Average
from tilting.training.checkpoint import read, write
from tilting.training.loop import Optimiser, TrainState, train
from tilting.types import Prediction

ZERO = Schedule("v_prediction", scaled_linear(zero_snr=True))
AIM = torch.tensor([0.7, -0.4], dtype=torch.float64)
STEPS = 8


class Drift(nn.Module):
    """eps_θ = eps_base + θ-dependent push of x0: a little network of (x, t), zero at first."""

    def __init__(self, width: int = 32):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()).double()
        self.last = nn.Linear(width, 2).double()
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x, t):
        here = torch.tensor([t.alpha, t.sigma], dtype=x.dtype).expand(len(x), 2)
        return self.last(self.inner(torch.cat([x, here], 1)))


def make(mixture, net, images=16, steps=STEPS, eta=1.0, value=None, seed=0, step=0, prompts=4, **options) -> TrainBatch:
    base = MixtureModel(mixture, ZERO).denoiser()

    def denoise(x, t, rows):
        eps, x0, c = base(x, t, rows)
        push = net(x, t)
        return Prediction(eps - t.alpha * push, x0 + t.sigma * push, c)  # consistent with x = α x0 + σ eps

    who = [Identity(seed, f"prompt {i % prompts}", step * images + i) for i in range(images)]
    return TrainBatch(
        denoise,
        base,
        denoise,
        base,
        value or (lambda x0, rows: x0 @ AIM),
        ZERO.grid(steps),
        who,
        (2,),
        eta,
        step,
        seed,
        dtype=torch.float64,
        **{"kind": ZERO.kind, **options},
    )


def moved(net, scale=0.3):
    """The same network with its last layer away from zero."""
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        net.last.weight.copy_(scale * torch.randn(net.last.weight.shape, generator=gen, dtype=torch.float64))
        net.last.bias.copy_(scale * torch.randn(2, generator=gen, dtype=torch.float64))
    return net


def gradient(objective, world, net):
    net.zero_grad()
    for loss in objective(world):
        loss.value.backward()
    return torch.cat(
        [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel(), dtype=torch.float64) for p in net.parameters()]
    )


def run(objective, mixture, steps, images=16, value=None, eta=1.0, folder=None, until=None):
    net, optimiser = Drift(), Optimiser(rate=5e-3, weight_decay=0.0)
    parameters = dict(net.named_parameters())
    averages = {name: Average(parameters, decay) for name, decay in objective.averages().items()}
    training = TrainState(parameters, optimiser.build(list(parameters.values())), averages=averages)
    if folder is not None and (held := read(folder)) is not None:
        training.restore(held)

    def world_of(step, memory):
        return make(mixture, net, images=images, eta=eta, value=value, step=step, memory=memory)

    reports = []
    for report in train(training, objective, world_of, optimiser, steps):
        reports.append(report)
        if folder is not None:
            write(folder, training.saved())
        if until is not None and report.step == until:
            break
    return net, reports
