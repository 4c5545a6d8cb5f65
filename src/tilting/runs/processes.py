"""Several processes of one launcher that write one run folder: all-gathers of bytes, JSON and tensors.

They communicate over gloo on GPUs too, because what they exchange is small and a wait must react to signals. Only JSON and
safetensors travel, nothing is pickled. When a process ends, the others stop waiting with a TiltingError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tilting.errors import TiltingError, ToldElsewhere
from tilting.lazy import torch
from tilting.models.placement import check_device, device_of
from tilting.runs.owner import processes

if TYPE_CHECKING:
    from torch import Tensor

Some = TypeVar("Some")
LIMIT = timedelta(days=1)
"""How long a process waits for the others: long work of one (its images, a slow judge) lies between two all-gathers, and a
launcher ends all processes when one is lost."""


@dataclass(frozen=True)
class Processes:
    """This process among those of its launcher; the defaults are a single process.

    Attributes:
        index, count: rank and world size.
        group: a gloo group of torch.distributed.
    """

    index: int = 0
    count: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes for all."""
        return self.index == 0

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of all processes, by rank. Raises TiltingError when another process has ended."""
        if self.count == 1:
            return [data]
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        sizes = [int(size) for size in self._gathered(torch.tensor([len(mine)]))]
        padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        found = self._gathered(padded)
        return [part[:size].numpy().tobytes() for part, size in zip(found, sizes, strict=True)]

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        found, pause = [torch.empty_like(mine) for _ in range(self.count)], 1e-4
        try:
            work: Any = torch.distributed.all_gather(found, mine, group=self.group, async_op=True)
            while not work.is_completed():  # not wait(), in which a signal would not be heard
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            work.wait()
        except RuntimeError:
            raise TiltingError(f"another of the {self.count} processes has ended: the same command goes on") from None
        return found

    def all_gather(self, value: Some) -> list[Some]:
        """The values of all processes, by rank; each is plain JSON."""
        return [json.loads(data) for data in self.all_gather_bytes(json.dumps(value).encode())] if self.count > 1 else [value]

    def agree(self, act: Callable[[], Some]) -> Some:
        """Call ``act`` on every process and return its result. If it raises TiltingError on one, the first error is raised on
        all, so that no process waits for one that has failed."""
        if self.count == 1:
            return act()
        found, said = None, None
        try:
            found = act()
        except TiltingError as error:
            said = str(error)
        told = self.all_gather(said)
        first = next((index for index, one in enumerate(told) if one is not None), None)
        if first is not None:
            raise (TiltingError if first == self.index else ToldElsewhere)(told[first])
        return found  # type: ignore[return-value]

    def map_rows(self, function: Callable[..., tuple[Tensor, ...]], *columns: Tensor) -> tuple[Tensor, ...]:
        """Apply a function to parallel columns, each process to its share of the rows; all get all results, without gradient.

        Args:
            function: columns of at least one row -> columns.
            columns: the same on all processes.
        """
        count, index = len(columns[0]), self.index
        mine = slice(count * index // self.count, count * (index + 1) // self.count)
        return self.all_gather_rows(
            function(*(column[mine] for column in columns)) if mine.stop > mine.start else (), columns[0].device
        )

    def all_gather_rows(self, mine: Sequence[Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Concatenate the rows of all processes, column by column; a process without rows passes no columns. Columns that were
        on the CPU stay there, the others are moved to ``device``."""
        from safetensors.torch import load, save

        if self.count == 1:
            return tuple(mine)
        host = {f"{i:04d} {one.device.type == 'cpu'}": one.detach().cpu().contiguous() for i, one in enumerate(mine)}
        parts = [load(data) for data in self.all_gather_bytes(save(host) if host else b"") if data]
        return tuple(
            torch.cat([part[name] for part in parts]).to("cpu" if name.endswith("True") else device)
            for name in sorted(parts[0])
        )

    def map_items(self, items: Iterable[Any], work: Callable[[Any], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Apply ``work`` to every item, each on one process; all get the named tensors of all items, in order.

        Raises:
            TiltingError: on all processes, the first error of one.
        """
        from safetensors.torch import load, save

        items = list(items)
        mine = self.agree(lambda: [work(item) for item in items[self.index :: self.count]])
        if self.count == 1:
            return mine
        told = [{f"{i:08d} {name}": t.detach().cpu().contiguous() for name, t in one.items()} for i, one in enumerate(mine)]
        found: list[dict[str, Tensor]] = [{} for _ in items]
        for index, data in enumerate(self.all_gather_bytes(save({k: t for one in told for k, t in one.items()}))):
            for key, tensor in load(data).items():
                place, _, name = key.partition(" ")
                found[index + int(place) * self.count][name] = tensor
        return found


def process_device(device: str, own: torch.device, count: int) -> torch.device:
    """The device of a process. Raises TiltingError for a device that is missing, or one device for several processes.

    Args:
        device: as of ``--device``; "auto" is ``own``.
        own: the device that the launcher assigned.
        count: number of processes.
    """
    if check_device(device) == "auto":
        return own
    wanted = device_of(device)
    if count == 1:
        return wanted
    if wanted.type != own.type or wanted.index is not None:
        raise TiltingError(f"the launcher gives {count} processes their devices: leave --device {device} out")
    return own


def on_cpu(device: str) -> bool:
    """Whether processes compute on the CPU; accelerate has to be told so for launched processes."""
    backends = (torch.cuda, torch.xpu, torch.backends.mps)
    return not any(backend.is_available() for backend in backends) or (device == "cpu" and processes() > 1)


def join_processes(device: str = "auto") -> Processes:
    """Wait for all processes of the launcher and return this one; without a launcher, a single process at no cost.

    Args:
        device: as of ``--device``; with several processes it may name a kind of device, and the launcher assigns which.

    Raises:
        TiltingError: the processes do not find each other, or one device is named for several.
    """
    if processes() == 1:
        return Processes()
    from accelerate import PartialState

    try:
        found = PartialState(cpu=on_cpu(device), timeout=LIMIT)
    except (ValueError, RuntimeError) as error:
        PartialState._reset_state()  # it is a singleton, and half initialised
        raise TiltingError(f"accelerate cannot begin: {str(error).splitlines()[0].rstrip('.')}") from error
    if found.num_processes != processes():
        raise TiltingError(f"the launcher says {processes()} processes and accelerate finds {found.num_processes}")
    process_device(device, cast(Any, found.device), found.num_processes)
    return Processes(found.process_index, found.num_processes, _gloo())


def _gloo() -> Any:
    """A gloo group: None (the default group) if that is gloo, else a second group beside it."""
    global _group
    if torch.distributed.get_backend() == "gloo":
        return None
    if _group is None:
        _group = torch.distributed.new_group(backend="gloo", timeout=LIMIT)
    return _group


_group: Any = None


def leave_processes() -> None:
    """Destroy the process group at the end of the process."""
    with suppress(Exception):
        if processes() > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
