"""The grammar of ``--reward``: SPEC = NAME[:ARGUMENT][=WEIGHT]. Neither torch nor weights are needed to refuse a spec.

``http(s)://...`` and ``file.py:function`` are recognised first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from os.path import expanduser
from pathlib import Path
from typing import Any, NamedTuple

from tilting.errors import TiltingError, nearest
from tilting.models.words import load_words
from tilting.rewards import arguments

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
URL = re.compile(r"https?://", re.IGNORECASE)
OWN = re.compile(r"https?://.*[?&][^=&]+=|likelihood:.*#[^=#]+=", re.IGNORECASE | re.DOTALL)
"""Up to an "=" that is no weight's: of the last parameter of an address, of a label's value."""
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
        needs: what it cannot be built without: "weights" on disk or on the hub, "argument" after the colon, or both.
        together: whether the value of an image depends on those beside it in the batch.
        remote: whether pictures leave the machine.
    """

    module: str
    factory: str
    about: str
    units: str
    differentiable: bool
    argument: str = ""
    options: tuple[tuple[str, bool], ...] = ()
    needs: str = ""
    together: bool = False
    remote: bool = False

    def load(self) -> Callable[..., Any]:
        """The factory, with its options given. Its module is imported here."""
        found = getattr(import_module(self.module), self.factory)
        return partial(found, **dict(self.options)) if self.options else found


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
    "rotation": Entry(
        f"{_HERE}.rotation", "rotation", "unlike itself turned by 90, 180, 270 degrees", "squared distance", True
    ),
    "symmetry": Entry(f"{_HERE}.symmetry", "symmetry", "like its mirror image", "-mean squared distance", True, "lr|ud|both"),
    "color": Entry(
        f"{_HERE}.color", "color", "near a colour, or red,mean", "-mean squared distance", True, "colour", needs="argument"
    ),
    "gram": Entry(
        f"{_HERE}.gram", "gram", "in the style of a picture", "-Gram distance", True, "image[#vgg16]", needs="argument"
    ),
    "likelihood": Entry(
        f"{_HERE}.likelihood",
        "likelihood",
        "as a fitted classifier",
        "log p(y | x)",
        True,
        "folder#label=value",
        needs="argument",
    ),
    "diversity": Entry(
        f"{_HERE}.diversity", "diversity", "unlike the rest of its batch", "mean distance", True, "vgg16[#lpips]", together=True
    ),
    "aesthetic": Entry(
        f"{_HERE}.aesthetic",
        "aesthetic",
        "how much people like it (LAION v2)",
        "rating, 1 to 10",
        True,
        "folder",
        needs="weights",
    ),
    "pickscore": Entry(
        f"{_HERE}.pickscore",
        "pickscore",
        "how likely people pick it (PickScore v1)",
        "raw cosine",
        True,
        "folder",
        needs="weights",
    ),
    "hpsv2": Entry(
        f"{_HERE}.hpsv2", "hpsv2", "how likely people prefer it (HPS v2)", "raw cosine", True, "folder", needs="weights"
    ),
    "imagereward": Entry(
        f"{_HERE}.imagereward", "imagereward", "how people rate it (ImageReward)", "spreads", True, "folder", needs="weights"
    ),
    "detect": Entry(
        f"{_HERE}.detect",
        "detect",
        "objects found, or -removed",
        "sum of scores",
        True,
        "query[,query]",
        needs="weights, argument",
    ),
    "classify": Entry(
        f"{_HERE}.classify",
        "classify",
        "as a classifier sees it",
        "log-probability",
        True,
        "folder#label",
        needs="weights, argument",
    ),
    "http": Entry(
        f"{_HERE}.http", "http", "what a remote scorer says", "its own", False, "//host/path", needs="argument", remote=True
    ),
}


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
    arguments.check(name, kind, argument)


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
    if URL.match(text):
        return Spec("http", arguments.check_url(body), weight, text)
    file = FILE.fullmatch(body)
    if file:
        function = file["function"]
        if not function or not function.isidentifier():
            raise TiltingError(f"the reward {text!r} must name a function: {file['file']}:function")
        path = expanduser(file["file"])
        if not Path(path).is_file():
            raise TiltingError(f"there is no file {file['file']!r} for the reward {text!r}")
        return Spec(path, function, weight, text)
    name, colon, argument = body.partition(":")
    argument = "#".join(map(expanduser, argument.split("#")))  # which a shell does not, after a colon
    if name not in CATALOG:
        raise TiltingError(f"there is no reward {name!r}{nearest(name, CATALOG)}")
    if colon:
        _check_argument(name, argument, text)
    elif "argument" in CATALOG[name].needs:
        raise TiltingError(f"the reward {name!r} needs more after a colon: {name}:{CATALOG[name].argument.upper()}")
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
