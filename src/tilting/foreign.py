"""Readers of untrusted files: text, JSON, YAML and tensors, within limits of size, depth and types. Torch-free to import.

    read_text(path)              a regular UTF-8 file: no pipe, no folder, no loop of links, not too large
    parse_json(text, what)       plain values, whose numbers fit 64 bits and whose strings are valid Unicode
    parse_yaml(text, what)       the same for YAML, without dates, and with a limit on what aliases expand to
    read_json(path)              read_text, then parse_json
    read_tensors(path, what)     safetensors, finite

No other module parses outside data. The caller checks what the values mean, against a declaration (`declare.made`).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tilting.errors import TiltingError
from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1 << 28
"""Maximum bytes of a text file."""
LARGEST_YAML = 1 << 18
"""Maximum bytes of YAML, which is parsed at 100 kB a second."""
DEEPEST = 50
"""Maximum nesting of lists and mappings."""
MOST_YAML = 100_000
"""Maximum number of values in YAML after expanding aliases."""
PLAIN = (bool, float, type(None))
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Malformed(TiltingError):
    """Text that is not valid JSON or YAML."""


def read_bytes(path: str | Path, what: str = "", most: int = LARGEST) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        what: its name in error messages; default its path.
        most: maximum size in bytes.

    Raises:
        TiltingError: missing, too large, or not a regular file (reading a pipe or a device may block for ever).
    """
    what = what or repr(str(path))
    try:
        with os.fdopen(os.open(path, FLAGS), "rb") as file:
            _check_plain(os.fstat(file.fileno()), what, most)
            return file.read(most)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, TiltingError):
            raise
        raise TiltingError(f"cannot read {what}: {getattr(error, 'strerror', None) or error}") from None


def _check_plain(held: os.stat_result, what: str, most: int | None = None) -> None:
    if not stat.S_ISREG(held.st_mode):
        raise TiltingError(f"cannot read {what}: it is {'a folder' if stat.S_ISDIR(held.st_mode) else 'no plain file'}")
    if most is not None and held.st_size > most:
        size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise TiltingError(f"cannot read {what}: it is larger than {size}")


