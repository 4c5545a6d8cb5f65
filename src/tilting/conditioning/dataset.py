"""Labelled pictures (x, y), CTRL's offline data (Zhao et al. 2024, section 3): read, validated, and split 80/20.

Prompts are optional: labels may depend on the picture alone (the paper's Example 1). Labels come from a table or a function:
any reward, such as the size of a JPEG, or a user's function, which may also return class names. A record is held out if its
table or folder says so (test, val); else by a hash of (seed, file), or of (seed, group) if related records must stay together,
so that its side does not depend on other records.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from tilting.conditioning.table import Bad, Column, Row, Table, cut, read_table, settle, single, why_empty
from tilting.config.condition_fit import Ask, FitConfig, parse_label
from tilting.disk import checked_name
from tilting.errors import TiltingError, nearest, outlived
from tilting.features.picture import Inside, open_rgb, tensor_of
from tilting.lazy import np
from tilting.rewards import UserReward
from tilting.rewards.check import checked
from tilting.rewards.spec import Spec, build_one

if TYPE_CHECKING:
    from PIL import Image

HELD_OUT = 0.2
"""Share of held-out records (appendix D.1)."""
FEWEST = 5
"""Minimum number of records of a class."""


class Record(NamedTuple):
    """A labelled picture.

    Attributes:
        file: its name in the table, with forward slashes.
        path: its file, or its place in a table.
        where: its place for messages, such as "row 3 of 'labels.csv'".
        labels: class name or number by label, None for a missing one; raw cells before `settled`.
        prompt: its prompt, or None.
        group: identifies related pictures, such as views of one object; "" for none.
        side: "train", "held out", or "" if the source does not say.
    """

    file: str
    path: Path | Inside
    where: str
    labels: dict[str, Any]
    prompt: str | None = None
    group: str = ""
    side: str = ""


@dataclass(frozen=True)
class Dataset:
    """A validated data set.

    Attributes:
        records: the records in the order of their source.
        columns: the labels; every record has at least one of them.
        bad: why rows were left out, a sentence each.
        notes: further sentences about the source.
        copies: for each picture that occurs several times, the indices of its records.
    """

    records: tuple[Record, ...]
    columns: tuple[Column, ...]
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    copies: tuple[tuple[int, ...], ...] = ()

    def learnt(self) -> Dataset:
        """The data set without the records that its source holds out."""
        held = [record for record in self.records if record.side == "held out"]
        if not held:
            return self
        note = f"{len(held)} pictures that the data hold out are not learnt from"
        kept = tuple(record for record in self.records if record.side != "held out")
        return replace(self, records=kept, notes=(*self.notes, note), copies=())

    def known(self, column: Column) -> list[int]:
        """Indices of the records that have this label."""
        return [i for i, record in enumerate(self.records) if record.labels[column.name] is not None]

    def split(self, seed: int) -> tuple[list[int], list[int]]:
        """Indices of the training records, and of the held-out ones.

        Raises:
            TiltingError: one side is empty, or a class is missing from training.
        """
        said = any(record.side for record in self.records)
        sides = [r.side == "held out" if said else is_held_out(seed, r.group or r.file) for r in self.records]
        learn = [i for i, held_out in enumerate(sides) if not held_out]
        held_out = [i for i, held_out in enumerate(sides) if held_out]
        if not learn or not held_out:
            raise TiltingError(f"{len(self.records)} pictures are too few to hold out a fifth with --seed {seed}: label more")
        for column in self.columns:
            seen = {self.records[i].labels[column.name] for i in learn}
            for name in column.classes:
                if name not in seen:
                    what = f"every item of the class {name!r} of {column.name!r} is held out"
                    raise TiltingError(
                        f"{what} by the split" if said else f"{what} with --seed {seed}: choose another, or label more"
                    )
            if not column.classes and len(seen - {None}) < 2:
                raise TiltingError(f"too few numbers of {column.name!r} are left to learn from: label more")
            if all(self.records[i].labels[column.name] is None for i in held_out):
                raise TiltingError(
                    f"no picture with the label {column.name!r} is held out: label more, or choose another --seed"
                )
        return learn, held_out

    def told(self, learn: Sequence[int]) -> list[str]:
        """Sentences for the user about the data, and about a split with these training records."""
        notes, mine = list(self.notes), set(learn)
        held_out = len(self.records) - len(mine)
        if held_out and any(record.side for record in self.records):
            notes.append(f"{len(mine)} pictures are learnt from and {held_out} held out, as the data say")
        for column in self.columns:
            values = [{self.records[i].labels[column.name] for i in copy} - {None} for copy in self.copies]
            odd = [copy for copy, several in zip(self.copies, values, strict=True) if len(several) > 1]
            if odd:
                notes.append(f"{self._named(odd)} there with several values of {column.name!r}: they are learnt as all of them")
        across = [copy for copy in self.copies if 0 < len(mine.intersection(copy)) < len(copy)]
        if across:
            notes.append(
                f"{self._named(across)} both learnt from and held out, which makes what is held out look too good: --group "
                "keeps copies together"
            )
        return notes

    def _named(self, copies: Sequence[tuple[int, ...]]) -> str:
        pair = " and ".join(repr(self.records[i].file) for i in copies[0][:2])
        return f"{len(copies)} picture{' is' if len(copies) == 1 else 's are'} in the data several times (such as {pair}) and"

    def digest(self) -> str:
        """A digest, 16 hex digits, of file names, file sizes and labels."""
        sha = hashlib.sha256()
        for record in self.records:
            labels = sorted((k, str(v)) for k, v in record.labels.items())
            size = len(record.path.read()) if isinstance(record.path, Inside) else record.path.stat().st_size
            about = [record.file, str(size), str(labels), *filter(None, [record.group, record.side])]
            sha.update(("\0".join(about) + "\n").encode())
        return sha.hexdigest()[:16]


def is_held_out(seed: int, who: str, share: float = HELD_OUT) -> bool:
    """Whether a record is held out, by a hash of the seed and its group or file."""
    key = hashlib.blake2b(f"{seed}\0{who}\0held out".encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") < share * 2**64


def bar(total: int, about: str, quiet: bool, initial: int = 0) -> Any:
    """A progress bar on stderr."""
    return tqdm(total=total, desc=about, initial=initial, file=sys.stderr, disable=quiet, dynamic_ncols=True, leave=False)


def read_data(config: FitConfig, quiet: bool = True) -> Dataset:
    """Read and validate the labelled pictures of a request.

    Raises:
        TiltingError: naming the row.
    """
    bad, spec, asks = Bad(config.skip_bad), config.spec(), config.asks()
    table = read_table(Path(config.data), bad, labelled=spec is None)
    if config.group is not None and config.group not in table.columns:
        raise TiltingError(f"there is no column {config.group!r} to keep together{nearest(config.group, table.columns)}")
    looked = Looked({}, quiet)
    asks = asks or [Ask(name) for name in table.columns if name not in (config.group, *table.others)]
    asks = [ask._replace(kind="gaussian") if config.bins else ask for ask in asks]  # numbers, which are cut into classes
    if spec is None:
        for ask in asks:
            checked_name(ask.name, "label")
        records = _records(table, _columns(table, asks), bad, config.group)
    else:
        checked_name(asks[0].name, "label")
        records = _labelled_by(_records(table, {}, bad, config.group), spec, asks[0], bad, looked)
    data = _settled(records, asks, bad)
    if spec is None:  # after the labels, which are refused at once
        data = replace(data, records=tuple(_decoding(data.records, bad, looked)))
    if not data.records:
        raise TiltingError(f"no row of {config.data!r} can be used; the first: {bad.reasons[0]}")
    data = _counted(_cut(data, asks, config.bins) if config.bins else data, bad)
    return replace(data, notes=table.notes, copies=looked.copies(data.records))


class Looked(NamedTuple):
    """Pictures as they are decoded.

    Attributes:
        pixels: a digest of each, by file.
        quiet: no bar.
    """

    pixels: dict[str, bytes]
    quiet: bool

    def open(self, record: Record) -> Image.Image:
        """A record's picture. Raises TiltingError naming its file."""
        try:
            image = open_rgb(record.path)
        except TiltingError as error:
            raise TiltingError(f"the file {record.file!r} {error}") from None
        self.pixels[record.file] = hashlib.blake2b(image.tobytes() + repr(image.size).encode(), digest_size=16).digest()
        return image

    def copies(self, records: Sequence[Record]) -> tuple[tuple[int, ...], ...]:
        """Numbers of the records whose pixels are the same, of each picture that comes several times."""
        alike: dict[bytes, list[int]] = {}
        for i, record in enumerate(records):
            alike.setdefault(self.pixels[record.file], []).append(i)
        return tuple(tuple(numbers) for numbers in alike.values() if len(numbers) > 1)


