"""What the rows of a CTRL recipe are made with, each kept in a folder of its own and made once: labelled pictures of the base
model, the classifier p(y | x), the control, and what its rivals learn from the same pictures.

    data/LABEL     pictures of the base model (another seed for each label, so that no two labels share one), labels.csv
    fit/LABEL      `tilting condition fit`;   ctrl  `tilting condition train`
    noisy/LABEL    a classifier of noisy latents;   free  a control by classifier-free fine-tuning on the triplets (c, x, y)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.experiments.condition.fit import condition_fit
from tilting.experiments.condition.fit_config import resolve_fit
from tilting.experiments.condition.train import condition_train
from tilting.experiments.condition.train_config import resolve_train
from tilting.experiments.config import GenerateConfig, resolve
from tilting.experiments.finetune.folder import read_lines
from tilting.experiments.folder import digest
from tilting.experiments.recipes.ctrl.labels import Label, classes_of, edges_of, write_labels
from tilting.experiments.recipes.draft.looks import kept
from tilting.experiments.recipes.tables import Say
from tilting.experiments.run import Parts, run
from tilting.models import find_model

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.stable_diffusion import StableDiffusion

DATA_SEED = 1000
"""Labelled pictures of label k have the recipe's seed and 1000 (k + 1) more: the rows' noise is never theirs."""
AT_ONCE = 64


@dataclass(frozen=True)
class Size:
    """How much is drawn and learnt.

    Attributes:
        data: labelled pictures of each prompt and label.
        images: of each prompt and class in a row.
        steps: T, of data, training and rows alike: p_pre is the law of this sampler.
        train_steps, batch: of the control.
        epochs, widths: of the classifier.
        free_steps, free_batch: of classifier-free fine-tuning.
        noisy_epochs: of the classifier of noisy latents.
    """

    data: int
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
class Labelled:
    """The labelled pictures of one label.

    Attributes:
        files, prompts, scores, classes: of each picture.
        edges: where the classes are cut.
        table: labels.csv.
    """

    files: tuple[Path, ...]
    prompts: tuple[str, ...]
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    edges: tuple[float, ...]
    table: Path

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
        write_labels(table, files, prompts, label.name, classes, scores)
        return Labelled(tuple(files), tuple(prompts), tuple(scores), tuple(classes), edges, table)

    def fit(self, label: Label, data: Labelled, place: Path) -> dict[str, Any]:
        """The classifier's folder, and its metrics."""
        asked = f"{label.name}={','.join(label.classes)}"
        config = resolve_fit({
            "data": str(data.table), "label": [asked], "kind": "cnn", "widths": list(self.size.widths),
            "epochs": self.size.epochs, "seed": self.seed, "out": str(place),
        })  # fmt: skip
        return condition_fit(config, self.argv, quiet=self.quiet)["summary"][label.name]

    def train(self, classifiers: Sequence[Path], place: Path) -> dict[str, Any]:
        """The control's folder; what its training cost."""
        config = resolve_train({
            "prompts": list(self.prompts), "model": self.model, "classifier": [str(c) for c in classifiers],
            "train-steps": self.size.train_steps, "steps": self.size.steps, "batch-size": self.size.batch, "seed": self.seed,
            "checkpoint-every": 10, "out": str(place), **self.settings,
        })  # fmt: skip
        summary = condition_train(config, self.argv, quiet=self.quiet)["summary"]
        seconds = sum(line["seconds"] for line in read_lines(place / "timing.jsonl"))
        return {"evaluations": summary["evaluations"], "seconds": seconds, "steps": summary["steps"],
                "place": config.place, "gamma": config.gamma, "skipped": summary["skipped"], **summary["last"]}  # fmt: skip

    def noisy(self, label: Label, data: Labelled, place: Path) -> dict[str, Any]:
        """A classifier of noisy latents of the same pictures; what it cost."""
        made = {"data": data.digest, "epochs": self.size.noisy_epochs, "seed": self.seed, "model": self._digest}

        def make() -> dict[str, Any]:
            from tilting.conditioning.dataset import is_held_out
            from tilting.conditioning.fit import Options
            from tilting.conditioning.noisy import fit_noisy, save_noisy
            from tilting.features.schema import Schema
            from tilting.models import load

            begun, model = time.perf_counter(), load(self.model)
            held = [i for i, file in enumerate(data.files) if is_held_out(self.seed, file.name)]
            y, schema = _tensor(data.classes), Schema(label.name, classes=label.classes)
            options = Options(epochs=self.size.noisy_epochs, seed=self.seed)
            save_noisy(fit_noisy(latents_of(model, data.files), y, schema, model.schedule, held, options), place)
            return {"seconds": time.perf_counter() - begun}

        return kept(place.parent / f"{place.name}.json", made, make)

    def free(self, data: Mapping[str, Labelled], classifiers: Sequence[Path], place: Path) -> dict[str, Any]:
        """A control by classifier-free fine-tuning on all labelled pictures; what it cost.

        Of LoRA and embedding as CTRL's; the classifiers are kept in the folder to look at what is drawn, never trained by.
        """
        settings = {k: v for k, v in self.settings.items() if k in ("place", "rank")}
        made = {"data": {k: d.digest for k, d in data.items()}, "steps": self.size.free_steps, "batch": self.size.free_batch,
                "seed": self.seed, "model": self._digest, "settings": settings, "at": self.size.steps}  # fmt: skip
        return kept(place.parent / f"{place.name}.json", made, lambda: self._free(data, classifiers, place, settings))

    def _free(self, data: Mapping[str, Labelled], classifiers: Sequence[Path], place: Path, settings: dict[str, Any]) -> dict:
        import torch

        from tilting.conditioning.cfree import Triplets, classifier_free
        from tilting.experiments.condition.controlling import ControlSettings, controlling
        from tilting.features.fitted import load_classifier
        from tilting.models import load

        begun, model = time.perf_counter(), load(self.model)
        latents = torch.cat([latents_of(model, d.files) for d in data.values()])
        labels = {name: torch.cat([_tensor(d.classes) if name == k else torch.full((len(d.files),), torch.nan)
                                   for k, d in data.items()]) for name in data}  # fmt: skip
        triplets = Triplets(latents, labels, [p for d in data.values() for p in d.prompts])
        made = ControlSettings(steps=self.size.steps, batch_size=self.size.free_batch, seed=self.seed, **settings)
        tuned = controlling(model, [load_classifier(c) for c in classifiers], self.prompts, made)
        assert tuned.augmented is not None
        tuned.augmented.off = -1.0  # it learns of every noise level, the last one too
        steps, size = self.size.free_steps, self.size.free_batch
        errors = [r.numbers["error"] for r in classifier_free(
            tuned.augmented, tuned.training.parameters, triplets, tuned.optimiser, steps, size, seed=self.seed
        )]  # fmt: skip
        seconds = time.perf_counter() - begun
        tuned.control({"name": self.model, "sha256": self._digest}).save(place)
        tenth = max(1, len(errors) // 10)
        return {"seconds": seconds, "evaluations": steps * size, "steps": steps,
                "error": [sum(part) / tenth for part in (errors[:tenth], errors[-tenth:])]}  # fmt: skip

    @cached_property
    def _digest(self) -> str | None:
        return digest(Path(find_model(self.model)))


def _unjudged(config: GenerateConfig) -> Parts:
    """The model alone: labelled pictures need no judge."""
    from tilting.models import load

    return Parts(load(config.model), None, None)


def latents_of(model: StableDiffusion, files: Sequence[Path]) -> Tensor:
    """(n, ...) latents of picture files."""
    import torch

    from tilting.metrics.extract import read_batches

    with torch.no_grad():
        return torch.cat([model.encode(images) for images in read_batches(files, AT_ONCE)])


def _tensor(classes: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(classes, dtype=torch.float32)


def _shuffled(count: int, seed: int) -> list[int]:
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
