"""`--diversity MEASURE[=WEIGHT]`: euclid, clip, or lpips:VGG[#LPIPS]."""

from __future__ import annotations

import math

from tilting.errors import TiltingError, nearest

MEASURES = {
    "euclid": "root mean square difference of pixels",
    "clip": "distance of pocket-clip's embeddings",
    "lpips": "LPIPS by the weights of lpips:VGG[#LPIPS]",
}


def parse_diversity(text: str) -> tuple[str, str | None, float]:
    """(measure, its argument or None, weight) of MEASURE[:ARGUMENT][=WEIGHT]; the weight is 1 where it is left out.

    Raises:
        TiltingError: naming what is wrong.
    """
    body, equals, tail = text.rpartition("=")
    weight = 1.0
    if equals:
        try:
            weight = float(tail)
        except ValueError:
            raise TiltingError(f"the weight in the diversity {text!r} must be a number, not {tail!r}") from None
        if not math.isfinite(weight):
            raise TiltingError(f"the weight in the diversity {text!r} must be finite")
    name, colon, argument = (body if equals else text).partition(":")
    if name not in MEASURES:
        raise TiltingError(f"there is no diversity measure {name!r}{nearest(name, MEASURES)}")
    if bool(colon and argument) != (name == "lpips"):
        wrong = "needs VGG16's weights: lpips:VGG[#LPIPS]" if name == "lpips" else f"takes no argument, such as {argument!r}"
        raise TiltingError(f"the diversity measure {name} {wrong}")
    return name, argument or None, weight
