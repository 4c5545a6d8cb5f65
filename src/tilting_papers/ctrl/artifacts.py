"""What the rows of a CTRL recipe are made with, each kept in a folder of its own and made once: labelled pictures of the base
model, the classifier p(y | x), the control, and what its rivals learn from the same pictures.

    data/LABEL     pictures of the base model (another seed for each label, so that no two labels share one), labels.csv
    fit/LABEL      `tilting condition fit`;   ctrl  `tilting condition train`
    noisy/LABEL    its ``--kind noisy``;   free  ``--objective classifier-free`` on the triplets (c, x, y)
    first/         a first round

A label that can be asked of any picture has two rounds: a control climbs whatever is wrong in its classifier, so a first one is
trained to show what that is.

    fit p(y | x) on D;  train a control;  label what it draws, D' = {(x, f(x)) : x ~ p_control(. | c, y)};  fit again on D + D'

and the control that counts is trained from the start by the second classifier. Scientists would measure what a first control
proposes in the same way. The paper has one round (Zhao et al. 2024, Algorithm 1); the table has a line for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tilting.conditioning.fit_run import condition_fit
from tilting.conditioning.train_run import condition_train
from tilting.config.condition_fit import FitConfig
from tilting.config.condition_train import FREE, TrainConfig, resolve_train
from tilting.config.generate import GenerateConfig, resolve
from tilting.disk import write_atomically
from tilting.errors import TiltingError
from tilting.generation.run import Parts, run
from tilting.models import find_model, load
from tilting.runs.files import digest
from tilting.training.folder import METRICS, TIMING, read_lines
from tilting_papers.cache import cached
from tilting_papers.ctrl.labels import (
    ORIGIN,
    Labelled,
    classes_of,
    edges_of,
    joined,
    label_pictures,
    read_scores,
    with_copies,
    write_labels,
)
from tilting_papers.ctrl.sampling import Sampler, name_of
from tilting_papers.ctrl.study import FIRST, Label, control_name
from tilting_papers.numbers import mean

DATA_SEED = 1000
"""Labelled pictures of label k have the recipe's seed and 1000 (k + 1) more: the rows' noise is never theirs."""
STRENGTHS = (0.6, 1.0, 1.5)
"""Of a first control: the way to what it draws, and beyond."""


BATCH = 64
"""Pictures of a step of Adam where classifiers have the same number of steps."""
POOL = 3
"""Classifiers of a pool."""
POOLED = '''"""p(y | x) of several classifiers whose logits are averaged."""

from pathlib import Path

from tilting_papers.ctrl.pool import Pool

HERE = Path(__file__).parent
classify = Pool([{names}])
'''


def pool_folder(folder: Path, i: int) -> Path:
    """Of a pool's further classifier."""
    return folder.with_name(f"{folder.name}-{i}")


