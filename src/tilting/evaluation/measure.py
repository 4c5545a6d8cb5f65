"""Features and scores of every image of a run, by named instruments that are loaded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilting.config.evaluate import EvaluateConfig
from tilting.config.picture import read_picture, read_video
from tilting.errors import TiltingError
from tilting.evaluation.read_runs import Run
from tilting.features.clip import ClipEmbedder
from tilting.features.lpips import Lpips, load_lpips
from tilting.features.video import read_frames
from tilting.metrics import METRICS, Metric
from tilting.metrics.alignment import caption
from tilting.metrics.extract import Extractor, clip_embedder, clip_features, judge_features, read_batches
from tilting.metrics.inception import inception
from tilting.metrics.judge import PocketJudge
from tilting.metrics.perceptual import gram_features
from tilting.models.placement import device_of
from tilting.models.words import read_prompt
from tilting.rewards.check import checked
from tilting.rewards.metadata import informed
from tilting.rewards.spec import build_one, parse_spec, split_weight
from tilting.runs.processes import Processes

KINDS = ("concept", "style", "background")
VARIANTS = ("cmmd_unbiased",)
"""Metrics that stand beside another one in the table of distances alone."""


@dataclass(frozen=True)
class Instruments:
    """What images are measured with.

    Attributes:
        judge: pocket-judge.
        clip: of CMMD, T-CLIP and I-Gram.
        clip_name: its name.
        fid, embed: the extractors of FID, and of CLIP embeddings.
        spread: the extractor of diversity, when there is no LPIPS.
        lpips: LPIPS, of diversity; None without its weights.
        gram: VGG Gram features (b, 3, h, w) -> (b, d), or None.
        targets: prompt -> the file of the picture that its images are compared with: the reference picture, or their input.
    """

    judge: PocketJudge
    clip: ClipEmbedder
    clip_name: str
    fid: Extractor
    embed: Extractor
    spread: Extractor
    lpips: Lpips | None = None
    gram: Extractor | None = None
    targets: Mapping[str, Path] = field(default_factory=dict)
    _seen: dict[Path, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def names(self) -> dict[str, str]:
        """Name of the network that each metric is measured in."""
        names = {
            "fid": self.fid.name,
            "cmmd": self.embed.name,
            "tclip": self.clip_name,
            "igram_clip": self.clip_name,
            "diversity": "LPIPS (VGG16)" if self.lpips else self.spread.name,
            "judge": "pocket-judge",
            "labels": "pocket-judge",
        }
        names |= {"lpips_input": names["diversity"]} if self.lpips else {}
        return names | ({"igram_vgg": self.gram.name} if self.gram else {})

    def references(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What metrics take of the pictures that images of these prompts are compared with; NaN where there is none."""
        if not self.targets:
            return {}
        files = [self.targets.get(prompt) for prompt in prompts]
        seen = [None if file is None else self._look(file) for file in files]
        first = next((one for one in seen if one is not None), None) or self._look(next(iter(self.targets.values())))
        none = {name: torch.full_like(value, torch.nan) for name, value in first.items()}
        found = {name: torch.stack([(one or none)[name] for one in seen]) for name in first}
        if self.lpips is not None:
            blank, shape = torch.full(images.shape[1:], torch.nan), images.shape[1:]
            found["reference"] = torch.stack([blank if file is None else _in_shape(file, shape) for file in files])
        return found

    def _look(self, file: Path) -> dict[str, Tensor]:
        """The features of a picture, found once."""
        if file not in self._seen:
            picture = read_frames(file)[None]
            gram = {} if self.gram is None else {"gram_reference": self.gram(picture)[0]}
            self._seen[file] = {"clip_reference": self.embed(picture)[0], **gram}
        return self._seen[file]

    def inputs(self, images: Tensor, prompts: list[str]) -> dict[str, Any]:
        """What metrics take of a batch of images (b, 3, h, w), by name."""
        spread = self.spread(images)
        gram = {} if self.gram is None or not self.targets else {"gram": self.gram(images)}
        return {
            "images": images,
            "prompts": prompts,
            "judge": self.judge,
            "clip": self.embed(images),
            "captions": self.clip.text([caption(prompt) for prompt in prompts]),
            "spread": spread,
            "fid": spread if self.fid is self.spread else self.fid(images),
            "lpips": self.lpips,
            **gram,
        }


