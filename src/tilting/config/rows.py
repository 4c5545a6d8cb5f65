"""Rows of a user's table: .csv, .tsv, .jsonl, .json, .parquet. Torch-free.

Columns are found by their usual names in any case. Of comma, semicolon and tab, the separator is the one that yields a column
of a usual name; if it is a semicolon, 0,53 is a number.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tilting.errors import TiltingError
from tilting.foreign import parse_json, read_text

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SEPARATORS = (",", ";", "\t")
COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
"""A number with a decimal comma, as in spreadsheets that separate cells by semicolons."""


BLANK: dict[str, Any] = {}
"""A line or row that is blank: no row, which keeps its place, so that the others keep their numbers."""


class Rows(NamedTuple):
    """Contents of a table.

    Attributes:
        columns: names, in order.
        rows: cells by column; for an invalid row the reason, such as "is not JSON"; `BLANK`.
    """

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any] | str, ...]


def named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name is the first of ``names`` that is present, as written or in another case; None without one."""
    lower = {column.strip().lower(): column for column in reversed(columns)}
    return next((name if name in columns else lower[name] for name in names if name in columns or name in lower), None)


def read_rows(file: Path, names: Sequence[str]) -> Rows:
    """The rows of a file.

    Args:
        file: a file with one of the suffixes `TABLES`.
        names: usual names of the wanted column; a .json list of strings is that column.

    Raises:
        TiltingError: naming a file that cannot be read as its suffix says.
    """
    kind = file.suffix.lower()
    if kind == ".parquet":
        return _parquet(file)
    text = read_text(file)
    return {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json}[kind](text, file, names)


def _separator(header: str, names: Sequence[str]) -> str:
    return next((one for one in SEPARATORS if named([c.strip().strip('"') for c in header.split(one)], names)), ",")


def _csv(text: str, file: Path, names: Sequence[str]) -> Rows:
    separator = _separator(text.split("\n", 1)[0], names)
    try:
        lines = _cells(text, separator, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if separator != "\t":
            raise TiltingError(f"{str(file)!r} is not CSV: {error}") from None
        lines = _cells(text, separator, csv.QUOTE_NONE)  # tables with tabs often quote nothing, as PartiPrompts
    columns = tuple(column.strip() for column in lines[0]) if lines else ()
    twice = next((c for i, c in enumerate(columns) if c and c in columns[:i]), None)
    if twice is not None:
        raise TiltingError(f"{str(file)!r} has two columns of the name {twice!r}")
    rows: list[dict[str, Any] | str] = []
    for cells in lines[1:]:
        if separator == ";":
            cells = [cell.replace(",", ".") if COMMA.fullmatch(cell) else cell for cell in cells]
        more = len(cells) > len(columns)
        if not any(cell.strip() for cell in cells):
            rows.append(BLANK)
            continue
        row = {**dict.fromkeys(columns), **dict(zip(columns, cells, strict=False))}
        rows.append(f"has more cells than the {len(columns)} columns" if more else row)
    return Rows(columns, tuple(rows))


def _cells(text: str, separator: str, quoting: Any) -> list[list[str]]:
    """Cells of the lines that are not empty. Raises csv.Error."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, skipinitialspace=True, strict=True)
    return [cells for cells in lines if cells]


def _jsonl(text: str, file: Path, names: Sequence[str]) -> Rows:
    lines = text.rstrip().split("\n")  # not splitlines: JSON may hold U+2028
    return _mappings([BLANK if not line.strip() else _loaded(line) for line in lines] if lines != [""] else [], names)


def _loaded(line: str) -> Any:
    """The JSON value of a line, or the error."""
    try:
        return parse_json(line, "")
    except TiltingError as error:
        return error


def _mappings(values: Sequence[Any], names: Sequence[str]) -> Rows:
    columns: dict[str, None] = {}
    rows: list[dict[str, Any] | str] = []
    for value in values:
        row = {names[0]: value} if isinstance(value, str) else value
        if isinstance(row, dict):
            columns |= dict.fromkeys(map(str, row))
            rows.append(row)
        else:
            rows.append(str(row).strip() if isinstance(row, TiltingError) else "is not a JSON mapping")
    return Rows(tuple(columns), tuple(rows))


def _json(text: str, file: Path, names: Sequence[str]) -> Rows:
    """A list of mappings or strings, such a list as a value of a mapping, or a mapping of mappings (pandas' index layout)."""
    value = _loaded(text)
    if isinstance(value, dict):
        lists = [one for one in value.values() if isinstance(one, list) and one and isinstance(one[0], dict)]
        held = [one for one in lists if named(list(one[0]), names)]
        texts = next((value[k] for k in map(str, value) if k.lower() in names and isinstance(value[k], list)), None)
        within = all(isinstance(one, dict) for one in value.values())
        value = texts if texts is not None else held[0] if held else list(value.values()) if within else None
    if not isinstance(value, list):
        reason = str(value).strip() if isinstance(value, TiltingError) else "holds no list in JSON"
        raise TiltingError(f"{str(file)!r} {reason}")
    return _mappings(value, names)


def _parquet(file: Path) -> Rows:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise TiltingError(
            f"reading {str(file)!r} needs pyarrow: pip install 'tilting[data]', or give .csv, .tsv, .jsonl or .json"
        ) from None
    try:
        schema = parquet.read_schema(file)
        plain = [f.name for f in schema if "binary" not in str(f.type)]  # pictures stay where they are
        table = parquet.read_table(file, columns=plain)
    except Exception as error:
        raise TiltingError(f"{str(file)!r} is not a parquet file: {str(error).splitlines()[0]}") from None
    return Rows(tuple(table.column_names), tuple(table.to_pylist()))
