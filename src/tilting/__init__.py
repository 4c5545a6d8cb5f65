"""tilting: steer diffusion models with rewards. p*(x|c) ∝ p_pre(x|c) · exp(r(x,c)/β).

import tilting as tl
pipe = tl.load("pocket")
out = tl.generate(pipe, ["a fox"], reward=tl.rewards.clip(), method=tl.presets.codex(particles=4))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tilting.lazy import hush
from tilting.version import __version__ as __version__

if TYPE_CHECKING:
    from tilting import objectives, presets, rewards
    from tilting.conditioning.api import condition_fit, condition_sample
    from tilting.conditioning.trainer import condition_train
    from tilting.errors import RewardError, TiltingError
    from tilting.evaluation.api import compare, evaluate
    from tilting.generation.api import Result, generate
    from tilting.generation.generate import draw
    from tilting.generation.plan import identities, plan
    from tilting.models import load
    from tilting.models.control_file import load_control
    from tilting.training.trainer import finetune

_HOMES = {
    "conditioning.api": ("condition_fit", "condition_sample"),
    "conditioning.trainer": ("condition_train",),
    "errors": ("RewardError", "TiltingError"),
    "evaluation.api": ("compare", "evaluate"),
    "generation.api": ("Result", "generate"),
    "generation.generate": ("draw",),
    "generation.plan": ("identities", "plan"),
    "models": ("load",),
    "models.control_file": ("load_control",),
    "training.trainer": ("finetune",),
}
_ROOMS = (
    *("objectives", "presets", "rewards"),  # whose parts people name: tl.presets.codex()
    *("conditioning", "engines", "features", "guidance", "method", "metrics", "models", "oracle", "rng", "sample", "schedule"),
    *("select", "state", "training", "types", "weights"),
)
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "Result",
    "RewardError",
    "TiltingError",
    "compare",
    "condition_fit",
    "condition_sample",
    "condition_train",
    "draw",
    "evaluate",
    "finetune",
    "generate",
    "identities",
    "load",
    "load_control",
    "objectives",
    "plan",
    "presets",
    "rewards",
]


def __getattr__(name: str):
    # Lazy (PEP 562): `import tilting` and `tilting --help` must not pay for torch and diffusers.
    hush()  # before a room imports what would speak
    if name in _HOME:
        return getattr(import_module(f"tilting.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"tilting.{name}")
    raise AttributeError(f"module 'tilting' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, *(name for name in globals() if name.startswith("__"))})
