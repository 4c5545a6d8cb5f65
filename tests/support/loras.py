"""LoRAs of a network off, or at other scales, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from tilting.models.lora import active, switched


def lora_off(network: Any) -> AbstractContextManager[None]:
    """The base model."""
    return switched(network, lambda names: [])


@contextmanager
def scaled(network: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """Other scales of active adapters by name; 0 is the base model."""
    before = {name: active(network)[name] for name in scales}

    def put(scales: Mapping[str, float]) -> None:
        for layer in network.modules():
            for name, scale in scales.items() if isinstance(layer, BaseTunerLayer) else ():
                layer.set_scale(name, scale)

    put(scales)
    try:
        yield
    finally:
        put(before)
