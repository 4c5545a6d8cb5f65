"""How far the law of a steered chain is from the tilt of that chain: the numbers of `ctrl-theory`.

For γ = 1 and 5, T = 8 ... 64 and both labels of a logistic classifier, the energy distance D² to importance-weighted draws of
the same chain's tilt, and to p_γ of the mixture itself, of

    g*                best Gaussian steps (`tilting.oracle.control`)
    lemma 2           the closed form of the continuous limit; for γ = 1 it is classifier guidance by the true p(y | x_t)
    ctrl, adjoint     learnt by the package's objectives: KL-regularised back-propagation (Alg. 2), and adjoint matching
    reconstruction    guidance by p(y | x0(x_t)) at strength γ
    base              no steering
    null              two independent importance-weighted draws: below it nothing can be told from exact

and for the learnt ones the relative error of the drift against g* and against Lemma 2 (weighted as the path KL is), and the
nats of E[γ log p(y | x_0)] - KL that they lack of g*'s.

The second table is of a reward where that of the first is of a classifier: r(x) = -|x - aim|²/2 of the plane over β, whose tilt
of the mixture is a mixture. Adjoint matching divides the reward by β, the KL-regularised draft multiplies the KL by it. Then
γ = 5 without memorylessness: what is left is what theory says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.objective import Ctrl
from tilting.objectives import adjoint, draft
from tilting.objectives.adjoint import AdjointMatching
from tilting.objectives.batch import Losses
from tilting.objectives.rollout import rollout
from tilting.oracle import plane
from tilting.oracle.control import Chain, Control, drift_error, lemma, log_classifier, shift, solve, tilt
from tilting.oracle.mixture import ZERO_SNR
from tilting.oracle.plane import AIM, BASE, BETA, energy_distance
from tilting.oracle.steering import SEEDS, TILTS, Targets, classifier_tilt, steered
from tilting.presets.guided import reconstruction_guidance
from tilting.schedule import Schedule, step_std
from tilting_papers.ctrl.learned import LabelledReward, Push, batch_of, guided, learn
from tilting_papers.numbers import mean
from tilting_papers.page import MINUS, fixed, table
from tilting_papers.recipe import Report, Run, Say

GAMMAS = (1.0, 5.0)
LABELS = (0.0, 1.0)
SHORT = Schedule("v_prediction", tuple(b for b in ZERO_SNR.alpha_bar if b > 0.5))
"""The schedule cut where ᾱ is still .5: x_0 remembers x_T."""
REWARD_RATE = 4e-2
"""Of the second table: the slope of a quadratic reward is noisier than a classifier's, whose training needs half."""
REWARD_FINE = 4
"""Of the second table: so many times the draws on the fine chain, for the adjoints' tails."""
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


FULL = Size((8, 16, 32, 64), (32,), 2000, 1000, 1000, 1024, 45)
SMALL = Size((4, 8), (8,), 400, 100, 100, 128, 25)


def measure(run: Run) -> Report:
    """Both tables, the chains that remember, and the tails of the adjoints: what table.json holds."""
    size = SMALL if run.small else FULL
    tables = {"rows": rows(size, run.say), "reward": reward_rows(size, run.say), "memory": memory_rows(size)}
    return {**tables, "tails": [tail(steps, 8 * size.images) for steps in size.learnt]}


def trained(
    size: Size,
    steps: int,
    objectives: Mapping[str, tuple[Losses, LabelledReward]],
    labels: Sequence[float],
    say: Say,
    rate: float = 2e-2,
    fine: int = 1,
) -> dict[str, Callable[[float], Control]]:
    """The control that each objective learns for its reward on the chain of ``steps``, by name; ``rate`` and ``fine`` as in
    `learn`."""
    controls = {}
    for name, (objective, reward) in objectives.items():
        history: list[dict[str, float]] = []
        options: dict[str, Any] = {"rate": rate, "fine": fine, "see": history.append}
        controls[name] = learn(Chain(steps), objective, reward, size.training, labels, size.images, **options)
        say(f"T {steps}: {name} learnt; KL at initialisation {history[0]['kl']!r}")
    return controls


