"""The value function of a group, and its finish: each final latent is decoded and scored once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tilting import sample as loop
from tilting.generation.finite import NotFinite
from tilting.generation.plan import Model, decoder_of, looker_of
from tilting.lazy import torch
from tilting.method import Method
from tilting.rewards.weighted_sum import as_sum, of_latents
from tilting.state import ProcessGroup, evaluate_value, flat, in_chunks
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
_asked = threading.RLock()
"""A reward is asked by one thread at a time: it may remember what it has said."""


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
        self.decoded: deque[Tensor] = deque()
        self.noisy = None if of_latents(self.reward) is None else self.of_latents

    def of_latents(self, x: Tensor, t: Time, rows: Tensor) -> Tensor:
        """(m,) of latents x (m, ...) at their own time, by a reward that scores such."""
        prompts, weight = [self.prompts[int(i)] for i in rows.tolist()], self.reward.parts[0][1]
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
        images = self.decoded.popleft() if self.decoded else decode(x0, rows)
        prompts = [self.prompts[int(i)] for i in rows.tolist()]
        try:
            with _asked:
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

    def scored(self, over: ProcessGroup | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """All images and values seen since ``kept`` was set, in order; of all processes that share the rows."""
        names, kept = self.reward.keys, self.kept or []
        columns = [torch.cat([i for i, _ in kept]), *(torch.cat([v[k] for _, v in kept]) for k in names)] if kept else []
        images, *parts = columns if over is None else over.all_gather_rows(columns)
        return images, dict(zip(names, parts, strict=True))


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


def finish(
    model: Model, problem: loop.Problem, method: Method, state: loop.State, scorer: Scorer | None, ahead: bool = False
) -> Callable[[], Finished]:
    """What gives the kept images, their rewards, and what that cost: each finished latent is decoded and scored once.

    ``ahead`` is whether they are decoded now and scored when it is called, by any thread.
    """
    b, n = state.x.shape[:2]
    over, rows = problem.over, torch.arange(b, device="cpu")
    if scorer is None:
        final, decode = loop.finish(problem, method, state), decoder_of(model, [one.prompt for one in problem.who])
        (images,) = in_chunks(lambda a, r: (decode(a, r).float().cpu(),), b, final.x[:, 0], rows, over=over)
        done = Finished(images, None, {}, Counts(decodes=b), _kept(final, b))
        return lambda: done
    if scorer.noisy is not None:
        latent = _of_latents(loop.finish(problem, method, state), scorer, b)
        return lambda: latent
    scorer.kept = []
    several = method.scores_finals or method.final == "all"
    alone = None if several else loop.finish(problem, method, state)
    finals = state.x if alone is None else alone.x
    if ahead and over is None:
        for x, whose in zip(*(part.split(problem.chunk) for part in flat(finals)[:2]), strict=True):
            scorer.decoded.append(scorer.decode(x, whose))

    def finished() -> Finished:
        if alone is None:
            final = loop.finish(problem, method, state)
            place, paid = rows * n + _kept(final, b), b * n
        else:
            final, place, paid = alone, rows, b
            evaluate_value(problem, alone.x)
        images, parts = scorer.scored(over)
        mine = {name: values[place] for name, values in parts.items()}
        values, looks = scorer.reward.total(mine), None
        each = {name: v.tolist() for name, v in mine.items()}
        if scorer.look is not None:
            scorer.kept, paid = None, paid + b
            looks = scorer(final.x[:, 0], rows).tolist()
        return Finished(images[place], values.tolist(), each, Counts(0, paid, paid), _kept(final, b), final.value, looks)

    return finished


def _kept(final: loop.Final, images: int) -> Tensor:
    """Which particle each image is."""
    return torch.zeros(images, dtype=torch.long, device="cpu") if final.kept is None else final.kept.cpu()


def _of_latents(final: loop.Final, scorer: Scorer, images: int) -> Finished:
    """The same where latents are scored: the kept image alone is decoded."""
    rows = torch.arange(images, device="cpu")
    value = scorer(final.x[:, 0], rows).detach().cpu().double()
    name, (_, weight) = scorer.reward.keys[0], scorer.reward.parts[0]
    paid = images + (0 if final.value is None else final.value.numel())
    drawn, each = scorer.decode(final.x[:, 0], rows).float().cpu(), {name: (value / weight).tolist()}
    return Finished(drawn, value.tolist(), each, Counts(0, images, paid), _kept(final, images), final.value)
