"""Self-contained pages: a template of `templates/` with pictures inlined and colours by CSS class."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.reports.charts import number, typeset
from tilting.reports.words import anchor

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The page of a template; what it names and is not given is an error.

    Args:
        template: its file.
        filters: its own, besides ``number``, ``typeset``, ``svg`` and ``anchor``.
        values: what it names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {"number": number, "svg": Markup, "anchor": anchor, "typeset": typeset, **filters}
    return jinja.get_template(template).render(values)


def inlined(image: Image, most: int | None = None, lossless: bool = False) -> str:
    """A picture as a data URI.

    Args:
        image: it; scaled down in place.
        most: pixels that it may be wide or high; None leaves it.
        lossless: keep every pixel.
    """
    from PIL.Image import Resampling

    if most is not None:
        image.thumbnail((most, most), Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "webp", **({"lossless": True} if lossless else {"quality": 88, "method": 4}))
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def colours(names: Sequence[str], steered: Sequence[str]) -> dict[str, str]:
    """A CSS class of every name: one of its own for what is steered, grey for the base model."""
    return {name: f"c{steered.index(name) % 8}" if name in steered else "cb" for name in names}
