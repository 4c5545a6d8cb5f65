"""Claims of the CTRL recipes: requested classes against those that the labelling functions find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilting_papers.ctrl.study import Cells, Label, Study, best_name
from tilting_papers.numbers import Values, difference
from tilting_papers.page import claimed, number, shown
from tilting_papers.recipe import Report

RIVALS = {"dps": "reconstruction guidance", "noisy": "classifier guidance", "free": "classifier-free fine-tuning"}
ENOUGH = 0.85


def hits(cells: Sequence[Mapping[str, Any]], label: str | None = None) -> Values:
    """1 for an image of the requested class (of all labels if no ``label`` is named), else 0."""
    values: Values = {}
    for k, cell in enumerate(cells):
        for i, (prompt, index) in enumerate(zip(cell["prompts"], cell["index"], strict=True)):
            names = cell["asked"] if label is None else [label]
            values[k, prompt, index] = float(all(cell["classes"][n][i] == cell["asked"][n] for n in names))
    return values


def known(cells: Sequence[Mapping[str, Any]], key: str) -> Values:
    """The values "judge" or "kl" of the pictures that have one."""
    columns = [(k, zip(cell["prompts"], cell["index"], cell[key], strict=True)) for k, cell in enumerate(cells)]
    return {(k, p, i): v for k, column in columns for p, i, v in column if v is not None}


def at_least(text: str, value: float, line: float, published: str = "not told", words: str = "") -> dict[str, Any]:
    """The claim that a number is at least ``line``."""
    finding = {"verdict": "holds" if value >= line else "fails", "found": f"{number(value, 3)}{words}"}
    return claimed(text, published, finding)


def above(text: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], published: str) -> dict[str, Any]:
    """The claim that one row has more pictures of the requested class than another, by the interval of the difference."""
    return claimed(text, published, difference(hits(ours), hits(theirs)))


def claims_of(study: Study, report: Report, cells: Cells) -> list[dict[str, Any]]:
    """The claims about the control with their findings."""
    claims: list[dict[str, Any]] = []
    quoted = "CTRL is above its baselines"
    for line in [line for line in report["rows"] if _own(line)]:
        mine = line["name"]
        for label in study.labels if study.worst is not None else ():
            claims += _reaches(study, study.worst or 0.0, line, label)
        for family, title in RIVALS.items():
            best = best_name(family, line["part"])
            others = [r["name"] for r in report["rows"] if (r["family"], r["part"]) == (family, line["part"])]
            rival = next((name for name in (best, *others) if name in cells), None)
            if rival is not None:
                how = ", at the best strength for each class" if rival == best else ""
                claims.append(above(f"{mine} is above {rival} ({title}{how})", cells[mine], cells[rival], quoted))
        if "base" in cells:
            claims.append(above(f"{mine} is above the base model", cells[mine], cells["base"], quoted))
    return claims + study.claims(report, cells)


def _own(line: Mapping[str, Any]) -> bool:
    """Whether a row is of the study's control; studies with a grid of γ have claims of their own."""
    return line["family"] == "ctrl" and line["strength"] == 1 and line.get("gamma") is None


def _reaches(study: Study, worst: float, line: Mapping[str, Any], label: Label) -> list[dict[str, Any]]:
    """Claims that a control's accuracy, macro F1 and worst class reach their thresholds."""
    name, numbers, what = line["name"], line["labels"][label.name], f" of {label.name}" if len(study.labels) > 1 else ""
    mean, least = numbers["accuracy"]["mean"], min(numbers["per_class"])
    quoted = study.published.get(name, "its accuracy stands in a figure, not in the text")
    words, where = f", interval {shown(numbers['accuracy'])}", f" in class {numbers['per_class'].index(least)}"
    return [
        at_least(f"The accuracy{what} of {name} is at least {ENOUGH}", mean, ENOUGH, quoted, words),
        at_least(f"The macro F1{what} of {name} is at least {ENOUGH}", numbers["macro_f1"], ENOUGH, quoted),
        at_least(f"Every class{what} is obeyed by {name} at least {worst} of the time", least, worst, words=where),
    ]
