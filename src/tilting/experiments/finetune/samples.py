"""What is looked at during training: the same prompts and noise at every look, drawn by the LoRA as it is, and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tilting.experiments.generate import Drawn, draw, plan
from tilting.experiments.grid import FAINT, GAP, LINE, SIDE, _number, _Sheet
from tilting.experiments.plan import Model, identities
from tilting.types import Reward, RewardError

MOST_PROMPTS = 8
Judge = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class Look:
    """A sampling.

    Attributes:
        prompts: of each image.
        images: (n, 3, h, w) in [0, 1].
        rewards, judged: n numbers each; NaN where there is none.
        evaluations: what it cost.
    """

    prompts: list[str]
    images: Tensor
    rewards: list[float]
    judged: list[float]
    evaluations: int

    def numbers(self) -> dict[str, float | None]:
        """Means; None where no image has a value."""
        return {"judge": _mean(self.judged), "sample_reward": _mean(self.rewards)}


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None


def look(
    model: Model, prompts: Sequence[str], images: int, reward: Reward, judge: Judge | None, steps: int, cfg: float, eta: float,
    seed: int, negative: str = "", batch: int = 16, device: torch.device | str = "cpu",
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Look:  # fmt: skip
    """Draw the first `MOST_PROMPTS` different prompts, ``images`` each; they are those of `tilting generate` by this seed.
    ``context`` is entered to draw (autocast) and not to score."""
    chosen = list(dict.fromkeys(prompts))[:MOST_PROMPTS]
    who = identities(chosen, seed, images)
    pictures, evaluations = [], 0
    request = plan(model, who, steps=steps, cfg=cfg, eta=eta, negative=negative, batch_size=batch)
    with context():
        for event in draw(model, request, device=device):
            if isinstance(event, Drawn):
                pictures.append(event.images)
                evaluations += event.counts.evaluations
    stacked, asked = torch.cat(pictures), [w.prompt for w in who]
    scored = [_scores(f, stacked.to(device), asked) for f in (reward, judge)]
    return Look(asked, stacked, scored[0], scored[1], evaluations)


def _scores(score: Callable[[Tensor, list[str]], Tensor] | None, images: Tensor, prompts: list[str]) -> list[float]:
    """Values of images; NaN for all where there is no score or it fails, which training reports of its own images."""
    if score is None:
        return [float("nan")] * len(images)
    try:
        with torch.no_grad():
            return score(images, prompts).double().tolist()
    except RewardError:
        return [float("nan")] * len(images)


def write_look(seen: Look, path: Path, title: str) -> None:
    """A captioned grid: a row per prompt, under each image its reward and judge."""
    rows: dict[str, list[int]] = {}
    for i, prompt in enumerate(seen.prompts):
        rows.setdefault(prompt, []).append(i)
    sheet: Any = _Sheet(len(rows), max(len(found) for found in rows.values()), header=2)
    means = seen.numbers()
    sheet.text(GAP, GAP, title, sheet.width - 2 * GAP, size=17)
    totals = f"reward {_number(means['sample_reward'])}, judge {_number(means['judge'])}"
    sheet.text(GAP, GAP + LINE + 2, totals, sheet.width - 2 * GAP, ink=FAINT)
    for i, (prompt, found) in enumerate(rows.items()):
        sheet.row(i, prompt)
        for j, k in enumerate(found):
            values = [v for v in (seen.rewards[k], seen.judged[k]) if v == v]
            sheet.cell(i, j, _picture(seen.images[k]), " / ".join(map(_number, values)))
    sheet.save(path)


def _picture(image: Tensor) -> Image.Image:
    """The picture at SIDE pixels."""
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array)
    factor = SIDE / max(picture.size)
    how = Image.Resampling.NEAREST if factor >= 1 and factor.is_integer() else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), how)
