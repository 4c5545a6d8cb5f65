"""``--overwrite``: what a command of ours has written gives way to what it writes now. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tilting.errors import TiltingError
from tilting.runs.alone import LOCK, alone
from tilting.runs.files import check_writable
from tilting.runs.owner import kind_of

ASIDE = ".overwritten"


@contextmanager
def replaced(out: str, agreed: Callable[[str], bool]) -> Iterator[None]:
    """Put a folder aside while a command writes into its place; it comes back where the command leaves nothing there.

    Args:
        out: the folder; where nothing is there, nothing is done.
        agreed: asks whoever may be asked, in a sentence, whether it is to be lost.

    Raises:
        TiltingError: the folder holds what no command of ours wrote, another process writes there, or it is not to be lost.
    """
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
    with alone(out):  # that nobody writes there now
        shutil.rmtree(aside, ignore_errors=True)  # a kill left it
    try:
        folder.rename(aside)
    except OSError as error:
        raise TiltingError(f"cannot replace {out!r}: {error.strerror}") from error
    try:
        yield
    finally:
        if _holds(folder):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with suppress(OSError):
                folder.rmdir()
            aside.rename(folder)


def _holds(folder: Path) -> bool:
    """Whether anything is in a folder."""
    return folder.is_dir() and any(one.name != LOCK for one in folder.iterdir())
