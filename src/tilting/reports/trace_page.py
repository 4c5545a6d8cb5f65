"""Page and figure of a trace (`tilting.reports.trace`): a film strip with lines of descent, rewards, gradients, a scrubber.

`page` gives HTML that fetches nothing: trace.html, or the content of an ``<iframe srcdoc>`` that shows a run live.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilting.disk import write_atomically
from tilting.reports.charts import GREY, ORANGE, number
from tilting.reports.pages import fill
from tilting.reports.text import listed
from tilting.reports.trace import Node, Trace, read_trace

PAGE, FIGURE = "trace.html", "trace.png"
MOST_IMAGES = 24
"""Maximum number of images in a page; the folder has all."""
FIGURE_COLUMNS = 8
"""Looks of the figure, at most: the first and the last, and those between at which particles were selected."""


GAP = 34
"""Pixels between two columns of the film, where lines of descent run."""
LANE = 46
"""Pixels of the rows below it: selections, gradients."""
CURVE = 120
"""Pixels of the chart of rewards."""


def page(traces: Sequence[Trace], title: str = "How it was drawn", more: int = 0) -> str:
    """One page of HTML that fetches nothing and runs in an ``<iframe srcdoc>`` too.

    Args:
        traces: of images, finished or not.
        title: of the page.
        more: images that it leaves out.
    """
    return fill("trace.html", {"number": number}, traces=[_view(trace) for trace in traces], title=title, more=more)


def write_page(folder: Path, numbers: Sequence[int], title: str) -> Path:
    """``trace.html`` of these images of a run's folder, and ``trace.png`` of the first."""
    shown = [read_trace(folder, one) for one in numbers[:MOST_IMAGES]]
    write_atomically(folder / PAGE, page(shown, title, len(numbers) - len(shown)).encode())
    write_atomically(folder / FIGURE, figure(shown[0]))
    return folder / PAGE


def _view(trace: Trace) -> dict[str, Any]:
    """What the template shows of a trace: places in pixels, and words."""
    looks, shown, lit = trace.looks, trace.shown(), trace.ancestry()
    most = max(look.count for look in looks)
    thumb = 56 if most <= 6 else 44 if most <= 12 else 30
    w, h = (thumb, round(thumb * trace.side[1] / trace.side[0]))
    line = h + (18 if most <= 12 else 4)
    film = most * line
    x_of = _columns(trace, shown, w + GAP)
    edges = trace.edges(shown)
    columns = []
    for at in shown:
        look = looks[at]
        columns.append(
            {
                "x": x_of[at],
                "name": _name(trace, at),
                "ess": None if look.ess is None else f"{look.ess:.3g} of {look.count}",
                "cells": [_cell(trace, at, j, edges, lit) for j in range(look.count)],
            }
        )
    lines = [
        {"path": _curve(x_of[a] + w, i * line + h / 2, x_of[b], j * line + h / 2), "lit": (b, j) in lit and (a, i) in lit}
        for (a, i), (b, j) in edges
    ]
    return {
        "trace": trace,
        "uri": "data:image/webp;base64," + base64.b64encode(trace.sheet).decode(),
        "columns": columns,
        "lines": sorted(lines, key=lambda one: one["lit"]),
        "w": w,
        "h": h,
        "line": line,
        "film": film,
        "width": max(x_of) + w,
        "rewards": _rewards(trace, x_of, w, lit),
        "selections": [
            {"x": x_of[at] + w / 2, "share": look.ess / look.count, "words": f"{look.ess:.3g} of {look.count}"}
            for at, look in enumerate(looks)
            if look.ess is not None
        ],
        "gradients": _gradients(trace, x_of, w),
        "lanes": (CURVE, LANE),
        "reward": None if trace.kept is None or looks[-1].values is None else looks[-1].values[trace.kept],
        "narrow": most > 12,
    }


