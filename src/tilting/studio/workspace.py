"""The folder that a studio works in: what of it may be read, which runs are in it, and what was given to the page."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tilting.disk import inner_path, make_folder, write_atomically
from tilting.errors import TiltingError
from tilting.models.control_spec import FILE as CONTROL
from tilting.rewards.remote import URL
from tilting.runs.files import MANIFEST, read_json, with_records
from tilting.runs.owner import COMPARISON, kind_of

OWN = ".studio"
"""Where jobs, the worker's words and what was uploaded stand."""
TEXTS = ("prompts", "negative-prompt", "label")
"""Options that are never a file's name."""
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
PAGES = ("compare.html", "report.html", "trace.html")
SHOWN = ("grid.png", "compare.png", "sweep.png", "reliability.png", "confusion.png", "predicted.png")
MOST_FILES, MOST_RUNS, DEEPEST = 20_000, 1000, 6


class Run(NamedTuple):
    """A run's folder.

    Attributes:
        name: its path in the workspace.
        kind: what it holds.
        about: method or objective, and of what.
        result: its numbers, for people.
        when: it was last written, seconds since 1970.
    """

    name: str
    kind: str
    about: str
    result: str
    when: float


@dataclass(frozen=True)
class Workspace:
    """A folder, and others that may be read.

    Attributes:
        root: it; the process, and all that it starts, stand in it.
        also: folders that may be read besides.
        most: bytes that may be given to the page at once.
    """

    root: Path
    also: tuple[Path, ...] = ()
    most: int = 64 << 20

    @property
    def own(self) -> Path:
        return self.root / OWN

    def holds(self, path: Path) -> bool:
        """Whether a path, its links followed, may be read."""
        try:
            found = path.resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return any(found.is_relative_to(one) for one in (self.root, *self.also))

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that name a file outside of the workspace, for the page is not to show it. Raises TiltingError."""
        for key, value in options.items():
            for text in () if key in TEXTS else _texts(value):
                for part in () if URL.match(text) else [text, *re.split(r"[=:#,]", text)]:
                    path = Path(os.path.expanduser(part.strip()))
                    if part.strip() and (path.is_absolute() or ".." in path.parts or _exists(path)) and not self.holds(path):
                        raise TiltingError(
                            f"{part.strip()!r} of {key} lies outside of the workspace: see --workspace and --read"
                        )

    def file(self, name: str) -> Path:
        """A file or folder of the workspace by its path in it. Raises TiltingError where there is none."""
        path = self.root / name
        if not _exists(path) or not path.resolve().is_relative_to(self.root) or OWN in Path(name).parts:
            raise TiltingError(f"there is no {name!r} in the workspace")
        return path

    def fresh(self, stem: str) -> str:
        """A folder's name that is not taken, such as draw-3."""
        number = 1
        while _exists(self.root / f"{stem}-{number}"):
            number += 1
        return f"{stem}-{number}"

    def runs(self) -> list[Run]:
        """The runs in it, the newest first."""
        found = [run_of(self.root, folder) for folder in _folders(self.root)]
        return sorted((run for run in found if run), key=lambda run: -run.when)

    def keep(self, files: Sequence[str]) -> str:
        """Put what was given to the page into uploads/.

        Args:
            files: a picture or a table, with or without pictures beside it; or a zip of these, with or without folders.

        Returns:
            The path in the workspace of the table, or of the folder, or of the one file.

        Raises:
            TiltingError: for too much, too many, or files of other kinds.
        """
        paths = [Path(file) for file in files]
        known = (*TABLES, *PICTURES, ".zip")
        odd = next((path.name for path in paths if path.suffix.lower() not in known), None)
        if odd is not None:
            raise TiltingError(f"{odd!r} is neither a table nor a picture nor a zip of them")
        if sum(path.stat().st_size for path in paths) > self.most or len(paths) > MOST_FILES:
            raise TiltingError(
                f"that is more than {self.most >> 20} MB or {MOST_FILES} files: put it into the workspace yourself"
            )
        found = {
            name: data for path in paths for name, data in (self._unzipped(path) if path.suffix == ".zip" else _read(path))
        }
        mark = hashlib.sha256(b"".join(hashlib.sha256(n.encode() + b"\0" + d).digest() for n, d in sorted(found.items())))
        folder = self.root / "uploads" / mark.hexdigest()[:12]
        for name, data in found.items():
            path = inner_path(folder, name, "file", nested=True)
            make_folder(path.parent)
            write_atomically(path, data)
        table = [name for name in found if name.lower().endswith(TABLES) and "/" not in name]
        one = table[0] if len(table) == 1 else next(iter(found)) if len(found) == 1 else ""
        return (folder / one).relative_to(self.root).as_posix()

    def _unzipped(self, path: Path) -> Iterator[tuple[str, bytes]]:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [one for one in archive.infolist() if one.filename.lower().endswith((*TABLES, *PICTURES))]
                if sum(one.file_size for one in members) > 4 * self.most or len(members) > MOST_FILES:
                    raise TiltingError(f"{path.name!r} unpacks to more than {4 * self.most >> 20} MB or {MOST_FILES} files")
                for one in members:
                    yield one.filename, archive.read(one)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise TiltingError(f"{path.name!r} is no zip that can be read: {error}") from None


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    yield path.name, path.read_bytes()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _folders(root: Path) -> Iterator[Path]:
    """Folders that hold something of ours; what lies inside of one is its own, but for the runs of a comparison."""
    found = 0
    for place, names, _ in os.walk(root):
        folder = Path(place)
        kind = kind_of(folder) if folder != root else None
        if kind is not None:
            found += 1
            yield folder
        deep = len(folder.relative_to(root).parts) >= DEEPEST or found >= MOST_RUNS or (kind is not None and kind != COMPARISON)
        names[:] = [] if deep else sorted(name for name in names if not name.startswith(".") and name != "uploads")


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a folder says of itself: its manifest, of a comparison or an evaluation its metrics."""
    for name in (MANIFEST, COMPARISON.file):
        if (folder / name).is_file():
            found = with_records(folder, read_json(folder / name))
            return found if isinstance(found, dict) else {}
    return {}


def run_of(root: Path, folder: Path) -> Run | None:
    """What is in a folder; None where it cannot be read."""
    kind = kind_of(folder)
    try:
        manifest, when = manifest_of(folder), folder.stat().st_mtime
    except (TiltingError, OSError):
        return None
    config, summary = manifest.get("config") or {}, manifest.get("summary") or {}
    what = "a control" if (folder / CONTROL).is_file() else kind.what if kind else "?"
    about = config.get("objective") or config.get("method") or ", ".join(config.get("methods") or config.get("label") or ())
    prompts = config.get("prompts") or config.get("runs") or []
    of = ", ".join(map(str, prompts[:2])) + (f" and {len(prompts) - 2} more" if len(prompts) > 2 else "")
    numbers = {key: summary.get(f"{key}_mean") for key in ("reward", "judge")} if isinstance(summary, dict) else {}
    told = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items() if isinstance(value, int | float))
    return Run(folder.relative_to(root).as_posix(), what, ": ".join(str(one) for one in (about, of) if one), told, when)
