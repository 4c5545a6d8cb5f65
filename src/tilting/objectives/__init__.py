"""The objectives by name: frozen settings with the published defaults, each batch -> losses.

Each is declared once, where it stands: what its fields hold, its paper, what it needs of reward and chain. What it costs is
counted by running it (`tilting.objectives.cost`). Importing this does not import torch. An objective of another package is an
attribute here too: ``objectives.mine()``.
"""

from __future__ import annotations

from typing import Any

from tilting.objectives.batch import OBJECTIVES as OBJECTIVES
from tilting.objectives.batch import BaseObjective as BaseObjective

# In the order in which people meet them.
# isort: off
from tilting.objectives.gradient import AlignProp, Draft, DraftK, DraftLv, Refl
from tilting.objectives.policy import Ddpo, Dpok, Grpo
from tilting.objectives.proximal import FlowDppo, GrpoFast, GrpoGuard, MixGrpo, PrefGrpo
from tilting.objectives.dpg import Dpg
from tilting.objectives.direct import DrTune, Srpo
from tilting.objectives.supervised import PreferencePairs, Raft, RewardWeighted
from tilting.objectives.matching import Awm, Crd, Dgpo, Nft
from tilting.objectives.adjoint import AdjointMatching
from tilting.objectives.distil import Opd
# isort: on

draft, draft_k, draft_lv, refl, alignprop = Draft, DraftK, DraftLv, Refl, AlignProp
ddpo, dpok, grpo, dpg = Ddpo, Dpok, Grpo, Dpg  # dpg the objective, over dpg the module
mixgrpo, grpo_fast, grpo_guard, flow_dppo, pref_grpo = MixGrpo, GrpoFast, GrpoGuard, FlowDppo, PrefGrpo
rwr, raft, dpo, adjoint = RewardWeighted, Raft, PreferencePairs, AdjointMatching
nft, awm, dgpo, crd, srpo, drtune, opd = Nft, Awm, Dgpo, Crd, Srpo, DrTune, Opd


def __getattr__(name: str) -> Any:
    option = name.replace("_", "-")
    if name.startswith("_") or option not in OBJECTIVES:
        raise AttributeError(f"module 'tilting.objectives' has no attribute {name!r}")
    return OBJECTIVES[option]
