"""Tables of labelled pictures for classifier-free fine-tuning: of each the labels asked for that it has. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tilting.conditioning.dataset import Dataset
from tilting.conditioning.fit_run import read_data
from tilting.conditioning.table import FOLDER_LABEL, Bad, read_table
from tilting.config.condition_fit import resolve_fit
from tilting.config.label_columns import parse_label
from tilting.errors import TiltingError, nearest


def read_tables(data: Sequence[str], labels: Sequence[str] = (), skip_bad: bool = False, quiet: bool = True) -> list[Dataset]:
    """Read and check tables, or folders of class folders.

    Args:
        data: where they lie.
        labels: NAME[=KIND]; all there are, where none is given.
        skip_bad: leave bad rows out.
        quiet: no bars.

    Raises:
        TiltingError: a label that is in no table or in two, a table without one, or what `read_data` raises.
    """
    asks = {parse_label(text).name: text for text in labels}
    columns = {}
    for place in data:
        if not Path(place).exists():
            raise TiltingError(f"there is no file or folder {place!r} of labelled pictures")
        found = read_table(Path(place), Bad(True)).columns
        one = found == (FOLDER_LABEL,) and len(asks) == 1  # class folders take the name they are given
        columns[place] = list(asks) if one else [name for name in found if name in asks or not asks]
        if not columns[place]:
            raise TiltingError(f"{place!r} has none of the labels {', '.join(asks)}{nearest(next(iter(asks), ''), found)}")
    owners: dict[str, str] = {}
    for place, mine in columns.items():
        for name in mine:
            if name in owners:
                raise TiltingError(f"the label {name!r} is in both {owners[name]!r} and {place!r}: put them into one table")
            owners[name] = place
    missing = [name for name in asks if name not in owners]
    if missing:
        raise TiltingError(f"there is no column {missing[0]!r} of labels{nearest(missing[0], owners)}")
    found = []
    for place, mine in columns.items():
        asked = [asks.get(name, name) for name in mine]
        found.append(read_data(resolve_fit({"data": place, "label": asked, "skip-bad": skip_bad}), quiet))
    return found
