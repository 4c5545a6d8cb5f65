"""A plan: model, method and reward combined and validated before anything is drawn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from tilting.config.base import keywords
from tilting.config.generate import STRENGTH, GenerateConfig
from tilting.config.settings import check_settings
from tilting.declare import integer
from tilting.generation.coerce import model_of, preset_of, reward_of
from tilting.method import Method, check
from tilting.models.pipeline_class import check_left, steps_left
from tilting.models.text import tell_of_cuts
from tilting.presets import Preset
from tilting.rewards.declaration import of_a_batch
from tilting.rewards.weighted_sum import framed, of_latents
from tilting.rng import Identity
from tilting.schedule import Law, Schedule, variance_preserving
from tilting.types import Denoise, Reward, TiltingError, Time

if TYPE_CHECKING:
    from torch import Tensor


class Model(Protocol):
    """What generation asks of a model; `tilting.models.pipeline.Pipeline` is one. States may be of any rank.

    A model may have more: ``decoder(prompts)``, (latents (m, ...), rows (m,)) -> pictures, where decoding depends on whose
    picture it is; ``looker(prompts)``, the same for estimates alone, or None; ``start(prompts)``, the clean latents that a
    model which begins from pictures begins around; ``blends``, whether its denoiser takes ``noise``, what each image began with
    (`tilting.models.pipeline.Pipeline.denoiser`); ``pair(cfg, negative)``, 1 where a request has no correction. The points
    of a schedule's grid reach the denoiser as they are, so that a model may tell by them which grid they are of
    (`tilting.models.call.Point`).
    """

    name: str
    schedule: Schedule
    latent_shape: tuple[int, ...]
    default_steps: int
    default_cfg: float

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...


def decoder_of(model: Model, prompts: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
    """(latents (m, ...), rows (m,)) -> pictures in [0, 1] of these prompts' images."""
    decoder = getattr(model, "decoder", None)
    return (lambda latents, rows: model.decode(latents)) if decoder is None else decoder(prompts)


