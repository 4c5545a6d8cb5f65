"""Policy improvement on the forward process: nft, awm, dgpo, crd. The reward may be a black box, the sampler any.

Finished samples x_0 are noised again, x_t = α x_0 + σ ε, and what the network says there is matched: no density of a step, no
path, and no CFG in training. All four are made of one error, that of pre-training (`denoising.training_error`, of the network's
own output f), of the model θ and of an average of it, "old":

    nft     r e(f_old + β (f_θ - f_old)) + (1 - r) e(f_old - β (f_θ - f_old)),  r in [0, 1]    Zheng et al. 2025
    awm     max(-A ratio, -A clip(ratio)),  ratio = exp(w e_old - w e_θ)                        Xue et al. 2025
    dgpo    -log σ(-β/K Σ_k A_k (e_θ - e_base)(x_k)) per group                                  Luo et al. 2025
    crd     (β (R_θ - mean R_θ) - (A - mean A))²,  R_θ = e_old - e_θ                            Zhu et al. 2026

A batch in which no image is worth more than another weighs nothing: what is left then is crd's anchor alone.

Where "old" is what drew the samples, nft's least is f_old + (2/β) E[r (f - f_old) | x_t], f the target: a guided model, not
exp(r/β)'s tilt. f may be any output that is affine in x_0 at given x_t, for mixing outputs mixes all that they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.advantages import Rewards, Scored, group_worth, leaders, rows_of, same, score
from tilting.objectives.batch import OBJECTIVES, BaseObjective, Loss, TrainBatch, closed
from tilting.objectives.denoising import distance, mixed, residual, training_error
from tilting.objectives.rollout import rollout
from tilting.objectives.supervised import Noised, noised

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Prediction

OLD = "old"
"""The average of the trained weights that the model is compared with."""
SAMPLER = "sampler"
"""The average that draws, where it is another."""
LIMIT = 5.0
"""Advantages are cut to ± this, as in the authors' codes."""

GroupSize = Annotated[int, Ge(2), Doc("images of a prompt that a batch must hold together, which are compared")]
Times = Annotated[int, Ge(1), Doc("grid times per batch of samples; the codes take all but the last")]
Share = Annotated[float, Gt(0), Le(1), Doc("of the grid's times, from the noisiest, that are matched")]
Distance = Annotated[float, Ge(0), Doc("weight of (f_θ - f_base)², averaged over latent dimensions, neither under CFG")]


class Matching(BaseObjective):
    """Samples, what they are worth, and a loss at noised points of them. One of its own gives that loss.

    Attributes:
        drawn_by: the average of the weights that draws; "" is the model as it is.
        timesteps, share: grid times per batch, and which.
        shared: whether the images of a group have one noise.
        epochs: passes over the same points, an update each.
        rewards: how several make one advantage.
    """

    drawn_by: str = ""
    timesteps: int = 4
    share: float = 1.0
    shared: bool = False
    epochs: int = 1
    rewards: Literal["sum", "gdpo"] = "sum"

    @property
    def updates_several(self) -> bool:
        return self.epochs > 1

    @property
    def default_eta(self) -> float:
        return 0.0

    def worth(self, batch: TrainBatch, scored: Scored) -> Tensor:
        """What each image counts for, (b,): its advantage within its group."""
        return group_worth(batch, scored).clamp(-LIMIT, LIMIT)

    def loss(self, batch: TrainBatch, point: Noised, worth: Tensor, kept: Any) -> tuple[Tensor, dict[str, float], Any]:
        """The loss at one time, numbers, and what to keep of it for the next epoch (None in the first)."""
        raise NotImplementedError

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        with torch.no_grad():
            drawing = replace(batch, denoise=batch.average(self.drawn_by, batch.denoise)) if self.drawn_by else batch
            clean = rollout(drawing, closed(batch)).clean
            scored = score(batch, clean, self.rewards)
        if not batch.all(scored.value).isfinite().all():
            raise FloatingPointError("the reward is not finite")
        worth, kept = self.worth(batch, scored), [None] * self.timesteps
        weight = float(not same(batch.all(worth))) / self.timesteps
        mine = slice(batch.first, batch.first + len(batch.who))
        keys = torch.tensor(leaders(batch.prompts, self.group_size)[mine]) if self.shared else None
        for epoch in range(self.epochs):
            for k in range(self.timesteps):
                point = noised(clean, batch.rows, batch, k, keys, self.share)
                loss, numbers, kept[k] = self.loss(batch, point, worth, kept[k])
                if epoch == k == 0:
                    numbers = {"reward": scored.value.mean().item(), **numbers}
                yield Loss(loss * weight, numbers, update=k == self.timesteps - 1)