def read_tables(data: Sequence[str], labels: Sequence[str] = (), skip_bad: bool = False, quiet: bool = True) -> list[Dataset]:
    """Read and check several tables, or folders of class folders: of each the labels asked for that it has.

    Args:
        data: where they lie.
        labels: NAME[=KIND]; all there are, where none is given.
        skip_bad: leave bad rows out.
        quiet: no bars.

    Raises:
        TiltingError: a label that is in no table or in two, a table without one, or what `read_data` raises.
    """
    asks = {parse_label(text).name: text for text in labels}
    owners: dict[str, str] = {}
    columns = {}
    for path in data:
        if not Path(path).exists():
            raise TiltingError(f"there is no file or folder {path!r} of labelled pictures")
        table = read_table(Path(path), Bad(True))
        columns[path] = list(table.named(list(asks)))
        if not columns[path]:
            raise TiltingError(
                f"{path!r} has none of the labels {', '.join(asks)}{nearest(next(iter(asks), ''), table.columns)}"
            )
    for path, names in columns.items():
        for name in names:
            if name in owners:
                raise TiltingError(f"the label {name!r} is in both {owners[name]!r} and {path!r}: put them into one table")
            owners[name] = path
    missing = [name for name in asks if name not in owners]
    if missing:
        raise TiltingError(f"there is no column {missing[0]!r} of labels{nearest(missing[0], owners)}")
    tables = []
    for path, names in columns.items():
        options = {"data": path, "label": [asks.get(name, name) for name in names], "skip-bad": skip_bad}
        tables.append(read_data(FitConfig.resolve(options), quiet).learnt())
    return tables