@dataclass
class Made:
    """What was learnt.

    Attributes:
        data: by label.
        folders: as `Sampler.cells` takes them.
        costs: by what it is ("fit", "ctrl", "free", "noisy"): seconds and evaluations.
        fits: by label, what the classifier is worth on held-out pictures.
        before: the same of a first round.
    """

    data: dict[str, Labelled] = field(default_factory=dict)
    folders: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    fits: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifacts:
    """Makes the parts of a study, or of a part of it.

    Attributes:
        sampler: of the study.
        part: a folder below the recipe's own, for a study with several of a kind.
        count: use so many of each label's pictures only; None is all.
    """

    sampler: Sampler
    part: str = ""
    count: int | None = None

    def say(self, line: str) -> None:
        self.sampler.run.say(f"{self.part and self.part + ': '}{line}")

    @property
    def kind(self) -> str:
        """Of its classifiers."""
        return self.sampler.study.kinds.get(self.part, "cnn")

    def learn(self, families: set[str], gammas: Sequence[float | None] = (None,)) -> Made:
        """Draw the data and make what is missing of the parts that rows of these families need; a control for each γ.

        Raises:
            TiltingError: two labels share a picture, or one has too few.
        """
        made, labels, size, folder = Made(), self.sampler.study.labels, self.sampler.size, self.sampler.run.out / self.part
        for label in labels:
            self.say(f"labelled pictures of {label.name!r}: {size.data * len(self.sampler.prompts)}")
            made.data[label.name] = self.labelled(label)
        pictures = [data.pictures() for data in made.data.values()]
        if len(set().union(*pictures)) < sum(map(len, pictures)):
            raise TiltingError("two labels share a labelled picture")
        known = {label.name: self.copied(label, made.data[label.name]) for label in labels} if families - {"base"} else {}
        if size.second_round and "ctrl" in families:
            known = self.first_round(made, known, folder / FIRST)
        fits = made.folders["fit"] = {label.name: folder / "fit" / label.name for label in labels}
        if families & {"dps", "ctrl", "free"}:
            made.fits = self.fit(known, fits)
        sources = [self.source(label, fits[label.name]) for label in labels]
        for name, gamma in {control_name(gamma): gamma for gamma in gammas if "ctrl" in families}.items():
            made.folders[name] = folder / name
            self.say(f"training the control {name}, {size.train_steps} steps")
            made.costs[name] = self.train(sources, folder / name, {} if gamma is None else {"gamma": gamma})
        if "noisy" in families:
            noisy = made.folders["noisy"] = {label.name: folder / "noisy" / label.name for label in labels}
            self.say("fitting classifiers of noisy latents")
            seconds = [self.fit_noisy(label, known[label.name], noisy[label.name]) for label in labels]
            made.costs["noisy"] = {"seconds": sum(seconds)}
        if "free" in families:
            made.folders["free"] = folder / "free"
            self.say(f"classifier-free fine-tuning, {size.free_steps} steps")
            made.costs["free"] = self.train_free(made.data, [*fits.values()], folder / "free")
        return made

    def labelled(self, label: Label) -> Labelled:
        """Draw what is missing of a label's pictures, cut their scores into classes, and write labels.csv."""
        sampler, folder = self.sampler, self.sampler.run.out / "data" / label.name
        seed = sampler.run.seed + DATA_SEED * (sampler.study.labels.index(label) + 1)
        config = resolve(sampler.options(folder, images=sampler.size.data, seed=seed))
        records = run(config, sampler.run.argv, sampler.run.quiet, _unjudged)["images"]
        files, prompts = [folder / record["file"] for record in records], [record["prompt"] for record in records]
        scores, order, table = read_scores(label, files), list(range(len(files))), folder / "labels.csv"
        edges = edges_of(scores, label.quantiles)
        if self.count is not None:
            shuffled = torch.randperm(len(files), generator=torch.Generator().manual_seed(sampler.run.seed)).tolist()
            order, table = shuffled[: self.count], folder / f"labels-{self.count}.csv"
        columns: Any = (files, prompts, scores, classes_of(scores, edges))
        files, prompts, scores, classes = (tuple(column[i] for i in order) for column in columns)
        data = Labelled(files, prompts, scores, classes, edges, table)
        write_labels(data, label.name)
        return data

    def copied(self, label: Label, data: Labelled) -> Labelled:
        """What classifiers learn from: labelled pictures and their altered copies."""
        copies = self.sampler.size.copies
        return with_copies(label, data, copies, self.sampler.run.seed) if copies else data

    def first_round(self, made: Made, known: Mapping[str, Labelled], folder: Path) -> dict[str, Labelled]:
        """Train a first control, and label what it draws: by label, what the second classifiers learn from.

        Args:
            made: its data says where the classes are cut; the first round's fits, folder and cost are added.
            known: by label, what the first classifiers learn from.
            folder: of the first round.
        """
        first, labels = Artifacts(self.sampler, "first round", self.count), self.sampler.study.labels
        folders = {label.name: folder / "fit" / label.name for label in labels}
        made.before = first.fit(known, folders)
        first.say(f"training the control, {self.sampler.size.train_steps} steps")
        made.costs[FIRST] = self.train([*map(str, folders.values())], folder / "ctrl")
        made.folders[FIRST] = folder / "ctrl"
        every, loaded = {}, Sampler(self.sampler.run)
        for label in labels:
            first.say(f"drawing with the control, to label {label.name!r}")
            drawn = self.copied(label, self._drawn_first(label, made.data[label.name].edges, folder, loaded))
            every[label.name] = joined(label, known[label.name], drawn, folder / f"{label.name}.csv")
        return every

    def _drawn_first(self, label: Label, edges: tuple[float, ...], folder: Path, sampler: Sampler) -> Labelled:
        """Pictures of the first control for every class and strength, by what the function says; no two labels share one."""
        files: list[Path] = []
        prompts: list[str] = []
        seed = sampler.run.seed + DATA_SEED * (sampler.study.labels.index(label) + 1) + DATA_SEED // 2
        for k, (asked, strength) in enumerate(product(sampler.asked, STRENGTHS)):
            out, by = folder / "asked" / label.name / f"{name_of(asked)}-{strength:g}", {"control": [str(folder / "ctrl")]}
            records = sampler.draw(by, asked, strength, out, images=sampler.size.second_round, seed=seed + k)["images"]
            files += [out / record["file"] for record in records]
            prompts += [record["prompt"] for record in records]
        return label_pictures(label, files, prompts, edges, folder / f"{label.name}-asked.csv")

    def fit(self, data: Mapping[str, Labelled], folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Fit a classifier of each label into its folder; their metrics."""
        size, metrics = self.sampler.size, {}
        for label in self.sampler.study.labels:
            self.say(f"fitting p({label.name} | x)")
            options = {"kind": "mlp"} if self.kind == "mlp" else {"kind": "cnn", "widths": list(size.widths)}
            options |= {"epochs": size.epochs}
            if size.fit_steps is not None:
                epochs = -(-size.fit_steps // -(-len(data[label.name].files) // BATCH))
                options |= {"epochs": epochs, "patience": epochs, "batch-size": BATCH}
            metrics[label.name] = self._fit(label, data[label.name], folders[label.name], options)
            for i in range(1, POOL if self.kind == "pool" else 1):
                again = pool_folder(folders[label.name], i)
                self._fit(label, data[label.name], again, {**options, "seed": self.sampler.run.seed + i})
        return metrics

    def source(self, label: Label, folder: Path) -> str:
        """What a control is trained by: a fitted classifier's folder, or the file of a pool of them."""
        if self.kind != "pool":
            return str(folder)
        folders = [folder, *(pool_folder(folder, i) for i in range(1, POOL))]
        file = folder.parent / f"{label.name}.py"
        names = ", ".join(f"HERE / {one.name!r}" for one in folders)
        write_atomically(file, POOLED.format(names=names).encode())
        return f"{file}:classify"

    def fit_noisy(self, label: Label, data: Labelled, folder: Path) -> float:
        """A classifier of noisy latents of the same pictures; the seconds that it took."""
        model = self.sampler.study.model
        options = {"kind": "noisy", "model": model, "epochs": self.sampler.size.noisy_epochs}

        def make() -> dict[str, Any]:
            begun = time.perf_counter()
            self._fit(label, data, folder, options)
            return {"seconds": time.perf_counter() - begun}

        made = {"data": data.digest, "seed": self.sampler.run.seed, "sha256": digest(Path(find_model(model))), **options}
        return cached(folder.parent / f"{folder.name}.json", made, make)["seconds"]

    def _fit(self, label: Label, data: Labelled, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        run = self.sampler.run
        about = {"data": str(data.table), "label": [_classes(label)], "group": ORIGIN, "seed": run.seed, "out": str(folder)}
        return condition_fit(FitConfig.resolve({**about, **options}), run.argv, quiet=run.quiet)["summary"][label.name]

    def train(self, classifiers: Sequence[str], folder: Path, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The control's folder; what its training cost."""
        size = self.sampler.size
        options = {"prompts": list(self.sampler.prompts), "train-steps": size.train_steps, "steps": size.steps}
        options |= {"batch-size": size.batch, "checkpoint-every": 10, **self.sampler.study.settings, **(more or {})}
        config, summary, cost = self._train(classifiers, folder, options)
        return {**cost, "place": config.place, "gamma": config.gamma, "skipped": summary["skipped"], **summary["last"]}

    def train_free(self, data: Mapping[str, Labelled], classifiers: Sequence[Path], folder: Path) -> dict[str, Any]:
        """A control by classifier-free fine-tuning on all labelled pictures; what it cost.

        Of LoRA and embedding as CTRL's; the classifiers are kept in the folder to look at what is drawn, never trained by.
        """
        labels, size = self.sampler.study.labels, self.sampler.size
        options = {
            "objective": FREE,
            "data": [str(data[label.name].table) for label in labels],
            "label": [*map(_classes, labels)],
        }
        options |= {"train-steps": size.free_steps, "batch-size": size.free_batch}
        options |= {k: v for k, v in self.sampler.study.settings.items() if k in ("place", "rank")}
        _, _, cost = self._train(classifiers, folder, options)
        errors = [line["error"] for line in read_lines(folder / METRICS) if line.get("error") is not None]
        tenth = max(1, len(errors) // 10)
        return {**cost, "error": [mean(part) for part in (errors[:tenth], errors[-tenth:])]}

    def _train(
        self, classifiers: Sequence[Path | str], folder: Path, options: Mapping[str, Any]
    ) -> tuple[TrainConfig, Any, Any]:
        """The config, the summary and the cost of a control's training."""
        run = self.sampler.run
        own = {"model": self.sampler.study.model, "classifier": [*map(str, classifiers)], "seed": run.seed, "out": str(folder)}
        config = resolve_train({**own, **options})
        summary = condition_train(config, run.argv, quiet=run.quiet)["summary"]
        seconds = sum(line["seconds"] for line in read_lines(folder / TIMING))
        return config, summary, {"evaluations": summary["evaluations"], "seconds": seconds, "steps": summary["steps"]}


def _classes(label: Label) -> str:
    return f"{label.name}={','.join(label.classes)}"


def _unjudged(config: GenerateConfig) -> Parts:
    """The model alone: labelled pictures need no judge."""
    return Parts(load(config.model), None, None)
