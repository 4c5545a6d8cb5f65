"""Measurements of images with labels: the path KL to the pre-trained model, and classifier probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.noisy import OfPictures
from tilting.features.fitted import FittedClassifier, log_prob
from tilting.models.control_kl import PathKl
from tilting.reports.grid import obeyed
from tilting.types import Prediction, Time

Test = FittedClassifier | OfPictures
Tests = Mapping[str, tuple[Test, str | float]]
"""Label -> (classifier, what is asked)."""
MEANS = ("log_prob", "obeys", "mean")
FAR = 0.5
"""Nats of the judge by which pictures may fall: at more the model's own are recognised 1.6 times as surely."""
OBEYED = 0.7
"""The share of pictures below which a label is not obeyed."""


@dataclass
class Watcher:
    """A watcher of predictions that can be given before the grid is known, which a path KL is of.

    Attributes:
        kl: what sums up.
    """

    kl: PathKl | None = None

    def __call__(self, mine: Prediction, pretrained: Prediction, t: Time, rows: Tensor) -> None:
        if self.kl is not None:
            self.kl(mine, pretrained, t, rows)


def read_images(classifier: Test, asked: str | float, images: Tensor) -> list[dict[str, Any]]:
    """What a classifier says of images (b, 3, h, w) in [0, 1].

    Returns:
        For each ``log_prob`` of what was asked in nats, and of classes the likeliest (``read``) and whether it is the one asked
        for (``obeys``), of a number the ``mean`` that is seen.
    """
    schema = classifier.schema
    with torch.no_grad():
        outputs = classifier(images).cpu().double()
    y = schema.target(asked)
    values = log_prob(schema, outputs, torch.full((len(images),), y, dtype=torch.float64)).tolist()
    if schema.kind == "classes":
        guesses = outputs.argmax(1).tolist()
        return [{"log_prob": v, "read": schema.classes[g], "obeys": g == y} for v, g in zip(values, guesses, strict=True)]
    means = (schema.shift + schema.scale * outputs[:, 0]).tolist()
    return [{"log_prob": v, "mean": m} for v, m in zip(values, means, strict=True)]


def with_readings(records: list[dict[str, Any]], images: Tensor, kl: PathKl | None, tests: Tests) -> list[dict[str, Any]]:
    """The entries of a group's images with ``kl`` (None at eta 0) and ``labels``."""
    paths = None if kl is None else kl.take(len(records))
    read = [{**r, "kl": None if paths is None else float(paths[i]), "labels": {}} for i, r in enumerate(records)]
    for label, (classifier, asked) in tests.items():
        for record, reading in zip(read, read_images(classifier, asked, images), strict=True):
            record["labels"][label] = {"asked": asked, **reading}
    return read


def averaged(readings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of what `read_images` gives."""
    return {key: sum(float(one[key]) for one in readings) / len(readings) for key in MEANS if key in readings[0]}


def mean_readings(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over images: ``kl_mean``, and of each label log p and the share that obeys."""
    kls = [r["kl"] for r in records if r["kl"] is not None]
    labels: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for r in records for name in r["labels"]):
        mine = [r["labels"][name] for r in records]
        labels[name] = {"asked": mine[0]["asked"], **averaged(mine)}
    return {"kl_mean": sum(kls) / len(kls) if kls else None, "labels": labels}


def obedience(summary: Mapping[str, Any], trained: bool = True) -> str:
    """What became of images, in a sentence: how far they obey, what that did to the pictures, and what to do about it.

    Args:
        summary: ``images``, their count, what `mean_readings` gives, and where there is a judge ``base``, what it says of the
            same number of the pre-trained model's ({"judge", "own"}), and of those ``images`` what is read of ``labels``.
        trained: by a control; a classifier that guides is not trained longer.
    """
    base, said = summary.get("base"), obeyed(summary, summary.get("images"))
    for k, read in enumerate(base.get("labels", {}).values() if base else ()):
        assert base is not None
        plain = f"{round(read['obeys'] * base['images'])} of {base['images']}" if "obeys" in read else f"{read['mean']:.4g}"
        said[k] += f" (base {plain})"
    if summary["kl_mean"] is not None:
        said.append(f"KL {summary['kl_mean']:.4g} nats an image")
    shares = [read["obeys"] for read in summary["labels"].values() if "obeys" in read]
    weak, far = bool(shares) and min(shares) < OBEYED, base is not None and base["judge"] - base["own"] > FAR
    told = ", ".join(said) or "no classifier is there to say whether it was obeyed"
    if base is not None:
        where = f"{'far from' if far else 'near'} the model's own"
        told += f"; pictures are {where} (judge {base['own']:.2f}, base {base['judge']:.2f})"
    if not weak and not far:
        return told
    less, more = "try a smaller --strength", "try a larger --strength"
    if trained:
        less, more = f"{less}, or train with a smaller --kl-target", f"{more}, or train longer"
    both = "train longer" if trained else "train a control (tilting condition train)"
    return f"{told}: {both if weak and far else less if far else more}"
