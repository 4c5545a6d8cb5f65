"""Attaches LoRAs, and sampler inputs that were learned with one, to a loaded model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tilting.errors import TiltingError
from tilting.models.lora import adapters, remove
from tilting.models.lora_file import LoraSpec
from tilting.models.lora_stack import STACKED, Windowed, stack


def attach_all(model: Any, loras: Sequence[LoraSpec], steps: int, window: tuple[int, int | None] | None = None) -> Any:
    """Stack LoRAs on a model, each by its scale, in place of those stacked before; within a window of steps if there is one.
    Sampler inputs that were learned with one come along, as much of them as of it.

    Raises:
        TiltingError: if one does not fit the model, naming it, or if two bring sampler inputs.
    """
    from tilting.models.sampler_inputs import read_inputs  # which imports torch

    learned = [(spec, inputs) for spec in loras if (inputs := read_inputs(spec.file.parent)) is not None]
    if len(learned) > 1:
        both = " and ".join(repr(spec.text) for spec, _ in learned[:2])
        raise TiltingError(f"{both} both learned the sampler's inputs: draw with one of them")
    remove(model, [name for name in adapters(model) if re.fullmatch(STACKED + r"\d+", name)])
    names = [stack(model, spec) for spec in loras]
    if learned:
        model = learned[0][1].to(model.device).on(model, learned[0][0].scale)
    return model if window is None else Windowed(model, steps, *window, names=names)