def _columns(trace: Trace, shown: Sequence[int], wide: int) -> list[float]:
    """The left edge of every look in pixels; one without pictures lies between those that have some."""
    places = {at: k * wide for k, at in enumerate(shown)}
    found, before = [], shown[0]
    for at in range(len(trace.looks)):
        before = at if at in places else before
        after = next((k for k in shown if k > before), before)
        share = (at - before) / max(1, after - before)
        found.append(places[before] + share * (places[after] - places[before]))
    return found


def _name(trace: Trace, at: int) -> str:
    last = trace.kept is not None and at == len(trace.looks) - 1
    return "x\u2080" if last else str(trace.looks[at].step)


def _cell(trace: Trace, at: int, j: int, edges: Sequence[tuple[Node, Node]], lit: set[Node]) -> dict[str, Any]:
    """A particle's picture, and the words below it."""
    look, last = trace.looks[at], at == trace.shown()[-1]
    assert look.first is not None
    place = look.first + j
    origin = next((a for a, b in edges if b == (at, j)), None)
    children = sorted(b[1] for a, b in edges if a == (at, j))
    words = []
    if origin is not None and origin[1] != j:
        words.append(f"from {origin[1]}")
    if trace.kept is not None and last:
        words += ["the picture"] if trace.kept == j else []
    elif not last and not children:
        words.append("given up")
    elif not last and children != [j]:
        words.append(f"goes on as {listed([str(one) for one in children])}")
    if look.moved is not None and look.moved[j] > 0:
        words.append(f"gradient {number(look.moved[j])}")
    if look.guided is not None and j < len(look.guided):
        words.append(f"guided {number(look.guided[j])}")
    return {
        "j": j,
        "x": place % trace.columns,
        "y": place // trace.columns,
        "value": None if look.values is None else look.values[j],
        "lit": (at, j) in lit,
        "gone": not last and not children,
        "pulled": look.moved is not None or look.guided is not None,
        "words": " \u00b7 ".join(words),
    }


def _curve(x: float, y: float, to_x: float, to_y: float) -> str:
    """An SVG path from one picture to the next."""
    middle = to_x - GAP / 2 if to_x - x > GAP else (x + to_x) / 2
    return f"M{x:g} {y:g}L{to_x - GAP:g} {y:g}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}"


def _rewards(trace: Trace, x_of: Sequence[float], w: int, lit: set[Node]) -> dict[str, Any] | None:
    """Points and lines of the rewards over the run, in pixels; None where there are none."""
    known = trace.rewards()
    if not known:
        return None
    low, high = min(known.values()), max(known.values())
    span = (high - low) or 1.0

    def place(node: Node) -> tuple[float, float]:
        return x_of[node[0]] + w / 2, 8 + (CURVE - 16) * (1 - (known[node] - low) / span)

    lines = []
    for before, node in trace.descents():
        (x, y), (u, v) = place(before), place(node)
        lines.append({"path": f"M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}", "lit": node in lit and before in lit})
    dots = [(*place(node), node in lit) for node in known]
    return {"low": low, "high": high, "lines": sorted(lines, key=lambda one: one["lit"]), "dots": dots}


def _gradients(trace: Trace, x_of: Sequence[float], w: int) -> list[dict[str, Any]]:
    """Where gradients moved latents, and how far, as shares of the farthest."""
    found = []
    for at, look in enumerate(trace.looks):
        for sizes, x in ((look.moved, x_of[at] + w / 2), (look.guided, x_of[at] + w + GAP / 2)):
            if sizes:
                found.append((x, max(sizes)))
    most = max((size for _, size in found), default=0) or 1.0
    return [{"x": x, "share": size / most, "words": number(size)} for x, size in found]


