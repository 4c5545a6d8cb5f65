"""Labelled pictures as triplets (c, x, y), and their training batches, for classifier-free fine-tuning.

A table gives the labels it has; two tables may have a label each and share no picture ("no label" is learnt of the other).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tilting.conditioning.cfree import Triplets, batch_of
from tilting.conditioning.classifiers import Classifier
from tilting.conditioning.dataset import read_tables
from tilting.conditioning.fit import schema_of
from tilting.conditioning.pictures import encode_files
from tilting.features.schema import Schema
from tilting.models.labels import Augmented
from tilting.objectives.batch import TrainBatch
from tilting.training.batches import Counts
from tilting.training.processes import Engine
from tilting.types import Prediction, TiltingError, Time

if TYPE_CHECKING:
    from tilting.conditioning.dataset import Dataset
    from tilting.models.pipeline import Pipeline


@dataclass(frozen=True)
class Labelled:
    """Labelled latents.

    Attributes:
        triplets: with labels as an embedding takes them.
        schemas: of the labels.
    """

    triplets: Triplets
    schemas: tuple[Schema, ...]


Data = str | Path | Sequence[str | Path] | Labelled
"""Tables of labelled pictures, or what was read of them."""


def read_labelled(model: Pipeline, data: Data, labels: Sequence[str] = (), classifiers: Sequence[Classifier] = ()) -> Labelled:
    """Tables, or what was read of them, as labelled latents of a model. Raises TiltingError."""
    if isinstance(data, Labelled):
        return data
    places = [str(data)] if isinstance(data, str | Path) else [str(one) for one in data]
    return labelled(model, read_tables(places, labels), [c.schema for c in classifiers])


def labelled(model: Pipeline, tables: Sequence[Dataset], known: Sequence[Schema] = (), tick: Any = None) -> Labelled:
    """Encode the pictures of tables.

    Args:
        model: whose latents they become.
        tables: from `tilting.conditioning.dataset.read_tables`, no label in two of them.
        known: schemas of classifiers of some of the labels, which say the order of classes and the unit of numbers.
        tick: called with how many pictures were encoded.

    Raises:
        TiltingError: a label whose classifier knows other values, or a classifier of no label here.
    """
    latents, prompts, schemas = [], [], {}
    found: dict[str, list[Tensor]] = {column.name: [] for table in tables for column in table.columns}
    theirs = {schema.label: schema for schema in known}
    for schema in known:
        if schema.label not in found:
            raise TiltingError(f"the classifier tells {schema.label!r}, and the data have only {', '.join(found)}")
    for table in tables:
        paths = [record.path for record in table.records]
        latents.append(encode_files(model, paths, tick or (lambda n: None)).latents)
        prompts += [record.prompt or "" for record in table.records]
        for column in table.columns:
            values = [table.records[i].labels[column.name] for i in table.known(column)]
            y = torch.tensor([column.classes.index(v) if column.classes else v for v in values], dtype=torch.float64)
            schemas[column.name] = _agreed(theirs.get(column.name), schema_of(column.name, column.classes, y))
        for name, parts in found.items():
            if name in {column.name for column in table.columns}:
                parts.append(_codes(schemas[name], [record.labels[name] for record in table.records]))
            else:
                parts.append(torch.full((len(paths),), torch.nan))
    labels = {name: torch.cat(parts) for name, parts in found.items()}
    return Labelled(Triplets(torch.cat(latents), labels, prompts), tuple(schemas[name] for name in found))


def _agreed(theirs: Schema | None, mine: Schema) -> Schema:
    """The schema of a classifier, if it knows what the data say. Raises TiltingError if not."""
    if theirs is None:
        return mine
    if theirs.kind != mine.kind or not set(mine.classes) <= set(theirs.classes):
        said = ", ".join(theirs.classes) or "a number"
        raise TiltingError(f"the classifier of {mine.label!r} knows {said}, the data {', '.join(mine.classes) or 'a number'}")
    return theirs


def _codes(schema: Schema, values: Sequence[str | float | None]) -> Tensor:
    """(n,) labels as an embedding takes them: indices of classes, or standardised numbers; NaN where there is none."""
    targets = torch.tensor([torch.nan if v is None else schema.target(v) for v in values], dtype=torch.float64)
    return (targets if schema.kind == "classes" else (targets - schema.shift) / schema.scale).float()


@dataclass
class TripletBatches:
    """(training step, memory) -> the batch of that step, as `tilting.conditioning.batches.ControlBatches` for CTRL.

    Attributes:
        augmented: what is trained.
        data: triplets.
        schemas: of their labels.
        classifiers: by label: what can look at images afterwards; nothing is trained by them.
        batch: triplets of a step, over all processes.
        dropout: the share that is trained as "no label".
        seed: of the run.
        engine: this process, which has a slice of every batch.
        clean: latents of the whole batch that is on.
    """

    augmented: Augmented
    data: Triplets
    schemas: Sequence[Schema]
    classifiers: Mapping[str, Any]
    batch: int
    dropout: float = 0.1
    seed: int = 0
    engine: Engine = field(default_factory=Engine)
    clean: Tensor = field(default_factory=lambda: torch.zeros(0))
    counts: Counts = field(default_factory=Counts)
    trouble: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    @property
    def prompts(self) -> list[str]:
        """All different ones."""
        return list(dict.fromkeys(self.data.prompts))

    def __call__(self, step: int, memory: dict[str, Any]) -> TrainBatch:
        engine, asked = self.engine, (self.batch, self.dropout, self.seed, step)
        batch, self.clean = batch_of(self.augmented, self.data, *asked, engine.index, engine.count, engine.context)
        self.counts.images += len(batch.who)
        counts, network = self.counts, batch.plain

        def counted(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            counts.evaluations += len(x)
            return network(x, t, rows)

        return replace(batch, plain=counted)

    def of(self, batch: TrainBatch) -> Tensor:
        """Clean latents of a batch's images."""
        return batch.mine(self.clean)
