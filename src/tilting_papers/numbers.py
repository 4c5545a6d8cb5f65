"""The numbers of a table's rows, from their run folders: rewards and judge with bootstrap intervals (whole prompts resampled),
paired differences, distances to a base run of another seed beside their floor, T-CLIP, I-Gram, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tilting.config.evaluate import EvaluateConfig
from tilting.evaluation.run import evaluate
from tilting.metrics.statistics import paired_bootstrap
from tilting.rewards.spec import split_weight
from tilting_papers.draw import DrawnTable
from tilting_papers.published import published, published_row
from tilting_papers.tables import Claim, Row, Table
from tilting_papers.verdicts import verdict

Key = tuple[int, str, int]
"""Which of a row's runs, the prompt, and the index within it."""
Interval = dict[str, float]
DISTANCES = ("fid", "cmmd")


def values_of(manifests: Sequence[Mapping[str, Any]], what: str) -> dict[Key, float]:
    """A number of every image of a row: "judge" where there is one, or a reward by its spec without weight."""
    found: dict[Key, float] = {}
    for k, manifest in enumerate(manifests):
        for record in manifest["images"]:
            rewards = {split_weight(spec)[0]: value for spec, value in record["rewards"].items()}
            value = record["judge"] if what == "judge" else rewards.get(what)
            if value is not None:
                found[k, record["prompt"], record["index"]] = value
    return found


def interval(ours: Mapping[Key, float], theirs: Mapping[Key, float] | None = None) -> Interval | None:
    """Mean of ours (- theirs, image by image) and its 95 % bootstrap interval; prompts are resampled, images of a lone one.

    Theirs may be a single run beside several of ours: then each of ours is paired with it. None when nothing is shared.
    """
    lone = theirs is not None and {k for k, _, _ in theirs} == {0}
    other = dict.fromkeys(ours, 0.0) if theirs is None else theirs
    pairs = [(key, (0, *key[1:]) if lone else key) for key in ours]
    pairs = [(a, b) for a, b in pairs if b in other]
    if not pairs:
        return None
    prompts = [a[1] for a, _ in pairs]
    groups = prompts if len(set(prompts)) > 1 else None
    found = paired_bootstrap([ours[a] for a, _ in pairs], [other[b] for _, b in pairs], groups)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _clear(folder: Path) -> None:
    """Remove an earlier evaluation of ours, and nothing else."""
    for name in ("metrics.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def evaluations(table: Table, drawn: DrawnTable, out: Path, quiet: bool) -> list[dict[str, Any]]:
    """metrics.json of the rows, once for every reference picture, or once; kept with their report.html in DIR/evaluation."""
    found = []
    for k, picture in enumerate(drawn.sources or [None]):
        runs = list(dict.fromkeys(places[k if len(places) > 1 else 0] for places in drawn.runs.values()))
        folder = out / ("evaluation" if len(drawn.sources) < 2 else f"evaluation-{k}")
        _clear(folder)
        config = EvaluateConfig(
            tuple(map(str, runs)),
            out=str(folder),
            reference=str(drawn.reference),
            reference_image=None if picture is None else str(picture),
        )
        found.append(evaluate(config, ["tilting", "recipe", table.name], quiet=quiet))
    return found


def distance_to(picture: Path, folder: Path, manifest: Mapping[str, Any]) -> float:
    """Root mean square difference of pixels in [0, 1] to a picture, the mean over a run's images."""
    from tilting.features.picture import read_image

    target = read_image(picture)
    apart = [(read_image(folder / record["file"]) - target).square().mean().sqrt().item() for record in manifest["images"]]
    return sum(apart) / len(apart)


def rows_of(table: Table, drawn: DrawnTable, out: Path, quiet: bool = True) -> dict[str, Any]:
    """The "rows", "floor" and "extractors" of table.json."""
    judged = evaluations(table, drawn, out, quiet)
    by_name = {name: [{r["name"]: r for r in m["runs"]} for m in judged] for name in drawn.runs}
    rows = {row.name: row for row in table.rows}
    values = {name: _values(table, drawn, name) for name in drawn.runs}
    found = []
    for name, places in drawn.runs.items():
        measured = [each[places[k if len(places) > 1 else 0].name] for k, each in enumerate(by_name[name])]
        found.append(_row(table, rows[name], drawn, out, measured, values))
    floor = judged[0]["floor"]
    return {
        "floor": {key: floor[key]["pooled"] for key in DISTANCES} | {"how": floor["how"]} if floor else None,
        "extractors": judged[0]["extractors"],
        "rows": found,
    }


def _values(table: Table, drawn: DrawnTable, name: str) -> dict[str, dict[Key, float]]:
    """By reward and "judge", a row's numbers."""
    manifests = [drawn.manifests[place] for place in drawn.runs[name]]
    return {what: values_of(manifests, what) for what in (*map(_bare, table.reward), "judge")}


def _bare(spec: str) -> str:
    return split_weight(spec)[0]


def _row(
    table: Table, row: Row, drawn: DrawnTable, out: Path, measured: Sequence[Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Mapping[Key, float]]],
) -> dict[str, Any]:  # fmt: skip
    places, specs = drawn.runs[row.name], [_bare(spec) for spec in table.reward]
    manifests = [drawn.manifests[place] for place in places]
    config, count = manifests[0]["config"], sum(len(m["images"]) for m in manifests)
    mine = values[row.name]
    others = [other for other in table.against if other in values and other != row.name]
    pictures = drawn.sources if row.strength is not None else []
    return {
        "name": row.name, "method": row.method, "reward": config["reward"], "particles": config["particles"],
        "set": config["set"], "strength": row.strength, "equal": row.equal,
        "runs": [str(place.relative_to(out)) for place in places], "images": count,
        "rewards": {spec: interval(mine[spec]) for spec in specs},
        "against": {other: {s: interval(mine[s], values[other][s]) for s in (*specs, "judge")} for other in others},
        "judge": interval(mine["judge"]),
        "tclip": _mean(m["tclip"]["mean"] if m["tclip"] else None for m in measured),
        "igram": _mean(m["igram_clip"]["mean"] if m["igram_clip"] else None for m in measured),
        "to_reference": _mean(
            distance_to(p, place, m) for p, place, m in zip(pictures, places, manifests, strict=bool(pictures))
        ) if pictures else None,
        **{key: _mean(m[key]["pooled"] if m[key] else None for m in measured) for key in DISTANCES},
        **{
            f"{key}_per_prompt": _mean(
                m[key]["per_prompt"]["mean"] if m[key] and m[key]["per_prompt"] else None for m in measured
            )
            for key in DISTANCES
        },
        "evaluations": sum(m["summary"]["evaluations"] for m in manifests) / count,
        "decodes": sum(m["summary"]["decodes"] for m in manifests) / count,
        "seconds": sum(m["summary"]["seconds"] for m in manifests) / count,
        "published_row": row.published,
        "published": published_row(table.published, row.published) if table.published and row.published else None,
    }  # fmt: skip