def _in_shape(file: Path, shape: Sequence[int]) -> Tensor:
    """A picture (3, h, w) or a video (frames, 3, h, w) of a file."""
    *frames, _, height, width = shape
    return read_video(file, frames[0], height, width)[0] if frames else read_picture(file, height, width)[0]


def load_instruments(config: EvaluateConfig, targets: Mapping[str, Path]) -> Instruments:
    """Load what a request names; ``targets`` as `Instruments` has them. Raises TiltingError for weights that do not load."""
    judge = PocketJudge()
    name, clip = clip_embedder(config.clip)
    own = judge_features(judge)
    fid, lpips, gram = own, None, None
    if config.inception:
        fid = inception(config.inception)
    if config.lpips:
        lpips = load_lpips(config.vgg or "", config.lpips)
    if config.vgg:
        gram = gram_features(config.vgg)
    return Instruments(judge, clip, name, fid, clip_features(name, clip), own, lpips, gram, targets)


def metrics_of(kind: str) -> list[Metric]:
    """The metrics of a kind, in order: those that need more than runs come last."""
    return sorted((metric for metric in METRICS.values() if metric.of == kind), key=lambda metric: bool(metric.needs))


def brief_metrics(*kinds: str) -> list[Metric]:
    """Those of kinds (all, where none is named) that stand in every table: any run has them."""
    metrics = [metric for kind in kinds or ("image", "prompt", "sets") for metric in metrics_of(kind)]
    return [metric for metric in metrics if not metric.needs and metric.name not in VARIANTS]


def says(metric: Metric, *images: int) -> bool:
    """Whether a distance of sets of so many images says something."""
    return min(images) >= metric.fewest


def heads() -> list[tuple[str, str]]:
    """Names and short titles of `brief_metrics`."""
    return [(one.name, {"judge": "judge", "diversity": "diversity"}.get(one.name, one.title)) for one in brief_metrics()]


@dataclass
class Measured:
    """A run in numbers, image by image in the order of its manifest.

    Attributes:
        features: by input of a metric, (n, d) of all images.
        scores: by metric of an image, n numbers, NaN where there is none.
        of_prompt: by metric of a prompt, by prompt, where it has two images.
        rewards: by spec without weight, n numbers, from the manifest where it has them.
        asked, read: "concept", "style", "background" -> n names, None where the prompt does not say.
        pictured: rewards from the picture files (8 bits), of those that some run's manifest lacks.
    """

    features: dict[str, Tensor]
    scores: dict[str, list[float]]
    of_prompt: dict[str, dict[str, float]]
    rewards: dict[str, list[float]]
    asked: dict[str, list[str | None]]
    read: dict[str, list[str]]
    pictured: dict[str, list[float]] = field(default_factory=dict)


BATCH = 32
"""Pictures that are looked at at once."""


def batches(count: int) -> list[slice]:
    """Slices that split ``count`` pictures into batches, the unit that processes share."""
    return [slice(first, first + BATCH) for first in range(0, count, BATCH)]


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Named columns of batches as whole ones."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def looked_at(
    files: Sequence[Path],
    prompts: Sequence[str],
    look: Callable[[Tensor, list[str]], Mapping[str, Tensor]],
    together: Processes,
) -> dict[str, Tensor]:
    """What ``look(images, prompts)`` gives of pictures in order, each process looking at some. Raises TiltingError naming one
    that cannot be read."""

    def work(rows: slice) -> dict[str, Tensor]:
        done, parts = rows.start, []
        for images in read_batches(files[rows], read=read_frames):
            parts.append(look(images, list(prompts[done : done + len(images)])))
            done += len(images)
        return joined(parts)

    return joined(together.map_items(batches(len(files)), work))


