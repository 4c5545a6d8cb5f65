"""Rewards: scores of images and their prompts, higher is better. A file per family; `declaration` says what is declared of one.

`REWARDS` has them by name, other packages' too, and ``tilting.rewards.NAME`` ("_" for "-") makes one. Importing this room
imports neither torch nor weights.
"""

from __future__ import annotations

from typing import Any

# In the order in which they are listed.
# isort: off
from tilting.rewards.clip_scores import Clip as Clip, Style as Style, clip as clip, style as style
from tilting.rewards.compression import Jpeg as Jpeg, JpegDiff as JpegDiff, jpeg as jpeg, jpeg_diff as jpeg_diff
from tilting.rewards.pixel_rules import Color as Color, Rotation as Rotation, Symmetry as Symmetry
from tilting.rewards.pixel_rules import color as color, rotation as rotation, symmetry as symmetry
from tilting.rewards.perceptual import Diversity as Diversity, Gram as Gram, diversity as diversity, gram as gram
from tilting.rewards.classifiers import Classify as Classify, Likelihood as Likelihood
from tilting.rewards.classifiers import classify as classify, likelihood as likelihood
from tilting.rewards.preferences import Aesthetic as Aesthetic, Learned as Learned
from tilting.rewards.preferences import aesthetic as aesthetic, hpsv2 as hpsv2
from tilting.rewards.preferences import imagereward as imagereward, pickscore as pickscore
from tilting.rewards.preferences import aesthetic_v2_5 as aesthetic_v2_5, mps as mps
from tilting.rewards.vision_language import hpsv3 as hpsv3, unifiedreward as unifiedreward, vqascore as vqascore
from tilting.rewards.detector import Detect as Detect, detect as detect
from tilting.rewards.geneval import GenEval as GenEval, geneval as geneval
from tilting.rewards.wheels import Nsfw as Nsfw, Ocr as Ocr, nsfw as nsfw, ocr as ocr
from tilting.rewards.remote import Http as Http, http as http
from tilting.rewards.vlm import Vlm as Vlm, vlm as vlm

# isort: on
from tilting.rewards.check import Scorer as Scorer
from tilting.rewards.check import checked as checked
from tilting.rewards.declaration import REWARDS as REWARDS
from tilting.rewards.declaration import Argument as Argument
from tilting.rewards.declaration import Reads as Reads
from tilting.rewards.metadata import Told as Told
from tilting.rewards.metadata import informed as informed
from tilting.rewards.spec import build as build
from tilting.rewards.user_file import UserReward as UserReward
from tilting.rewards.user_file import user as user
from tilting.rewards.weighted_sum import Combined as Combined
from tilting.rewards.weighted_sum import Scales as Scales
from tilting.rewards.weighted_sum import combine as combine


def __getattr__(name: str) -> Any:
    """The factory of a reward of that name."""
    entry = None if name.startswith("_") else REWARDS.get(name.replace("_", "-"))
    if entry is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return entry.factory
