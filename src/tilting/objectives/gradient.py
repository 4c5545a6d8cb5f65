"""Objectives that back-propagate the reward through sampling: draft, draft-k, draft-lv, refl, alignprop.

draft       loss = -mean r(D(x_0(θ))) + β KL                      Clark et al. 2024, Alg. 1 (its last line must read θ + η g);
            their guidance weight w = 7.5, of (1 + w) ε_c - w ε_∅, is a cfg of 8.5 here
draft-k     the same, gradients in the last K steps only
draft-lv    draft-1, and n more re-noised copies of stop_grad(x_0) at the last grid time, gradients summed
refl        the one-step estimate x0 at a random one of the last m steps   Xu et al. 2023; φ(r) = relu(2 - r) in its code
alignprop   draft with a random truncation                        Prabhudesai et al. 2023
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from tilting.declare import Alias
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, check_density, closed
from tilting.objectives.rollout import Point, density_steps, rollout
from tilting.objectives.truncate import Truncation
from tilting.schedule import add_noise

if TYPE_CHECKING:
    from torch import Tensor

Kl = Annotated[
    float,
    Ge(0),
    Doc("β of the path KL to the frozen model, over the steps that carry gradient (needs eta > 0); 0 leaves it out"),
]
EpsKl = Annotated[
    float,
    Ge(0),
    Doc("weight of the mean over latent dimensions of (eps_θ - eps_base)² at the last step; B.8's β times the dimensions"),
]
Dropout = Annotated[float, Ge(0), Lt(1), Doc("share of the images whose reward is left out of a step")]


def dropped(value: Tensor, share: float, batch: TrainBatch) -> Tensor:
    """Each image's reward left out with that probability, the rest scaled up. (What B.8 of Clark et al. 2024 drops are units
    inside the reward's network: `tilting.models.adapt.with_dropout`.)"""
    if share == 0:
        return value
    keep = torch.rand(len(batch.prompts), generator=batch.generator("dropout"), device="cpu") >= share
    return value * batch.mine(keep).to(value) / (1 - share)


def eps_penalty(weight: float, batch: TrainBatch, point: Point, numbers: dict[str, float]) -> Tensor | float:
    """weight times the mean (eps_θ - eps_base)² over images and latent dimensions, under CFG, at the state a step started
    from, which ``numbers`` is told; nothing is evaluated for a weight of 0."""
    if not weight:
        return 0.0
    with torch.no_grad():
        base = batch.base(point.x, point.t, batch.rows).eps
    far = (batch.denoise(point.x, point.t, batch.rows).eps - base).square().mean()
    numbers["eps_kl"] = far.item()
    return weight * far


class ThroughChain(BaseObjective):
    """The reward's gradient through the steps that a truncation opens. One of its own says which, and what else it adds."""

    needs_gradient = True
    kl: float = 0.0
    eps_kl: float = 0.0
    dropout: float = 0.0

    @property
    def truncation(self) -> Truncation:
        """Which steps carry gradient."""
        return Truncation("all")

    @property
    def needs_density(self) -> bool:
        return self.kl > 0

    def check_chain(self, eta: float, steps: int) -> None:
        if self.kl:
            check_density(f"{self.name}.kl", eta, steps)

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        # With a KL the steps without density, the last, are the frozen model's: K counts those that can be trained.
        trained, truncation = len(density_steps(batch)) if self.kl else batch.steps, self.truncation
        if not trained:
            raise TiltingError(f"{self.name}.kl needs eta above 0 and at least 2 steps: a deterministic chain has no density")
        mask = torch.ones(batch.steps, dtype=torch.bool, device="cpu")
        mask[:trained] = truncation.mask(trained, batch.generator("truncation"))
        path = rollout(batch, mask, kl=bool(self.kl))
        value = batch.value(path.clean, batch.rows)
        numbers = {"reward": value.mean().item(), "open_steps": float(mask.sum())}
        loss = -dropped(value, self.dropout, batch).mean()
        if path.kl is not None:
            loss = loss + self.kl * path.kl.mean()
            numbers["kl" if truncation.rule == "all" else "kl_open"] = path.kl.mean().item()
        yield Loss(loss + eps_penalty(self.eps_kl, batch, path.points[-1], numbers), numbers)


