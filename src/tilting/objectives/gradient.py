"""Objectives that back-propagate the reward through sampling: draft, draft-k, draft-lv, refl, alignprop.

draft       loss = -mean r(D(x_0(θ))) + β KL                      Clark et al. 2024, Alg. 1 (its last line must read θ + η g)
draft-k     the same, gradients in the last K steps only
draft-lv    draft-1, and n more re-noised copies of stop_grad(x_0) at the last grid time, gradients summed
refl        the one-step estimate x0 at a random one of the last m steps   Xu et al. 2023; φ(r) = relu(2 - r) in its code
alignprop   draft with a random truncation                        Prabhudesai et al. 2023
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tilting.objectives.batch import Loss, World
from tilting.objectives.rollout import Point, density_steps, rollout
from tilting.objectives.truncate import Truncation
from tilting.schedule import add_noise, transition
from tilting.types import TiltingError


def dropped(value: Tensor, share: float, world: World) -> Tensor:
    """Each image's reward left out with that probability, the rest scaled up. (What B.8 of Clark et al. 2024 drops are units
    inside the reward's network: `tilting.models.adapt.with_dropout`.)"""
    if share == 0:
        return value
    keep = torch.rand(len(world.prompts), generator=world.generator("dropout"), device="cpu") >= share
    return value * world.mine(keep).to(value) / (1 - share)


def check_dropout(share: float) -> None:
    """Refuse to leave out every reward. Raises TiltingError."""
    if not 0 <= share < 1:
        raise TiltingError(f"dropout must be at least 0 and below 1, not {share}")


def eps_distance(world: World, point: Point) -> Tensor:
    """(eps_θ - eps_base)² at the state a step started from, under CFG: its mean over images and latent dimensions."""
    with torch.no_grad():
        base = world.base(point.x, point.t, world.rows).eps
    return (world.denoise(point.x, point.t, world.rows).eps - base).square().mean()


@dataclass(frozen=True)
class Draft:
    """DRaFT and its truncations.

    The numbers call the KL "kl" where all steps carry gradient, else "kl_open": it is of these steps alone, and goes up and
    down with their number, for the frozen model is not evaluated at the others.

    Attributes:
        truncation: which steps carry gradient.
        kl: β of the path KL to the frozen model, over the steps that carry gradient (needs eta > 0); 0 leaves it out.
        eps_kl: weight of the mean over latent dimensions of (eps_θ - eps_base)² at the last step; B.8's β times the dimensions.
        dropout: share of the images whose reward is left out of a step.
        name: of the objective.
    """

    truncation: Truncation = field(default=Truncation("all"))
    kl: float = 0.0
    eps_kl: float = 0.0
    dropout: float = 0.0
    name: str = "draft"
    needs_gradient = True
    several = False
    group = 1

    def __post_init__(self) -> None:
        check_dropout(self.dropout)

    def __call__(self, world: World) -> Iterator[Loss]:
        # With a KL the steps without density, the last, are the frozen model's: K counts those that can be trained.
        trained = len(density_steps(world)) if self.kl else world.steps
        if not trained:
            raise TiltingError(f"{self.name}.kl needs eta above 0 and at least 2 steps: a deterministic chain has no density")
        mask = torch.ones(world.steps, dtype=torch.bool, device="cpu")
        mask[:trained] = self.truncation.mask(trained, world.generator("truncation"))
        path = rollout(world, mask, kl=bool(self.kl))
        value = world.value(path.clean, world.rows)
        numbers = {"reward": value.mean().item(), "open_steps": float(mask.sum())}
        loss = -dropped(value, self.dropout, world).mean()
        if path.kl is not None:
            loss = loss + self.kl * path.kl.mean()
            numbers["kl" if self.truncation.rule == "all" else "kl_open"] = path.kl.mean().item()
        if self.eps_kl:
            far = eps_distance(world, path.points[-1])
            loss = loss + self.eps_kl * far
            numbers["eps_kl"] = far.item()
        yield Loss(loss, numbers)


@dataclass(frozen=True)
class DraftLv:
    """DRaFT-LV: the variance of DRaFT-1's gradient lowered by n re-noised copies of the finished sample.

    x_1' = α_1 stop_grad(x_0) + σ_1 ε at the last grid time, one more step with gradient, and the gradients of all n + 1
    rewards summed.
    n + 1 reward calls per image and step.

    Attributes:
        copies: n; 0 is DRaFT-1.
        single: back-propagate the one reward gradient ∇_x r(x_0) through every copy (C.1: unstable, kept as a negative result);
            the gradient at the latents, so that the decoder is paid once too.
        dropout: share of rewards left out of a step.
        eps_kl: weight of the mean over latent dimensions of (eps_θ - eps_base)² at the last step; B.8's β times the dimensions.
        name: of the objective.
    """

    copies: int = 2
    single: bool = False
    dropout: float = 0.0
    eps_kl: float = 0.0
    name: str = "draft-lv"
    needs_gradient = True
    several = False
    group = 1

    def __post_init__(self) -> None:
        check_dropout(self.dropout)

    def __call__(self, world: World) -> Iterator[Loss]:
        mask = torch.arange(world.steps, device="cpu") == world.steps - 1
        path = rollout(world, mask)
        t, s = world.grid[-2], world.grid[-1]
        value = world.value(path.clean, world.rows)
        numbers = {"reward": value.mean().item()}
        value = dropped(value, self.dropout, world)
        slope = torch.autograd.grad(value.sum(), path.clean, retain_graph=True)[0] if self.single else None
        loss = -value.mean()
        for j in range(self.copies):
            noisy = add_noise(path.clean.detach(), world.noise(world.steps, f"copy{j}"), t)
            clean = transition(world.denoise(noisy, t, world.rows), t, s, world.eta).mean
            if slope is not None:
                loss = loss - (slope.detach() * clean).flatten(1).sum(1).mean()
            else:
                loss = loss - dropped(world.value(clean, world.rows), self.dropout, world).mean()
        if self.eps_kl:
            far = eps_distance(world, path.points[-1])
            loss = loss + self.eps_kl * far
            numbers["eps_kl"] = far.item()
        yield Loss(loss, numbers)


@dataclass(frozen=True)
class Refl:
    """ReFL: the reward of the one-step estimate at a random one of the last m steps.

    Its code: DDPM 40 steps, a step in 30..39, no CFG, loss 1e-3 relu(2 - r), lr 1e-5, the full UNet. With m = 1 it is
    DRaFT-1, when the last grid value is (1, 0) and the CFG is the same.

    Attributes:
        last: m; the paper's comparison (Clark et al. 2024) has 20 of 50.
        shape: "linear" is -r; "relu" is relu(ceiling - r), the published code's.
        ceiling: of the relu.
        name: of the objective.
    """

    last: int | None = None
    shape: Literal["linear", "relu"] = "linear"
    ceiling: float = 2.0
    name: str = "refl"
    needs_gradient = True
    several = False
    group = 1

    def __call__(self, world: World) -> Iterator[Loss]:
        m = min(self.last or max(1, round(0.4 * world.steps)), world.steps)
        i = world.steps - m + int(torch.randint(m, (1,), generator=world.generator("refl"), device="cpu"))
        x = rollout(world, torch.zeros(world.steps, dtype=torch.bool, device="cpu"), stop=i).clean
        value = world.value(world.denoise(x, world.grid[i], world.rows).x0, world.rows)
        loss = -value if self.shape == "linear" else (self.ceiling - value).relu()
        yield Loss(loss.mean(), {"reward": value.mean().item(), "from_step": float(i)})
