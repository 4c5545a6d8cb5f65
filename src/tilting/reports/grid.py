"""Captioned image grids from run folders: `write_grid` of one run, `comparison_grid` of several side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tilting.disk import inner_path, write_atomically
from tilting.errors import TiltingError
from tilting.features.video import contact_sheet, open_frames
from tilting.runs.files import GRID, keys_of, read_manifest

SIDE, GAP, LINE, CAPTION = 192, 12, 20, 15
MOST_ROWS, MOST_COLUMNS = 60, 12
Ink = tuple[int, int, int]
INK, FAINT, PAPER = (25, 25, 25), (95, 95, 95), (255, 255, 255)


Cell = tuple[str, Image.Image]
"""The line below a picture, and the picture, of any size."""


def _fit(text: str, width: int, font) -> str:
    """The text, shortened with an ellipsis to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _lines(text: str, width: int, size: int) -> list[str]:
    """The text in lines that fit a width in pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and letters(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _across(columns: int) -> int:
    """The width of a sheet of so many columns."""
    return max(GAP + columns * (SIDE + GAP), 3 * (SIDE + GAP))


@cache
def letters(size: int) -> ImageFont.FreeTypeFont:
    """A font with Greek and Cyrillic letters too, which PIL's own lacks: matplotlib's, read without importing that."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations
    fonts = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)


def read(path: Path) -> Image.Image:
    """The picture of a file, decoded; of a video its contact sheet. Raises TiltingError, naming it."""
    try:
        return contact_sheet(open_frames(path))
    except TiltingError as error:
        raise TiltingError(f"{str(path)!r} {error}") from error


def picture_of(folder: Path, record: dict[str, Any]) -> Path:
    """Where the picture of a manifest's entry lies."""
    return inner_path(folder, record["file"], "picture", nested=True)


def short(value: float | None) -> str:
    """A number for the line under a picture; a hyphen for none."""
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"


def caption(record: Mapping[str, Any]) -> str:
    """The line under a picture of a run: of labels that were asked for what a classifier reads, else the reward."""
    said = []
    for name, read in (record.get("labels") or {}).items():
        if "obeys" in read:
            seen = f"{read['asked']} {math.exp(min(read['log_prob'], 0.0)):.2f}"
            said.append(f"{seen} \N{CHECK MARK}" if read["obeys"] else f"{seen} \N{BALLOT X} {read['read']}")
        else:
            said.append(f"{name} {read['mean']:.3g} for {float(read['asked']):.3g}")
    return ", ".join(said) or short(record["reward"])


def obeyed(summary: Mapping[str, Any], images: int | None) -> list[str]:
    """How far labels were obeyed, of a run's summary: a text for each label; none of a run without. An old run does not say of
    how many images."""
    found = []
    for name, read in (summary.get("labels") or {}).items():
        if "obeys" in read:
            share = f"{round(read['obeys'] * images)} of {images}" if images else f"{read['obeys']:.0%}"
            found.append(f"{name}={read['asked']} obeyed {share}")
        else:
            found.append(f"{name} {read['mean']:.4g} for {float(read['asked']):.4g}")
    return found


def spread(mean: float, sem: float | None) -> str:
    """A mean and its standard error, where there is one."""
    return short(mean) + (f" ± {short(sem)}" if sem is not None else "")


def _mean(summary: dict[str, Any]) -> str:
    return "no reward" if summary["reward_mean"] is None else f"reward {spread(summary['reward_mean'], summary['reward_sem'])}"


class Sheet:
    """A white sheet of cells under a header, each cell a picture with a line below; a caption line above each row.

    Args:
        rows: of cells.
        columns: of cells.
        header: lines of text above them.
    """

    def __init__(self, rows: int, columns: int, header: int):
        self.top = GAP + header * LINE + GAP
        self.row_height = LINE + SIDE + LINE + GAP
        self.width = _across(columns)
        self.image = Image.new("RGB", (self.width, self.top + rows * self.row_height), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: int, y: int, text: str, width: int, size: int = CAPTION, ink: Ink = INK) -> None:
        """A line of text, shortened to a width in pixels."""
        font = letters(size)
        self.pen.text((x, y), _fit(text, width, font), fill=ink, font=font)

    def head(self, column: int, title: str, lines: Sequence[str], below: int = 2) -> None:
        """A column's own header: its title and, so many pixels further down, lines about it."""
        x = GAP + column * (SIDE + GAP)
        size = next((s for s in range(18, 9, -1) if letters(s).getlength(title) <= SIDE), 10)
        self.text(x, GAP, title, SIDE, size)
        for k, line in enumerate(lines):
            self.text(x, GAP + (k + 1) * LINE + below, line, SIDE, size=14, ink=FAINT)

    def row(self, row: int, caption: str) -> None:
        """The line above a row."""
        self.text(GAP, self.top + row * self.row_height, caption, self.width - 2 * GAP)

    def cell(self, row: int, column: int, picture: Image.Image, line: str, ink: Ink = FAINT) -> None:
        """A picture, scaled until its longer side has SIDE pixels (whole multiples by nearest, all others by Lanczos)."""
        factor = SIDE / max(picture.size)
        how = Image.Resampling.NEAREST if factor >= 1 and factor.is_integer() else Image.Resampling.LANCZOS
        x, y = GAP + column * (SIDE + GAP), self.top + row * self.row_height + LINE
        self.image.paste(picture.resize((round(picture.width * factor), round(picture.height * factor)), how), (x, y))
        self.text(x, y + SIDE + 2, line, SIDE, ink=ink)

    def save(self, path: Path) -> None:
        """Write it as PNG, whole or not at all."""
        buffer = io.BytesIO()
        self.image.save(buffer, "png", compress_level=4)  # the best level takes nine times as long
        write_atomically(path, buffer.getvalue())


