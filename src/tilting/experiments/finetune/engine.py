"""Processes and trackers, by accelerate: which process this is, means over all of them, and where numbers are shown."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilting.experiments.finetune.batches import Slice
from tilting.experiments.finetune.config import processes
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
        context: entered around network calls (autocast).
        broadcast: the main process's plain value, on all.
        log: (numbers, step) to the trackers.
        close: at the end.
    """

    index: int = 0
    count: int = 1
    device: torch.device | str = "cpu"
    reduce: Reduce | None = None
    gather: Reduce | None = None
    context: Callable[[], AbstractContextManager] = nullcontext
    broadcast: Callable[[Any], Any] = lambda value: value
    log: Callable[[Mapping[str, float], int], None] = lambda numbers, step: None
    close: Callable[[], None] = lambda: None

    @property
    def main(self) -> bool:
        return self.index == 0

    @property
    def part(self) -> Slice:
        return Slice(self.index, self.count, self.gather)

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


def over(engine: Any, precision: str = "fp32", **rest: Any) -> Engine:
    """The engine of an `accelerate.Accelerator`, whose own mixed precision holds where ``precision`` is fp32."""
    device, many = engine.device, engine.num_processes > 1

    def there(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda value: function(value.detach().to(device)).to(value.device)

    def context() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else engine.autocast()

    def broadcast(value: Any) -> Any:
        if not many:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    return Engine(
        engine.process_index, engine.num_processes, device,
        there(lambda value: engine.reduce(value, "mean")) if many else None, there(engine.gather) if many else None,
        context, broadcast, **rest,
    )  # fmt: skip


def accelerator(**options: Any) -> Any:
    """An `accelerate.Accelerator`; over the CPU where there is nothing else, which it would not see itself of processes that a
    launcher has started. Raises TiltingError if a launcher says that there are several and they do not find each other."""
    from accelerate import Accelerator

    backends = (torch.cuda, torch.xpu, torch.backends.mps)
    found = Accelerator(cpu=not any(backend.is_available() for backend in backends), **options)
    if found.num_processes != processes():
        raise TiltingError(f"the launcher says {processes()} processes and accelerate finds {found.num_processes}")
    return found


def launch(precision: str, trackers: Sequence[str], folder: str, config: Mapping[str, Any], since: int) -> Engine:
    """An engine with trackers: tensorboard in DIR/tensorboard where it is installed, and those asked for.

    Args:
        precision: "fp32" or "bf16".
        trackers: names of more than tensorboard.
        folder: of the run.
        config: shown by trackers that show one.
        since: training steps made before; what was tracked after them is forgotten.
    """
    wanted: list[Any] = list(trackers)
    if importlib.util.find_spec("tensorboard") is not None:
        from accelerate.tracking import TensorBoardTracker

        wanted.append(TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=since + 1))
    engine = accelerator(log_with=wanted or None, project_dir=folder)
    if trackers:
        engine.init_trackers("tilting", config={key: str(value) for key, value in config.items()})
    elif wanted:
        engine.init_trackers("tilting")
    return over(engine, precision, log=lambda numbers, step: engine.log(dict(numbers), step=step), close=engine.end_training)
