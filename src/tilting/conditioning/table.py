"""Sources of labelled pictures: a table (`tilting.config.rows`), a folder with tables, class folders, or a run of
`tilting generate`.

A table has a column of files (one of `FILES`; relative to the table) or of pictures, one per label, and prompt if there are
prompts. A column of words, or of at most `MOST_CLASSES` different whole numbers, holds classes; any other column of numbers is
continuous. Files, folders or a column may say which rows are to be learnt from (train) and which are held out. Torch-free.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tilting.config.condition_fit import Ask, check_bins
from tilting.config.prompts import NAMES
from tilting.config.rows import BLANK, TABLES, named, read_rows
from tilting.disk import inner_path
from tilting.errors import TiltingError, nearest
from tilting.features.picture import SUFFIXES, Inside
from tilting.lazy import np
from tilting.runs.files import MANIFEST, read_json, with_records

FILES = (
    *("file", "file_name", "filename", "image", "path", "image_path", "file_path", "filepath", "img"),
    *("image_file", "image_name", "img_path"),
)
"""Accepted names of the column of pictures, in any case; the first one present is used."""
INSIDE = ("metadata", "labels")
"""Names of a table within a folder of pictures, besides the names of splits."""
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "val", "valid", "validation", "dev", "eval"), "held out"
)
"""Names of splits, and whether each is for training or held out."""
SPLIT = ("split", "subset", "partition")
"""Accepted names of a column of splits."""
INDEX = re.compile(r"|unnamed: \d+(\.\d+)*|__index_level_\d+__|level_\d+", re.IGNORECASE)
"""Names of index columns that pandas writes."""
MISSING = ("nan", "<na>", "n/a", "#n/a", "nat", "null")
"""Markers of missing values, in any case. "None" and "NA" are not among them, since they may be classes."""
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""Suffix of the files of a sharded table on the hub."""
FOLDER_LABEL = "class"
"""Default name of the label of class folders."""
MOST_CLASSES = 20


class Row(NamedTuple):
    """A raw row.

    Attributes:
        where: its place for messages, such as "row 3 of 'labels.csv'" (counted from 1, without the header).
        cells: cells by column, and under "file" and "prompt"; None for a missing one.
        side: "train", "held out", or "" if the source does not say.
        picture: its picture, if that is stored in the table itself.
    """

    where: str
    cells: dict[str, Any]
    side: str = ""
    picture: Inside | None = None


class Table(NamedTuple):
    """Rows of a source.

    Attributes:
        rows: the rows in order.
        columns: names of all columns except file and prompt.
        folder: the folder that files are relative to.
        others: columns that are labels only if requested by name: splits, indices, further file names.
        notes: sentences about the source, for the user.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    folder: Path
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def named(self, labels: Sequence[str]) -> dict[str, str]:
        """The column of each label that has one; without ``labels``, all label columns. The column of class folders takes the
        name of a single label."""
        if self.columns == (FOLDER_LABEL,) and len(labels) == 1:
            return {labels[0]: FOLDER_LABEL}
        return {name: name for name in self.columns if (name in labels if labels else name not in self.others)}


class Column(NamedTuple):
    """A label and its values.

    Attributes:
        name: name of the label.
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
    """Handling of rows that cannot be used.

    Attributes:
        skip: leave them out and record why, instead of refusing the first.
        reasons: a sentence for each row left out.
    """

    skip: bool = False
    reasons: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        """Record a bad row. Raises TiltingError naming it unless bad rows are skipped."""
        if not self.skip:
            raise TiltingError(f"{where}: {reason}; --skip-bad leaves such rows out")
        self.reasons.append(f"{where}: {reason}")


def read_table(data: Path, bad: Bad, labelled: bool = True) -> Table:
    """The rows of a source.

    Args:
        data: a file with a suffix in `TABLES`, or a folder.
        bad: handling of invalid lines.
        labelled: whether the source must have labels; if not, any folder of pictures is accepted.

    Raises:
        TiltingError: the source is missing, of another kind, without a column of files, or without rows.
    """
    if data.is_dir():
        table = _folder(data, labelled, bad)
    elif not data.is_file():
        raise TiltingError(f"there is no file or folder {str(data)!r} of labelled pictures")
    elif data.suffix.lower() not in TABLES:
        raise TiltingError(f"labels are read from a folder or from {', '.join(TABLES)} files, which {str(data)!r} is not")
    else:
        table = _file(data, bad)
    if not table.rows:
        raise TiltingError(f"{str(data)!r} holds no labelled pictures")
    return table._replace(rows=_one_sided(table.rows))


