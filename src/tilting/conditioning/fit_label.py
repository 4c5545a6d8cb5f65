"""Fits and calibrates the classifier of one label, and evaluates it on held-out data. No files, no printing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning import calibrate
from tilting.conditioning.fit import Epoch, Fit, begin, ended, epochs, schema_of
from tilting.conditioning.networks import CNN_SIZE, Inputs, build_network
from tilting.conditioning.noisy import NoisyClassifier, feed
from tilting.conditioning.pictures import Encoded
from tilting.conditioning.table import Column
from tilting.config.condition_fit import AUTO, TRIED, FitConfig
from tilting.features.fitted import FittedClassifier, log_prob
from tilting.features.schema import Schema

Source = Encoded | Callable[[Any], Inputs]
"""What networks learn from: latents, or what the learnt part of a network is fed with."""


@dataclass(frozen=True, repr=False)
class FittedLabel:
    """What `tilting.condition_fit` returns.

    Attributes:
        classifier: calibrated, frozen; `tilting.features.fitted.save_classifier` writes it.
        metrics: what metrics.json of `tilting condition fit` holds: accuracy, macro F1, confusion, ECE before and after.
        outputs: (n, outputs) of the held-out records.
        y: (n,) indices of their classes, or their numbers.
    """

    classifier: Any
    metrics: dict[str, Any]
    outputs: Tensor
    y: Tensor

    def __repr__(self) -> str:
        return f"FittedLabel({self.classifier!r}, {scored(self.metrics)})"


def fit_label(
    config: FitConfig,
    column: Column,
    y: Tensor,
    learn: Sequence[int],
    held_out: Sequence[int],
    source: Source,
    device: torch.device | str = "cpu",
    restore: Callable[[Fit], object] = lambda fit: None,
    report: Callable[[Fit, Epoch], object] = lambda fit, epoch: None,
) -> FittedLabel:
    """Fit and calibrate p(y | x) of a label, or p(y | x_t, t) on latents.

    Args:
        config: the network and how it is fitted.
        column: the label.
        y: (n,) of all records: indices of classes, or numbers.
        learn, held_out: numbers of the records to learn from, and of those held out.
        source: of all records.
        device: of the fit.
        restore: is given the fit before its first epoch, and may put it where it stopped.
        report: is called after each epoch.
    """
    schema = schema_of(column.name, column.classes, y[list(learn)])
    net: Any
    if isinstance(source, Encoded):
        net, inputs, y, tested = feed(source.latents, y, schema, source.schedule, held_out, config.seed, *config.widths)
    else:
        size = CNN_SIZE if config.size is None else config.size
        net = build_network(config.kind, schema.outputs, config.seed, column.name, config.widths, config.embedder, size)
        inputs, tested = source(net), list(held_out)
    fit = begin(net, schema, config, device)
    restore(fit)
    for epoch in epochs(fit, inputs, y, learn, tested, config):
        report(fit, epoch)
    schema, outputs = ended(fit, inputs, tested)
    y = y[tested]
    schema, metrics = measured(schema, outputs, y, column)
    metrics |= {
        "network": config.kind,
        "records": {"learn": len(learn), "held_out": len(held_out)},
        "epochs": fit.epoch,
        "best_epoch": fit.best_epoch,
    }
    metrics["history"] = [{"epoch": e.epoch, "loss": e.loss, "held_out": e.held_out} for e in fit.history]
    if isinstance(source, Encoded):
        metrics["by_noise"] = by_noise(schema, outputs, y, inputs.copies.sigma.cpu())  # type: ignore[union-attr]
        made: Any = NoisyClassifier(net, schema, source.model)
    else:
        made = FittedClassifier(net, schema)
        sure = None if schema.kind == "gaussian" else (outputs / schema.temperature).softmax(-1).amax(1)
        chance = calibrate.gaussian_ece_by_chance(len(y)) if sure is None else calibrate.ece_by_chance(sure)
        metrics["ece"]["chance"] = chance  # not of noisy latents, where a record is looked at more than once
    return FittedLabel(made.eval().requires_grad_(False), metrics, outputs, y)


def by_likelihood(config: FitConfig, fitted: Callable[[FitConfig], FittedLabel]) -> FittedLabel:
    """The fit of a config; of kind "auto" that of the network under which what is held out is likeliest, with what each came
    to. All of them have seen it (`calibrate`), the one that is taken by so much more."""
    if config.kind != AUTO:
        return fitted(config)
    found = {kind: fitted(replace(config, kind=kind)) for kind in TRIED}
    tried = {kind: one.metrics["nll"]["after"] for kind, one in found.items()}
    best = found[min(tried, key=lambda kind: tried[kind])]
    return replace(best, metrics={**best.metrics, "tried": tried})


def epoch_told(shown: Any, fit: Fit, epoch: Epoch) -> None:
    """An epoch is over: a bar of them, and what it says."""
    shown.update(1)
    shown.set_postfix_str(f"held out {epoch.held_out:.4g}, best {epoch.best:.4g} nats", refresh=False)


def of_rows(source: Source, rows: Sequence[int]) -> Source:
    """The source of some of its records."""
    if isinstance(source, Encoded):
        return source._replace(latents=source.latents[list(rows)])

    def of(net: Any) -> Inputs:
        whole = source(net)
        return lambda some: whole([rows[i] for i in some])

    return of


def measured(schema: Schema, outputs: Tensor, y: Tensor, column: Column) -> tuple[Schema, dict[str, Any]]:
    """The temperature of a classifier, and what it is worth before and after it.

    Args:
        schema: of it, at temperature 1.
        outputs: (n, outputs) of the held-out records, on the CPU.
        y: (n,) indices of their classes, or their numbers.
        column: the label.

    Returns:
        The schema at its temperature, and numbers.
    """
    is_classes = schema.kind == "classes"
    gaps = torch.zeros(0) if is_classes else calibrate.gaps_of(schema, outputs, y)
    t = calibrate.temperature_of(schema, outputs, y)
    nll, ece, diagrams = {}, {}, {}
    for when, value in (("before", 1.0), ("after", t)):
        nll[when] = -float(log_prob(schema, outputs, y, value).mean())
        if is_classes:
            p = (outputs / value).softmax(-1)
            diagrams[when], ece[when] = calibrate.reliability(p, y.long()), calibrate.ece(p, y.long())
        else:
            scaled = gaps / value**0.5
            diagrams[when], ece[when] = calibrate.gaussian_reliability(scaled), calibrate.gaussian_ece(scaled)
    numbers: dict[str, Any] = {
        "label": column.name,
        "kind": column.kind,
        "classes": list(column.classes),
        "edges": list(column.edges),
        "temperature": t,
        "nll": nll,
        "ece": {**ece, "bins": calibrate.BINS},
        "reliability": {when: _listed(diagram) for when, diagram in diagrams.items()},
    }
    if is_classes:
        guesses = outputs.argmax(1)
        counts = calibrate.confusion(y, guesses, schema.outputs)
        numbers |= {
            "accuracy": float((guesses == y).double().mean()),
            "commonest": float(counts.sum(1).max() / counts.sum()),
            "macro_f1": calibrate.macro_f1(counts),
            "confusion": counts.tolist(),
        }
    else:
        guesses = guessed(schema, outputs)
        r2 = calibrate.r_squared(y, guesses)
        rmse = float((y - guesses).square().mean().sqrt())
        numbers |= {"r2": r2 if r2 == r2 else None, "rmse": rmse, "std": schema.std * t**0.5}
    return replace(schema, temperature=t), numbers


def scored(numbers: Mapping[str, Any]) -> str:
    """How well held-out labels are read, for people; ``numbers`` as `measured` has them."""
    if numbers["kind"] == "classes":
        alone = f"the commonest class alone {numbers['commonest']:.3f}"
        return f"accuracy {numbers['accuracy']:.3f} ({alone}), macro F1 {numbers['macro_f1']:.3f}"
    r2 = "" if numbers["r2"] is None else f"R² {numbers['r2']:.3f}, "  # which held-out numbers that are all alike have not
    return f"{r2}RMSE {numbers['rmse']:.4g}"


def guessed(schema: Schema, outputs: Tensor) -> Tensor:
    """(n,) the numbers that outputs (n, 1) say."""
    return schema.shift + schema.scale * outputs[:, 0]


def by_noise(schema: Schema, outputs: Tensor, y: Tensor, sigma: Tensor, parts: int = 4) -> list[dict[str, Any]]:
    """What a classifier of noisy latents is worth in parts of equal count, least noise first.

    Args:
        schema: of it, at its temperature.
        outputs, y: of held-out noisy latents, as of `measured`.
        sigma: (n,) the noise of each.
        parts: how many.
    """
    rows = []
    for part in sigma.argsort().tensor_split(parts):
        mine, answers = outputs[part], y[part]
        row: dict[str, Any] = {"sigma": [float(sigma[part].min()), float(sigma[part].max())], "items": len(part)}
        row["nll"] = -float(log_prob(schema, mine, answers).mean())
        if schema.kind == "classes":
            row["accuracy"] = float((mine.argmax(1) == answers).double().mean())
        else:
            row["rmse"] = float((answers - guessed(schema, mine)).square().mean().sqrt())
        rows.append(row)
    return rows


def _listed(diagram: calibrate.Reliability) -> dict[str, list]:
    """As JSON, which has no NaN: null in an empty bin."""
    return {name: [None if v != v else v for v in values.tolist()] for name, values in diagram._asdict().items()}
