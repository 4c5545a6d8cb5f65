"""Rewards: scores of images and their prompts, higher is better. One file per family, loaded when first asked for.

``REWARDS`` is a plain dict: name -> (factory, one line about it, units, differentiable). Importing this package, or
`tilting.rewards.spec`, does not import torch.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilting.rewards.build import build as build
    from tilting.rewards.check import checked as checked
    from tilting.rewards.clip import Clip as Clip
    from tilting.rewards.clip import clip as clip
    from tilting.rewards.combine import Combined as Combined
    from tilting.rewards.combine import combine as combine
    from tilting.rewards.jpeg import Jpeg as Jpeg
    from tilting.rewards.jpeg import jpeg as jpeg
    from tilting.rewards.jpeg_diff import JpegDiff as JpegDiff
    from tilting.rewards.jpeg_diff import jpeg_diff as jpeg_diff
    from tilting.rewards.style import Style as Style
    from tilting.rewards.style import style as style
    from tilting.rewards.user import UserReward as UserReward
    from tilting.rewards.user import user as user

    REWARDS: dict[str, tuple[Any, str, str, bool]]

_HOMES = {
    "Clip": "clip", "Style": "style", "Jpeg": "jpeg", "JpegDiff": "jpeg_diff", "Combined": "combine",
    "UserReward": "user", "combine": "combine", "build": "build", "checked": "check", "clip": "clip",
    "style": "style", "jpeg": "jpeg", "jpeg_diff": "jpeg_diff", "user": "user",
}  # fmt: skip
__all__ = ["REWARDS", "Clip", "Combined", "Jpeg", "JpegDiff", "Style", "UserReward", "build", "checked", "clip", "combine",
           "jpeg", "jpeg_diff", "style", "user"]  # fmt: skip


def _registry() -> dict[str, tuple[Any, str, str, bool]]:
    from tilting.rewards.spec import CATALOG

    found = {}
    for name, entry in CATALOG.items():
        factory = getattr(import_module(entry.module), entry.factory)
        options = dict(entry.options)
        found[name] = (partial(factory, **options) if options else factory, entry.about, entry.units, entry.differentiable)
    return found


def __getattr__(name: str) -> Any:
    if name == "REWARDS":
        value: Any = _registry()
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing the submodule ``clip`` binds it to ``rewards.clip``; here the function of that name keeps its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
