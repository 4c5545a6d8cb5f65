"""`geneval`: whether a picture has the objects of a prompt's annotation, with their counts, colours and positions.

    r = mean of: 1 - |n - count| / count of each object, its colour's likewise, its place (0 or 1), no excluded object (0 or 1)

after GenEval (Ghosh et al. 2023, github.com/djghosh13/geneval, MIT), whose prompt files' further keys are the annotation:
``tag``, ``include`` [{class, count, color, position: [relation, index of an earlier object]}], ``exclude`` [{class, count}].
Policies are trained on such a mean of parts (Liu et al. 2025, Flow-GRPO; here no part is below 0); ``geneval-strict`` is
GenEval's own measure, 1 where every clause holds, else 0, with its rules: at least ``count`` of an object, its surest ones,
whose colours and places are then looked at.

A place is that of an offset of centres beyond a tenth of both sizes, whose direction has a component above 1/2: left of, right
of, above, below. A colour is the likeliest of ten to CLIP in the object's box, by three templates.

GenEval detects with Mask2Former through mmdetection, which no package here can load; these are OWL-ViT or Grounding-DINO
through transformers. So boxes that overlap are one object (a segmenter's need no such rule), a crop is a box and no mask, and
the thresholds are of those detectors: GenEval's 0.3, and 0.9 to count, are Mask2Former's. What they give has not been held
against GenEval's own detector: compare runs with each other, not with published tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.errors import TiltingError, nearest
from tilting.features.sources import Source, explained, find_folder
from tilting.lazy import torch
from tilting.rewards.declaration import REWARDS, Reads
from tilting.rewards.metadata import Told
from tilting.rewards.preferences import FOLDER, named

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.features.clip import ClipEmbedder
    from tilting.features.finder import Finder

WEIGHTS = Source("geneval", "google/owlvit-base-patch32", part="detector", size="0.6 GB", licence="Apache-2.0")
VIT_L = Source("geneval", "openai/clip-vit-large-patch14", part="CLIP of colours", size="1.7 GB", licence="MIT")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
RELATIONS = ("left of", "right of", "above", "below")
MOST = 16
"""Objects of a class that are looked at."""
NEAR = 0.1
"""Minimum distance of centres, as a share of both sizes, for a relation of position."""


class Box(NamedTuple):
    """An object: corners in pixels, and how sure the detector is."""

    left: float
    top: float
    right: float
    bottom: float
    score: float


def overlap(a: Box, b: Box) -> float:
    """Intersection over union, of boxes that hold their last pixel."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    shared = area(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom))
    whole = area(*a[:4]) + area(*b[:4]) - shared
    return shared / whole if whole else 0.0


def distinct(boxes: Sequence[Box], threshold: float, most_overlap: float) -> list[Box]:
    """The surest boxes above a threshold of which no two overlap by as much, at most `MOST`, the surest first."""
    kept: list[Box] = []
    for box in sorted((b for b in boxes if b.score > threshold), key=lambda b: -b.score):
        if len(kept) < MOST and all(most_overlap >= 1 or overlap(box, other) < most_overlap for other in kept):
            kept.append(box)
    return kept


def relations(a: Box, b: Box) -> set[str]:
    """Where a is, seen from b: none, one or two of `RELATIONS`."""
    sides = []
    for low, high in ((0, 2), (1, 3)):
        offset = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        near = NEAR * (abs(a[high] - a[low]) + abs(b[high] - b[low]))
        sides.append((offset, max(abs(offset) - near, 0.0) * (1 if offset > 0 else -1)))
    length = sum(offset**2 for offset, _ in sides) ** 0.5
    if not length or all(abs(beyond) < 1e-3 for _, beyond in sides):
        return set()
    (_, dx), (_, dy) = sides
    where = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
    return {name for name, part in where.items() if part / length > 0.5}


