"""CTRL from Python, in memory: fit a classifier to labelled images, draw with controls. (Training: `controlling`.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.columns import Column
from tilting.conditioning.dataset import is_held_out
from tilting.conditioning.fit import Options, begin, epochs, finish, schema_of
from tilting.conditioning.networks import build_network, inputs_of
from tilting.experiments.condition.fit_metrics import calibrated
from tilting.experiments.condition.notes import note, sum_up
from tilting.experiments.generate import Counts, Drawn, Result, draw, identities, plan, records_of, summarise
from tilting.features.fitted import FittedClassifier
from tilting.features.images import check_images
from tilting.models.control_file import Control
from tilting.models.control_kl import PathKl
from tilting.models.control_spec import parse_labels
from tilting.models.labels import Controlled, together
from tilting.presets import Preset
from tilting.types import Reward, TiltingError


class _Images:
    """Images in memory as `tilting.conditioning.images.Pictures` has them."""

    def __init__(self, images: Tensor):
        self.images, self.paths = images, [f"image {i}" for i in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return self.images[list(rows)]


@dataclass(frozen=True)
class FittedLabel:
    """What `condition_fit` returns.

    Attributes:
        classifier: calibrated, frozen; `tilting.features.fitted.save_classifier` writes it.
        metrics: what metrics.json of `tilting condition fit` holds: accuracy, macro F1, confusion, ECE before and after.
    """

    classifier: FittedClassifier
    metrics: dict[str, Any]


def condition_fit(
    images: Tensor, labels: Sequence[str | float], label: str = "label", classes: Sequence[str] | None = None,
    kind: str = "cnn", widths: Sequence[int] = (), embedder: str | None = None, options: Options | None = None,
    seed: int = 0,
) -> FittedLabel:  # fmt: skip
    """Fit and calibrate p(y | x) on images in memory; a fifth is held out, by seed.

    Args:
        images: (n, 3, h, w) float in [0, 1].
        labels: n names of classes, or numbers.
        label: its name.
        classes: names in order; default those there are, in order of the alphabet. Without them and of floats y is a number.
        kind, widths, embedder: of the network; see `tilting.conditioning.networks.build_network`.
        options: epochs, batches, rate.
        seed: of the split, and of the fit unless ``options`` say otherwise.

    Raises:
        TiltingError: images and labels that do not match, or too few.
    """
    check_images(images)
    if len(labels) != len(images) or len(images) < 5:
        raise TiltingError(f"{len(images)} images and {len(labels)} labels: give one of each, and at least five")
    continuous = classes is None and all(isinstance(v, float) for v in labels)
    names = () if continuous else tuple(str(c) for c in (classes or sorted({str(v) for v in labels})))
    unknown = [str(v) for v in labels if names and str(v) not in names]
    if unknown:
        raise TiltingError(f"the label {label!r} has no class {unknown[0]!r}, only {', '.join(names)}")
    y = torch.tensor([names.index(str(v)) if names else float(v) for v in labels], dtype=torch.float64)
    held = [i for i in range(len(images)) if is_held_out(seed, f"image {i}")]
    learn = [i for i in range(len(images)) if i not in set(held)]
    missing = [name for k, name in enumerate(names) if not (y[learn] == k).any()]
    if not learn or not held or missing:
        what = f"none of the class {missing[0]!r} is left to learn from" if missing else "no fifth can be held out"
        raise TiltingError(f"{len(images)} images are too few with seed {seed}: {what}")
    options = options or Options(seed=seed)
    schema = schema_of(label, names, y[learn])
    net = build_network(kind, schema.outputs, options.seed, label, widths, embedder)
    pictures: Any = _Images(images)
    inputs = inputs_of(net, pictures)
    fit = begin(net, schema, options)
    for _ in epochs(fit, inputs, y, learn, held, options):
        pass
    classifier, outputs = finish(fit, inputs, held)
    column = Column(label, schema.kind, names)
    classifier, metrics, _ = calibrated(classifier, outputs, y[held], column)
    return FittedLabel(classifier, metrics | {"records": {"learn": len(learn), "held_out": len(held)}, "epochs": fit.epoch})


def compose(controls: Control | Sequence[Control], labels: Mapping[str, str | float], strength: float = 1.0) -> Controlled:
    """One or several controls with labels fixed, as a model to draw with.

    Args:
        controls: of one model; each must be asked for a label.
        labels: label -> the name of a class, or a number in the label's unit.
        strength: γ2 of all of them.

    Raises:
        TiltingError: a label or class that none knows, or one that two know.
    """
    given = [controls] if isinstance(controls, Control) else list(controls)
    shared = parse_labels([f"{k}={v}" for k, v in labels.items()], {str(i): c.info for i, c in enumerate(given)})
    return together(*(c.at(strength, **shared[str(i)]) for i, c in enumerate(given)))


def condition_sample(
    controls: Control | Sequence[Control], prompts: str | Sequence[str], labels: Mapping[str, str | float],
    strength: float = 1.0, reward: Reward | None = None, method: Preset | None = None, steps: int | None = None,
    cfg: float | None = None, eta: float | None = None, seed: int = 0, images: int = 1, negative: str = "",
    batch_size: int = 16,
) -> Result:  # fmt: skip
    """Draw images that obey labels; any method and reward of `tilting.generate` on top.

    Args:
        controls, labels, strength: see `compose`.
        prompts, reward, method, steps, cfg, eta, seed, images, negative, batch_size: see `tilting.generate`.

    Returns:
        Images and a manifest, whose records and summary also have the path KL and what the classifiers say.

    Raises:
        TiltingError: for settings that cannot work.
    """
    given = [controls] if isinstance(controls, Control) else list(controls)
    words = [prompts] if isinstance(prompts, str) else list(prompts)
    model = compose(given, labels, strength)
    tests = {name: test for c in given for name, test in c.tests(labels).items()}
    request = plan(model, identities(words, seed, images), method, reward, steps, cfg, eta, negative, batch_size)
    kl = PathKl(model.schedule.grid(request.steps), request.eta)
    model.watch = kl
    pictures: list[Tensor] = []
    records: list[dict[str, Any]] = []
    counts = Counts()
    for event in draw(model, request, reward):
        if isinstance(event, Drawn):
            pictures.append(event.images)
            records += note(records_of(event), event.images, kl, tests)
            counts += event.counts
    return Result(torch.cat(pictures), {"images": records, "summary": {**summarise(records, counts), **sum_up(records)}})