def _one_sided(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Drop the sides if all rows have the same one, as in a single folder called train."""
    return rows if len({row.side for row in rows}) > 1 else tuple(row._replace(side="") for row in rows)


def side_of(name: object) -> str:
    """The side of a split's name, or of a file name that begins with one, such as train-00000-of-00001; else ""."""
    return SPLITS.get(re.split(r"[-_.]", str(name).strip().lower())[0], "")


def _folder(data: Path, labelled: bool, bad: Bad) -> Table:
    manifest = data / MANIFEST
    if manifest.is_file() and (data / "images").is_dir():
        return _run(data, manifest, labelled)
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in (*SUFFIXES, *TABLES) and p.is_file())
    inside = [p.relative_to(data) for p in files]
    inside = [p for p in inside if not any(part.startswith(".") for part in p.parts)]
    tables = [p for p in inside if p.suffix.lower() in TABLES and _tells(p)]
    if tables:
        return _joined(data, tables, bad)
    pictures = [p for p in inside if p.suffix.lower() in SUFFIXES]
    sides = {p: side_of(p.parts[0]) if len(p.parts) > 1 and p.parts[0].lower() in SPLITS else "" for p in pictures}
    if not labelled:
        return Table(tuple(Row(repr(p.as_posix()), {"file": p.as_posix()}, sides[p]) for p in pictures), (), data)
    rows = []
    for p in pictures:
        parts = p.parts[1:] if all(sides.values()) else p.parts
        if len(parts) < 2:
            raise TiltingError(
                f"{str(data)!r} holds {str(p)!r} outside of class folders: give such folders, a table, or --label-by"
            )
        if len(parts) > 2:
            lone = len({q.parts[0] for q in pictures}) == 1
            near = repr(str(data / parts[0])) if lone else "a folder whose folders are the classes, or a table"
            raise TiltingError(f"{str(data)!r} holds {str(p)!r}, whose class may be {parts[0]!r} or {parts[-2]!r}: give {near}")
        rows.append(Row(repr(p.as_posix()), {"file": p.as_posix(), FOLDER_LABEL: parts[0]}, sides[p]))
    if not rows:
        raise TiltingError(
            f"{str(data)!r} holds no folders of pictures, one per class: give such folders, a table, or --label-by"
        )
    return Table(tuple(rows), (FOLDER_LABEL,), data)


def _run(data: Path, manifest: Path, labelled: bool) -> Table:
    """The pictures of a run of `tilting generate`."""
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


def _tells(file: Path) -> bool:
    """Whether a file in a folder is its table, such as metadata.csv, train.csv or test-00000-of-00001.parquet, at the top, in
    the folder of a split, or in the hub's folder "data"."""
    above = all(part.lower() in (*SPLITS, "data") for part in file.parts[:-1])
    named_so = file.suffix.lower() != ".json" and (file.stem.lower() in INSIDE or file.stem.lower() in SPLITS)
    return above and (named_so or (side_of(file.stem) != "" and SHARD.search(file.stem) is not None))


def _joined(data: Path, files: Sequence[Path], bad: Bad) -> Table:
    """Concatenate tables; rows have the side of their table."""
    twins = [f for f in files if any(f != g and f.with_suffix("") == g.with_suffix("") for g in files)]
    if twins:
        raise TiltingError(f"{str(data)!r} holds {str(twins[0])!r} and {str(twins[1])!r}: give one of them by its name")
    rows: list[Row] = []
    columns, others, notes = {}, {}, {}
    for file in files:
        table, above = _file(data / file, bad), file.parent
        side = next(filter(None, map(side_of, (*file.parts[:-1], file.stem))), "")
        for row in table.rows:
            told = row.cells.get("file")
            cells = {**row.cells, "file": (above / str(told)).as_posix() if told else told}
            rows.append(row._replace(cells=cells, side=row.side or side))
        columns, others, notes = (
            a | dict.fromkeys(b) for a, b in ((columns, table.columns), (others, table.others), (notes, table.notes))
        )
    return Table(tuple(rows), tuple(columns), data, tuple(others), tuple(notes))


