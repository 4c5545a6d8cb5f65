"""Pictures of the DRaFT recipes: charts of rows over a number, training curves, and sheets of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tilting.lazy import np
from tilting.reports.grid import Cell, short, write_rows
from tilting.reports.text import listed
from tilting_papers.charts import JUDGE, Dot, Panel
from tilting_papers.draft.study import Results
from tilting_papers.numbers import interval

NOUNS = {"step": "training steps", "images": "generated images", "reward_calls": "reward queries", "seconds": "seconds"}
NOUNS |= {"evaluations": "denoiser evaluations"}
ALIKE = 8.0
"""Mean pixel difference (of 255) below which two pictures look the same."""


def tile(path: Path, row: int, column: int, columns: int) -> Image.Image:
    """One picture of a sheet with ``columns`` pictures in a row."""
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    side = sheet.width // columns
    return sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))


def name_of(results: Results, what: str, where: str | None = None) -> str:
    """Axis label of a quantity: name, unit and set."""
    name, unit = Path(what).name, results.study.units.get(what, "")
    name = JUDGE if what == "judge" else f"{name} ({unit})" if unit else name
    return f"{name}, {where or results.first} prompts"


def curve(results: Results, across: str, what: str, where: str, runs: Sequence[str] | None = None) -> Panel:
    """Training curves."""
    series: dict[str, list[Dot]] = {}
    for run in runs or results.summaries:
        xs = [point[across] for point in results.points(run) if where in point["sets"]]
        looks = results.over_training(run, what, where)
        series[run] = [(x, interval(values, seeded=True)) for x, values in zip(xs, looks, strict=False)]
    return Panel(NOUNS[across], name_of(results, what, where), series)


def over(results: Results, rows: Sequence[tuple[float, str]], what: str, where: str | None = None) -> list[Dot]:
    """Points (x, mean) of rows given as (x, name)."""
    return [(x, interval(results.values(name, what, where), seeded=True)) for x, name in rows]


def pictured(results: Results, sheets: Sequence[Path], path: Path) -> bool:
    """Whether all pictures of a figure are in the folder; if not, it is noted as left out."""
    whole = all(sheet.is_file() for sheet in sheets)
    results.left += [] if whole else [path.name]
    return whole


def progress(results: Results, path: Path) -> str:
    """A row of pictures per run, a column per evaluation, with the same noise, for the prompt of the lowest initial reward."""
    images, where = results.size.images, results.first
    before = results.points(next(iter(results.summaries)))[0]["sets"][where]["rewards"][results.spec][::images]
    prompt = before.index(min(before))
    rows = []
    if not pictured(
        results, [results.sheet(run, where, at["step"]) for run in results.summaries for at in results.points(run)], path
    ):
        return ""
    for run in results.summaries:
        cells = []
        for point in results.points(run):
            value = point["sets"][where]["rewards"][results.spec][prompt * images]
            picture = tile(results.sheet(run, where, point["step"]), prompt, 0, images)
            cells.append((f"step {point['step']}: {short(value)}", picture))
        rows.append((run, cells))
    title = f"{results.study.heading}: {results.protocol.sets[where][prompt]!r} as training goes on"
    return write_rows(told_apart(rows), title, f"{results.spec} under each picture", path).name


def told_apart(rows: Sequence[tuple[str, list[Cell]]]) -> list[tuple[str, list[Cell]]]:
    """Merge rows whose last pictures look the same; a merged row's name and value are added to the first one's label."""
    kept: list[tuple[list[str], list[Cell]]] = []
    for name, cells in rows:
        like = next((names for names, before in kept if apart(before[-1][1], cells[-1][1]) < ALIKE), None)
        if like is None:
            kept.append(([name], cells))
        else:
            like.append(f"{name} ({cells[-1][0].rpartition(': ')[2]} at the end)")
    return [(alike(names), cells) for names, cells in kept]


def alike(names: Sequence[str]) -> str:
    """Label of a row with the rows that look like it, at most three of them by name."""
    first, *others = names
    few = [*others[:3], *([f"{len(others) - 3} more"] if len(others) > 3 else [])]
    return f"{first}, and hardly to be told from it {listed(few)}" if few else first


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute pixel difference, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def columns(results: Results, names: Sequence[tuple[str, str]], path: Path, where: str | None = None, title: str = "") -> str:
    """A row of pictures per prompt, a column per (name of a row, label)."""
    where, images = where or results.first, results.size.images
    rows = []
    if not pictured(results, [results.sheet(name, where) for name, _ in names], path):
        return ""
    for i, prompt in enumerate(results.protocol.sets[where]):
        cells = []
        for name, label in names:
            value = results.scores(name)[0][where]["rewards"][results.spec][i * images]
            cells.append((f"{label}: {short(value)}", tile(results.sheet(name, where), i, 0, images)))
        rows.append((prompt, cells))
    return write_rows(rows, title or results.study.heading, f"{results.spec} under each picture", path).name
