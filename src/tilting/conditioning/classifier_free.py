"""Classifier-free fine-tuning as a run: CTRL's augmented model and control, trained on triplets (c, x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tilting.conditioning.cfree import ClassifierFree
from tilting.conditioning.classifiers import Classifier
from tilting.conditioning.dataset import read_tables
from tilting.conditioning.trainer import Controlling, ControlSettings, attach_labels, running
from tilting.conditioning.triplets import Labelled, TripletBatches, labelled
from tilting.training.processes import Engine
from tilting.types import TiltingError

if TYPE_CHECKING:
    from tilting.models.stable_diffusion import StableDiffusion

Data = str | Path | Sequence[str | Path] | Labelled
"""Tables of labelled pictures, or what was read of them."""


def free_controlling(
    model: StableDiffusion, data: Labelled, classifiers: Sequence[Classifier] = (), settings: ControlSettings | None = None,
    engine: Engine | None = None,
) -> Controlling:  # fmt: skip
    """Attach a LoRA and an embedding to a model and put together what trains them on triplets.

    Args:
        model: what is trained.
        data: labelled latents of it.
        classifiers: kept beside the control, to look at what it draws.
        settings: of which place, rank, parts, rates, batches, label_dropout and seed have a use.
        engine: the process.

    Raises:
        TiltingError: for settings that cannot work.
    """
    s, engine = settings or ControlSettings(objective="classifier-free"), engine or Engine.of(model)
    if not 0 <= s.label_dropout < 1:
        raise TiltingError(f"label_dropout must be at least 0 and below 1, not {s.label_dropout:g}: no label would be learnt")
    around, parameters, augmented = attach_labels(model, data.schemas, s, engine)
    batches = TripletBatches(
        augmented, data.triplets, data.schemas, {c.schema.label: c for c in classifiers}, s.batch_size, s.label_dropout, s.seed,
        model.default_cfg if s.cfg is None else s.cfg, engine.part, engine.context,
    )  # fmt: skip
    return running(model, ClassifierFree(batches.of, model.schedule.kind), batches, parameters, augmented, s, engine, around)


def read_labelled(
    model: StableDiffusion, data: Data, labels: Sequence[str] = (), classifiers: Sequence[Classifier] = ()
) -> Labelled:
    """Tables, or what was read of them, as labelled latents of a model. Raises TiltingError."""
    if isinstance(data, Labelled):
        return data
    places = [str(data)] if isinstance(data, str | Path) else [str(one) for one in data]
    return labelled(model, read_tables(places, labels), [c.schema for c in classifiers])
