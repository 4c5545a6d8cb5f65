"""table.md of a DRaFT recipe: rows, published numbers beside them, claims with their verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilting_papers.numbers import OVER_PROMPTS
from tilting_papers.page import NONE, Column, claims, filled, number, page, shown, table, tried
from tilting_papers.recipe import POCKET, OfPocket

READING = (
    f"{OVER_PROMPTS} An arm is looked at in the sampler that it is trained in, and compared with its own look before training.",
    "Evaluations are of the denoiser in training (a CFG pair counts as one; checkpointed steps count again); seconds are "
    "of training alone, on the machine as it was then.",
    OfPocket(
        "The judge is pocket-judge, which no reward reads. Apart and spread are mean distances in its features, of two "
        "images of one prompt and of any two: they fall when a model collapses."
    ),
    "The paper: Stable Diffusion 1.4 at 512 x 512, T = 50, guidance w = 7.5 (a CFG of 8.5 here), 2,000 or 10,000 steps, "
    "LAION's aesthetic score, HPSv2 or PickScore; ours is scaled to T, a hundredth of the steps, and other rewards: orderings "
    "compare, values do not.",
)


def _columns(report: Mapping[str, Any]) -> list[Column]:
    """Heads and cells."""
    columns: list[Column] = []

    def gain(mean: str, difference: str, where: str, what: str) -> None:
        columns.append((mean, lambda row: shown(row["sets"][where][what]["mean"])))
        columns.append((difference, lambda row: shown(row["sets"][where][what]["gain"], sign=True)))

    def plain(head: str, key: str) -> None:
        columns.append((head, lambda row: str(row.get(key, NONE))))

    for where in report["sets"]:
        for spec in report["reward"]:
            name, unit = Path(spec).name, report["units"].get(spec, "")
            gain(f"{name}, {where}" + (f" ({unit})" if unit else ""), f"{name} - base, {where}", where, spec)
        gain(f"judge, {where} (log p)", f"judge - base, {where}", where, "judge")
    last = list(report["sets"])[-1]
    columns.append((f"apart, {last}", lambda row: shown(row["sets"][last]["apart"]["mean"])))
    columns.append((f"spread, {last}", lambda row: number(row["sets"][last]["spread"], 3)))
    columns.append(("seeds", lambda row: str(row["seeds"]) if row.get("seeds", 1) > 1 else NONE))
    columns.append(("K", lambda row: str(row.get("set", {}).get("k", NONE))))
    for head, key in (("steps", "step"), ("images", "images"), ("reward queries", "reward_calls"), ("evaluations",) * 2):
        plain(head, key)
    columns.append(("seconds", lambda row: number(row.get("seconds"), 3)))
    columns.append(("skipped", lambda row: str(row.get("skipped") or NONE)))
    if report["published"]:
        columns.append((f"published ({report['published'][1]})", lambda row: number(row.get("published"), 6)))
    return filled(columns, report["rows"])


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    model, seeds = report["model"], ", ".join(map(str, report.get("asked", {}).get("seeds") or [report["seed"]]))
    ours = (
        f"Ours: {model}, T = {report['steps']}, CFG {number(report['cfg'])}, seed {seeds}, trained on "
        f"{len(report['prompts'])} prompts, looked at on {' and '.join(f'{len(p)} {w}' for w, p in report['sets'].items())} "
        f"prompts x {report['images']} images, the same noise for every row{tried(report)}."
    )
    columns, rows = _columns(report), report["rows"]
    body = table(["row", *(head for head, _ in columns)], [[row["name"], *(cell(row) for _, cell in columns)] for row in rows])
    for heading, part in report["extra"].items():
        body += ["", f"## {heading}", "", *table(part["heads"], part["rows"])]
    if report.get("left_out"):
        body += ["", f"> **Left out**, for pictures or weights of finished runs are not here: {', '.join(report['left_out'])}."]
    total = sum(report["minutes"].values())
    spent = f"{total:.0f} minutes" if total >= 1 else f"{60 * total:.0f} seconds"
    estimated = OfPocket(f"Training was estimated at {spent} on two idle cores, from counted evaluations.")
    reading = [line for line in (*READING, estimated) if model == POCKET or not isinstance(line, OfPocket)]
    stopped = [f"- {row['name']} stopped at step {row['step']}: {row['stopped']}." for row in rows if row.get("stopped")]
    return page(report, ours, [*body, *claims(report["claims"])], reading, stopped)
