"""Tables of labelled pictures: .csv, .jsonl, .parquet, a folder of class folders, or a run of `tilting generate`.

A table has a column file (relative to the table), one per label, and prompt if there are prompts. A column of words, or of at
most `MOST_CLASSES` different whole numbers, holds classes; any other column of numbers is continuous. Torch-free.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tilting.config.condition_fit import Ask
from tilting.disk import inner_path
from tilting.errors import TiltingError, nearest
from tilting.foreign import Malformed, parse_json, read_text
from tilting.lazy import np
from tilting.runs.files import MANIFEST, read_json, with_records

KINDS = (".csv", ".jsonl", ".parquet")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What counts as a picture in a folder."""
FOLDER_LABEL = "class"
"""The column of class folders, where it is not given a name."""
MOST_CLASSES = 20


class Row(NamedTuple):
    """A row as it was read.

    Attributes:
        where: for people, such as "row 3 of 'labels.csv'" (counted from 1, without the header).
        cells: by column; None where a cell is missing.
    """

    where: str
    cells: dict[str, Any]


class Table(NamedTuple):
    """Rows of a source.

    Attributes:
        rows: in order.
        columns: all names but file and prompt.
        folder: what files are relative to.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    folder: Path

    def named(self, labels: Sequence[str]) -> dict[str, str]:
        """Label -> column, of those labels that have one, or of all columns where none is named: class folders take the name
        that one label has."""
        if self.columns == (FOLDER_LABEL,) and len(labels) == 1:
            return {labels[0]: FOLDER_LABEL}
        return {name: name for name in self.columns if name in labels or not labels}


class Column(NamedTuple):
    """A label as its cells have it.

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


@dataclass
class Bad:
    """What happens to rows that cannot be used.

    Attributes:
        skip: leave them out and remember why, instead of refusing the first.
        reasons: a sentence for each that was left out.
    """

    skip: bool = False
    reasons: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        """Note a row. Raises TiltingError naming it unless such rows are skipped."""
        if not self.skip:
            raise TiltingError(f"{where}: {reason}; --skip-bad leaves such rows out")
        self.reasons.append(f"{where}: {reason}")


def read_table(data: Path, bad: Bad, labelled: bool = True) -> Table:
    """The rows of a source.

    Args:
        data: a file of one of `KINDS`, or a folder.
        bad: what to do with lines that are no rows.
        labelled: whether the source must bring labels; else any folder of pictures will do.

    Raises:
        TiltingError: no such source, of another kind, without the column file, or without rows.
    """
    if data.is_dir():
        table = _folder(data, labelled)
    elif not data.is_file():
        raise TiltingError(f"there is no file or folder {str(data)!r} of labelled pictures")
    elif data.suffix.lower() not in KINDS:
        raise TiltingError(f"labels are read from a folder or from {', '.join(KINDS)} files, which {str(data)!r} is not")
    else:
        table = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[data.suffix.lower()](data, bad)
    if not table.rows:
        raise TiltingError(f"{str(data)!r} holds no labelled pictures")
    return table


def _folder(data: Path, labelled: bool) -> Table:
    manifest = data / MANIFEST
    if manifest.is_file() and (data / "images").is_dir():
        if labelled:
            raise TiltingError(f"{str(data)!r} is a run of `tilting generate`, which has no labels: give --label-by")
        try:
            images = with_records(data, read_json(manifest))["images"]
            rows = tuple(Row(repr(i["file"]), {"file": i["file"], "prompt": i["prompt"]}) for i in images)
            for image in images:
                inner_path(data, image["file"], "picture", nested=True)
        except TiltingError as error:
            raise TiltingError(f"{str(manifest)!r} is not the manifest of a run of `tilting generate`: {error}") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise TiltingError(f"{str(manifest)!r} is not the manifest of a run of `tilting generate`") from None
        return Table(rows, (), data)
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    inside = [p.relative_to(data) for p in files]
    inside = [p for p in inside if not any(part.startswith(".") for part in p.parts)]
    if not labelled:
        return Table(tuple(Row(repr(p.as_posix()), {"file": p.as_posix()}) for p in inside), (), data)
    loose = next((p for p in inside if len(p.parts) == 1), None)
    if loose is not None or not inside:
        what = f"holds {str(loose)!r} outside of class folders" if loose else "holds no folders of pictures, one per class"
        raise TiltingError(f"{str(data)!r} {what}: give such folders, a table, or --label-by")
    cells = ({"file": p.as_posix(), FOLDER_LABEL: p.parts[0]} for p in inside)
    return Table(tuple(Row(repr(c["file"]), c) for c in cells), (FOLDER_LABEL,), data)


def _table(data: Path, rows: list[Row], columns: list[str]) -> Table:
    if "file" not in columns:
        there = ", ".join(columns) or "none at all"
        raise TiltingError(f"{str(data)!r} has no column 'file' with the names of the pictures; there is: {there}")
    return Table(tuple(rows), tuple(c for c in columns if c not in ("file", "prompt")), data.parent)


def _csv(data: Path, bad: Bad) -> Table:
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(read_text(data), newline=""), skipinitialspace=True)
        columns = [str(c).strip() for c in reader.fieldnames or ()]
        reader.fieldnames = columns
        if len(set(columns)) < len(columns):
            raise TiltingError(f"{str(data)!r} has two columns of the same name")
        for i, cells in enumerate(reader):
            where = f"row {i + 1} of {data.name!r}"
            if None in cells:
                bad.add(where, f"it has more cells than the {len(columns)} columns")
            else:
                rows.append(Row(where, dict(cells)))
    except csv.Error as error:
        raise TiltingError(f"{str(data)!r} is not CSV: {error}") from None
    return _table(data, rows, columns)


def _jsonl(data: Path, bad: Bad) -> Table:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for i, line in enumerate(read_text(data).rstrip().split("\n")):  # not splitlines: JSON may hold U+2028
        where = f"row {i + 1} of {data.name!r}"
        try:
            cells, why = parse_json(line, "it"), "it is not a JSON mapping"
        except Malformed:
            cells, why = None, "it is not a JSON mapping"
        except TiltingError as error:
            cells, why = None, str(error)
        if not isinstance(cells, dict):
            bad.add(where, why)
            continue
        columns |= dict.fromkeys(cells)
        rows.append(Row(where, cells))
    return _table(data, rows, list(columns))


def _parquet(data: Path, bad: Bad) -> Table:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise TiltingError(f"reading {str(data)!r} needs pyarrow: pip install pyarrow, or give .csv or .jsonl") from None
    try:
        table = parquet.read_table(data)
    except Exception as error:
        raise TiltingError(f"{str(data)!r} is not a parquet file: {str(error).splitlines()[0]}") from None
    rows = [Row(f"row {i + 1} of {data.name!r}", cells) for i, cells in enumerate(table.to_pylist())]
    return _table(data, rows, list(table.column_names))


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
    known: list[Any] = [name if name in classes else None for name in names]
    reasons = [f"the label {ask.name!r} has no class {n!r}{nearest(n, classes)}" for n in names if n not in classes]
    return Column(ask.name, "classes", classes), known, reasons


def cut(ask: Ask, values: Sequence[float], bins: int) -> tuple[Column, list[str]]:
    """Classes of equal share, of numbers: between quantiles at k / bins, a value on an edge counts upwards.

    Args:
        ask: its classes name the bins, from the smallest numbers up; "0", "1", ... where there are none.
        values: finite numbers.
        bins: how many, at least 2.

    Raises:
        TiltingError: too few different values, or another number of names.
    """
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
