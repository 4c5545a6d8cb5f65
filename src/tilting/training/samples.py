"""Evaluations during training: the same prompts and noise every time, sampled with the current LoRA, and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from tilting.disk import make_folder, write_atomically
from tilting.features.video import contact_sheet, frames_of
from tilting.generation.generate import Drawn, draw, plan
from tilting.generation.plan import Model, identities
from tilting.reports.grid import Cell, short, write_rows
from tilting.rewards.check import compares, framewise, takes_videos
from tilting.runs.files import write_json
from tilting.schedule import Law
from tilting.types import Denoise, Prediction, Reward, RewardError, Time

MOST_PROMPTS = 8
BEFORE, AFTER, LOOK = "before", "after", "look.json"
"""Folders of the first and the last look of a run, and the file in them that says what they hold."""
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
    model: Model,
    prompts: Sequence[str],
    images: int,
    reward: Reward | None,
    judge: Judge | None,
    steps: int,
    cfg: float,
    eta: float,
    seed: int,
    negative: str = "",
    batch: int = 16,
    device: torch.device | str = "cpu",
    context: Callable[[], AbstractContextManager] = nullcontext,
    sde: Law = "posterior",
    most: int | None = MOST_PROMPTS,
) -> Look:
    """Draw the first ``most`` different prompts, ``images`` each; they are those of `tilting generate` by this seed.
    ``context`` is entered around the network alone, as in training."""
    chosen = list(dict.fromkeys(prompts))[:most]
    who = identities(chosen, seed, images)
    pictures, evaluations = [], 0
    model = model if context is nullcontext else cast(Model, _Within(model, context))
    request = plan(model, who, steps=steps, cfg=cfg, eta=eta, sde=sde, negative_prompt=negative, batch_size=batch)
    for event in draw(model, request, device=device):
        if isinstance(event, Drawn):
            pictures.append(event.images)
            evaluations += event.counts.evaluations
    stacked, asked = torch.cat(pictures), [w.prompt for w in who]
    scored = [scores(f, stacked.to(device), asked) for f in (reward, judge)]
    return Look(asked, stacked, scored[0], scored[1], evaluations)


class _Within:
    """A model whose network is called in a context; all else is the model's own."""

    def __init__(self, model: Model, context: Callable[[], AbstractContextManager]):
        self._model, self._context = model, context

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "", **how: Any) -> Denoise:
        network = self._model.denoiser(prompts, cfg, negative, **how)

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with self._context():
                return Prediction(*(part.to(x.dtype) for part in network(x, t, rows)))

        return denoise


def scores(score: Callable[[Tensor, list[str]], Tensor] | None, images: Tensor, prompts: list[str]) -> list[float]:
    """Values of images; NaN for all where there is no score or it fails, which training reports of its own images."""
    if score is None:
        return [float("nan")] * len(images)
    each = partial(framewise, score, apart=compares(score))
    ask = each if images.ndim == 5 and not takes_videos(score) else score
    try:
        with torch.no_grad():
            return ask(images, prompts).cpu().double().tolist()
    except RewardError:
        return [float("nan")] * len(images)


def pictures_of(seen: Look) -> list[Image.Image]:
    """8-bit pictures; of a video several frames side by side."""
    return [contact_sheet(frames_of(image)) for image in seen.images]


def keep_look(seen: Look, folder: Path, place: str, step: int) -> None:
    """The pictures as files of a folder's ``place``, and at last look.json: what each is, as a run's records have it."""
    make_folder(folder / place)
    records: list[dict[str, Any]] = []
    for i, picture in enumerate(pictures_of(seen)):
        buffer = BytesIO()
        picture.save(buffer, "png")
        write_atomically(folder / place / f"{i:02d}.png", buffer.getvalue())
        prompt, (reward, judge) = seen.prompts[i], (v if v == v else None for v in (seen.rewards[i], seen.judged[i]))
        index = seen.prompts[:i].count(prompt)
        records.append({"file": f"{place}/{i:02d}.png", "prompt": prompt, "index": index, "reward": reward, "judge": judge})
    write_json(folder / place / LOOK, {"step": step, "evaluations": seen.evaluations, "images": records})


def write_look(seen: Look, path: Path, title: str) -> None:
    """A captioned grid: a row per prompt, under each image its reward and judge."""
    means, pictures = seen.numbers(), pictures_of(seen)
    rows: dict[str, list[Cell]] = {}
    for i, prompt in enumerate(seen.prompts):
        values = [v for v in (seen.rewards[i], seen.judged[i]) if v == v]
        rows.setdefault(prompt, []).append((" / ".join(map(short, values)), pictures[i]))
    totals = f"reward {short(means['sample_reward'])}, judge {short(means['judge'])}"
    write_rows(list(rows.items()), title, totals, path)
