"""Rewards: scores of images and their prompts, higher is better. One file per family, loaded when first asked for.

``REWARDS`` is a plain dict: name -> (factory, one line about it, units, differentiable). Importing this package, or
`tilting.rewards.spec`, does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilting.rewards.aesthetic import Aesthetic as Aesthetic
    from tilting.rewards.aesthetic import aesthetic as aesthetic
    from tilting.rewards.build import build as build
    from tilting.rewards.check import checked as checked
    from tilting.rewards.classify import Classify as Classify
    from tilting.rewards.classify import classify as classify
    from tilting.rewards.clip import Clip as Clip
    from tilting.rewards.clip import clip as clip
    from tilting.rewards.color import Color as Color
    from tilting.rewards.color import color as color
    from tilting.rewards.combine import Combined as Combined
    from tilting.rewards.combine import Scales as Scales
    from tilting.rewards.combine import combine as combine
    from tilting.rewards.detect import Detect as Detect
    from tilting.rewards.detect import detect as detect
    from tilting.rewards.diversity import Diversity as Diversity
    from tilting.rewards.diversity import diversity as diversity
    from tilting.rewards.gram import Gram as Gram
    from tilting.rewards.gram import gram as gram
    from tilting.rewards.hpsv2 import hpsv2 as hpsv2
    from tilting.rewards.http import Http as Http
    from tilting.rewards.http import http as http
    from tilting.rewards.imagereward import ImageReward as ImageReward
    from tilting.rewards.imagereward import imagereward as imagereward
    from tilting.rewards.jpeg import Jpeg as Jpeg
    from tilting.rewards.jpeg import jpeg as jpeg
    from tilting.rewards.jpeg_diff import JpegDiff as JpegDiff
    from tilting.rewards.jpeg_diff import jpeg_diff as jpeg_diff
    from tilting.rewards.likelihood import Likelihood as Likelihood
    from tilting.rewards.likelihood import likelihood as likelihood
    from tilting.rewards.pickscore import pickscore as pickscore
    from tilting.rewards.rotation import Rotation as Rotation
    from tilting.rewards.rotation import rotation as rotation
    from tilting.rewards.style import Style as Style
    from tilting.rewards.style import style as style
    from tilting.rewards.symmetry import Symmetry as Symmetry
    from tilting.rewards.symmetry import symmetry as symmetry
    from tilting.rewards.user import UserReward as UserReward
    from tilting.rewards.user import user as user

    REWARDS: dict[str, tuple[Any, str, str, bool]]

_HOMES = {
    "Clip": "clip", "Style": "style", "Jpeg": "jpeg", "JpegDiff": "jpeg_diff", "Combined": "combine",
    "UserReward": "user", "combine": "combine", "build": "build", "checked": "check", "clip": "clip",
    "style": "style", "jpeg": "jpeg", "jpeg_diff": "jpeg_diff", "user": "user",
    "Rotation": "rotation", "rotation": "rotation", "Symmetry": "symmetry", "symmetry": "symmetry", "Color": "color",
    "color": "color", "Gram": "gram", "gram": "gram", "Likelihood": "likelihood", "likelihood": "likelihood",
    "Diversity": "diversity", "diversity": "diversity", "Http": "http", "http": "http", "Scales": "combine",
    "Aesthetic": "aesthetic", "aesthetic": "aesthetic", "pickscore": "pickscore", "hpsv2": "hpsv2",
    "ImageReward": "imagereward", "imagereward": "imagereward", "Detect": "detect", "detect": "detect",
    "Classify": "classify", "classify": "classify",
}  # fmt: skip
__all__ = ["REWARDS", "Aesthetic", "Classify", "Clip", "Color", "Combined", "Detect", "Diversity", "Gram", "Http",
           "ImageReward", "Jpeg", "JpegDiff", "Likelihood", "Rotation", "Scales", "Style", "Symmetry", "UserReward",
           "aesthetic", "build", "checked", "classify", "clip", "color", "combine", "detect", "diversity", "gram",
           "hpsv2", "http", "imagereward", "jpeg", "jpeg_diff", "likelihood", "pickscore", "rotation", "style",
           "symmetry", "user"]  # fmt: skip


def _registry() -> dict[str, tuple[Any, str, str, bool]]:
    from tilting.rewards.spec import CATALOG

    return {name: (entry.load(), entry.about, entry.units, entry.differentiable) for name, entry in CATALOG.items()}


def __getattr__(name: str) -> Any:
    if name == "REWARDS":
        value: Any = _registry()
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        value = _in_catalog(name)
    globals()[name] = value
    return value


def _in_catalog(name: str) -> Any:
    """The factory of a reward of that name, "_" for "-": what is added to the catalog needs no further line here."""
    catalog = getattr(import_module(f"{__name__}.spec"), "CATALOG", {})  # empty while that module imports its neighbours
    entry = catalog.get(name.replace("_", "-"))
    if entry is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return entry.load()


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing the submodule ``clip`` binds it to ``rewards.clip``; here the function of that name keeps its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
