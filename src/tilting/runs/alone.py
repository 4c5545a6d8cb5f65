"""One writer at a time in a folder: a lock that dies with its process. Torch-free."""

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
MOMENT = 0.2
"""Seconds to wait for another process that is just leaving."""
_held: dict[Path, int] = {}
"""The folders that this process holds, and the thread that does."""


def busy(folder: Path) -> bool:
    """Whether another process holds a folder at this moment."""
    try:
        if (folder / LOCK).exists():
            with FileLock(folder / LOCK, timeout=0, thread_local=False):
                pass
    except Timeout:
        return True
    except OSError:  # it is gone, or nobody may write there
        pass
    return False


@contextmanager
def alone(out: str | None, beside: bool = False) -> Iterator[None]:
    """Hold the folder that ``--out`` names while a command reads and writes it.

    The folder is made for the lock, and is gone again if nothing was put into it. A thread that holds it may ask again. Of the
    processes of one launcher the main one holds it for all.

    Args:
        out: the folder.
        beside: the lock lies beside the folder, which will be made in one piece.

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
    lock = FileLock(file, timeout=MOMENT, thread_local=False)
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
                sweep(whole, deep=kind_of(whole) is not None)  # one that is nobody's may hold anything
            yield
        finally:
            del _held[whole]
            with suppress(OSError):
                file.unlink()  # before it is let go: who has opened it meanwhile sees that it has no name
            lock.release()
    finally:
        for path in made:  # if nothing is in them
            with suppress(OSError):
                path.rmdir()