def rows(size: Size, say: Say = lambda line: None) -> list[dict[str, Any]]:
    """The first table: a dict of each γ, T and method, numbers averaged over both labels."""
    lines = []
    for gamma in GAMMAS:

        def terminal(x: Tensor, y: Tensor, gamma: float = gamma) -> Tensor:
            return gamma * log_classifier(x, y)

        ctrl = Ctrl("all")
        objectives = {"ctrl": (ctrl, terminal), "adjoint": (adjoint(beta=1.0), terminal)}
        for steps in size.steps:
            learnt = trained(size, steps, objectives, LABELS, say) if steps in size.learnt else {}
            each = [_methods(Chain(steps), gamma, y, size, learnt) for y in LABELS]
            for name in each[0]:
                means = {key: mean([one[name][key] for one in each]) for key in each[0][name]}
                lines.append({"gamma": gamma, "steps": steps, "method": name, **means})
            say(f"γ {gamma:g}, T {steps}: g* {each[0]['g*']['same']:.4f} (y 0)")
    return lines


def _methods(
    chain: Chain, gamma: float, y: float, size: Size, learnt: dict[str, Callable[[float], Control]]
) -> dict[str, dict[str, float]]:
    def terminal(x: Tensor) -> Tensor:
        return gamma * log_classifier(x, y)

    to = Targets(chain, terminal, lambda x: log_classifier(x, y).exp(), classifier_tilt(gamma, y, 4 * size.draws), size.draws)
    best, limit = solve(chain, terminal, size.cells), lemma(chain, gamma, y)

    def row(control: Control) -> dict[str, float]:
        error = drift_error(chain, control, shift(chain, limit), size.guided, 8)
        return {**steered(to, best, control, size.guided), "to_lemma": error}

    laws = {"null": to.exact(), "g*": {**row(best), "gap": (best.log_h(ORIGIN) - best.value(ORIGIN)).item()}}
    laws["lemma 2"] = to.of(*(chain.draw(size.draws, seed, denoise=limit).end for seed in SEEDS))
    laws |= {name: row(control(y)) for name, control in learnt.items()}
    dps = guided(chain, reconstruction_guidance(gamma).build(chain.steps), terminal, size.guided, 0)
    return laws | {"reconstruction": to.of(dps), "base": to.of(chain.draw(size.draws, 10).end)}


def reward_rows(size: Size, say: Say) -> list[dict[str, Any]]:
    """The second table: a dict of each T and method."""
    closed = BASE.tilt(AIM / BETA, 1 / BETA)[0].draw(4 * size.draws, torch.Generator().manual_seed(200))

    def nats(x: Tensor) -> Tensor:
        return plane.reward(x) / BETA

    def own(x: Tensor, y: Tensor) -> Tensor:
        return plane.reward(x)

    objectives = {"adjoint": (adjoint(beta=BETA), own), "draft, KL": (draft(kl=BETA), own)}
    lines = []
    for steps in size.learnt:
        chain = Chain(steps)
        controls = {name: c(0.0) for name, c in trained(size, steps, objectives, (0.0,), say, REWARD_RATE, REWARD_FINE).items()}
        to, best = Targets(chain, nats, plane.reward, closed, size.draws), solve(chain, nats, size.cells)
        laws = {"null": to.exact()}
        laws |= {name: steered(to, best, c, size.guided) for name, c in {"g*": best, **controls}.items()}
        laws["base"] = to.of(chain.draw(size.draws, 10).end)
        lines += [{"steps": steps, "method": name, **law} for name, law in laws.items()]
    return lines


def memory_rows(size: Size) -> list[dict[str, Any]]:
    """What a random x_T leaves, for γ = 5 and y = 1 at the longest T: D² of g*'s law to the tilt, and to the law predicted."""

    def terminal(x: Tensor) -> Tensor:
        return 5.0 * log_classifier(x, 1.0)

    longest, lines = size.steps[-1], []
    chains = {"eta 1, ᾱ_T 0 (memoryless)": Chain(longest), "eta 0.2, ᾱ_T 0": Chain(longest, eta=0.2)}
    for name, chain in {**chains, "eta 1, ᾱ_T 0.5": Chain(longest, schedule=SHORT)}.items():
        best = solve(chain, terminal, size.cells)
        x = chain.draw(size.draws, 7, best).end
        predicted = [tilt(chain, lambda d, b=best: terminal(d.end) - b.log_h(d.start), size.draws, 100 + k) for k in (0, 1)]
        exact = [tilt(chain, lambda d: terminal(d.end), size.draws, 110 + k) for k in (0, 1)]
        line = {"chain": name, "steps": chain.steps, "to_tilt": energy_distance(x, exact[0])}
        line |= {"to_predicted": energy_distance(x, predicted[0]), "apart": energy_distance(predicted[0], exact[0])}
        lines.append({**line, "null": max(abs(energy_distance(a, b)) for a, b in (predicted, exact))})
    return lines


