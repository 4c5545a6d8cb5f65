"""Parsing of ``--reward`` specs, NAME[:ARGUMENT][=WEIGHT], and construction of rewards.

``http(s)://...`` and ``file.py:function`` are recognised first. Neither torch nor weights are needed to refuse a spec.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tilting.errors import TiltingError
from tilting.features.once import once
from tilting.features.sources import identity
from tilting.own import functions_in
from tilting.rewards.declaration import REWARDS as REWARDS
from tilting.rewards.declaration import Reads, RewardEntry, installed
from tilting.rewards.remote import URL
from tilting.rewards.user_file import Ran, user
from tilting.rewards.vlm import OPTIONS
from tilting.rewards.weighted_sum import combine

if TYPE_CHECKING:
    from tilting.types import Reward

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
OWN = re.compile(rf"https?://.*[?&][^=&]+=|likelihood:.*#[^=#]+=|vlm:.*#(?:{'|'.join(OPTIONS)})=", re.IGNORECASE | re.DOTALL)
"""Up to an "=" that is no weight's: of the last parameter of an address, of a label's value, of the last option."""
FILE = re.compile(r"(?P<file>.+\.py)(:(?P<function>.*))?", re.DOTALL)


class Spec(NamedTuple):
    """One parsed ``--reward``.

    Attributes:
        name: of the reward, or the path of a user's file (ends in .py).
        argument: what followed the colon, or None; the function of a user's file.
        weight: finite, 1 by default.
        text: as the user wrote it, the key in manifests.
    """

    name: str
    argument: str | None
    weight: float
    text: str

    @property
    def is_file(self) -> bool:
        """Whether this is a user's ``file.py:function``."""
        return self.name.endswith(".py")

    @property
    def entry(self) -> RewardEntry | None:
        """What is declared of it; None for a user's file."""
        return None if self.is_file else REWARDS.find(self.name)

    @property
    def reads(self) -> Reads:
        """What its values stand on besides the picture."""
        return self.entry.stands_on(self.argument) if self.entry else Reads((Path(self.name),))


def split_weight(text: str) -> tuple[str, float]:
    """What precedes a trailing ``=WEIGHT``, and the weight, 1 by default.

    A tail that is no number belongs to the argument, and so does the value of an address's last parameter or of a
    likelihood's label. Raises TiltingError for a weight that is no finite number.
    """
    file = FILE.fullmatch(text)
    if file and (file["function"] or "").isidentifier():
        return text, 1.0
    own = OWN.match(text)
    start = own.end() if own else 0
    head, equals, tail = text[start:].rpartition("=")
    if not equals:
        return text, 1.0
    head = text[:start] + head
    if NUMBER.fullmatch(tail):
        weight = float(tail)
    elif NOT_FINITE.fullmatch(tail):
        weight = math.nan
    elif ":" in head:
        return text, 1.0
    else:
        raise TiltingError(f"the weight in the reward {text!r} must be a number, not {tail!r}")
    if not math.isfinite(weight):
        raise TiltingError(f"the weight in the reward {text!r} must be finite")
    return head, weight


