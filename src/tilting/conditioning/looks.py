"""Evaluations during the training of a control: a few prompts and labels, with the same noise every time.

At the first look the control has learnt nothing: its pictures are the pre-trained model's, which the later ones are compared
with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilting.conditioning.readings import Watcher, mean_readings, with_readings
from tilting.conditioning.trainer import ControlTrainer
from tilting.features.schema import Schema
from tilting.generation.generate import Judge
from tilting.models.control_kl import PathKl
from tilting.models.labels import Controlled
from tilting.reports.grid import caption, short, write_rows
from tilting.training.samples import Look, look, pictures_of

MOST = 4
"""Prompts, and values of a label."""


def values_of(schema: Schema) -> list[str | float]:
    """What is asked for: classes, of many some from the first to the last; of a number three in its range."""
    if schema.kind == "classes":
        last = len(schema.classes) - 1
        chosen = range(last + 1) if last < MOST else [round(k * last / (MOST - 1)) for k in range(MOST)]
        return [schema.classes[k] for k in chosen]
    return [schema.shift + k * 1.5 * schema.scale for k in (-1, 0, 1)]


def columns_of(schemas: Sequence[Schema]) -> list[dict[str, str | float]]:
    """Values of all labels together, a mapping for each column; a label with fewer of them comes round again."""
    values = {schema.label: values_of(schema) for schema in schemas}
    return [{name: v[k % len(v)] for name, v in values.items()} for k in range(max(map(len, values.values())))]


@dataclass(frozen=True)
class ControlLook:
    """A sampling of a control.

    Attributes:
        columns: labels and what was asked for.
        looks: the pictures of each.
        records: the same, as a run's folder has them, with what classifiers read and the path KL.
    """

    columns: list[dict[str, str | float]]
    looks: list[Look]
    records: list[list[dict[str, Any]]]

    @property
    def evaluations(self) -> int:
        """What it cost."""
        return sum(one.evaluations for one in self.looks)

    def numbers(self) -> dict[str, Any]:
        """Plain values: ``judge`` and ``kl`` on average, and of each label log p and how many obey."""
        whole = [record for records in self.records for record in records]
        means, judged = mean_readings(whole), [r["judge"] for r in whole if r["judge"] is not None]
        read = {name: {k: v for k, v in one.items() if k != "asked"} for name, one in means["labels"].items()}
        judge = sum(judged) / len(judged) if judged else None
        return {"images": len(whole), "judge": judge, "kl": means["kl_mean"], "labels": read}


def look_at(trainer: ControlTrainer, judge: Judge | None) -> ControlLook:
    """Draw with a control as it is, and read what comes."""
    config, info, engine = trainer.config, trainer.info, trainer.engine
    prompts = list(dict.fromkeys(trainer.batches.prompts))[:MOST]
    watcher = Watcher(PathKl(trainer.augmented.model.schedule.grid(config.steps), config.eta))
    known, columns = trainer.classifiers(), columns_of(info.labels)
    looks, records = [], []
    for asked in columns:
        model = Controlled(trainer.augmented, {name: info.code(name, value) for name, value in asked.items()})
        model.watch = watcher
        how = config.steps, config.cfg, config.eta, config.seed, config.negative_prompt
        seen = look(model, prompts, 1, None, judge, *how, device=engine.device, context=engine.context)
        rows = [
            {"prompt": p, "reward": None, "judge": j if j == j else None} for p, j in zip(prompts, seen.judged, strict=True)
        ]
        tests = {name: (known[name], value) for name, value in asked.items() if name in known}
        looks.append(replace(seen, prompts=prompts))
        records.append(with_readings(rows, seen.images.to(engine.device), watcher.kl, tests))
    return ControlLook(columns, looks, records)


def write_control_look(seen: ControlLook, path: Path, title: str, first: Mapping[str, Any]) -> None:
    """A captioned sheet: a row for each prompt, a column for each value; on top what it comes to, and before training."""
    pictures = [pictures_of(one) for one in seen.looks]
    rows = [
        (prompt, [(caption(seen.records[j][i]), pictures[j][i]) for j in range(len(seen.columns))])
        for i, prompt in enumerate(seen.looks[0].prompts)
    ]
    now = seen.numbers()
    write_rows(rows, title, f"{told(now)}; before training: {told(first)}", path)


def told(numbers: Mapping[str, Any]) -> str:
    """What a look comes to, for people."""
    count = numbers["images"]
    said = [
        f"{name} obeyed {round(one['obeys'] * count)} of {count}" for name, one in numbers["labels"].items() if "obeys" in one
    ]
    said += [f"log p of {name} {one['log_prob']:.2f}" for name, one in numbers["labels"].items() if "obeys" not in one]
    return ", ".join([*said, f"judge {short(numbers['judge'])}", f"KL {short(numbers['kl'])}"])