@OBJECTIVES.register
@dataclass(frozen=True)
class Draft(ThroughChain):
    """DRaFT: back-propagation through the whole chain, one checkpoint a step.

        x ~ N(0, I)
        for t = T .. 1:
            x, kl_t = checkpoint(step)(x, t)          eps by θ; the last step, where there is a KL, by θ_base
        loss = -mean r(decode(x)) + kl Σ_t kl_t
        θ <- AdamW(∇_θ loss)

    The numbers call the KL "kl" where all steps carry gradient, else "kl_open": it is of these steps alone, and goes up and
    down with their number, for the frozen model is not evaluated at the others. Algorithm 1 of the paper ends in θ - η g,
    which must read θ + η g. The paper's guidance weight w = 7.5, of (1 + w) ε_c - w ε_∅, is a cfg of 8.5 here.
    """

    name, paper, through = "draft", "Clark et al. 2024", "through T steps"

    kl: Kl = 0.0
    eps_kl: EpsKl = 0.0
    dropout: Dropout = 0.0


@OBJECTIVES.register
@dataclass(frozen=True)
class DraftK(ThroughChain):
    """DRaFT-K: gradients in the last K steps only; K = 1 learns fastest, quality falls for K above 10.

        x ~ N(0, I)
        for t = T .. K + 1:
            x = step(x, stop_grad(eps_θ(x, t)))
        for t = K .. 1:
            x = checkpoint(step)(x, t)
        θ <- AdamW(-∇_θ mean r(decode(x)))

    The KL is called "kl_open": it is of the steps that carry gradient, for the frozen model is not evaluated at the others.
    The paper's guidance weight w = 7.5 is a cfg of 8.5 here.
    """

    name, paper, through = "draft-k", "Clark et al. 2024", "through K steps"

    k: Annotated[int, Ge(1), Doc("K, the last steps that carry gradient")] = 1
    kl: Kl = 0.0
    eps_kl: EpsKl = 0.0
    dropout: Dropout = 0.0

    @property
    def truncation(self) -> Truncation:
        return Truncation("last", self.k)


@OBJECTIVES.register
@dataclass(frozen=True)
class DraftLv(BaseObjective):
    """DRaFT-LV: DRaFT-1 with n re-noised copies of the finished sample, which lower the variance of its gradient.

        x_0 = DRaFT-1's sample, gradients in the last step
        loss = -mean r(x_0)
        for j = 1 .. n:
            x_1' = α_1 stop_grad(x_0) + σ_1 ε_j       at the last grid time
            loss = loss - mean r(step(x_1', 1))       or, if single: - mean ⟨∇r(x_0), step(x_1', 1)⟩
        θ <- AdamW(∇_θ loss)

    The gradients of all n + 1 rewards are summed: n + 1 reward calls per image and step. The paper's guidance weight w = 7.5
    is a cfg of 8.5 here.
    """

    name, paper, through = "draft-lv", "Clark et al. 2024", "through 1 step"
    needs_gradient = True

    copies: Annotated[int, Ge(0), Doc("n; 0 is DRaFT-1")] = 2
    single: Annotated[
        bool,
        Doc(
            "back-propagate the one reward gradient ∇_x r(x_0) through every copy (C.1: unstable, kept as a negative result); "
            "the gradient at the latents, so that the decoder is paid once too"
        ),
    ] = False
    dropout: Annotated[float, Ge(0), Lt(1), Doc("share of rewards left out of a step")] = 0.0
    eps_kl: EpsKl = 0.0

    @property
    def graphs_at_once(self) -> int:
        return 1 + self.copies

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        mask = torch.arange(batch.steps, device="cpu") == batch.steps - 1
        path = rollout(batch, mask)
        t = batch.grid[-2]
        value = batch.value(path.clean, batch.rows)
        numbers = {"reward": value.mean().item()}
        value = dropped(value, self.dropout, batch)
        slope = torch.autograd.grad(value.sum(), path.clean, retain_graph=True)[0] if self.single else None
        loss = -value.mean()
        for j in range(self.copies):
            noisy = add_noise(path.clean.detach(), batch.noise(batch.steps, f"copy{j}"), t)
            clean = batch.kernel(batch.denoise(noisy, t, batch.rows), batch.steps - 1).mean
            if slope is not None:
                loss = loss - (slope.detach() * clean).flatten(1).sum(1).mean()
            else:
                loss = loss - dropped(batch.value(clean, batch.rows), self.dropout, batch).mean()
        yield Loss(loss + eps_penalty(self.eps_kl, batch, path.points[-1], numbers), numbers)


