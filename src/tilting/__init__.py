"""tilting: steer diffusion models with rewards. p*(x|c) ∝ p_pre(x|c) · exp(r(x,c)/β).

import tilting as tl
pipe = tl.load("pocket")
out = tl.generate(pipe, ["a fox"], reward=tl.rewards.clip(), method=tl.presets.codex(particles=4))
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilting import presets, rewards
    from tilting.experiments.condition.controlling import condition_train
    from tilting.experiments.condition.functions import condition_fit, condition_sample
    from tilting.experiments.finetune.tuning import finetune
    from tilting.experiments.generate import Result, draw, generate, identities, plan
    from tilting.models import load
    from tilting.models.control_file import load_control
    from tilting.types import RewardError, TiltingError
else:
    from tilting import finetune

__version__ = "0.1.0"
__all__ = [
    "Result", "RewardError", "TiltingError", "condition_fit", "condition_sample", "condition_train", "draw", "finetune",
    "generate", "identities", "load", "load_control", "plan", "presets", "rewards",
]  # fmt: skip

_HOME = {
    "Result": "tilting.experiments.generate", "draw": "tilting.experiments.generate",
    "generate": "tilting.experiments.generate", "plan": "tilting.experiments.generate",
    "identities": "tilting.experiments.generate",
    "condition_fit": "tilting.experiments.condition.functions", "condition_train": "tilting.experiments.condition.controlling",
    "condition_sample": "tilting.experiments.condition.functions", "load_control": "tilting.models.control_file",
    "load": "tilting.models", "RewardError": "tilting.errors", "TiltingError": "tilting.errors",
}  # fmt: skip


_ROOMS = (
    "presets", "rewards", "schedule", "sample", "select", "models", "metrics", "guidance", "rng", "weights", "method", "state",
    "types", "engines", "features", "conditioning",
)  # fmt: skip


class _Finetune(ModuleType):
    """The room `tilting.finetune`, which is called too: ``tl.finetune(pipe, prompts, reward)`` trains a LoRA.

    A function of this name would hide the room from ``import tilting.finetune.loop as loop``, which looks the name up here.
    """

    @property
    def __signature__(self):
        return inspect.signature(import_module("tilting.experiments.finetune.tuning").finetune)

    def __call__(self, *arguments, **options):
        return import_module("tilting.experiments.finetune.tuning").finetune(*arguments, **options)


sys.modules["tilting.finetune"].__class__ = _Finetune


def __getattr__(name: str):
    # Lazy (PEP 562): `import tilting` and `tilting --help` must not pay for torch and diffusers.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"tilting.{name}")
    raise AttributeError(f"module 'tilting' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, *(name for name in globals() if name.startswith("__"))})
