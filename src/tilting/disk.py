"""Safe paths and atomic writes. Torch-free.

    inner_path(folder, name)        a name from data (a label, a class, an entry of a manifest) as a path in a folder
    write_atomically(path, data)    write a whole file or nothing
    write_tensors(path, tensors)    the same for safetensors
    append(path, data)              append all of the data or nothing

No other module turns names from data into paths, or writes files that a run depends on.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 100
"""Maximum bytes of a name from data."""
RESERVED = frozenset(
    """manifest.json metrics.json metrics.jsonl timing.jsonl sweep.json table.json control.json classifier.json
    classifier.safetensors embedding.safetensors reliability.png confusion.png predicted.png grid.png checkpoints
    classifiers""".split()  # noqa: SIM905
)
"""Names that a run folder uses itself, in any case: no label may have one."""
LEFT = re.compile(r"\..{1,40}\.[0-9a-f]{16}\.tilting")
"""Names of temporary files."""


def folder_given(out: object) -> Path:
    """The folder that a function of Python is given to write into. Raises TiltingError for what names none."""
    if not isinstance(out, str | os.PathLike) or not os.fspath(out):
        raise TiltingError(f"say in which folder to write, such as 'runs/fox', not {out!r}")
    return Path(out)


def checked_name(name: object, what: str = "name") -> str:
    """Return a name from data if it is safe as the name of a folder.

    Args:
        name: the name.
        what: what it names, in error messages.

    Raises:
        TiltingError: it is not safe.
    """
    reason = _unfit(name) or (
        "is a name that runs use themselves"
        if str(name).casefold() in RESERVED
        else "holds ="
        if "=" in str(name)
        else "begins with a dot"
        if str(name).startswith(".")
        else None
    )
    if reason:
        raise TiltingError(f"the {what} {_shown(name)} {reason}: give it another")
    return str(name)


def inner_path(folder: Path, name: object, what: str = "name", nested: bool = False) -> Path:
    """A name from data as a path in a folder.

    Args:
        folder: the folder.
        name: the name.
        what: what it names, in error messages.
        nested: allow a relative path of a file to read, such as images/00000.png.

    Raises:
        TiltingError: the name is not safe, or leads out of the folder.
    """
    if nested:
        parts = name.split("/") if isinstance(name, str) else [name]
        reason = next(filter(None, map(_unfit, parts)), None)
        if reason:
            raise TiltingError(f"the {what} {_shown(name)} {reason if len(parts) == 1 else 'is no path in its folder'}")
        path = folder.joinpath(*map(str, parts))
    else:
        path = folder / checked_name(name, what)
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise TiltingError(f"the {what} {_shown(name)} leads out of {str(folder)!r}")
    return path


def _unfit(name: object) -> str | None:
    """Why a name is not safe as one component of a path, or None."""
    if not isinstance(name, str):
        return "is no text"
    if not name.strip():
        return "is empty"
    if name in (".", ".."):
        return "is no name"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        return "is an absolute path"
    if "/" in name or "\\" in name:
        return "holds a separator of paths"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        return "holds characters that cannot be shown"
    if len(name.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return None


def _shown(name: object) -> str:
    text = ascii(name) if isinstance(name, str) and not name.isprintable() else repr(name)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unique_beside(path: Path) -> Path:
    """A unique temporary path beside ``path``, to be renamed to it; `sweep_beside` recognises leftovers by its name."""
    return path.with_name(f".{path.name[:40]}.{_mark(path)}{secrets.token_hex(4)}.tilting")


def _mark(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, with permissions by the umask. Raises TiltingError."""
    temporary = unique_beside(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)  # exclusive: a link is not followed
    try:
        file = os.fdopen(os.open(temporary, flags, 0o666), "wb")
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise TiltingError(f"cannot write {str(path)!r}: {error.strerror}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write CPU tensors as safetensors, the whole file or nothing; those that share memory are written each by itself. Raises
    TiltingError."""
    from safetensors.torch import save

    held: dict[str, Any] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        held[name] = tensor.contiguous().clone() if place in memory else tensor.contiguous()
        memory.add(place)
    write_atomically(path, save(held, metadata))


def append(path: Path, data: bytes, sync: bool = True) -> None:
    """Append all of the data to a file or nothing; a symbolic link is not followed.

    Args:
        path: the file, which is created if missing.
        data: to append.
        sync: return only when the data is on the disk.

    Raises:
        TiltingError: the disk is full, or the file cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.open(path, flags, 0o666)
        try:
            before, left = os.fstat(file).st_size, memoryview(data)
            try:
                while left:
                    left = left[os.write(file, left) :]
                if sync:
                    os.fsync(file)
            except BaseException:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)
    except OSError as error:
        raise TiltingError(f"cannot write {str(path)!r}: {error.strerror}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises TiltingError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TiltingError(f"cannot make the folder {str(path)!r}: {error.strerror}") from error


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files by name from a folder, and the folder if it is empty then; never recursively."""
    if folder.is_symlink():
        return
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


def sweep(folder: Path, deep: bool) -> None:
    """Remove temporary files (`unique_beside`) that a killed process left in a folder; ``deep``: in subfolders too."""
    _sweep(folder.rglob(".*.tilting") if deep else folder.glob(".*.tilting"))


def sweep_beside(path: Path) -> None:
    """Remove temporary files that a killed process would have renamed to ``path``."""
    begin, mark = f".{path.name[:40]}.", _mark(path)
    _sweep(
        left for left in path.parent.glob(".*.tilting") if left.name.startswith(begin) and left.name[len(begin) :][:8] == mark
    )


def _sweep(found: Iterable[Path]) -> None:
    for left in [path for path in found if LEFT.fullmatch(path.name)]:
        if left.is_dir() and not left.is_symlink():
            with suppress(OSError):  # another process of this command has just removed its own
                remove(left, [file.name for file in left.iterdir()])
        else:
            with suppress(OSError):
                left.unlink()
