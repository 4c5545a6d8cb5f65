"""What the rows of a CTRL recipe are made with, each kept in a folder of its own and made once: labelled pictures of the base
model, the classifier p(y | x), the control, and what its rivals learn from the same pictures.

    data/LABEL     pictures of the base model (another seed for each label, so that no two labels share one), labels.csv
    fit/LABEL      `tilting condition fit`;   ctrl  `tilting condition train`
    noisy/LABEL    its ``--kind noisy``;   free  ``--objective classifier-free`` on the triplets (c, x, y)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilting.conditioning.fit_run import condition_fit
from tilting.conditioning.train_run import condition_train
from tilting.config.condition_fit import FitConfig
from tilting.config.condition_train import FREE, TrainConfig, resolve_train
from tilting.config.generate import GenerateConfig, resolve
from tilting.generation.run import Parts, run
from tilting.models import find_model
from tilting.runs.files import digest
from tilting.training.folder import METRICS, TIMING, read_lines
from tilting_papers.ctrl.alter import with_copies
from tilting_papers.ctrl.labels import ORIGIN, Label, Labelled, classes_of, edges_of, write_labels
from tilting_papers.folder import Say, kept

DATA_SEED = 1000
"""Labelled pictures of label k have the recipe's seed and 1000 (k + 1) more: the rows' noise is never theirs."""


@dataclass(frozen=True)
class Size:
    """How much is drawn and learnt.

    Attributes:
        data: labelled pictures of each prompt and label.
        copies: of each of them, altered, that classifiers learn from too.
        again: pictures of each prompt, class and strength that a first control draws for them to learn from; 0 is one round.
        images: of each prompt and class in a row.
        steps: T, of data, training and rows alike: p_pre is the law of this sampler.
        train_steps, batch: of the control.
        epochs, widths: of the classifier.
        free_steps, free_batch: of classifier-free fine-tuning.
        noisy_epochs: of the classifier of noisy latents.
    """

    data: int
    copies: int
    again: int
    images: int
    steps: int
    train_steps: int
    batch: int
    epochs: int
    widths: tuple[int, ...]
    free_steps: int
    free_batch: int
    noisy_epochs: int


@dataclass(frozen=True)
class Shop:
    """Where a recipe's parts are made.

    Attributes:
        model: name or folder of the pre-trained one.
        prompts: of data, training and rows.
        labels: what is asked for.
        size: of the run.
        out: the recipe's folder.
        seed: of the recipe.
        say: takes lines of progress.
        settings: more options of `tilting condition train`.
        argv: the command.
        quiet: no bars.
        first: use so many of each label's pictures only; None is all.
    """

    model: str
    prompts: tuple[str, ...]
    labels: tuple[Label, ...]
    size: Size
    out: Path
    seed: int
    say: Say
    settings: Mapping[str, Any]
    argv: tuple[str, ...] = ()
    quiet: bool = True
    first: int | None = None

    def data(self, label: Label) -> Labelled:
        """Draw what is missing of a label's pictures, cut their scores into classes, and write labels.csv."""
        place, number = self.out / "data" / label.name, self.labels.index(label)
        config = resolve({
            "prompts": list(self.prompts), "model": self.model, "images": self.size.data, "steps": self.size.steps,
            "seed": self.seed + DATA_SEED * (number + 1), "batch-size": 40, "out": str(place),
        })  # fmt: skip
        records = run(config, self.argv, self.quiet, _unjudged)["images"]
        files = [place / record["file"] for record in records]
        prompts, scores = [record["prompt"] for record in records], label.read(files)
        edges = edges_of(scores, label.quantiles)
        classes = classes_of(scores, edges)
        if self.first is not None:
            order = _shuffled(len(files), self.seed)[: self.first]
            files, prompts = [files[i] for i in order], [prompts[i] for i in order]
            scores, classes = [scores[i] for i in order], [classes[i] for i in order]
        table = place / ("labels.csv" if self.first is None else f"labels-{self.first}.csv")
        made = Labelled(tuple(files), tuple(prompts), tuple(scores), tuple(classes), edges, table)
        write_labels(made, label.name)
        return made

    def seen(self, label: Label, data: Labelled) -> Labelled:
        """What classifiers learn from: labelled pictures and their altered copies."""
        return with_copies(label, data, self.size.copies, self.seed) if self.size.copies else data

    def fit(self, label: Label, data: Labelled, place: Path) -> dict[str, Any]:
        """Fit a classifier into its folder; its metrics."""
        options = {"kind": "cnn", "widths": list(self.size.widths), "epochs": self.size.epochs}
        return self._fit(label, data, place, options)

    def noisy(self, label: Label, data: Labelled, place: Path) -> dict[str, Any]:
        """A classifier of noisy latents of the same pictures; what it cost."""
        options = {"kind": "noisy", "model": self.model, "epochs": self.size.noisy_epochs}

        def make() -> dict[str, Any]:
            begun = time.perf_counter()
            self._fit(label, data, place, options)
            return {"seconds": time.perf_counter() - begun}

        made = {"data": data.digest, "seed": self.seed, "sha256": digest(Path(find_model(self.model))), **options}
        return kept(place.parent / f"{place.name}.json", made, make)

    def _fit(self, label: Label, data: Labelled, place: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        about = {"data": str(data.table), "label": [_asked(label)], "group": ORIGIN, "seed": self.seed, "out": str(place)}
        config = FitConfig.resolve({**about, **options})
        return condition_fit(config, self.argv, quiet=self.quiet)["summary"][label.name]

    def train(self, classifiers: Sequence[Path], place: Path) -> dict[str, Any]:
        """The control's folder; what its training cost."""
        options = {
            "prompts": list(self.prompts), "train-steps": self.size.train_steps, "steps": self.size.steps,
            "batch-size": self.size.batch, "checkpoint-every": 10, **self.settings,
        }  # fmt: skip
        config, summary, cost = self._train(classifiers, place, options)
        return {**cost, "place": config.place, "gamma": config.gamma, "skipped": summary["skipped"], **summary["last"]}

    def free(self, data: Mapping[str, Labelled], classifiers: Sequence[Path], place: Path) -> dict[str, Any]:
        """A control by classifier-free fine-tuning on all labelled pictures; what it cost.

        Of LoRA and embedding as CTRL's; the classifiers are kept in the folder to look at what is drawn, never trained by.
        """
        options = {
            "objective": FREE, "data": [str(data[label.name].table) for label in self.labels],
            "label": [_asked(label) for label in self.labels], "train-steps": self.size.free_steps,
            "batch-size": self.size.free_batch, **{k: v for k, v in self.settings.items() if k in ("place", "rank")},
        }  # fmt: skip
        _, _, cost = self._train(classifiers, place, options)
        errors = [line["error"] for line in read_lines(place / METRICS) if line.get("error") is not None]
        tenth = max(1, len(errors) // 10)
        return {**cost, "error": [sum(part) / len(part) for part in (errors[:tenth], errors[-tenth:])]}

    def _train(self, classifiers: Sequence[Path], place: Path, options: Mapping[str, Any]) -> tuple[TrainConfig, Any, Any]:
        """The config, the summary and the cost of a control's training."""
        config = resolve_train({
            "model": self.model, "classifier": [str(c) for c in classifiers], "seed": self.seed, "out": str(place), **options
        })  # fmt: skip
        summary = condition_train(config, self.argv, quiet=self.quiet)["summary"]
        seconds = sum(line["seconds"] for line in read_lines(place / TIMING))
        return config, summary, {"evaluations": summary["evaluations"], "seconds": seconds, "steps": summary["steps"]}


def _asked(label: Label) -> str:
    return f"{label.name}={','.join(label.classes)}"


def _unjudged(config: GenerateConfig) -> Parts:
    """The model alone: labelled pictures need no judge."""
    from tilting.models import load

    return Parts(load(config.model), None, None)


def _shuffled(count: int, seed: int) -> list[int]:
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