def held(batch: TrainBatch, network: Callable[..., Prediction], point: Noised) -> Prediction:
    """What a network says of noised points, without gradients."""
    with torch.no_grad():
        return network(point.x, point.t, point.rows)


def improvement(
    new: Prediction, old: Prediction, point: Noised, r: Tensor, beta: float, batch: TrainBatch, own: bool
) -> Tensor:
    """DiffusionNFT's loss, (m,), Eq. 5 over β.

    Args:
        new, old: of the model and of what drew the samples, at ``point``.
        r: (m,) the probability that a sample is a good one, in [0, 1].
        beta: β.
        batch: of its kind of output.
        own: whether errors are of the network's own output; else of x0, each over its own mean size, held (the code's).
    """

    def error(prediction: Prediction) -> Tensor:
        if own:
            return training_error(prediction, point.clean, point.noise, point.t, batch.kind)
        off = (prediction.x0 - point.clean).flatten(1)
        return off.square().mean(1) / off.detach().abs().mean(1).clamp(min=1e-5)

    return (r * error(mixed(new, old, beta)) + (1 - r) * error(mixed(new, old, -beta))) / beta


@OBJECTIVES.register
@dataclass(frozen=True)
class Nft(Matching):
    """DiffusionNFT: match samples positively and, by an implicit negative model, negatively.

        x_0 = chains of "old", any sampler, without gradients;  A_k = (r_k - mean_K r) / std_K r
        r = 1/2 + 1/2 clip(A / 5, ± 1)
        for j = 1 .. J:
            t ~ Uniform of the grid, ε ~ N(0, I), x_t = α x_0 + σ ε
            f+ = f_old + β (f_θ - f_old),   f- = f_old - β (f_θ - f_old)                        Eq. 5
            loss += 5 mean (r e(f+) + (1 - r) e(f-)) / (β J) + distance mean (f_θ - f_base)²
        θ <- AdamW(∇_θ loss);  old <- d old + (1 - d) θ,   d = min(ramp · training step, most)

    Its optimum is f_old + (2/β) Δ, Δ = E[r (f - f_old) | x_t], which is the paper's α(x_t) (f⁺ - f_old) with α = E[r | x_t] and
    f⁺ the positive samples' (its theorem of policy optimisation), where r is a probability and not an exponent: r
    comes from the group ("group"), or is the reward itself, which must then lie in [0, 1] ("given"). The theorem is of
    errors of the network's own output (``weighting`` "own"); the code's are of x0, each divided by its own mean size
    ("adaptive"). Samples are drawn under the run's cfg, matched without; at cfg 1 the two are one policy, as in the paper.
    """

    name, paper = "nft", "Zheng et al. 2025, arXiv 2509.16117; DiffusionNFT"
    drawn_by = OLD

    group_size: GroupSize = 4
    beta: Annotated[float, Gt(0), Doc("β, the strength of guidance is 2/β; 1 in the paper, 0.1 is the more stable")] = 1.0
    timesteps: Times = 4
    share: Share = 1.0
    probability: Annotated[
        Literal["group", "given"], Doc('r of the advantage in its group ("group"), or the reward itself, in [0, 1] ("given")')
    ] = "group"
    weighting: Annotated[
        Literal["adaptive", "own"], Doc('errors of x0 over their own mean size ("adaptive"), or of the network\'s own output')
    ] = "adaptive"
    distance: Distance = 1e-4
    ramp: Annotated[float, Ge(0), Doc("how fast the decay d of the old policy rises, per training step")] = 0.001
    most: Annotated[float, Ge(0), Le(1), Doc("what d rises to; 0 is the current model")] = 0.5
    rewards: Rewards = "sum"

    def averages(self) -> dict[str, Callable[[int], float]]:
        return {OLD: lambda step: min(self.ramp * step, self.most)}

    def worth(self, batch: TrainBatch, scored: Scored) -> Tensor:
        if self.probability == "group":
            return 0.5 + 0.5 * (group_worth(batch, scored) / LIMIT).clamp(-1, 1)
        everything = batch.all(scored.value)
        if everything.min() < 0 or everything.max() > 1:
            low, high = everything.min().item(), everything.max().item()
            raise TiltingError(
                f"nft.probability=given needs a reward in [0, 1], and it goes from {low:.3g} to {high:.3g}: use group"
            )
        return scored.value

    def loss(self, batch: TrainBatch, point: Noised, worth: Tensor, kept: Any) -> tuple[Tensor, dict[str, float], Any]:
        old = held(batch, batch.average(OLD, batch.plain), point)
        new = batch.plain(point.x, point.t, point.rows)
        policy = improvement(new, old, point, worth, self.beta, batch, self.weighting == "own").mean()
        away = distance(new, old, point.t, batch.kind).detach().mean()
        loss, numbers = LIMIT * policy, {"from_old": away.item()}
        if self.distance:
            far = distance(new, held(batch, batch.base_plain, point), point.t, batch.kind).mean()
            loss, numbers = loss + self.distance * far, {**numbers, "from_base": far.item()}
        return loss, numbers, None


