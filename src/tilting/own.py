"""What people's own Python files hold: ``file.py:function``. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from tilting.errors import TiltingError, nearest, outlived


def asked_of(thing: object, name: str, what: str) -> Any:
    """An attribute of a user's thing, None where it has none. Raises TiltingError: looking for it raises something else."""
    try:
        return getattr(thing, name, None)
    except BaseException as error:
        raise TiltingError(f"{what} raised {outlived(error)}, asked for {name!r}") from error


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """The folder first on the import path, so that the user's file finds its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))


Ran = dict[Path, ModuleType]
"""Files that have run, and what they left."""


def _run(path: Path, file: str) -> ModuleType:
    """The module that a file leaves."""
    module_name = f"tilting_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    how = importlib.util.spec_from_file_location(module_name, path)
    if how is None or how.loader is None:
        raise TiltingError(f"{file!r} is not a Python file")
    module = importlib.util.module_from_spec(how)
    sys.modules[module_name] = module
    try:
        with _beside(path.parent):
            how.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(module_name, None)
        raise TiltingError(f"{file!r} does not run: {outlived(error)}") from error
    return module


def function_of(spec: str, what: str, ran: Ran | None = None) -> Callable[..., Any]:
    """What ``file.py:function`` names; the file runs now, as Python, and nothing else of it is looked at.

    Args:
        spec: the file and the function.
        what: it is to be, for people, such as "reward".
        ran: files that have run for the same request, and need not run again for another of their functions; added to.

    Raises:
        TiltingError: no such file or function, or the file does not run.
    """
    file, _, function = spec.rpartition(":")
    path = Path(os.path.realpath(file))  # which a circle of links does not stop
    if not path.is_file():
        raise TiltingError(f"there is no file {file!r} for the {what} {spec!r}")
    ran = {} if ran is None else ran
    module = ran[path] = ran[path] if path in ran else _run(path, file)
    call = asked_of(module, function, repr(file))
    if call is None:
        own = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise TiltingError(f"{file!r} has no function {function!r}{nearest(function, own) if own else ''}")
    if not callable(call):
        raise TiltingError(f"{function!r} in {file!r} is not a function")
    return call
