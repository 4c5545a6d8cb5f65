"""Prompts from a file: .txt (a line each), or a table (`tilting.config.rows`) with a column of one of `NAMES`.

The other columns of a table are a prompt's metadata: plain JSON values by column, which rewards and pipelines may use. A config
(so YAML, and a manifest) has ``metadata`` beside ``prompts``, a mapping for each. In YAML and Python a prompt may also be a
mapping with its metadata: {"prompt": "a fox", "tag": "animal"}.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from tilting.config.rows import BLANK, TABLES, named, read_rows
from tilting.errors import TiltingError
from tilting.foreign import read_text

KINDS = (".txt", *TABLES)
LONGEST = 10_000
"""Maximum characters of a prompt: text encoders read 77 or 512 tokens of it."""
NAMES = ("prompt", "prompts", "caption", "text")
"""Names of the prompt column; the first one present is used, in any case."""


class Prompts(NamedTuple):
    """Prompts and their metadata.

    Attributes:
        texts: the prompts in order, with repetitions.
        metadata: plain JSON values by name for each prompt; empty if no prompt has any.
    """

    texts: tuple[str, ...]
    metadata: tuple[dict[str, Any], ...] = ()


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Refuse an empty list, and any prompt that is blank, names a file of prompts, or is not valid Unicode."""
    if not prompts:
        raise TiltingError("no prompt is given: say what to draw, or give --prompts FILE")
    for i, prompt in enumerate(prompts):
        which = f"prompt {i + 1} of {len(prompts)}"
        if not isinstance(prompt, str):
            raise TiltingError(f"{which} must be text, not {prompt!r}")
        if not prompt.strip():
            raise TiltingError(f"{which} is blank: say what to draw")
        if len(prompt) > LONGEST:
            raise TiltingError(f"{which} has {len(prompt)} characters, more than {LONGEST}")
        if prompt.lower().endswith(KINDS) and os.path.isfile(prompt):
            raise TiltingError(f"{prompt!r} is a file: give it as --prompts {prompt}")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise TiltingError(f"{which} is not valid Unicode text") from None
        if "\0" in prompt:
            raise TiltingError(f"{which} holds a null character")
    return list(prompts)


def prompts_of(value: Any) -> Prompts:
    """Parse prompts from Python or YAML.

    Args:
        value: a string; a mapping with the key "prompt", whose other keys are metadata; or a sequence of these.

    Raises:
        TiltingError: what `check_prompts` refuses, or another type.
    """
    if isinstance(value, Prompts):
        return value
    parts = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(parts, Sequence) and hasattr(parts, "tolist"):  # of numpy and pandas
        parts = parts.tolist()
    if not isinstance(parts, list | tuple):
        raise TiltingError(f"prompts must be a text or a list of texts, not {value!r}")
    for i, one in enumerate(parts):
        if isinstance(one, Mapping) and not isinstance(one.get("prompt"), str):
            raise TiltingError(f"prompt {i + 1} of {len(parts)} has no text under the key prompt")
    texts = check_prompts([one["prompt"] if isinstance(one, Mapping) else one for one in parts])
    told = [_metadata(one, "prompt") if isinstance(one, Mapping) else {} for one in parts]
    return Prompts(tuple(texts), tuple(told) if any(told) else ())


def read_prompts(path: str | Path) -> Prompts:
    """The prompts of a file, in order. Raises TiltingError: missing, of an unknown kind, empty, or with a blank prompt (blank
    lines and rows are left out)."""
    file, shown = Path(path), repr(str(path))
    if file.suffix.lower() not in KINDS:
        raise TiltingError(f"prompts are read from {', '.join(KINDS)} files, which {shown} is not")
    if not file.is_file():
        raise TiltingError(f"there is no file {shown} of prompts")
    if file.suffix.lower() == ".txt":
        text = read_text(file).replace("\r\n", "\n").replace("\r", "\n")
        lines = text.rstrip().split("\n")  # not splitlines: a prompt may hold U+2028 and its like
        texts, told = [line.strip() for line in lines if line.strip()], []
        blank = [i for i, line in enumerate(lines) if not line.strip() and lines != [""]]
    else:
        texts, told, blank = _table(file)
    if blank:  # as published lists have them, HPSv2's for one
        what = "row" if file.suffix.lower() in (".csv", ".tsv") else "line"
        several = f"{len(blank)} blank {what}{'' if len(blank) == 1 else 's'} of {shown}"
        is_no = "is no prompt" if len(blank) == 1 else f"the first is {what} {blank[0] + 1}, are no prompts"
        warnings.warn(f"{several}, {is_no}", stacklevel=3)
    if not texts:
        raise TiltingError(f"{shown} holds no prompts")
    for i, prompt in enumerate(texts):
        if not prompt.strip():
            raise TiltingError(f"prompt {i + 1} in {shown} is blank")
    return Prompts(tuple(texts), tuple(told) if any(told) else ())


def _table(file: Path) -> tuple[list[str], list[dict[str, Any]], list[int]]:
    """Prompts, their metadata, and the numbers of blank rows."""
    columns, rows = read_rows(file, NAMES)
    column, lines = named(columns, NAMES), file.suffix.lower() == ".jsonl"
    if column is None and columns and not lines:
        raise TiltingError(f"{str(file)!r} has no column prompt; there is: {', '.join(columns)}")
    texts, told = [], []
    for i, row in enumerate(rows):
        if row is BLANK:
            continue
        where = f"{'line' if lines else 'row'} {i + 1} of {str(file)!r}"
        if isinstance(row, str):
            raise TiltingError(f"{where} {row}")
        text = row.get(column or "prompt", None if lines else "")
        if not isinstance(text, str | NoneType) or (text is None and lines):
            raise TiltingError(f"{where} has no text under the key {column or 'prompt'}")
        texts.append(text or "")
        told.append(_metadata(row, column or ""))
    return texts, told, [i for i, row in enumerate(rows) if row is BLANK]


def metadata_of(value: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Mappings of plain JSON values. Raises TiltingError."""
    for i, one in enumerate(value):
        if not isinstance(one, Mapping):
            raise TiltingError(f"metadata must be a mapping for each prompt, and number {i + 1} is {one!r}")
    return tuple(_metadata(one, "") for one in value)


def _metadata(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    """The other cells of a row as plain JSON values."""
    return {str(key): _plain(value) for key, value in row.items() if key not in (column, "") and value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
