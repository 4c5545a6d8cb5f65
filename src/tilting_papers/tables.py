"""A table of a paper as data (rows are `tilting generate` requests), and the one function that makes any of them.

`run_table` draws what is missing of every row into DIR/runs, measures all of them with `tilting.evaluation.run`, and
writes table.md, table.json and figures. Nothing is drawn twice: a row is a resumable run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tilting_papers.folder import Report, Say, check_out, opening, write_table


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: of the line and of its run folder.
        method: a preset.
        particles: N; None is the preset's own, or that of ``equal``.
        settings: the preset's other fields.
        published: the paper's row to print beside it, if it has one.
        equal: a row whose evaluations per image this one is given too, by as many particles as that takes (rounded up).
        reward: instead of the table's.
        strength: r of SDEdit, from every reference picture of the table; None draws from noise.
        small: whether ``--small`` has it.
    """

    name: str
    method: str
    particles: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    equal: str | None = None
    reward: tuple[str, ...] | None = None
    strength: float | None = None
    small: bool = True


@dataclass(frozen=True)
class Claim:
    """That one row beats others: paired intervals of its reward minus theirs, and its judge does not fall below base's."""

    winner: str
    rivals: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Size:
    """How much is drawn: prompts (of the table's), images of each, T, and how many reference pictures."""

    prompts: int
    images: int
    steps: int
    references: int


SMALL = Size(prompts=2, images=1, steps=6, references=1)
FEWER = {"particles": {4: 2, 40: 3}, "probes": {10: 2, 50: 3}, "repeat": {6: 2, 10: 2}}
"""What ``--small`` makes of large settings; a schedule is cut to 2 and 3 in the same way."""


@dataclass(frozen=True)
class Table:
    """A table of a paper on model pocket.

    Attributes:
        name: of the recipe.
        title: one line.
        paper: of which table.
        prompts: what is drawn.
        reward: specs that every row is scored by, and steered by unless it has its own.
        units: of each reward, by spec without weight.
        rows: its lines; "base" is among them.
        against: rows that every other is compared with, paired over the same images.
        published: its key in published.yaml.
        published_unit: of the published reward.
        size: of the full run.
        claims: what is to be tested.
        sources: prompts of the reference pictures of SDEdit rows, which the model draws itself.
        figure: "rows" (a line for each), "pareto" (two rewards), "strength" (reward over distance to the reference) or "sweep"
            (the judge over the reward, by strength).
        notes: sentences for the reader.
        facts: from the finished rows, further figures to print beside published ones: (what, ours, theirs).
    """

    name: str
    title: str
    paper: str
    prompts: tuple[str, ...]
    reward: tuple[str, ...]
    units: Mapping[str, str]
    rows: tuple[Row, ...]
    against: tuple[str, ...] = ("base",)
    published: str | None = None
    published_unit: str = ""
    size: Size = Size(20, 4, 20, 3)
    claims: tuple[Claim, ...] = ()
    sources: tuple[str, ...] = ()
    figure: Literal["rows", "pareto", "strength", "sweep"] = "rows"
    notes: tuple[str, ...] = ()
    facts: Callable[[Report], list[dict[str, Any]]] | None = None


def shrink(name: str, value: Any) -> Any:
    """A setting as ``--small`` has it."""
    if name == "schedule":
        return tuple(min(n, 2 if n < 6 else 3) for n in value[::2])  # ten parts do not fit its six steps
    return FEWER.get(name, {}).get(value, value)


def run_table(table: Table, out: Path, small: bool, say: Say, seed: int = 0, quiet: bool = True) -> Report:
    """Make a table, or what is missing of it.

    Args:
        table: which.
        out: the folder to write, or to go on with.
        small: two prompts and six steps, to try it.
        say: takes lines of progress.
        seed: of its rows; the reference of distances has seed + 1, reference pictures seed + 2.
        quiet: no bars within a row.

    Returns:
        What table.json holds.

    Raises:
        TiltingError: a folder that cannot be written, or holds something else.
    """
    from tilting_papers.draw import draw_rows
    from tilting_papers.figures import write_figures
    from tilting_papers.numbers import claims_of, rows_of
    from tilting_papers.render import markdown

    check_out(table.name, out, small, seed)
    drawn = draw_rows(table, out, small, say, seed, quiet)
    say("measuring")
    report: Report = {
        **opening(table, small, seed), **drawn.about,
        "reward": list(table.reward), "units": dict(table.units), "against": list(table.against),
        "published": table.published, "published_unit": table.published_unit, **rows_of(table, drawn, out, quiet),
    }  # fmt: skip
    report["claims"] = [claims_of(claim, report, drawn) for claim in table.claims]
    report["facts"] = table.facts(report) if table.facts else []
    report["notes"] = list(table.notes)
    report["figures"] = write_figures(table, report, drawn, out)
    write_table(out, markdown(report), report)
    return report
