"""Bias of every method on a mixture whose exact tilt is known: the numbers of `mixture-bias`.

Bias is the energy distance to exact samples; the null is that between independent exact samples of the same size. Gradient
strengths, temperatures and numbers of particles are tuned on a small grid with separate, fewer draws; the best setting is
reported beside the preset's default.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tilting import presets, rng, weights
from tilting.disk import write_atomically
from tilting.oracle.mixture import MixtureModel
from tilting.oracle.plane import BASE, BETA, chain, denoise, energy_distance, exact, mean_distance, reward
from tilting.sample import Problem, finish, sample
from tilting_papers.mixture.figure import figure
from tilting_papers.numbers import mean
from tilting_papers.page import fixed, table
from tilting_papers.recipe import Report, Run, Say


@dataclass(frozen=True)
class Size:
    """Sizes: T, reported draws, draws for tuning, exact draws to compare with, and number of exact samples for the null."""

    steps: int
    draws: int
    tuning: int
    target: int
    nulls: int


FULL, SMALL = Size(20, 2000, 500, 4000, 24), Size(8, 200, 60, 1000, 12)
MARKS = {"as stated": "", "default": "default", "best": "best of grid", "default, best": "default and best of grid"}


@dataclass(frozen=True)
class Setting:
    """A method with its settings.

    Attributes:
        method: name of the method in the table.
        setting: the setting, in words.
        preset: a preset of `tilting.presets`.
        by_weight: number of draws by weight from the particles of each run; 0 keeps what the preset returns.
    """

    method: str
    setting: str
    preset: Any
    by_weight: int = 0


class Drawn(NamedTuple):
    """Draws (n, 2) and what one of them cost."""

    x: Tensor
    evaluations: float


def draw(what: Setting, size: Size, count: int, seed: int) -> Drawn:
    """``count`` draws of a method."""
    method, runs = what.preset.build(size.steps), count // max(1, what.by_weight)
    if what.by_weight:
        method = replace(method, final="all")
    who = [rng.Identity(seed, "mixture", i) for i in range(runs)]
    problem = Problem(
        denoise, MixtureModel(BASE).schedule.grid(size.steps), who, (2,), reward, 1.0, 1.0, 10**6, dtype=torch.float64
    )
    spent, state = 0, None
    for state, info in sample(problem, method):  # noqa: B007
        spent += info.evaluations
    assert state is not None
    end = finish(problem, method, state)
    if not what.by_weight:
        return Drawn(end.x[:, 0], spent / runs)
    index = weights.systematic(weights.normalise(end.log_w), rng.uniform(who, 1, 0, "final")[:, 0], what.by_weight)
    return Drawn(torch.cat([row[i] for row, i in zip(end.x, index, strict=True)]), spent / runs)


def grids() -> list[list[Setting]]:
    """The grid of settings of each method, the preset's default first."""

    def vary(name: str, preset: Any, field: str, values: Sequence[Any], note: str = "", **fixed: Any) -> list[Setting]:
        label = {"strength": "strength", "particles": "N", "tau": "τ", "rho": "ρ = μ"}[field]
        usual, settings = getattr(preset(**fixed), field), []
        for value in values if note else [usual, *(v for v in values if v != usual)]:
            also = {"mu": value} if field == "rho" else {}
            shown = "greedy" if value is None else f"{label} {value:g}{note}"
            settings.append(Setting(name, shown, preset(**{**fixed, field: value, **also})))
        return settings

    units, plain = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4), ((0.025, 0.05, 0.1, 0.2, 0.4), ", plain")
    tilts, taus = [w / BETA for w in (0.25, 0.5, 1, 2)], (0.25, 0.5, 1.0, 2.0, 4.0)
    codex = [Setting("codex", f"γ {g:g}, greedy", presets.codex(strength=g)) for g in (0.2, 0.05, 0.1, 0.4)]
    pairs = itertools.product((0.05, 0.2), (0.5, 1.0))
    codex += [Setting("codex", f"γ {g:g}, τ {tau:g}", presets.codex(strength=g, tau=tau)) for g, tau in pairs]
    settings = [(5.0, 1), *itertools.product(tilts, (0, 1))]
    ug = [Setting("ug", f"w {w:g}, m {m}", presets.ug(strength=w, backward=m)) for w, m in settings]
    return [
        [Setting("base", "", presets.base())],
        vary("bon", presets.bon, "particles", (2, 8, 16)),
        vary("code", presets.code, "tau", taus),
        codex,
        vary("svdd", presets.svdd, "tau", taus),
        vary("rbf", presets.rbf, "particles", (2, 8)),
        vary("dps (step)", presets.dps, "strength", units) + vary("dps (step)", presets.dps, "strength", *plain, rule="plain"),
        vary("dps (score)", presets.dps, "strength", tilts, form="score"),
        vary("mpgd (paper)", presets.mpgd, "strength", (0.1, 0.4, 0.8, 1.6)),
        vary("mpgd (code)", presets.mpgd, "strength", (0.4, 0.8, 1.6, 3.2, 6.4), source="code"),
        vary("freedom", presets.freedom, "strength", (0.1, 0.4, 0.8, 1.6, 3.2)),
        ug,
        vary("lgd", presets.lgd, "strength", units) + vary("lgd", presets.lgd, "strength", *plain, rule="plain"),
        vary("tfg", presets.tfg, "rho", units) + vary("tfg", presets.tfg, "rho", *plain, rule="plain"),
    ]


