"""Least-recently-used caches, bounded in bytes and keyed by content: one tensor is another's equal if its bytes are."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

REMEMBERED = 2**29
"""Bytes that are kept."""


def copied(value: Any) -> Any:
    """Lists and mappings copied: some pipelines write into those that they are given."""
    if isinstance(value, list):
        return [copied(v) for v in value]
    if type(value) is tuple:
        return tuple(copied(v) for v in value)
    return {k: copied(v) for k, v in value.items()} if type(value) is dict else value


class Unkeyable(Exception):
    """A value that has no key by its content."""


def content_key(value: Any) -> Any:
    """What tells a value from others: a key. Raises Unkeyable."""
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return tuple(value.shape), str(value.dtype), str(value.device), hashlib.blake2b(held).digest()
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(content_key, value))
    if isinstance(value, Mapping):
        return tuple((k, content_key(v)) for k, v in sorted(value.items()))
    if value is None or isinstance(value, str | int | float | bool | bytes | torch.dtype | torch.device):
        return type(value).__name__, value
    if hasattr(value, "tobytes"):  # pictures of PIL, arrays
        how = [str(getattr(value, name, None)) for name in ("size", "mode", "shape", "dtype")]
        return type(value).__name__, *how, content_key(getattr(value, "palette", None) and value.getpalette()), _digest(value)
    raise Unkeyable(type(value).__name__)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(value.tobytes()).digest()


def pytree() -> Any:
    """torch's own functions of values within values."""
    from torch.utils import _pytree

    return _pytree


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors(v)]
    return [t for v in value for t in tensors(v)] if isinstance(value, list | tuple) else []


class LRUCache:
    """Values by key, made once; the least recently used are evicted above ``most`` bytes.

    Args:
        most: bytes of their tensors.
    """

    def __init__(self, most: int = REMEMBERED):
        self.most, self.held = most, 0
        self._values: OrderedDict[Any, tuple[Any, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key."""
        if key in self._values:
            value, size, version = self._values[key]
            if version == sum(t._version for t in tensors(value)):
                self._values.move_to_end(key)
                return value
            self.held -= self._values.pop(key)[1]  # a pipeline has written into it
        value = make()
        size = sum(t.nbytes for t in tensors(value)) + 64
        self._values[key], self.held = (value, size, sum(t._version for t in tensors(value))), self.held + size
        while self.held > self.most and len(self._values) > 1:
            self.held -= self._values.popitem(last=False)[1][1]
        return value

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def clear(self) -> None:
        """Forget all: the encoders are not what they were."""
        self._values.clear()
        self.held = 0
