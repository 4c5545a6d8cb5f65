"""CTRL's theory on the plane: Theorem 1, Lemma 2, and what is left of them at T steps (Zhao et al. 2024, sections 4 and 5).

For γ = 1 and 5, T = 8 ... 64 and both labels of a logistic classifier, the energy distance D² to importance-weighted draws of
the same chain's tilt, and to p_γ of the mixture itself, of

    g*                best Gaussian steps (`tilting_papers.ctrl.oracle`)
    lemma 2           the closed form of the continuous limit; for γ = 1 it is classifier guidance by the true p(y | x_t)
    ctrl, adjoint     learnt by the package's objectives: KL-regularised back-propagation (Alg. 2), and adjoint matching
    reconstruction    guidance by p(y | x0(x_t)) at strength γ
    base              no steering
    null              two independent importance-weighted draws: below it nothing can be told from exact

and for the learnt ones the relative error of the drift against g* and against Lemma 2 (weighted as the path KL is), and the
nats of E[γ log p(y | x_0)] - KL that they lack of g*'s. Then the same for a reward whose tilt is a mixture, by adjoint
matching and by the KL-regularised draft (`tilting_papers.ctrl.laws`). Then γ = 5 without memorylessness: what is
left is what theory says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.objective import Ctrl
from tilting.objectives import adjoint
from tilting.oracle.mixture import ZERO_SNR
from tilting.presets.guided import reconstruction_guidance
from tilting.runs.files import write_atomically
from tilting.schedule import Schedule
from tilting_papers.ctrl.laws import (
    ORIGIN,
    SEEDS,
    TILTS,
    Size,
    Tail,
    Targets,
    cell,
    reward_markdown,
    reward_rows,
    steered,
    tail,
    trained,
)
from tilting_papers.ctrl.learned import guided
from tilting_papers.ctrl.oracle import Chain, Control, drift_error, lemma, log_classifier, shift, solve, tilt
from tilting_papers.folder import Say, check_out
from tilting_papers.plane import BASE, energy_distance

GAMMAS = (1.0, 5.0)
LABELS = (0.0, 1.0)
SHORT = Schedule("v_prediction", tuple(b for b in ZERO_SNR.alpha_bar if b > 0.5))
"""The schedule cut where ᾱ is still .5: x_0 remembers x_T."""
FULL = Size((8, 16, 32, 64), (32,), 2000, 1000, 1000, 1024, 45)
SMALL = Size((4, 8), (8,), 400, 100, 100, 128, 25)


def _closed(gamma: float, y: float, draws: int) -> Tensor:
    """Draws of p_γ by rejection from the mixture: p(y | x)^γ is at most 1."""
    generator, kept = torch.Generator().manual_seed(200), []
    while sum(map(len, kept)) < draws:
        x = BASE.draw(8 * draws, generator)
        kept.append(x[torch.rand(len(x), generator=generator, dtype=torch.float64) < (gamma * log_classifier(x, y)).exp()])
    return torch.cat(kept)[:draws]


def _learnt(size: Size, steps: int, gamma: float, say: Say) -> dict[str, Callable[[float], Control]]:
    def terminal(x: Tensor, y: Tensor) -> Tensor:
        return gamma * log_classifier(x, y)

    ctrl = Ctrl("all")
    say(f"γ {gamma:g}")
    return trained(size, steps, {"ctrl": (ctrl, terminal), "adjoint": (adjoint(beta=1.0), terminal)}, LABELS, say)


def rows(size: Size, say: Say = lambda line: None) -> list[dict[str, Any]]:
    """The table: a dict of each γ, T and method, numbers averaged over both labels."""
    table = []
    for gamma in GAMMAS:
        for steps in size.steps:
            learnt = _learnt(size, steps, gamma, say) if steps in size.learnt else {}
            chain, by_name = Chain(steps), {}
            for y in LABELS:
                for name, numbers in _methods(chain, gamma, y, size, learnt).items():
                    by_name.setdefault(name, []).append(numbers)
            for name, each in by_name.items():
                mean = {key: sum(e[key] for e in each) / len(each) for key in each[0]}
                table.append({"gamma": gamma, "steps": steps, "method": name, **mean})
            say(f"γ {gamma:g}, T {steps}: g* {by_name['g*'][0]['same']:.4f} (y 0)")
    return table


def _methods(
    chain: Chain, gamma: float, y: float, size: Size, learnt: dict[str, Callable[[float], Control]]
) -> dict[str, dict[str, float]]:
    def terminal(x: Tensor) -> Tensor:
        return gamma * log_classifier(x, y)

    to = Targets(chain, terminal, lambda x: log_classifier(x, y).exp(), _closed(gamma, y, 4 * size.draws), size.draws)
    best = solve(chain, terminal, size.cells)
    limit = lemma(chain, gamma, y)

    def row(control: Control) -> dict[str, float]:
        return {
            **steered(chain, to, best, control, size),
            "to_lemma": drift_error(chain, control, shift(chain, limit), size.guided, 8),
        }

    found = {
        "null": to.exact(), "g*": {**row(best), "gap": (best.log_h(ORIGIN) - best.value(ORIGIN)).item()},
        "lemma 2": to.of(*(chain.draw(size.draws, seed, denoise=limit).end for seed in SEEDS)),
    }  # fmt: skip
    found |= {name: row(control(y)) for name, control in learnt.items()}
    dps = guided(chain, reconstruction_guidance(gamma).build(chain.steps), terminal, size.guided, 0)
    return found | {"reconstruction": to.of(dps), "base": to.of(chain.draw(size.draws, 10).end)}


def memory_rows(size: Size) -> list[dict[str, Any]]:
    """What a random x_T leaves, for γ = 5 and y = 1 at the longest T: D² of g*'s law to the tilt, and to the law predicted."""
    found = []
    for name, chain in (
        ("eta 1, ᾱ_T 0 (memoryless)", Chain(size.steps[-1])), ("eta 0.2, ᾱ_T 0", Chain(size.steps[-1], eta=0.2)),
        ("eta 1, ᾱ_T 0.5", Chain(size.steps[-1], schedule=SHORT)),
    ):  # fmt: skip

        def terminal(x: Tensor) -> Tensor:
            return 5.0 * log_classifier(x, 1.0)

        best = solve(chain, terminal, size.cells)
        x = chain.draw(size.draws, 7, best).end
        predicted = [tilt(chain, lambda d, b=best: terminal(d.end) - b.log_h(d.start), size.draws, 100 + k) for k in (0, 1)]
        exact = [tilt(chain, lambda d: terminal(d.end), size.draws, 110 + k) for k in (0, 1)]
        found.append({
            "chain": name, "steps": chain.steps, "to_tilt": energy_distance(x, exact[0]),
            "to_predicted": energy_distance(x, predicted[0]), "apart": energy_distance(predicted[0], exact[0]),
            "null": max(abs(energy_distance(a, b)) for a, b in (predicted, exact)),
        })  # fmt: skip
    return found


