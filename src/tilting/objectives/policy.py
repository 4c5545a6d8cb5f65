"""Policy gradients over the steps as actions: ddpo, dpok, grpo. The reward may be a black box.

    DDPO-IS    mean over steps of max(-A ratio, -A clip(ratio, 1 ± c)),   ratio = p_θ(x_s | x_t) / p_old(x_s | x_t)
               Black et al. 2023
    DPOK       -A log p_θ + β KL(p_θ || p_base) per step                  Fan et al. 2023
    A          the reward normalised per prompt, over a running buffer (DDPO) or within the K images of a group (GRPO), or less
               the mean of the batch's other images (DPOK): a mean that holds the image itself would shrink the reward's
               gradient by 1 - 1 / b, and not the KL's

The KL of a step depends on its parameters, and on all earlier ones by where the path has come to. DPOK differentiates the
first alone, and so does not climb E[r] - β KL of the path; CTRL's planner (``path_kl``) does: A at step t is r less β times
what the later steps pay.

log p is a *mean* over latent dimensions in the published DDPO code, which is why its clip can be 1e-4; ``reduction`` says
which, of log p and of the KL beside it (Flow-GRPO takes both as means), so that β means the same under either. The step of std
0 (the last) has no density and is left out. log p_old is that of the rollout itself, so that an image costs T evaluations to
draw and T - 1 in an epoch, with a KL T - 1 more of the frozen model; on the first update every ratio is exactly 1, so that the
clip is idle where a batch makes one update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from annotated_types import Ge, Gt
from typing_extensions import Doc

from tilting.declare import Alias
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.advantages import Rewards, Scored, among_others, buffered_advantage, group_worth, score
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.rollout import Path, Reduction, density_steps, mean_kl, rollout
from tilting.schedule import flow_time, log_prob

if TYPE_CHECKING:
    from torch import Tensor

Advantage = Literal["buffer", "group", "plain"]


class Taken(NamedTuple):
    """A step of a path under the model as it is, beside the one that drew it.

    Attributes:
        advantage: (b,).
        log_ratio: (b,) log p_θ - log p_old of what was drawn, reduced over latent dimensions.
        far: (b,) KL to the kernel that drew, reduced alike; None unless the objective ``needs_means``.
        std: of the step.
        time: the flow's time that it takes, t - s.
    """

    advantage: Tensor
    log_ratio: Tensor
    far: Tensor | None
    std: float
    time: float


class PolicyGradient(BaseObjective):
    """DDPO, DPOK and GRPO, which differ in advantage, ratio and KL; each of them says which of these are its settings.

    Attributes:
        advantage: "buffer" (DDPO) or "group" (GRPO); "plain" (DPOK) is r minus the mean of the batch's other images.
        ratio: importance ratios with a clip (DDPO-IS, GRPO); off is REINFORCE, which makes one update from a batch of draws.
        clip: half-width of the ratio's clip, in units of ``reduction``.
        limit: advantages are cut to ± this.
        kl: β of the KL of each step to the frozen model.
        path_kl: whether the KL of later steps counts in a step's advantage, which is then less the mean of the batch's other
            images; ``advantage`` has no use.
        rewards: how several make one advantage of a group.
        needs_means: whether `surrogate` is told how far a step's kernel has gone from the one that drew.
        reduction: of log p and of the KL beside it over latent dimensions.
        epochs: passes over the sampled steps, each an optimiser step per minibatch.
        minibatches: parts that the steps are split into, one optimiser step each.
        buffer, least: of the running statistics per prompt.
    """

    advantage: Advantage = "buffer"
    ratio: bool = True
    clip: float = 1e-4
    limit: float = 5.0
    kl: float = 0.0
    reduction: Reduction = "mean"
    epochs: int = 1
    minibatches: int = 1
    buffer: int = 32
    least: int = 8
    path_kl: bool = False
    rewards: Literal["sum", "gdpo"] = "sum"
    needs_means: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantage == "group" and self.group_size < 2:
            raise TiltingError(
                f"{self.name}.advantage=group needs groups of images of a prompt, which {self.name} does not draw: use grpo"
            )
        if not self.ratio and self.updates_several:
            raise TiltingError(
                f"{self.name}.ratio=false learns from the current model's own draws: leave {self.name}.epochs and "
                f"{self.name}.minibatches at 1"
            )

    @property
    def needs_density(self) -> bool:
        return True

    @property
    def updates_several(self) -> bool:
        return self.epochs * self.minibatches > 1

    def latents_kept(self, steps: int) -> int:
        return steps + 1 + (steps - 1) * (bool(self.kl) + self.needs_means)  # with a KL the frozen model's means too

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        batch = self.chain(batch)
        steps = density_steps(batch)
        if not steps:
            raise TiltingError(f"{self.name} needs eta > 0 and at least 2 steps: a deterministic step has no probability")
        with torch.no_grad():
            path = self.draw(batch)
            scored = score(batch, path.clean, self.rewards)
        value, advantages = scored.value, self._advantages(batch, scored, path, steps)
        shuffled = torch.randperm(len(steps), generator=batch.generator("order"), device="cpu")
        order = [steps[i] for i in shuffled.tolist()]
        parts, frozen = max(1, min(self.minibatches, len(order))), dict(path.frozen)
        for epoch in range(self.epochs):
            for part in range(parts):
                mine = order[part::parts]
                for n, i in enumerate(mine):
                    loss, numbers = self._step(batch, path, i, frozen, advantages[i])
                    if epoch == part == n == 0:
                        numbers["reward"] = value.mean().item()
                    yield Loss(loss / len(mine), numbers, update=n == len(mine) - 1)

    def chain(self, batch: TrainBatch) -> TrainBatch:
        """The batch with the noise of its chain as this wants it."""
        return batch

    def draw(self, batch: TrainBatch) -> Path:
        """Paths of the current model."""
        density = self.reduction if self.ratio else None
        frozen = self.path_kl and self.kl > 0
        return rollout(batch, closed(batch), density=density, frozen=frozen, means=self.needs_means)

    def worth(self, batch: TrainBatch, scored: Scored, path: Path) -> Tensor:
        """The advantage (b,) of this process's images, the same for all steps."""
        if self.advantage == "group":
            return group_worth(batch, scored)
        if self.advantage == "buffer":
            everything = batch.all(scored.value)
            return batch.mine(buffered_advantage(everything, batch.prompts, batch.memory, self.buffer, self.least))
        return among_others(batch, scored.value)

    def _advantages(self, batch: TrainBatch, scored: Scored, path: Path, steps: list[int]) -> dict[int, Tensor]:
        """Step -> (b,) of this process's images."""
        if self.path_kl:
            found, ahead = {}, scored.value
            for i in reversed(steps):
                found[i] = among_others(batch, ahead)
                ahead = ahead - self.kl * path.paid[i] if self.kl else ahead
        else:
            found = dict.fromkeys(steps, self.worth(batch, scored, path))
        return {i: one.clamp(-self.limit, self.limit) for i, one in found.items()}

    def surrogate(self, taken: Taken) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step by importance ratios, without KL, and numbers."""
        return self.clipped(taken.log_ratio.exp(), taken.advantage)

    def clipped(self, ratio: Tensor, advantage: Tensor) -> tuple[Tensor, dict[str, float]]:
        """max(-A ratio, -A clip(ratio, 1 ± clip)), and how far ratios are."""
        kept, off = ratio.clamp(1 - self.clip, 1 + self.clip), (ratio.detach() - 1).abs()
        numbers = {"ratio_far": off.max().item(), "clipped": (off > self.clip).float().mean().item()}
        return torch.maximum(-advantage * ratio, -advantage * kept).mean(), numbers

    def _step(
        self, batch: TrainBatch, path: Path, i: int, frozen: dict[int, Tensor], advantage: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and numbers of step i; ``frozen`` keeps the base model's means from one epoch to the next."""
        point = path.points[i]
        kernel = batch.kernel(batch.denoise(point.x, point.t, batch.rows), i)
        now = log_prob(point.drawn, kernel, self.reduction)
        if self.ratio:
            far = self._reduced(mean_kl(kernel, path.means[i]), point.x) if self.needs_means else None
            time = flow_time(point.t) - flow_time(point.s)
            loss, numbers = self.surrogate(Taken(advantage, now - path.densities[i], far, kernel.std, time))
        else:
            loss, numbers = -(advantage * now).mean(), {}
        if self.kl:
            if i not in frozen:
                with torch.no_grad():
                    frozen[i] = batch.kernel(batch.base(point.x, point.t, batch.rows), i).mean
            kl = mean_kl(kernel, frozen[i]).mean()
            loss = loss + self.kl * self._reduced(kl, point.x)
            numbers["kl_step"] = kl.item()
        return loss, numbers

    def _reduced(self, kl: Tensor, x: Tensor) -> Tensor:
        """A KL of latents as x (b, ...), over their dimensions as log p is."""
        return kl / x[0].numel() if self.reduction == "mean" else kl


