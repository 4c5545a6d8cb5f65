"""LoRAs on a model: stacked, replaced, or active in a window of steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.models.lora import activate, active, adapters, load_lora, remove, switched, tells, without
from tilting.models.lora_file import LoraSpec
from tilting.models.lora_weights import read_lora

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.types import Denoise, Prediction, Time

STACKED, TEACHER = "stacked", "teacher"
"""What the names of stacked adapters begin with: those that draw, and those that are distilled."""


def stack(model: Any, spec: LoraSpec, kind: str = STACKED) -> str:
    """Put a LoRA beside those stacked before; the name of its adapter. Raises TiltingError, naming it, if it does not fit."""
    held = adapters(model)
    name = next(name for i in range(len(held) + 1) if (name := f"{kind}{i}") not in held)
    try:
        load_lora(model, read_lora(spec.file, model), name, spec.scale)
    except TiltingError as error:
        raise TiltingError(f"{spec.text!r}: {error}") from error
    return name


def in_place_of(model: Any, off: Sequence[str], specs: Sequence[LoraSpec]) -> Callable[[], AbstractContextManager[None]]:
    """Stack LoRAs that stay off, and give a block in which they are on, all of them at once, in place of others. Those stacked
    so before are removed. Raises TiltingError, naming it, for one that does not fit or is of a text encoder too."""
    remove(model, [name for name in adapters(model) if re.fullmatch(TEACHER + r"\d+", name)])
    names: list[str] = []
    for spec in specs:
        names.append(stack(model, spec, TEACHER))
        if tells(model, names):
            remove(model, names)
            raise TiltingError(f"{spec.text!r} changes a text encoder, and words are read once, by the student's own")
    activate(model, [name for name in active(model) if name not in names])

    def block() -> AbstractContextManager[None]:
        return switched(model, lambda before: [*(n for n in before if n not in off), *names])

    return block


class Windowed:
    """A model whose LoRAs are on only in some steps of a grid (Clark et al. 2024, Figs 10, 24-27); all else is the model's own.
    A control that is attached to it is on in all of them.

    Args:
        model: with LoRAs attached.
        steps: of the grid.
        first, last: the LoRAs are on in the steps first <= i < last.
        names: of the adapters; default those that are active now.
    """

    def __init__(self, model: Any, steps: int, first: int = 0, last: int | None = None, names: Sequence[str] | None = None):
        grid = list(model.schedule.grid(steps))
        self._model, self._on = model, {t.t for t in grid[first : steps if last is None else last]}
        self._names = tuple(active(model) if names is None else names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def _at(self, t: Time) -> AbstractContextManager[None]:
        return nullcontext() if t.t in self._on else without(self._model, self._names)

    def network(self, x: Tensor, t: Time, context: Any) -> Tensor:
        """See `Pipeline.network`: what controls ask."""
        with self._at(t):
            return self._model.network(x, t, context)

    def guided_network(self, prompts: list[str], cfg: float, negative: str = "", **how: Any) -> Any:
        """See `Pipeline.guided_network`."""
        return replace(self._model.guided_network(prompts, cfg, negative, **how), within=self._at)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "", **how: Any) -> Denoise:
        """See `Pipeline.denoiser`: what is told of a prompt is read where the LoRAs are on, or off."""
        denoise = self._model.denoiser(prompts, cfg, negative, **how)

        def inside(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with self._at(t):
                return denoise(x, t, rows)

        return inside
