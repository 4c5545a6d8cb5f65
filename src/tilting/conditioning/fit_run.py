"""`tilting condition fit`: labelled pictures to calibrated classifiers p(y | x) in a folder that resumes. Torch-free to import.

    DIR/classifier.json, classifier.safetensors    what `tilting.features.fitted.load_classifier` reads, at its temperature
    DIR/metrics.json, reliability.png, confusion.png (predicted.png for a number), manifest.json, checkpoints/ while it fits

Of several labels each has a folder of its own, DIR/LABEL, and the manifest and all metrics lie above them. Every number but
the loss is of the held-out fifth, which early stopping and the temperature have seen too: a few parameters' worth of
optimism. Those of a classifier of noisy latents (``--kind noisy``) are of every held-out picture at eight noise levels, and
``by_noise`` tells them apart.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.conditioning.dataset import Dataset, check_pictures, count_classes, cut_labels, find_records, label, unlabelled
from tilting.conditioning.table import Bad, read_table
from tilting.config.condition_fit import FitConfig
from tilting.errors import TiltingError
from tilting.features.schema import NOISY
from tilting.models import find_model, load
from tilting.models.placement import device_of
from tilting.runs.files import MANIFEST, digest, lacks, parsed, write_atomically, write_manifest
from tilting.runs.owner import FIT, folder_of
from tilting.runs.run_folder import other
from tilting.version import __version__

if TYPE_CHECKING:
    from tilting.config.label_columns import Column

METRICS, CHECKPOINTS = "metrics.json", "checkpoints"
FREE = ("out", "data", "device")
"""Options that may change between two runs into a folder: what the data hold is compared itself."""


def read_data(config: FitConfig, quiet: bool = True) -> Dataset:
    """The labelled pictures of a request, checked; torch is imported only if a function labels them.

    Raises:
        TiltingError: naming the row, see `tilting.conditioning.dataset`.
    """
    bad, spec, asks = Bad(config.skip_bad), config.spec(), config.asks()
    table = read_table(Path(config.data), bad, labelled=spec is None)
    if spec is None:
        records, asks = find_records(table, asks, bad, config.group)
    else:
        from tilting.conditioning.label_by import label_by

        records = unlabelled(table, bad, config.group)
        with bar(len(records), spec.text, quiet) as progress:
            records = label_by(records, spec, asks[0].name, bad, lambda: progress.update(1))
    numbers = [ask._replace(kind="gaussian") if config.bins else ask for ask in asks]
    data = label(records, numbers, bad)
    if spec is None:  # after the labels, which are refused at once
        with bar(len(data.records), "pictures", quiet) as progress:
            data = replace(data, records=tuple(check_pictures(data.records, bad, lambda: progress.update(1))))
    if not data.records:
        raise TiltingError(f"no row of {config.data!r} can be used; the first: {bad.reasons[0]}")
    return count_classes(cut_labels(data, asks, config.bins) if config.bins else data, bad)


def condition_fit(config: FitConfig, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Fit what is missing of a request, and return its manifest.

    Args:
        config: from `resolve_fit`; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bars and no word of rows left out.

    Raises:
        TiltingError: in one sentence; nothing is written for data that cannot work.
    """
    out = folder_of(config.out, FIT)
    data = read_data(config, quiet)
    learn, held = data.split(config.seed)
    manifest = _manifest(config, argv, data, len(learn), len(held))
    before = _before(out)
    if before is not None and (before["summary"] or any(out.rglob(CHECKPOINTS))):  # a fit of which nothing is kept binds nobody
        _check_same(out, before, manifest)
        manifest["summary"] = before["summary"]
    if data.bad and not quiet:
        print(f"tilting: {len(data.bad)} bad rows are left out, the first: {data.bad[0]}", file=sys.stderr)
    missing = [c for c in data.columns if not _finished(_place(out, data, c), c, manifest)]
    if not missing:
        return manifest
    device = str(device_of(config.device))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TiltingError(f"cannot write into --out {config.out!r}: {error.strerror}") from error
    write_manifest(out, manifest)
    seen = None
    for column in missing:
        place = _place(out, data, column)
        seen, metrics = _fit_one(config, data, column, learn, held, place, seen, device, quiet)
        manifest["summary"][column.name] = metrics
        shown = metrics if place == out else {name: manifest["summary"].get(name) for name in manifest["labels"]}
        write_atomically(out / METRICS, _json(shown))
        write_manifest(out, manifest)
        shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
    return manifest


