"""Evaluations of the DRaFT recipes: of models in training, and of variants of trained LoRAs.

The scores of a set of prompts are plain data: prompt, rewards by spec and judge of every image, and two spreads in the judge's
features, the mean distance of two images of one prompt and of any two images (both fall when a model collapses). The pictures
of a set are saved as one sheet, a row per prompt.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from tilting.config.finetune import FinetuneConfig
from tilting.disk import write_atomically
from tilting.metrics.diversity import mean_pairwise
from tilting.metrics.extract import judge_features
from tilting.metrics.judge import PocketJudge
from tilting.models.lora import load_lora
from tilting.models.lora_stack import Windowed
from tilting.models.lora_weights import mix, read_lora
from tilting.training.samples import look, scores
from tilting.training.trainer import NAME
from tilting_papers import parts
from tilting_papers.cache import PartsCache, cached
from tilting_papers.draft.study import Protocol, Scores, Variant


def evaluate(protocol: Protocol, model: Any, cache: PartsCache, config: FinetuneConfig, path: Path) -> dict[str, Scores]:
    """Evaluate a model on every set with the sampler of a config, and write the sheets PATH-SET.png."""
    by_set = {}
    for name, prompts in protocol.sets.items():
        first, *others = protocol.reward
        sampler = (config.steps, config.cfg, config.eta, protocol.seed, config.negative_prompt)
        judge = cache.parts(config).judge
        drawn = look(model, prompts, protocol.images, cache.reward(first), judge, *sampler, most=None)
        rewards = {first: _plain(drawn.rewards)}
        rewards |= {spec: _plain(scores(cache.reward(spec), drawn.images, drawn.prompts)) for spec in others}
        numbers = {"prompts": drawn.prompts, "rewards": rewards, "judge": _plain(drawn.judged)}
        apart = spreads(drawn.images, drawn.prompts) if judge else {"apart": {}, "spread": None}  # in its features
        by_set[name] = {**numbers, **apart, "evaluations": drawn.evaluations}
        write_sheet(drawn.images, protocol.images, path.with_name(f"{path.name}-{name}.png"))
    return by_set


def _plain(values: Sequence[float]) -> list[float | None]:
    return [None if v != v else v for v in values]


def spreads(images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
    """ "apart": by prompt, the mean distance of two of its images, none where it has one; "spread": of any two images, None for
    a single one. In the judge's unit features, so in [0, 2]."""
    features = judge_features(PocketJudge())(images)
    groups = {prompt: [i for i, p in enumerate(prompts) if p == prompt] for prompt in dict.fromkeys(prompts)}
    return {
        "apart": {prompt: mean_pairwise(features[rows]) for prompt, rows in groups.items() if len(rows) > 1},
        "spread": mean_pairwise(features) if len(features) > 1 else None,
    }


def write_sheet(images: Tensor, columns: int, path: Path) -> None:
    """Images (n, 3, h, w) in [0, 1] as one PNG, so many in a row, no gaps: `draft.charts.tile` reads them back."""
    n, _, h, w = images.shape
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    sheet = Image.new("RGB", (columns * w, -(-n // columns) * h))
    for i in range(n):
        sheet.paste(Image.fromarray(pixels[i]), (i % columns * w, i // columns * h))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def evaluate_variant(
    variant: Variant, protocol: Protocol, cache: PartsCache, config: FinetuneConfig, out: Path
) -> dict[str, Scores] | None:
    """The scores of a variant, kept in OUT/parts and drawn again if its inputs have changed; None if its weights are gone."""
    file, window = parts.file_of(out, variant.name), variant.window and list(variant.window)
    loras = [[parts.identity(out, folder), scale] for folder, scale in variant.loras]
    made = {"looks": protocol.about, "steps": config.steps, "eta": config.eta, "window": window, "loras": loras}

    def draw() -> dict[str, Scores]:
        with applied(cache.parts(config).model, variant, config.steps) as model:
            return evaluate(protocol, model, cache, config, out / "variants" / variant.name)

    return cached(file, made, draw if all(folder.is_dir() for folder, _ in variant.loras) else None, {str: parts.SCORES})


@contextmanager
def applied(model: Any, variant: Variant, steps: int) -> Iterator[Any]:
    """The model with only a variant's LoRAs, mixed as Σ w B A, inside the block."""

    def remove() -> None:
        if NAME in getattr(model.unet, "peft_config", {}):
            model.unet.delete_adapters(NAME)

    remove()
    try:
        if variant.loras:
            load_lora(model.unet, mix([read_lora(folder) for folder, _ in variant.loras], [w for _, w in variant.loras]), NAME)
        yield model if variant.window is None else Windowed(model, steps, *variant.window)
    finally:
        remove()