def parse_spec(text: str) -> Spec:
    """Read one spec: NAME[:ARGUMENT][=WEIGHT], file.py:function[=WEIGHT] or http(s)://...[=WEIGHT].

    A trailing ``=<finite float>`` is the weight, but for the value of an address's last parameter and of a likelihood's
    label: there the weight is a second one. Files must exist; of these only a classifier's description is opened.

    Raises:
        TiltingError: an unknown name (with the nearest right one), a wrong argument, a weight that is not finite, a
            missing file, or a reward that is not available yet.
    """
    text = text.strip()
    if not text:
        raise TiltingError("a reward is empty; write NAME[:ARGUMENT][=WEIGHT], such as clip or style:noto=0.5")
    body, weight = split_weight(text)
    file = FILE.fullmatch(body)
    if file and not URL.match(text):
        function, path = file["function"], expanduser(file["file"])
        if not function or not function.isidentifier():
            there = functions_in(path) if Path(path).is_file() else ""
            raise TiltingError(f"the reward {text!r} must name a function, file.py:function{there}")
        if not Path(path).is_file():
            raise TiltingError(f"there is no file {file['file']!r} for the reward {text!r}")
        return Spec(path, function, weight, text)
    name, colon, argument = ("http", ":", body) if URL.match(text) else body.partition(":")
    entry = REWARDS.find(name)
    if not colon:
        if entry.argument and entry.argument.required:
            raise TiltingError(f"the reward {name!r} needs more after a colon: {entry.usage}")
        return Spec(entry.name, None, weight, text)
    if entry.argument is None:
        raise TiltingError(f"the reward {name!r} takes nothing after a colon, but {text!r} gives {argument!r}")
    if not argument:
        raise TiltingError(f"the reward {text!r} has a colon and no {entry.argument.metavar.lower()} after it")
    if entry.argument.files:
        argument = "#".join(map(expanduser, argument.split("#")))  # which a shell does not, after a colon
    entry.argument.check(argument)
    return Spec(entry.name, argument, weight, text)


def same(one: Spec, other: Spec) -> bool:
    """Whether two specs ask the same of the same network, however they spell it: a path, a name of the hub, a link."""
    if one.is_file or other.is_file or one.name != other.name:
        return _place(one.name) == _place(other.name) and one.argument == other.argument
    mine, theirs = _network(one), _network(other)
    return _place(one.argument) == _place(other.argument) or bool(mine & theirs)


def _place(text: str | None) -> str | None:
    """A path as it is for all of its spellings; other texts as they are."""
    return text and "#".join(os.path.realpath(part) if Path(part).exists() else part for part in text.split("#"))


def _network(spec: Spec) -> frozenset[str]:
    """What tells the files apart that are all of a reward's argument, or its default network; nothing for other arguments."""
    name = spec.reads.clip if spec.argument is None else spec.argument
    there = name is not None and (name == spec.reads.clip or Path(name).exists())
    return identity(name) if name and there else frozenset()


def parse_specs(texts: Iterable[str]) -> list[Spec]:
    """Read several specs.

    Raises:
        TiltingError: as `parse_spec`, or the same spec twice.
    """
    specs = [parse_spec(text) for text in texts]
    for i, spec in enumerate(specs):
        if spec.text in (s.text for s in specs[:i]):
            raise TiltingError(f"the reward {spec.text!r} is given twice; give it once with the sum of the weights")
    return specs


def check_rewards(option: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The specs of an option, which can be built here. Raises TiltingError: as `parse_specs`, none has a weight but
    0, or an extra is not installed."""
    specs = parse_specs(texts)
    if specs and not any(spec.weight for spec in specs):
        raise TiltingError(f"{option} {', '.join(texts)} asks for nothing: give one of them a weight that is not 0")
    for spec in specs:
        if spec.entry:
            installed(spec.entry)
    return texts


def build_one(spec: Spec, ran: Ran | None = None) -> Reward:
    """Load the reward a spec names, without its weight; ``ran`` as `user` takes it. Raises TiltingError if it does not load."""
    return spec.entry.build(spec.argument) if spec.entry else user(f"{spec.name}:{spec.argument}", ran)


def build(specs: Sequence[Spec]) -> Reward:
    """Load what specs ask for.

    Args:
        specs: at least one, from `parse_spec`.

    Returns:
        The reward itself when there is one, of weight 1 and by its own name; else a `Combined` whose keys are the specs.

    Raises:
        TiltingError: no spec, the same spec twice, or a reward that does not load.
    """
    if not specs:
        raise TiltingError("no reward is given; write NAME[:ARGUMENT][=WEIGHT], such as clip")
    ran: Ran = {}
    with once():  # a network that several stand on is loaded once
        rewards = [build_one(spec, ran) for spec in specs]
    if len(specs) == 1 and specs[0].weight == 1 and rewards[0].name == specs[0].text:
        return rewards[0]
    return combine(zip(rewards, (s.weight for s in specs), strict=True), keys=(s.text for s in specs))
