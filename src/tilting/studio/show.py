"""Pieces of HTML that the page is fed while something runs: estimates, selections, curves, pictures, what a job does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from tilting.reports.charts import number

WIDE, HIGH, EDGE = 320.0, 120.0, 6.0
"""Width, height and margin of a curve, in its own units."""
LAST = 6
"""Selections that are told."""


def note(text: str, alert: bool = False) -> str:
    """A line for people; one that is read aloud at once where it is an ``alert``."""
    return f'<p class="note{" bad" if alert else ""}" role="{"alert" if alert else "status"}">{escape(text)}</p>'


def curve(
    title: str,
    points: Sequence[tuple[float, float]],
    last: float | None = None,
    more: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:
    """A line of points (step, value) with its range, and thinner ones behind it.

    Args:
        title: what it is of.
        points: in the order of the steps.
        last: the step at which it will end.
        more: other lines, such as each particle's.
    """
    every = [point for line in (points, *more) for point in line]
    if not every:
        return ""
    low, high = min(value for _, value in every), max(value for _, value in every)
    first, end = min(step for step, _ in every), max([*(step for step, _ in every), last or 0])
    span, wide = (high - low) or 1.0, (end - first) or 1.0

    def drawn(line: Sequence[tuple[float, float]], kind: str) -> str:
        places = [
            (EDGE + (WIDE - 2 * EDGE) * (step - first) / wide, EDGE + (HIGH - 2 * EDGE) * (high - value) / span)
            for step, value in line
        ]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places) if len(places) < 30 else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        return f'<g class="{kind}"><polyline points="{path}"/>{dots}</g>'

    lines = "".join(drawn(line, "thin") for line in more) + drawn(points, "line")
    told = f"{number(points[-1][1])} at step {points[-1][0]:g}" if points else ""
    said = escape(f"{title}: {told}; from {number(low)} to {number(high)}")
    ends = f" <span>{number(low)} … {number(high)}</span>" if low < high else ""
    head = f"<figcaption>{escape(title)} <b>{told}</b>{ends}</figcaption>"
    if len(every) == 1:  # which is no curve yet
        return f'<figure class="curve">{head}</figure>'
    drawing = f'<svg viewBox="0 0 {WIDE:g} {HIGH:g}" role="img" aria-label="{said}">{lines}</svg>'
    return f'<figure class="curve">{head}{drawing}</figure>'


def curves(titles: Mapping[str, str], rows: Sequence[Mapping[str, Any]], last: int | None = None) -> str:
    """A curve of each key that rows of numbers with a ``step`` have."""
    drawn = []
    for key, title in titles.items():
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        drawn.append(curve(title, points, last))
    return f'<div class="curves">{"".join(drawn)}</div>'


def picture(source: str, alt: str, caption: str = "", kind: str = "") -> str:
    """A picture with what is said of it."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><img src="{escape(source)}" alt="{escape(alt)}" loading="lazy">{below}</figure>'


def before_after(before: str, after: str, what: str) -> str:
    """Two pictures of one size on each other; a slider shows how much of each."""
    first, last = escape(before), escape(after)
    moved = "this.parentElement.style.setProperty('--at', this.value + '%')"
    slider = f'<input type="range" value="50" aria-label="{what}: share of the first" oninput="{moved}">'
    pictures = f'<img src="{first}" alt="the first {what}"><img src="{last}" alt="the last {what}">'
    said = f"{what}: the first left of the handle, the last right of it"
    return f'<figure class="slide">{slider}<div>{pictures}</div><figcaption>{said}</figcaption></figure>'


def particles(seen: Sequence[Sequence[str]], answer: Mapping[str, Any]) -> str:
    """The estimates of a step, a row for each image: rewards, and which of them are copied when the method selects.

    Args:
        seen: a picture for each particle of each image.
        answer: of the worker: step, values, parents.
    """
    rows, values, parents = [], answer.get("values"), answer.get("parents")
    for image, row in enumerate(seen):
        cells = []
        for place, source in enumerate(row):
            value = None if values is None or place >= len(values[image]) else values[image][place]
            children = 0 if parents is None else parents[image].count(place)
            said = f"reward {number(value)}" if value is not None else f"particle {place}"
            kind = "" if parents is None else "kept" if children else "dropped"
            mark = "" if parents is None else f" <b>×{children}</b>"
            alt = f"image {image}, particle {place}, estimate at step {answer['step']}, {said}"
            cells.append(picture(source, alt, f"{said}{mark}", kind))
        rows.append(f'<div class="strip">{"".join(cells)}</div>')
    return f'<div class="particles">{"".join(rows)}</div>'


def selections(events: Sequence[tuple[int, int, Sequence[int], Sequence[float] | None]]) -> str:
    """The last selections: (step, image, parents, values)."""
    if not events:
        return ""
    said = []
    for step, image, parents, values in events[-LAST:]:
        kept = sorted({parent for parent in parents if parent >= 0})
        best = "" if values is None else f", best reward {number(max(values))}"
        said.append(f"<li>step {step}, image {image}: particles {', '.join(map(str, kept)) or 'all'} go on{best}</li>")
    return f'<ol class="events" aria-label="selections">{"".join(said)}</ol>'


def pictures(records: Iterable[Mapping[str, Any]]) -> str:
    """Finished pictures with reward, judge, and what classifiers read off them."""
    shown = []
    for record in records:
        parts = [f"{key} {number(record[key])}" for key in ("reward", "judge") if record.get(key) is not None]
        for name, read in (record.get("labels") or {}).items():
            seen = read["read"] if "read" in read else number(read["mean"])
            parts.append(f"{name}: {escape(str(seen))}, asked {escape(str(read['asked']))}")
        source, alt = record["picture"], f"{record['prompt']}, image {record['index']}, {', '.join(parts)}"
        shown.append(picture(source, alt, "<br>".join(parts), "final"))
    return f'<div class="finals">{"".join(shown)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of texts."""
    if not rows:
        return ""
    top = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    inner = f"<table>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption or "table")}">{inner}</div>'


def link(name: str) -> str:
    """The address of a file of the workspace."""
    return f"/runs/{quote(name)}"


def inside(page: str, title: str) -> str:
    """A page of HTML inside of this one, of which it is no part."""
    return f'<iframe class="page" srcdoc="{escape(page)}" title="{escape(title)}" sandbox="allow-scripts"></iframe>'


def frame(name: str, title: str) -> str:
    """A page of the workspace inside of this one, and by itself."""
    at = escape(link(name))
    away = f'<p><a href="{at}" target="_blank" rel="noopener">open {escape(name)} by itself</a></p>'
    return f'{away}<iframe class="page" src="{at}" title="{escape(title)}" sandbox="allow-scripts" loading="lazy"></iframe>'