def wanted(metadata: Mapping[str, Any], prompt: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The objects to include and to exclude of an annotation. Raises TiltingError: there is none, or one of another form."""

    def refuse(what: str) -> TiltingError:
        return TiltingError(f"the annotation of {prompt!r} {what}, as a line of GenEval's evaluation_metadata.jsonl has it")

    include, exclude = metadata.get("include"), metadata.get("exclude") or []
    if not (isinstance(include, list) and include and isinstance(exclude, list)):
        raise refuse("has no list of objects under the key include")
    for place, one in enumerate((*include, *exclude)):
        name, count = (one.get("class"), one.get("count")) if isinstance(one, Mapping) else (None, None)
        if not (isinstance(name, str) and name.strip() and isinstance(count, int) and count >= 1):
            raise refuse("wants each object with its class and a count of at least 1")
        if one.get("color") is not None and one["color"] not in COLOURS:
            raise refuse(f"asks for the colour {one['color']!r}{nearest(str(one['color']), COLOURS)}")
        where = one.get("position")
        if where is not None:
            right = isinstance(where, list | tuple) and len(where) == 2 and where[0] in RELATIONS
            if not (right and isinstance(where[1], int) and 0 <= where[1] < place < len(include)):
                raise refuse("wants a position as [relation, index of an object before it]")
    return include, exclude


@dataclass(frozen=True)
class GenEval(Told):
    """Objects, counts, colours and places of a prompt's annotation.

    Attributes:
        finder: the frozen detector.
        clip: the frozen CLIP that tells colours.
        strict: whether the value is 1 where every clause holds and else 0; else the mean of parts.
        threshold: of the detector's score; objects below are not there.
        counting: the same where the annotation's tag is "counting".
        most_overlap: boxes of a class that overlap by as much or more are one object; 1 for none.
        metadata: annotations by prompt.
    """

    finder: Finder
    clip: ClipEmbedder
    strict: bool = False
    threshold: float = 0.1
    counting: float = 0.2
    most_overlap: float = 0.5
    name: str = "geneval"
    differentiable: bool = False
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def score(self, images: Tensor, prompts: list[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        asked = [wanted(told, prompt) for told, prompt in zip(metadata, prompts, strict=True)]
        values = []
        with torch.no_grad():
            for image, told, (include, exclude) in zip(images.detach(), metadata, asked, strict=True):
                names = tuple(dict.fromkeys(one["class"] for one in (*include, *exclude)))
                least = self.counting if told.get("tag") == "counting" else self.threshold
                found = self.finder(image, names)
                seen = {name: distinct([Box(*row) for row in found[name]], least, self.most_overlap) for name in names}
                value = self._strict if self.strict else self._parts
                values.append(value(image, seen, include, exclude))
        return torch.tensor(values, dtype=torch.float32, device=images.device)

    def colours(self, image: Tensor, boxes: Sequence[Box], name: str) -> list[str]:
        """The likeliest colour of what stands in each box of an image (3, h, w)."""
        if not boxes:
            return []
        texts = [template.format(colour=colour, name=name) for colour in COLOURS for template in TEMPLATES]
        known = self.clip.text(texts).unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
        known = known / known.norm(dim=-1, keepdim=True)
        h, w = image.shape[1:]
        told = []
        for box in boxes:
            left, top = min(max(round(box.left), 0), w - 1), min(max(round(box.top), 0), h - 1)
            crop = image[:, top : max(round(box.bottom), top + 1), left : max(round(box.right), left + 1)]
            told.append(COLOURS[int((self.clip.image(crop[None]) @ known.T).argmax())])
        return told

    def _strict(self, image: Tensor, seen: Mapping[str, list[Box]], include: Any, exclude: Any) -> float:
        """GenEval's own measure."""
        groups: list[list[Box] | None] = []
        for one in include:
            boxes = seen[one["class"]][: one["count"]]
            right = len(boxes) == one["count"]
            if right and one.get("color"):
                right = self.colours(image, boxes, one["class"]).count(one["color"]) >= one["count"]
            if right and one.get("position"):
                relation, place = one["position"]
                others = groups[place]
                right = others is not None and all(relation in relations(a, b) for a in boxes for b in others)
            groups.append(boxes if right else None)
        extra = any(len(seen[one["class"]]) >= one["count"] for one in exclude)
        return float(all(group is not None for group in groups) and not extra)

    def _parts(self, image: Tensor, seen: Mapping[str, list[Box]], include: Any, exclude: Any) -> float:
        """The mean of parts; what cannot be looked at, for the count is wrong, is 0."""

        def near(found: int, count: int) -> float:
            return max(1 - abs(found - count) / count, 0.0)

        parts: list[float] = []
        groups: list[list[Box] | None] = []
        for one in include:
            boxes, count = seen[one["class"]], one["count"]
            right = len(boxes) == count
            parts.append(near(len(boxes), count))
            if one.get("color"):
                same = self.colours(image, boxes, one["class"]).count(one["color"]) if right else 0
                parts.append(near(same, count) if right else 0.0)
                right = right and same == count
            if one.get("position"):
                relation, place = one["position"]
                others = groups[place] if right else None
                right = others is not None and all(relation in relations(a, b) for a in boxes for b in others)
                parts.append(float(right))
            groups.append(boxes if right else None)
        parts += [float(len(seen[one["class"]]) < one["count"]) for one in exclude]
        return sum(parts) / len(parts)


def _declare(name: str, about: str, units: str, strict: bool) -> Any:
    more: Any = {"weights": True, "sources": (WEIGHTS, VIT_L), "options": {"strict": strict}}
    return REWARDS.declare(name, about, units, argument=FOLDER, reads=lambda folder: Reads(clip=VIT_L.repo), **more)


@_declare("geneval-strict", "GenEval: every object, colour and place", "1 or 0", True)
@_declare("geneval", "objects, counts, colours, places of an annotation", "mean of parts", False)
def geneval(
    folder: str | Path | None = None,
    colours: str | Path | None = None,
    strict: bool = False,
    threshold: float = 0.1,
    counting: float = 0.2,
    most_overlap: float = 0.5,
) -> GenEval:
    """Objects, counts, colours and places of a prompt's annotation, which stands in the prompts file as GenEval's does.

    Args:
        folder: of an OWL-ViT or a Grounding-DINO, or a name on the hub; by default ``~/.cache/tilting/geneval``, then the hub's
            google/owlvit-base-patch32.
        colours: of the CLIP that tells colours; by default the folder ``clip`` inside, then openai/clip-vit-large-patch14.
        strict: 1 where every clause holds and else 0; by default the mean of parts.
        threshold: of the detector's score; objects below are not there.
        counting: the same where the annotation's tag is "counting".
        most_overlap: boxes of a class that overlap by as much are one object; 1 for none.

    Raises:
        TiltingError: no weights (the sentence says where to get them), or thresholds out of [0, 1].
    """
    from tilting.features import clip, finder

    for what, value in (("threshold", threshold), ("counting", counting), ("most_overlap", most_overlap)):
        if not 0 <= value <= 1:
            raise TiltingError(f"{what} of 'geneval' must be in [0, 1], not {value:g}")
    source = find_folder(WEIGHTS, folder)
    beside = Path(source) / "clip" if isinstance(source, Path) else None
    with explained(WEIGHTS, source):
        found = finder.read_finder(source)
    eye = find_folder(VIT_L, colours, beside=beside)
    with explained(VIT_L, eye, beside):
        teller = clip.ClipEmbedder(eye)
    name = named("geneval-strict" if strict else "geneval", folder)
    return GenEval(found, teller, strict, threshold, counting, most_overlap, name)
