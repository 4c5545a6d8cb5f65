"""Any diffusers pipeline as a model, through its own call (`tilting.models.call`).

    tl.load(folder, height=768, width=512)
    tl.load(folder, image=picture, mask_image=mask)           of every image drawn
    tl.load(pipe, each={"a red car": {"image": picture}})     of the images of a prompt

The grid is the pipeline's own scheduler's (`tilting.models.schedulers.Noise`), the states are its loop's own, of any rank, and
a step is our one transition. Rows with the same arguments are one call; others are calls of their own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError, nearest, out_of_memory
from tilting.lazy import torch
from tilting.models import decoding
from tilting.models.cache import LRUCache, Unkeyable, content_key
from tilting.models.call import Call, Point, has_momentum
from tilting.models.components import Components
from tilting.models.guided_network import Conditioning, GuidedNetwork
from tilting.models.inputs import pictures_of
from tilting.models.intercepted_call import InterceptedCall
from tilting.models.pipeline_class import check_arguments, check_share, enough_for, share_of, source_of
from tilting.schedule import Schedule
from tilting.types import Denoise, Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

Decode = Callable[["Tensor", "Tensor"], "Tensor"]
"""(latents (m, ...), rows (m,)) -> pictures (m, 3, h, w), or videos (m, frames, 3, h, w), in [0, 1]."""
CALLS = 64
"""Calls that are kept, of different steps and inputs."""


@dataclass(frozen=True)
class OwnGrid(Schedule):
    """The schedule of a pipeline: the grid that its call asks its scheduler for.

    Attributes:
        of: steps -> the grid.
    """

    of: Callable[[int], list[Point]] = field(default=lambda steps: [], compare=False)

    def grid(self, steps: int) -> list[Time]:
        """See `Schedule.grid`."""
        if steps < 1:
            raise TiltingError(f"steps must be at least 1, not {steps}")
        return list(self.of(steps))


class Pipeline(Components):
    """A pipeline of diffusers as a model.

    Args:
        pipe: the loaded pipeline; it stays as it is, and can be used beside this.
        name: what manifests call it.
        steps, cfg: its own defaults, for unset options; default those of its call. As many steps at least as leave one from a
            picture at the given strength.
        inputs: arguments of its call, of every image.
        each: prompt -> arguments of its images.

    Raises:
        TiltingError: for a class that cannot be steered, or does not take these.
    """

    def __init__(
        self,
        pipe: Any,
        name: str = "",
        steps: int | None = None,
        cfg: float | None = None,
        inputs: Mapping[str, Any] | None = None,
        each: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        name = name or str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
        super().__init__(pipe, name, pictures_of(inputs or {}))
        self.each = {prompt: pictures_of(arguments) for prompt, arguments in (each or {}).items()}
        self.kind = type(pipe).__name__
        for arguments in (self.inputs, *self.each.values()):
            check_arguments(self.kind, self.patched.parameters, arguments)
        self._calls = LRUCache()
        self._calls.most = 64 * CALLS
        parameters = self.patched.parameters
        usual = parameters["num_inference_steps"].default if "num_inference_steps" in parameters else 50
        least = [enough_for(share_of(self.kind, self.inputs | arguments)) for arguments in ({}, *self.each.values())]
        self.default_steps = max(steps or int(usual or 50), *least)
        self.scale = self._scale()
        self.default_cfg = float(self._default_cfg() if cfg is None else cfg)
        if any(has_momentum(getattr(pipe, one, None)) for one in ("guider", "ocr_guider")):
            warnings.warn(
                f"a guider of {self.kind} remembers its path, as no evaluation does: its momentum is off", stacklevel=3
            )
        self._single_image, self._single_prompt, self._image_shape = False, False, ()
        first = self._first()
        self.latent_shape: tuple[int, ...] = first.shape
        self.schedule: Schedule = OwnGrid(first.noise.kind, first.noise.alpha_bar, first.noise.last, of=self._grid)
        self._single_image, self._single_prompt = self._batching()

    def _first(self) -> Call:
        """The call at its own defaults."""
        return self.call(self.default_steps, self.arguments(self.any_prompt, self.default_cfg, ""))

    def _batching(self) -> tuple[bool, bool]:
        """(whether a call takes one image only, as some do that take a picture; whether it takes one prompt only, since an
        embedding would depend on the length of the others)."""
        call = self._first()
        try:
            with torch.no_grad():
                if not call.takes_batches([self.patched.any_prompt] * 2):
                    return True, False
                texts = self.patched.condition_argument == "prompt"
                return False, texts and call.padding_matters("a", "a long prompt of many words, " * 4)
        except TiltingError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            return True, False

    def _scale(self) -> str:
        """The call's argument that --cfg is: ``true_cfg_scale`` where that is on by default, or given, or where the network
        embeds no guidance scale."""
        names = self.patched.parameters
        true, embeds = names.get("true_cfg_scale"), getattr(getattr(self.backbone, "config", None), "guidance_embeds", None)
        if true is not None and ("true_cfg_scale" in self.inputs or (true.default or 1) > 1 or embeds is False):
            return "true_cfg_scale"
        return "guidance_scale" if "guidance_scale" in names else "guider_scale" if hasattr(self.pipe, "guider") else ""

    def _default_cfg(self) -> float:
        if self.scale == "guider_scale":
            return self.pipe.guider.guidance_scale
        own = self.patched.parameters[self.scale].default if self.scale else 1.0
        value = self.inputs.get(self.scale, own)
        return float(value) if isinstance(value, int | float) and value > 0 else 1.0

    # -- arguments of the call

    def arguments(self, prompt: str, cfg: float, negative: str) -> dict[str, Any]:
        """The arguments of the call for an image of a prompt."""
        arguments = self.inputs | self.each.get(prompt, {})
        names, scale = self.patched.parameters, self._scale_of(negative)
        if scale:
            arguments[scale] = cfg
        if "negative_prompt" in names:
            text = negative or arguments.get("negative_prompt")
            if not text and scale == "true_cfg_scale" and cfg != 1:
                text = " "  # without one there is no unconditional branch
            arguments |= {"negative_prompt": text} if text else {}
        return arguments

    def _scale_of(self, negative: str) -> str:
        """The argument that a scale is: with a negative prompt ``true_cfg_scale``, where the call has it."""
        return "true_cfg_scale" if negative and "true_cfg_scale" in self.patched.parameters else self.scale

    def call(self, steps: int, arguments: Mapping[str, Any]) -> Call:
        """The call at a number of steps, with these arguments. Raises TiltingError, naming what it does not take."""

        def key(value: Any) -> Any:
            try:
                return content_key(value)
            except Unkeyable:
                return id(value)  # held by `inputs`, so that no other has it

        named = (steps, *sorted((name, key(value)) for name, value in arguments.items()))

        def made() -> Call:
            check_share(self.kind, arguments, steps)
            try:
                return Call(self.patched, steps, arguments)
            except TiltingError:
                raise
            except Exception as error:  # of many kinds: what the pipeline says of its inputs
                if out_of_memory(error):
                    raise
                if isinstance(error, NameError) and error.name:  # what diffusers imports where it is installed
                    raise TiltingError(f"a {self.kind} needs {error.name}: pip install {error.name}") from error
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise TiltingError(f"a {self.kind} does not take this: {lines[0]}") from error

        return self._calls.get(named, made)

    def _grid(self, steps: int) -> list[Point]:
        return self.call(steps, self.arguments(self.any_prompt, self.default_cfg, "")).grid

    def condition(self, prompt: str) -> Any:
        """A prompt, or the class that it names, as the call takes it."""
        if self.patched.condition_argument != "class_labels":
            return prompt
        labels: Mapping[str, int] = getattr(self.pipe, "labels", None) or {}
        if prompt.strip().isdecimal():
            return int(prompt)
        if prompt in labels:
            return labels[prompt]
        raise TiltingError(f"a {self.kind} draws classes by number, not {prompt!r}{nearest(prompt, labels)}")

    def by_rows(
        self,
        arguments: Sequence[Mapping[str, Any]],
        conditions: Sequence[Any],
        rows: Tensor | Sequence[int],
        ask: Callable[..., Any],
    ) -> Any:
        """``ask(arguments, conditions, places)`` of groups of rows with the same arguments, put back in order."""
        index = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
        groups: dict[Any, list[int]] = {}
        for place, r in enumerate(index):
            same = (id(arguments[r]), conditions[r] if self._single_prompt else None)
            groups.setdefault(place if self._single_image else same, []).append(place)
        if len(groups) == 1:
            return ask(arguments[index[0]], [conditions[r] for r in index], slice(None))
        parts = [ask(arguments[index[at[0]]], [conditions[index[p]] for p in at], at) for at in groups.values()]
        order = torch.tensor([p for at in groups.values() for p in at], device="cpu").argsort()

        def together(*tensors: Tensor) -> Tensor:
            return torch.cat(tensors)[order.to(tensors[0].device)]

        return type(parts[0])(*map(together, *parts)) if isinstance(parts[0], tuple) else together(*parts)

    def _requests(self, prompts: Sequence[str], cfg: float, negative: str) -> tuple[list[dict[str, Any]], list[Any]]:
        """(the arguments of each image, one value for those that have the same; its prompt or class)."""
        plain = self.arguments("", cfg, negative)
        arguments = [self.arguments(p, cfg, negative) if p in self.each else plain for p in prompts]
        return arguments, [self.condition(p) for p in prompts]

    @property
    def apart(self) -> bool:
        """Whether images of different prompts are evaluated in calls of their own."""
        return self._single_image or self._single_prompt or bool(self.each)

    # -- what a model does

    @property
    def blends(self) -> bool:
        """Whether the loop blends a picture in, noised anew at every step (an inpainting without channels for its mask)."""
        return re.search(r"scheduler\.(add|scale)_noise\(", source_of(self.kind)) is not None

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "", noise: Tensor | None = None) -> Denoise:
        """The guided denoiser of these prompts; ``rows`` index them. Both branches of guidance count as one evaluation.

        Args:
            prompts: text of each image, or its class.
            cfg: the scale as the pipeline's call has it; with a negative prompt ``true_cfg_scale``, where it has both.
            negative: the text of the unconditional branch.
            noise: (len(prompts), ...) that each image began with, by which a loop that `blends` noises its picture, as a call
                does that is given ``latents``; else a noise that is the same for all.
        """
        return self._denoiser(*self._requests(prompts, cfg, negative), noise)

    def conditional_denoiser(self, prompts: Sequence[str], cfg: float, negative: str = "") -> Denoise:
        """The prompts' branch of such a request alone, without classifier-free guidance; a guidance-distilled model is told its
        scale, which is what it draws by. The same as `denoiser` where the call makes no second branch."""
        asked = self.encode_prompts(prompts, cfg, negative)
        return self._denoiser(asked.arguments, asked.conditions)

    def _denoiser(
        self, arguments: Sequence[Mapping[str, Any]], conditions: Sequence[Any], noise: Tensor | None = None
    ) -> Denoise:
        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            def ask(arguments: Mapping[str, Any], conditions: Sequence[Any], places: Any) -> Prediction:
                own = None if noise is None else noise[rows.to(noise.device)][places]
                return self.call(self.steps_at(t), arguments).denoise(x[places], t, conditions, own)

            return self.by_rows(arguments, conditions, rows, ask)

        return denoise

    def guided_network(self, prompts: Sequence[str], cfg: float, negative: str = "", **how: Any) -> GuidedNetwork:
        """The network's outputs for these prompts, before and after guidance; see `GuidedNetwork`, also for how."""
        arguments, conditions = self._requests(prompts, cfg, negative)
        return GuidedNetwork(
            self, Conditioning(tuple(arguments), tuple(conditions)), self.encode_prompts(prompts, cfg, negative), **how
        )

    def encode_prompts(self, prompts: Sequence[str], cfg: float = 1.0, negative: str = "") -> Conditioning:
        """What the conditional branch of such a request is computed from; a guidance-distilled model is told its scale."""
        arguments, conditions = self._requests(prompts, cfg, negative)
        conditional = {id(one): self._conditional_of(one, cfg, negative) for one in arguments}
        return Conditioning(tuple(conditional[id(one)] for one in arguments), tuple(conditions))

    def _conditional_of(self, arguments: Mapping[str, Any], cfg: float, negative: str) -> Mapping[str, Any]:
        """The arguments of an image without classifier-free guidance."""
        if not self.call(self.default_steps, arguments).pair:
            return arguments
        scale = self._scale_of(negative)
        for value in (1.0, 0.0):
            other = {name: one for name, one in arguments.items() if name != "negative_prompt"} | {scale: value}
            if not self.call(self.default_steps, other).pair:
                return other
        raise TiltingError(f"a {self.kind} cannot be asked for its prompt's branch alone")

    def network(self, x: Tensor, t: Time, conditioning: Conditioning) -> Tensor:
        """The network's output (m, ...), in the terms of the schedule's kind, for each row's conditioning."""

        def ask(arguments: Mapping[str, Any], conditions: Sequence[Any], places: Any) -> Tensor:
            return self.call(self.steps_at(t), arguments).outputs(x[places], t, conditions)[0]

        return self.by_rows(conditioning.arguments, conditioning.conditions, range(len(x)), ask)

    def predict(self, output: Tensor, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(eps, x0) of an output, as `schedule.predict`; x0 as the model's scheduler clips it."""
        return self._first().noise.predict(output, x, t)

    def steps_at(self, t: Time) -> int:
        return t.steps if isinstance(t, Point) else self.default_steps

    def texts(self, prompts: Sequence[str], cfg: float, negative: str = "") -> list[dict[str, Any]]:
        """What the call reads of each prompt: the values of its ``encode_prompt``, by the names that it has for them."""
        found: list[dict[str, Any]] = []

        def keep(intercepted: InterceptedCall, values: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
            found[-1] |= values
            return values

        with torch.no_grad(), self.patched.editing_prompt_embeds(keep):
            for arguments, condition in zip(*self._requests(prompts, cfg, negative), strict=True):
                found.append({})
                InterceptedCall(self.call(self.default_steps, arguments), [condition], 0, skip_networks=True).run()
        return found

    def decoder(self, prompts: Sequence[str]) -> Decode:
        """The tail of the call for these prompts' images; differentiable, NaN where it is not finite."""
        return self._decoder(prompts, None)

    def looker(self, prompts: Sequence[str]) -> Decode | None:
        """The same for estimates, by the look decoder; None where there is none."""
        return None if self.look_decoder is None else self._decoder(prompts, self.look_decoder.decode)

    def _decoder(self, prompts: Sequence[str], look: Callable[..., Any] | None) -> Decode:
        arguments, conditions = self._requests(prompts, self.default_cfg, "")

        def decode(x: Tensor, rows: Tensor) -> Tensor:
            def ask(arguments: Mapping[str, Any], conditions: Sequence[Any], places: Any) -> Tensor:
                return decoding.decode(self._tail(arguments), x[places], conditions, look)

            return self.by_rows(arguments, conditions, rows, ask)

        return decode

    def _tail(self, arguments: Mapping[str, Any]) -> Call:
        """A short call, of which only the end matters."""
        return self.call(self.default_steps if "strength" in self.patched.parameters else min(2, self.default_steps), arguments)

    def before_decoder(self, latents: Tensor) -> Tensor:
        """What the autoencoder is given of clean latents (m, ...)."""
        call = self._tail(self.arguments(self.any_prompt, self.default_cfg, ""))
        with torch.no_grad():
            return decoding.before_decoder(call, latents, [self.patched.any_prompt] * len(latents))

    def decode(self, latents: Tensor) -> Tensor:
        """See `decoder`, for images with the inputs of all."""
        return self.decoder([self.any_prompt])(latents, torch.zeros(len(latents), dtype=torch.long, device="cpu"))

    @property
    def any_prompt(self) -> str:
        """A prompt: one with inputs of its own, where there are some."""
        return next(iter(self.each), str(self.patched.any_prompt))

    def encode(self, images: Tensor) -> Tensor:
        """Latents (the posterior's mean, as the loop has it) of pictures in [0, 1]."""
        call = self._tail(self.arguments(self.any_prompt, self.default_cfg, ""))
        return decoding.encode(call, images.to(self.device), [self.patched.any_prompt] * len(images))

    @property
    def from_picture(self) -> bool:
        """Whether what is drawn begins around a picture, not at noise."""
        return self._first().from_picture

    def start(self, prompts: Sequence[str]) -> Tensor | None:
        """The clean latents (len(prompts), ...) that images of a pipeline that begins from pictures begin around; else None."""
        if not self.from_picture:
            return None
        arguments, conditions = self._requests(prompts, self.default_cfg, "")

        def ask(arguments: Mapping[str, Any], conditions: Sequence[Any], places: Any) -> Tensor:
            return decoding.initial_latents(self.call(self.default_steps, arguments), conditions)

        return self.by_rows(arguments, conditions, range(len(prompts)), ask)

    def pair(self, cfg: float, negative: str = "") -> float:
        """The guidance scale of a request; 1 where the call makes no second branch, and so no correction."""
        return cfg if self.call(self.default_steps, self.arguments(self.any_prompt, cfg, negative)).pair else 1.0

    def forget(self) -> None:
        """See `Components.forget`."""
        super().forget()
        self._calls.clear()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(3, h, w), or (frames, 3, h, w) of a video."""
        if not self._image_shape:
            blank, z, rows = (
                decoding.zeros_decoder(self.patched.vae),
                torch.zeros(1, *self.latent_shape, device=self.device),
                torch.arange(1),
            )
            with torch.no_grad():
                self._image_shape = tuple(self._decoder([self.any_prompt], blank)(z, rows).shape[1:])
        return self._image_shape
