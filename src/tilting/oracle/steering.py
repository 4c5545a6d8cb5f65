"""How far the law of a steered chain is from the tilt of that chain, on the plane's mixture.

D²(law of the control, importance-weighted draws of the same chain's tilt),   the same to the tilt of the mixture itself,
the drift's error against g* (`oracle.control`),   and the nats of reward less path KL that the control lacks of g*'s
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from tilting.oracle.control import Chain, Control, Drawn, Optimum, Terminal, drift_error, log_classifier, tilt
from tilting.oracle.plane import BASE, energy_distance

TILTS, SEEDS = 6, (7, 17, 27, 37)
"""Sets of importance-weighted draws, and of a control's: one set's D² has a spread of .001, which hides what is looked for."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def classifier_tilt(gamma: float, y: float, draws: int) -> Tensor:
    """Draws (n, 2) of p_γ by rejection from the mixture: p(y | x)^γ is at most 1."""
    generator, kept = torch.Generator().manual_seed(200), []
    while sum(map(len, kept)) < draws:
        x = BASE.draw(8 * draws, generator)
        kept.append(x[torch.rand(len(x), generator=generator, dtype=torch.float64) < (gamma * log_classifier(x, y)).exp()])
    return torch.cat(kept)[:draws]


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

        self.chain, self.terminal, self.score, self.closed, self.draws = chain, terminal, score, closed, draws
        self.tilts = [tilt(chain, reward, draws, 100 + k) for k in range(TILTS)]
        pairs = [abs(energy_distance(x, y)) for x, y in combinations(self.tilts, 2)]
        self.null = torch.tensor(pairs, dtype=torch.float64).quantile(0.95).item()

    def of(self, *draws: Tensor) -> dict[str, float]:
        """D² to the chain's tilt and to the mixture's, and the mean score; means over sets of draws."""
        return {"same": _mean([energy_distance(x, t) for x in draws for t in self.tilts]), **self._ends(draws)}

    def _ends(self, draws: Sequence[Tensor]) -> dict[str, float]:
        closed = _mean([energy_distance(x, self.closed) for x in draws])
        return {"closed": closed, "score": self.score(torch.cat(list(draws))).mean().item()}

    def exact(self) -> dict[str, float]:
        """The row of importance-weighted draws."""
        return {"same": self.null, **self._ends(self.tilts)}


def steered(to: Targets, best: Optimum, control: Control, states: int) -> dict[str, float]:
    """The row of a control: its law, its drift against g*'s, and the nats of reward less KL that it lacks of g*'s on the same
    noise; ``states`` of them measure the drift."""
    drawn, ideal = ([to.chain.draw(to.draws, seed, u) for seed in SEEDS] for u in (control, best))
    gains = [_mean([(to.terminal(d.end) - d.kl).mean().item() for d in each]) for each in (ideal, drawn)]
    error = drift_error(to.chain, control, best, states, 8)
    return {**to.of(*(d.end for d in drawn)), "to_best": error, "nats": gains[0] - gains[1]}