Clip = Annotated[float, Gt(0), Doc("half-width of the ratio's clip, in units of ``reduction``")]
Kl = Annotated[float, Ge(0), Doc("β of the KL of each step to the frozen model, over latent dimensions as ``reduction`` says")]
LogProb = Annotated[
    Reduction, Doc('of log p, and of the KL, over latent dimensions: "mean", as in the code of DDPO and Flow-GRPO, or "sum"')
]
GroupSize = Annotated[int, Ge(2), Doc("images of a prompt that a batch must hold together, which are compared")]
Epochs = Annotated[int, Ge(1), Doc("passes over the sampled steps, each an optimiser step per minibatch")]
Minibatches = Annotated[int, Ge(1), Alias("chunks"), Doc("parts that the steps are split into, one optimiser step each")]


@OBJECTIVES.register
@dataclass(frozen=True)
class Ddpo(PolicyGradient):
    """DDPO, importance-sampled or REINFORCE (``ratio=False``), with statistics per prompt.

        x_T .. x_0, log p_old(x_s | x_t) = a chain of θ, without gradients;  r = r(decode(x_0))
        A = clip((r - mean) / std of the prompt's last rewards, ± 5)
        for each epoch, each minibatch of the steps with a density, in random order:
            ratio_t = p_θ(x_s | x_t) / p_old(x_s | x_t)
            loss = mean over t of max(-A ratio_t, -A clip(ratio_t, 1 ± clip)) + kl KL_t(θ || base)
            θ <- AdamW(∇_θ loss)

    log p is a mean over latent dimensions in the published code, which is why its clip can be 1e-4. With one update per batch
    (epochs = minibatches = 1, the default) every ratio is 1 and the clip idle: it binds from the second update on.
    """

    name, paper = "ddpo", "Black et al. 2023"

    ratio: Annotated[
        bool, Doc("importance ratios with a clip (DDPO-IS); off is REINFORCE, which makes one update from a batch of draws")
    ] = True
    clip: Clip = 1e-4
    epochs: Epochs = 1
    minibatches: Minibatches = 1
    kl: Kl = 0.0
    reduction: LogProb = "mean"
    advantage: Annotated[
        Advantage,
        Doc('of the last rewards of the prompt ("buffer"), or r less the mean of the others ("plain"); "group" is grpo\'s'),
    ] = "buffer"