def stated() -> list[Setting]:
    """Settings without tuning: weighted particles, whose β is that of the tilt, and reconstruction guidance with the strength
    that is exact for a single Gaussian and a linear reward."""
    heavy = {"smc": (presets.smc, 4), "tds": (presets.tds, 4), "das": (presets.das, 4)}
    settings = [Setting("dps (score)", f"strength 1/β = {1 / BETA:g}", presets.dps(1 / BETA, form="score"))]
    for name, (preset, n) in heavy.items():
        settings.append(Setting(name, f"N {n}, heaviest", preset(n, beta=BETA)))
        settings += [Setting(name, f"N {m}, by weight", preset(m, beta=BETA), m // 4) for m in (n, 16, 64)]
    settings.append(Setting("fk", "N 4, max, best reward", presets.fk(4, strength=1 / BETA)))
    for potential in ("difference", "max", "sum"):
        settings.append(
            Setting("fk", f"N 16, {potential}, by weight", presets.fk(16, strength=1 / BETA, potential=potential), 4)
        )
    return settings


def rows(size: Size, few: bool, kept: dict[str, dict], say: Say) -> list[dict[str, Any]]:
    """Every row of the table.

    Args:
        size: how much is drawn.
        few: two settings of each grid only.
        kept: rows finished before, by method and setting; new ones are added.
        say: takes a line for each of those.

    Returns:
        A dict each: method, setting, chosen, energy (D² less the mean D² of exact samples, so that the noise of the target,
        which all rows share, drops out), null (the largest of exact samples, likewise), reward, evaluations (denoiser, per
        run), and points, a few hundred of the draws.
    """
    target = exact(size.steps, size.target, seed=1)
    inner = mean_distance(target)

    def far(x: Tensor) -> float:
        return energy_distance(x, target, inner)

    samples = [exact(size.steps, size.draws, 100 + i) for i in range(size.nulls)]
    distances = [far(x) for x in samples]
    centre = mean(distances)
    null = max(distances) - centre

    def measured(what: Setting, chosen: str) -> dict[str, Any]:
        key = f"{what.method} | {what.setting}"
        if key not in kept:
            done = draw(what, size, size.draws, seed=0)
            line = {
                "method": what.method,
                "setting": what.setting,
                "energy": far(done.x),
                "reward": reward(done.x).mean().item(),
            }
            points = done.x[:: max(1, len(done.x) // 500)].tolist()
            kept[key] = {**line, "evaluations": done.evaluations, "points": points}
            say(f"{what.method:14}{what.setting:32}{kept[key]['energy'] - centre:9.4f}")
        return {**kept[key], "energy": kept[key]["energy"] - centre, "chosen": chosen, "null": null}

    first = {"method": "exact draws", "setting": "", "chosen": "as stated", "energy": 0.0, "null": null}
    first |= {"reward": reward(torch.cat(samples)).mean().item(), "evaluations": 0.0, "points": samples[0][:500].tolist()}
    lines = [first]
    for grid in grids():
        settings = grid[:2] if few else grid
        if len(settings) == 1:
            lines.append(measured(settings[0], "as stated"))
            continue
        tuned = [far(draw(what, size, size.tuning, seed=1).x) for what in settings]
        best = tuned.index(min(tuned))
        lines.append(measured(settings[0], "default" if best else "default, best"))
        if best:
            lines.append(measured(settings[best], "best"))
    return lines + [measured(what, "as stated") for what in stated()]


def markdown(report: Mapping[str, Any]) -> str:
    """table.md."""
    size, rows = SMALL if report["small"] else FULL, report["rows"]
    null, lines = rows[0]["null"], []
    for row in rows:
        times = "" if row["method"] == "exact draws" else f"{max(row['energy'], 0) / null:.1f}"
        cells = [row["method"], row["setting"], MARKS[row["chosen"]], fixed(row["energy"]), times, fixed(row["reward"], 3)]
        lines.append([*cells, f"{row['evaluations']:.4g}"])
    heads = ["method", "setting", "chosen", "D²", "× null", "mean reward", "evaluations"]
    opening = (
        f"Energy distance D² to the exact tilt of the same {size.steps}-step chain, β = {BETA:g}, {size.draws} draws a row. "
        f"The largest of {size.nulls} exact samples of that size is {null:.4f} above their mean (which is subtracted "
        "throughout): a row below that cannot be told from exact."
    )
    return "\n".join([opening, "", *table(heads, lines, [False] * 3 + [True] * 4)])


def measure(run: Run) -> Report:
    """The rows, those of an earlier run among them, and bias.png: what table.json holds."""
    run.out.mkdir(parents=True, exist_ok=True)
    size, file = SMALL if run.small else FULL, run.out / f"rows-{'small' if run.small else 'full'}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    kept = {f"{row['method']} | {row['setting']}": row for row in map(json.loads, lines)}

    def progress(line: str) -> None:
        run.say(line)
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept.values()).encode())

    table = rows(size, run.small, kept, progress)
    cloud = chain(size.steps, 20 * size.target, 1)
    figure(table, cloud, weights.normalise(reward(cloud) / BETA), run.out / "bias.png")
    plain = [{key: value for key, value in row.items() if key != "points"} for row in table]
    return {"steps": size.steps, "draws": size.draws, "beta": BETA, "rows": plain}