def measure(run: Run, tools: Instruments, together: Processes) -> Measured:
    """Look at every picture of a run once (and once more for LPIPS), each process at some. Raises TiltingError naming a corrupt
    picture."""
    files = [run.folder / record["file"] for record in run.records]
    prompts, words = run.prompts, tools.judge.words
    names = {"concept": words.concepts, "style": words.styles, "background": tuple(words.colours)}
    recorded = {"judge": [record["judge"] for record in run.records]}
    scores = {name: values for name, values in recorded.items() if None not in values}
    kept = {name for kind in ("prompt", "sets") for metric in metrics_of(kind) for name in metric.takes}
    kept -= {"images", "reference"}

    def look(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        inputs = {**tools.references(images, prompts), **tools.inputs(images, prompts)}
        found = {name: inputs[name] for name in kept if isinstance(inputs.get(name), Tensor)}
        for metric in metrics_of("image"):
            if metric.name not in scores and all(name in inputs for name in metric.takes):
                found[f"score {metric.name}"] = metric(inputs)
        logs = tools.judge.log_probabilities(images)
        return found | {f"read {kind}": logs[kind].argmax(-1) for kind in KINDS}

    whole = looked_at(files, prompts, look, together)
    read = {kind: [names[kind][i] for i in whole.pop(f"read {kind}").tolist()] for kind in KINDS}
    scores |= {key.removeprefix("score "): values.tolist() for key, values in whole.items() if key.startswith("score ")}
    words_of = [read_prompt(words, prompt) for prompt in prompts]
    wanted = {kind: [None if (i := getattr(s, kind)) is None else names[kind][i] for s in words_of] for kind in KINDS}
    rewards = {key: values for key in run.weights if (values := recorded_rewards(run, key)) is not None}
    return Measured(whole, scores, _of_prompts(prompts, files, whole, tools, together), rewards, wanted, read)


def features_of(files: Sequence[Path], tools: Instruments, together: Processes) -> dict[str, Tensor]:
    """What distances of sets take of pictures without prompts. Raises TiltingError naming one that cannot be read."""
    taken = {name for metric in metrics_of("sets") for name in metric.takes}

    def look(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        inputs = tools.inputs(images, prompts)
        return {name: inputs[name] for name in taken}

    return looked_at(files, [""] * len(files), look, together)


def _of_prompts(
    prompts: Sequence[str], files: Sequence[Path], features: Mapping[str, Tensor], tools: Instruments, together: Processes
) -> dict[str, dict[str, float]]:
    """The metrics of a prompt, where it has two images."""
    several = [(prompt, rows) for prompt, rows in rows_by_prompt(prompts).items() if len(rows) > 1]
    values: dict[str, dict[str, float]] = {}
    for metric in metrics_of("prompt"):
        pictured = "images" in metric.takes and (tools.lpips is not None or "lpips" not in metric.takes)

        def work(one: tuple[str, list[int]], metric: Metric = metric, pictured: bool = pictured) -> dict[str, Tensor]:
            prompt, rows = one
            inputs: dict[str, Any] = {name: features[name][rows] for name in metric.takes if name in features}
            pictures = [read_frames(files[i]) for i in rows] if pictured else []
            if len({picture.shape for picture in pictures}) > 1:
                raise TiltingError(f"LPIPS needs pictures of one size, and those of {prompt!r} differ")
            inputs |= {"images": torch.stack(pictures) if pictures else None, "lpips": tools.lpips}
            return {"value": torch.tensor(metric(inputs), dtype=torch.float64)}

        found = together.map_items(several, work)
        values[metric.name] = {prompt: one["value"].item() for (prompt, _), one in zip(several, found, strict=True)}
    return values


def recorded_rewards(run: Run, bare: str) -> list[float] | None:
    """A reward of every image from the manifest, by its spec without weight; None unless every image has it."""
    values = []
    for record in run.records:
        values += [value for spec, value in record["rewards"].items() if split_weight(spec)[0] == bare][:1]
    whole = len(values) == len(run.records) and all(isinstance(value, int | float) for value in values)
    return [float(value) for value in values] if whole else None


def score_images(run: Run, bare: str, together: Processes, steered: Sequence[Run] = ()) -> list[float]:
    """A reward of every image from its picture file. Metadata of prompts are the run's own, or where it has none, of the first
    of ``steered`` that has some. Raises TiltingError when the reward does not load or fails."""
    told = next((one.config for one in (run, *steered) if one.config.get("metadata")), {})
    known = told.get("prompts", ()), told.get("metadata", ())
    reward = together.agree(lambda: informed(build_one(parse_spec(bare)), *known))
    files, prompts = [run.folder / record["file"] for record in run.records], run.prompts
    frames, place = run.config.get("reward-frames") or "all", device_of("auto")  # where it was climbed, if it is large

    def look(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"value": checked(reward, images.to(place), prompts, frames).cpu()}

    return looked_at(files, prompts, look, together)["value"].tolist()


def rows_by_prompt(prompts: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each prompt, in order."""
    rows: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(i)
    return rows
