"""table.md of a DRaFT recipe, from what table.json holds: rows, published numbers beside them, claims with their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tilting_papers.page import NONE, claims, figures, number, shown, table, tried

Row = Mapping[str, Any]


def _columns(report: Mapping[str, Any]) -> list[tuple[str, Callable[[Row], str]]]:
    """Heads and cells; columns that no row has are left out."""
    columns: list[tuple[str, Callable[[Row], str]]] = []
    for where in report["sets"]:
        for spec in report["reward"]:
            unit = report["units"].get(spec, "")
            columns += [
                (f"{spec}, {where} ({unit})", lambda row, w=where, s=spec: shown(row["sets"][w][s]["mean"])),
                (f"{spec} - base, {where}", lambda row, w=where, s=spec: shown(row["sets"][w][s]["gain"], sign=True)),
            ]
        columns += [
            (f"judge, {where} (log p)", lambda row, w=where: shown(row["sets"][w]["judge"]["mean"])),
            (f"judge - base, {where}", lambda row, w=where: shown(row["sets"][w]["judge"]["gain"], sign=True)),
        ]
    last = list(report["sets"])[-1]
    columns += [
        (f"apart, {last}", lambda row: shown(row["sets"][last]["apart"]["mean"])),
        (f"spread, {last}", lambda row: number(row["sets"][last]["spread"], 3)),
        ("K", lambda row: str(row["set"].get("k", NONE)) if "set" in row else NONE),
        ("steps", lambda row: _whole(row, "step")), ("images", lambda row: _whole(row, "images")),
        ("reward queries", lambda row: _whole(row, "reward_calls")), ("evaluations", lambda row: _whole(row, "evaluations")),
        ("seconds", lambda row: number(row.get("seconds"), 3)), ("skipped", lambda row: str(row.get("skipped") or NONE)),
    ]  # fmt: skip
    if report["published"]:
        columns.append((f"published ({report['published'][1]})", lambda row: number(row.get("published"), 6)))
    return [(head, cell) for head, cell in columns if any(cell(row) != NONE for row in report["rows"])]


def _whole(row: Row, key: str) -> str:
    return str(row[key]) if key in row else NONE


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    size = (
        f"Ours: {report['model']}, T = {report['steps']}, CFG {number(report['cfg'])}, seed {report['seed']}, trained on "
        f"{len(report['prompts'])} prompts, looked at on {' and '.join(f'{len(p)} {w}' for w, p in report['sets'].items())} "
        f"prompts x {report['images']} images, the same noise for every row{tried(report)}."
    )
    columns = _columns(report)
    lines = [f"# {report['recipe']}: {report['title']}", "", f"After {report['paper']}. {size}", ""]
    if report["rows"]:
        rows = [[row["name"], *(cell(row) for _, cell in columns)] for row in report["rows"]]
        lines += table(["row", *(head for head, _ in columns)], rows)
    for heading, part in report["extra"].items():
        lines += ["", f"## {heading}", "", *table(part["heads"], [[str(c) for c in row] for row in part["rows"]])]
    lines += [*claims(report["claims"]), "", "## How to read it", ""]
    total = sum(report["minutes"].values())
    reading = [
        "- Means with 95 % bootstrap intervals, whole prompts resampled; differences are paired image by image. An arm is "
        "looked at in the sampler that it is trained in, and compared with its own look before training.",
        "- Evaluations are of the denoiser in training (a CFG pair counts as one; checkpointed steps count again); seconds are "
        "of training alone, on the machine as it was then.",
        "- The judge is pocket-judge, which no reward reads. Apart and spread are mean distances in its features, of two "
        "images of one prompt and of any two: they fall when a model collapses.",
        "- The paper: Stable Diffusion 1.4 at 512 x 512, T = 50, 2,000 or 10,000 steps, LAION's aesthetic score, HPSv2 or "
        "PickScore; ours is scaled to T, a hundredth of the steps, and other rewards: orderings compare, values do not.",
        f"- Training was estimated at {total:.0f} minutes on two idle cores, from counted evaluations."
        if total >= 1 else f"- Training was estimated at {60 * total:.0f} seconds on two idle cores, from counted evaluations.",
    ]  # fmt: skip
    lines += [*reading, *(f"- {note}" for note in report["notes"]), ""]
    stopped = [row for row in report["rows"] if row.get("stopped")]
    lines += [f"- {row['name']} stopped at step {row['step']}: {row['stopped']}." for row in stopped]
    return "\n".join([*lines, *figures(report)])
