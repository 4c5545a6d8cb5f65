"""Gradients of DRaFT-K on one batch for every K, measured for Fig. 8 (`draft.fig8`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tilting.models.lora_weights import read_lora
from tilting.objectives import draft_k
from tilting.training.batches import Batches
from tilting.training.processes import Engine
from tilting.training.run import trainer_of
from tilting.training.trainer import Trainer
from tilting_papers import parts
from tilting_papers.cache import cached
from tilting_papers.draft.fig8 import FIFTY, MEASURES, STATES
from tilting_papers.draft.study import Results, of_fifty, seeded
from tilting_papers.numbers import Values, interval
from tilting_papers.page import shown

BATCHES, SMALL_BATCHES = 4, 2
"""Of every training seed."""
RUN = "draft-1"
T = TypeVar("T")


def gradients(trainer: Trainer[Batches], ks: list[int], step: int) -> dict[int, Tensor]:
    """By K, the gradient of DRaFT-K's loss on the batch of a training step, flat, float64; the weights stay as they are."""
    by_k, parameters = {}, list(trainer.state.parameters.values())
    for k in ks:
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            for loss in draft_k(k)(trainer.batches(step, {})):
                loss.value.backward()
        by_k[k] = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in parameters])
    for p in parameters:
        p.grad = None
    return by_k


def angle(a: Tensor, b: Tensor) -> float:
    """Between two vectors, in degrees; 90 if one of them is zero. By tan(φ/2), for arccos is blind to small angles."""
    if not a.norm() or not b.norm():
        return 90.0
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2((a - b).norm().item(), (a + b).norm().item()))


def measured(trainer: Trainer[Batches], ks: list[int], batches: int, since: int = 10_000) -> list[dict[str, list[float]]]:
    """Per batch, by measure, a number for every K. Batches are those of training steps that no run reaches."""
    rows = []
    for i in range(batches):
        g = gradients(trainer, ks, since + i)
        angles = {name: [angle(g[k], g[of]) for k in ks] for name, of in (("to_full", ks[-1]), ("to_first", ks[0]))}
        rows.append({"norm": [g[k].norm().item() for k in ks], **angles})
    return rows


def by_batch(by_seed: Sequence[Sequence[T]], number: Callable[[T], float]) -> Values:
    """A number of every batch; each seed has batches of its own."""
    return {(seed, f"{seed}-{i}", 0): number(row) for seed, rows in enumerate(by_seed) for i, row in enumerate(rows)}


def measure(results: Results) -> dict[str, Any]:
    """Both states' tables, each kept in a file of the folder."""
    config, count = results.configs[RUN], len(results.of_seeds(RUN))
    seeds = results.study.given or range(config.seed, config.seed + count)
    ks = list(dict.fromkeys(of_fifty(k, results.size.steps) for k in FIFTY))
    batches = SMALL_BATCHES if results.small else BATCHES
    tables = {}
    for state in STATES:
        by_seed = []
        for seed in range(count):
            lora, mine = results.lora(RUN, 0 if state == "initial" else None, seed), replace(config, seed=seeds[seed])
            made = {"lora": parts.identity(results.out, lora), "ks": ks, "batches": batches}
            made |= {"batch": mine.batch_size, "seed": mine.seed}

            def make(lora=lora, mine=mine) -> Any:
                loaded = results.cache.parts(mine)._replace(start=read_lora(lora))
                return measured(trainer_of(mine, loaded, Engine()), ks, batches)

            file = parts.file_of(results.out, seeded(f"gradients-{state}", seed))
            by_seed.append(cached(file, made, make if lora.is_dir() else None, [{str: [parts.NUMBER]}]))
        if None in by_seed:
            results.left.append(f"gradients of the {state} LoRA")
            continue
        rows = [row for mine in by_seed for row in mine]
        cells = {
            what: [interval(by_batch(by_seed, lambda row, j=j, what=what: row[what][j]), seeded=True) for j in range(len(ks))]
            for what in MEASURES
        }
        lines = [[k, *(shown(cells[what][j]) for what in MEASURES)] for j, k in enumerate(ks)]
        table = {"heads": ["K", *MEASURES.values()], "state": state, "ks": ks, "cells": cells, "batches": rows, "rows": lines}
        table["seeds"] = [i for i, mine in enumerate(by_seed) for _ in mine]
        about = f" for each of {count} training seeds" if count > 1 else ""
        tables[f"gradients of the {state} LoRA, {batches} batches of {config.batch_size}{about}"] = table
    return tables
