"""Measures a table's rows from their run folders: rewards and judge with t intervals over prompts, paired differences,
distances to a base run with another seed beside their floor, T-CLIP, I-Gram, costs; and tests the claims.

Each row is a resumable run folder in DIR/runs; `tilting.evaluation.run` measures all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilting.config.evaluate import EvaluateConfig
from tilting.disk import remove
from tilting.evaluation.run import FILES, evaluate
from tilting.features.picture import read_image
from tilting.rewards.spec import split_weight
from tilting_papers.codex.draw import ALWAYS, DISTANCES, OF_PICTURES, UNBIASED, DrawnTable, draw_rows, keep_part
from tilting_papers.codex.figures import write_figures
from tilting_papers.codex.strengths import settings
from tilting_papers.codex.table import Claim, Row, Table
from tilting_papers.numbers import Values, estimated, image_values, interval, mean, needed, verdict
from tilting_papers.published import published_row
from tilting_papers.recipe import Report, Run

Measured = dict[str, dict[str, Values]]
"""Values per image by row, then by reward spec without weight or "judge"."""


def measure(run: Run) -> Report:
    """Draw what is missing of a table and measure all of it."""
    table = tuned(run)
    run = replace(run, recipe=table)
    drawn = draw_rows(table, run)
    run.say("measuring")
    (key, unit), total = table.published, [table.total] if table.total else []
    report: Report = {**drawn.about, "reward": [*total, *table.reward], "units": dict(table.units)}
    report |= {"against": list(table.against), "published": key, "published_unit": unit}
    specs = [*total, *(split_weight(spec)[0] for spec in table.reward)]
    values = {
        name: {what: image_values([drawn.manifests[one] for one in folders], what, table.total) for what in (*specs, "judge")}
        for name, folders in drawn.runs.items()
    }
    judged = evaluations(table, drawn, run)
    floor, rows = judged[0]["floor"], {row.name: row for row in table.rows}
    report["floor"] = {key: floor[key]["pooled"] for key in (*DISTANCES, UNBIASED)} | {"how": floor["how"]} if floor else None
    report["extractors"] = judged[0]["extractors"]
    measured = _measured(drawn, judged, run)
    report["rows"] = [_row(table, rows[name], drawn, run.out, measured, values) for name in drawn.runs]
    report["claims"] = [claim_of(claim, specs[0], report["rows"], values) for claim in table.claims]
    report["facts"] = table.facts(report)
    report["figures"] = write_figures(table, report, drawn, run.out)
    return report


def tuned(run: Run) -> Table:
    """The table of a run with the strengths chosen by its tuning table, which is made first if it is missing."""
    table: Table = run.recipe
    if table.tuned is None:
        return table
    run.say("strengths, on prompts of their own")
    report = table.tuned.run(run.out / "tuning", run.small, run.say, run.seed, run.quiet)
    best = settings(report, table.tuned.near)
    rows = tuple(replace(row, settings={**row.settings, **best.get(row.method, {})}) for row in table.rows)
    return replace(table, rows=rows)


def evaluations(table: Table, drawn: DrawnTable, run: Run) -> list[dict[str, Any]]:
    """metrics.json of the rows, one or one for each reference picture; with their report.html in DIR/evaluation."""
    metrics = []
    for k, picture in enumerate(drawn.sources or [None]):
        folder = run.out / ("evaluation" if len(drawn.sources) < 2 else f"evaluation-{k}")
        remove(folder, FILES)  # an earlier evaluation
        runs = dict.fromkeys(str(one) for name in drawn.runs if (one := drawn.folder(name, k)) not in drawn.kept)
        image = None if picture is None else str(picture)
        config = EvaluateConfig(tuple(runs), out=str(folder), reference=str(drawn.reference), reference_image=image)
        metrics.append(evaluate(config, ["tilting", "recipe", table.name], quiet=run.quiet))
    return metrics


def distance_to(picture: Path, folder: Path, manifest: Mapping[str, Any]) -> float:
    """Root mean square pixel difference to a picture, averaged over a run's images."""
    target = read_image(picture)
    files = [folder / record["file"] for record in manifest["images"]]
    return mean([(read_image(file) - target).square().mean().sqrt().item() for file in files])