@OBJECTIVES.register
@dataclass(frozen=True)
class Refl(BaseObjective):
    """ReFL: the reward of the estimate at a random late step.

        i ~ Uniform of the last m steps
        x = the chain from x_T down to step i, without gradients
        x0 = (x - σ_i eps_θ(x, t_i)) / α_i
        θ <- AdamW(∇_θ mean φ(r(decode(x0))))         φ(r) = -r, or relu(ceiling - r)

    Its code: DDPM 40 steps, a step in 30..39, no CFG, loss 1e-3 relu(2 - r), lr 1e-5, the full UNet. With m = 1 it is
    DRaFT-1, when the last grid value is (1, 0) and the CFG is the same.
    """

    name, paper, through = "refl", "Xu et al. 2023", "through 1 step"
    needs_gradient = True

    last: Annotated[int | None, Ge(1), Doc("m; the paper's comparison (Clark et al. 2024) has 20 of 50")] = None
    shape: Annotated[Literal["linear", "relu"], Doc('"linear" is -r; "relu" is relu(ceiling - r), the published code\'s')] = (
        "linear"
    )
    ceiling: Annotated[float, Doc("of the relu")] = 2.0

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        m = min(self.last or max(1, round(0.4 * batch.steps)), batch.steps)
        i = batch.steps - m + int(torch.randint(m, (1,), generator=batch.generator("refl"), device="cpu"))
        x = rollout(batch, closed(batch), stop=i).clean
        value = batch.value(batch.denoise(x, batch.grid[i], batch.rows).x0, batch.rows)
        loss = -value if self.shape == "linear" else (self.ceiling - value).relu()
        yield Loss(loss.mean(), {"reward": value.mean().item(), "from_step": float(i)})


@OBJECTIVES.register
@dataclass(frozen=True)
class AlignProp(ThroughChain):
    """AlignProp: DRaFT with a random truncation, per batch or, as in the older code, per step.

        K ~ Uniform{1 .. T}                           or, by rule "step": each step is open with probability p
        x ~ N(0, I)
        for t = T .. 1:
            x = checkpoint(step)(x, t) if t <= K else step(x, stop_grad(eps_θ(x, t)))
        θ <- AdamW(-∇_θ mean r(decode(x)))

    A closed step holds the network's output alone: the linear part of it passes on the gradient of earlier ones.
    """

    name, paper, through = "alignprop", "Prabhudesai et al. 2023", "through K steps"

    rule: Annotated[
        Literal["random", "step"], Doc('the last K steps, K drawn once per batch ("random"), or each "step" by chance')
    ] = "random"
    step_probability: Annotated[
        float,
        Gt(0),
        Le(1),
        Alias("share"),
        Doc('chance of a step under "step": at 0.5 about half of them, which need not be neighbours'),
    ] = 0.5
    kl: Kl = 0.0

    @property
    def truncation(self) -> Truncation:
        return Truncation(self.rule, step_probability=self.step_probability)