def sheet_of(rows: Sequence[tuple[str, Sequence[Cell]]], title: str, below: str) -> Sheet:
    """A sheet of pictures, a caption over every row, a title and what is said below it on top, in as many lines as it takes."""
    columns = max(len(cells) for _, cells in rows)
    inside = _across(columns) - 2 * GAP
    head = [(line, 17, INK) for line in _lines(title, inside, 17)]
    head += [(line, CAPTION, FAINT) for line in _lines(below, inside, CAPTION)]
    sheet = Sheet(len(rows), columns, len(head))
    for k, (line, size, ink) in enumerate(head):
        sheet.text(GAP, GAP + k * LINE + 2 * (ink == FAINT), line, inside, size, ink)
    for i, (caption, cells) in enumerate(rows):
        sheet.row(i, caption)
        for j, (line, picture) in enumerate(cells):
            sheet.cell(i, j, picture, line)
    return sheet


def write_rows(rows: Sequence[tuple[str, Sequence[Cell]]], title: str, below: str, path: Path) -> Path:
    """`sheet_of` in a file, which is given back."""
    sheet_of(rows, title, below).save(path)
    return path


def write_grid(folder: Path, manifest: dict[str, Any]) -> Path:
    """``grid.png`` of a run: `run_sheet` of its files."""
    run_sheet(manifest, lambda record: read(picture_of(folder, record))).save(folder / GRID)
    return folder / GRID


def run_sheet(manifest: dict[str, Any], picture: Callable[[dict[str, Any]], Image.Image]) -> Sheet:
    """A run: a row per prompt, its images side by side, the reward under each, totals on top."""
    rows: dict[str, list[dict]] = {}
    for record in manifest["images"]:
        rows.setdefault(record["prompt"], []).append(record)
    summary, config = manifest["summary"], manifest["config"]
    particles = f", N = {config['particles']}" if (config["particles"] or 1) > 1 else ""
    loras = [f"LoRA {lora}" for lora in config.get("lora") or []]
    beside = "".join(f", {word}" for word in (*loras, *(config.get("label") or [])))
    if config.get("image"):
        at = f" at {config['strength']:g}" if config.get("strength") is not None else ""
        beside += f", from {Path(config['image']).name}{at}"
    title = f"{config['method']}{particles}{beside}, {config['steps']} steps, {' + '.join(config['reward']) or 'no reward'}"
    totals = f"{_mean(summary)}, {summary['evaluations']} evaluations, {summary['seconds']:.1f} s"
    shown = [(prompt, records[:MOST_COLUMNS]) for prompt, records in rows.items()][:MOST_ROWS]
    if sum(len(records) for _, records in shown) < len(manifest["images"]):
        totals += f" (part of {len(manifest['images'])} images)"
    totals = ", ".join([*obeyed(summary, len(manifest["images"])), totals])
    cells = [(prompt, [(caption(r), picture(r)) for r in records]) for prompt, records in shown]
    return sheet_of(cells, title, totals)


def comparison_grid(runs: Sequence[tuple[str, str | Path]], path: str | Path, per_prompt: int = 1) -> Path:
    """Runs side by side: a column each, a row per prompt (and image of it), rewards under the pictures.

    Args:
        runs: (title, folder) of each; all of the same prompts, images and seed.
        path: the PNG to write.
        per_prompt: how many images of each prompt to show.
    """
    manifests = [(title, Path(folder), read_manifest(Path(folder)) or {}) for title, folder in runs]
    keys = [key for key in keys_of(manifests[0][2]["images"]) if key[1] < per_prompt][:MOST_ROWS]
    sheet = Sheet(len(keys), len(runs), header=4)
    for j, (title, folder, manifest) in enumerate(manifests):
        summary = manifest["summary"]
        said = obeyed(summary, len(manifest["images"]))[:1] or [_mean(summary)]
        sheet.head(j, title, [*said, f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"])
        by_key = dict(zip(keys_of(manifest["images"]), manifest["images"], strict=True))
        for i, key in enumerate(keys):
            if key in by_key:
                sheet.cell(i, j, read(picture_of(folder, by_key[key])), caption(by_key[key]))
    for i, (prompt, _) in enumerate(keys):
        sheet.row(i, prompt)
    sheet.save(Path(path))
    return Path(path)
