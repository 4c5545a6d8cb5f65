"""`tilting condition fit`: fits calibrated classifiers p(y | x) to labelled pictures, in a resumable folder.

    DIR/classifier.json, classifier.safetensors    what `tilting.features.fitted.load_classifier` reads, at its temperature
    DIR/metrics.json, reliability.png, confusion.png (predicted.png for a number), manifest.json, checkpoints/ while it fits

Of several labels each has a folder of its own, DIR/LABEL, and the manifest and all metrics lie above them. Every number but
the loss is of the held-out fifth, which early stopping and the temperature have seen too: a few parameters' worth of
optimism. Those of a classifier of noisy latents (``--kind noisy``) are of every held-out picture at eight noise levels, and
``by_noise`` tells them apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch

from tilting.conditioning import fit_charts
from tilting.conditioning.calibrate import of_temperature
from tilting.conditioning.dataset import bar, read_data
from tilting.conditioning.fit import Epoch, Fit
from tilting.conditioning.fit_label import FittedLabel, Source, by_likelihood, epoch_told, fit_label, of_rows, scored
from tilting.conditioning.networks import Inputs, inputs_of, size_of
from tilting.conditioning.pictures import Pictures, encode_files
from tilting.conditioning.table import Column
from tilting.config.condition_fit import AUTO, TRIED, FitConfig
from tilting.disk import inner_path, make_folder, write_atomically
from tilting.errors import TiltingError
from tilting.features.fitted import save_classifier
from tilting.features.schema import FILE, NOISY
from tilting.models import find_model, load
from tilting.models.placement import device_of
from tilting.runs.files import MANIFEST, digest, write_json
from tilting.runs.lock import exclusive
from tilting.runs.owner import FIT
from tilting.runs.run_folder import RunFolder
from tilting.runs.signals import deferred_interrupt
from tilting.training import checkpoint

METRICS, CHECKPOINTS = "metrics.json", "checkpoints"


class FitFolder(RunFolder[FitConfig]):
    """The folder of a fit; see `RunFolder`. The data may lie elsewhere when it goes on: what they hold is compared itself.

    Args:
        config, argv: see `RunFolder`.
        quiet: no bars while pictures are read.
    """

    kind, noun, changed = FIT, "fit", "were others"
    holds: ClassVar = {"config": dict, "data": dict, "labels": dict, "summary": dict}
    free = ("out", "data", "device")

    def __init__(self, config: FitConfig, argv: Sequence[str] = (), quiet: bool = True):
        self.quiet = quiet
        super().__init__(config, argv)

    def identities(self) -> dict[str, Any]:
        config = self.config
        self.data = read_data(config, self.quiet)
        self.learn, self.held_out = self.data.split(config.seed)
        counts = {"records": len(self.data.records), "learn": len(self.learn), "held_out": len(self.held_out)}
        networks = {
            "cnn": None,
            "mlp": config.embedder,
            AUTO: config.embedder,
            NOISY: config.model and find_model(config.model),
        }
        network = networks.get(config.kind, config.kind)
        return {
            "data": {**counts, "sha256": self.data.digest(), "bad": list(self.data.bad)},
            "labels": {c.name: {"kind": c.kind, "classes": list(c.classes), "edges": list(c.edges)} for c in self.data.columns},
            "network": {"kind": config.kind, "sha256": digest(Path(network)) if network else None},
        }

    def read(self) -> dict[str, Any] | None:
        before = super().read()
        if before is None and any((self.of(column) / CHECKPOINTS).exists() for column in self.data.columns):
            raise TiltingError(
                f"{str(self.path)!r} holds checkpoints and there is no {MANIFEST} beside them: choose another --out"
            )
        return before

    def binds(self, before: Mapping[str, Any]) -> bool:
        return bool(before["summary"]) or any(self.path.rglob(CHECKPOINTS))

    def of(self, column: Column) -> Path:
        """The folder of a label."""
        return self.path if len(self.data.columns) == 1 else inner_path(self.path, column.name, "label")

    @property
    def missing(self) -> list[Column]:
        """Labels without a finished classifier."""
        return [c for c in self.data.columns if c.name not in self.summary or not (self.of(c) / FILE).is_file()]

    def add(self, column: Column, fitted: FittedLabel) -> None:
        """Write a finished label: pictures, numbers, the classifier, then the manifest that names it."""
        folder = self.of(column)
        make_folder(folder)
        for name, picture in fit_charts.charts(column, fitted).items():
            write_atomically(folder / name, picture)
        write_json(folder / METRICS, fitted.metrics)
        save_classifier(fitted.classifier, folder)  # whose description comes last: there is a classifier once it is there
        self.summary[column.name] = fitted.metrics
        if folder != self.path:
            write_json(self.path / METRICS, {name: self.summary.get(name) for name in self.head["labels"]})
        self.write()
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove the checkpoints of a label."""
    for kind in TRIED:
        checkpoint.clear(folder / CHECKPOINTS / kind)
    checkpoint.clear(folder / CHECKPOINTS)


