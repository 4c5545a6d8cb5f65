"""How far the law of a steered chain is from the tilt of that chain: what the rows of `ctrl-theory` are made of.

The second table is of a reward where that of the first is of a classifier: r(x) = -|x - aim|²/2 of the plane over β, whose tilt
of the mixture is a mixture. Adjoint matching divides the reward by β, the KL-regularised draft multiplies the KL by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilting.objectives import adjoint, draft
from tilting.objectives.adjoint import AdjointMatching
from tilting.objectives.batch import Objective
from tilting.objectives.rollout import rollout
from tilting.schedule import step_std
from tilting_papers import plane
from tilting_papers.ctrl.learned import Labelled, Push, batch_of, learn
from tilting_papers.ctrl.oracle import Chain, Control, Drawn, Optimum, Terminal, drift_error, solve, tilt
from tilting_papers.folder import Say
from tilting_papers.plane import AIM, BASE, BETA, energy_distance

REWARD_RATE = 4e-2
"""Of the second table: the slope of a quadratic reward is noisier than a classifier's, whose training needs half."""
REWARD_FINE = 4
"""Of the second table: so many times the draws on the fine chain, for the adjoints' tails."""
TILTS, SEEDS = 6, (7, 17, 27, 37)
"""Sets of importance-weighted draws, and of a control's: one set's D² has a spread of .001, which hides what is looked for."""
ORIGIN = torch.zeros(1, 2, dtype=torch.float64)


@dataclass(frozen=True)
class Size:
    """How much: chains' T, the T at which controls are learnt, draws of a row, of guidance, training steps, of a batch."""

    steps: tuple[int, ...]
    learnt: tuple[int, ...]
    draws: int
    guided: int
    training: int
    images: int
    cells: int


class Targets:
    """What the rows of one chain and reward are compared with.

    Args:
        chain: whose tilt.
        terminal: log h_0: the reward in nats.
        score: (m, 2) -> (m,) what a row tells the mean of.
        closed: draws (m, 2) of the tilt of the mixture itself.
        draws: of a row.
    """

    def __init__(self, chain: Chain, terminal: Terminal, score: Terminal, closed: Tensor, draws: int):
        def reward(drawn: Drawn) -> Tensor:
            return terminal(drawn.end)

        self.terminal, self.score, self.closed = terminal, score, closed
        self.tilts = [tilt(chain, reward, draws, 100 + k) for k in range(TILTS)]
        pairs = [abs(energy_distance(x, y)) for x, y in combinations(self.tilts, 2)]
        self.null = torch.tensor(pairs, dtype=torch.float64).quantile(0.95).item()

    def of(self, *draws: Tensor) -> dict[str, float]:
        """D² to the chain's tilt and to the mixture's, and the mean score; means over sets of draws."""
        far = [energy_distance(x, t) for x in draws for t in self.tilts]
        return {"same": sum(far) / len(far), **self._ends(draws)}

    def _ends(self, draws: Sequence[Tensor]) -> dict[str, float]:
        closed = [energy_distance(x, self.closed) for x in draws]
        return {"closed": sum(closed) / len(closed), "score": self.score(torch.cat(list(draws))).mean().item()}

    def exact(self) -> dict[str, float]:
        """The row of importance-weighted draws."""
        return {"same": self.null, **self._ends(self.tilts)}


def steered(chain: Chain, to: Targets, best: Optimum, control: Control, size: Size) -> dict[str, float]:
    """The row of a control: its law, its drift against g*'s, and the nats of reward less KL that it lacks of g*'s on the same
    noise."""
    drawn, ideal = ([chain.draw(size.draws, seed, u) for seed in SEEDS] for u in (control, best))
    gains = [sum((to.terminal(d.end) - d.kl).mean().item() for d in each) / len(SEEDS) for each in (ideal, drawn)]
    return {
        **to.of(*(d.end for d in drawn)), "to_best": drift_error(chain, control, best, size.guided, 8),
        "nats": gains[0] - gains[1],
    }  # fmt: skip


