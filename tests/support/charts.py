"""Charts that are composed and not drawn, for tests that say nothing of them: drawing is half of what a small command costs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

KINDS = ("png", "svg", "pdf")


@cache
def _empty(kind: str) -> bytes:
    """The file of a chart of nothing."""
    from matplotlib.figure import Figure

    file = io.BytesIO()
    Figure((1, 1)).savefig(file, format=kind)
    return file.getvalue()


def undrawn(patch: Any, kinds: Sequence[str] = KINDS) -> None:
    """Until the patch is undone, what is saved of a figure in one of these formats is that of an empty one."""
    from matplotlib.figure import Figure

    draw, empty = Figure.savefig, {kind: _empty(kind) for kind in kinds}

    def savefig(figure: Any, file: Any, *, format: str, **how: Any) -> None:
        if format not in empty:
            return draw(figure, file, format=format, **how)
        file.write(empty[format].decode() if isinstance(file, io.StringIO) else empty[format])

    patch.setattr(Figure, "savefig", savefig)
