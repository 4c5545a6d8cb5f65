"""The named methods: frozen settings with a ``build(steps)`` that composes them out of parts for a run of T steps.

Every field's default is the model pocket's; ``published`` beside it holds what the paper used. Take one apart with
``dataclasses.replace`` on what it builds. A method of another package is an attribute here too: ``presets.mine()``.
"""

from __future__ import annotations

from tilting.presets.blockwise import CoDeX
from tilting.presets.common import METHODS as METHODS
from tilting.presets.common import GradientPreset as GradientPreset
from tilting.presets.common import Preset as Preset
from tilting.presets.guided import Dps, FreeDoM, Lgd, Mpgd, Tfg, Universal
from tilting.presets.selecting import Base, BestOfN, CoDe, FkSteering, Prompting, Rollover, SDEdit, SmcTilt, Svdd
from tilting.presets.starting import Doodl, Lidar, Reno, SearchOverPaths, ZeroOrderSearch
from tilting.presets.weighted import Das, Fkc, Psi, Tds

base, sdedit, bon, prompt = Base, SDEdit, BestOfN, Prompting
code, svdd, smc, fk, rbf, codex = CoDe, Svdd, SmcTilt, FkSteering, Rollover, CoDeX
dps, mpgd, freedom, ug, lgd, tfg = Dps, Mpgd, FreeDoM, Universal, Lgd, Tfg
tds, das, psi, fkc, reno, doodl = Tds, Das, Psi, Fkc, Reno, Doodl
zo, paths, lidar = ZeroOrderSearch, SearchOverPaths, Lidar


def __getattr__(name: str) -> type[Preset]:
    if name.startswith("_") or name not in METHODS:
        raise AttributeError(f"module 'tilting.presets' has no attribute {name!r}")
    return METHODS[name]