def markdown(
    table: Sequence[dict[str, Any]], reward: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], tails: Sequence[Tail]
) -> str:
    """table.md."""
    nulls = {(r["gamma"], r["steps"]): r for r in table if r["method"] == "null"}
    lines = [
        f"Energy distance D² on the plane's mixture, means over both labels and, for controls, {len(SEEDS)} sets of draws. "
        f"null: what 95 % of pairs of {TILTS} sets of importance-weighted draws are below.", "",
        "| γ | T | method | D² to the chain's tilt | × null | D² to p_γ | mean p(y given x) | drift to g* | drift to lemma 2 | "
        "nats short of g* |", "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for r in table:
        times, closed = r["same"] / nulls[r["gamma"], r["steps"]]["same"], cell(r["closed"])
        lines.append(
            f"| {r['gamma']:g} | {r['steps']} | {r['method']} | {cell(r['same'])} | {cell(times, 1)} | {closed} | "
            f"{cell(r['score'], 3)} | {cell(r.get('to_best'), 2)} | {cell(r.get('to_lemma'), 2)} | {cell(r.get('nats'), 3)} |"
        )
    costs = ", ".join(f"γ {r['gamma']:g} T {r['steps']}: {cell(r['gap'], 3)}" for r in table if "gap" in r)
    lines += ["", f"Path KL of g* to the exact tilt, in nats (what steps that stay Gaussian cost): {costs}."]
    lines += reward_markdown(reward, tails)
    lines += ["", "A random x_T keeps its prior: γ = 5, y = 1.", "",
              "| chain | T | g* to the tilt | g* to the law predicted for it | the two laws apart | null |",
              "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {m['chain']} | {m['steps']} | {cell(m['to_tilt'])} | {cell(m['to_predicted'])} | {cell(m['apart'])} | "
        f"{cell(m['null'])} |"
        for m in memory
    ]
    return "\n".join(lines) + "\n"


def run(out: Path, small: bool, say: Say) -> list[dict[str, Any]]:
    """Write table.md and table.json into ``out`` and return the table."""
    check_out("ctrl-theory", out, small)
    size = SMALL if small else FULL
    table, reward, memory = rows(size, say), reward_rows(size, say), memory_rows(size)
    tails = [tail(steps, 8 * size.images) for steps in size.learnt]
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(table, reward, memory, tails)
    write_atomically(out / "table.md", text.encode())
    report = {
        "recipe": "ctrl-theory",
        "small": small,
        "rows": table,
        "reward": reward,
        "memory": memory,
        "tails": [t._asdict() for t in tails],
    }
    write_atomically(out / "table.json", (json.dumps(report, indent=1) + "\n").encode())
    say(text)
    return table
