"""Charts that are composed and not drawn, for tests that say nothing of them: drawing is half of what a small command costs."""

from __future__ import annotations

import io
from functools import cache
from typing import Any


@cache
def _empty() -> dict[str, bytes]:
    """The files of a chart of nothing, by format."""
    from matplotlib.figure import Figure

    files = {kind: io.BytesIO() for kind in ("png", "svg", "pdf")}
    for kind, file in files.items():
        Figure((1, 1)).savefig(file, format=kind)
    return {kind: file.getvalue() for kind, file in files.items()}


def undrawn(patch: Any) -> None:
    """Until the patch is undone, what is saved of a figure is that of an empty one."""
    files = _empty()

    def savefig(_: Any, file: Any, *, format: str, **__: Any) -> None:
        file.write(files[format].decode() if isinstance(file, io.StringIO) else files[format])

    patch.setattr("matplotlib.figure.Figure.savefig", savefig)
