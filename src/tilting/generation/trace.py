"""Recording of `--trace`: every particle's estimate at each step, its reward, and its parent.

A `Recorder` listens to the events of `tilting.generation.generate.draw`; what it decodes and scores beside the method is its
own cost, and changes no result. The method's own rewards are kept where it looked; an estimate that only the trace looks at is
scored by the run's reward, where that says anything of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilting import weights
from tilting.generation.generate import Drawn, Step
from tilting.generation.plan import Model, Plan, decoder_of
from tilting.generation.score import Scorer
from tilting.lazy import np, torch
from tilting.reports.trace import Look, Node, Trace
from tilting.state import Info, flat, in_chunks
from tilting.types import TiltingError

if TYPE_CHECKING:
    from torch import Tensor

MOST_PIXELS = 4_000_000
"""Maximum pixels of all pictures of a trace together, which bounds its file: pictures are shrunk to fit."""
SIDE, LEAST = 128, 16
"""Pixels of a picture's longer side, at most and at least."""
WIDE = 8192
"""Pixels of a sheet of pictures: a WEBP has at most 16383 a side."""


@dataclass
class _Seen:
    """A look at a group: of every image (b) and particle (n)."""

    step: int
    parents: list[list[int]] | None
    ess: list[float] | None
    moved: list[list[float]] | None
    guided: list[list[float]] | None
    values: list[list[float]] | None
    count: int
    thumbs: Any = None
    x0: Tensor | None = None


