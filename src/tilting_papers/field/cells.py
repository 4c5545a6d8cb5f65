"""Cells of methods at equal evaluations: rows as resumable runs of `tilting generate`, gains over base, and what auto takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import pstdev
from typing import Any

from tilting.config.auto import most
from tilting.config.generate import GenerateConfig, resolve
from tilting.cost import cost
from tilting.disk import write_atomically
from tilting.generation import run as generating
from tilting.generation.folder import Folder
from tilting.presets import METHODS as PRESETS
from tilting.rewards.spec import build, parse_specs, split_weight
from tilting_papers import parts
from tilting_papers.cache import PartsCache
from tilting_papers.codex.draw import SECONDS, VALUE_SECONDS, cost_of
from tilting_papers.field import Asked, Cells, Rival
from tilting_papers.numbers import image_values, interval, mean
from tilting_papers.recipe import POCKET, Report, Run

GRADIENT = 3.0
"""Cost of a value with a gradient relative to one without; used for estimates of time only."""


class Row:
    """A row of a cell.

    Args:
        run: the run of the recipe.
        reward, budget: the cell.
        rival: the method; None for base.
        number: value of its knob.
    """

    def __init__(self, run: Run, reward: str, budget: int, rival: Rival | None, number: int = 1):
        self.reward, self.budget, self.rival = reward, budget, rival
        self.method = "base" if rival is None else rival.method
        steps = steps_of(run, budget)
        self.name = name_of(reward, steps if rival is None else budget, self.method)
        settings = {} if rival is None else {f"{self.method}.{k}": v for k, v in {**rival.settings, rival.knob: number}.items()}
        recipe: Cells = run.recipe
        asked, seeds = recipe.rewards[reward], recipe.seeds or (run.seed,)
        self.config: GenerateConfig = resolve(
            {
                "model": recipe.model,
                "prompts": list(asked.prompts[: 2 if run.small else recipe.count]),
                "reward": [reward],
                "images": recipe.images,
                "steps": steps,
                "seed": seeds if len(seeds) > 1 else min(seeds),
                "method": self.method,
                "set": settings,
                "out": str(run.out / "runs" / self.name),
            }
        )
        paid = cost_of(self.config)
        weight = GRADIENT if rival is not None and rival.gradient else VALUE_SECONDS
        self.evaluations = paid.evaluations
        images = len(self.config.prompts) * recipe.images * len(seeds)
        self.minutes = images * (paid.evaluations + weight * paid.values) * SECONDS / 60

    @property
    def folder(self) -> Path:
        return Path(self.config.out or "")

    @property
    def spec(self) -> str:
        """The reward without its weight."""
        return split_weight(self.reward)[0]


def name_of(reward: str, number: int, method: str) -> str:
    """Name of a row; the number is the budget, or T for base. A reward that is no plain name has a digest in it."""
    plain = reward.replace(":", "-")
    if not re.fullmatch(r"\w[\w-]{0,40}", plain, re.ASCII):
        own = re.sub(r"[^A-Za-z0-9]+", "-", Path(reward).name)[:30].strip("-")
        plain = f"{own}-{hashlib.sha256(reward.encode()).hexdigest()[:6]}"
    return f"{plain}-{number}-{method}"


def settled(run: Run) -> Run:
    """The run with rewards of one's own, of which it is known whether they have a gradient."""

    def known(spec: str, one: Asked) -> Asked:
        return one if one.gradient is not None else replace(one, gradient=build(parse_specs([spec])).differentiable)

    return replace(run, recipe=replace(run.recipe, rewards={k: known(k, one) for k, one in run.recipe.rewards.items()}))


def rewards_of(run: Run) -> dict[str, Asked]:
    """The rewards of a run; a small run has one with a gradient and one without."""
    rewards = run.recipe.rewards
    kinds = {asked.gradient: spec for spec, asked in reversed(rewards.items())}
    return {spec: asked for spec, asked in rewards.items() if not run.small or spec in kinds.values()}


def steps_of(run: Run, budget: int) -> int:
    """T of a budget; ``--small`` has so few steps that its budget buys two images."""
    return run.recipe.tiny if run.small else run.recipe.budgets[budget]


def spent(rival: Rival, budget: int, steps: int) -> int | None:
    """The largest value of a rival's knob within a budget of evaluations; None if even the smallest exceeds it."""

    def evaluations(number: int) -> int:
        preset = PRESETS[rival.method](**{**rival.settings, rival.knob: number})
        return cost(preset.build(steps), steps).evaluations

    return most(lambda number: evaluations(number) <= budget, rival.least) if evaluations(rival.least) <= budget else None


def rows_of(run: Run) -> list[Row]:
    """All rows of all cells, the smallest budget first."""
    recipe: Cells = run.recipe
    budgets = [2 * recipe.tiny] if run.small else sorted(recipe.budgets)
    rows: dict[str, Row] = {}
    for budget in budgets:
        steps = steps_of(run, budget)
        bought = [(one, spent(one, budget, steps)) for one in recipe.rivals if one.small or not run.small]
        for reward, asked in rewards_of(run).items():
            base = Row(run, reward, budget, None)
            rows.setdefault(base.name, base)
            for rival, number in bought:
                apart = recipe.auto and rival.gradient != asked.gradient
                if number is not None and not apart and (asked.gradient or not rival.gradient):
                    row = Row(run, reward, budget, rival, number)
                    rows[row.name] = row
    return list(rows.values())


