"""Closed-form rewards of pixels: no network, no prompt.

    rotation    r(x) = 1/3 (‖x - Rot(x, 90°)‖² + ‖x - Rot(x, 180°)‖² + ‖x - Rot(x, 270°)‖²)    summed, at least 0
    symmetry    r(x) = -mean (x - mirror(x))²                                                  in [-1, 0]
    color       r(x) = -mean (x - colour)²                                                     in [-1, 0]

The first is DRaFT's rotational anti-correlation (Clark et al. 2024, B.9, which does not publish the range of x); the second its
counterpart for mirrors ("symmetry or anti-symmetry properties" are explored there and a formula is given for the latter only),
as a mean, so that it does not grow with the size. The third may be of the image's mean colour, which leaves the image its
contrasts: mean (x - c)² = (mean x - c)² + variance of x, channel by channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilting.errors import TiltingError, nearest
from tilting.lazy import torch
from tilting.rewards.check import Scorer, precise
from tilting.rewards.declaration import REWARDS, Argument

if TYPE_CHECKING:
    from torch import Tensor

AXES = {"lr": (3,), "ud": (2,), "both": (3, 2)}
HEX = re.compile(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


@dataclass(frozen=True)
class Rotation(Scorer):
    """r(x) = mean over 90°, 180° and 270° of ‖x - Rot(x)‖², at most 3 side²; of an image that is not square, the largest
    centred square is looked at.
    """

    name: str = "rotation"
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        rows, columns = images.shape[2:]
        side = min(rows, columns)
        top, left = (rows - side) // 2, (columns - side) // 2
        x = precise(images)[:, :, top : top + side, left : left + side]
        # A rotation keeps norms, so ‖x - Rot(x, 270°)‖ = ‖Rot(x, 90°) - x‖ and two terms are enough.
        quarter, half = ((x - x.rot90(k, (2, 3))).square().sum((1, 2, 3)) for k in (1, 2))
        return (2 * quarter + half) / 3


@REWARDS.declare("rotation", "unlike itself turned by 90, 180, 270 degrees", "squared distance", differentiable=True)
def rotation() -> Rotation:
    """Dissimilarity of an image to its rotations by 90, 180 and 270 degrees."""
    return Rotation()


@dataclass(frozen=True)
class Symmetry(Scorer):
    """r(x) = -mean (x - mirror(x))², in [-1, 0]; 0 for a perfectly symmetric image.

    Attributes:
        mirror: "lr" exchanges left and right, "ud" top and bottom; "both" is the mean of the two.
    """

    mirror: str = "lr"
    differentiable: bool = True

    @property
    def name(self) -> str:
        """ "symmetry", with ":ud" or ":both" when it is not left and right."""
        return "symmetry" if self.mirror == "lr" else f"symmetry:{self.mirror}"

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        x = precise(images)
        each = [(x - x.flip(axis)).square().mean((1, 2, 3)) for axis in AXES[self.mirror]]
        return -torch.stack(each).mean(0)


def check_mirror(mirror: str) -> str:
    """A key of `AXES`. Raises TiltingError."""
    if mirror not in AXES:
        raise TiltingError(f"there is no mirror {mirror!r}{nearest(mirror, AXES)}")
    return mirror


@REWARDS.declare(
    "symmetry",
    "like its mirror image",
    "-mean squared distance",
    differentiable=True,
    argument=Argument("LR|UD|BOTH", check_mirror, files=False),
)
def symmetry(mirror: str = "lr") -> Symmetry:
    """Mirror symmetry: "lr" (left and right), "ud" (top and bottom) or "both". Raises TiltingError for another word."""
    return Symmetry(check_mirror(mirror))


@dataclass(frozen=True)
class Color(Scorer):
    """r(x) = -mean (x - colour)², in [-1, 0].

    Attributes:
        rgb: the colour, three numbers in [0, 1].
        of_mean: compare the mean colour of the image instead of every pixel.
    """

    rgb: tuple[float, float, float]
    name: str
    of_mean: bool = False
    differentiable: bool = True

    def values(self, images: Tensor, prompts: list[str]) -> Tensor:
        x = precise(images)
        x = x.mean((2, 3), keepdim=True) if self.of_mean else x
        return -(x - x.new_tensor(self.rgb)[:, None, None]).square().mean((1, 2, 3))


def read_color(text: str) -> tuple[tuple[float, float, float], bool]:
    """A colour and whether the mean of the image is meant: NAME, #rgb or #rrggbb, with ",mean" or nothing after it.

    Returns:
        Three numbers in [0, 1], and True for the mean.

    Raises:
        TiltingError: no such colour, or another word after the comma.
    """
    from PIL.ImageColor import colormap, getrgb

    name, comma, rest = text.partition(",")
    if comma and rest != "mean":
        raise TiltingError(f"after the colour in {text!r} only ',mean' may stand, not {rest!r}")
    if name.startswith("#") and not HEX.fullmatch(name):
        raise TiltingError(f"the colour {name!r} must be #rgb or #rrggbb in hexadecimal digits, such as #ff8800")
    if not name.startswith("#") and name.lower() not in colormap:
        near = nearest(name, colormap)
        raise TiltingError(f"there is no colour {name!r}{near if 'did you mean' in near else '; write red, or #ff8800'}")
    red, green, blue = getrgb(name)[:3]
    return (red / 255, green / 255, blue / 255), bool(comma)


@REWARDS.declare(
    "color",
    "near a colour, or red,mean",
    "-mean squared distance",
    differentiable=True,
    argument=Argument("COLOUR", read_color, required=True, files=False),
)
def color(color: str) -> Color:
    """Nearness to a colour.

    Args:
        color: "red" (any colour name of CSS), "#f80" or "#ff8800"; with ",mean" after it, the mean colour is compared.

    Raises:
        TiltingError: no such colour.
    """
    rgb, of_mean = read_color(color)
    return Color(rgb, f"color:{color}", of_mean)
