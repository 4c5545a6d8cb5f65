"""A network's image preprocessing in differentiable torch: resize, crop or pad, normalise.

Processors work on PIL images and stop the gradient. These functions give their pixels within 2 / 255 (PIL rounds to bytes
after each pass of a resize, torch does not) and keep it. The width is resized first, as every PIL did when the scorers here
were trained and published; Pillow 13 sometimes starts with the height, which shows at hard black and white edges only.
"""

from __future__ import annotations

import math
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
"""Mean and std of CLIP's training images by channel; also those of open_clip, BLIP and OWL-ViT."""
LARGE = 384
"""From this size on, ConvNeXt's processor squashes to the square instead of cropping."""
Fit = Literal["crop", "squash", "pad"]


def centred(images: Tensor) -> Tensor:
    """The largest centred square of images (b, 3, h, w)."""
    h, w = images.shape[2:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return images[:, :, top : top + side, left : left + side]


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
        flip: the channels are blue, green and red, as a network read by OpenCV knows them.
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
        flip: bool = False,
    ):
        super().__init__()
        self.size, self.fit, self.mode, self.nearest, self.flip = (height, width), fit, mode, nearest, flip
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
        images = images.flip(1) if self.flip else images
        return (images - self.mean) / self.std


FOLLOWED = frozenset(
    """size crop_size crop_pct resample rescale_factor image_mean image_std do_resize do_center_crop do_rescale do_normalize
    do_flip_channel_order""".split()  # noqa: SIM905
)
"""Fields of a processor that `pixels_of` reads."""
ASIDE = frozenset(
    """image_processor_type feature_extractor_type processor_class auto_map do_convert_rgb do_reduce_labels reduce_labels
    data_format input_data_format return_tensors default_to_square device disable_grouping use_fast""".split()  # noqa: SIM905
)
"""Fields that change nothing of an RGB picture's pixels."""


def pixels_of(config: Mapping[str, Any], name: str) -> Pixels:
    """What a preprocessor_config.json asks for.

    Args:
        config: its fields, or those of the processor itself.
        name: of the folder, for the refusal.

    Raises:
        TiltingError: another preprocessing than a resize by PIL's bilinear or bicubic filter (and a crop inside of it), by the
            name of the field that asks for it.
    """
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    given = {key: value for key, value in config.items() if not key.startswith("_") and value not in (None, False, "", [], {})}
    odd = [key for key in given if key not in FOLLOWED | ASIDE]
    odd += ["crop_pct"] if "crop_pct" in given and "ConvNext" not in kind else []
    odd += [key for key in ("do_resize", "do_rescale") if not config.get(key, True)]
    if abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        odd.append("rescale_factor")
    mode = MODES.get(config.get("resample", 3))
    if mode is None:
        odd.append("resample")
    size = given.get("size")
    if odd or size is None or mode is None:
        what = ", ".join(f"{key} {config.get(key)}" for key in odd) or "size is missing"
        raise TiltingError(f"the preprocessing of {name!r} is not a resize, a crop and a normalisation: {what}")
    crop = given.get("crop_size") if config.get("do_center_crop", True) else None
    if isinstance(size, int):
        size = {"shortest_edge": size} if crop is not None or "ConvNext" in kind else {"height": size, "width": size}
    if isinstance(size, Sequence):
        size = {"height": size[0], "width": size[1]}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    plain = not config.get("do_normalize", True)
    mean, std = (
        ((0.0,) * 3, (1.0,) * 3) if plain else (_each(config, "image_mean", CLIP_MEAN), _each(config, "image_std", CLIP_STD))
    )
    how: dict[str, Any] = {"mode": mode, "flip": bool(config.get("do_flip_channel_order"))}
    if "ConvNext" in kind and "shortest_edge" in size:
        side, share = size["shortest_edge"], config.get("crop_pct") or 224 / 256
        if side >= LARGE:
            return Pixels(side, side, mean, std, fit="squash", **how)
        return Pixels(side, side, mean, std, edge=int(side / share), **how)
    if size.keys() == {"shortest_edge"} and crop is not None and size["shortest_edge"] >= max(crop.values()):
        return Pixels(crop["height"], crop["width"], mean, std, edge=size["shortest_edge"], **how)
    if size.keys() == {"height", "width"} and crop in (None, {"height": size["height"], "width": size["width"]}):
        return Pixels(size["height"], size["width"], mean, std, fit="squash", **how)
    raise TiltingError(f"the preprocessing of {name!r} is not CLIP's nor a resize to a square: size {size}, crop {crop}")


def _each(config: Mapping[str, Any], key: str, usual: Sequence[float]) -> Sequence[float]:
    """A number for each of three channels."""
    value = config.get(key) or usual
    return [float(value)] * 3 if isinstance(value, int | float) else value


def followed(processor: Any, name: str) -> Pixels:
    """What an image processor of transformers does, compared with what it gives of two pictures: its class may have steps that
    none of its fields says.

    Args:
        processor: the loaded one.
        name: of its folder, for the refusal.

    Raises:
        TiltingError: what `pixels_of` refuses, or other pixels than the processor's own.
    """
    pixels = pixels_of(processor.to_dict(), name)
    high, wide = pixels.size
    for size in ((high * 7 // 4, wide * 5 // 4), (high // 2, wide * 2 // 3)):
        picture = _sample(*(max(8, side) for side in size))
        try:
            theirs = torch.as_tensor(processor(images=[picture.permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"])
        except Exception as error:
            raise TiltingError(f"the image processor of {name!r} fails: {str(error).splitlines()[0]}") from error
        mine = pixels(picture[None].float() / 255)
        far = ((mine - theirs) * pixels.std).abs().max().item() * 255 if mine.shape == theirs.shape else math.inf
        if not far <= ALIKE:
            raise TiltingError(
                f"the preprocessing of {name!r} is not a resize, a crop and a normalisation: a {type(processor).__name__} has "
                "steps of its own"
            )
    return pixels


ALIKE = 5.0
"""Levels of 255 by which roundings of processors, PIL's and torchvision's, may differ from `Pixels`; another step is tens."""


def _sample(height: int, width: int) -> Tensor:
    """A picture (3, height, width) uint8 that shows every step: coarse waves, other ones in each channel, and fine noise."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.stack([torch.sin(7 * y + 3 * c * x + c) * torch.cos(5 * x - c * y) for c in range(1, 4)])
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) - 0.5
    return (128 + 60 * waves + 60 * noise).round().byte()
