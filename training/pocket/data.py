"""The drawings: fetched by npm, rendered by resvg, composed over backgrounds into 64x64 training pictures.

A sprite is a drawing rendered once at 128x128 as premultiplied RGBA. A picture is a sprite flipped, scaled, turned a
little and moved, laid over a background (a named colour with jitter, flat or a gradient), and reduced to 64x64.
Every random choice comes from the generator that the caller passes: a batch is a function of (seed, step).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tilting.models.words import Words, load_words, phrase

HERE = Path(__file__).parent
WORK = HERE / "work"
ASSETS = Path(os.environ.get("POCKET_ASSETS", HERE.parent.parent / "src" / "tilting" / "assets"))
STYLES = {"noto": "noto", "twemoji": "twemoji", "fluent": "fluent-emoji-flat"}
COLOURS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "gray": (150, 152, 156),
    "red": (214, 48, 49),
    "orange": (245, 140, 32),
    "yellow": (250, 215, 70),
    "green": (76, 175, 80),
    "teal": (42, 188, 182),
    "blue": (52, 110, 220),
    "purple": (132, 70, 190),
    "pink": (246, 150, 190),
    "brown": (128, 84, 56),
}
HELD_OUT = 0.1  # of (concept, style, colour) triples; white is always shown, so that every drawing is seen
SKIN = re.compile(r"skin-tone|-tone\d|-(medium-)?(light|dark)(-|$)|-medium$|^flag-|^(regional|keycap)")


def log_of(part: str) -> Path:
    """The training log of a part: this machine's own, else the one committed with the assets."""
    here = WORK / f"{part}.jsonl"
    return here if here.exists() else HERE / "logs" / f"{part}.jsonl"


