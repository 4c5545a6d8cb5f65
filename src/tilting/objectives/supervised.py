"""Objectives that fit the model's own samples: rwr, raft, dpo. The reward may be a black box.

    rwr     Σ w_i e_θ(x_i),  w = softmax(r / β) over the batch                 reward-weighted regression, Lee et al. 2023
    raft    the best of each prompt's images, fitted; repeat                   Dong et al. 2023
    dpo     -log σ(-β/2 [ (e_θ - e_base)(winner) - (e_θ - e_base)(loser) ])    Diffusion-DPO, Wallace et al. 2024

e is the denoising error as in pre-training, without CFG: of the network's own target (ε, v = α ε - σ x_0, u = ε - x_0 of flow,
or x_0) at (α x_0 + σ ε, t, c), averaged over latent dimensions, t uniform over the grid. An error of ε instead would weigh a
v or flow network's by α², and nothing would be learnt at pure noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tilting.objectives.batch import Loss, World
from tilting.objectives.denoising import training_error
from tilting.objectives.rollout import rollout
from tilting.schedule import add_noise
from tilting.types import Denoise, TiltingError

Source = Literal["current", "pretrained"]


def draw(world: World, source: Source = "current") -> tuple[Tensor, Tensor]:
    """Finished samples of the current or the frozen model and their rewards, without gradients; ranks of broken rewards mean
    nothing."""
    with torch.no_grad():
        world = replace(world, denoise=world.base) if source == "pretrained" else world
        clean = rollout(world, torch.zeros(world.steps, dtype=torch.bool, device="cpu")).clean
        value = world.value(clean, world.rows).detach()
    if not world.all(value).isfinite().all():
        raise FloatingPointError("the reward is not finite")
    return clean, value


def ranked(world: World, value: Tensor, size: int) -> list[list[int]]:
    """Rows of each group of ``size`` images of a prompt, worst first; a prompt that comes again makes more groups."""
    prompts = [w.prompt for w in world.who]
    groups = []
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    return [sorted(rows, key=lambda i: value[i].item()) for rows in groups]


def denoising_error(
    denoise: Denoise, clean: Tensor, rows: Tensor, world: World, repeat: int = 0, keys: Tensor | None = None
) -> Tensor:
    """Squared error of the network's own target, averaged over dimensions, (m,), at one grid time for all rows.

    Args:
        denoise: without CFG.
        clean: (m, ...) samples of images ``rows``.
        rows: (m,).
        world: the batch; time and noise are keyed by its training step.
        repeat: number of the time.
        keys: (m,) images whose noise is taken; default their own. Those that are compared share it.
    """
    i = int(torch.randint(world.steps, (1,), generator=world.generator(f"time{repeat}"), device="cpu"))
    t = world.grid[i]
    noise = world.noise(i, f"fit{repeat}")[(rows if keys is None else keys).cpu()].to(clean)
    return training_error(denoise(add_noise(clean, noise, t), t, rows), clean, noise, t, world.kind)


def fitted(times: int, value: Tensor, loss: Callable[[int], tuple[Tensor, dict[str, float]]]) -> Iterator[Loss]:
    """One update from the mean of losses at several grid times; its numbers are the reward's mean and those of the first.

    Args:
        times: how many.
        value: rewards of the samples, (n,).
        loss: the number of a time -> its loss, and numbers to show.
    """
    for k in range(times):
        one, numbers = loss(k)
        yield Loss(one / times, {"reward": value.mean().item(), **numbers} if k == 0 else {}, update=k == times - 1)


@dataclass(frozen=True)
class RewardWeighted:
    """Reward-weighted regression.

    Weighted draws of the model as it is tilt what earlier steps have tilted: exp(r / β) compounds, towards the best reward
    alone, however large β is. Lee et al. 2023 draw from the pre-trained model, whose fit is p_pre exp(r / β), tilted once.

    Attributes:
        beta: temperature of the weights, in the reward's units.
        times: grid times per batch of samples.
        source: whose samples are fitted, those of the "current" model or of the "pretrained" one.
        name: of the objective.
    """

    beta: float = 0.05
    times: int = 4
    source: Source = "current"
    name: str = "rwr"
    needs_gradient = False
    several = False
    group = 1

    def __call__(self, world: World) -> Iterator[Loss]:
        clean, value = draw(world, self.source)
        weight = world.mine(torch.softmax(world.all(value) / self.beta, 0)) * world.share

        def loss(k: int) -> tuple[Tensor, dict[str, float]]:
            error = denoising_error(world.plain, clean, world.rows, world, k)
            return (weight * error).sum(), {"error": error.mean().item()}

        yield from fitted(self.times, value, loss)


class Ranks:
    """What ranks the images of a prompt: a batch has ``size`` of each."""

    size: int
    needs_gradient = False
    several = False

    @property
    def group(self) -> int:
        """Images of a prompt that must lie in one batch."""
        return self.size


@dataclass(frozen=True)
class Raft(Ranks):
    """RAFT: keep the best image of each prompt in the batch and fit it.

    Attributes:
        size: images of a prompt in a batch, of which one is kept.
        times: grid times per batch of samples.
        name: of the objective.
    """

    size: int = 4
    times: int = 4
    name: str = "raft"

    def __call__(self, world: World) -> Iterator[Loss]:
        clean, value = draw(world)
        best = torch.tensor([rows[-1] for rows in ranked(world, value, self.size)], device="cpu")

        def loss(k: int) -> tuple[Tensor, dict[str, float]]:
            error = denoising_error(world.plain, clean[best], best.to(clean.device), world, k)
            return error.mean(), {"kept": value[best].mean().item()}

        yield from fitted(self.times, value, loss)


@dataclass(frozen=True)
class PreferencePairs(Ranks):
    """Diffusion-DPO on pairs of a prompt's images, ranked by the reward.

    Winner and loser share time and noise, as in the published code: what is left of their difference is what ranks them. Of a
    pair of equal rewards neither is preferred, and it weighs nothing.

    Attributes:
        beta: β; 5000 in the paper, for errors averaged over dimensions, of networks that say ε.
        size: images of a prompt in a batch; the best and the worst make the pair.
        times: grid times per batch of samples.
        name: of the objective.
    """

    beta: float = 5000.0
    size: int = 2
    times: int = 4
    name: str = "dpo"

    def __call__(self, world: World) -> Iterator[Loss]:
        clean, value = draw(world)
        pairs = [(rows[-1], rows[0]) for rows in ranked(world, value, self.size) if len(rows) > 1]
        if not pairs:
            raise TiltingError("dpo needs two images of a prompt in a batch")
        win, lose = (torch.tensor(column, device=clean.device) for column in zip(*pairs, strict=True))
        both, keys = torch.cat([win, lose]), torch.minimum(win, lose).repeat(2)
        preferred = (value[win] > value[lose]).to(clean)
        tied = 1 - preferred.mean().item()

        def loss(k: int) -> tuple[Tensor, dict[str, float]]:
            error = denoising_error(world.plain, clean[both], both, world, k, keys)
            with torch.no_grad():
                reference = denoising_error(world.base_plain, clean[both], both, world, k, keys)
            gain = (error - reference)[: len(win)] - (error - reference)[len(win) :]
            right = ((gain < 0) * preferred).sum() / preferred.sum().clamp(min=1)
            found = -(F.logsigmoid(-0.5 * self.beta * gain) * preferred).mean()
            return found, {"accuracy": right.item(), "tied": tied}

        yield from fitted(self.times, value, loss)
