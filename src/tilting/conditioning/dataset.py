"""Labelled pictures (x, y), CTRL's offline data (Zhao et al. 2024, section 3): read, checked, and split 80/20.

Labels that depend on the picture alone need no prompts (the paper's Example 1); where there are some they are kept. A record
is held out by a hash of (seed, file), or of (seed, group) where records of one origin must share a side: its side stays the
same whatever other records come or go. Torch-free.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from tilting.conditioning.table import FOLDER_LABEL, Bad, Row, Table
from tilting.config.label_columns import FEWEST, Ask, Column, cut, settle, why_empty
from tilting.errors import TiltingError, nearest
from tilting.features.picture import open_rgb

HELD_OUT = 0.2
"""The share that is held out (appendix D.1)."""


class Record(NamedTuple):
    """A picture and what is said of it.

    Attributes:
        file: as the table names it, with forward slashes.
        path: where it lies.
        where: for people, such as "row 3 of 'labels.csv'".
        labels: a class's name or a number by label; cells as they were read before `label`.
        prompt: or None.
        group: what it shares with others that are no news beside it, such as views of one thing; empty: its file.
    """

    file: str
    path: Path
    where: str
    labels: dict[str, Any]
    prompt: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """Records that can be learnt from.

    Attributes:
        records: in the order of their source.
        columns: the labels, each of every record.
        bad: why rows were left out, a sentence each.
    """

    records: tuple[Record, ...]
    columns: tuple[Column, ...]
    bad: tuple[str, ...] = ()

    def split(self, seed: int) -> tuple[list[int], list[int]]:
        """Numbers of the records to learn from, and of those held out.

        Raises:
            TiltingError: one side is empty, or lacks a class to learn.
        """
        sides = [is_held_out(seed, record.group or record.file) for record in self.records]
        learn = [i for i, held in enumerate(sides) if not held]
        held = [i for i, held in enumerate(sides) if held]
        if not learn or not held:
            raise TiltingError(f"{len(self.records)} pictures are too few to hold out a fifth with --seed {seed}: label more")
        for column in self.columns:
            seen = {self.records[i].labels[column.name] for i in learn}
            for name in column.classes:
                if name not in seen:
                    what = f"every item of the class {name!r} of {column.name!r}"
                    raise TiltingError(f"{what} is held out with --seed {seed}: choose another, or label more")
        return learn, held

    def digest(self) -> str:
        """16 hex digits over files, their sizes in bytes, and labels."""
        sha = hashlib.sha256()
        for record in self.records:
            labels = sorted((k, str(v)) for k, v in record.labels.items())
            about = [record.file, str(record.path.stat().st_size), str(labels), *filter(None, [record.group])]
            sha.update(("\0".join(about) + "\n").encode())
        return sha.hexdigest()[:16]


def is_held_out(seed: int, who: str, share: float = HELD_OUT) -> bool:
    """Whether a record is held out; of the seed and its group or file alone."""
    key = hashlib.blake2b(f"{seed}\0{who}\0held out".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") < share * 2**64


def find_records(table: Table, asks: Sequence[Ask], bad: Bad, group: str | None = None) -> tuple[list[Record], list[Ask]]:
    """Records whose file is there, with the cells of the labels asked for (of all labels, where none is).

    Raises:
        TiltingError: a label or ``group`` that is no column, no label at all; or a bad row, see `Bad`.
    """
    _check_group(table, group)
    columns = {ask.name: ask.name for ask in asks}
    if not asks:
        asks = [Ask(name) for name in table.columns if name != group]
        columns = {ask.name: ask.name for ask in asks}
    elif table.columns == (FOLDER_LABEL,) and len(asks) == 1:
        columns = {asks[0].name: FOLDER_LABEL}  # class folders take the name they are given
    for ask in asks:
        if columns[ask.name] not in table.columns:
            known = nearest(ask.name, table.columns) if table.columns else "; there are no labels at all"
            raise TiltingError(f"there is no column {ask.name!r} of labels{known}")
    if not asks:
        raise TiltingError("there is no column of labels beside file and prompt")
    records = []
    for row in table.rows:
        labels = {name: row.cells.get(column) for name, column in columns.items()}
        record = _record(row, table.place, labels, bad, group)
        if record is not None:
            records.append(record)
    return records, list(asks)


def unlabelled(table: Table, bad: Bad, group: str | None = None) -> list[Record]:
    """Records whose file is there, without labels. Raises TiltingError as `find_records` does."""
    _check_group(table, group)
    found = (_record(row, table.place, {}, bad, group) for row in table.rows)
    return [record for record in found if record is not None]


def _check_group(table: Table, group: str | None) -> None:
    if group is not None and group not in table.columns:
        raise TiltingError(f"there is no column {group!r} to keep together{nearest(group, table.columns)}")


def _record(row: Row, place: Path, labels: dict[str, Any], bad: Bad, group: str | None) -> Record | None:
    where, cells = row
    file = str(cells.get("file") or "").strip()
    if not file:
        bad.add(where, "the cell of the file is empty")
        return None
    name = PurePath(file).as_posix()
    try:
        there = (place / name).is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        bad.add(where, f"the file {file!r} is not there")
        return None
    together = str(cells.get(group) or "").strip() if group else ""
    return Record(name, place / name, where, labels, str(cells.get("prompt") or "").strip() or None, together)


def label(records: Sequence[Record], asks: Sequence[Ask], bad: Bad) -> Dataset:
    """Give cells their meaning.

    Args:
        records: with the cells of every label asked for.
        asks: the labels.
        bad: what to do with rows without a label, or with one that cannot be.

    Returns:
        A data set whose classes are not counted yet (`count_classes`).
    """
    columns = []
    for ask in asks:
        full = []
        for record in records:
            reason = why_empty(record.labels[ask.name])
            if reason is None:
                full.append(record)
            else:
                bad.add(record.where, f"the label {ask.name!r} {reason}")
        column, values, reasons = settle(ask, [record.labels[ask.name] for record in full])
        why = iter(reasons)
        kept = []
        for record, value in zip(full, values, strict=True):
            if value is None:
                bad.add(record.where, next(why))
            else:
                kept.append(record._replace(labels={**record.labels, ask.name: value}))
        records = kept
        columns.append(column)
    return Dataset(tuple(records), tuple(columns), tuple(bad.reasons))


def cut_labels(data: Dataset, asks: Sequence[Ask], bins: int) -> Dataset:
    """Cut every label, all of which are numbers, into classes at its quantiles; see `cut`."""
    columns, records = [], list(data.records)
    for ask in asks:
        column, classes = cut(ask, [r.labels[ask.name] for r in records], bins)
        records = [r._replace(labels={**r.labels, ask.name: c}) for r, c in zip(records, classes, strict=True)]
        columns.append(column)
    return replace(data, records=tuple(records), columns=tuple(columns))


def check_pictures(records: Iterable[Record], bad: Bad, tick: Callable[[], object] = lambda: None) -> list[Record]:
    """Those whose picture decodes; ``tick`` is called after each."""
    good = []
    for record in records:
        try:
            open_rgb(record.path)
            good.append(record)
        except TiltingError as error:
            bad.add(record.where, f"the file {record.file!r} {error}")
        tick()
    return good


def count_classes(data: Dataset, bad: Bad) -> Dataset:
    """Refuse what cannot be learnt: a label of one value, and classes of fewer than `FEWEST` items (left out with ``skip``)."""
    for i, column in enumerate(data.columns):
        values = [record.labels[column.name] for record in data.records]
        if column.kind == "gaussian":
            if len(values) < FEWEST or len(set(values)) < 2:
                shown = f"{len(values)} numbers" if len(values) < FEWEST else f"the same number, {values[0]:g}, everywhere"
                raise TiltingError(f"the label {column.name!r} has {shown}: there is nothing to learn")
            continue
        counts = Counter(values)
        few = [name for name in column.classes if counts[name] < FEWEST]
        usable = [name for name in counts if name not in few] if bad.skip else list(counts)
        if len(usable) < 2:
            shown = f" ({usable[0]!r})" if usable else f" of {FEWEST} items" if bad.skip else ""
            raise TiltingError(f"the label {column.name!r} has one class only{shown}: there is nothing to tell apart")
        for name in few:
            items = f"{counts[name]} item{'s' * (counts[name] != 1)}"
            for where in [r.where for r in data.records if r.labels[column.name] == name] or [f"the label {column.name!r}"]:
                bad.add(where, f"the class {name!r} of {column.name!r} has {items}, fewer than {FEWEST}")
        if few:
            kept = tuple(c for c in column.classes if c not in few)
            columns = (*data.columns[:i], column._replace(classes=kept), *data.columns[i + 1 :])
            records = tuple(r for r in data.records if r.labels[column.name] in kept)
            return count_classes(Dataset(records, columns), bad)
    return replace(data, bad=tuple(bad.reasons))
