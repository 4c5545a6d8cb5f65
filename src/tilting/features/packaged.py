"""Paths of the networks in this package. Torch-free."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_ASSETS = Path(__file__).parent.parent / "assets"
POCKET = _ASSETS / "pocket"
"""The diffusion model."""
POCKET_BRIGHT = _ASSETS / "pocket-bright"
"""A control of pocket's."""
POCKET_CLIP = _ASSETS / "pocket-clip"
"""The CLIP that the rewards `clip` and `style` read."""
POCKET_JUDGE = _ASSETS / "pocket-judge"
"""The judge, which no reward reads."""
MARK = re.compile(r"<\|([^|>]*)\|>")
"""A special token, which no prompt may write into a question."""


@cache
def _template(name: str) -> str:
    return (_ASSETS / "questions" / f"{name}.txt").read_text(encoding="utf-8")


def question(name: str, prompt: str) -> str:
    """What a published reward asks of a picture, about a prompt."""
    return _template(name).replace("{prompt}", MARK.sub(r"\1", prompt))