def tail(steps: int, paths: int) -> dict[str, float]:
    """|std ã|² over paths of the base model at the step where its mean is largest, of the second table's reward on the chain of
    ``steps``: how noisy adjoint matching's target is."""
    world = batch_of(Chain(steps), Push(), lambda x, y: plane.reward(x), (0.0,), paths, 1, 0)
    with torch.no_grad():
        path = rollout(world, torch.zeros(steps, dtype=torch.bool), kl=True)
    _, adjoints, _ = AdjointMatching(BETA).adjoints(world, path)
    stds = {i: step_std(p.t, p.s, world.eta) for i, p in enumerate(path.points)}
    sizes = {i: (stds[i] * a).square().sum(1) for i, a in adjoints.items() if stds[i] > 0}
    worst = max(sizes, key=lambda i: sizes[i].mean().item())
    most = sizes[worst]
    moments = {"median": most.median().item(), "mean": most.mean().item(), "largest": most.max().item()}
    return {"steps": steps, "step": worst, **moments}


def _laws(rows: Sequence[Mapping[str, Any]], heads: Sequence[str], keys: Mapping[str, int], by: Sequence[str]) -> list[str]:
    """A table of laws: D² to the chain's tilt and how many times the null that is, then these keys with their decimals."""
    nulls = {tuple(row[key] for key in by): row["same"] for row in rows if row["method"] == "null"}
    lines = []
    for row in rows:
        times = row["same"] / nulls[tuple(row[key] for key in by)]
        cells = [*(f"{row[key]:g}" for key in by), row["method"], fixed(row["same"]), fixed(times, 1)]
        lines.append([*cells, *(fixed(row.get(key), decimals) for key, decimals in keys.items())])
    return table(heads, lines, [head != "method" for head in heads])


def markdown(report: Mapping[str, Any]) -> str:
    """table.md."""
    rows, drifts = report["rows"], {"to_best": 2, "to_lemma": 2, "nats": 3}
    heads = ["γ", "T", "method", "D² to the chain's tilt", "× null", "D² to p_γ", "mean p(y given x)", "drift to g*"]
    heads += ["drift to lemma 2", "nats short of g*"]
    lines = [
        f"Energy distance D² on the plane's mixture, means over both labels and, for controls, {len(SEEDS)} sets of draws. "
        f"null: what 95 % of pairs of {TILTS} sets of importance-weighted draws are below.",
        "",
        *_laws(rows, heads, {"closed": 4, "score": 3, **drifts}, ("gamma", "steps")),
    ]
    costs = ", ".join(f"γ {r['gamma']:g} T {r['steps']}: {fixed(r['gap'], 3)}" for r in rows if "gap" in r)
    lines += ["", f"Path KL of g* to the exact tilt, in nats (what steps that stay Gaussian cost): {costs}."]
    heads = ["T", "method", "D² to the chain's tilt", "× null", "D² to the mixture's", "mean reward", "drift to g*"]
    drifts.pop("to_lemma")
    lines += ["", f"The tilt by a reward, r = {MINUS}|x {MINUS} aim|²/2 with β = {BETA:g}.", ""]
    lines += _laws(report["reward"], [*heads, "nats short of g*"], {"closed": 4, "score": 3, **drifts}, ("steps",))
    lines.append("")
    lines += [
        f"Adjoint matching regresses on lean adjoints, whose tails are heavy where a mixture's modes part: over paths of the "
        f"base model at T {t['steps']}, |std ã|² of step {t['step']} has median {t['median']:.2g}, mean {t['mean']:.2g} and "
        f"largest {t['largest']:.2g}."
        for t in report["tails"]
    ]
    lines += ["", "A random x_T keeps its prior: γ = 5, y = 1.", ""]
    keys = ("to_tilt", "to_predicted", "apart", "null")
    memory = [[m["chain"], m["steps"], *(fixed(m[key]) for key in keys)] for m in report["memory"]]
    heads = ["chain", "T", "g* to the tilt", "g* to the law predicted for it", "the two laws apart", "null"]
    return "\n".join([*lines, *table(heads, memory, [head != "chain" for head in heads])])