@OBJECTIVES.register
@dataclass(frozen=True)
class Awm(Matching):
    """Advantage-weighted matching: the pre-training loss of own samples, weighed by their advantage.

        x_0 = chains of θ, any sampler, without gradients;  A_k = clip((r_k - mean_K r) / std_K r, ± 5)
        for each epoch, for j = 1 .. J:
            t ~ Uniform of the grid, ε ~ N(0, I), x_t = α x_0 + σ ε, the same in every epoch
            ratio = exp(w(e_old) - w(e_θ)),   e_old that of the model that drew
            loss += mean max(-A ratio, -A clip(ratio, 1 ± clip)) / J + old_distance mean (f_θ - f_ema)²
        θ <- AdamW(∇_θ loss), an update an epoch;  ema <- d ema + (1 - d) θ

    In the first epoch the ratio is 1 and its gradient -A ∇ w(e_θ), that of the weighed pre-training loss; the clip binds from
    the second on. With A below 0 errors are pushed up without end, which clip and distance hold.
    """

    name, paper = "awm", "Xue et al. 2025, arXiv 2509.25050"

    group_size: GroupSize = 4
    timesteps: Times = 4
    share: Share = 1.0
    epochs: Annotated[int, Ge(1), Doc("passes over the noised samples, an update each")] = 1
    clip: Annotated[
        float, Gt(0), Doc("half-width of the ratio's clip; 1e-5 is a common choice where there are several epochs")
    ] = 1e-5
    weighting: Annotated[
        Literal["uniform", "t", "t2", "huber", "ghuber"],
        Doc("w of the error e at the flow's time t: e, t e, t² e, t sqrt(e), or t e^(1/4) / (1/4)"),
    ] = "uniform"
    distance: Distance = 0.0
    old_distance: Annotated[float, Ge(0), Doc("weight of (f_θ - f_ema)², averaged over latent dimensions")] = 0.1
    decay: Annotated[float, Ge(0), Le(1), Doc("d of the average; 0.9")] = 0.9
    rewards: Rewards = "sum"

    @property
    def _powers(self) -> tuple[int, float]:
        """(of t, of the error)."""
        return {"uniform": (0, 1.0), "t": (1, 1.0), "t2": (2, 1.0), "huber": (1, 0.5), "ghuber": (1, 0.25)}[self.weighting]

    def averages(self) -> dict[str, Callable[[int], float]]:
        return {OLD: lambda step: self.decay} if self.old_distance else {}

    def loss(self, batch: TrainBatch, point: Noised, worth: Tensor, kept: Any) -> tuple[Tensor, dict[str, float], Any]:
        new = batch.plain(point.x, point.t, point.rows)
        error = training_error(new, point.clean, point.noise, point.t, batch.kind)
        of_t, power = self._powers
        time = point.t.sigma / (point.t.alpha + point.t.sigma)
        weighed = time**of_t * (error if power == 1 else (error + 1e-10) ** power)
        weighed = weighed / power if self.weighting == "ghuber" else weighed
        before = weighed.detach() if kept is None else kept
        ratio = (before - weighed).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = torch.maximum(-worth * ratio, -worth * clipped).mean()
        numbers = {"error": error.mean().item(), "ratio_far": (ratio.detach() - 1).abs().max().item()}
        for name, weight, network in (
            ("from_base", self.distance, batch.base_plain),
            ("from_old", self.old_distance, batch.average(OLD, batch.plain)),
        ):
            if weight:
                far = distance(new, held(batch, network, point), point.t, batch.kind).mean()
                loss, numbers[name] = loss + weight * far, far.item()
        return loss, numbers, before