def trained(
    size: Size,
    steps: int,
    objectives: Mapping[str, tuple[Objective, Labelled]],
    labels: Sequence[float],
    say: Say,
    rate: float = 2e-2,
    fine: int = 1,
) -> dict[str, Callable[[float], Control]]:
    """The control that each objective learns for its reward on the chain of ``steps``, by name; ``rate`` and ``fine`` as in
    `learn`."""
    found = {}
    for name, (objective, reward) in objectives.items():
        seen: list[dict[str, float]] = []
        found[name] = learn(
            Chain(steps), objective, reward, size.training, labels, size.images, rate=rate, fine=fine, see=seen.append
        )
        say(f"T {steps}: {name} learnt; KL at initialisation {seen[0]['kl']!r}")
    return found


def reward_rows(size: Size, say: Say) -> list[dict[str, Any]]:
    """The second table: a dict of each T and method."""
    closed = BASE.tilt(AIM / BETA, 1 / BETA)[0].draw(4 * size.draws, torch.Generator().manual_seed(200))

    def nats(x: Tensor) -> Tensor:
        return plane.reward(x) / BETA

    def own(x: Tensor, y: Tensor) -> Tensor:
        return plane.reward(x)

    objectives = {"adjoint": (adjoint(beta=BETA), own), "draft, KL": (draft(kl=BETA), own)}
    table = []
    for steps in size.learnt:
        chain = Chain(steps)
        controls = {name: c(0.0) for name, c in trained(size, steps, objectives, (0.0,), say, REWARD_RATE, REWARD_FINE).items()}
        to, best = Targets(chain, nats, plane.reward, closed, size.draws), solve(chain, nats, size.cells)
        rows = {"null": to.exact()}
        rows |= {name: steered(chain, to, best, c, size) for name, c in {"g*": best, **controls}.items()}
        rows["base"] = to.of(chain.draw(size.draws, 10).end)
        table += [{"steps": steps, "method": name, **row} for name, row in rows.items()]
    return table


class Tail(NamedTuple):
    """|std ã|² over paths of the base model at the step where its mean is largest: how noisy adjoint matching's target is."""

    steps: int
    step: int
    median: float
    mean: float
    largest: float


def tail(steps: int, paths: int) -> Tail:
    """Of the second table's reward on the chain of ``steps``."""
    world = batch_of(Chain(steps), Push(), lambda x, y: plane.reward(x), (0.0,), paths, 1, 0)
    with torch.no_grad():
        path = rollout(world, torch.zeros(steps, dtype=torch.bool), kl=True)
    _, adjoints, _ = AdjointMatching(BETA).adjoints(world, path)
    stds = {i: step_std(p.t, p.s, world.eta) for i, p in enumerate(path.points)}
    sizes = {i: (stds[i] * a).square().sum(1) for i, a in adjoints.items() if stds[i] > 0}
    worst = max(sizes, key=lambda i: sizes[i].mean().item())
    found = sizes[worst]
    return Tail(steps, worst, found.median().item(), found.mean().item(), found.max().item())


def cell(value: float | None, digits: int = 4) -> str:
    """A number of a table, or nothing."""
    return "" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def reward_markdown(table: Sequence[Mapping[str, Any]], tails: Sequence[Tail]) -> list[str]:
    """The second table's lines."""
    nulls = {r["steps"]: r["same"] for r in table if r["method"] == "null"}
    return [
        "", f"The tilt by a reward, r = \N{MINUS SIGN}|x \N{MINUS SIGN} aim|²/2 with β = {BETA:g}.", "",
        "| T | method | D² to the chain's tilt | × null | D² to the mixture's | mean reward | drift to g* | nats short of g* |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {r['steps']} | {r['method']} | {cell(r['same'])} | {cell(r['same'] / nulls[r['steps']], 1)} | "
            f"{cell(r['closed'])} | {cell(r['score'], 3)} | {cell(r.get('to_best'), 2)} | {cell(r.get('nats'), 3)} |"
            for r in table
        ),
        "",
        *(
            f"Adjoint matching regresses on lean adjoints, whose tails are heavy where a mixture's modes part: over paths of "
            f"the base model at T {t.steps}, |std ã|² of step {t.step} has median {t.median:.2g}, mean {t.mean:.2g} and "
            f"largest {t.largest:.2g}."
            for t in tails
        ),
    ]  # fmt: skip
