"""tilting: steer diffusion models with rewards. p*(x|c) ∝ p_pre(x|c) · exp(r(x,c)/β).

import tilting as tl
pipe = tl.load("pocket")
out = tl.generate(pipe, ["a fox"], reward=tl.rewards.clip(), method=tl.presets.codex(particles=4))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tilting.version import __version__ as __version__

if TYPE_CHECKING:
    from tilting import objectives, presets, rewards
    from tilting.conditioning.api import condition_fit, condition_sample
    from tilting.conditioning.trainer import condition_train
    from tilting.generation.generate import Result, draw, generate, identities, plan
    from tilting.models import load
    from tilting.models.control_file import load_control
    from tilting.training.trainer import finetune
    from tilting.types import RewardError, TiltingError

__all__ = [
    "Result", "RewardError", "TiltingError", "condition_fit", "condition_sample", "condition_train", "draw", "finetune",
    "generate", "identities", "load", "load_control", "objectives", "plan", "presets", "rewards",
]  # fmt: skip

_HOME = {
    "Result": "tilting.generation.generate", "draw": "tilting.generation.generate",
    "generate": "tilting.generation.generate", "plan": "tilting.generation.generate",
    "identities": "tilting.generation.generate",
    "finetune": "tilting.training.trainer", "condition_fit": "tilting.conditioning.api",
    "condition_train": "tilting.conditioning.trainer",
    "condition_sample": "tilting.conditioning.api", "load_control": "tilting.models.control_file",
    "load": "tilting.models", "RewardError": "tilting.errors", "TiltingError": "tilting.errors",
}  # fmt: skip


_ROOMS = (
    "presets", "objectives", "rewards", "schedule", "sample", "select", "models", "metrics", "guidance", "rng", "weights",
    "method", "state", "types", "engines", "features", "conditioning", "training", "oracle",
)  # fmt: skip


def __getattr__(name: str):
    # Lazy (PEP 562): `import tilting` and `tilting --help` must not pay for torch and diffusers.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"tilting.{name}")
    raise AttributeError(f"module 'tilting' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, *(name for name in globals() if name.startswith("__"))})
