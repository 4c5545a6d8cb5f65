"""Policy gradients over the steps as actions: ddpo, dpok, grpo. The reward may be a black box.

    DDPO-IS    mean over steps of max(-A ratio, -A clip(ratio, 1 ± c)),   ratio = p_θ(x_s | x_t) / p_old(x_s | x_t)
               Black et al. 2023
    DPOK       -A log p_θ + β KL(p_θ || p_base) per step                  Fan et al. 2023
    A          the reward normalised per prompt, over a running buffer (DDPO) or within the K images of a group (GRPO)

The KL of a step depends on its parameters, and on all earlier ones by where the path has come to. DPOK differentiates the
first alone, and so does not climb E[r] - β KL of the path; CTRL's planner (``path_kl``) does: A at step t is r less β times
what the later steps pay.

log p is a *mean* over latent dimensions in the published DDPO code, which is why its clip can be 1e-4; ``reduction`` says
which. The step of std 0 (the last) has no density and is left out. log p_old is that of the rollout itself, so that an image
costs T evaluations to draw and T - 1 in an epoch, with a KL T - 1 more of the frozen model; on the first update every ratio is
exactly 1. Statistics of rewards are float64 on the CPU: some devices have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tilting.objectives.batch import Loss, World
from tilting.objectives.rollout import Path, Reduction, density_steps, mean_kl, rollout
from tilting.refusals import check_policy
from tilting.schedule import log_prob, transition
from tilting.types import TiltingError


def group_advantage(value: Tensor, prompts: list[str]) -> Tensor:
    """(r - mean) / std within each prompt's images of the batch, (b,); 0 where a prompt has one image or equal rewards."""
    out = torch.zeros_like(value)
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        mine = value[rows]
        spread = mine.std(unbiased=False)
        out[rows] = (mine - mine.mean()) / (spread + 1e-8) if len(rows) > 1 else 0.0
    return out


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
        out[i] = (rewards[i] - seen.mean()) / (seen.std(unbiased=False) + 1e-6)
    return out.to(value.dtype).to(value.device)


def _among_others(world: World, value: Tensor) -> Tensor:
    """Values (b,) of this process's images, each less the mean of all the others in the batch; 0 of a single image."""
    everything = world.all(value)
    count = len(everything)
    return (value - everything.mean()) * (count / max(count - 1, 1))


@dataclass(frozen=True)
class PolicyGradient:
    """DDPO, DPOK and GRPO, which differ in advantage, ratio and KL.

    Attributes:
        advantage: "buffer" (DDPO) or "group" (GRPO); "plain" is r minus the batch's mean.
        ratio: importance ratios with a clip (DDPO-IS, GRPO); off is REINFORCE, which makes one update from a batch of draws.
        clip: half-width of the ratio's clip, in units of ``reduction``.
        limit: advantages are cut to ± this.
        kl: β of the KL of each step to the frozen model (sum over dimensions).
        path_kl: whether the KL of later steps counts in a step's advantage, which is then minus the mean of the batch's other
            images (one that holds the image itself would shrink it by 1 / b beside the KL); ``advantage`` has no use.
        reduction: of log p over latent dimensions.
        epochs: passes over the sampled steps, each an optimiser step per ``chunks`` part.
        chunks: parts that the steps are split into, one optimiser step each.
        buffer, least: of the running statistics per prompt.
        size: images of a prompt that a batch must hold together ("group").
        name: of the objective.
    """

    advantage: Literal["buffer", "group", "plain"] = "buffer"
    ratio: bool = True
    clip: float = 1e-4
    limit: float = 5.0
    kl: float = 0.0
    reduction: Reduction = "mean"
    epochs: int = 1
    chunks: int = 1
    buffer: int = 32
    least: int = 8
    size: int = 1
    name: str = "ddpo"
    path_kl: bool = False
    needs_gradient = False

    def __post_init__(self) -> None:
        check_policy(self.name, self.advantage, self.size, self.ratio, self.epochs * self.chunks)

    @property
    def group(self) -> int:
        return self.size

    @property
    def several(self) -> bool:
        """Whether a step makes more than one update."""
        return self.epochs * self.chunks > 1

    def __call__(self, world: World) -> Iterator[Loss]:
        steps = density_steps(world)
        if not steps:
            raise TiltingError(f"{self.name} needs eta > 0 and at least 2 steps: a deterministic step has no probability")
        with torch.no_grad():
            closed = torch.zeros(world.steps, dtype=torch.bool, device="cpu")
            path = rollout(world, closed, density=self.reduction if self.ratio else None, frozen=self.path_kl and self.kl > 0)
            value = world.value(path.clean, world.rows).detach()
        advantages = self._advantages(world, value, path, steps)
        shuffled = torch.randperm(len(steps), generator=world.generator("order"), device="cpu")
        order = [steps[i] for i in shuffled.tolist()]
        parts, frozen = max(1, min(self.chunks, len(order))), dict(path.frozen)
        for epoch in range(self.epochs):
            for part in range(parts):
                mine = order[part::parts]
                for n, i in enumerate(mine):
                    loss, numbers = self._step(world, path, i, frozen, advantages[i])
                    if epoch == part == n == 0:
                        numbers["reward"] = value.mean().item()
                    yield Loss(loss / len(mine), numbers, update=n == len(mine) - 1)

    def _advantages(self, world: World, value: Tensor, path: Path, steps: list[int]) -> dict[int, Tensor]:
        """Step -> (b,) of this process's images."""
        if self.path_kl:
            found, ahead = {}, value
            for i in reversed(steps):
                found[i] = _among_others(world, ahead)
                ahead = ahead - self.kl * path.paid[i] if self.kl else ahead
        else:
            everything = world.all(value)
            if self.advantage == "group":
                one = group_advantage(everything, world.prompts)
            elif self.advantage == "buffer":
                one = buffered_advantage(everything, world.prompts, world.memory, self.buffer, self.least)
            else:
                one = everything - everything.mean()
            found = dict.fromkeys(steps, world.mine(one))
        return {i: one.clamp(-self.limit, self.limit) for i, one in found.items()}

    def _step(
        self, world: World, path: Path, i: int, frozen: dict[int, Tensor], advantage: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and numbers of step i; ``frozen`` keeps the base model's means from one epoch to the next."""
        point = path.points[i]
        kernel = transition(world.denoise(point.x, point.t, world.rows), point.t, point.s, world.eta)
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
                    frozen[i] = transition(world.base(point.x, point.t, world.rows), point.t, point.s, world.eta).mean
            far = mean_kl(kernel, frozen[i]).mean()
            loss = loss + self.kl * far
            numbers["kl_step"] = far.item()
        return loss, numbers
