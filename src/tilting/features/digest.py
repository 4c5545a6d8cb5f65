"""Digests that identify weights: of a file, or of all weights in a folder, computed once per process. Torch-free."""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

DIGITS = 16
"""Hexadecimal digits of a digest."""


def digest(place: Path) -> str | None:
    """The first 16 hex digits of the sha256 of a file, or of a folder's safetensors files in order of their paths; None if
    there is neither."""
    files = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        return None
    stamps = [file.stat() for file in files]
    return _digest(tuple((str(file.resolve()), s.st_mtime_ns, s.st_size) for file, s in zip(files, stamps, strict=True)))


@lru_cache(maxsize=256)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of (path, modification time, size) tuples, the key of the cache; files are read in blocks to bound memory."""
    sha = hashlib.sha256()
    for path, _, _ in files:
        with Path(path).open("rb") as file:
            while part := file.read(1 << 24):
                sha.update(part)
    return sha.hexdigest()[:DIGITS]


def digest_of_code(file: Path) -> str | None:
    """Digest of a Python file's syntax tree, independent of comments and layout; None if it does not parse."""
    try:
        said = ast.unparse(ast.parse(file.read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


def weights_in(source: str | Path) -> tuple[Path, ...]:
    """A file, or a folder with its weights in other formats than safetensors, which `digest` of a folder leaves out."""
    path = Path(source)
    return (path, *sorted(p for p in path.rglob("*") if p.suffix in (".pt", ".pth", ".bin")))
