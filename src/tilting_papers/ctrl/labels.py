"""Labels of the CTRL recipes: functions of a picture, cut into classes at quantiles of the base model's own images.

    y = #{k : score >= e_k},    e_k the quantile at q_k of the scores of the labelled data

so class 0 has the lowest scores and a score on an edge counts upwards, as Zhao et al. 2024 (App. D.2) have it. The function
that labels is the one that judges: accuracy is never what a classifier says of its own success.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from tilting.errors import TiltingError
from tilting.metrics.extract import read_batches
from tilting.rewards import jpeg
from tilting.runs.files import write_atomically

ORIGIN = "origin"
"""The column of tables that says which picture an altered copy is of."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


def compressibility(images: Tensor) -> Tensor:
    """-kB of the JPEG at quality 95, (n,), of images (n, 3, h, w) in [0, 1]."""
    return jpeg()(images, [""] * len(images)).double()


def brightness(images: Tensor) -> Tensor:
    """Mean luminance in per cent, (n,), of images (n, 3, h, w) in [0, 1]."""
    weights = images.new_tensor(LUMINANCE, dtype=torch.float64)
    return 100 * (images.double().mean((2, 3)) * weights).sum(1)


@dataclass(frozen=True)
class Label:
    """A label y of pictures.

    Attributes:
        name: of the label, its classifier and its column.
        score: images (n, 3, h, w) in [0, 1] -> (n,).
        quantiles: rising shares of the base model's images below each cut.
        unit: of the score.
        meaning: what the classes are, from the lowest score up, for the reader.
    """

    name: str
    score: Callable[[Tensor], Tensor]
    quantiles: tuple[float, ...]
    unit: str
    meaning: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names: "0", "1", ..."""
        return tuple(str(k) for k in range(len(self.quantiles) + 1))

    def read(self, files: Sequence[Path]) -> list[float]:
        """The score of every picture file."""
        return [float(v) for images in read_batches(files) for v in self.score(images)]


SIZE = Label("size", compressibility, (0.25, 0.6, 0.95), "\N{MINUS SIGN}kB", ("largest", "large", "small", "smallest"))
"""The paper's four classes of JPEG size; the smallest files are one picture in twenty."""


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


def joined(first: Labelled, *more: Labelled, table: Path) -> Labelled:
    """Labelled pictures with others of the same cuts."""
    parts = (first, *more)
    files, prompts, scores, classes, origins = (
        tuple(chain.from_iterable(columns))
        for columns in zip(*((p.files, p.prompts, p.scores, p.classes, p.origins or p.files) for p in parts), strict=True)
    )
    return Labelled(files, prompts, scores, classes, first.edges, table, origins)


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
