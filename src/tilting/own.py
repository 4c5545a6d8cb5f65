"""Load a function from a user's Python file, ``file.py:function``. Torch-free."""

from __future__ import annotations

import ast
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
    """An attribute of a user's object, or None. Raises TiltingError if the lookup itself raises anything else."""
    try:
        return getattr(thing, name, None)
    except BaseException as error:
        raise TiltingError(f"{what} raised {outlived(error)}, asked for {name!r}") from error


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path, so that the user's file can import its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))


def functions_in(file: str, classes: bool = False) -> str:
    """The end of a sentence about a file without a function's name: the functions that it defines, and classes where one is
    taken too. It is not run."""
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    taken = (ast.FunctionDef, ast.ClassDef) if classes else ast.FunctionDef
    names = [one.name for one in body if isinstance(one, taken) and not one.name.startswith("_")]
    return f"; there is: {', '.join(f'{file}:{name}' for name in names)}" if names else "; it defines none"


Ran = dict[Path, ModuleType]
"""Modules of the files that have been executed, by path."""


def _run(path: Path, file: str) -> ModuleType:
    """Execute a file as a module."""
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
    """Execute the file of ``file.py:function`` and return the function.

    Args:
        spec: the file and the function.
        what: what the function is for, in error messages, such as "reward".
        ran: files already executed for the same request, which are not executed again; updated in place.

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