@OBJECTIVES.register
@dataclass(frozen=True)
class Dpok(PolicyGradient):
    """DPOK: policy gradient with the KL of every step to the base model.

        x_T .. x_0 = a chain of θ, without gradients;  A = r(decode(x_0)) - mean r of the others
        for each step t with a density, in random order:
            loss = mean over t of -A log p_θ(x_s | x_t) + kl KL_t(θ || base)
        θ <- AdamW(∇_θ loss)

    The KL of a step is differentiated by its own parameters alone, so that this does not climb E[r] - β KL of the path.
    """

    name, paper = "dpok", "Fan et al. 2023"
    advantage, ratio, clip, limit = "plain", False, 1.0, 1e9

    kl: Kl = 0.01
    reduction: LogProb = "sum"


@dataclass(frozen=True)
class Grouped(PolicyGradient):
    """What those have that weigh the K images of a prompt against each other."""

    advantage = "group"

    group_size: GroupSize = 4
    epochs: Epochs = 1
    minibatches: Minibatches = 1
    kl: Kl = 0.0
    reduction: LogProb = "mean"
    rewards: Rewards = "sum"


@OBJECTIVES.register
@dataclass(frozen=True)
class Grpo(Grouped):
    """GRPO: advantages within the K images of a prompt.

        for each prompt of the batch: K chains x_T .. x_0 of θ, without gradients;  r_k = r(decode(x_0))
        A_k = clip((r_k - mean_K r) / std_K r, ± 5)
        for each epoch, each minibatch of the steps with a density, in random order:
            ratio_t = p_θ(x_s | x_t) / p_old(x_s | x_t)
            loss = mean over t of max(-A ratio_t, -A clip(ratio_t, 1 ± clip)) + kl KL_t(θ || base)
            θ <- AdamW(∇_θ loss)

    A prompt whose images are all worth the same teaches nothing: A is 0.

    With one update per batch (epochs = minibatches = 1, the default) every ratio is 1 and the clip idle: it binds from the
    second update on.
    """

    name, paper = "grpo", "Liu et al. 2025, Flow-GRPO; Xue et al. 2025, DanceGRPO"

    group_size: Annotated[GroupSize, Alias("size")] = 4
    clip: Clip = 1e-4
