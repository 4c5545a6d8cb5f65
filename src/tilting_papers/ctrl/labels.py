"""Labelled pictures of the CTRL recipes: functions of a picture, cut into classes at quantiles of the base model's own images.

    y = #{k : score >= e_k},    e_k the quantile at q_k of the scores of the labelled data

so class 0 has the lowest scores and a score on an edge counts upwards, as Zhao et al. 2024 (App. D.2) have it. The function
that labels is the one that judges: accuracy is never what a classifier says of its own success.

A classifier of the base model's own pictures learns whatever goes with the label there (a colour of the background, say), and
a control that climbs it finds just that. A function can be asked of any picture, so of altered copies too, which are blurred,
mixed, recoloured and textured at random to break such ties:

    x' = clip( C (m + s (b - m)) + o + a·texture + c·noise ),   b = x mixed with its blur, or with another picture,  m its mean

with C a random mixture of the colour channels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.metrics.extract import read_batches
from tilting.rewards import jpeg
from tilting_papers.ctrl.study import Label

ORIGIN = "origin"
"""The column of tables that says which picture an altered copy is of."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""
BLUR, TEXTURE = 5, 16
"""Width of the box that blurs, and rows and columns of the texture before it is stretched, in pixels."""


def compressibility(images: Tensor) -> Tensor:
    """-kB of the JPEG at quality 95, (n,), of images (n, 3, h, w) in [0, 1]."""
    return jpeg()(images, [""] * len(images)).double()


def brightness(images: Tensor) -> Tensor:
    """Mean luminance in per cent, (n,), of images (n, 3, h, w) in [0, 1]."""
    weights = images.new_tensor(LUMINANCE, dtype=torch.float64)
    return 100 * (images.double().mean((2, 3)) * weights).sum(1)


def read_scores(label: Label, files: Sequence[Path]) -> list[float]:
    """The score of every picture file."""
    return [float(value) for images in read_batches(files) for value in label.score(images)]


@dataclass(frozen=True)
class Labelled:
    """The labelled pictures of one label.

    Attributes:
        files, prompts, scores, classes: of each picture.
        edges: where the classes are cut.
        table: labels.csv.
        origins: the pictures that they were made from; none, where each is its own.
    """

    files: tuple[Path, ...]
    prompts: tuple[str, ...]
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    edges: tuple[float, ...]
    table: Path
    origins: tuple[Path, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Of the pictures and their labels."""
        sha = hashlib.sha256(self.table.read_bytes())
        for file in self.files:
            sha.update(file.read_bytes())
        return sha.hexdigest()[:16]

    def pictures(self) -> set[str]:
        """A digest of every picture file."""
        return {hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files}


def edges_of(scores: Sequence[float], quantiles: Sequence[float]) -> tuple[float, ...]:
    """Where the classes are cut. Raises TiltingError: too few different scores to tell them apart."""
    edges = torch.quantile(torch.tensor(scores, dtype=torch.float64), torch.tensor(quantiles, dtype=torch.float64)).tolist()
    if len(set(classes_of(scores, edges))) <= len(edges):
        raise TiltingError(f"{len(scores)} pictures have too few different scores to be cut into {len(edges) + 1} classes")
    return tuple(edges)


def classes_of(scores: Sequence[float], edges: Sequence[float]) -> list[int]:
    """y of every score."""
    at = torch.tensor(edges, dtype=torch.float64)
    return torch.searchsorted(at, torch.tensor(scores, dtype=torch.float64), right=True).tolist()


def label_pictures(
    label: Label, files: Sequence[Path], prompts: Sequence[str], edges: tuple[float, ...], table: Path
) -> Labelled:
    """Picture files by what the function says of them."""
    scores = read_scores(label, files)
    return Labelled(tuple(files), tuple(prompts), tuple(scores), tuple(classes_of(scores, edges)), edges, table)


def joined(label: Label, first: Labelled, second: Labelled, table: Path) -> Labelled:
    """Labelled pictures with others of the same cuts, and the table of them all, which is written."""
    parts = ((p.files, p.prompts, p.scores, p.classes, p.origins or p.files) for p in (first, second))
    files, prompts, scores, classes, origins = (tuple(chain.from_iterable(columns)) for columns in zip(*parts, strict=True))
    both = Labelled(files, prompts, scores, classes, first.edges, table, origins)
    write_labels(both, label.name)
    return both


def write_labels(data: Labelled, name: str) -> None:
    """The table of labelled pictures, as `tilting condition fit --data` reads it with ``--group origin``."""

    def relative(file: Path) -> str:
        return Path(os.path.relpath(file, data.table.parent)).as_posix()

    lines = io.StringIO()
    table = csv.writer(lines)
    table.writerow(["file", name, "score", "prompt", ORIGIN])
    origins = data.origins or data.files
    for file, y, score, prompt, origin in zip(data.files, data.classes, data.scores, data.prompts, origins, strict=True):
        table.writerow([relative(file), y, repr(score), prompt, relative(origin)])
    data.table.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(data.table, lines.getvalue().encode())


def altered(images: Tensor, gen: torch.Generator) -> Tensor:
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
    folder = data.table.parent / f"{data.table.stem}-altered"
    folder.mkdir(exist_ok=True)
    files: list[Path] = []
    for k in range(copies):
        gen = torch.Generator().manual_seed(10_000 * seed + k)
        pictures = (image for images in read_batches(data.files) for image in altered(images, gen))
        for at, image in enumerate(pictures):
            files.append(folder / f"{seed}-{k}-{at:05d}.png")
            if not files[-1].is_file():
                write_atomically(files[-1], _png(image))
    table = data.table.with_name(f"{folder.name}.csv")
    others = label_pictures(label, files, data.prompts * copies, data.edges, table)
    return joined(label, data, replace(others, origins=data.files * copies), table)


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy()).save(buffer, "png")
    return buffer.getvalue()