def _columns(table: Table, asks: Sequence[Ask]) -> dict[str, str]:
    """Label -> column. Raises TiltingError: a label that is no column, or none at all."""
    columns = table.named([ask.name for ask in asks])
    for ask in asks:
        if ask.name not in columns:
            near = nearest(ask.name, table.columns) if table.columns else "; there are no labels at all"
            raise TiltingError(f"there is no column {ask.name!r} of labels{near}")
    if not asks:
        more = f"; name one of {', '.join(filter(None, table.columns))} by --label" if any(table.columns) else ""
        raise TiltingError(f"there is no column of labels beside file and prompt{more}")
    return {ask.name: columns[ask.name] for ask in asks}


def _records(table: Table, columns: dict[str, str], bad: Bad, group: str | None) -> list[Record]:
    """Records whose file is there, with the cells of their labels."""
    records = []
    for row in table.rows:
        record = _record(row, table.folder, {name: row.cells.get(column) for name, column in columns.items()}, bad, group)
        if record is not None:
            records.append(record)
    return records


def _record(row: Row, folder: Path, labels: dict[str, Any], bad: Bad, group: str | None) -> Record | None:
    where, cells = row.where, row.cells
    file = str(cells.get("file") or "").strip()
    if not file:
        bad.add(where, "the cell of the file is empty")
        return None
    name = PurePath(file).as_posix()
    path = row.picture or folder / name
    try:
        if not isinstance(path, Inside) and "\\" in name and not path.is_file():
            name = PureWindowsPath(file).as_posix()
            path = folder / name
        there = isinstance(path, Inside) or path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        bad.add(where, f"the file {file!r} is not there")
        return None
    together = str(cells.get(group) or "").strip() if group else ""
    return Record(name, path, where, labels, str(cells.get("prompt") or "").strip() or None, together, row.side)