def read_concepts() -> list[tuple[str, str, str]]:
    """(slug, words, category) of every concept in concepts.txt, in order."""
    rows, category = [], ""
    for line in (HERE / "concepts.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("["):
            category = line.strip("[]")
            continue
        for item in line.split():
            slug, _, name = item.partition("=")
            rows.append((slug, (name or slug).replace("-", " ") if slug != "t-rex" and slug != "t-shirt" else slug, category))
    return rows


def read_aliases(concepts: list[str]) -> dict[str, int]:
    """The concept's index of every alias in aliases.txt; a concept's own name is never an alias of another."""
    out = {}
    for line in (HERE / "aliases.txt").read_text().splitlines():
        name, _, rest = line.partition(":")
        for alias in filter(None, map(str.strip, rest.split(","))):
            if not line.startswith("#") and alias not in concepts:
                out[alias] = concepts.index(name)
    return out


def write_words(folder: Path) -> Words:
    """Write words.json: the vocabulary and the combinations that stay untrained."""
    rows = read_concepts()
    draw = np.random.default_rng(2026).random((len(rows), len(STYLES), len(COLOURS)))
    draw[:, :, 0] = 1.0
    raw = {
        "concepts": [name for _, name, _ in rows],
        "categories": [category for _, _, category in rows],
        "styles": list(STYLES),
        "colours": {name: list(rgb) for name, rgb in COLOURS.items()},
        "aliases": read_aliases([name for _, name, _ in rows]),
        "held_out": [list(map(int, t)) for t in np.argwhere(draw < HELD_OUT)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.json").write_text(json.dumps(raw, separators=(",", ":")) + "\n")
    return load_words(folder)


def render_sprites(size: int = 128) -> Path:
    """Fetch (npm, if not there yet) and render all drawings; returns the folder of sprites.npy and sprites.json.

    sprites.npy is uint8 (n, 4, size, size), premultiplied RGBA; sprites.json lists [name, style, concept or -1].
    Concepts come first: sprite 3 * concept + style.
    """
    out = WORK / "sprites"
    if (out / "sprites.json").exists():
        return out
    import io

    import resvg_py  # a training-only dependency
    from PIL import Image

    if not (HERE / "node_modules").exists():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=HERE, check=True)
    sets = {s: json.loads((HERE / f"node_modules/@iconify-json/{p}/icons.json").read_text()) for s, p in STYLES.items()}
    concepts = read_concepts()
    jobs = [(style, slug, name, c) for c, (slug, name, _) in enumerate(concepts) for style in STYLES]
    known = {slug for slug, _, _ in concepts}
    for style, icons in sets.items():
        for slug, icon in icons["icons"].items():
            if slug not in known and not icon.get("hidden") and not SKIN.search(slug):
                jobs.append((style, slug, slug.replace("-", " "), -1))
    sprites, rows = [], []
    for style, slug, name, c in jobs:
        icons = sets[style]
        icon = icons["icons"][slug]
        w, h = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {w} {h}" width="{size}" height="{size}">{icon["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
        rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((size, size)), dtype=np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        sprites.append(rgba.round().astype(np.uint8).transpose(2, 0, 1))
        rows.append([name, list(STYLES).index(style), c])
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "sprites.npy", np.stack(sprites))
    (out / "sprites.json").write_text(json.dumps(rows))
    return out


@dataclass(frozen=True)
class Batch:
    """Pictures and what they show.

    Attributes:
        images: (b, 3, 64, 64) float in [0, 1].
        sprite, concept, style, background: (b,) labels; concept is -1 outside the vocabulary.
    """

    images: torch.Tensor
    sprite: torch.Tensor
    concept: torch.Tensor
    style: torch.Tensor
    background: torch.Tensor


class Drawings:
    """All sprites in memory, and the composition of batches from them."""

    def __init__(self, words: Words):
        folder = render_sprites()
        self.words = words
        self.sprites = torch.from_numpy(np.load(folder / "sprites.npy"))
        rows = json.loads((folder / "sprites.json").read_text())
        self.names = [r[0] for r in rows]
        self.style = torch.tensor([r[1] for r in rows])
        self.concept = torch.tensor([r[2] for r in rows])
        self.known = 3 * len(words.concepts)
        rest = torch.arange(self.known, len(self.names))
        self.others, self.unseen = rest[rest % 20 != 7], rest[rest % 20 == 7]  # 1 in 20 is kept for measuring
        self.palette = torch.tensor(list(words.colours.values())).float() / 255
        shape = (len(words.concepts), len(words.styles), len(words.colours))
        held = torch.zeros(shape, dtype=torch.bool)
        held[tuple(torch.tensor(sorted(words.held_out)).T)] = True
        self.trained = ~held

    def backgrounds(self, sprite: torch.Tensor, gen: torch.Generator, allowed: torch.Tensor, white: float):
        """A colour index for each sprite: white with that probability, else uniform over what ``allowed`` permits."""
        concept, style = self.concept[sprite], self.style[sprite]
        weights = torch.ones(len(sprite), len(self.palette))
        inside = concept >= 0
        weights[inside] = allowed[concept[inside], style[inside]].float()
        colour = torch.multinomial(weights + 1e-12, 1, generator=gen)[:, 0]
        keep = torch.rand(len(sprite), generator=gen) < white
        return torch.where(keep & (weights[:, 0] > 0), 0, colour)

    def compose(self, sprite: torch.Tensor, background: torch.Tensor, gen: torch.Generator, flip: bool = True) -> Batch:
        """Lay sprites over their background colours with jitter; see the module's first lines."""
        b = len(sprite)

        def uniform(lo: float, hi: float) -> torch.Tensor:
            return lo + (hi - lo) * torch.rand(b, generator=gen)

        rgba = self.sprites[sprite].float() / 255
        scale, angle = uniform(0.78, 0.97), uniform(-0.06, 0.06)
        room = 0.6 * (1 - scale)
        dx, dy = uniform(-1, 1) * room, uniform(-1, 1) * room
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(b)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        theta = torch.stack(
            [
                torch.stack([mirror * cos, mirror * -sin, -mirror * (cos * dx - sin * dy)], -1),
                torch.stack([sin, cos, -(sin * dx + cos * dy)], -1),
            ],
            1,
        )
        grid = F.affine_grid(theta, [b, 4, 128, 128], align_corners=False)
        rgba = F.grid_sample(rgba, grid, align_corners=False)
        base = (self.palette[background] + 0.06 * torch.randn(b, 3, generator=gen)).clamp(0, 1)
        slope = torch.where(uniform(0, 1) < 0.35, uniform(0.05, 0.22), 0.0)
        turn = uniform(0, 6.2832)
        ramp = torch.linspace(-1, 1, 128)
        field = turn.cos()[:, None, None] * ramp[None, None, :] + turn.sin()[:, None, None] * ramp[None, :, None]
        pure = (background == 0) & (uniform(0, 1) < 0.7)  # most white backgrounds are pure white
        back = base[:, :, None, None] + (slope[:, None, None] * field)[:, None]
        back = torch.where(pure[:, None, None, None], torch.ones(()), back.clamp(0, 1))
        image = F.avg_pool2d(rgba[:, :3] + (1 - rgba[:, 3:]) * back, 2).clamp(0, 1)
        return Batch(image, sprite, self.concept[sprite], self.style[sprite], background)

    def batch(
        self, size: int, seed: int, step: int, known: float = 1.0, allowed: torch.Tensor | None = None, white: float = 0.25
    ) -> Batch:
        """The training batch of this step.

        Args:
            size: pictures in the batch.
            seed, step: what the batch is a function of.
            known: fraction of pictures drawn from the concepts (the rest from the other drawings, the unseen ones excepted).
            allowed: bool (concepts, styles, colours), the combinations that may appear; default: all but held out.
            white: probability of a white background on top of its uniform share.
        """
        gen = torch.Generator().manual_seed(seed * 1_000_003 + step)
        inside = torch.rand(size, generator=gen) < known
        a = torch.randint(self.known, (size,), generator=gen)
        b = self.others[torch.randint(len(self.others), (size,), generator=gen)]
        sprite = torch.where(inside, a, b)
        background = self.backgrounds(sprite, gen, self.trained if allowed is None else allowed, white)
        return self.compose(sprite, background, gen)


def prompts_of(batch: Batch, drawings: Drawings, gen: torch.Generator, empty: float = 0.1) -> list[str]:
    """A prompt for each picture: the style is named 80 %, a background half the time, an alias now and then, 10 % are empty."""
    u = torch.rand(len(batch.sprite), 5, generator=gen)
    w = drawings.words
    aliases: dict[int, list[str]] = {}
    for alias, concept in w.aliases.items():
        aliases.setdefault(concept, []).append(alias)
    out = []
    for i, (c, s, bg) in enumerate(zip(batch.concept.tolist(), batch.style.tolist(), batch.background.tolist(), strict=True)):
        if u[i, 0] < empty:
            out.append("")
            continue
        style = s if u[i, 1] < 0.8 else None
        colour = bg if u[i, 2] < 0.5 else None
        if c >= 0:
            others = aliases.get(c, [])
            use = others and u[i, 4] < 0.25
            text = phrase(w, others[int(u[i, 4] * 4 * len(others))] if use else w.concepts[c], style, colour)
        else:
            text = drawings.names[int(batch.sprite[i])]
        out.append(text.removeprefix("a ").removeprefix("an ") if u[i, 3] < 0.1 else text)
    return out
