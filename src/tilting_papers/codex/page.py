"""table.md of a table of the CoDeX thesis: our rows, the published ones beside them, the floor, the claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting.rewards.spec import split_weight
from tilting_papers.numbers import OVER_PROMPTS
from tilting_papers.page import Column, filled, number, page, shown, table, tried
from tilting_papers.published import published

UNITS = {"fid": "Inception, per prompt", "cmmd": "CLIP ViT-L/14, x1000", "t_clip": "2.5 max(cos, 0)", "i_gram": "cosine x100"}
UNITS |= {"minutes": "minutes per image"}
"""Of published columns that mean the same in every table of the thesis; the reward's unit is the table's own."""


def _columns(report: Mapping[str, Any]) -> list[Column]:
    """Heads and cells of our half."""
    columns: list[Column] = []
    specs = [split_weight(spec)[0] for spec in report["reward"]]
    for spec in specs:
        columns.append((f"{spec} ({report['units'][spec]})", lambda row, s=spec: shown(row["rewards"][s])))
        for other in report["against"]:
            head = f"{spec if len(specs) > 1 else 'reward'} - {other}"
            columns.append((head, lambda row, s=spec, o=other: shown(row["against"].get(o, {}).get(s), sign=True)))
    return [
        *columns,
        ("FID-like", lambda row: number(row["fid"], 3)),
        ("CMMD (x1000)", lambda row: number(row["cmmd"], 3)),
        ("CMMD, unbiased (x1000)", lambda row: number(row.get("cmmd_unbiased"), 3)),
        ("T-CLIP", lambda row: number(row["tclip"], 3)),
        ("I-Gram (CLIP cosine)", lambda row: number(row["igram"], 3)),
        ("to reference (rms)", lambda row: number(row["to_reference"], 3)),
        ("judge (log p)", lambda row: shown(row["judge"])),
        ("evaluations", lambda row: f"{row['evaluations']:.0f}"),
        ("s/image", lambda row: number(row["seconds"], 2)),
    ]


def _table(report: Mapping[str, Any]) -> list[str]:
    columns, key = filled(_columns(report), report["rows"]), report["published"]
    theirs = published(key).get("columns", []) if key and any(row["published"] for row in report["rows"]) else []
    units = {"reward": report["published_unit"]} | UNITS
    heads = ["row", *(head for head, _ in columns), *(f"published {c} ({units[c]})" for c in theirs)]
    rows = []
    for row in report["rows"]:
        beside = [number((row["published"] or {}).get(c), 6) for c in theirs]
        rows.append([row["name"], *(cell(row) for _, cell in columns), *beside])
    if report["floor"]:
        keys = {"FID-like": "fid", "CMMD (x1000)": "cmmd", "CMMD, unbiased (x1000)": "cmmd_unbiased"}
        cells = {head: number(report["floor"].get(key), 3) for head, key in keys.items()}
        rows.append(["floor (base, other seed)", *(cells.get(head, "") for head, _ in columns), *[""] * len(theirs)])
    return table(heads, rows)


def _claim(claim: Mapping[str, Any]) -> list[str]:
    lines = ["", f"## Claim: {claim['text']}", ""]
    for rival in claim["rivals"]:
        ours, theirs = rival["evaluations"]
        lines.append(
            f"- {rival['verdict']} against {rival['rival']}: {claim['reward']} {shown(rival['reward'], sign=True)}"
            + (f", judge {shown(rival['judge'], sign=True)}" if rival["judge"] else "")
            + f" ({ours:.0f} evaluations against {theirs:.0f}){rival.get('needs', '')}"
        )
    if claim["judge_over_base"] is not None:
        fell = {True: "falls below that of base", False: "does not fall below that of base", None: "less that of base"}
        lines.append(f"- the held-out judge {fell[claim['judge_falls']]}: {shown(claim['judge_over_base'], sign=True)}")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The page."""
    seeds = ", ".join(map(str, report.get("asked", {}).get("seeds") or [report["seed"]]))
    ours = (
        f"Ours: {report['model']}, T = {report['steps']}, eta {report['eta']:g}, CFG {report['cfg']:g}, "
        f"{len(report['prompts'])} prompts x {report['images']} images, seed {seeds}{tried(report)}."
    )
    if report["references"]:
        ours += f" Reference pictures: {len(report['references'])}, the model's own."
    body = [*_table(report), *(line for claim in report["claims"] for line in _claim(claim))]
    if report["facts"]:
        facts = [[fact["what"], fact["ours"], fact["published"]] for fact in report["facts"]]
        body += ["", "## Beside the published figures", "", *table(["what", "ours", "published"], facts)]
    names, judged = report["extractors"], any(row["judge"] for row in report["rows"])
    reading = [
        OVER_PROMPTS,
        f"FID-like: Fréchet distance, all images as one set, in {names['fid']}; CMMD in {names['cmmd']}; both to base "
        "samples of another seed. The floor is the same distance of the base row: read distances above it.",
        f"T-CLIP in {names['tclip']}" + ("; the judge is pocket-judge, which no reward reads." if judged else "."),
        "Evaluations: of the denoiser, per image (a CFG pair counts as one). Rows called -equal have the particles that give "
        "them at least the evaluations of the row that they are to equal (gradient methods: the best of so many guided runs).",
    ]
    if report["published"]:
        reading.append("Published numbers are of SD 1.5 at 512 x 512 with another reward: orderings compare, values do not.")
    return page(report, ours, body, reading)