def _fit_one(
    config: FitConfig, data: Dataset, column: Column, learn: list[int], held: list[int], place: Path, seen: Any, device: str,
    quiet: bool,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """One label: its classifier, metrics and pictures into its folder. What is ``seen`` of the pictures serves every label."""
    import torch

    from tilting.conditioning.fit import Options, begin, ended, epochs, schema_of
    from tilting.conditioning.fit_metrics import by_noise, measured
    from tilting.conditioning.networks import build_network
    from tilting.conditioning.noisy import NoisyClassifier, feed, save_noisy
    from tilting.features.fitted import FittedClassifier, save_classifier
    from tilting.training import checkpoint

    options = Options(config.epochs, config.batch_size, config.lr, config.patience, config.seed)
    values = [r.labels[column.name] for r in data.records]
    y = torch.tensor([column.classes.index(v) if column.classes else v for v in values], dtype=torch.float64)
    schema = schema_of(column.name, column.classes, y[learn])
    net: Any
    if config.kind == NOISY:
        seen = seen or _latents(config, data, device, quiet)
        net, inputs, y, tested = feed(seen.latents, y, schema, seen.schedule, held, options, *config.widths)
    else:
        net = build_network(config.kind, schema.outputs, config.seed, column.name, config.widths, config.embedder)
        inputs = seen = seen or _inputs(config, data, net, device, quiet)
        tested = held
    fit = begin(net, schema, options, device)
    saved = checkpoint.read(place / CHECKPOINTS)
    if saved is not None:
        fit.restore(saved)
    with bar(options.epochs, column.name, quiet, fit.epoch) as progress:
        for report in epochs(fit, inputs, y, learn, tested, options):
            checkpoint.write(place / CHECKPOINTS, fit.saved())
            progress.update(1)
            progress.set_postfix_str(f"held out {report.held_out:.4g}, best {report.best:.4g} nats", refresh=False)
    schema, outputs = ended(fit, inputs, tested)
    schema, metrics, figures = measured(schema, outputs, y[tested], column)
    metrics |= {"records": {"learn": len(learn), "held_out": len(held)}, "epochs": fit.epoch, "best_epoch": fit.best_epoch}
    metrics["history"] = [{"epoch": e.epoch, "loss": e.loss, "held_out": e.held_out} for e in fit.history]
    if config.kind == NOISY:
        metrics["by_noise"] = by_noise(schema, outputs, y[tested], inputs.copies.sigma.cpu())
        made, save = NoisyClassifier(net, schema, seen.model), save_noisy
    else:
        made, save = FittedClassifier(net, schema), save_classifier
    for name, picture in figures.items():
        write_atomically(place / name, picture)
    write_atomically(place / METRICS, _json(metrics))
    _save(lambda folder: save(made, folder), place)  # type: ignore[arg-type]
    return seen, metrics


def _inputs(config: FitConfig, data: Dataset, net: Any, device: str, quiet: bool) -> Any:
    """Pictures, or their vectors, as the learnt part is fed."""
    from tilting.conditioning.images import Pictures
    from tilting.conditioning.networks import inputs_of, size_of

    pictures = Pictures([r.path for r in data.records], config.size or size_of(net))
    with bar(len(pictures), "embeddings", quiet or config.kind == "cnn") as progress:
        return inputs_of(net, pictures, device, progress.update)


def _latents(config: FitConfig, data: Dataset, device: str, quiet: bool) -> Any:
    """Pictures as latents of the model."""
    from tilting.conditioning.pictures import encode_files

    model: Any = load(config.model or "pocket")
    with bar(len(data.records), "latents", quiet) as progress:
        return encode_files(model if device == "cpu" else model.to(device), [r.path for r in data.records], progress.update)


def _save(write: Callable[[Path], object], place: Path) -> None:
    """Both files beside their place first, the description last: there is a classifier once it is there."""
    from tilting.features.schema import FILE, WEIGHTS

    temporary = place / ".classifier.tmp"
    write(temporary)
    for name in (WEIGHTS, FILE):
        os.replace(temporary / name, place / name)
    temporary.rmdir()


def _place(out: Path, data: Dataset, column: Column) -> Path:
    return out if len(data.columns) == 1 else out / column.name


def _finished(place: Path, column: Column, manifest: dict[str, Any]) -> bool:
    from tilting.features.schema import FILE

    return column.name in manifest["summary"] and (place / FILE).is_file()


def _manifest(config: FitConfig, argv: Sequence[str], data: Dataset, learn: int, held: int) -> dict[str, Any]:
    alone = {"cnn": None, "mlp": config.embedder, NOISY: config.model and find_model(config.model)}
    place = alone.get(config.kind, config.kind)
    labels = {c.name: {"kind": c.kind, "classes": list(c.classes), "edges": list(c.edges)} for c in data.columns}
    counted = {"records": len(data.records), "learn": learn, "held_out": held, "sha256": data.digest()}
    return {
        "version": __version__,
        "argv": list(argv),
        "config": config.mapping(),
        "data": {**counted, "bad": list(data.bad)},
        "labels": labels,
        "network": {"kind": config.kind, "sha256": digest(Path(place)) if place else None},
        "summary": {},
    }


def _before(out: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none. Raises TiltingError if it is corrupt."""
    kinds = {"config": dict, "data": dict, "labels": dict, "summary": dict}
    return parsed(out / MANIFEST, lambda manifest: lacks(manifest, kinds)) if (out / MANIFEST).exists() else None


def _check_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with another request, other data or another network. Raises TiltingError."""
    for key, value in now["config"].items():
        if key not in FREE and before["config"].get(key) != value:
            there = before["config"].get(key)
            raise TiltingError(f"{str(out)!r} holds a fit with {other(key)} ({there} there, {value} now): choose another --out")
    for key, what in (("data", "data"), ("labels", "labels"), ("network", "network")):
        if before.get(key) != now[key]:
            raise TiltingError(f"{str(out)!r} holds a fit whose {what} were others: choose another --out")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def bar(total: int, about: str, quiet: bool, initial: int = 0) -> Any:
    """A bar on stderr, of things that are counted."""
    from tqdm import tqdm

    return tqdm(
        total=total, desc=about, initial=initial, file=sys.stderr, disable=quiet, dynamic_ncols=True, leave=False
    )  # fmt: skip


def describe(manifest: dict[str, Any]) -> str:
    """A line for each label."""
    lines = []
    for name, row in manifest["summary"].items():
        if row["kind"] == "classes":
            parts = [f"accuracy {row['accuracy']:.3f} (the commonest class alone {row['commonest']:.3f})"]
            parts.append(f"macro F1 {row['macro_f1']:.3f}")
        else:
            parts = [f"R² {row['r2']:.3f}", f"RMSE {row['rmse']:.4g}"]
        parts.append(f"ECE {row['ece']['before']:.3f} -> {row['ece']['after']:.3f} at T = {row['temperature']:.3g}")
        parts.append(f"epoch {row['best_epoch']} of {row['epochs']}")
        noisy = " at eight noise levels each" if "by_noise" in row else ""
        lines.append(f"{name}: {', '.join(parts)}, on {row['records']['held_out']} held out{noisy}")
    return "\n".join(lines)
