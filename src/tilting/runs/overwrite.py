"""``--overwrite``: replace a folder that a tilting command has written. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tilting.errors import TiltingError
from tilting.runs.files import MANIFEST, check_writable
from tilting.runs.lock import LOCK, exclusive
from tilting.runs.owner import RECIPE, kind_of, processes

ASIDE = ".overwritten"


FIRST = (LOCK, MANIFEST, RECIPE.file)
"""Files that a command writes before it has made anything; and pictures of what training begins at, in samples/."""


@contextmanager
def overwriting(out: str, agreed: Callable[[str], bool]) -> Iterator[None]:
    """Move a folder aside while a command writes a new one in its place, and restore it if the command writes nothing, or
    fails before it has made anything.

    Args:
        out: the folder; nothing happens if it is missing or empty.
        agreed: asks the user a question and returns the answer.

    Raises:
        TiltingError: no tilting command wrote the folder, another process writes there, a launcher started several, or the
            user said no.
    """
    if processes() > 1:
        raise TiltingError(
            f"--overwrite is of one process, and {processes()} were launched: remove {out!r} yourself, or choose another --out"
        )
    folder = check_writable(out)
    aside = folder.absolute().with_name(f".{folder.absolute().name[:40]}{ASIDE}")
    if not _holds(folder):
        yield
        return
    kind = kind_of(folder)
    if kind is None or folder.is_symlink():
        raise TiltingError(
            f"--overwrite replaces what tilting has written, and {out!r} holds something else: remove it yourself"
        )
    if not agreed(f"{out!r} holds {kind.what}: replace it?"):
        raise TiltingError(f"{out!r} is left as it is")
    with exclusive(out):  # nobody else is writing there
        shutil.rmtree(aside, ignore_errors=True)  # left by a killed command
    try:
        folder.rename(aside)
    except OSError as error:
        raise TiltingError(f"cannot replace {out!r}: {error.strerror}") from error
    replaced = _made
    try:
        yield
        replaced = _holds
    finally:
        if replaced(folder):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)


def _made(folder: Path) -> bool:
    """Whether a folder holds anything but what a command begins with."""
    files = (one for one in folder.rglob("*") if one.is_file() and one.name not in FIRST)
    return any("samples" not in one.relative_to(folder).parts for one in files)


def _holds(folder: Path) -> bool:
    """Whether a folder holds anything but the lock."""
    return folder.is_dir() and any(one.name != LOCK for one in folder.iterdir())
