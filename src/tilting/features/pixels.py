"""What a network's own processor does to a picture, in differentiable torch: resize, crop or pad, normalise.

Processors work on PIL images and stop the gradient. These functions give their pixels within 2 / 255 (PIL rounds to bytes
after each pass of a resize, torch does not) and keep it. The width is resized first, as every PIL did when the scorers here
were trained and published; Pillow 13 sometimes starts with the height, which shows at hard black and white edges only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError

MODES = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of the resampling filters torch has too."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures CLIP was trained on, by channel; also open_clip's, BLIP's and OWL-ViT's."""
LARGE = 384
"""From this size on, ConvNeXt's processor squashes to the square instead of cropping."""
Fit = Literal["crop", "squash", "pad"]


def resize(images: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """PIL's antialiased resize, differentiable: the width first, then the height, cut to [0, 1] after each.

    Args:
        images: (b, 3, h, w) in [0, 1].
        height: rows wanted.
        width: columns wanted.
        mode: "bicubic" (a = -1/2, as PIL) or "bilinear".

    Returns:
        (b, 3, height, width) in [0, 1]; PIL, which rounds to bytes after each pass, is within 2 / 255 of it.
    """
    for size in ((images.shape[2], width), (height, width)):
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    return images


def centre_crop(images: Tensor, height: int, width: int, nearest: bool = False) -> Tensor:
    """The middle (b, 3, height, width) of images at least that large.

    Args:
        images: (b, 3, h, w).
        height: rows wanted.
        width: columns wanted.
        nearest: an odd margin is halved to the nearest even number, as torchvision does; else down, as transformers does.
    """
    rows, columns = images.shape[2] - height, images.shape[3] - width
    top, left = (round(rows / 2), round(columns / 2)) if nearest else (rows // 2, columns // 2)
    return images[:, :, top : top + height, left : left + width]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (a, b) of rows (a, n) and (b, n), by differences and not by products, which lose small ones."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


class Pixels(nn.Module):
    """From images to what a frozen network is fed; computes in the dtype of its buffers.

    Args:
        height: rows of the result.
        width: columns of the result.
        mean: by channel, subtracted.
        std: by channel, divided by.
        fit: "crop" resizes the shortest edge to ``edge`` and takes the centre; "squash" resizes to the size whatever the
            shape; "pad" resizes the longest edge and centres the picture on black.
        edge: of "crop", at least the larger of height and width, which it is by default.
        mode: "bicubic" or "bilinear".
        nearest: of "crop", as `centre_crop` has it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        height: int,
        width: int,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        *,
        fit: Fit = "crop",
        edge: int | None = None,
        mode: str = "bicubic",
        nearest: bool = False,
    ):
        super().__init__()
        self.size, self.fit, self.mode, self.nearest = (height, width), fit, mode, nearest
        self.edge = max(height, width) if edge is None else edge
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w) float in [0, 1] -> (b, 3, height, width), normalised; differentiable."""
        images = images.to(self.mean.dtype)
        h, w = images.shape[2:]
        if self.fit == "squash":
            images = resize(images, *self.size, self.mode)
        elif self.fit == "pad":
            scale = min(self.size[0] / h, self.size[1] / w)
            images = resize(images, max(1, round(h * scale)), max(1, round(w * scale)), self.mode)
            rows, columns = self.size[0] - images.shape[2], self.size[1] - images.shape[3]
            images = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        else:
            short = min(h, w)
            if short != self.edge:
                images = resize(images, self.edge * h // short, self.edge * w // short, self.mode)
            images = centre_crop(images, *self.size, self.nearest)
        return (images - self.mean) / self.std


def pixels_of(config: Mapping[str, Any], name: str) -> Pixels:
    """What a preprocessor_config.json asks for.

    Args:
        config: its fields, or those of the processor itself.
        name: of the folder, for the refusal.

    Raises:
        TiltingError: another preprocessing than a resize by PIL's bilinear or bicubic filter (and a crop inside of it).
    """
    size, crop = config.get("size"), config.get("crop_size") if config.get("do_center_crop", True) else None
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    mode = MODES.get(config.get("resample", 3))
    if isinstance(size, int):
        size = {"shortest_edge": size} if crop is not None or "ConvNext" in kind else {"height": size, "width": size}
    if isinstance(size, Sequence):
        size = {"height": size[0], "width": size[1]}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    unlike = [k for k in ("do_resize", "do_rescale", "do_normalize") if config.get(k) is False]
    if (
        size is None
        or mode is None
        or unlike
        or config.get("do_pad")
        or abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6
    ):
        raise TiltingError(f"the preprocessing of {name!r} is not a resize, a crop and a normalisation: {_short(config)}")
    mean, std = config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
    if "ConvNext" in kind and "shortest_edge" in size:
        side, share = size["shortest_edge"], config.get("crop_pct", 224 / 256)
        if side >= LARGE:
            return Pixels(side, side, mean, std, fit="squash", mode=mode)
        return Pixels(side, side, mean, std, edge=int(side / share), mode=mode)
    if "shortest_edge" in size and crop is not None and size["shortest_edge"] >= max(crop.values()):
        return Pixels(crop["height"], crop["width"], mean, std, edge=size["shortest_edge"], mode=mode)
    if {"height", "width"} <= size.keys() and crop in (None, {"height": size["height"], "width": size["width"]}):
        return Pixels(size["height"], size["width"], mean, std, fit="squash", mode=mode)
    raise TiltingError(f"the preprocessing of {name!r} is not CLIP's nor a resize to a square: size {size}, crop {crop}")


def _short(config: Mapping[str, Any]) -> str:
    """The fields a preprocessing hangs on."""
    told = ("do_resize", "do_pad", "do_rescale", "rescale_factor", "do_normalize", "resample", "size")
    return ", ".join(f"{k} {config[k]}" for k in told if k in config)
