"""From a run's pictures to numbers: features and scores of every image, by instruments that are loaded once and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tilting.config.evaluate import EvaluateConfig
from tilting.errors import TiltingError
from tilting.evaluation.read_runs import Run
from tilting.features.clip import ClipEmbedder
from tilting.features.lpips import Lpips, load_lpips
from tilting.features.picture import read_image
from tilting.metrics import alignment
from tilting.metrics.diversity import mean_distance, mean_pairwise
from tilting.metrics.extract import Extractor, clip_embedder, clip_features, judge_features, read_batches
from tilting.metrics.inception import inception
from tilting.metrics.judge import PocketJudge
from tilting.metrics.perceptual import gram_features
from tilting.models.words import read_prompt
from tilting.rewards.check import checked
from tilting.rewards.spec import build_one, parse_spec, split_weight

KINDS = ("concept", "style", "background")
SCORES = ("judge", "tclip", "igram_clip", "igram_vgg")
"""Numbers of every image."""


@dataclass(frozen=True)
class Instruments:
    """What images are measured with.

    Attributes:
        judge: pocket-judge.
        clip: of CMMD, T-CLIP and I-Gram.
        clip_name: its name.
        fid, cmmd: the extractors of these distances.
        spread: the extractor of diversity, when there is no LPIPS.
        lpips: LPIPS, of diversity; None without its weights.
        gram: VGG Gram features (b, 3, h, w) -> (b, d), or None.
        target: the reference picture (1, 3, h, w) of I-Gram, or None.
    """

    judge: PocketJudge
    clip: ClipEmbedder
    clip_name: str
    fid: Extractor
    cmmd: Extractor
    spread: Extractor
    lpips: Lpips | None = None
    gram: Extractor | None = None
    target: Tensor | None = None

    def names(self) -> dict[str, str]:
        """By metric, the network it is measured in."""
        names = {
            "fid": self.fid.name,
            "cmmd": self.cmmd.name,
            "tclip": self.clip_name,
            "igram_clip": self.clip_name,
            "diversity": "LPIPS (VGG16)" if self.lpips else self.spread.name,
            "judge": "pocket-judge",
            "labels": "pocket-judge",
        }
        return names | ({"igram_vgg": self.gram.name} if self.gram else {})


def load_instruments(config: EvaluateConfig) -> Instruments:
    """Load what a request names. Raises TiltingError for weights that do not load."""
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
    target = read_image(config.reference_image)[None] if config.reference_image else None
    return Instruments(judge, clip, name, fid, clip_features(name, clip), own, lpips, gram, target)


@dataclass
class Measured:
    """A run in numbers, image by image in the order of its manifest.

    Attributes:
        fid, cmmd: (n, d) float64 features.
        scores: "judge", "tclip", "igram_clip", "igram_vgg" -> n numbers, NaN where there is none.
        rewards: by spec without weight, n numbers, from the manifest where it has them.
        pictured: the same from the picture files (8 bits), of rewards that some run's manifest lacks.
        asked, read: "concept", "style", "background" -> n names, None where the prompt does not say.
        diversity: by prompt, where it has two images.
    """

    fid: Tensor
    cmmd: Tensor
    scores: dict[str, list[float]]
    rewards: dict[str, list[float]]
    asked: dict[str, list[str | None]]
    read: dict[str, list[str]]
    diversity: dict[str, float] = field(default_factory=dict)
    pictured: dict[str, list[float]] = field(default_factory=dict)


def measure(run: Run, tools: Instruments) -> Measured:
    """Look at every picture of a run once (and once more for LPIPS). Raises TiltingError naming a corrupt picture."""
    files = [run.folder / record["file"] for record in run.records]
    prompts, words = run.prompts, tools.judge.words
    names = {"concept": words.concepts, "style": words.styles, "background": tuple(words.colours)}
    parts: dict[str, list[Tensor]] = {"fid": [], "cmmd": [], "spread": [], "judge": [], "tclip": []}
    read: dict[str, list[str]] = {kind: [] for kind in KINDS}
    done = 0
    target = None if tools.target is None else tools.cmmd(tools.target)[0]
    gram = None if tools.gram is None or tools.target is None else tools.gram(tools.target)[0]
    recorded = [record["judge"] for record in run.records]
    for images in read_batches(files):
        asked = prompts[done : done + len(images)]
        done += len(images)
        embeds = tools.cmmd(images)
        parts["cmmd"].append(embeds)
        parts["spread"].append(tools.spread(images))
        parts["fid"].append(parts["spread"][-1] if tools.fid is tools.spread else tools.fid(images))
        texts = tools.clip.text([alignment.caption(prompt) for prompt in asked])
        parts["tclip"].append(alignment.t_clip(embeds, texts))
        if target is not None:
            parts.setdefault("igram_clip", []).append(alignment.i_gram(embeds, target))
        if tools.gram is not None and gram is not None:
            parts.setdefault("igram_vgg", []).append(alignment.i_gram(tools.gram(images), gram))
        logs = tools.judge.log_probabilities(images)
        if None in recorded:
            parts["judge"].append(tools.judge.score(images, asked))
        for kind in KINDS:
            read[kind] += [names[kind][int(i)] for i in logs[kind].argmax(-1)]
    whole = {key: torch.cat(values) for key, values in parts.items() if values}
    words_of = [read_prompt(words, prompt) for prompt in prompts]
    wanted = {kind: [None if (i := getattr(s, kind)) is None else names[kind][i] for s in words_of] for kind in KINDS}
    scores = {key: whole[key].tolist() for key in SCORES if key in whole}
    if None not in recorded:
        scores["judge"] = recorded
    rewards = {key: values for key in run.weights if (values := recorded_rewards(run, key)) is not None}
    diversity = _diversity(prompts, files, whole["spread"], tools)
    return Measured(whole["fid"], whole["cmmd"], scores, rewards, wanted, read, diversity)


def recorded_rewards(run: Run, bare: str) -> list[float] | None:
    """A reward of every image from the manifest, by its spec without weight; None unless every image has it."""
    values = []
    for record in run.records:
        values += [value for spec, value in record["rewards"].items() if split_weight(spec)[0] == bare][:1]
    whole = len(values) == len(run.records) and all(isinstance(value, int | float) for value in values)
    return [float(value) for value in values] if whole else None


def score_images(run: Run, bare: str) -> list[float]:
    """A reward of every image from its picture file. Raises TiltingError when the reward does not load or fails."""
    reward = build_one(parse_spec(bare))
    values: list[float] = []
    for images in read_batches([run.folder / record["file"] for record in run.records]):
        with torch.no_grad():
            values += checked(reward, images, run.prompts[len(values) : len(values) + len(images)]).tolist()
    return values


def rows_by_prompt(prompts: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each prompt, in order."""
    rows: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(i)
    return rows


def _diversity(prompts: Sequence[str], files: Sequence, features: Tensor, tools: Instruments) -> dict[str, float]:
    diversity = {}
    for prompt, rows in rows_by_prompt(prompts).items():
        if len(rows) < 2:
            continue
        if tools.lpips is None:
            diversity[prompt] = mean_pairwise(features[rows])
            continue
        pictures = [read_image(files[i]) for i in rows]
        if len({picture.shape for picture in pictures}) > 1:
            raise TiltingError(f"LPIPS needs pictures of one size, and those of {prompt!r} differ")
        diversity[prompt] = mean_distance(torch.stack(pictures), tools.lpips.table)
    return diversity
