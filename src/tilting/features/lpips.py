"""LPIPS with VGG16 (Zhang et al. 2018), a small own implementation.

    d(a, b) = Σ_l mean_places Σ_c w_lc (â_lc - b̂_lc)²,   â = activations / their norm over channels

at relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3. The w are the published linear weights (``vgg.pth`` of version 0.1, keys
lin0.model.1.weight ..., BSD 2-clause), or all 1, which the authors call the baseline; at their input scaling, ImageNet's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tilting.errors import TiltingError
from tilting.features.checkpoints import read_state
from tilting.features.images import check_images
from tilting.features.pixels import distances
from tilting.features.vgg import Vgg16, load_vgg16

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
WANTED = "LPIPS' vgg.pth with the keys lin0.model.1.weight to lin4.model.1.weight"


class Lpips(nn.Module):
    """The distance, as a Euclidean one: `maps` flattens an image to vectors whose squared distances add up to d.

    Args:
        vgg: frozen.
        weights: per layer, the w (channels,), at least 0; None for ones.
    """

    def __init__(self, vgg: Vgg16, weights: list[Tensor] | None = None):
        super().__init__()
        self.vgg = vgg
        for i, width in enumerate(vgg.widths):
            self.register_buffer(f"weight{i}", torch.ones(width) if weights is None else weights[i].clone())

    def maps(self, images: Tensor) -> list[Tensor]:
        """Per layer, (b, n) vectors of images (b, 3, h, w) in [0, 1], differentiable; equal sizes give equal n. Those of videos
        (b, frames, 3, h, w) are of their frames together, so that d is the mean over frames."""
        if images.ndim == 5:
            each = self.maps(images.flatten(0, 1))
            return [m.unflatten(0, images.shape[:2]).flatten(1) / images.shape[1] ** 0.5 for m in each]
        check_images(images)
        out = []
        for i, x in enumerate(self.vgg(images, LAYERS)):
            x = x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt()
            root = (self.get_buffer(f"weight{i}").to(x) / (x.shape[2] * x.shape[3])).sqrt()
            out.append((x * root[:, None, None]).flatten(1))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """d (b,) of images with images, (b, 3, h, w) each."""
        return torch.stack([(x - y).square().sum(1) for x, y in zip(self.maps(a), self.maps(b), strict=True)]).sum(0)

    def table(self, images: Tensor, others: Tensor | None = None) -> Tensor:
        """d (a, b) of each of images (a, 3, h, w) with each of others (b, 3, h, w), themselves by default; differentiable.

        Every image goes through the network once.
        """
        mine = self.maps(images)
        theirs = mine if others is None else self.maps(others)
        return torch.stack([distances(x, y).square() for x, y in zip(mine, theirs, strict=True)]).sum(0)


def load_lpips(vgg: str | Path, weights: str | Path | None = None) -> Lpips:
    """LPIPS from files.

    Args:
        vgg: what `load_vgg16` reads.
        weights: LPIPS' own, .pth or .safetensors; None for all 1.

    Raises:
        TiltingError: naming the file and what is wrong with it.
    """
    net = load_vgg16(vgg)
    if weights is None:
        return Lpips(net)
    state, rows = read_state(Path(weights), "LPIPS"), []
    for i, width in enumerate(net.widths):
        row = state.get(f"lin{i}.model.1.weight")
        if row is None or tuple(row.shape) != (1, width, 1, 1) or not bool((row >= 0).all()):
            raise TiltingError(f"{str(weights)!r} has no 'lin{i}.model.1.weight' of {width} weights >= 0; wanted is {WANTED}")
        rows.append(row.float().flatten())
    return Lpips(net, rows)
