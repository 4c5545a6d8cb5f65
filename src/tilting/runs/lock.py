"""A lock that gives one process a folder to write in, and dies with that process. Torch-free."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tilting.disk import sweep, sweep_beside
from tilting.errors import TiltingError
from tilting.runs.files import check_writable
from tilting.runs.owner import kind_of

LOCK = ".tilting.lock"
TIMEOUT = 0.2
"""Seconds to wait for another process that is just ending."""
_held: dict[Path, int] = {}
"""Thread id by folder that this process has locked."""


def locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    try:
        if (folder / LOCK).exists():
            with FileLock(folder / LOCK, timeout=0, thread_local=False):
                pass
    except Timeout:
        return True
    except OSError:  # the file is gone, or the folder is read-only
        pass
    return False


@contextmanager
def exclusive(out: str | None, beside: bool = False) -> Iterator[None]:
    """Lock the folder that ``--out`` names while a command reads and writes it.

    The folder is created for the lock, and removed again if it stays empty. The lock is reentrant within a thread; of the
    processes of one launcher, rank 0 holds it for all.

    Args:
        out: the folder.
        beside: put the lock file beside the folder, which will appear in one rename.

    Raises:
        TiltingError: another process writes there, or the folder cannot be made.
    """
    if not out or os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = check_writable(out)
    whole = folder.resolve()
    if _held.get(whole) == threading.get_ident():
        yield
        return
    place = whole.parent if beside else whole
    file = place / (f".{whole.name[:40]}{LOCK}" if beside else LOCK)
    made = [path for path in (place, *place.parents) if not path.exists()]
    lock = FileLock(file, timeout=TIMEOUT, thread_local=False)
    try:
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise TiltingError(f"another process is writing into --out {out!r}: wait for it, or choose another") from None
        except OSError as error:
            raise TiltingError(f"cannot write into --out {out!r}: {error.strerror or error}") from error
        _held[whole] = threading.get_ident()
        try:
            for path in {whole, *(other.parent / whole.name for other in made)}:
                sweep_beside(path)
            if not beside:
                sweep(whole, deep=kind_of(whole) is not None)  # a folder that is not ours may hold anything
            yield
        finally:
            del _held[whole]
            with suppress(OSError):
                file.unlink()  # before the release: whoever has opened it meanwhile sees that it was unlinked
            lock.release()
    finally:
        for path in made:  # rmdir fails unless they are empty
            with suppress(OSError):
                path.rmdir()
