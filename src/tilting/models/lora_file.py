"""Paths and scales of LoRAs: DIR, DIR/lora or a file, each with =SCALE. Torch-free."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

from tilting.errors import TiltingError

FILE = "pytorch_lora_weights.safetensors"
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""An adapter of peft, and what it says of it."""
KOHYA_FILE = "lora.safetensors"
LoraForm = Literal["diffusers", "kohya", "peft"]
"""What a LoRA can be written as, and the file of one that A1111 reads."""
TARGET_MODULES = ("attn2", "ff", "attn1")
PAPER_TARGETS = TARGET_MODULES[:2]
"""Parts of a transformer block that a LoRA may change, and those it changes by default (Clark et al. 2024, A.1)."""
INPUTS = "sampler_inputs.safetensors"
"""What was learned of the sampler with a LoRA, beside it (`tilting.models.sampler_inputs`)."""


class LoraSpec(NamedTuple):
    """A LoRA that is asked for.

    Attributes:
        file: its weights.
        scale: of what it adds; 0 is the base model.
        text: as it was written.
    """

    file: Path
    scale: float
    text: str


def lora_file(source: str | Path) -> Path:
    """The weights in a LoRA's folder, a fine-tuning run's, or the file itself. Raises TiltingError where there are none."""
    path = Path(source)
    path = path / "lora" if (path / "lora" / FILE).is_file() else path
    if path.is_dir():
        alone = [file for file in path.glob("*.safetensors") if file.name != INPUTS]
        named = next((path / name for name in (FILE, ADAPTER_FILE) if (path / name).is_file()), None)
        path = named or (alone[0] if len(alone) == 1 else path / FILE)
    if not path.is_file():
        raise TiltingError(f"there is no LoRA at {str(source)!r}: it needs {FILE}")
    if path.suffix != ".safetensors":
        raise TiltingError(f"a LoRA is read from .safetensors only, which {str(path)!r} is not")
    return path


def lora_files(source: str | Path) -> list[Path]:
    """What a LoRA stands on: its weights, and what was learned of the sampler beside them. Raises TiltingError."""
    file = lora_file(source)
    more = [INPUTS, ADAPTER_CONFIG] if file.name == ADAPTER_FILE else [INPUTS]
    return [one for one in (file, *(file.parent / name for name in more)) if one.is_file()]


def parse_lora(text: str) -> LoraSpec:
    """Read DIR[=SCALE]; a trailing "=<number>" is the scale, 1 by default.

    Raises:
        TiltingError: no LoRA there, or a scale that is not a finite number.
    """
    source, equals, tail = text.rpartition("=")
    if not equals or Path(text).exists():
        return LoraSpec(lora_file(text), 1.0, text)
    try:
        scale = float(tail)
    except ValueError:
        raise TiltingError(f"the scale in the LoRA {text!r} must be a number, not {tail!r}") from None
    if not math.isfinite(scale):
        raise TiltingError(f"the scale in the LoRA {text!r} must be finite")
    return LoraSpec(lora_file(source), scale, text)


def parse_window(text: str) -> tuple[int, int | None]:
    """FIRST:LAST, the steps first <= i < last in which a LoRA is on; either may be left out. Raises TiltingError."""
    first, colon, last = text.strip().partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (first, last)):
        raise TiltingError(f"lora-steps is FIRST:LAST, such as 0:10 or 40:, not {text!r}")
    window = (int(first or 0), int(last) if last else None)
    if window[1] is not None and window[1] <= window[0]:
        raise TiltingError(f"lora-steps {text!r} holds no step: its last must be above its first")
    return window
