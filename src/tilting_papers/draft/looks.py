"""Looks of the DRaFT recipes: the same prompts and noise under every LoRA, scored by rewards and by the held-out judge.

What is seen of a set of prompts is plain data: per image its prompt, reward by spec and judge; and two spreads in the judge's
features, the mean distance of two images of one prompt and of any two images (both fall when a model collapses). The
pictures go into one small sheet per set, a row per prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.models.lora_file import lora_files
from tilting.runs.files import digest_of, write_atomically
from tilting_papers.draft.arms import Shelf
from tilting_papers.folder import kept

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from tilting.config.finetune import FinetuneConfig

Seen = dict[str, Any]
"""Of one set: "prompts", "rewards" {spec: values}, "judge", and the spreads "apart" {prompt: distance} and "spread"."""


@dataclass(frozen=True)
class Looks:
    """How to look.

    Attributes:
        sets: prompts by the name of the set; the first eight different ones are drawn.
        images: of each prompt.
        reward: specs that every image is scored by.
        seed: of the noise.
    """

    sets: Mapping[str, tuple[str, ...]]
    images: int
    reward: tuple[str, ...]
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        """As JSON reads it back."""
        sets = {name: list(prompts) for name, prompts in self.sets.items()}
        return {"sets": sets, "images": self.images, "reward": list(self.reward), "seed": self.seed}

    def __call__(self, model: Any, shelf: Shelf, config: FinetuneConfig, folder: Path) -> dict[str, Seen]:
        """Draw every set by a model as it is, in the sampler of a config, and write the sheets FOLDER-SET.png."""
        from tilting.training.samples import look, scores

        found = {}
        for name, prompts in self.sets.items():
            judge = shelf.parts(config).judge
            seen = look(model, prompts, self.images, shelf.reward(self.reward[0]), judge, config.steps, config.cfg, config.eta,
                        self.seed, config.negative_prompt)  # fmt: skip
            rewards = {self.reward[0]: _plain(seen.rewards)}
            for spec in self.reward[1:]:
                rewards[spec] = _plain(scores(shelf.reward(spec), seen.images, seen.prompts))
            found[name] = {"prompts": seen.prompts, "rewards": rewards, "judge": _plain(seen.judged),
                           **spreads(seen.images, seen.prompts), "evaluations": seen.evaluations}  # fmt: skip
            write_sheet(seen.images, self.images, folder.with_name(f"{folder.name}-{name}.png"))
        return found


def _plain(values: Sequence[float]) -> list[float | None]:
    return [None if v != v else v for v in values]


def spreads(images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
    """ "apart": by prompt, the mean distance of two of its images, none where it has one; "spread": of any two images, None for
    a single one. In the judge's unit features, so in [0, 2]."""
    from tilting.metrics.diversity import mean_pairwise
    from tilting.metrics.extract import judge_features
    from tilting.metrics.judge import PocketJudge

    features = judge_features(PocketJudge())(images)
    groups = {prompt: [i for i, p in enumerate(prompts) if p == prompt] for prompt in dict.fromkeys(prompts)}
    return {
        "apart": {prompt: mean_pairwise(features[rows]) for prompt, rows in groups.items() if len(rows) > 1},
        "spread": mean_pairwise(features) if len(features) > 1 else None,
    }


def write_sheet(images: Tensor, columns: int, path: Path) -> None:
    """Images (n, 3, h, w) in [0, 1] as one PNG, so many in a row, no gaps: `tile` reads them back."""
    import io

    from PIL import Image

    n, _, h, w = images.shape
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    sheet = Image.new("RGB", (columns * w, -(-n // columns) * h))
    for i in range(n):
        sheet.paste(Image.fromarray(pixels[i]), (i % columns * w, i // columns * h))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def tile(path: Path, row: int, column: int, columns: int) -> Image.Image:
    """One picture of a sheet that has so many in a row."""
    from PIL import Image

    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    side = sheet.width // columns
    return sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))


class Variant(NamedTuple):
    """A trained LoRA, or several, used in another way.

    Attributes:
        name: of the line and of its files.
        loras: (folder of weights, scale) of each that is added.
        window: the steps first <= i < last in which they are on; None is all.
    """

    name: str
    loras: tuple[tuple[Path, float], ...]
    window: tuple[int, int] | None = None


def look_at(variant: Variant, looks: Looks, shelf: Shelf, config: FinetuneConfig, out: Path) -> dict[str, Seen]:
    """Look at a variant, kept in OUT/variants/NAME.json with what it was made from; drawn again if that has changed."""
    file = out / "variants" / f"{variant.name}.json"
    made = {"looks": looks.about, "steps": config.steps, "eta": config.eta, "window": variant.window and list(variant.window),
            "loras": [[digest_of(lora_files(place)), scale] for place, scale in variant.loras]}  # fmt: skip

    def draw() -> dict[str, Seen]:
        with applied(shelf.parts(config).model, variant, config.steps) as model:
            return looks(model, shelf, config, file.with_suffix(""))

    return kept(file, made, draw)


class applied:
    """The model with a variant's LoRAs alone, mixed as Σ w B A, inside the block."""

    def __init__(self, model: Any, variant: Variant, steps: int):
        self.model, self.variant, self.steps = model, variant, steps

    def __enter__(self) -> Any:
        from tilting.models.lora import Windowed, load_lora, mix, read_lora
        from tilting.training.trainer import NAME

        unet, loras = self.model.unet, self.variant.loras
        if NAME in getattr(unet, "peft_config", {}):
            unet.delete_adapters(NAME)
        if loras:
            load_lora(unet, mix([read_lora(place) for place, _ in loras], [scale for _, scale in loras]), NAME)
        return self.model if self.variant.window is None else Windowed(self.model, self.steps, *self.variant.window)

    def __exit__(self, *_: object) -> None:
        from tilting.training.trainer import NAME

        if NAME in getattr(self.model.unet, "peft_config", {}):
            self.model.unet.delete_adapters(NAME)


Values = dict[tuple[str, int], float]
"""By prompt and number within it."""


def values_of(seen: Seen, what: str) -> Values:
    """A number of every image: "judge", or a reward by its spec; or of every prompt: "apart". Missing ones are left out."""
    if what == "apart":
        return {(prompt, 0): value for prompt, value in seen["apart"].items()}
    values = seen["judge"] if what == "judge" else seen["rewards"][what]
    count: dict[str, int] = {}
    found: Values = {}
    for prompt, value in zip(seen["prompts"], values, strict=True):
        count[prompt] = count.get(prompt, -1) + 1
        if value is not None:
            found[prompt, count[prompt]] = value
    return found


def interval(ours: Values, theirs: Values | None = None) -> dict[str, float] | None:
    """Mean of ours (- theirs, image by image) with its 95 % bootstrap interval, whole prompts resampled; None without any."""
    from tilting_papers.numbers import interval as paired

    def keyed(values: Values) -> dict[tuple[int, str, int], float]:
        return {(0, *key): value for key, value in values.items()}

    return paired(keyed(ours), None if theirs is None else keyed(theirs))