class Recorder:
    """Listens to a run.

    Args:
        model: what draws.
        plan: what is drawn.
        every: looks from one picture to the next; the first look and x_0 are always shown, and the lineage is always whole.
    """

    def __init__(self, model: Model, plan: Plan, every: int = 1):
        self.model, self.plan, self.every = model, plan, every
        self.who, self.seen, self.x, self.side = (), [], None, (0, 0)

    def __call__(self, event: Step | Drawn) -> list[Trace]:
        """Listen to an event; the traces of the images of a group that is finished, in its order."""
        if isinstance(event, Step):
            if event.who is not self.who:
                self.who, self.seen = event.who, []
            self.x = event.state.x
            if event.info.x0 is not None:
                self.seen.append(self._look(event.info))
            return []
        assert self.x is not None
        last = self._pictured(self.x, None if event.values is None else event.values)
        last.step = self.seen[-1].step if self.seen else 0
        kept = [0] * len(event.who) if event.kept is None else event.kept.tolist()
        for i, reward in enumerate(event.reward or ()):
            if last.values is not None:
                last.values[i][kept[i]] = reward
        return [self._trace(i, last, kept[i]) for i in range(len(event.who))]

    def so_far(self) -> list[Trace]:
        """The traces of the group that is being drawn, whose x_0 is not there yet."""
        return [self._trace(i, None, None) for i in range(len(self.who))] if self.seen else []

    def _look(self, info: Info) -> _Seen:
        assert info.x0 is not None
        if len(self.seen) % self.every == 0:
            seen = self._pictured(info.x0, info.value)
        else:
            seen = _Seen(0, None, None, None, None, _listed(info.value), info.x0.shape[1])
        seen.step, seen.parents = info.step, _listed(info.parents)
        seen.ess = None if info.log_w is None else weights.ess(info.log_w).tolist()
        seen.moved, seen.guided = _listed(info.moved), _listed(info.guided)
        seen.x0 = None if self.plan.method.engine is None else info.x0.cpu()
        return seen

    def _pictured(self, x0: Tensor, value: Tensor | None) -> _Seen:
        """Estimates decoded, and scored where the method has not done it."""
        b, n = x0.shape[:2]
        prompts = [one.prompt for one in self.who]
        columns = flat(x0)[:2]
        with torch.no_grad():
            images = None
            if value is None and self.plan.reward is not None:
                scorer = Scorer(self.model, self.plan.reward, prompts)
                scorer.kept = []
                try:
                    (value,) = in_chunks(lambda a, r: (scorer(a, r),), self.plan.batch_size, *columns)
                    images = scorer.scored()[0] if scorer.kept else None  # a reward of latents decodes none
                    value = value.cpu().double().reshape(b, n)
                except TiltingError:  # a reward that says nothing of an estimate: the method did not ask for it
                    value = None
            if images is None:
                decode = decoder_of(self.model, prompts)
                (images,) = in_chunks(lambda a, r: (decode(a, r).float().cpu(),), self.plan.batch_size, *columns)
        return _Seen(0, None, None, None, None, _listed(value), n, self._thumbs(images, n))

    def _thumbs(self, images: Tensor, n: int) -> Any:
        """Pictures (m, 3, h, w), or videos' middle frames, as bytes (m, h, w, 3) of a size that fits."""
        images = images[:, images.shape[1] // 2] if images.dim() == 5 else images
        h, w = images.shape[-2:]
        cells = n * (1 + math.ceil(self.plan.ticks / self.every))
        most = max(LEAST, min(SIDE, math.sqrt(MOST_PIXELS / cells * max(h, w) / min(h, w))))
        if max(h, w) > most:
            ratio = most / max(h, w)
            size = max(1, int(h * ratio)), max(1, int(w * ratio))
            images = torch.nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        self.side = (images.shape[-1], images.shape[-2])
        return (images.clamp(0, 1).nan_to_num(0).permute(0, 2, 3, 1) * 255).round().byte().numpy()

    def _trace(self, i: int, last: _Seen | None, kept: int | None) -> Trace:
        """The trace of image i."""
        who, looks, cells = self.who[i], [], []
        every = [*self.seen, *([] if last is None else [last])]
        for at, (seen, origins) in enumerate(zip(every, self._origins(i, last), strict=True)):
            first = None
            if seen.thumbs is not None:
                first = len(cells)
                cells += list(seen.thumbs[i * seen.count : (i + 1) * seen.count])
            looks.append(
                Look(
                    seen.step,
                    seen.count,
                    origins if at else None,
                    _of(seen.values, i),
                    _of(seen.parents, i),
                    None if seen.ess is None else seen.ess[i],
                    _of(seen.moved, i),
                    _of(seen.guided, i),
                    first,
                )
            )
        columns = max(1, min(len(cells), WIDE // self.side[0]))
        told = (who.prompt, who.index, who.seed, self.plan.preset.name, self.plan.ticks)
        return Trace(*told, tuple(looks), kept, self.side, columns, self.every, _sheet(cells, columns))

    def _origins(self, i: int, last: _Seen | None) -> Iterator[tuple[Node, ...]]:
        """For each recorded step, the earlier (step, particle) that each of its particles descends from."""
        on: list[Node] = []
        for at, seen in enumerate(self.seen):
            yield tuple(on[j * len(on) // seen.count] for j in range(seen.count)) if on else ()
            here = [(at, j) for j in range(seen.count)]
            parents = range(seen.count) if seen.parents is None else seen.parents[i]
            on = [on[k] if parent < 0 else here[parent] for k, parent in enumerate(parents)]
        if last is not None:
            yield tuple(self._same(i, j) or on[j * len(on) // last.count] for j in range(last.count))

    def _same(self, i: int, j: int) -> Node | None:
        """Where an engine keeps the best x_0 that it saw: which look's it is."""
        if self.x is None or self.plan.method.engine is None:
            return None
        end = self.x[i, j].cpu()
        found = ((at, k) for at, seen in enumerate(self.seen) for k in range(seen.count) if torch.equal(seen.x0[i, k], end))  # type: ignore[index]
        return next(found, None)


def _listed(values: Tensor | None) -> Any:
    return None if values is None else values.tolist()


def _of(rows: list[list[Any]] | None, i: int) -> tuple[Any, ...] | None:
    return None if rows is None else tuple(rows[i])


def _sheet(cells: list[Any], columns: int) -> bytes:
    """Pictures (h, w, 3) side by side, as a WEBP."""
    from PIL import Image

    if not cells:
        return b""
    h, w = cells[0].shape[:2]
    whole = np.zeros((math.ceil(len(cells) / columns) * h, columns * w, 3), np.uint8)
    for k, cell in enumerate(cells):
        y, x = k // columns * h, k % columns * w
        whole[y : y + h, x : x + w] = cell
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "webp", quality=85, method=4)
    return buffer.getvalue()
