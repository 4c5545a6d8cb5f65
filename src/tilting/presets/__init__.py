"""The named methods: frozen settings with a ``build(steps)`` that composes them out of parts for a run of T steps.

Every field's default is the model pocket's; ``published`` beside it holds what the paper used. Fields that count in steps may
be None, and then scale with T, so that an unset default never causes a refusal. Take one apart with ``dataclasses.replace``
on what it builds.
"""

from __future__ import annotations

from typing import Any

from tilting.presets.codex import CoDeX
from tilting.presets.common import Preset as Preset
from tilting.presets.guided import Dps, FreeDoM, Lgd, Mpgd, Tfg, Universal
from tilting.presets.selecting import Base, BestOfN, CoDe, FkSteering, Rollover, SDEdit, SmcTilt, Svdd
from tilting.presets.starting import Doodl, Prompting, Reno
from tilting.presets.weighted import Das, Tds

base, bon, code, svdd, smc, fk, rbf, sdedit = Base, BestOfN, CoDe, Svdd, SmcTilt, FkSteering, Rollover, SDEdit
dps, mpgd, freedom, ug, lgd, tfg = Dps, Mpgd, FreeDoM, Universal, Lgd, Tfg
reno, doodl, prompt, tds, das, codex = Reno, Doodl, Prompting, Tds, Das, CoDeX  # codex the preset, over codex the module

PRESETS: dict[str, Any] = {
    preset.name: preset
    for preset in (
        Base, BestOfN, CoDe, CoDeX, Dps, Mpgd, FreeDoM, Universal, Lgd, Tfg, Svdd, SmcTilt, Tds, Das, FkSteering, Rollover,
        SDEdit, Reno, Doodl, Prompting,
    )
}  # fmt: skip
