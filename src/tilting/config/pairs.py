"""Preference pairs from a table (`tilting.config.rows`): a prompt, the picture that was chosen, the one that was rejected.

Pictures are named relative to the table, in whose folder they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tilting.config.prompts import NAMES
from tilting.config.rows import BLANK, TABLES, named, read_rows
from tilting.disk import inner_path
from tilting.errors import TiltingError
from tilting.features.picture import open_rgb

COLUMNS = {"prompt": NAMES, "chosen": ("chosen", "preferred", "winner"), "rejected": ("rejected", "dispreferred", "loser")}
"""Accepted names of each column, in any case; the first one present is used."""


class Pair(NamedTuple):
    """Two pictures of a prompt, the better one first."""

    prompt: str
    chosen: Path
    rejected: Path


def read_pairs(path: str) -> tuple[Pair, ...]:
    """The pairs of a table, in order. Raises TiltingError: no such table, column or picture, a blank prompt, or no row."""
    file = Path(path)
    if file.suffix.lower() not in TABLES:
        raise TiltingError(f"pairs are read from {', '.join(TABLES)} files, which {path!r} is not")
    if not file.is_file():
        raise TiltingError(f"there is no file {path!r} for --pairs")
    columns, rows = read_rows(file, NAMES)
    found = {column: named(columns, names) for column, names in COLUMNS.items()}
    if lacking := [column for column, name in found.items() if name is None]:
        raise TiltingError(f"{path!r} has no column {lacking[0]}; there is: {', '.join(columns) or 'none'}")
    pairs = []
    for i, row in enumerate(rows):
        where = f"row {i + 1} of {path!r}"
        if row is BLANK:
            continue
        if isinstance(row, str):
            raise TiltingError(f"{where} {row}")
        prompt, *names = (row.get(str(name)) for name in found.values())
        if not isinstance(prompt, str) or not prompt.strip():
            raise TiltingError(f"{where} has no prompt")
        pictures = [_picture(file.parent, name, where) for name in names]
        if pictures[0] == pictures[1]:
            raise TiltingError(f"{where} has {str(names[0])!r} both chosen and rejected")
        pairs.append(Pair(prompt, *pictures))
    if not pairs:
        raise TiltingError(f"{path!r} holds no pairs")
    return tuple(pairs)


def _picture(folder: Path, name: object, where: str) -> Path:
    try:
        picture = inner_path(folder, name, "picture", nested=True)
    except TiltingError as error:
        raise TiltingError(f"{where}: {error}") from None
    if not picture.is_file():
        raise TiltingError(f"{where} names the picture {name!r}, which is not there")
    return picture


def check_pictures(pairs: tuple[Pair, ...]) -> None:
    """Decode every picture once. Raises TiltingError naming one that cannot be read."""
    for picture in dict.fromkeys(one for pair in pairs for one in (pair.chosen, pair.rejected)):
        try:
            open_rgb(picture)
        except TiltingError as error:
            raise TiltingError(f"the picture {str(picture)!r} of --pairs {error}") from error
