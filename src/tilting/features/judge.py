"""The networks behind `pocket-judge` and the loading of its weights."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.disk import make_folder, write_atomically, write_tensors
from tilting.foreign import read_json, read_tensors


class Residual(nn.Module):
    """Two 3x3 convolutions with group norm, the first with a stride, and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inside), nn.GroupNorm(8, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        self.short = nn.Conv2d(inside, outside, 1) if stride > 1 or inside != outside else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + self.short(F.avg_pool2d(x, self.stride) if self.stride > 1 else x)


class JudgeNet(nn.Module):
    """A convolutional classifier of what a 64x64 picture shows: concept, style and background colour.

    Args:
        sizes: number of classes of each head, by name, such as ``{"concept": 444, "style": 3, "background": 12}``.
        widths: channels of its four stages; the first convolution halves the resolution, and so does each later stage.
    """

    def __init__(self, sizes: dict[str, int], widths: tuple[int, ...] = (32, 64, 128, 192)):
        super().__init__()
        self.config = {"sizes": sizes, "widths": list(widths)}
        self.stem = nn.Conv2d(3, widths[0], 5, 2, 2)
        stages = []
        for a, b in pairwise(widths):
            stages += [Residual(a, b, 2), Residual(b, b, 1)]
        self.body = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], size) for name, size in sizes.items()})

    def features(self, images: Tensor) -> Tensor:
        """(b, 2 * widths[-1]) mean and max over space of the last stage; images (b, 3, h, w) in [0, 1]."""
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
        h = F.silu(self.norm(self.body(self.stem(images * 2 - 1))))
        return torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (b, size) of every head; images (b, 3, h, w) in [0, 1]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def save_judge(net: JudgeNet, folder: Path) -> None:
    """Write config.json and fp16 model.safetensors."""
    make_folder(folder)
    write_atomically(folder / "config.json", (json.dumps(net.config, indent=1) + "\n").encode())
    write_tensors(folder / "model.safetensors", {k: v.half().cpu().contiguous() for k, v in net.state_dict().items()})


def load_judge(folder: Path) -> JudgeNet:
    """Read what `save_judge` wrote, in float32 and eval mode."""
    config = read_json(folder / "config.json")
    net = JudgeNet(config["sizes"], tuple(config["widths"]))
    net.load_state_dict({k: v.float() for k, v in read_tensors(folder / "model.safetensors").items()})
    return net.eval().requires_grad_(False)