def claims_of(claim: Claim, report: Mapping[str, Any], drawn: DrawnTable) -> dict[str, Any]:
    """A claim against every rival, by the table's first reward: "holds", "fails" or "undecided" (the interval holds 0)."""
    spec = _bare(report["reward"][0])
    by_name = {row["name"]: row for row in report["rows"]}

    def numbers(name: str, what: str) -> dict[Key, float]:
        return values_of([drawn.manifests[place] for place in drawn.runs[name]], what)

    found = []
    for rival in claim.rivals:
        if rival not in by_name or claim.winner not in by_name:
            continue
        gain = interval(numbers(claim.winner, spec), numbers(rival, spec))
        kind = "undecided" if gain is None else verdict(gain["low"], gain["high"])
        found.append({
            "rival": rival, "verdict": kind, "reward": gain,
            "judge": interval(numbers(claim.winner, "judge"), numbers(rival, "judge")),
            "evaluations": [by_name[claim.winner]["evaluations"], by_name[rival]["evaluations"]],
        })  # fmt: skip
    both = {claim.winner, "base"} <= set(by_name)
    judge = interval(numbers(claim.winner, "judge"), numbers("base", "judge")) if both else None
    return {
        "text": claim.text, "winner": claim.winner, "reward": spec, "rivals": found, "judge_over_base": judge,
        "judge_falls": None if judge is None else judge["high"] < 0,
    }  # fmt: skip


def columns_of(key: str | None) -> list[str]:
    """The columns of a published table, none without."""
    return list(published(key).get("columns", [])) if key else []
