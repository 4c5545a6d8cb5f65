"""Processes of one launcher that make a folder together: who each is, and what they tell one another.

They exchange bytes over gloo, beside GPUs too: what is waited for are files, refusals and small tensors, and a signal ends
the wait. JSON and safetensors are all that travels. Where a process ends, the waits of the others end in a refusal.
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
"""How long a process waits for the others: what one does alone (its pictures, a slow judge, writing) lies between two
exchanges, and a launcher ends all of them when one is lost."""


@dataclass(frozen=True)
class Processes:
    """One process of several; the defaults are a single one, which has nobody to wait for.

    Attributes:
        index, count: which process, of how many.
        group: of torch.distributed, over gloo.
    """

    index: int = 0
    count: int = 1
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether it is the first, which writes for all."""
        return self.index == 0

    def exchange(self, data: bytes) -> list[bytes]:
        """The data of all processes, in their order. Raises TiltingError when another one has ended."""
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

    def tell(self, value: Some) -> list[Some]:
        """What all processes have for a value of plain JSON, in their order."""
        return [json.loads(data) for data in self.exchange(json.dumps(value).encode())] if self.count > 1 else [value]

    def agree(self, act: Callable[[], Some]) -> Some:
        """What an act gives, when it has gone well on all processes. Raises TiltingError on all: the first refusal."""
        if self.count == 1:
            return act()
        found, said = None, None
        try:
            found = act()
        except TiltingError as error:
            said = str(error)
        told = self.tell(said)
        first = next((index for index, one in enumerate(told) if one is not None), None)
        if first is not None:
            raise (TiltingError if first == self.index else ToldElsewhere)(told[first])
        return found  # type: ignore[return-value]

    def rows(self, function: Callable[..., tuple[Tensor, ...]], *columns: Tensor) -> tuple[Tensor, ...]:
        """A function of parallel columns, whose rows the processes share: what it gives of all, on all, without gradient.

        Args:
            function: columns of at least one row -> columns.
            columns: alike on all processes.
        """
        count, index = len(columns[0]), self.index
        mine = slice(count * index // self.count, count * (index + 1) // self.count)
        return self.tensors(
            function(*(column[mine] for column in columns)) if mine.stop > mine.start else (), columns[0].device
        )

    def tensors(self, mine: Sequence[Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Columns whose rows are those of all processes, one after another; one that has no rows gives nothing. What was on the
        CPU stays there, on those too; the rest comes to the device."""
        from safetensors.torch import load, save

        if self.count == 1:
            return tuple(mine)
        host = {f"{i:04d} {one.device.type == 'cpu'}": one.detach().cpu().contiguous() for i, one in enumerate(mine)}
        parts = [load(data) for data in self.exchange(save(host) if host else b"") if data]
        return tuple(
            torch.cat([part[name] for part in parts]).to("cpu" if name.endswith("True") else device)
            for name in sorted(parts[0])
        )

    def shared(self, items: Iterable[Any], work: Callable[[Any], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Named tensors of every item, each made by one process, in the items' order and on all.

        Raises:
            TiltingError: on all, what the first said whose work failed.
        """
        from safetensors.torch import load, save

        items = list(items)
        mine = self.agree(lambda: [work(item) for item in items[self.index :: self.count]])
        if self.count == 1:
            return mine
        told = [{f"{i:08d} {name}": t.detach().cpu().contiguous() for name, t in one.items()} for i, one in enumerate(mine)]
        found: list[dict[str, Tensor]] = [{} for _ in items]
        for index, data in enumerate(self.exchange(save({k: t for one in told for k, t in one.items()}))):
            for key, tensor in load(data).items():
                place, _, name = key.partition(" ")
                found[index + int(place) * self.count][name] = tensor
        return found


def place_of(device: str, own: torch.device, count: int) -> torch.device:
    """Where a process computes. Raises TiltingError: a device that is not here, or one device for several processes.

    Args:
        device: as of ``--device``; "auto" is what the launcher gave.
        own: what the launcher gave.
        count: of processes.
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
    """Whether processes compute on the CPU, which accelerate does not see by itself of those that a launcher has started."""
    backends = (torch.cuda, torch.xpu, torch.backends.mps)
    return not any(backend.is_available() for backend in backends) or (device == "cpu" and processes() > 1)


def meet(device: str = "auto") -> Processes:
    """This process of those that a launcher started, when all are there; alone without one, at no cost.

    Args:
        device: as of ``--device``; "auto" and the kind of device are then the launcher's own for this process.

    Raises:
        TiltingError: they do not find each other, or one device is named for several.
    """
    if processes() == 1:
        return Processes()
    from accelerate import PartialState

    try:
        found = PartialState(cpu=on_cpu(device), timeout=LIMIT)
    except (ValueError, RuntimeError) as error:
        PartialState._reset_state()  # half of one would be found by the next who asks
        raise TiltingError(f"accelerate cannot begin: {str(error).splitlines()[0].rstrip('.')}") from error
    if found.num_processes != processes():
        raise TiltingError(f"the launcher says {processes()} processes and accelerate finds {found.num_processes}")
    place_of(device, cast(Any, found.device), found.num_processes)
    return Processes(found.process_index, found.num_processes, _gloo())


def _gloo() -> Any:
    """The processes' group over gloo: theirs, or one beside it."""
    global _group
    if torch.distributed.get_backend() == "gloo":
        return None
    if _group is None:
        _group = torch.distributed.new_group(backend="gloo", timeout=LIMIT)
    return _group


_group: Any = None


def part() -> None:
    """Leave the others, when the process is about to end."""
    with suppress(Exception):
        if processes() > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
