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
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from annotated_types import Ge, Gt
from typing_extensions import Doc

from tilting.declare import Alias
from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.advantages import same
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.denoising import training_error
from tilting.objectives.rollout import rollout
from tilting.schedule import add_noise

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.schedule import Kind
    from tilting.types import Denoise, Time

Source = Literal["current", "pretrained"]


def draw(batch: TrainBatch, source: Source = "current") -> tuple[Tensor, Tensor]:
    """Finished samples of the current or the frozen model and their rewards, without gradients; ranks of broken rewards mean
    nothing."""
    with torch.no_grad():
        batch = replace(batch, denoise=batch.base) if source == "pretrained" else batch
        clean = rollout(batch, closed(batch)).clean
        value = batch.value(clean, batch.rows).detach()
    if not batch.all(value).isfinite().all():
        raise FloatingPointError("the reward is not finite")
    return clean, value


def ranked(batch: TrainBatch, value: Tensor, size: int) -> list[list[int]]:
    """Rows of each group of ``size`` images of a prompt, worst first; a prompt that comes again makes more groups."""
    prompts = [w.prompt for w in batch.who]
    groups = []
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    return [sorted(rows, key=lambda i: value[i].item()) for rows in groups]


class Noised(NamedTuple):
    """Clean samples put back into the chain.

    Attributes:
        x: (m, ...) α x_0 + σ ε.
        t: one grid time for all rows.
        clean, noise: x_0 and ε.
        rows: (m,) their images.
    """

    x: Tensor
    t: Time
    clean: Tensor
    noise: Tensor
    rows: Tensor


def noised(
    clean: Tensor, rows: Tensor, batch: TrainBatch, repeat: int = 0, keys: Tensor | None = None, share: float = 1.0
) -> Noised:
    """Noise clean samples to a random time of the grid.

    Args:
        clean: (m, ...) samples of images ``rows``.
        rows: (m,).
        batch: the batch; time and noise are keyed by its training step.
        repeat: number of the time.
        keys: (m,) images of the whole batch whose noise is taken; default their own. Those that are compared share it.
        share: of the grid's times, from the noisiest, that are drawn from.
    """
    among = max(1, round(share * batch.steps))
    i = int(torch.randint(among, (1,), generator=batch.generator(f"time{repeat}"), device="cpu"))
    t = batch.grid[i]
    if keys is None:
        noise = batch.noise(i, f"fit{repeat}")[rows.cpu()].to(clean)
    else:
        everyone = batch.everyone or batch.who
        noise = batch.noise_of([everyone[k] for k in keys.tolist()], i, f"fit{repeat}").to(clean)
    return Noised(add_noise(clean, noise, t), t, clean, noise, rows)


def error_at(denoise: Denoise, point: Noised, kind: Kind) -> Tensor:
    """The `training_error` of a network at noised samples, (m,)."""
    return training_error(denoise(point.x, point.t, point.rows), point.clean, point.noise, point.t, kind)


def denoising_error(
    denoise: Denoise, clean: Tensor, rows: Tensor, batch: TrainBatch, repeat: int = 0, keys: Tensor | None = None
) -> Tensor:
    """Squared error of the network's own target, averaged over dimensions, (m,), at one grid time for all rows; `noised` says
    what of."""
    return error_at(denoise, noised(clean, rows, batch, repeat, keys), batch.kind)


def fitted(times: int, value: Tensor | None, loss: Callable[[int], tuple[Tensor, dict[str, float]]]) -> Iterator[Loss]:
    """One update from the mean of losses at several grid times; its numbers are the reward's mean and those of the first.

    Args:
        times: how many.
        value: rewards of the samples, (n,); None where there are none.
        loss: the number of a time -> its loss, and numbers to show.
    """
    mean = {} if value is None else {"reward": value.mean().item()}
    for k in range(times):
        one, numbers = loss(k)
        yield Loss(one / times, {**mean, **numbers} if k == 0 else {}, update=k == times - 1)


Timesteps = Annotated[int, Ge(1), Alias("times"), Doc("grid times per batch of samples")]


@OBJECTIVES.register
@dataclass(frozen=True)
class RewardWeighted(BaseObjective):
    """Reward-weighted regression on the current model's samples, or the pre-trained one's.

        x_i = chains of θ (or of the base model), without gradients
        w = softmax(r(decode(x)) / β) over the batch, 0 where all r are equal
        for j = 1 .. J:
            t ~ Uniform of the grid, ε ~ N(0, I)
            loss += Σ_i w_i |target_θ(α_t x_i + σ_t ε_i, t) - target_i|² / J
        θ <- AdamW(∇_θ loss)

    Weighted draws of the model as it is tilt what earlier steps have tilted: exp(r / β) compounds, towards the best reward
    alone, however large β is. Lee et al. 2023 draw from the pre-trained model, whose fit is p_pre exp(r / β), tilted once.
    """

    name, paper = "rwr", "Lee et al. 2023"

    beta: Annotated[float, Gt(0), Doc("temperature of the weights, in the reward's units")] = 0.05
    timesteps: Timesteps = 4
    source: Annotated[Source, Doc('whose samples are fitted, those of the "current" model or of the "pretrained" one')] = (
        "current"
    )

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        clean, value = draw(batch, self.source)
        everything = batch.all(value)
        weight = batch.mine(torch.softmax(everything / self.beta, 0)) * batch.processes * (not same(everything))

        def loss(k: int) -> tuple[Tensor, dict[str, float]]:
            error = denoising_error(batch.plain, clean, batch.rows, batch, k)
            return (weight * error).sum(), {"error": error.mean().item()}

        yield from fitted(self.timesteps, value, loss)


