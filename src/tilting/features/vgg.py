"""VGG16's convolutions (Simonyan & Zisserman 2015), for style (Gatys et al. 2016) and LPIPS (Zhang et al. 2018).

The weights are torchvision's VGG16_Weights.IMAGENET1K_V1, ``vgg16-397923af.pth`` (read with weights_only) or the same keys
as safetensors; of its 528 MB the 59 MB of convolutions are used. torchvision publishes them without a licence of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.checkpoints import Frozen, read_state

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions per stage; a 2 x 2 max-pool follows each but the last."""
SMALLEST = 16
"""Minimum side; smaller images are resized to it, so that the last stage has at least one pixel."""
WANTED = "torchvision's vgg16-397923af.pth, or its keys features.0.weight ... as safetensors"


def conv_keys() -> list[tuple[str, int]]:
    """For every convolution in order, the name of its activation ("relu1_1") and its index in torchvision's ``features``."""
    out, number = [], 0
    for stage, depth in enumerate(DEPTHS, 1):
        out += [(f"relu{stage}_{i + 1}", number + 2 * i) for i in range(depth)]
        number += 2 * depth + 1
    return out


class Vgg16(Frozen):
    """The thirteen convolutions of VGG16 with their ReLUs, frozen, in eval mode.

    Args:
        widths: channels of the five stages; VGG16's own by default, narrower ones for tests.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 512)):
        super().__init__()
        self.widths = tuple(widths)
        self.convs = nn.ModuleDict()
        inside = 3
        for name, _ in conv_keys():
            outside = self.widths[int(name[4]) - 1]
            self.convs[name] = nn.Conv2d(inside, outside, 3, padding=1)
            inside = outside
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        self.freeze()

    def forward(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Activations of layers such as "relu1_2", each (b, c, h', w'), differentiable.

        Args:
            images: (b, 3, h, w) float in [0, 1]; normalised by ImageNet's mean and deviation here, at their own size but for
                sides below `SMALLEST`.
            layers: names, in the order of the network.
        """
        self.follow(images)
        size = [max(side, SMALLEST) for side in images.shape[2:]]
        x = images.to(self.mean.dtype)
        if size != list(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x, activations = (x - self.mean) / self.std, []
        for name, conv in self.convs.items():
            if name[4] != "1" and name.endswith("_1"):
                x = F.max_pool2d(x, 2)
            x = F.relu(conv(x))
            if name in layers:
                activations.append(x)
            if len(activations) == len(layers):
                break
        return activations


def load_vgg16(file: str | Path) -> Vgg16:
    """Read the convolutions of a VGG16; the widths of its stages are taken from the file.

    Raises:
        TiltingError: naming the file, and the first key that is missing or has the wrong shape.
    """
    state, taken = read_state(Path(file), "VGG16"), {}
    widths: list[int] = []
    for name, number in conv_keys():
        for part in ("weight", "bias"):
            key = f"features.{number}.{part}"
            if key not in state:
                raise TiltingError(f"{str(file)!r} lacks {key!r}; wanted is {WANTED}")
            taken[f"convs.{name}.{part}"] = state[key].float()
        if name.endswith("_1"):
            widths.append(len(state[f"features.{number}.weight"]))
    net = Vgg16(tuple(widths))
    for key, value in net.state_dict().items():
        if value.shape != taken[key].shape:
            number = dict(conv_keys())[re.sub(r"convs\.(.*)\..*", r"\1", key)]
            raise TiltingError(f"'features.{number}' of {str(file)!r} has shape {tuple(taken[key].shape)}; wanted is {WANTED}")
    net.load_state_dict(taken)
    return net
