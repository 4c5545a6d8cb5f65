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
clip is idle where a batch makes one update. Statistics of rewards are float64 on the CPU: some devices have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt
from typing_extensions import Doc

from tilting.declare import Alias
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.rollout import Path, Reduction, density_steps, mean_kl, rollout
from tilting.schedule import log_prob, transition

if TYPE_CHECKING:
    from torch import Tensor

Advantage = Literal["buffer", "group", "plain"]


def _same(values: Tensor) -> bool:
    """Whether they are all alike: less their mean they are 0 then, which rounding does not see."""
    return bool((values == values[0]).all())


def group_advantage(value: Tensor, prompts: list[str]) -> Tensor:
    """(r - mean) / std within each prompt's images of the batch, (b,); 0 where a prompt has one image or equal rewards."""
    rewards = value.cpu().double()
    out = torch.zeros_like(rewards)
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        mine = rewards[rows]
        if not _same(mine):
            out[rows] = (mine - mine.mean()) / (mine.std(unbiased=False) + 1e-8)
    return out.to(value.dtype).to(value.device)


def buffered_advantage(value: Tensor, prompts: list[str], memory: dict, size: int, least: int) -> Tensor:
    """(r - mean) / std over the last ``size`` rewards of each prompt; over the whole batch until a prompt has ``least`` of
    them."""
    rewards = value.cpu().double()
    out = torch.empty_like(rewards)
    buffers: dict[str, list[float]] = memory.setdefault("rewards", {})
    for prompt, r in zip(prompts, rewards.tolist(), strict=True):
        buffers[prompt] = [*buffers.get(prompt, []), r][-size:]
    for i, prompt in enumerate(prompts):
        held = torch.tensor(buffers[prompt], dtype=torch.float64, device="cpu")
        seen = held if len(held) >= least else rewards
        out[i] = 0.0 if _same(seen) else (rewards[i] - seen.mean()) / (seen.std(unbiased=False) + 1e-6)
    return out.to(value.dtype).to(value.device)


def _among_others(batch: TrainBatch, value: Tensor) -> Tensor:
    """Values (b,) of this process's images, each less the mean of all the others in the batch; 0 of a single image."""
    everything = batch.all(value)
    count = len(everything)
    if _same(everything):
        return torch.zeros_like(value)
    return (value - everything.mean()) * (count / max(count - 1, 1))


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
        return steps + 1 + (steps - 1 if self.kl else 0)  # with a KL the frozen model's means too

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        steps = density_steps(batch)
        if not steps:
            raise TiltingError(f"{self.name} needs eta > 0 and at least 2 steps: a deterministic step has no probability")
        density = self.reduction if self.ratio else None
        with torch.no_grad():
            path = rollout(batch, closed(batch), density=density, frozen=self.path_kl and self.kl > 0)
            value = batch.value(path.clean, batch.rows).detach()
        advantages = self._advantages(batch, value, path, steps)
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

    def _advantages(self, batch: TrainBatch, value: Tensor, path: Path, steps: list[int]) -> dict[int, Tensor]:
        """Step -> (b,) of this process's images."""
        if self.path_kl:
            found, ahead = {}, value
            for i in reversed(steps):
                found[i] = _among_others(batch, ahead)
                ahead = ahead - self.kl * path.paid[i] if self.kl else ahead
        else:
            everything = batch.all(value)
            if self.advantage == "group":
                one = batch.mine(group_advantage(everything, batch.prompts))
            elif self.advantage == "buffer":
                one = batch.mine(buffered_advantage(everything, batch.prompts, batch.memory, self.buffer, self.least))
            else:
                one = _among_others(batch, value)
            found = dict.fromkeys(steps, one)
        return {i: one.clamp(-self.limit, self.limit) for i, one in found.items()}

    def _step(
        self, batch: TrainBatch, path: Path, i: int, frozen: dict[int, Tensor], advantage: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and numbers of step i; ``frozen`` keeps the base model's means from one epoch to the next."""
        point = path.points[i]
        kernel = transition(batch.denoise(point.x, point.t, batch.rows), point.t, point.s, batch.eta)
        now = log_prob(point.drawn, kernel, self.reduction)
        numbers: dict[str, float] = {}
        if self.ratio:
            ratio = (now - path.densities[i]).exp()
            kept = ratio.clamp(1 - self.clip, 1 + self.clip)
            loss = torch.maximum(-advantage * ratio, -advantage * kept).mean()
            numbers["ratio_far"] = (ratio.detach() - 1).abs().max().item()
            numbers["clipped"] = ((ratio.detach() - 1).abs() > self.clip).float().mean().item()
        else:
            loss = -(advantage * now).mean()
        if self.kl:
            if i not in frozen:
                with torch.no_grad():
                    frozen[i] = transition(batch.base(point.x, point.t, batch.rows), point.t, point.s, batch.eta).mean
            far = mean_kl(kernel, frozen[i]).mean()
            loss = loss + self.kl * (far / point.x[0].numel() if self.reduction == "mean" else far)
            numbers["kl_step"] = far.item()
        return loss, numbers


Clip = Annotated[float, Gt(0), Doc("half-width of the ratio's clip, in units of ``reduction``")]
Kl = Annotated[float, Ge(0), Doc("β of the KL of each step to the frozen model, over latent dimensions as ``reduction`` says")]
LogProb = Annotated[
    Reduction, Doc('of log p, and of the KL, over latent dimensions: "mean", as in the code of DDPO and Flow-GRPO, or "sum"')
]
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


@OBJECTIVES.register
@dataclass(frozen=True)
class Grpo(PolicyGradient):
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
    advantage = "group"

    group_size: Annotated[
        int, Ge(2), Alias("size"), Doc("images of a prompt that a batch must hold together, which are compared")
    ] = 4
    clip: Clip = 1e-4
    epochs: Epochs = 1
    minibatches: Minibatches = 1
    kl: Kl = 0.0
    reduction: LogProb = "mean"
