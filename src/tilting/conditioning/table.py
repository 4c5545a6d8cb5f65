"""Where rows of labelled pictures come from: .csv, .jsonl, .parquet, a folder of class folders, a run of `tilting generate`.

A table has a column file (relative to the table), one per label, and prompt if there are prompts. Importing this is
torch-free.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tilting.conditioning.images import SUFFIXES
from tilting.errors import TiltingError

KINDS = (".csv", ".jsonl", ".parquet")
FOLDER_LABEL = "class"
"""The column of class folders, where it is not given a name."""


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
        place: what files are relative to.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    place: Path


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
    manifest = data / "manifest.json"
    if manifest.is_file() and (data / "images").is_dir():
        if labelled:
            raise TiltingError(f"{str(data)!r} is a run of `tilting generate`, which has no labels: give --label-by")
        try:
            images = json.loads(manifest.read_bytes())["images"]
            rows = tuple(Row(repr(i["file"]), {"file": i["file"], "prompt": i["prompt"]}) for i in images)
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


def _text(data: Path) -> str:
    try:
        return data.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TiltingError(f"{str(data)!r} is not UTF-8 text") from None
    except OSError as error:
        raise TiltingError(f"cannot read {str(data)!r}: {error.strerror}") from None


def _csv(data: Path, bad: Bad) -> Table:
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(_text(data), newline=""), skipinitialspace=True)
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
    for i, line in enumerate(_text(data).rstrip().split("\n")):  # not splitlines: JSON may hold U+2028
        where = f"row {i + 1} of {data.name!r}"
        try:
            cells = json.loads(line)
        except ValueError:
            cells = None
        if not isinstance(cells, dict):
            bad.add(where, "it is not a JSON mapping")
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
