"""Where a model runs and in which precision. Torch-free to import.

The network and the text encoders run in the precision asked for; latents, noise, schedules and the autoencoder stay float32,
and log-weights float64 on the CPU. Noise is always drawn on the CPU, so that a picture is the same drawing on every device.
"""

from __future__ import annotations

import re

from tilting.errors import TiltingError, nearest
from tilting.lazy import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
FULL = "fp32"
PRECISIONS = (FULL, "fp16", "bf16")
ELSEWHERE = {
    "gpu": "cuda",
    **dict.fromkeys(("float32", "float", "full"), FULL),
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
}
"""What other tools call them."""


def check_device(text: str) -> str:
    """The name of a device, as it is. Raises TiltingError for what is not one."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text) is None:
        raise TiltingError(f"device cannot be {text!r}{nearest(ELSEWHERE.get(text, text), (*DEVICES, 'cuda:0'))}")
    return text


def device_of(text: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else MPS, else the CPU. Raises TiltingError for one not here."""
    kind, _, number = check_device(text).partition(":")
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if kind == "auto":
        return torch.device(next(name for name, count in here.items() if count))
    if int(number or 0) >= here[kind]:
        raise TiltingError(f"there is no device {text!r} here: use --device auto or cpu")
    return torch.device(text)


def check_precision(text: str) -> str:
    """The name of a precision, as it is. Raises TiltingError for what is not one."""
    if text not in PRECISIONS:
        raise TiltingError(f"precision cannot be {text!r}{nearest(ELSEWHERE.get(text, text), PRECISIONS)}")
    return text


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a precision. Raises TiltingError for what is not one."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[check_precision(precision)]
