"""Prompts from a file: .txt (a line each), .jsonl (key prompt), .csv and .parquet (column prompt)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from tilting.errors import TiltingError
from tilting.foreign import parse_json, read_text

KINDS = (".txt", ".jsonl", ".csv", ".parquet")
LONGEST = 10_000
"""Characters of a prompt: text encoders read 77 or 512 tokens of it."""


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Refuse none, and any that is blank, names a file of prompts, or is not text that can be written."""
    if not prompts:
        raise TiltingError("no prompt is given: say what to draw, or give --prompts FILE")
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise TiltingError(f"prompt {i + 1} of {len(prompts)} is blank: say what to draw")
        if len(prompt) > LONGEST:
            raise TiltingError(f"prompt {i + 1} of {len(prompts)} has {len(prompt)} characters, more than {LONGEST}")
        if prompt.lower().endswith(KINDS) and os.path.isfile(prompt):
            raise TiltingError(f"{prompt!r} is a file: give it as --prompts {prompt}")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise TiltingError(f"prompt {i + 1} of {len(prompts)} is not valid Unicode text") from None
        if "\0" in prompt:
            raise TiltingError(f"prompt {i + 1} of {len(prompts)} holds a null character")
    return list(prompts)


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, in order. Raises TiltingError: missing, of an unknown kind, empty, or with a blank prompt."""
    file = Path(path)
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise TiltingError(f"prompts are read from {', '.join(KINDS)} files, which {str(path)!r} is not")
    if not file.is_file():
        raise TiltingError(f"there is no file {str(path)!r} of prompts")
    if kind == ".parquet":
        prompts = _parquet(file)
    else:
        prompts = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}[kind](read_text(file), file)
    if not prompts:
        raise TiltingError(f"{str(path)!r} holds no prompts")
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise TiltingError(f"prompt {i + 1} in {str(path)!r} is blank")
    return prompts


def _txt(text: str, file: Path) -> list[str]:
    lines = text.rstrip().split("\n")  # not splitlines: a prompt may hold U+2028 and its like
    return [line.strip() for line in lines] if lines != [""] else []


def _jsonl(text: str, file: Path) -> list[str]:
    out = []
    for i, line in enumerate(text.rstrip().split("\n")):  # not splitlines: JSON may hold U+2028
        row = parse_json(line, f"line {i + 1} of {str(file)!r}")
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise TiltingError(f"line {i + 1} of {str(file)!r} has no text under the key prompt")
        out.append(row["prompt"])
    return out


def _csv(text: str, file: Path) -> list[str]:
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if rows.fieldnames is not None and "prompt" not in rows.fieldnames:
            raise TiltingError(f"{str(file)!r} has no column prompt")
        return [row["prompt"] or "" for row in rows]
    except csv.Error as error:
        raise TiltingError(f"{str(file)!r} is not CSV: {error}") from None


def _parquet(file: Path) -> list[str]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise TiltingError(f"reading {str(file)!r} needs pyarrow: pip install pyarrow, or give .txt, .jsonl or .csv") from None
    try:
        table = parquet.read_table(file)
    except Exception as error:
        raise TiltingError(f"{str(file)!r} is not a parquet file: {str(error).splitlines()[0]}") from None
    if "prompt" not in table.column_names:
        raise TiltingError(f"{str(file)!r} has no column prompt")
    return [str(value or "") for value in table.column("prompt").to_pylist()]
