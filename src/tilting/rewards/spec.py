"""The grammar of ``--reward``: SPEC = NAME[:ARGUMENT][=WEIGHT]. Neither torch nor weights are needed to refuse a spec."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tilting.errors import TiltingError, nearest
from tilting.models.words import load_words

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
FILE = re.compile(r"(?P<file>.+\.py)(:(?P<function>.*))?", re.DOTALL)


class Entry(NamedTuple):
    """What there is to know of a reward without loading it.

    Attributes:
        module: where its factory lives.
        factory: the name of the factory there.
        about: one line.
        units: of its values; higher is better.
        differentiable: whether a gradient with respect to the images exists.
        argument: what may follow the colon, "" when nothing may.
        options: keywords the factory is called with.
    """

    module: str
    factory: str
    about: str
    units: str
    differentiable: bool
    argument: str = ""
    options: tuple[tuple[str, bool], ...] = ()


_HERE = "tilting.rewards"
CATALOG: dict[str, Entry] = {
    "clip": Entry(f"{_HERE}.clip", "clip", "how well the picture matches its prompt", "raw cosine", True, "folder"),
    "style": Entry(f"{_HERE}.style", "style", "how surely it is drawn in the style", "log-probability", True, "style"),
    "jpeg": Entry(f"{_HERE}.jpeg", "jpeg", "small JPEG file at quality 95", "-kB", False),
    "jpeg-up": Entry(
        f"{_HERE}.jpeg", "jpeg", "large JPEG file at quality 95", "kB", False, options=(("incompressible", True),)
    ),
    "jpeg-diff": Entry(f"{_HERE}.jpeg_diff", "jpeg_diff", "little lost by JPEG", "-squared distance", True, "quality"),
    "jpeg-diff-up": Entry(
        f"{_HERE}.jpeg_diff", "jpeg_diff", "much lost by JPEG", "squared distance", True, "quality", (("up", True),)
    ),
}
LATER = ("pickscore", "hpsv2")
"""Names that are spoken for and not there yet."""


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


def catalog() -> dict[str, Entry]:
    """The rewards there are, by name, to list without loading any."""
    return dict(CATALOG)


def _weight(text: str) -> tuple[str, float]:
    """What precedes a trailing ``=WEIGHT``, and the weight; a tail that is no number belongs to the argument."""
    head, equals, tail = text.rpartition("=")
    if not equals:
        return text, 1.0
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


def _check_argument(name: str, argument: str, text: str) -> None:
    kind = CATALOG[name].argument
    if not kind:
        raise TiltingError(f"the reward {name!r} takes nothing after a colon, but {text!r} gives {argument!r}")
    if not argument:
        raise TiltingError(f"the reward {text!r} has a colon and no {kind} after it")
    if kind == "style":
        styles = load_words().styles
        if argument not in styles:
            raise TiltingError(f"there is no style {argument!r}{nearest(argument, styles)}")
    if kind == "quality" and not (NUMBER.fullmatch(argument) and 1 <= float(argument) <= 100):
        raise TiltingError(f"the quality in {text!r} must be a number between 1 and 100")


def parse_spec(text: str) -> Spec:
    """Read one spec: NAME[:ARGUMENT][=WEIGHT], or file.py:function[=WEIGHT].

    A trailing ``=<finite float>`` is always the weight. Files must exist; they are not opened.

    Raises:
        TiltingError: an unknown name (with the nearest right one), a wrong argument, a weight that is not finite, a
            missing file, or a reward that is not available yet.
    """
    text = text.strip()
    if not text:
        raise TiltingError("a reward is empty; write NAME[:ARGUMENT][=WEIGHT], such as clip or style:noto=0.5")
    if re.match(r"https?://", text, re.IGNORECASE):
        raise TiltingError(f"rewards over http are not available yet, so {text!r} cannot be asked")
    body, weight = _weight(text)
    file = FILE.fullmatch(body)
    if file:
        function = file["function"]
        if not function or not function.isidentifier():
            raise TiltingError(f"the reward {text!r} must name a function: {file['file']}:function")
        if not Path(file["file"]).is_file():
            raise TiltingError(f"there is no file {file['file']!r} for the reward {text!r}")
        return Spec(file["file"], function, weight, text)
    name, colon, argument = body.partition(":")
    if name in LATER:
        raise TiltingError(f"the reward {name!r} is not available yet")
    if name not in CATALOG:
        raise TiltingError(f"there is no reward {name!r}{nearest(name, CATALOG)}")
    if colon:
        _check_argument(name, argument, text)
    return Spec(name, argument if colon else None, weight, text)


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