def _file(data: Path, bad: Bad) -> Table:
    """The rows of a table file."""
    columns, found = _pictures(data) if data.suffix.lower() == ".parquet" else _plain(data, bad)
    column, prompt = named(columns, FILES), named(columns, NAMES)
    if column is None:
        there = ", ".join(filter(None, columns)) or "none at all"
        raise TiltingError(f"{str(data)!r} has no column 'file' with the names of the pictures; there is: {there}")
    split = named(columns, SPLIT)
    sides = [side_of(row.cells.get(split)) for row in found] if split else []
    if not all(sides):
        split = None
    rows = tuple(
        row._replace(
            cells={**row.cells, "file": row.cells.get(column), "prompt": row.cells.get(prompt) if prompt else None},
            side=sides[i] if split else "",
        )
        for i, row in enumerate(found)
    )
    names = tuple(c for c in columns if c not in (column, "prompt", "file"))
    counts = [c for c in names if not INDEX.fullmatch(c) and _counts_rows([row.cells.get(c) for row in rows])]
    files = [c for c in names if c.lower() in FILES]
    others = [c for c in names if INDEX.fullmatch(c) or c in (split, prompt)] + counts + files
    notes = tuple(f"the column {c!r} counts the rows, and is no label unless --label {c} says so" for c in counts)
    return Table(rows, names, data.parent, tuple(others), notes)


def _counts_rows(cells: Sequence[Any]) -> bool:
    numbers = [_number(cell) for cell in cells]
    return len(numbers) > 2 and numbers[0] in (0, 1) and numbers == [numbers[0] + i for i in range(len(numbers))]


def _plain(data: Path, bad: Bad) -> tuple[tuple[str, ...], list[Row]]:
    columns, found = read_rows(data, FILES)
    rows = []
    for i, cells in enumerate(found):
        where = f"row {i + 1} of {data.name!r}"
        if cells is BLANK:
            continue
        if isinstance(cells, str):
            bad.add(where, f"it {cells}")
        else:
            rows.append(Row(where, cells))
    return columns, rows


def _pictures(data: Path) -> tuple[tuple[str, ...], list[Row]]:
    """The rows of a parquet file by the `datasets` library: pictures stay in the file, class labels get their names."""
    try:
        import datasets  # type: ignore[import-not-found]
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise TiltingError(
            f"reading {str(data)!r} needs pyarrow and datasets: pip install 'tilting[data]', or give .csv or .jsonl"
        ) from None
    try:
        whole = datasets.Dataset(parquet.read_table(data))
    except Exception as error:
        raise TiltingError(f"{str(data)!r} is not a parquet file: {str(error).splitlines()[0]}") from None
    columns, features = tuple(whole.column_names), whole.features
    pictures = [c for c in columns if _holds_pictures(features[c], datasets)]
    column = named(pictures, FILES) or next(iter(pictures), None)
    words = {c: f for c, f in features.items() if isinstance(f, datasets.ClassLabel)}
    rows = []
    told: Any = whole.remove_columns(pictures)
    for i, cells in enumerate(told):
        cells |= {c: None if cells[c] in (None, -1) else f.int2str(cells[c]) for c, f in words.items()}
        picture = None
        if column is not None:
            cells["file"] = f"{data.name}/{i}"
            picture = Inside(whole.data.column(column), i, f"{data}, row {i + 1}")
        rows.append(Row(f"row {i + 1} of {data.name!r}", cells, picture=picture))
    kept = tuple(c for c in columns if c not in pictures)
    return ("file", *(c for c in kept if c != "file")) if column is not None else kept, rows


def _holds_pictures(feature: Any, datasets: Any) -> bool:
    """Whether a column holds the bytes of pictures."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def single(cell: Any) -> Any:
    """A cell, unwrapped from a list of one value as JSON and pandas write it: ["dark"].

    Raises:
        TiltingError: the cell has several values or is a mapping; the message is only the reason.
    """
    if isinstance(cell, str) and re.fullmatch(r"\s*(\[.*\]|\{.*\})\s*", cell, re.DOTALL):
        try:
            cell = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if not re.fullmatch(r"\s*\[[-+.e\d\s]+\]\s*", cell):
                return cell
            cell = cell.strip()[1:-1].split()  # as numpy writes an array
    if isinstance(cell, list | tuple):
        if len(cell) > 1:
            hot = len(cell) > 1 and sorted(map(str, cell))[:-1] == ["0"] * (len(cell) - 1)
            raise TiltingError(f"is {'one-hot' if hot else 'a list'}, {cell}: give one class or number for each picture")
        return cell[0] if cell else None
    if isinstance(cell, dict):
        raise TiltingError(f"is a mapping, {cell}: give one class or number for each picture")
    return cell


def why_empty(cell: Any) -> str | None:
    """Why a cell has no label, such as "is empty" or "is NaN"; None if it has one."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "is empty"
    if (isinstance(cell, float) and math.isnan(cell)) or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return "is NaN" if str(cell).strip().lower() == "nan" else f"is {str(cell).strip()}, no value"
    return None