def figure(trace: Trace) -> bytes:
    """A PNG for papers: some looks side by side, every particle's estimate, who comes from whom, and rewards over the run."""
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path as Curve
    from PIL import Image

    looks, lit = trace.looks, trace.ancestry()
    shown = _chosen(trace)
    most = max(looks[at].count for at in shown)
    ratio = trace.side[1] / trace.side[0]
    known = any(look.values for look in looks)
    inch = min(0.8, 7 / most)
    wide, high = 1.55 * len(shown), (ratio + 0.28) * most + 0.3
    axis, below = _canvas(wide * inch, high * inch, known)
    sheet = Image.open(io.BytesIO(trace.sheet)).convert("RGB")
    for c, at in enumerate(shown):
        look, x = looks[at], 1.55 * c
        axis.text(x + 0.5, 0.12, _name(trace, at) if c else f"step {_name(trace, at)}", ha="center", size=8)
        for j in range(look.count):
            y = -(ratio + 0.28) * (j + 1) + 0.28
            k = (look.first or 0) + j
            left, top = k % trace.columns * trace.side[0], k // trace.columns * trace.side[1]
            cell = sheet.crop((left, top, left + trace.side[0], top + trace.side[1]))
            axis.imshow(cell, extent=(x, x + 1, y, y + ratio), interpolation="none" if trace.side[0] <= 64 else "antialiased")
            colour, line = (ORANGE, 1.8) if (at, j) in lit else ("none", 0)
            axis.add_patch(Rectangle((x, y), 1, ratio, fill=False, edgecolor=colour, linewidth=line))
            if look.values is not None:
                axis.text(x + 0.5, y - 0.04, number(look.values[j]), ha="center", va="top", size=min(7, 20 * inch), color=GREY)
    place = {at: c for c, at in enumerate(shown)}
    for (a, i), (b, j) in trace.edges(shown):
        x, u = 1.55 * place[a] + 1.02, 1.55 * place[b] - 0.02
        y, v = (-(ratio + 0.28) * (k + 1) + 0.28 + ratio / 2 for k in (i, j))
        colour, line = (ORANGE, 1.8) if (b, j) in lit and (a, i) in lit else (GREY, 0.6)
        curve = Curve([(x, y), ((x + u) / 2, y), ((x + u) / 2, v), (u, v)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
        axis.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=line))
    axis.set(xlim=(-0.1, wide - 0.45), ylim=(-(ratio + 0.28) * most, 0.5), aspect="equal")
    axis.axis("off")
    if below is not None:
        _curves(below, trace, lit)
    buffer = io.BytesIO()
    axis.figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def _canvas(wide: float, high: float, curves: bool) -> tuple[Any, Any]:
    """Axes of a figure of a size in inches, and axes below them or None."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(max(wide, 3.2), high + 1.4 * curves), layout="constrained")
    FigureCanvasAgg(made)
    if not curves:
        return made.add_subplot(), None
    upper, lower = made.subplots(2, 1, height_ratios=(high, 1.4))
    return upper, lower


def _chosen(trace: Trace) -> list[int]:
    """The looks of the figure."""
    shown = trace.shown()
    selected = [at for at in shown if trace.looks[at].parents is not None]
    wanted = sorted({shown[0], *selected, shown[-1]}) if len(selected) > 1 else shown
    if len(wanted) <= FIGURE_COLUMNS:
        return wanted
    return sorted({wanted[round(k * (len(wanted) - 1) / (FIGURE_COLUMNS - 1))] for k in range(FIGURE_COLUMNS)})


def _curves(axis: Any, trace: Trace, lit: set[Node]) -> None:
    """Rewards over the run along the lines of descent, and where gradients acted."""
    known, last = trace.rewards(), len(trace.looks) - 1

    def place(node: Node) -> tuple[float, float]:
        return trace.looks[node[0]].step + (trace.kept is not None and node[0] == last), known[node]

    for before, node in sorted(trace.descents(), key=lambda pair: pair[0] in lit and pair[1] in lit):
        mine = before in lit and node in lit
        points = [place(before), place(node)]
        axis.plot(
            *zip(*points, strict=True), color=ORANGE if mine else GREY, linewidth=1.8 if mine else 0.6, alpha=1 if mine else 0.7
        )
    pulled = [look.step for look in trace.looks if look.moved or look.guided]
    if pulled:
        axis.plot(pulled, [0.03] * len(pulled), "^", transform=axis.get_xaxis_transform(), markersize=3.5, color="#9a4fc4")
    axis.set_ylabel("reward", size=8)
    axis.set_xlabel("step" + (" (triangles: gradients)" if pulled else ""), size=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