@OBJECTIVES.register
@dataclass(frozen=True)
class Dgpo(Matching):
    """DGPO: a DPO loss of whole groups, of samples of any sampler.

        for each prompt of the batch: x_k = K chains of θ, without gradients;  A_k = (r_k - mean_K r) / std_K r
        for j = 1 .. J:
            t ~ Uniform of the grid's noisier part, ε ~ N(0, I), the same of a group
            S = β/K Σ_k A_k (e_θ - e_base)(x_k)
            loss += mean over groups of -log σ(-S) / J
        θ <- AdamW(∇_θ loss)

    Its gradient weighs each error's by β σ(S) A / K: groups that are told apart already count less. Weighing by A, whose sum is
    0, cancels the normalising constants of DPO. The authors' code clips errors by their ratio to an average of the model's, and
    may take that for the base; here neither is.
    """

    name, paper = "dgpo", "Luo et al. 2025, arXiv 2510.08425"
    shared = True

    group_size: GroupSize = 4
    beta: Annotated[float, Gt(0), Doc("β; 100 in the paper")] = 100.0
    timesteps: Times = 4
    share: Share = 0.6
    distance: Distance = 0.0
    rewards: Rewards = "sum"

    def loss(self, batch: TrainBatch, point: Noised, worth: Tensor, kept: Any) -> tuple[Tensor, dict[str, float], Any]:
        new = batch.plain(point.x, point.t, point.rows)
        error = training_error(new, point.clean, point.noise, point.t, batch.kind)
        base = held(batch, batch.base_plain, point)
        reference = training_error(base, point.clean, point.noise, point.t, batch.kind)
        gains = batch.all((worth * (error.detach() - reference)).contiguous())
        told_apart = torch.empty_like(gains)
        for rows in rows_of(batch.prompts).values():  # those that A is of: over fewer of them its sum is not 0
            told_apart[rows] = torch.sigmoid(self.beta * gains[rows].mean())
        told_apart = batch.mine(told_apart)
        loss = self.beta * (told_apart * worth * error).mean()
        numbers = {"error": error.mean().item(), "weight": told_apart.mean().item()}
        if self.distance:
            far = distance(new, base, point.t, batch.kind).mean()
            loss, numbers["from_base"] = loss + self.distance * far, far.item()
        return loss, numbers, None


