"""The folder of a recipe: whose it is, what is kept in it from one run to the next, and the table that it ends with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tilting import __version__
from tilting.errors import TiltingError
from tilting.runs.files import write_atomically
from tilting.runs.owner import RECIPE, folder_of

Say = Callable[[str], None]
"""Takes a line of progress."""
Report = dict[str, Any]
"""What table.json holds."""


class Named(Protocol):
    """What is asked of a table or a study to make it: its name as a recipe, its title, and of which paper it is."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def paper(self) -> str: ...


def check_out(recipe: str, out: Path, small: bool, seed: int | None = None) -> None:
    """Refuse the folder of another recipe, size or seed (None: it has its own) before anything is drawn.

    Raises:
        TiltingError: that, or a folder that cannot be written or holds something else.
    """
    file = folder_of(str(out), RECIPE) / "table.json"
    made = json.loads(file.read_bytes()) if file.exists() else {}
    for key, now in (("recipe", recipe), ("small", small), ("seed", seed)):
        if made and made.get(key) != now:
            was = f"({made.get(key)} there, {now} now)"
            raise TiltingError(f"{str(out)!r} holds a recipe with another {key} {was}: choose another --out")


def command(recipe: str, out: Path, small: bool, seed: int) -> list[str]:
    """The words that make a recipe, which its run folders keep."""
    return ["tilting", "recipe", recipe, "--out", str(out), *(["--small"] if small else []), "--seed", str(seed)]


def opening(made: Named, small: bool, seed: int) -> Report:
    """What every report opens with, and `check_out` reads."""
    about = {"recipe": made.name, "version": __version__, "title": made.title, "paper": made.paper}
    return {**about, "small": small, "seed": seed}


def write_table(out: Path, page: str, report: Mapping[str, Any]) -> None:
    """table.md and table.json."""
    write_atomically(out / "table.md", (page + "\n").encode())
    write_atomically(out / "table.json", (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def kept(file: Path, made: Any, make: Callable[[], Any]) -> Any:
    """What a file holds if it was made from the same plain data; else it is made and written."""
    if file.is_file():
        before = json.loads(file.read_bytes())
        if before["made"] == made:
            return before["held"]
    held = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps({"made": made, "held": held}, indent=1) + "\n").encode())
    return held
