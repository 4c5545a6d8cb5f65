"""Where the networks of this package lie. Torch-free."""

from __future__ import annotations

from pathlib import Path

_ASSETS = Path(__file__).parent.parent / "assets"
POCKET = _ASSETS / "pocket"
"""The diffusion model."""
POCKET_CLIP = _ASSETS / "pocket-clip"
"""The CLIP that the rewards `clip` and `style` read."""
POCKET_JUDGE = _ASSETS / "pocket-judge"
"""The judge, which no reward reads."""
