"""The Inception of FID: Szegedy et al. 2015's third version as TensorFlow's 2015-12-05 graph has it (Heusel et al. 2017).

It differs from the later ImageNet models: average pools leave their padding out of the mean, the last block's pool is a
maximum, and pictures are bytes, resized to 299 x 299 bilinearly without half-pixel centres, then (x - 128) / 128. The weights
are the PyTorch port ``pt_inception-2015-12-05-6726825d.pth`` (pytorch-fid, Apache-2.0), read with weights_only, or the same
keys as safetensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, read_state
from tilting.metrics.extract import Extractor

SIDE, FEATURES = 299, 2048
WANTED = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"

Size = int | tuple[int, int]
Layer = tuple[str, int, Size, int, Size]
"""A convolution: name, output channels, kernel, stride, padding."""

STEM: tuple[Layer, ...] = (
    ("Conv2d_1a_3x3", 32, 3, 2, 0),
    ("Conv2d_2a_3x3", 32, 3, 1, 0),
    ("Conv2d_2b_3x3", 64, 3, 1, 1),
    ("Conv2d_3b_1x1", 80, 1, 1, 0),
    ("Conv2d_4a_3x3", 192, 3, 1, 0),
)
WIDE, TALL = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
FLAT, STEEP = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
ONE, THREE, DOWN = (1, 1, 0), (3, 1, 1), (3, 2, 0)


def _square(pool: int) -> list[list[Layer]]:
    """Paths of the blocks at 35 x 35."""
    return [
        [("branch1x1", 64, *ONE)],
        [("branch5x5_1", 48, *ONE), ("branch5x5_2", 64, 5, 1, 2)],
        [("branch3x3dbl_1", 64, *ONE), ("branch3x3dbl_2", 96, *THREE), ("branch3x3dbl_3", 96, *THREE)],
        [("branch_pool", pool, *ONE)],
    ]


def _seven(width: int) -> list[list[Layer]]:
    """Paths of the blocks at 17 x 17."""
    double = [("branch7x7dbl_1", width, *ONE), ("branch7x7dbl_2", width, *TALL), ("branch7x7dbl_3", width, *WIDE)]
    return [
        [("branch1x1", 192, *ONE)],
        [("branch7x7_1", width, *ONE), ("branch7x7_2", width, *WIDE), ("branch7x7_3", 192, *TALL)],
        [*double, ("branch7x7dbl_4", width, *TALL), ("branch7x7dbl_5", 192, *WIDE)],
        [("branch_pool", 192, *ONE)],
    ]


_DOUBLE: list[Layer] = [("branch3x3dbl_1", 448, *ONE), ("branch3x3dbl_2", 384, *THREE)]
_SPLIT: list[list[Layer]] = [
    [("branch1x1", 320, *ONE)],
    [("branch3x3_1", 384, *ONE), ("branch3x3_2a", 384, *FLAT), ("branch3x3_2b", 384, *STEEP)],
    [*_DOUBLE, ("branch3x3dbl_3a", 384, *FLAT), ("branch3x3dbl_3b", 384, *STEEP)],
    [("branch_pool", 192, *ONE)],
]
_TO_17: list[list[Layer]] = [
    [("branch3x3", 384, *DOWN)],
    [("branch3x3dbl_1", 64, *ONE), ("branch3x3dbl_2", 96, *THREE), ("branch3x3dbl_3", 96, *DOWN)],
    [],
]
_SEVENS: list[Layer] = [("branch7x7x3_1", 192, *ONE), ("branch7x7x3_2", 192, *WIDE), ("branch7x7x3_3", 192, *TALL)]
_TO_8: list[list[Layer]] = [
    [("branch3x3_1", 192, *ONE), ("branch3x3_2", 320, *DOWN)],
    [*_SEVENS, ("branch7x7x3_4", 192, *DOWN)],
    [],
]
BLOCKS: tuple[tuple[str, str, list[list[Layer]]], ...] = (
    *((f"Mixed_5{letter}", "mean", _square(width)) for letter, width in zip("bcd", (32, 64, 64), strict=True)),
    ("Mixed_6a", "down", _TO_17),
    *((f"Mixed_6{letter}", "mean", _seven(width)) for letter, width in zip("bcde", (128, 160, 160, 192), strict=True)),
    ("Mixed_7a", "down", _TO_8),
    ("Mixed_7b", "mean", _SPLIT),
    ("Mixed_7c", "max", _SPLIT),
)
"""Blocks in order: name, its pool (a mean or maximum before the last path, or the stride of a "down" one), its paths."""


class Convolution(nn.Module):
    """A convolution without bias, batch norm (eps 0.001) and ReLU."""

    def __init__(self, inside: int, outside: int, kernel: Size, stride: int, padding: Size):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inside, h, w) -> (b, outside, h', w')."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel paths whose outputs are stacked; a path's layers ending in a and b both read what precedes them."""

    def __init__(self, inside: int, pool: str, paths: list[list[Layer]]):
        super().__init__()
        self.pool, self.paths, self.width = pool, paths, 0
        for path in paths:
            width, ends = inside, 0
            for name, outside, *shape in path:
                self.add_module(name, Convolution(width, outside, *shape))  # type: ignore[arg-type]
                split = name[-1] in "ab"
                width, ends = (width, ends + outside) if split else (outside, 0)
            self.width += ends or width

    def forward(self, x: Tensor) -> Tensor:
        """(b, inside, h, w) -> (b, width, h', w')."""
        out = []
        for path in self.paths:
            h = self.pooled(x) if not path or path[0][0] == "branch_pool" else x
            ends = []
            for name, *_ in path:
                y = self.get_submodule(name)(h)
                if name[-1] in "ab":
                    ends.append(y)
                else:
                    h = y
            out += ends or [h]
        return torch.cat(out, 1)

    def pooled(self, x: Tensor) -> Tensor:
        """The block's 3 x 3 pool."""
        if self.pool == "mean":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else F.max_pool2d(x, 3, 2)