@OBJECTIVES.register
@dataclass(frozen=True)
class Raft(BaseObjective):
    """RAFT: fit the best of each prompt's images.

        for each prompt of the batch: G chains of θ, without gradients;  x = the one of the best r(decode(x))
        for j = 1 .. J:
            t ~ Uniform of the grid, ε ~ N(0, I)
            loss += mean |target_θ(α_t x + σ_t ε, t) - target|² / J
        θ <- AdamW(∇_θ loss)

    The paper fits the best over several epochs before it draws again; here every training step draws. Of images of equal
    rewards none is the best, and they weigh nothing.
    """

    name, paper = "raft", "Dong et al. 2023"

    group_size: Annotated[int, Ge(2), Alias("size"), Doc("images of a prompt in a batch, of which one is kept")] = 4
    timesteps: Timesteps = 4

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        clean, value = draw(batch)
        groups = ranked(batch, value, self.group_size)
        best, worst = (torch.tensor([rows[k] for rows in groups], device="cpu") for k in (-1, 0))
        better = (value[best] > value[worst]).to(clean)

        def loss(k: int) -> tuple[Tensor, dict[str, float]]:
            error = denoising_error(batch.plain, clean[best], best, batch, k)
            return (better * error).mean(), {"kept": value[best].mean().item()}

        yield from fitted(self.timesteps, value, loss)


@OBJECTIVES.register
@dataclass(frozen=True)
class PreferencePairs(BaseObjective):
    """Diffusion-DPO on reward-ranked pairs of the model's own samples, or on pairs of pictures that people ranked (--pairs).

        for each prompt of the batch: G chains of θ, without gradients;  w, l = the best and the worst by r
            or, with --pairs:  w, l = encode(chosen), encode(rejected)
        for j = 1 .. J:
            t ~ Uniform of the grid, ε ~ N(0, I), the same of w and l
            gain = (e_θ - e_base)(w) - (e_θ - e_base)(l),   e = |target(α_t x + σ_t ε, t) - target|²
            loss += -mean log σ(-β/2 gain) / J
        θ <- AdamW(∇_θ loss)

    Winner and loser share time and noise, as in the published code: what is left of their difference is what ranks them. Of a
    pair of equal rewards neither is preferred, and it weighs nothing.
    """

    name, paper = "dpo", "Wallace et al. 2024"
    takes_pairs = True

    beta: Annotated[float, Gt(0), Doc("β; 5000 in the paper, for errors averaged over dimensions, of networks that say ε")] = (
        5000.0
    )
    group_size: Annotated[
        int, Ge(2), Alias("size"), Doc("images of a prompt in a batch; the best and the worst make the pair")
    ] = 2
    timesteps: Timesteps = 4

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        if batch.given is None:
            clean, value = draw(batch)
            reward: Tensor | None = value
            pairs = [(rows[-1], rows[0]) for rows in ranked(batch, value, self.group_size) if len(rows) > 1]
        else:
            clean, reward = batch.given(), None
            value = 1 - batch.rows % 2
            pairs = [(i, i + 1) for i in range(0, len(batch.who) - 1, 2)]
        if not pairs:
            raise TiltingError("dpo needs two images of a prompt in a batch")
        win, lose = (torch.tensor(column, device="cpu") for column in zip(*pairs, strict=True))
        both, keys = torch.cat([win, lose]), batch.first + torch.minimum(win, lose).repeat(2)
        preferred = (value[win] > value[lose]).to(clean)
        tied = 1 - preferred.mean().item()

        def loss(k: int) -> tuple[Tensor, dict[str, float]]:
            error = denoising_error(batch.plain, clean[both], both, batch, k, keys)
            with torch.no_grad():
                reference = denoising_error(batch.base_plain, clean[both], both, batch, k, keys)
            gain = (error - reference)[: len(win)] - (error - reference)[len(win) :]
            right = ((gain < 0) * preferred).sum() / preferred.sum().clamp(min=1)
            found = -(torch.nn.functional.logsigmoid(-0.5 * self.beta * gain) * preferred).mean()
            return found, {"accuracy": right.item(), "tied": tied}

        yield from fitted(self.timesteps, reward, loss)