def condition_fit(config: FitConfig, argv: Sequence[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Fit what is missing of a request, and return its manifest.

    Args:
        config: checked; ``out`` must be set.
        argv: the command, for the record.
        quiet: no progress bars and no word of rows left out.

    Raises:
        TiltingError: in one sentence; nothing is written for data that cannot work.
    """
    device = str(device_of(config.device))  # before pictures are read, or labelled
    with exclusive(config.out):
        folder = FitFolder(config, argv, quiet)
        bad = folder.data.bad
        if bad and not quiet:
            print(f"tilting: {len(bad)} bad rows are left out, the first: {bad[0]}", file=sys.stderr)
        for line in () if quiet else folder.data.told(folder.learn):
            print(f"tilting: {line}", file=sys.stderr)
        for column in folder.data.columns:
            if column not in folder.missing:
                _clear(folder.of(column))  # a kill may have left them
        if folder.missing:
            folder.make()
            folder.write()
            source = _latents(folder, device) if config.kind == NOISY else _clean_inputs(folder, device)
            for column in folder.missing:
                folder.add(column, _fit(folder, column, source, device))
        return folder.manifest


def _fit(folder: FitFolder, column: Column, source: Source, device: str) -> FittedLabel:
    """One label, of the records that have it, from its newest checkpoint on."""
    known = folder.data.known(column)
    at = {row: i for i, row in enumerate(known)}
    learn, held_out = ([at[row] for row in side if row in at] for side in (folder.learn, folder.held_out))
    values = [folder.data.records[row].labels[column.name] for row in known]
    y = torch.tensor([column.classes.index(v) if column.classes else v for v in values], dtype=torch.float64)
    source = source if len(known) == len(folder.data.records) else of_rows(source, known)

    def fitted(config: FitConfig) -> FittedLabel:
        checkpoints = folder.of(column) / CHECKPOINTS / (config.kind if folder.config.kind == AUTO else "")
        name = f"{column.name}, {config.kind}" if config.kind in TRIED else column.name
        asked: list[Callable[[], bool]] = []
        with ExitStack() as stack, bar(config.epochs, name, folder.quiet) as progress:

            def restore(fit: Fit) -> None:
                asked.append(
                    stack.enter_context(deferred_interrupt("epoch"))
                )  # what is made before any epoch need not be saved
                saved = checkpoint.read(checkpoints)
                if saved is not None:
                    fit.restore(saved)
                    progress.update(fit.epoch)

            def report(fit: Fit, epoch: Epoch) -> None:
                checkpoint.write(checkpoints, fit.saved())
                if asked[0]():
                    raise KeyboardInterrupt
                epoch_told(progress, fit, epoch)

            return fit_label(config, column, y, learn, held_out, source, device, restore, report)

    return by_likelihood(folder.config, fitted)


def _clean_inputs(folder: FitFolder, device: str) -> Callable[[Any], Inputs]:
    """Pictures, or their vectors, as the learnt part of a network is fed; made for the first of all labels."""
    config, made = folder.config, {}

    def of(net: Any) -> Inputs:
        embeds = hasattr(net, "embedder")
        if embeds not in made:
            pictures = Pictures([record.path for record in folder.data.records], config.size or size_of(net))
            with bar(len(pictures), "embeddings", folder.quiet or not embeds) as progress:
                made[embeds] = inputs_of(net, pictures, device, progress.update)
        return made[embeds]

    return of


def _latents(folder: FitFolder, device: str) -> Source:
    """Pictures as latents of the model."""
    model: Any = load(folder.config.model or "pocket", device)
    paths = [record.path for record in folder.data.records]
    with bar(len(paths), "latents", folder.quiet) as progress:
        return encode_files(model, paths, progress.update)


def describe(manifest: dict[str, Any]) -> str:
    """A line for each label."""
    lines = []
    for name, row in manifest["summary"].items():
        parts = [scored(row)]
        ece = row["ece"]
        chance = f", {ece['chance']:.3f} by chance alone" if "chance" in ece else ""  # which fits of before did not say
        parts.append(f"ECE {ece['before']:.3f} -> {ece['after']:.3f}{chance}, at {of_temperature(row['temperature'])}")
        parts.append(f"epoch {row['best_epoch']} of {row['epochs']}")
        noisy = " at eight noise levels each" if "by_noise" in row else ""
        lines.append(f"{name}: {', '.join(parts)}, on {row['records']['held_out']} held out{noisy}")
        if "tried" in row:
            tried = ", ".join(f"{kind} {nll:.3f}" for kind, nll in row["tried"].items())
            lines.append(f"  {row['network']} it is: held-out nats of each network, less is better: {tried}")
        elif row.get("network") == TRIED[0]:
            lines.append(
                "  on frozen CLIP features; --kind cnn learns features of its own (minutes), --kind auto takes the better"
            )
    return "\n".join(lines)