class Inception(Frozen):
    """Pictures to the 2048 numbers of the last average pool, frozen, in eval mode."""

    def __init__(self):
        super().__init__()
        width = 3
        for name, outside, *shape in STEM:
            self.add_module(name, Convolution(width, outside, *shape))  # type: ignore[arg-type]
            width = outside
        for name, pool, paths in BLOCKS:
            block = Mixed(width, pool, paths)
            self.add_module(name, block)
            width = block.width
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """images (b, 3, h, w) float in [0, 1], rounded to bytes -> (b, 2048)."""
        x = (resize((images.float() * 255).round()) - 128) / 128
        for name, *_ in STEM:
            x = self.get_submodule(name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        for name, *_ in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resize(images: Tensor, side: int = SIDE) -> Tensor:
    """TensorFlow 1's bilinear resize to (b, c, side, side): pixel i reads at i h / side, and past the edge the edge."""
    for dim in (2, 3):
        size = images.shape[dim]
        at = torch.arange(side, dtype=torch.float64, device="cpu") * size / side  # MPS has no float64
        part = (at - at.floor()).to(images).reshape((-1, 1) if dim == 2 else (-1,))
        low = at.long().to(images.device)
        first, second = images.index_select(dim, low), images.index_select(dim, (low + 1).clamp_max(size - 1))
        images = first + (second - first) * part
    return images


def inception(file: str | Path) -> Extractor:
    """FID's Inception from a file. Raises TiltingError naming the file and the first key that is missing or wrong."""
    state, net = read_state(Path(file), "Inception"), Inception()
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
        elif key not in state:
            raise TiltingError(f"{str(file)!r} lacks {key!r}; wanted is {WANTED}")
        elif state[key].shape != value.shape:
            raise TiltingError(f"{key!r} of {str(file)!r} has shape {tuple(state[key].shape)}; wanted is {WANTED}")
    net.load_state_dict({key: state[key] for key in net.state_dict()})
    return Extractor(f"Inception-v3 2015-12-05 ({FEATURES} features)", net)