def _labelled_by(records: Sequence[Record], spec: Spec, ask: Ask, bad: Bad, looked: Looked) -> list[Record]:
    """Records with the label that a function gives to each picture, at its own size; no prompt is the prompt "". What is no
    value of the label's kind is refused at its picture, not after all others.

    The function is a reward, or ``file.py:function``: (images (1, 3, h, w) float in [0, 1], prompts) -> one number or word.
    """
    reward = build_one(spec)

    def value_of(record: Record) -> float | str:
        image = tensor_of(np.array(looked.open(record)))[None]
        prompts = [record.prompt or ""]
        if not isinstance(reward, UserReward):
            return float(checked(reward, image, prompts)[0])
        try:
            value = reward.function(image.clone(), prompts)
        except BaseException as error:
            raise TiltingError(f"{reward.name!r} raised {outlived(error)}") from error
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, str):
            return value
        try:
            return float(value)  # type: ignore[arg-type]
        except BaseException as error:
            outlived(error)
            kind = type(value).__name__
            raise TiltingError(f"{reward.name!r} must return one number or word per picture, not {kind}") from None

    labelled, name = [], ask.name
    with bar(len(records), spec.text, looked.quiet) as progress:
        for record in records:
            try:
                value = value_of(record)
                if ask.kind is not None and why_empty(value) is None and (reasons := settle(ask, [value])[2]):
                    raise TiltingError(reasons[0])
                labelled.append(record._replace(labels={**record.labels, name: value}))
            except TiltingError as error:
                bad.add(record.where, str(error))
            progress.update(1)
    return labelled


def _settled(records: Sequence[Record], asks: Sequence[Ask], bad: Bad) -> Dataset:
    """Records whose cells have their meaning; classes are not counted yet. One of several labels may be missing."""
    columns, kept = [], []
    for record in records:
        cells, reasons = {}, []
        for ask in asks:
            try:
                cells[ask.name] = single(record.labels[ask.name])
                reason = why_empty(cells[ask.name])
            except TiltingError as error:
                bad.add(record.where, f"the label {ask.name!r} {error}")
                break
            if reason is not None:
                cells[ask.name] = None
                reasons.append(f"the label {ask.name!r} {reason}")
        else:
            if len(reasons) == len(asks):
                bad.add(record.where, reasons[0])
            else:
                kept.append(record._replace(labels=cells))
    for ask in asks:
        full = [record for record in kept if record.labels[ask.name] is not None]
        column, values, reasons = settle(ask, [record.labels[ask.name] for record in full])
        why, meant = iter(reasons), iter(values)
        records, kept = kept, []
        for record in records:
            value = next(meant) if record.labels[ask.name] is not None else None
            if value is None and record.labels[ask.name] is not None:
                bad.add(record.where, next(why))
            else:
                kept.append(record._replace(labels={**record.labels, ask.name: value}))
        columns.append(column)
    return Dataset(tuple(kept), tuple(columns), tuple(bad.reasons))


def _cut(data: Dataset, asks: Sequence[Ask], bins: int) -> Dataset:
    """Every label, all of which are numbers, cut into classes at its quantiles; see `cut`."""
    columns, records = [], list(data.records)
    for ask in asks:
        column, classes = cut(ask, [r.labels[ask.name] for r in records if r.labels[ask.name] is not None], bins)
        each = iter(classes)
        named = (None if r.labels[ask.name] is None else next(each) for r in records)
        records = [r._replace(labels={**r.labels, ask.name: c}) for r, c in zip(records, named, strict=True)]
        columns.append(column)
    return replace(data, records=tuple(records), columns=tuple(columns))


def _decoding(records: Sequence[Record], bad: Bad, looked: Looked) -> list[Record]:
    """Those whose picture decodes."""
    good = []
    with bar(len(records), "pictures", looked.quiet) as progress:
        for record in records:
            try:
                looked.open(record)
                good.append(record)
            except TiltingError as error:
                bad.add(record.where, str(error))
            progress.update(1)
    return good


def _counted(data: Dataset, bad: Bad) -> Dataset:
    """Refuse what cannot be learnt: a label of one value, and classes of fewer than `FEWEST` items (left out with ``skip``)."""
    for i, column in enumerate(data.columns):
        values = [data.records[k].labels[column.name] for k in data.known(column)]
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
            records = tuple(r for r in data.records if r.labels[column.name] in (*kept, None))
            return _counted(Dataset(records, columns), bad)
    return replace(data, bad=tuple(bad.reasons))
