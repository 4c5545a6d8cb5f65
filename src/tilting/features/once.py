"""Networks and answers that parts of one sum of rewards share: each is loaded once, and asked once for each batch of pictures.

Such are the labels of one classifier, the styles of one head, or a CLIP and the aesthetic head on its embeddings. What is
shared lives as long as the outermost ``with once():`` of its thread, and without one nothing is. Torch-free.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tilting.lazy import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Ask = TypeVar("Ask", bound="Callable[[Any, Any], Any]")
_KEPT: ContextVar[dict[Any, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def once() -> Iterator[None]:
    """Inside, `loaded` gives the same object for the same arguments, and what is decorated by `asked_once` the same tensor."""
    token = _KEPT.set({}) if _KEPT.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _KEPT.reset(token)


def loaded(load: Callable[[Any], Any], source: Any) -> Any:
    """``load(source)``: a class or function, and the folder or name that it reads."""
    kept, key = _KEPT.get(), (load, str(source))
    if kept is None:
        return load(source)
    if key not in kept:
        kept[key] = load(source)
    return kept[key]


def asked_once(ask: Ask) -> Ask:
    """A method of a frozen network, from images (b, 3, h, w) to what it says of them; or a function of two such things."""

    @wraps(ask)
    def asked(network: Any, images: Any) -> Any:
        kept = _KEPT.get()
        if kept is None:
            return ask(network, images)
        key = (ask, id(network), id(images), torch.is_grad_enabled(), torch.is_autocast_enabled())
        if key not in kept:
            kept[key] = (ask(network, images), network, images)  # held, or another could have its id
        return kept[key][0]

    return cast("Ask", asked)
