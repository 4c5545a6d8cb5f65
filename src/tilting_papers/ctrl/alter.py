"""Altered copies of labelled pictures, for a label that is a function of the picture and so can be asked of any.

A classifier of the base model's own pictures learns whatever goes with the label there (a colour of the background, say), and
a control that climbs it finds just that. Copies that are blurred, mixed, recoloured, and textured at random break such ties:

    x' = clip( C (m + s (b - m)) + o + a·texture + c·noise ),   b = x mixed with its blur, or with another picture,  m its mean

with C a random mixture of the colour channels.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tilting.metrics.extract import read_batches
from tilting.runs.files import write_atomically
from tilting_papers.ctrl.labels import Label, Labelled, classes_of, joined, write_labels

BLUR, TEXTURE = 5, 16
"""Width of the box that blurs, and rows and columns of the texture before it is stretched, in pixels."""


def alter(images: Tensor, gen: torch.Generator) -> Tensor:
    """Altered copies (n, 3, h, w) in [0, 1], rounded to 8 bits, of images of that shape and range."""
    n = len(images)

    def chance(p: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=gen) < p).to(images)

    def amount(power: float = 1.0) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=gen) ** power

    half = BLUR // 2
    blurred = F.avg_pool2d(F.pad(images, (half,) * 4, mode="replicate"), BLUR, 1)
    out = images.lerp(blurred, chance(0.5) * amount(2))
    out = out.lerp(out[torch.randperm(n, generator=gen)], chance(0.3) * 0.5 * amount())
    mean = out.mean((2, 3), keepdim=True)
    out = mean + (0.3 + 1.2 * amount()) * (out - mean)
    mixing = torch.eye(3) + 0.5 * chance(0.5)[:, :, 0] * torch.randn(n, 3, 3, generator=gen)
    out = torch.einsum("nij,njhw->nihw", mixing, out - 0.5) + 0.5
    out = out + 0.4 * chance(0.5) * (torch.rand(n, 3, 1, 1, generator=gen) - 0.5)
    texture = torch.randn(n, 3, TEXTURE, TEXTURE, generator=gen)
    out = out + 0.15 * amount(2) * F.interpolate(texture, size=images.shape[2:], mode="bilinear")
    out = out + 0.08 * amount(3) * torch.randn(images.shape, generator=gen)
    out = torch.where(chance(0.5) > 0, out.flip(3), out)
    return (255 * out.clamp(0, 1)).round() / 255


def with_copies(label: Label, data: Labelled, copies: int, seed: int) -> Labelled:
    """Labelled pictures with so many altered copies of each, in files beside their table, and the table of them all."""
    place = data.table.parent / f"{data.table.stem}-altered"
    place.mkdir(exist_ok=True)
    files: list[Path] = []
    for k in range(copies):
        gen = torch.Generator().manual_seed(10_000 * seed + k)
        at = 0
        for images in read_batches(data.files):
            for image in alter(images, gen):
                files.append(place / f"{seed}-{k}-{at:05d}.png")
                if not files[-1].is_file():
                    write_atomically(files[-1], _png(image))
                at += 1
    scores, table = label.read(files), data.table.with_name(f"{place.name}.csv")
    classes = tuple(classes_of(scores, data.edges))
    altered = Labelled(tuple(files), data.prompts * copies, tuple(scores), classes, data.edges, table, data.files * copies)
    both = joined(data, altered, table=table)
    write_labels(both, label.name)
    return both


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy()).save(buffer, "png")
    return buffer.getvalue()
