"""table.md of methods at equal evaluations: a table per reward and budget, what auto takes, and what has not been run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting_papers.numbers import OVER_PROMPTS
from tilting_papers.page import NONE, number, page, shown, table, tried
from tilting_papers.recipe import POCKET

JUDGE = "judge - base"
HEADS = ("row", "its number", "reward", "reward - base", JUDGE, "evaluations", "values", "s/image")


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    if report["recipe"] == "auto-table":
        return whole(report, ["## What is taken", "", *_taken(report), ""])
    return whole(report, [*_sentences(report), *_left_out(report), ""])


def whole(report: Mapping[str, Any], first: Sequence[str]) -> str:
    """The page: what has not been run, the first lines, and a table for every reward and budget."""
    body = [*missing(report), *first]
    for reward, unit in report["units"].items():
        budgets = sorted({row["budget"] for row in report["rows"] if row["reward"] == reward and row["method"] != "base"})
        for budget in budgets:
            rows = [row for row in report["rows"] if row["reward"] == reward and row["budget"] == budget]
            rows = [row for row in rows if row["method"] != "base"]
            steps = rows[0]["steps"]
            base = [row for row in report["rows"] if (row["reward"], row["method"], row["steps"]) == (reward, "base", steps)]
            rows.sort(key=lambda row: -row["gain"]["mean"])
            what = Path(reward).name + (f" ({unit})" if unit else "")
            body += [f"## {what}, {budget} evaluations, T = {steps}", ""]
            kept = [i for i, head in enumerate(HEADS) if head != JUDGE or any(row["judge"] for row in rows)]
            lines = [[cells[i] for i in kept] for cells in map(_cells, (*base, *rows))]
            body += [*table([HEADS[i] for i in kept], lines), ""]
    prompts, images = report["prompts"], report["images"]
    asked = report.get("asked", {})
    seeds = ", ".join(map(str, asked.get("seeds") or [report["seed"]]))
    ours = f"Ours: {asked.get('model', POCKET)}, {next(iter(prompts.values()))} prompts x {images} images a row, "
    ours += f"seed {seeds}{tried(report)}."
    return page(report, ours, body[:-1], [OVER_PROMPTS])


def missing(report: Mapping[str, Any]) -> list[str]:
    """A banner of what has not been run; nothing where all has."""
    left = report["missing"]
    if not left:
        return []
    some = ", ".join(left[:12]) + (f" and {len(left) - 12} more" if len(left) > 12 else "")
    return [f"> **Not run yet**: {len(left)} of {len(left) + len(report['rows'])} rows ({some}).", ""]


def _cells(row: Mapping[str, Any]) -> list[str]:
    bought = NONE if not row["number"] else ", ".join(f"{key} {value}" for key, value in row["number"].items())
    return [
        row["method"],
        bought,
        shown(row["value"]),
        shown(row["gain"], sign=True),
        shown(row["judge_gain"], sign=True),
        number(row["evaluations"]),
        number(row["values"]),
        number(row["seconds"], 2),
    ]


def _taken(report: Mapping[str, Any]) -> list[str]:
    heads = ("budget", "T", "reward", "taken", "its gain (sd of base)", "others")
    lines = []
    for cell in report["cells"]:
        kind = "with a gradient" if cell["gradient"] else "black-box"
        best = next((one for one in cell["ranked"] if one["method"] == cell["method"]), None)
        others = [
            f"{one['method']} {number(one['gain'], 3)}{'' if one['usable'] or one['gain'] <= 0 else ' (judge falls)'}"
            for one in cell["ranked"]
            if one["method"] != cell["method"]
        ]
        taken = cell["method"] or "not measured"
        gain = NONE if best is None else number(best["gain"], 3)
        lines.append([cell["budget"], cell["steps"], kind, taken, gain, ", ".join(others) or NONE])
    return table(heads, lines)


def _left_out(report: Mapping[str, Any]) -> list[str]:
    black = [Path(reward).name for cell in report["cells"] if not cell["gradient"] for reward in cell["rewards"]]
    return [f"- Methods that need a gradient are not run on {' and '.join(black)}, which has none."] if black else []


def _sentences(report: Mapping[str, Any]) -> list[str]:
    """Which to use when: the usable method of the most gain, by reward."""
    lines = []
    for cell in report["cells"]:
        usable = [one["method"] for one in cell["ranked"] if one["usable"]]
        fell = [one["method"] for one in cell["ranked"] if not one["usable"] and one["gain"] > 0]
        if not usable:
            continue
        kind = "a reward with a gradient" if cell["gradient"] else "a black-box reward"
        said = f"- For {kind}, at {cell['budget']} evaluations an image: {usable[0]}"
        said += f", then {' and '.join(usable[1:3])}" if len(usable) > 1 else ""
        said += f"; the judge falls under {', '.join(fell)}" if fell else ""
        lines.append(said + ("." if cell["measured"] else " (of what has been run)."))
    return lines