def read_text(path: str | Path, what: str = "", most: int = LARGEST) -> str:
    """The text of a regular file, without a byte order mark. Raises TiltingError: as `read_bytes`, or not UTF-8."""
    try:
        return read_bytes(path, what, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TiltingError(f"{what or repr(str(path))} is not UTF-8 text") from None


def read_json(path: str | Path, what: str = "") -> Any:
    """The value of a JSON file. Raises TiltingError: as `read_text` and `parse_json`."""
    return parse_json(read_text(path, what), what or repr(str(path)))


def parse_json(text: str | bytes, what: str, constant: Callable[[str], Any] = float, wide: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        what: its name in error messages.
        constant: converts NaN, Infinity and -Infinity.
        wide: allow integers of more than 64 bits.

    Raises:
        Malformed: it is not JSON.
        TiltingError: it is nested too deeply, or has too large a number or a string that is not valid Unicode.
    """
    try:
        value = json.loads(text, parse_constant=constant)
    except RecursionError:
        raise TiltingError(f"{what} nests deeper than {DEEPEST}") from None
    except ValueError as error:
        raise Malformed(f"{what} is not JSON{_reason(error)}") from None
    return check_plain(value, what, wide=wide)


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f" (line {error.lineno}): {error.msg}"
    return ": it is not UTF-8 text" if isinstance(error, UnicodeError) else f": {error}"


def check_plain(value: Any, what: str, most: int | None = None, wide: bool = False) -> Any:
    """Return the value if it consists of mappings, lists, strings, numbers, booleans and nulls only, within the limits.

    Args:
        value: from a parser.
        what: its name in error messages.
        most: maximum number of values, shared ones counted each time; default unlimited.
        wide: allow integers of more than 64 bits.

    Raises:
        TiltingError: for any other value.
    """
    level, left, depth = [value], most, 0
    while level:
        below: list[Any] = []
        for one in level:
            inner: tuple[Any, ...] | list[Any] = ()
            if isinstance(one, dict):
                inner = (*one, *one.values())
            elif isinstance(one, list):
                inner = one
            elif isinstance(one, str):
                _check_text(one, what)
            elif isinstance(one, int) and not isinstance(one, bool):
                if not wide and not -(1 << 63) <= one < 1 << 63:
                    raise TiltingError(f"{what} holds a whole number of more than 64 bits")
            elif not isinstance(one, PLAIN):
                raise TiltingError(f"{what} holds a {type(one).__name__}, which is neither text, number, list nor mapping")
            if left is not None and (left := left - len(inner)) < 0:
                raise TiltingError(f"{what} holds more than {most} values")
            below += inner
        if depth == DEEPEST and any(isinstance(one, dict | list) for one in level):
            raise TiltingError(f"{what} nests deeper than {DEEPEST}")
        level, depth = below, depth + 1
    return value


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise TiltingError(f"{what} holds a text with a null character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TiltingError(f"{what} holds a text that is not valid Unicode") from None


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and leaves dates as strings."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        seen = set()
        for key in keys:
            if key in seen:
                raise TiltingError(f"the key {key!r} stands twice in the YAML")
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML, from a file or after ``--set KEY=``.
        what: its name in error messages.

    Raises:
        Malformed: it is not YAML.
        TiltingError: a duplicate key; it is too large (after expanding aliases too) or nested too deeply, or has too large a
            number or a string that is not valid Unicode.
    """
    if len(text) > LARGEST_YAML:
        raise TiltingError(f"{what} is larger than {LARGEST_YAML >> 10} KiB")
    try:
        value = yaml.load(text, Loader)  # nosec B506: it is a SafeLoader
    except TiltingError as error:
        raise TiltingError(f"{what}: {error}") from None
    except RecursionError:
        raise TiltingError(f"{what} nests deeper than {DEEPEST}") from None
    except Exception as error:  # its constructors raise nearly anything: !!int x is a ValueError, !!bool x a KeyError
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise Malformed(f"{what} is not YAML{place}: {problem}") from None
    return check_plain(value, what, MOST_YAML)


def check_file(path: str | Path, what: str = "") -> Path:
    """The path, if it is a regular file, for libraries that open it themselves. Raises TiltingError as `read_bytes`."""
    what = what or repr(str(path))
    try:
        _check_plain(os.stat(path), what)
    except (OSError, ValueError) as error:
        if isinstance(error, TiltingError):
            raise
        raise TiltingError(f"cannot read {what}: {getattr(error, 'strerror', None) or error}") from None
    return Path(path)


def read_tensors(path: str | Path, what: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Args:
        path: the file.
        what: its name in error messages; default its path.

    Raises:
        TiltingError: not a regular file, not safetensors, or a tensor has NaN or infinity.
    """
    what = what or repr(str(path))
    tensors = _opened(path, what, lambda file: {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    check_finite(tensors.items(), what)
    return tensors


def read_metadata(path: str | Path, what: str = "") -> dict[str, str]:
    """The metadata of a safetensors file. Raises TiltingError: not a regular file, or not safetensors."""
    return _opened(path, what or repr(str(path)), lambda file: file.metadata() or {})


def _opened(path: str | Path, what: str, take: Callable[[Any], Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(check_file(path, what), "pt") as file:
            return take(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, MemoryError) as error:
        if isinstance(error, TiltingError):
            raise
        raise TiltingError(f"{what} does not load, it is cut off or no safetensors file: {str(error)[:100]}") from None


def check_finite(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Refuse weights with NaN or infinity, which would silently generate noise.

    Args:
        tensors: (name, tensor) pairs.
        what: the name of their file in error messages.

    Raises:
        TiltingError: naming the first tensor.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            ends = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
            if not torch.stack(torch.aminmax(ends)).isfinite().all():
                raise TiltingError(f"{what} holds NaN or infinity in its tensor {name[:100]!r}")
