"""Multi-process training and trackers, by accelerate.

The precision of a run is that of its network, which the model is loaded in (`tilting.models.placement`): nothing is cast on the
way, and training draws what `tilting generate` draws. A launcher's mixed precision is autocast around the network besides.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from tilting.models.placement import dtype_of
from tilting.runs.owner import processes
from tilting.runs.processes import LIMIT, on_cpu, process_device
from tilting.training.sharding import Shard, asked_for
from tilting.types import TiltingError

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Engine:
    """One process of a run; the defaults are a single process on the CPU.

    Attributes:
        index, count: which process, of how many.
        device: of network and latents.
        reduce: mean over processes; None where there is one.
        gather: values (b,) -> those of all processes, in order; None where there is one.
        context: entered around network calls (a launcher's autocast).
        half: whether that is of fp16.
        broadcast: the main process's plain value, on all.
        track: begin the trackers.
        log: (numbers, step) to the trackers.
        close: at the end.
        shard: what shards a network, by which processes then call it in step; None where each has the whole.
    """

    index: int = 0
    count: int = 1
    device: torch.device | str = "cpu"
    reduce: Reduce | None = None
    gather: Reduce | None = None
    context: Callable[[], AbstractContextManager] = nullcontext
    half: bool = False
    broadcast: Callable[[Any], Any] = lambda value: value
    track: Callable[[], None] = lambda: None
    log: Callable[[Mapping[str, float], int], None] = lambda numbers, step: None
    close: Callable[[], None] = lambda: None
    shard: Shard | None = None

    @property
    def main(self) -> bool:
        return self.index == 0

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Numbers averaged over processes; all of them must have the same names."""
        if self.reduce is None:
            return dict(numbers)
        kind = torch.float32 if torch.device(self.device).type == "mps" else torch.float64
        values = torch.tensor([float(numbers[k]) for k in sorted(numbers)], dtype=kind, device="cpu")
        return dict(zip(sorted(numbers), self.reduce(values).tolist(), strict=True))

    def total(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """Counts summed over processes."""
        return {key: round(value * self.count) for key, value in self.mean(numbers).items()}


def over(engine: Any, device: str = "auto") -> Engine:
    """The engine of an `accelerate.Accelerator`.

    Args:
        engine: the accelerator.
        device: as of `tilting generate`; "auto" is what accelerate found.

    Raises:
        TiltingError: a device that is not here, or one device for several processes.
    """
    many, place = engine.num_processes > 1, process_device(device, engine.device, engine.num_processes)
    mixed = engine.mixed_precision
    if mixed not in ("no", "fp16", "bf16"):
        raise TiltingError(f"the launcher's mixed precision is {mixed}: a LoRA is trained under fp16, bf16 or no")

    def there(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda value: function(value.detach().to(place)).to(value.device)

    def autocast() -> AbstractContextManager:
        return torch.autocast(place.type, dtype_of(mixed))

    def broadcast(value: Any) -> Any:
        if not many:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    return Engine(
        engine.process_index,
        engine.num_processes,
        place,
        there(lambda value: engine.reduce(value, "mean")) if many else None,
        there(engine.gather) if many else None,
        nullcontext if mixed == "no" else autocast,
        mixed == "fp16",
        broadcast,
        shard=asked_for(engine.num_processes),
    )


def place_before(device: str) -> str:
    """Where a model is loaded before its process has a device, as of ``--device``: of several processes in main memory, from
    where each brings it to its own, or its shards; else all of them would fill the first GPU."""
    return "cpu" if processes() > 1 else device


def accelerator(device: str = "auto", limit: timedelta = LIMIT, **options: Any) -> Any:
    """An `accelerate.Accelerator`; over the CPU where there is nothing else, which it would not see itself of processes that a
    launcher has started.

    Raises:
        TiltingError: if a launcher says that there are several processes and they do not find each other, or a mixed precision
            that this machine has not.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    try:
        found = Accelerator(cpu=on_cpu(device), kwargs_handlers=[InitProcessGroupKwargs(timeout=limit)], **options)
    except ValueError as error:
        raise TiltingError(f"accelerate cannot begin: {str(error).splitlines()[0].rstrip('.')}") from error
    if found.num_processes != processes():
        raise TiltingError(f"the launcher says {processes()} processes and accelerate finds {found.num_processes}")
    return found


def launch(device: str, trackers: Sequence[str], folder: str, config: Mapping[str, Any], since: int) -> Engine:
    """An engine with trackers, not begun yet: tensorboard in DIR/tensorboard where it is installed, and those asked for.

    Args:
        device: as of `tilting generate`.
        trackers: names of more than tensorboard.
        folder: of the run.
        config: shown by trackers that show one.
        since: training steps made before; what was tracked after them is forgotten.
    """
    wanted: list[Any] = list(trackers)
    if importlib.util.find_spec("tensorboard") is not None:
        from accelerate.tracking import TensorBoardTracker

        wanted.append(TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=since + 1))
    engine = accelerator(device, log_with=wanted or None, project_dir=folder)
    found = over(engine, device)

    def track() -> None:
        if trackers:
            engine.init_trackers("tilting", config={key: str(value) for key, value in config.items()})
        elif wanted:
            engine.init_trackers("tilting")

    def log(numbers: Mapping[str, float], step: int) -> None:
        engine.log(dict(numbers), step=step)

    return replace(found, track=track, log=log, close=engine.end_training)