def settle(ask: Ask, cells: Sequence[Any]) -> tuple[Column, list[str | float | None], list[str]]:
    """Infer the kind and the values of a label's column.

    Args:
        ask: the requested label.
        cells: the cells of all rows, none of them empty (`why_empty`).

    Returns:
        The column; a class or a number for each cell, None for an invalid one; and the reasons for those, in order.

    Raises:
        TiltingError: classes that differ only by capitals, such as Yes and yes, unless they were requested.
    """
    numbers = [_number(cell) for cell in cells]
    if (ask.kind or _kind(numbers)) == "gaussian":
        values: list[Any] = [n if n is not None and math.isfinite(n) else None for n in numbers]
        wrong = (cell for cell, value in zip(cells, values, strict=True) if value is None)
        return Column(ask.name, "gaussian"), values, [f"the label {ask.name!r} is {str(c)!r}, no finite number" for c in wrong]
    names = [_name(cell, number) for cell, number in zip(cells, numbers, strict=True)]
    names = [_spelt(name, ask.classes) for name in names]
    classes = ask.classes or tuple(_ordered(set(names)))
    if not ask.classes:
        _check_spelling(ask.name, names)
    known: list[Any] = [name if name in classes else None for name in names]
    reasons = [f"the label {ask.name!r} has no class {n!r}{nearest(n, classes)}" for n in names if n not in classes]
    return Column(ask.name, "classes", classes), known, reasons


def cut(ask: Ask, values: Sequence[float], bins: int) -> tuple[Column, list[str]]:
    """Bin numbers into classes of equal share, at the quantiles k / bins; a value on an edge belongs to the upper class.

    Args:
        ask: its classes name the bins, from the smallest numbers up; by default "0", "1", ...
        values: finite numbers.
        bins: number of bins, at least 2.

    Raises:
        TiltingError: too few different values, or a wrong number of class names.
    """
    check_bins(ask, bins)
    classes = ask.classes or tuple(str(k) for k in range(bins))
    edges = np.quantile(np.array(values), np.arange(1, bins) / bins) if values else np.zeros(bins - 1)
    taken = np.searchsorted(edges, np.array(values), side="right").tolist()
    if len(set(taken)) < bins:
        raise TiltingError(f"the label {ask.name!r} has too few different values to be cut into {bins} bins")
    return Column(ask.name, "classes", classes, tuple(edges.tolist())), [classes[k] for k in taken]


def _kind(numbers: Sequence[float | None]) -> str:
    known = [n for n in numbers if n is not None]
    broken = [n for n in known if not (math.isfinite(n) and n == int(n))]
    if len(known) < len(numbers):  # words, or numbers with a few typos
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
    """A class's name; 1.0 becomes 1, since spreadsheets write integers so in columns with gaps."""
    if isinstance(cell, bool):
        return str(cell).lower()
    text = str(cell).strip()
    whole = number is not None and math.isfinite(number) and number == int(number)
    return str(int(number)) if whole and number is not None and not text.lstrip("+-").isdigit() else text


def _ordered(names: set[str]) -> list[str]:
    whole = all(name.lstrip("+-").isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name) if whole else 0, name))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _spelt(name: str, classes: Sequence[str]) -> str:
    """The requested class with this name up to capitals; else the name itself."""
    alike = [one for one in classes if _folded(one) == _folded(name)]
    return alike[0] if name not in classes and len(alike) == 1 else name


def _check_spelling(label: str, names: Iterable[str]) -> None:
    alike: dict[str, dict[str, None]] = defaultdict(dict)
    counts = Counter(names)
    for name, _ in counts.most_common():
        alike[_folded(name)][name] = None
    for spelt in alike.values():
        if len(spelt) > 1:
            first, second = list(spelt)[:2]
            asked = ",".join(_ordered({next(iter(one)) for one in alike.values()}))
            raise TiltingError(
                f"the label {label!r} has the classes {first!r} and {second!r}: --label {label}={asked} takes them as one, and"
                " naming both keeps them apart"
            )