@OBJECTIVES.register
@dataclass(frozen=True)
class Crd(Matching):
    """Centred reward distillation: implicit rewards of the model match the rewards, both less their group's mean.

        for each prompt of the batch: x_k = K chains of "sampler", any, without gradients;  A_k = (r_k - mean_K r) / std_K r
        for j = 1 .. J:
            t ~ Uniform of the grid, ε ~ N(0, I), x_t = α x_0 + σ ε
            R_k = e_old(x_k) - e_θ(x_k)                       what it says of log p_θ / p_old
            loss += mean (β (R_k - mean_K R) - A_k)² / J + distance κ mean (f_θ - f_base,cfg)²
        θ <- AdamW(∇_θ loss);  old and sampler follow θ, each at its own pace

    Of p* = p_old exp(r/β) / Z the constant Z is unknown, and is the same for all images of a prompt: centring takes it away.
    The anchor is the base model under the run's cfg, so that the model without CFG learns what CFG draws; κ = r, from 0 to 1 in
    the group as nft's, lets the worst go (``adaptive``). Errors are each over their own mean size where ``scaled``. Centring by
    soft weights, an option of the authors' code, is not here.
    """

    name, paper = "crd", "Zhu et al. 2026, arXiv 2603.14128"
    drawn_by = SAMPLER

    group_size: GroupSize = 4
    beta: Annotated[float, Gt(0), Doc("β, of implicit rewards; 1 in the code")] = 1.0
    timesteps: Times = 4
    share: Share = 1.0
    scaled: Annotated[bool, Doc("each error of an implicit reward over its own mean size, held")] = True
    distance: Annotated[float, Ge(0), Doc("weight of (f_θ - f_base,cfg)², averaged over latent dimensions; 0.1")] = 0.1
    adaptive: Annotated[bool, Doc("the anchor's weight grows with the reward, from 0 for the worst of a group")] = True
    old_start: Annotated[float, Ge(0), Le(1), Doc("decay of the old policy at first; 0.25")] = 0.25
    old_ramp: Annotated[float, Ge(0), Doc("how fast it rises to 0.999, per training step; 0.005")] = 0.005
    sampler_start: Annotated[int, Ge(0), Doc("training steps in which the sampler is the model itself; 75")] = 75
    sampler_ramp: Annotated[float, Ge(0), Doc("how fast its decay rises to 0.999 then, per training step; 0.0075")] = 0.0075
    rewards: Rewards = "sum"

    def averages(self) -> dict[str, Callable[[int], float]]:
        return {
            OLD: lambda step: min(self.old_start + self.old_ramp * step, 0.999),
            SAMPLER: lambda step: min(max(self.sampler_ramp * (step - self.sampler_start), 0.0), 0.999),
        }

    def implicit(self, prediction: Prediction, point: Noised, batch: TrainBatch) -> Tensor:
        """The error, (m,), that an implicit reward is made of."""
        off = residual(prediction, point.clean, point.noise, point.t, batch.kind).flatten(1)
        error = off.square().mean(1)
        return error / off.detach().abs().mean(1).clamp(min=1e-5) if self.scaled else error

    def loss(self, batch: TrainBatch, point: Noised, worth: Tensor, kept: Any) -> tuple[Tensor, dict[str, float], Any]:
        new = batch.plain(point.x, point.t, point.rows)
        old = held(batch, batch.average(OLD, batch.plain), point)
        reward = self.implicit(old, point, batch) - self.implicit(new, point, batch)
        off = self.beta * (reward - centre(batch, reward)) - (worth - centre(batch, worth))
        loss, numbers = off.square().mean(), {"unexplained": off.detach().square().mean().item()}
        if self.distance:
            far = distance(new, held(batch, batch.base, point), point.t, batch.kind)
            share = 0.5 + 0.5 * (worth / LIMIT).clamp(-1, 1) if self.adaptive else torch.ones_like(worth)
            loss = loss + self.distance * (share * far).mean()
            numbers["from_base"] = far.detach().mean().item()
        return loss, numbers, None


def centre(batch: TrainBatch, value: Tensor) -> Tensor:
    """The mean of a value (b,) over each image's group, (b,), held: the squares that it is taken from have no slope in it."""
    everything = batch.all(value.detach().contiguous())
    out = torch.empty_like(everything)
    for rows in rows_of(batch.prompts).values():
        out[rows] = everything[rows].mean()
    return batch.mine(out)