def _measured(drawn: DrawnTable, judged: Sequence[Mapping[str, Any]], run: Run) -> dict[tuple[str, int], Mapping[str, Any]]:
    """What was measured of the pictures of a row from reference picture k, now or in its part; those of tables without them
    write their parts."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    for k, metrics in enumerate(judged):
        by_name = {one["name"]: one for one in metrics["runs"]}
        for name in drawn.runs:
            folder = drawn.folder(name, k)
            if folder in drawn.kept:
                found[name, k] = drawn.manifests[folder]["measured"]
            else:
                found[name, k] = {key: by_name[folder.name].get(key) for key in OF_PICTURES}
                if not drawn.sources and name not in ALWAYS:
                    keep_part(run, drawn.requests[folder], drawn.manifests[folder], found[name, k])
    return found


def _mean_of(measured: Sequence[Any], *keys: str) -> float | None:
    """The mean over evaluations of the value under these nested keys; None if no evaluation has it."""
    values = list(measured)
    for key in keys:
        values = [value[key] for value in values if value]
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _row(
    table: Table, row: Row, drawn: DrawnTable, out: Path, found: Mapping[tuple[str, int], Mapping[str, Any]], values: Measured
) -> dict[str, Any]:
    """A line of the table."""
    folders, mine = drawn.runs[row.name], values[row.name]
    manifests = [drawn.manifests[folder] for folder in folders]
    config, count = manifests[0]["config"], sum(len(m["images"]) for m in manifests)
    measured = [one for (name, _), one in found.items() if name == row.name]
    others = [other for other in table.against if other in values and other != row.name]
    started = list(zip(drawn.sources, folders, manifests, strict=True)) if row.strength is not None else []
    line = {"name": row.name, "method": row.method, "reward": config["reward"], "particles": config["particles"]}
    line |= {"set": config["set"], "strength": row.strength, "equal": row.equal}
    return {
        **line,
        "runs": [str(folder.relative_to(out)) for folder in folders],
        "images": count,
        "rewards": {what: interval(mine[what]) for what in mine if what != "judge"},
        "against": {other: {what: interval(mine[what], values[other][what]) for what in mine} for other in others},
        "judge": interval(mine["judge"]),
        "tclip": _mean_of(measured, "tclip", "mean"),
        "igram": _mean_of(measured, "igram_clip", "mean"),
        "to_reference": mean([distance_to(*one) for one in started]) if started else None,
        **{key: _mean_of(measured, key, "pooled") for key in (*DISTANCES, UNBIASED)},
        **{f"{key}_per_prompt": _mean_of(measured, key, "per_prompt", "mean") for key in DISTANCES},
        **{key: sum(m["summary"][key] for m in manifests) / count for key in ("evaluations", "decodes", "seconds")},
        "published_row": row.published,
        "published": published_row(table.published[0], row.published) if table.published[0] and row.published else None,
    }


def claim_of(claim: Claim, spec: str, rows: Sequence[Mapping[str, Any]], values: Measured) -> dict[str, Any]:
    """Test a claim against every rival by the table's first reward: "holds", "fails" or "undecided"."""
    evaluated = {row["name"]: row["evaluations"] for row in rows}
    rivals = []
    for rival in (rival for rival in claim.rivals if {rival, claim.winner} <= set(values)):
        gain, judge = (interval(values[claim.winner][what], values[rival][what]) for what in (spec, "judge"))
        kind = "undecided" if gain is None else verdict(gain["low"], gain["high"])
        paid = [evaluated[claim.winner], evaluated[rival]]
        needs = needed(estimated(values[claim.winner][spec], values[rival][spec])) if kind == "undecided" else ""
        rivals.append({"rival": rival, "verdict": kind, "reward": gain, "judge": judge, "evaluations": paid, "needs": needs})
    both = {claim.winner, "base"} <= set(values)
    over = interval(values[claim.winner]["judge"], values["base"]["judge"]) if both else None
    falls = None if over is None else verdict(over["low"], over["high"]) == "fails"
    about = {"text": claim.text, "winner": claim.winner, "reward": spec}
    return {**about, "rivals": rivals, "judge_over_base": over, "judge_falls": falls}
