"""Captioned pictures of runs, from their folders alone: `write_grid` of one, `comparison_grid` of several side by side."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tilting.experiments.folder import MANIFEST, write_atomically

SIDE, GAP, LINE, CAPTION = 192, 12, 20, 15
MOST_ROWS, MOST_COLUMNS = 60, 12
INK, FAINT, PAPER = (25, 25, 25), (95, 95, 95), (255, 255, 255)


def _font(size: int = CAPTION):
    return ImageFont.load_default(size)


def _fit(text: str, width: int, font) -> str:
    """The text, shortened with an ellipsis to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _picture(path: Path) -> Image.Image:
    """The picture at SIDE pixels: whole multiples of small ones by nearest, all others by Lanczos."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    factor = SIDE / max(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    how = Image.Resampling.NEAREST if factor >= 1 and factor.is_integer() else Image.Resampling.LANCZOS
    return image.resize(size, how)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"


def _mean(summary: dict[str, Any]) -> str:
    if summary["reward_mean"] is None:
        return "no reward"
    sem = summary["reward_sem"]
    return f"reward {_number(summary['reward_mean'])}" + (f" ± {_number(sem)}" if sem is not None else "")


class _Sheet:
    """A white sheet of cells under a header, each cell a picture with a line below; a caption line above each row."""

    def __init__(self, rows: int, columns: int, header: int):
        self.top = GAP + header * LINE + GAP
        self.row_height = LINE + SIDE + LINE + GAP
        self.width = max(GAP + columns * (SIDE + GAP), 3 * (SIDE + GAP))
        self.image = Image.new("RGB", (self.width, self.top + rows * self.row_height), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: int, y: int, text: str, width: int, size: int = CAPTION, ink=INK) -> None:
        font = _font(size)
        self.pen.text((x, y), _fit(text, width, font), fill=ink, font=font)

    def row(self, row: int, caption: str) -> None:
        self.text(GAP, self.top + row * self.row_height, caption, self.width - 2 * GAP)

    def cell(self, row: int, column: int, picture: Image.Image, line: str) -> None:
        x, y = GAP + column * (SIDE + GAP), self.top + row * self.row_height + LINE
        self.image.paste(picture, (x, y))
        self.text(x, y + SIDE + 2, line, SIDE, ink=FAINT)

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        self.image.save(buffer, "png", optimize=True)
        write_atomically(path, buffer.getvalue())


def write_grid(folder: Path, manifest: dict[str, Any]) -> Path:
    """``grid.png`` of a run: a row per prompt, its images side by side, the reward under each, totals on top."""
    rows: dict[str, list[dict]] = {}
    for record in manifest["images"]:
        rows.setdefault(record["prompt"], []).append(record)
    shown = list(rows.items())[:MOST_ROWS]
    columns = min(MOST_COLUMNS, max(len(records) for _, records in shown))
    summary, config = manifest["summary"], manifest["config"]
    sheet = _Sheet(len(shown), columns, header=2)
    particles = f", N = {config['particles']}" if (config["particles"] or 1) > 1 else ""
    title = f"{config['method']}{particles}, {config['steps']} steps, {' + '.join(config['reward']) or 'no reward'}"
    totals = f"{_mean(summary)}, {summary['evaluations']} evaluations, {summary['seconds']:.1f} s"
    cut = len(shown) < len(rows) or any(len(records) > columns for _, records in shown)
    if cut:
        totals += f" (part of {len(manifest['images'])} images)"
    sheet.text(GAP, GAP, title, sheet.width - 2 * GAP, size=17)
    sheet.text(GAP, GAP + LINE + 2, totals, sheet.width - 2 * GAP, ink=FAINT)
    for i, (prompt, records) in enumerate(shown):
        sheet.row(i, prompt)
        for j, record in enumerate(records[:columns]):
            sheet.cell(i, j, _picture(folder / record["file"]), _number(record["reward"]))
    path = folder / "grid.png"
    sheet.save(path)
    return path


def comparison_grid(runs: Sequence[tuple[str, str | Path]], path: str | Path, per_prompt: int = 1) -> Path:
    """Runs side by side: a column each, a row per prompt (and image of it), rewards under the pictures.

    Args:
        runs: (title, folder) of each; all of the same prompts, images and seed.
        path: the PNG to write.
        per_prompt: how many images of each prompt to show.
    """
    manifests = [(title, Path(folder), json.loads((Path(folder) / MANIFEST).read_bytes())) for title, folder in runs]
    keys = [(r["prompt"], r["index"]) for r in manifests[0][2]["images"] if r["index"] < per_prompt][:MOST_ROWS]
    sheet = _Sheet(len(keys), len(runs), header=4)
    for j, (title, folder, manifest) in enumerate(manifests):
        summary, x = manifest["summary"], GAP + j * (SIDE + GAP)
        sheet.text(x, GAP, title, SIDE, size=18)
        lines = [_mean(summary), f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"]
        for k, line in enumerate(lines):
            sheet.text(x, GAP + (k + 1) * LINE + 2, line, SIDE, size=14, ink=FAINT)
        by_key = {(r["prompt"], r["index"]): r for r in manifest["images"]}
        for i, key in enumerate(keys):
            if key in by_key:
                sheet.cell(i, j, _picture(folder / by_key[key]["file"]), _number(by_key[key]["reward"]))
    for i, (prompt, _) in enumerate(keys):
        sheet.row(i, prompt)
    sheet.save(Path(path))
    return Path(path)
