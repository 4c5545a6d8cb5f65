"""Variants of GRPO: noise in a window of steps, other trust regions, another reward.

    mixgrpo      SDE steps, and the loss, in a window that slides over the chain; ODE elsewhere      Li et al. 2025
    grpo-fast    a window at a random place, where a group branches from one ODE path                Liu et al. 2025
    grpo-guard   log ratio' = std (log ratio + KL_old), loss / Δt                                    Wang et al. 2025
    flow-dppo    -A ratio, but 0 where KL_old > δ and the update would go on away from the old       Ping et al. 2026
    pref-grpo    the reward is the share of its group that an image is better than                   Wang et al. 2025

KL_old = |mean_θ - mean_old|² / (2 std²) is exact, of two Gaussians of one std. Of a ratio of such, log ratio = -KL_old +
⟨mean_θ - mean_old, z⟩ / std with z the noise drawn: its mean is below 0 and its spread grows as std falls, so that a clip of
it binds late, and at some times before others. GRPO-Guard's is ⟨mean_θ - mean_old, z⟩.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from tilting.lazy import torch
from tilting.objectives.advantages import Scored, group_advantage, leaders, preferred_rates, win_rates
from tilting.objectives.batch import OBJECTIVES, TrainBatch, closed
from tilting.objectives.policy import Clip, Epochs, Grouped, GroupSize, Kl, LogProb, Minibatches, PolicyGradient, Taken
from tilting.objectives.rollout import Path, Point, density_steps, rollout
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

Branch = Annotated[
    bool, Doc("the images of a group are one up to the window, which is drawn once for all of them; else each has its own x_T")
]


class Windowed(Grouped):
    """GRPO whose chain is random, and is learned from, in a window of steps alone. One of its own says where that is.

    Attributes:
        window: its width.
        branch: whether a group shares what comes before it.
    """

    window: int = 4
    branch: bool = True

    def begin(self, batch: TrainBatch, places: int) -> int:
        """Where the window begins, of so many places."""
        raise NotImplementedError

    def chain(self, batch: TrainBatch) -> TrainBatch:
        able = density_steps(batch)
        width = min(self.window, len(able))
        if not able:
            return batch
        first = self.begin(batch, len(able) - width + 1)
        inside = able[first : first + width]
        return replace(batch, etas=[batch.eta if i in inside else 0.0 for i in range(batch.steps)])

    def draw(self, batch: TrainBatch) -> Path:
        first = min(density_steps(batch), default=0)
        if not self.branch:
            return super().draw(batch)
        trunk, rows = self._trunk(batch)
        before = rollout(trunk, closed(trunk), stop=first)
        points = tuple(Point(point.x[rows], point.t, point.s, point.drawn[rows]) for point in before.points)
        after = rollout(batch, closed(batch), before.clean[rows], density=self.reduction, means=self.needs_means, start=first)
        return replace(after, points=points + after.points)

    def _trunk(self, batch: TrainBatch) -> tuple[TrainBatch, Tensor]:
        """A batch of one image per group, and of each image the row of its group."""
        everyone = batch.everyone or batch.who
        first = leaders(batch.prompts, self.group_size)[batch.first : batch.first + len(batch.who)]
        groups = list(dict.fromkeys(first))
        shown = torch.tensor([first.index(g) for g in groups], device="cpu")

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            return batch.denoise(x, t, shown[rows])

        trunk = replace(batch, who=[everyone[g] for g in groups], everyone=(), first=0, gather=None, denoise=denoise)
        return trunk, torch.tensor([groups.index(g) for g in first], device="cpu")


@OBJECTIVES.register
@dataclass(frozen=True)
class MixGrpo(Windowed):
    """MixGRPO: GRPO in a window of steps that slides over the chain as training goes on.

        window = steps l .. l + w - 1,   l = stride · floor(training step / interval), from 0 again at the chain's end
        for each prompt of the batch: K chains, eta = 0 outside the window;  r_k = r(decode(x_0))
        A_k = clip((r_k - mean_K r) / std_K r, ± 5)
        for each step t of the window:
            loss = mean of max(-A ratio_t, -A clip(ratio_t, 1 ± clip)) + kl KL_t(θ || base)
        θ <- AdamW(∇_θ loss)

    The window begins where noise is largest. A group shares its x_T, and so all that comes before the window. The last step
    has no density and is in no window. MixGRPO-Flash, a higher-order solver behind the window, is not here.
    """

    name, paper = "mixgrpo", "Li et al. 2025, arXiv 2507.21802"

    window: Annotated[int, Ge(1), Doc("w, steps of the chain that are random and learned from; 4 in the paper")] = 4
    interval: Annotated[int, Ge(1), Doc("training steps before the window moves; 25 in the paper")] = 25
    stride: Annotated[int, Ge(1), Doc("steps of the chain that it moves by; 1 in the paper")] = 1
    branch: Branch = True
    clip: Clip = 1e-4

    def begin(self, batch: TrainBatch, places: int) -> int:
        return batch.step // self.interval * self.stride % places


@OBJECTIVES.register
@dataclass(frozen=True)
class GrpoFast(Windowed):
    """Flow-GRPO-Fast: a group branches at a random step of one ODE path, and training uses a step or two of it.

        l ~ Uniform of the first ``within`` of the steps
        for each prompt of the batch: one ODE path to step l; K branches, random in l .. l + w - 1, ODE after them
        A_k = clip((r_k - mean_K r) / std_K r, ± 5)
        for each step t of the window:
            loss = mean of max(-A ratio_t, -A clip(ratio_t, 1 ± clip)) + kl KL_t(θ || base)
        θ <- AdamW(∇_θ loss)

    An image costs T - l evaluations to draw and w to learn from, and its share of the l of its group.
    """

    name, paper = "grpo-fast", "Liu et al. 2025, arXiv 2505.05470; Flow-GRPO-Fast of its code"

    window: Annotated[int, Ge(1), Doc("w, steps of the chain that are random and learned from; 1 or 2 in the code")] = 2
    within: Annotated[float, Gt(0), Le(1), Doc("share of the chain, from its noisy end, that the window begins in")] = 0.5
    branch: Branch = True
    clip: Clip = 1e-4

    def begin(self, batch: TrainBatch, places: int) -> int:
        among = max(1, min(places, round(self.within * batch.steps)))
        return int(torch.randint(among, (1,), generator=batch.generator("window"), device="cpu"))


@OBJECTIVES.register
@dataclass(frozen=True)
class GrpoGuard(Grouped):
    """GRPO-Guard: importance ratios normalised to one mean and spread at all times, and gradients to one size.

        for each prompt of the batch: K chains x_T .. x_0 of θ, without gradients;  A_k as in GRPO
        for each epoch, each minibatch of the steps with a density, in random order:
            KL_t = |mean_θ - mean_old|² / (2 std²),   mean over dimensions
            ratio_t = exp(std (log p_θ(x_s | x_t) - log p_old(x_s | x_t) + KL_t))
            loss = mean over t of max(-A ratio_t, -A clip(ratio_t, 1 ± clip)) / Δt + kl KL_t(θ || base)
            θ <- AdamW(∇_θ loss)

    Δt is the flow's time that a step takes (σ / (α + σ) of other schedules): the mean of Flow-GRPO's step moves with Δt times
    the network's output, so that dividing by it makes gradients alike. Clips are of the ratio so normalised.
    """

    name, paper = "grpo-guard", "Wang et al. 2025, arXiv 2510.22319"
    needs_means = True

    clip: Annotated[float, Gt(0), Doc("half-width of the normalised ratio's clip; 2e-6 to 1e-4 in the code of Flow-GRPO")] = (
        1e-4
    )

    def surrogate(self, taken: Taken) -> tuple[Tensor, dict[str, float]]:
        assert taken.far is not None
        loss, numbers = self.clipped(((taken.log_ratio + taken.far) * taken.std).exp(), taken.advantage)
        return loss / taken.time, {**numbers, "kl_old": taken.far.mean().item()}


@OBJECTIVES.register
@dataclass(frozen=True)
class FlowDppo(Grouped):
    """Flow-DPPO: a trust region by the exact KL of each step in place of a clipped ratio.

        for each prompt of the batch: K chains x_T .. x_0 of θ, without gradients;  A_k as in GRPO
        for each epoch, each minibatch of the steps with a density, in random order:
            KL_t = |mean_θ - mean_old|² / (2 std²)
            keep = not (KL_t > threshold and A (ratio_t - 1) > 0)
            loss = mean over t of -keep A ratio_t + kl KL_t(θ || base)
            θ <- AdamW(∇_θ loss)

    What has left the region is masked only where the update would take it further. With one update per batch (epochs =
    minibatches = 1, the default) the KL is 0 and nothing is masked: it binds from the second update on.
    """

    name, paper = "flow-dppo", "Ping et al. 2026, arXiv 2606.11025"
    needs_means = True

    threshold: Annotated[float, Gt(0), Doc("δ, the KL of a step to the one that drew, reduced as log p; 1e-6 in the code")] = (
        1e-6
    )

    def surrogate(self, taken: Taken) -> tuple[Tensor, dict[str, float]]:
        assert taken.far is not None
        ratio = taken.log_ratio.exp()
        away = (taken.far.detach() > self.threshold) & (taken.advantage * (ratio.detach() - 1) > 0)
        numbers = {
            "ratio_far": (ratio.detach() - 1).abs().max().item(),
            "masked": away.float().mean().item(),
            "kl_old": taken.far.mean().item(),
        }
        return -(taken.advantage * ratio * ~away).mean(), numbers


@OBJECTIVES.register
@dataclass(frozen=True)
class PrefGrpo(PolicyGradient):
    """Pref-GRPO: GRPO on how many of its group an image is better than.

        for each prompt of the batch: K chains x_T .. x_0 of θ, without gradients
        w_k = mean over the others j of P(x_k better than x_j),   a tie being 1/2
        A_k = clip((w_k - mean_K w) / std_K w, ± 5)
        the rest as in GRPO

    A reward that compares pictures is asked of every ordered pair, K (K - 1) times a prompt; of another, and of a sum of
    rewards or of a reward and a diversity, the values are compared. Small differences of near-equal images are not blown up
    by their own spread, which is what a plain advantage does.
    """

    name, paper = "pref-grpo", "Wang et al. 2025, arXiv 2508.20751"
    advantage = "group"

    group_size: GroupSize = 4
    clip: Clip = 1e-4
    epochs: Epochs = 1
    minibatches: Minibatches = 1
    kl: Kl = 0.0
    reduction: LogProb = "mean"

    def worth(self, batch: TrainBatch, scored: Scored, path: Path) -> Tensor:
        if not batch.all(scored.value).isfinite().all():
            raise FloatingPointError("the reward is not finite")
        if batch.prefers is not None:
            rates = batch.all(preferred_rates(batch, path.clean.detach()))
        else:
            rates = win_rates(batch.all(scored.value), batch.prompts)
        return batch.mine(group_advantage(rates, batch.prompts))
