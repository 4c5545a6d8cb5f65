"""What a column of labels means: classes, or a number; and the cut of numbers into classes at their quantiles.

A column of words, or of at most `MOST_CLASSES` different whole numbers, holds classes; any other column of numbers is
continuous. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tilting.errors import TiltingError, nearest

MOST_CLASSES = 20
FEWEST = 5
"""Items of a class, below which it is refused."""
WORDS = ("classes", "gaussian")


class Ask(NamedTuple):
    """A label as it is asked for: NAME, NAME=classes, NAME=gaussian or NAME=CLASS,CLASS,...

    Attributes:
        name: the column.
        kind: "classes", "gaussian", or None to be seen from the values.
        classes: in the order of the outputs; empty to be seen from the values.
    """

    name: str
    kind: str | None = None
    classes: tuple[str, ...] = ()


class Column(NamedTuple):
    """A label as it was found.

    Attributes:
        name: of the label.
        kind: "classes" or "gaussian", as `tilting.features.schema.Schema` has it.
        classes: their names in order; empty for "gaussian".
        edges: where numbers were cut into classes: class k has edges[k - 1] <= value < edges[k].
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()


def parse_label(text: str) -> Ask:
    """Read one ``--label``. Raises TiltingError: an empty name, a kind there is not, or a class given twice."""
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not name or "#" in name or name in ("file", "prompt"):
        raise TiltingError(f"--label takes the name of a column of labels, not {text!r}")
    if not equals:
        return Ask(name)
    if rest in WORDS:
        return Ask(name, rest)
    if "," not in rest:
        raise TiltingError(f"--label {text!r}: there is no kind of label {rest!r}{nearest(rest, WORDS)}, or CLASS,CLASS,...")
    classes = tuple(c.strip() for c in rest.split(","))
    if "" in classes or len(set(classes)) < len(classes):
        raise TiltingError(f"--label {text!r}: classes need names, all different")
    return Ask(name, "classes", classes)


def why_empty(cell: Any) -> str | None:
    """Why a cell holds no label: "is empty", "is NaN"; or None when it holds one."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "is empty"
    if (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and cell.strip().lower() == "nan"):
        return "is NaN"
    return None


def settle(ask: Ask, cells: Sequence[Any]) -> tuple[Column, list[str | float | None], list[str]]:
    """The meaning of a column.

    Args:
        ask: what is asked for.
        cells: of all rows; none for which `why_empty` has a reason.

    Returns:
        The column; a class or a number for each cell, or None where it cannot be one; and why, for those, in order.
    """
    numbers = [_number(cell) for cell in cells]
    if (ask.kind or _kind(numbers)) == "gaussian":
        values: list[Any] = [n if n is not None and math.isfinite(n) else None for n in numbers]
        wrong = (cell for cell, value in zip(cells, values, strict=True) if value is None)
        return Column(ask.name, "gaussian"), values, [f"the label {ask.name!r} is {str(c)!r}, no finite number" for c in wrong]
    names = [_name(cell, number) for cell, number in zip(cells, numbers, strict=True)]
    classes = ask.classes or tuple(_ordered(set(names)))
    found: list[Any] = [name if name in classes else None for name in names]
    reasons = [f"the label {ask.name!r} has no class {n!r}{nearest(n, classes)}" for n in names if n not in classes]
    return Column(ask.name, "classes", classes), found, reasons


def cut(ask: Ask, values: Sequence[float], bins: int) -> tuple[Column, list[str]]:
    """Classes of equal share, of numbers: between quantiles at k / bins, a value on an edge counts upwards.

    Args:
        ask: its classes name the bins, from the smallest numbers up; "0", "1", ... where there are none.
        values: finite numbers.
        bins: how many, at least 2.

    Raises:
        TiltingError: too few different values, or another number of names.
    """
    import numpy as np

    if ask.classes and len(ask.classes) != bins:
        raise TiltingError(f"--label {ask.name} names {len(ask.classes)} classes for {bins} bins")
    classes = ask.classes or tuple(str(k) for k in range(bins))
    edges = np.quantile(np.array(values), np.arange(1, bins) / bins) if values else np.zeros(bins - 1)
    taken = np.searchsorted(edges, np.array(values), side="right").tolist()
    if len(set(taken)) < bins:
        raise TiltingError(f"the label {ask.name!r} has too few different values to be cut into {bins} bins")
    return Column(ask.name, "classes", classes, tuple(edges.tolist())), [classes[k] for k in taken]


def _kind(numbers: Sequence[float | None]) -> str:
    known = [n for n in numbers if n is not None]
    broken = [n for n in known if not (math.isfinite(n) and n == int(n))]
    if len(known) < len(numbers):  # words, or numbers with a few slips of the pen
        return "gaussian" if 2 * len(broken) > len(numbers) else "classes"
    return "gaussian" if broken or len(set(known)) > MOST_CLASSES else "classes"


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool):
        return None
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def _name(cell: Any, number: float | None) -> str:
    """A class's name: 1.0 is called 1, as spreadsheets write it where a column has gaps."""
    if isinstance(cell, bool):
        return str(cell).lower()
    text = str(cell).strip()
    whole = number is not None and math.isfinite(number) and number == int(number)
    return str(int(number)) if whole and number is not None and not text.lstrip("+-").isdigit() else text


def _ordered(names: set[str]) -> list[str]:
    whole = all(name.lstrip("+-").isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if whole else 0, name))
