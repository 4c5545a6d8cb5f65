"""Advantages of policy objectives: rewards relative to those of other images. Statistics are float64 on the CPU.

    group     (r - mean) / std within a prompt's images                              GRPO
    buffer    the same over the last rewards of a prompt                             DDPO
    others    r less the mean of the batch's other images                            DPOK
    gdpo      Σ_k w_k (group of r_k), then (· - mean) / std over the batch           Liu et al. 2026, arXiv 2601.05242
    wins      the share of a prompt's other images that an image is better than      Wang et al. 2025, arXiv 2508.20751

Under gdpo the units of a reward are nothing, its weight is, and one that is constant in a group gives 0 there; a sum of rewards
is ruled by the one that varies most. Wins forget by how much: differences too small to mean anything are not blown up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from typing_extensions import Doc

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.objectives.batch import TrainBatch

if TYPE_CHECKING:
    from torch import Tensor

Rewards = Annotated[
    Literal["sum", "gdpo"],
    Doc('several rewards are summed, then normalised in the group ("sum"), or each in the group, and over the batch ("gdpo")'),
]


def same(values: Tensor) -> bool:
    """Whether they are all alike: less their mean they are 0 then, which rounding does not see."""
    return bool((values == values[0]).all())


def rows_of(prompts: Sequence[str]) -> dict[str, list[int]]:
    """The images of each prompt."""
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(prompt, []).append(i)
    return found


def leaders(prompts: Sequence[str], size: int) -> list[int]:
    """For each image, the index of the first of its group: ``size`` images of a prompt; a repeated prompt has more groups."""
    first = list(range(len(prompts)))
    for rows in rows_of(prompts).values():
        for n, i in enumerate(rows):
            first[i] = rows[n // size * size]
    return first


def group_advantage(value: Tensor, prompts: Sequence[str]) -> Tensor:
    """(r - mean) / std within each prompt's images of the batch, (b,); 0 where a prompt has one image or equal rewards."""
    rewards = value.cpu().double()
    out = torch.zeros_like(rewards)
    for rows in rows_of(prompts).values():
        mine = rewards[rows]
        if not same(mine):
            out[rows] = (mine - mine.mean()) / (mine.std(unbiased=False) + 1e-8)
    return out.to(value.dtype).to(value.device)


def gdpo_advantage(parts: Tensor, shares: Sequence[float], prompts: Sequence[str]) -> Tensor:
    """Rewards normalised one by one and then together, (b,).

    Args:
        parts: (b, R) the rewards.
        shares: R weights.
        prompts: b, whose images are groups.
    """
    each = [share * group_advantage(parts[:, k], prompts) for k, share in enumerate(shares)]
    total = torch.stack(each).sum(0).cpu().double()
    if same(total):
        return torch.zeros_like(parts[:, 0])
    out = (total - total.mean()) / (total.std(unbiased=False) + 1e-8)
    return out.to(parts.dtype).to(parts.device)


def buffered_advantage(value: Tensor, prompts: Sequence[str], memory: dict, size: int, least: int) -> Tensor:
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
        out[i] = 0.0 if same(seen) else (rewards[i] - seen.mean()) / (seen.std(unbiased=False) + 1e-6)
    return out.to(value.dtype).to(value.device)


def among_others(batch: TrainBatch, value: Tensor) -> Tensor:
    """Values (b,) of this process's images, each less the mean of all the others in the batch; 0 of a single image."""
    everything = batch.all(value)
    count = len(everything)
    if same(everything):
        return torch.zeros_like(value)
    return (value - everything.mean()) * (count / max(count - 1, 1))


def win_rates(value: Tensor, prompts: Sequence[str]) -> Tensor:
    """The share of a prompt's other images that each has a higher reward than, (b,), a tie being half; 1/2 of a single one."""
    out = torch.full_like(value, 0.5)
    for rows in rows_of(prompts).values():
        if len(rows) > 1:
            mine = value[rows]
            ahead = (mine[:, None] > mine).to(value) + 0.5 * (mine[:, None] == mine).to(value)
            out[rows] = (ahead.sum(1) - 0.5) / (len(rows) - 1)
    return out


def preferred_rates(batch: TrainBatch, clean: Tensor) -> Tensor:
    """The same by the reward's own comparisons of pictures, of every ordered pair of a prompt's images, so that it does not
    matter which a judge is shown first. Raises TiltingError where processes cut a prompt's images apart."""
    assert batch.prefers is not None
    groups = rows_of([w.prompt for w in batch.who])
    if any(len(groups[p]) != len(rows) for p, rows in rows_of(batch.prompts).items() if p in groups):
        raise TiltingError("pictures of a prompt are compared within a process: give each process whole groups")
    pairs = [(a, b) for rows in groups.values() for a in rows for b in rows if a != b]
    out = torch.full((len(clean),), 0.5, dtype=clean.dtype, device=clean.device)
    if not pairs:
        return out
    first, second = (torch.tensor(column, device=clean.device) for column in zip(*pairs, strict=True))
    found = batch.prefers(clean[first], clean[second], first).to(clean)
    wins, met = torch.zeros_like(out), torch.zeros_like(out)
    for mine, won in ((first, found), (second, 1 - found)):
        wins, met = wins.index_add(0, mine, won), met.index_add(0, mine, torch.ones_like(won))
    return torch.where(met > 0, wins / met.clamp(min=1), out)


class Scored(NamedTuple):
    """Rewards of finished samples: their weighted sum (b,), and one by one, (b, R), where that was asked for."""

    value: Tensor
    parts: Tensor | None = None


def score(batch: TrainBatch, clean: Tensor, rewards: Rewards) -> Scored:
    """The rewards of all images, detached: each is paid for once."""
    if rewards == "sum":
        return Scored(batch.value(clean, batch.rows).detach())
    if batch.parts is None:
        value = batch.value(clean, batch.rows).detach()
        return Scored(value, value[:, None])
    parts = batch.parts(clean, batch.rows).detach()
    return Scored(parts @ parts.new_tensor(list(batch.shares)), parts)


def group_worth(batch: TrainBatch, scored: Scored) -> Tensor:
    """The advantage (b,) of this process's images within their groups, by the sum of the rewards or, where they are known one
    by one, by GDPO."""
    if scored.parts is None:
        return batch.mine(group_advantage(batch.all(scored.value), batch.prompts))
    columns = torch.stack([batch.all(part.contiguous()) for part in scored.parts.unbind(1)], 1)
    return batch.mine(gdpo_advantage(columns, batch.shares or (1.0,), batch.prompts))
