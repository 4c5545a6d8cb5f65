"""Where the noise of DRaFT-1's gradient comes from, and so how much of it DRaFT-LV's copies can take away, for Fig. 3.

    g_pij = -∇_θ r of copy j of image i of prompt p,   E|g - E g|² = V_prompt + V_image + V_copy

estimated by nested analysis of variance over P prompts, m images of each and n copies of an image, re-noised at the last grid
time as DRaFT-LV's are. Beside it the variance over images of one prompt of DRaFT-LV's mean gradient (the sample itself and two
copies) over that of DRaFT-1's (the sample alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tilting.metrics.statistics import jackknife
from tilting.models.lora_weights import read_lora
from tilting.objectives.batch import TrainBatch
from tilting.objectives.rollout import rollout
from tilting.schedule import add_noise, transition
from tilting.training.processes import Engine
from tilting.training.run import trainer_of
from tilting_papers import parts
from tilting_papers.cache import cached
from tilting_papers.draft.study import Results
from tilting_papers.numbers import Interval
from tilting_papers.page import number, shown

RUN = "draft-1"
IMAGES, COPIES = 4, 4
LV = 3
"""Gradients that DRaFT-LV sums: the sample's, and two copies'."""
SINCE = 20_000
"""Images are those of training steps that no run reaches."""
HEADS = (
    "LoRA",
    "within an image, share of all",
    "between images of a prompt, share",
    "between prompts, share",
    "within an image, share for one prompt",
    "Var LV / Var DRaFT-1",
)


def gradients(batch: TrainBatch, copies: int, parameters: Sequence[Tensor]) -> Tensor:
    """Of one image, (1 + n, p) float32: the gradient of DRaFT-1's loss, and of each copy's."""

    def flat(value: Tensor) -> Tensor:
        found = torch.autograd.grad(-value.sum(), parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    with torch.enable_grad():
        last = torch.arange(batch.steps, device="cpu") == batch.steps - 1
        clean = rollout(batch, last).clean
        rows, t, s = [flat(batch.value(clean, batch.rows))], batch.grid[-2], batch.grid[-1]
        for j in range(copies):
            noisy = add_noise(clean.detach(), batch.noise(batch.steps, f"copy{j}"), t)
            again = transition(batch.denoise(noisy, t, batch.rows), t, s, batch.eta).mean
            rows.append(flat(batch.value(again, batch.rows)))
    return torch.stack(rows)


def components(gram: Tensor) -> tuple[float, float, float]:
    """V_prompt, V_image and V_copy from inner products of the copies' gradients (P, m, n, P, m, n), without bias."""
    p, m, n = gram.shape[:3]

    def size(gathered: Tensor) -> float:  # Σ |g|² of rows from their inner products
        return gathered.diagonal().sum().item()

    one = gram.reshape(p * m * n, p * m * n)
    image = gram.mean((2, 5)).reshape(p * m, p * m)
    prompt = gram.mean((1, 2, 4, 5))
    whole = prompt.mean().item()
    ms_copy = (size(one) - n * size(image)) / (p * m * (n - 1))
    ms_image = n * (size(image) - m * size(prompt)) / (p * (m - 1))
    ms_prompt = n * m * (size(prompt) - p * whole) / (p - 1)
    return (ms_prompt - ms_image) / (n * m), (ms_image - ms_copy) / n, ms_copy


def lowered(gram: Tensor) -> float:
    """Var LV / Var DRaFT-1 over images of one prompt, from inner products (P, m, 1 + n, P, m, 1 + n), the sample first."""

    def spread(over: slice) -> float:
        means = gram[:, :, over, :, :, over].mean((2, 5))
        m = means.shape[1]
        of_prompt = [means[p, :, p, :] for p in range(len(means))]
        return sum((one.diagonal().sum() - one.sum() / m).item() / (m - 1) for one in of_prompt)

    return spread(slice(0, LV)) / spread(slice(0, 1))


def shares(gram: Tensor, prompts: Sequence[int]) -> list[float]:
    """The numbers of the table from some of the prompts; NaN of a single one."""
    if len(prompts) < 2:
        return [math.nan] * (len(HEADS) - 1)
    kept = gram[list(prompts)][:, :, :, list(prompts)]
    prompt, image, copy = components(kept[:, :, 1:, :, :, 1:])
    total = prompt + image + copy
    return [copy / total, image / total, prompt / total, copy / (image + copy), lowered(kept)]


def measured(results: Results, lora: Any, images: int, copies: int) -> list[Interval]:
    """The table's numbers with intervals, each prompt left out in turn."""
    config, rows = results.configs[RUN], []
    for prompt in config.prompts:
        loaded = results.cache.parts(config)._replace(start=read_lora(lora))
        trainer = trainer_of(replace(config, prompts=(prompt,), batch_size=1), loaded, Engine())
        parameters = list(trainer.state.parameters.values())
        rows += [gradients(trainer.batches(SINCE + i, {}), copies, parameters) for i in range(images)]
    flat = torch.cat(rows).double()
    size = (len(config.prompts), images, 1 + copies)
    gram = (flat @ flat.T).reshape(*size, *size)
    found = [jackknife(lambda some, j=j: shares(gram, some)[j], size[0]) for j in range(len(HEADS) - 1)]
    return [one.interval()._asdict() for one in found if one is not None]


def clipped(results: Results) -> dict[str, Any]:
    """How often the clip binds: the share of training steps, over seeds, whose gradient is longer than it."""
    rows = []
    for name in results.summaries:
        norms = [norm for summary in results.of_seeds(name) for norm in summary["norms"] if norm is not None]
        limit = results.configs[name].clip
        if norms:
            share = sum(norm > limit for norm in norms) / len(norms)
            rows.append([name, number(limit), f"{share:.2f}", number(sorted(norms)[len(norms) // 2], 3)])
    return {"heads": ["row", "clip", "share of steps it binds", "median gradient norm"], "rows": rows}


def binding(results: Results) -> dict[str, Any]:
    """The table of the clip."""
    return {"how often the clip binds": clipped(results)}


def measure(results: Results) -> dict[str, Any]:
    """Both tables."""
    tables = binding(results)
    if RUN not in results.summaries:
        return tables
    images, copies = (2, 2) if results.small else (IMAGES, COPIES)
    rows, numbers = [], {}
    for state, step in (("initial", 0), ("trained by DRaFT-1", None)):
        lora = results.lora(RUN, step)
        made = {"lora": parts.identity(results.out, lora), "images": images, "copies": copies}
        made["seed"] = results.configs[RUN].seed
        file = parts.file_of(results.out, f"variance-{state.partition(' ')[0]}")
        make = (lambda lora=lora: measured(results, lora, images, copies)) if lora.is_dir() else None
        found = cached(file, made, make, [{str: parts.NUMBER | None}])
        if found is None:
            results.left.append(f"the variance of the {state} LoRA's gradient")
        else:
            numbers[state] = found
            rows.append([state, *map(shown, found)])
    if not rows:
        return tables
    count = len(results.configs[RUN].prompts)
    heading = f"the variance of a gradient of one image: {count} prompts, {images} images of each, {copies} copies of an image"
    return {heading: {"heads": list(HEADS), "rows": rows, "numbers": numbers}, **tables}
