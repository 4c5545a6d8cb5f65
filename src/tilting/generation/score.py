"""The value function of a group, and what becomes of a finished one: each finished latent is decoded and scored once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilting import sample as loop
from tilting.generation.finite import NotFinite
from tilting.generation.plan import Model, decoder_of
from tilting.lazy import torch
from tilting.method import Method
from tilting.rewards.check import waits
from tilting.rewards.weighted_sum import as_sum
from tilting.state import Over, evaluate_value, flat, in_chunks
from tilting.types import Reward, RewardError, TiltingError

if TYPE_CHECKING:
    from torch import Tensor


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


_asked = threading.RLock()
"""A reward is asked by one thread at a time: it may remember what it has said."""


class Scorer:
    """The value function of a group: reward of the decoded estimate. It can keep what it saw, so that nothing is paid twice.

    Args:
        model: what decodes.
        reward: what scores.
        prompts: of each image of the group.
    """

    def __init__(self, model: Model, reward: Reward, prompts: Sequence[str]):
        self.model, self.reward, self.prompts = model, as_sum(reward), prompts
        self.decode = decoder_of(model, prompts)
        self.kept: list[tuple[Tensor, dict[str, Tensor]]] | None = None
        self.decoded: deque[Tensor] = deque()

    def __call__(self, x0: Tensor, rows: Tensor) -> Tensor:
        """(m,) of clean latents or estimates x0 (m, ...); rows (m,) say whose."""
        images = self.decoded.popleft() if self.decoded else self.decode(x0, rows)
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

    def scored(self, over: Over | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """All images and values seen since ``kept`` was set, in order; of all processes that share the rows."""
        names, kept = self.reward.keys, self.kept or []
        columns = [torch.cat([i for i, _ in kept]), *(torch.cat([v[k] for _, v in kept]) for k in names)] if kept else []
        images, *parts = columns if over is None else over.tensors(columns)
        return images, dict(zip(names, parts, strict=True))


Scores = tuple["Tensor", list[float] | None, dict[str, list[float]], Counts]


def finish(
    model: Model, problem: loop.Problem, method: Method, state: loop.State, scorer: Scorer | None
) -> Callable[[], Scores]:
    """What gives the kept images, their rewards, and what that cost: each finished latent is decoded and scored once.

    Where the reward is waited for (`waits`) they are decoded now, and scored when it is called, by any thread.
    """
    b, n = state.x.shape[:2]
    over = problem.over
    if scorer is None:
        final, decode = loop.finish(problem, method, state), decoder_of(model, [one.prompt for one in problem.who])
        kept_rows = final.x[:, 0], torch.arange(b, device="cpu")
        (images,) = in_chunks(lambda a, r: (decode(a, r).float().cpu(),), b, *kept_rows, over=over)
        return lambda: (images, None, {}, Counts(decodes=b))
    scorer.kept = []
    several = method.scores_finals or method.final == "all"
    if not several:
        state = replace(state, x=loop.finish(problem, method, state).x)
    if over is None and waits(scorer.reward):
        for x, rows in zip(*(part.split(problem.chunk) for part in flat(state.x)[:2]), strict=True):
            scorer.decoded.append(scorer.decode(x, rows))

    def scores() -> Scores:
        if several:
            final = loop.finish(problem, method, state)
            kept = torch.zeros(b, dtype=torch.long, device="cpu") if final.kept is None else final.kept.cpu()
            place, paid = torch.arange(b, device="cpu") * n + kept, b * n
        else:
            evaluate_value(problem, state.x)
            place, paid = torch.arange(b, device="cpu"), b
        images, parts = scorer.scored(over)
        mine = {name: values[place] for name, values in parts.items()}
        values = scorer.reward.total(mine)
        return images[place], values.tolist(), {name: v.tolist() for name, v in mine.items()}, Counts(0, paid, paid)

    return scores
