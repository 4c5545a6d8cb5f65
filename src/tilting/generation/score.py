"""The value function of a group, and what becomes of a finished one: each finished latent is decoded and scored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tilting import sample as loop
from tilting.generation.finite import NotFinite
from tilting.generation.plan import Model, decoder_of, looker_of
from tilting.lazy import torch
from tilting.method import Method
from tilting.rewards.weighted_sum import as_sum, of_latents
from tilting.types import Reward, RewardError, TiltingError, Time

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.switches import Idle


@dataclass(frozen=True)
class Counts:
    """What a run has paid: denoiser evaluations, decoded latents, images scored by the reward, seconds."""

    evaluations: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.evaluations + other.evaluations,
            self.decodes + other.decodes,
            self.reward_calls + other.reward_calls,
            self.seconds + other.seconds,
        )


CLEAN = Time(0.0, 1.0, 0.0)


class Scorer:
    """The value function of a group: reward of the decoded estimate. It can keep what it saw, so that nothing is paid twice.
    Estimates are decoded by the model's look decoder, where it has one; what is kept by its own. A reward of latents is given
    them as they are, and nothing is decoded for it.

    Args:
        model: what decodes.
        reward: what scores.
        prompts: of each image of the group.
    """

    def __init__(self, model: Model, reward: Reward, prompts: Sequence[str]):
        self.model, self.reward, self.prompts = model, as_sum(reward), prompts
        self.decode, self.look = decoder_of(model, prompts), looker_of(model, prompts)
        self.idle: Idle | None = None
        self.kept: list[tuple[Tensor, dict[str, Tensor]]] | None = None
        self.noisy = None if of_latents(self.reward) is None else self.of_latents

    def of_latents(self, x: Tensor, t: Time, rows: Tensor) -> Tensor:
        """(m,) of latents x (m, ...) at their own time, by a reward that scores such."""
        prompts, weight = [self.prompts[int(i)] for i in rows], self.reward.parts[0][1]
        try:
            return weight * of_latents(self.reward).of_latents(x, t, prompts)
        except RewardError as error:
            raise RewardError(str(error), None if error.row is None else int(rows[error.row])) from error

    def __call__(self, x0: Tensor, rows: Tensor) -> Tensor:
        """(m,) of estimates x0 (m, ...), or where what is seen is kept, of clean latents; rows (m,) say whose."""
        if self.idle is not None:
            self.idle.fetch()
        if self.noisy is not None:
            return self.noisy(x0, CLEAN, rows)
        decode = self.decode if self.kept is not None or self.look is None else self.look
        images, prompts = decode(x0, rows), [self.prompts[int(i)] for i in rows]
        try:
            parts = self.reward.each(images, prompts)
            value = self.reward.total(parts)
        except TiltingError as error:
            bad = (~images.detach().isfinite()).flatten(1).any(1).nonzero()
            if len(bad):  # whatever the reward says of them
                raise NotFinite(row=int(rows[bad[0, 0]])) from error
            if not isinstance(error, RewardError):
                raise
            row = int(rows[error.row]) if error.row is not None else None
            raise RewardError(str(error), row) from error
        if self.kept is not None:
            self.kept.append((images.detach().float().cpu(), {k: v.detach().cpu().double() for k, v in parts.items()}))
        return value

    def scored(self) -> tuple[Tensor, dict[str, Tensor]]:
        """All images and values seen since ``kept`` was set, in order."""
        kept = self.kept or []
        return torch.cat([i for i, _ in kept]), {k: torch.cat([v[k] for _, v in kept]) for k in kept[0][1]}


class Finished(NamedTuple):
    """What becomes of a group.

    Attributes:
        images: (b, 3, h, w), those that are kept.
        reward: b weighted sums, or None.
        rewards: per reward spec, b numbers.
        counts: what finishing cost.
        kept: (b,) which particle each is.
        values: (b, n) rewards of all finished particles, where those were scored.
        looks: b weighted sums as a look says them of the same latents, where another decoder looks.
    """

    images: Tensor
    reward: list[float] | None
    rewards: dict[str, list[float]]
    counts: Counts
    kept: Tensor
    values: Tensor | None = None
    looks: list[float] | None = None


def finish(model: Model, problem: loop.Problem, method: Method, state: loop.State, scorer: Scorer | None) -> Finished:
    """The kept images, their rewards, and what that cost: each finished latent is decoded and scored once."""
    if scorer is not None:
        scorer.kept = []
    final = loop.finish(problem, method, state)
    b, n = state.x.shape[:2]
    kept = torch.zeros(b, dtype=torch.long, device="cpu") if final.kept is None else final.kept.cpu()
    if scorer is not None and scorer.noisy is not None:
        return _of_latents(final, scorer, kept)
    if scorer is None:
        rows, decode = torch.arange(b, device="cpu"), decoder_of(model, [one.prompt for one in problem.who])
        return Finished(decode(final.x[:, 0], rows).float().cpu(), None, {}, Counts(decodes=b), kept)
    if final.value is None:
        scorer(final.x[:, 0], torch.arange(b, device="cpu"))
        place, paid = torch.arange(b, device="cpu"), b
    else:
        place, paid = torch.arange(b, device="cpu") * n + kept, b * n
    images, parts = scorer.scored()
    mine = {name: values[place] for name, values in parts.items()}
    values, looks = scorer.reward.total(mine), None
    each = {name: v.tolist() for name, v in mine.items()}
    if scorer.look is not None:
        scorer.kept, paid = None, paid + b
        looks = scorer(final.x[:, 0], torch.arange(b, device="cpu")).tolist()
    return Finished(images[place], values.tolist(), each, Counts(0, paid, paid), kept, final.value, looks)


def _of_latents(final: loop.Final, scorer: Scorer, kept: Tensor) -> Finished:
    """The same where latents are scored: the kept image alone is decoded."""
    rows = torch.arange(len(final.x), device="cpu")
    value = scorer(final.x[:, 0], rows).detach().cpu().double()
    name, (_, weight) = scorer.reward.keys[0], scorer.reward.parts[0]
    paid = len(rows) + (0 if final.value is None else final.value.numel())
    images, each = scorer.decode(final.x[:, 0], rows).float().cpu(), {name: (value / weight).tolist()}
    return Finished(images, value.tolist(), each, Counts(0, len(rows), paid), kept, final.value)