def looker_of(model: Model, prompts: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The same of estimates, by the model's look decoder; None where it has none."""
    looker = getattr(model, "looker", None)
    return None if looker is None else looker(prompts)


def identities(prompts: Sequence[str], seed: int | Sequence[int], images: int) -> list[Identity]:
    """``images`` identities per prompt and seed, prompt by prompt, seed by seed; a repeated prompt goes on counting, so no
    image comes twice. Raises TiltingError for a seed, or images, that are no whole number, and for a seed given twice."""
    told: Any = seed.tolist() if hasattr(seed, "tolist") else seed  # type: ignore[union-attr]
    seeds = [integer("seed", one) for one in (told if isinstance(told, list | tuple | range) else [told])]
    if len(set(seeds)) < len(seeds):
        raise TiltingError(f"seed {next(s for i, s in enumerate(seeds) if s in seeds[:i])} is given twice: give it once")
    images = integer("images", images, 1)
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        first = seen.get(prompt, 0)
        out += [Identity(one, prompt, first + i) for one in seeds for i in range(images)]
        seen[prompt] = first + images
    return out


@dataclass(frozen=True)
class Plan:
    """A checked request: what `draw` runs. Make it with `plan`, which fills in the model's and the preset's defaults."""

    who: tuple[Identity, ...]
    preset: Preset
    steps: int
    cfg: float
    eta: float
    negative: str = ""
    batch_size: int = 16
    method: Method = field(default=Method("base"))
    reference: Tensor | None = None
    strength: float = 1.0
    reward: Reward | None = None
    left: int = 0
    sde: Law = "posterior"

    @property
    def steps_run(self) -> int:
        """Steps that are made: ``left``, of a grid that begins at a picture, whose or the reference's; 0 is ``steps``."""
        return self.left or self.steps

    @property
    def rows(self) -> int:
        """Most particles of an image."""
        return max(self.method.particles, *self.method.counts, 1)

    @property
    def group(self) -> int:
        """Images that are drawn at once."""
        return max(1, self.batch_size // self.rows)

    def share(self, index: int, count: int) -> Plan:
        """What process ``index`` of ``count`` draws: every count-th group, the groups as large as those of one process where
        there is one for each."""
        images = len(self.who)
        rounds = max(1, math.ceil(images / (count * self.group)))
        size = max(1, math.ceil(images / (count * rounds)))
        mine = [one for first in range(index * size, images, count * size) for one in self.who[first : first + size]]
        return replace(self, who=tuple(mine), batch_size=size * self.rows if size < self.group else self.batch_size)

    @property
    def ticks(self) -> int:
        """Step events per group."""
        return self.steps_run if self.method.engine is None else self.method.engine.ticks(self.steps_run)


@keywords(GenerateConfig, "steps", "cfg", "eta", "sde", "negative_prompt", "batch_size", "strength", "reward_frames")
def plan(
    model: Model,
    who: Sequence[Identity],
    preset: Preset | Method | str | None = None,
    reward: Reward | str | Callable | None = None,
    *,
    reference: Tensor | None = None,
    steps: int | None = None,
    cfg: float | None = None,
    eta: float | None = None,
    sde: Law = "posterior",
    negative_prompt: str = "",
    batch_size: int = 16,
    strength: float = STRENGTH,
    reward_frames: str = "all",
) -> Plan:
    """Fill in what is unset and refuse what cannot work, before anything is drawn.

    Args:
        model, who, preset, reward: see `generate`.
        reference: (1 or len(who), 3, h, w) pictures in [0, 1] to start from (SDEdit), at the model's own size.
        steps, cfg, eta, sde, negative_prompt, batch_size: of the sampler; default the model's own steps and cfg, the preset's
            eta.
        strength: the share of the steps that is run from the reference, in (0, 1].
        reward_frames: of a video, those that rewards of pictures score: "all", "first", "middle", or a number, evenly spaced.
    """
    model, preset, reward = model_of(model), preset_of(preset), framed(reward_of(reward), reward_frames)
    check_settings(preset)
    if getattr(reward, "batch_dependent", False):
        raise of_a_batch(getattr(reward, "name", "reward"))
    if reward is not None:
        of_latents(reward)
    steps = model.default_steps if steps is None else steps
    cfg = model.default_cfg if cfg is None else cfg
    eta = preset.default_eta if eta is None else eta
    if preset.needs_picture and reference is None:
        raise TiltingError(f"{preset.name} starts from a picture: give an image")
    if reference is not None:
        _check_reference(reference, model, len(who))
    method = preset.build(steps)
    grid = grid_of(model, method, steps)
    if preset.default_eta == 0 and eta == 1 and reference is None and grid[0].alpha == 0:
        raise TiltingError(
            f"{preset.name} looks for a better x_T, which a chain of eta 1 from pure noise forgets: use eta below 1"
        )
    left = whole = len(grid) - 1
    if reference is not None:
        left = steps_left(getattr(model, "kind", ""), whole, strength)
        check_left(strength, whole, left)
    more = {"reference": reference, "strength": strength, "reward": reward, "sde": sde, "left": left}
    made = Plan(tuple(who), preset, steps, cfg, eta, negative_prompt, batch_size, **more)
    method = preset.build(made.steps_run)
    if reference is not None or made.steps_run < steps:
        method = method.begun_at(made.steps_run / steps)
    pair: Callable[[float, str], float] | None = getattr(model, "pair", None)
    if method.needs_correction and cfg != 1 and pair is not None and pair(cfg, negative_prompt) == 1:
        raise TiltingError(
            f"{method.name} scales its gradient by the CFG correction, and {model.name!r}, which is told its scale, has one"
            f" with a negative prompt only: give one, or set {method.name}.rule to plain"
        )
    _check_switches(model, method, batch_size)
    if method.final == "all":
        raise TiltingError("a picture is of one particle: final 'all' is for `tilting.sample`, by hand")
    has_gradient = None if reward is None else not method.needs_reward_gradient or reward.differentiable  # who asks, tries it
    check(method, made.steps_run, eta, cfg, has_gradient)
    many = max((method.particles, *method.counts)) > 1 or method.engine is not None
    if preset.selects and many and method.choices(made.steps_run) == 0:
        few = f"{made.steps_run} step{'' if made.steps_run == 1 else 's'}"
        warnings.warn(f"{method.name} never selects in {few}, and is {method.without_choices}: reno is for few", stacklevel=3)
    tell_of_cuts(model, [*(one.prompt for one in who), *([] if cfg == 1 else [negative_prompt])])
    return replace(made, method=method)


def grid_of(model: Model, method: Method, steps: int) -> list[Time]:
    """The points that a run has. Raises TiltingError for another process' times of a model that has none but its own."""
    grid = model.schedule.grid(steps)
    if method.interpolant == "own":
        return grid
    if model.schedule.kind != "flow" or model.schedule.alpha_bar:
        raise TiltingError(f"{method.name}.interpolant=vp is of flow models, and {model.name!r} is none: leave it at own")
    if type(grid[0]) is not Time:
        raise TiltingError(f"{model.name!r} is asked at its pipeline's own times alone: leave {method.name}.interpolant at own")
    return variance_preserving(steps)


def _check_switches(model: Model, method: Method, batch_size: int) -> None:
    """Refuse a cache between steps, or a network that waits in main memory, under a method that it would make wrong."""
    if getattr(model, "anew", None) is not None:
        moves = bool(method.select or method.correct or method.guides or method.engine or method.begin) or method.repeat > 1
        if moves:
            raise TiltingError(
                f"{method.name} does more than one step after another, which a first-block cache would mix: leave --cache out, "
                "or use --method base or bon"
            )
        if max(method.particles, 1) > batch_size:
            raise TiltingError(f"a first-block cache is of one batch: give --batch-size {method.particles} at least")
    if getattr(model, "place", None) is not None and method.needs_reward_gradient:
        raise TiltingError(
            f"the gradient of {method.name} needs the whole network at once: use --offload parts, and --recompute"
        )


def _check_reference(reference: Tensor, model: Model, count: int) -> None:
    if tuple(reference.shape[1:]) != tuple(model.image_shape):
        raise TiltingError(f"the reference must be {tuple(model.image_shape)}, not {tuple(reference.shape[1:])}")
    if len(reference) not in (1, count):
        raise TiltingError(f"{len(reference)} references are neither one for all nor one for each of {count} images")
    if not reference.is_floating_point() or not (reference.min() >= 0 and reference.max() <= 1):
        raise TiltingError("the reference must be of floats in [0, 1]")
