"""A frozen network sharded over processes (FSDP2, `torch.distributed.fsdp.fully_shard`), for networks larger than a device.

What is trained is small and stays whole on every process, so that its gradients, optimiser and files are those of one process;
the network's own weights are gathered a block at a time when it is called. Processes then call it in step, or wait for ever:
what fails on one must fail on all before the next call (`in_step`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tilting.objectives.batch import TrainBatch
from tilting.types import RewardError, TiltingError

Shard = Callable[[nn.Module, Iterable[nn.Parameter]], None]
"""(network, what is trained of it and stays whole): changes the network in place."""
Reduce = Callable[[Tensor], Tensor]


class Elsewhere(Exception):
    """Another process could not make this step."""


def asked_for(count: int) -> Shard | None:
    """What a launcher's settings make of a network; None where they ask for no shards.

    Raises:
        TiltingError: they ask for FSDP 1, or for DeepSpeed, whose optimiser would be another than the run's.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise TiltingError(
            "the launcher asks for DeepSpeed: networks are sharded by FSDP 2 here, see configs/accelerate/fsdp.yaml"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or count == 1:
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise TiltingError("the launcher asks for FSDP 1: set fsdp_version to 2, as in configs/accelerate/fsdp.yaml")
    return lambda network, trained: shard(network, trained, bool(plugin.reshard_after_forward), plugin.cpu_offload)


def shard(network: nn.Module, trained: Iterable[nn.Parameter], again: bool = True, offload: Any = None) -> None:
    """Shard a network over all processes, block by block, each moved to the process's device when its turn comes.

    Args:
        network: of diffusers, whose ``_no_split_modules`` are the blocks.
        trained: parameters of it that stay whole.
        again: whether weights are let go after a call, and gathered again on the way back.
        offload: where shards wait between calls, as torch has it; the device where it is None or False.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import OffloadPolicy, fully_shard

    kind = torch.accelerator.current_accelerator()
    on_device = kind is not None and torch.distributed.get_backend() != "gloo"
    mesh = init_device_mesh(kind.type if kind and on_device else "cpu", (torch.distributed.get_world_size(),))
    how: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": again,
        "ignored_params": {*trained, *(p for p in network.parameters() if not p.is_floating_point())},  # and packed ones
        "offload_policy": offload if isinstance(offload, OffloadPolicy) else OffloadPolicy(),
    }
    blocks = set(getattr(network, "_no_split_modules", None) or ())
    for module in reversed(list(network.modules())):  # what is within first
        if type(module).__name__ in blocks:
            fully_shard(module, **how)
    fully_shard(network, **how)


def in_step(batch: TrainBatch, reduce: Reduce) -> TrainBatch:
    """A batch whose rewards fail on all processes where they fail on one."""
    worded = batch.worded
    held: dict[str, Any] = {
        name: agreed(f, reduce) for name in ("value", "parts", "critic", "prefers") if (f := getattr(batch, name))
    }
    if worded is not None:
        held["worded"] = lambda change: agreed(worded(change), reduce)
    return replace(batch, **held)


def agreed(function: Callable[..., Tensor], reduce: Reduce) -> Callable[..., Tensor]:
    """A reward of latents that fails on all processes where it fails on one."""

    def asked(*given: Tensor) -> Tensor:
        scores, failed = None, None
        try:
            scores = function(*given)
        except (RewardError, FloatingPointError) as error:
            failed = error
        same(failed, reduce)
        assert scores is not None
        return scores

    return asked


def same(failed: Exception | None, reduce: Reduce) -> None:
    """Go on together, or not: raises what has failed here, or Elsewhere what has failed on another process."""
    others = reduce(torch.tensor(float(failed is not None), device="cpu")).item() > 0
    if failed is not None:
        raise Agreed(str(failed)) from failed
    if others:
        raise Elsewhere("another process skipped it")


class Agreed(RewardError):
    """What has failed here, and all know of."""
