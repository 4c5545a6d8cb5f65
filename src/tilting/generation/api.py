"""`tl.generate`: images in memory, which display themselves and can be saved as a run folder."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.config.auto import AUTO, STEPS
from tilting.config.base import keywords
from tilting.config.generate import GenerateConfig
from tilting.config.prompts import prompts_of
from tilting.declare import declared
from tilting.disk import append, folder_given, write_atomically
from tilting.errors import TiltingError
from tilting.features.video import contact_sheet, frames_of
from tilting.generation.auto import take
from tilting.generation.coerce import model_of, picture_of, reward_of
from tilting.generation.folder import Folder
from tilting.generation.generate import Counts, Drawn, draw, judge_of, records_of, summarise
from tilting.generation.pictures import picture_file
from tilting.generation.plan import Model, Plan, identities, plan
from tilting.generation.progress import Progress
from tilting.lazy import torch
from tilting.method import Method
from tilting.models.lora import active
from tilting.presets import METHODS, Preset
from tilting.reports.grid import run_sheet, short, spread, write_grid
from tilting.rewards.metadata import informed
from tilting.rewards.spec import Spec, parse_specs
from tilting.rewards.weighted_sum import as_sum
from tilting.runs.files import IMAGES, image_name
from tilting.runs.lock import exclusive
from tilting.runs.owner import processes
from tilting.types import Reward

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class Result:
    """What `generate` returns. In a notebook it shows its pictures.

    Attributes:
        images: (n, 3, h, w), or videos (n, frames, 3, h, w), float in [0, 1], prompt by prompt.
        manifest: ``images`` and ``summary`` as the command line writes them to manifest.json.
        config: the request as the command has it.
        beyond: what of the request no command line says, such as a reward that is a function.
    """

    images: Tensor
    manifest: dict
    config: GenerateConfig = field(default_factory=lambda: GenerateConfig(()))
    beyond: tuple[str, ...] = ()

    def __repr__(self) -> str:
        summary, n = self.manifest["summary"], len(self.images)
        told = [f"{n} image{'' if n == 1 else 's'} of {'x'.join(map(str, self.images.shape[:-3:-1]))}", self.config.method]
        if summary["reward_mean"] is not None:
            told.append(f"reward {spread(summary['reward_mean'], summary['reward_sem'])}")
        if summary["judge_mean"] is not None:
            told.append(f"judge {short(summary['judge_mean'])}")
        told += [f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"]
        return f"Result({', '.join(told)})"

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self.grid().save(file, "webp", quality=90)
        uri = base64.b64encode(file.getvalue()).decode()
        words = escape(", ".join(dict.fromkeys(record["prompt"] for record in self.manifest["images"])))
        return f'<img alt="{words}" style="max-width:100%" src="data:image/webp;base64,{uri}">'

    @property
    def pil(self) -> list[Image.Image]:
        """The images as pictures of PIL, of 8 bits; of a video its first frame."""
        return [frames_of(image)[0] for image in self.images]

    def grid(self) -> Image.Image:
        """One picture of all: a row per prompt, the reward under each, totals on top."""
        shown = map(contact_sheet, map(frames_of, self.images))
        at = {id(record): picture for record, picture in zip(self.manifest["images"], shown, strict=True)}
        return run_sheet({**self.manifest, "config": self.config.mapping()}, lambda record: at[id(record)]).image

    def save(self, out: str | Path) -> Path:
        """Write the folder that `tilting generate` would: images/, grid.png, manifest.json; the same command finds it finished.

        Raises:
            TiltingError: if it cannot be written, or something is there already.
        """
        folder = folder_given(out)
        if processes() > 1:
            raise TiltingError(f"a result is saved by one process, and {processes()} were launched: use `tilting generate`")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TiltingError(f"{str(out)!r} is there already: choose another folder, or remove it")
        with exclusive(str(out)):
            place = _Saved(replace(self.config, out=str(out)), self.beyond)
            place.begin()
            place.fill(self)
            write_grid(place.path, place.manifest)
        return place.path


class _Saved(Folder[GenerateConfig]):
    """The folder of a result.

    Args:
        config: as the command has it.
        beyond: what no command line says, which keeps commands from going on in it.
    """

    def __init__(self, config: GenerateConfig, beyond: Sequence[str]):
        self.beyond = list(beyond)
        super().__init__(config, ["tilting.generate"])

    def config_now(self) -> dict[str, Any]:
        return super().config_now() | ({"python": self.beyond} if self.beyond else {})

    def rewards(self) -> list[dict[str, Any]]:
        return (
            super().rewards() if _specs(self.config.reward) else [{"name": one, "sha256": None} for one in self.config.reward]
        )

    def fill(self, result: Result) -> None:
        """Write the pictures, then the manifest."""
        for number, (image, record) in enumerate(zip(result.images, result.manifest["images"], strict=True)):
            name = image_name(number, self.config.format)
            write_atomically(self.path / name, picture_file(image, record, self.config.method, self.config.format))
            self.records[number] = {"file": name, **record}
        self.summary = dict(result.manifest["summary"])
        self.counts = Counts(*(self.summary[key] for key in ("evaluations", "decodes", "reward_calls", "seconds")))
        append(self.path / IMAGES, "".join(self._lines(list(self.records.values()))).encode())
        self.write()


def _specs(reward: Sequence[str]) -> list[Spec]:
    """The specs that names of rewards are; none where one of them is not."""
    try:
        return parse_specs(list(reward))
    except TiltingError:
        return []


def precision_of(model: Model) -> str | None:
    """The precision that a loaded model runs in, as the command has it: None for fp32."""
    return {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(getattr(model, "dtype", "")))


def config_of(model: Model, request: Plan, asked: Mapping[str, Any], **given: Any) -> tuple[GenerateConfig, tuple[str, ...]]:
    """A request as the command has it, and what of it no command line says.

    Args:
        model: what draws.
        request: its plan.
        asked: ``prompts``, ``seed``, ``images``.
        given: what else was given, by what it is: None and () where it was not.
    """
    preset, total = request.preset, None if request.reward is None else as_sum(request.reward)
    beyond = [key for key, value in given.items() if value is not None and not isinstance(value, str | Path)]
    own = METHODS.get(preset.name) is type(preset)
    fields = {name: getattr(preset, name) for name in declared(METHODS[preset.name])} if own else {}
    beyond += [] if own else ["method"]
    specs = _specs(total.keys) if total else []
    if total and (total.scales or [one.weight for one in specs] != [weight for _, weight in total.parts]):
        beyond.append("reward")
    backbone = getattr(model, "backbone", None)
    beyond += ["loras"] if backbone is not None and active(backbone) else []
    picture = given.get("image") if isinstance(given.get("image"), str | Path) else None
    config = GenerateConfig(
        model=model.name,
        reward=total.keys if total else (),
        method=preset.name,
        particles=fields.pop("particles", None),
        steps=request.steps,
        eta=request.eta,
        sde=request.sde,
        reward_frames="all" if total is None else total.frames,
        cfg=request.cfg,
        negative_prompt=request.negative,
        batch_size=request.batch_size,
        settings=tuple((f"{preset.name}.{name}", value) for name, value in fields.items()),
        image=None if picture is None else str(picture),
        strength=None if request.reference is None else request.strength,
        precision=precision_of(model),
        **asked,
    )
    return config, tuple(beyond)


def _auto(
    model: Model, reward: Reward | None, method: Any, budget: Any, prompts: Sequence[str], options: dict[str, Any]
) -> tuple[Preset, dict[str, Any]]:
    """The preset that auto takes, and the other options with its steps. Raises TiltingError."""
    if method != AUTO or budget is None:
        raise TiltingError("method auto spends a budget, and no other does: give both, such as method='auto', budget=100")
    steps = options.get("steps") or min(STEPS, model.default_steps)
    choice = take(model, reward, str(budget), steps, options.get("cfg") or model.default_cfg, prompts)
    print(choice.why, file=sys.stderr)
    return METHODS[choice.method](**choice.settings), {**options, "steps": steps}


@keywords(
    GenerateConfig, "steps", "cfg", "eta", "sde", "seed", "images", "negative_prompt", "batch_size", "strength", "reward_frames"
)
def generate(
    model: Model,
    prompts: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    reward: Reward | str | Callable | None = None,
    method: Preset | Method | str | None = None,
    *,
    latents: Tensor | None = None,
    image: Tensor | Image.Image | str | Path | None = None,
    seed: int | Sequence[int] = 0,
    images: int = 1,
    progress: bool = True,
    budget: str | int | None = None,
    **options: Any,
) -> Result:
    """Draw images of prompts with a method and a reward.

    Args:
        model: from `tilting.load`.
        prompts: one or several; {"prompt": "a fox", ...} for one with metadata, for rewards that take it.
        reward: such as ``tilting.rewards.clip()``, its spec ``"clip"``, or a function (images (b, 3, h, w) in [0, 1], prompts)
            -> (b,), or (images, prompts, metadata) -> (b,), which is tried for a gradient where one is needed, unless
            ``function.differentiable`` says; only ``base`` needs none.
        method: a preset such as ``tilting.presets.codex(particles=4)``, its name, or a `tilting.method.Method` of your own, as
            one that a preset built with a part replaced; default ``base``; "auto" takes the best that is known for ``budget``.
        latents: (images in all, ...) x_T instead of keyed noise, for particle 0 of each image.
        image: (1 or images in all, 3, h, w) in [0, 1], or a picture of PIL or a file, to start from instead of noise (SDEdit);
            of videos (frames, 3, h, w), a file of one or its frames in a list, of which the first are taken, or a still.
        seed: of the run, or several, each of which draws every prompt; images are keyed by (seed, prompt, index).
        images: per prompt and seed.
        progress: show a bar on stderr.
        budget: of method "auto": evaluations per image, such as 100, or seconds, such as "30s".
        options: ``steps, cfg, eta, sde, negative_prompt, batch_size, strength, reward_frames`` as the command has them; default
            the model's own steps and cfg, the method's eta.

    Raises:
        TiltingError: for settings that cannot work, in one sentence.
    """
    given, model = prompts_of(prompts), model_of(model)
    who = identities(given.texts, seed, images)
    *frames, _, height, width = model.image_shape
    reference = picture_of(image, height, width, *frames) if image is not None else None
    scored = informed(reward_of(reward), *given)
    if method == AUTO or budget is not None:
        method, options = _auto(model, scored, method, budget, given.texts, options)
    request = plan(model, who, method, scored, reference=reference, **options)
    judge = judge_of(model.name)
    pictures, records, counts = [], [], Counts()
    with Progress(request, quiet=not progress) as bar:
        for event in draw(model, request, latents):
            if isinstance(event, Drawn):
                pictures.append(event.images)
                records += records_of(event, judge)
                counts += event.counts
            else:
                bar.step(event.reward)
    asked = {"prompts": tuple(given.texts), "metadata": given.metadata, "seed": seed, "images": images}
    config, beyond = config_of(model, request, asked, latents=latents, image=image)
    return Result(torch.cat(pictures), {"images": records, "summary": summarise(records, counts)}, config, beyond)