def mine(run: Run, rows: list[Row]) -> list[Row]:
    """The rows of this shard: a contiguous part, so that the first shards complete the smallest budgets."""
    i, k = run.shard or (1, 1)
    total, before, found = sum(row.minutes for row in rows), 0.0, []
    for row in rows:
        if min(k, int(before / total * k) + 1) == i:
            found.append(row)
        before += row.minutes
    about = f", about {total:.0f} min if idle" if run.model == POCKET else ""
    run.say(f"{len(rows)} rows{about}, {k} shard(s); {len(found)} here")
    return found


Manifests = dict[str, dict[str, Any]]
"""Manifests of finished runs by row, as their parts have them."""


def drawn(run: Run) -> tuple[list[Row], Manifests, Report]:
    """Draw what is missing of this shard; returns all rows, the parts of the existing ones, and their report."""
    rows, cache = rows_of(run), PartsCache(generating.load_parts)
    wanted = {row.name for row in mine(run, rows)}
    manifests: Manifests = {}
    for n, row in enumerate(rows):
        folder = Folder(row.config, run.argv)
        there = parts.read(run.out, row.name, folder, parts.DRAWN)
        if there is None and (row.name in wanted or folder.complete):
            run.say(f"row {n + 1} of {len(rows)}: {row.name}")
            manifest = generating.run(row.config, run.argv, quiet=run.quiet, parts=cache.parts)
            there = parts.keep(run.out, row.name, folder, {key: manifest[key] for key in ("images", "summary")})
        if there is not None:
            manifests[row.name] = there
    told = [line for row in rows if (line := _line(run, row, manifests))]
    rewards = rewards_of(run)
    return (
        rows,
        manifests,
        {
            "prompts": {reward: len(rows[0].config.prompts) for reward in rewards},
            "units": {reward: asked.unit for reward, asked in rewards.items()},
            "images": run.recipe.images,
            "missing": [row.name for row in rows if row.name not in manifests],
            "rows": told,
        },
    )


def measure(run: Run) -> Report:
    """`drawn`, with a summary of every cell; writes auto.json if the recipe says so."""
    run = settled(run)
    rows, _, held = drawn(run)
    cells = [cell for budget in sorted({r.budget for r in rows}) for cell in _cells(run, budget, rows, held["rows"])]
    if run.recipe.auto:
        table = {"recipe": run.recipe.name, "small": run.small, "cells": cells}
        write_atomically(run.out / "auto.json", (json.dumps(table, indent=1) + "\n").encode())
    return {**held, "cells": cells}


def _line(run: Run, row: Row, manifests: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of the report; None if its run or that of base is missing."""
    base = name_of(row.reward, steps_of(run, row.budget), "base")
    if row.name not in manifests or base not in manifests:
        return None
    found = {what: image_values([manifests[row.name]], what) for what in (row.spec, "judge")}
    theirs = {what: image_values([manifests[base]], what) for what in found}
    spread = pstdev(theirs[row.spec].values())
    gain = interval(found[row.spec], theirs[row.spec])
    assert gain is not None
    summary, config = manifests[row.name]["summary"], manifests[row.name]["config"]
    count = len(manifests[row.name]["images"])
    return {
        "name": row.name,
        "reward": row.reward,
        "budget": row.budget,
        "steps": config["steps"],
        "method": row.method,
        "number": None if row.rival is None else {row.rival.knob: _number(row)},
        "value": interval(found[row.spec]),
        "gain": gain if row.rival is not None else None,
        "relative": gain["mean"] / spread if spread else 0.0,
        "judge": interval(found["judge"]),
        "judge_gain": interval(found["judge"], theirs["judge"]) if row.rival is not None else None,
        "evaluations": summary["evaluations"] / count,
        "values": summary["reward_calls"] / count,
        "seconds": summary["seconds"] / count,
    }


def _number(row: Row) -> Any:
    assert row.rival is not None
    if row.rival.knob == "particles":
        return row.config.particles
    return dict(row.config.settings)[f"{row.method}.{row.rival.knob}"]


def _cells(run: Run, budget: int, rows: list[Row], told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of a budget, for rewards with a gradient and without: the methods ranked by gain, and the one to take."""
    cells = []
    for gradient in (True, False):
        rewards = [reward for reward, asked in rewards_of(run).items() if asked.gradient == gradient]
        asked = [row for row in rows if row.budget == budget and row.reward in rewards and row.rival is not None]
        there = {(line["reward"], line["method"]): line for line in told if line["budget"] == budget}
        rival = {row.method: row.rival for row in asked if row.rival is not None}
        measured = bool(asked) and all((row.reward, row.method) in there for row in asked)
        ranked = []
        for method in rival:
            lines = [there[reward, method] for reward in rewards if (reward, method) in there]
            if len(lines) < len(rewards):
                continue
            falls = any(line["judge_gain"] is not None and (line["judge_gain"]["high"] or 0) < 0 for line in lines)
            gain = mean([line["relative"] for line in lines])
            one = {"method": method, "gain": gain, "usable": not falls and gain > 0, "number": lines[0]["number"]}
            ranked.append({**one, "settings": dict(rival[method].settings)})
        ranked.sort(key=lambda one: -one["gain"])
        best = next((one for one in ranked if one["usable"]), None)
        cell = {"budget": budget, "steps": steps_of(run, budget), "gradient": gradient, "measured": measured}
        taken = None if not measured else "base" if best is None else best["method"]
        cells.append(cell | {"rewards": rewards, "ranked": ranked, "method": taken})
    return cells
