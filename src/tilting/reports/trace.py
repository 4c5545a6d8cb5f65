"""Traces as plain data: for each recorded step, each particle's parent, reward, and moves.

Of a run it lies in trace/: for each image a JSON, and one WEBP of all its pictures. `tilting.reports.trace_page` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from tilting import foreign
from tilting.declare import Each, made
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.runs.files import TRACE, TRACE_SHEET, TRACE_TOLD, line

Node = tuple[int, int]
"""A particle at a look: (look, particle)."""


@dataclass(frozen=True)
class Look:
    """What was seen at once.

    Attributes:
        step: of the run, from 1; of the last look, which is at x_0 itself, the last.
        count: n, particles.
        origins: of each particle, which one of which look before it comes from; None at the first look.
        values: rewards of the estimates, or None.
        parents: of each particle that goes on, which of those seen it is (-1: as it was before), or None where all go on.
        ess: effective number of particles that the selection drew from, or None.
        moved: of each, root mean square of what a gradient moved it by before the look, in latents; None where none did.
        guided: the same after it, of those that go on.
        first: number of its first picture in the sheet; None where it has none.
    """

    step: Annotated[int, Ge(0)]
    count: Annotated[int, Ge(1)]
    origins: tuple[tuple[int, int], ...] | None = None
    values: tuple[float, ...] | None = None
    parents: Annotated[tuple[int, ...] | None, Each(Ge(-1))] = None
    ess: float | None = None
    moved: tuple[float, ...] | None = None
    guided: tuple[float, ...] | None = None
    first: Annotated[int | None, Ge(0)] = None


@dataclass(frozen=True)
class Trace:
    """How an image came about.

    Attributes:
        prompt, index, seed: whose.
        method: its name.
        steps: of the run.
        looks: in order; the last is at x_0 where the image is finished.
        kept: which particle became the picture; None where the image is not finished.
        side: width and height of a picture in the sheet, in pixels.
        columns: pictures side by side in it.
        every: looks from one picture to the next.
        sheet: the pictures, a WEBP.
    """

    prompt: str
    index: int
    seed: int
    method: str
    steps: Annotated[int, Ge(1)]
    looks: tuple[Look, ...]
    kept: Annotated[int | None, Ge(0)]
    side: Annotated[tuple[int, int], Each(Ge(1))]
    columns: Annotated[int, Ge(1)]
    every: Annotated[int, Ge(1)] = 1
    sheet: bytes = b""

    def parents(self) -> list[list[Any]]:
        """Every selection: its step, and the parent of each particle after it."""
        return [[look.step, list(look.parents)] for look in self.looks if look.parents is not None]

    def ancestry(self) -> set[Node]:
        """The particles that the picture comes from, itself among them."""
        return set() if self.kept is None else set(self._back((len(self.looks) - 1, self.kept)))

    def _back(self, node: Node) -> list[Node]:
        """A particle and those before it."""
        line = [node]
        while (origins := self.looks[line[-1][0]].origins) is not None:
            before, j = origins[line[-1][1]]
            line.append((before, j))
        return line

    def shown(self) -> list[int]:
        """The looks that have pictures."""
        return [at for at, look in enumerate(self.looks) if look.first is not None]

    def edges(self, looks: Sequence[int]) -> list[tuple[Node, Node]]:
        """(from, to) of particles at these looks, over the looks between."""
        shown, found = set(looks), []
        for at in sorted(shown):
            for j in range(self.looks[at].count):
                origin = next((node for node in self._back((at, j))[1:] if node[0] in shown), None)
                found += [] if origin is None else [(origin, (at, j))]
        return found

    def rewards(self) -> dict[Node, float]:
        """Every reward that is known."""
        return {(at, j): value for at, look in enumerate(self.looks) for j, value in enumerate(look.values or ())}

    def descents(self) -> list[tuple[Node, Node]]:
        """(from, to) of particles whose rewards are known, over those between."""
        known, found = self.rewards(), []
        for node in known:
            before = next((one for one in self._back(node)[1:] if one in known), None)
            found += [] if before is None else [(before, node)]
        return found


def write_trace(folder: Path, number: int, trace: Trace) -> None:
    """The files of an image's trace: the pictures, then what tells of them."""
    (folder / TRACE).mkdir(exist_ok=True)
    write_atomically(folder / TRACE_SHEET.format(number), trace.sheet)
    told = {key: value for key, value in asdict(trace).items() if key != "sheet"}
    write_atomically(folder / TRACE_TOLD.format(number), line(told).encode())


def read_trace(folder: Path, number: int) -> Trace:
    """An image's trace. Raises TiltingError, naming the file, for one that is no trace."""
    path = folder / TRACE_TOLD.format(number)
    told = foreign.read_json(path, f"{str(path)!r}")
    looks = told.get("looks") if isinstance(told, dict) else None
    what = f"{str(path)!r} is no trace"
    if not isinstance(looks, list) or not looks:
        raise TiltingError(f"{what}: it has no looks")
    sheet = foreign.read_bytes(folder / TRACE_SHEET.format(number))
    read = tuple(made(Look, look, what) for look in looks)
    trace = made(Trace, {**told, "looks": list(read), "sheet": sheet}, what)
    if not _fits(trace):
        raise TiltingError(f"{what}: its looks do not fit together")
    return trace


def _fits(trace: Trace) -> bool:
    """Whether every particle comes from one of a look before, and every list is of as many as there are particles."""
    for at, look in enumerate(trace.looks):
        lists = (look.origins, look.values, look.moved)
        if (look.origins is None) != (at == 0) or any(one is not None and len(one) != look.count for one in lists):
            return False
        for before, j in look.origins or ():
            if not (0 <= before < at and 0 <= j < trace.looks[before].count):
                return False
    return trace.kept is None or trace.kept < trace.looks[-1].count
