"""A diffusers pipeline's own ``__call__`` as pure functions of latents: entered for every evaluation, and left at the
scheduler's step.

    output  = the call up to step i      x enters as what step i - 1 returned (at step 0: as what the call's latents are)
    picture = the call to its end        x enters as what the last step returned, and the call's own tail decodes it (`tail`)

So text, packing, guidance, ControlNets, masks, experts, sizes and decoding are the pipeline's own. The networks of steps that
are passed over answer zeros; what encodes prompts and pictures is asked once for each content. This file knows the loop that
the pipelines of diffusers share (one loop, one ``self.scheduler.step`` in it), and no family of models.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.cache import LRUCache, content_key, copied, tensors
from tilting.models.independent_steps import alone
from tilting.models.intercepted_call import BranchMismatch, InterceptedCall, StepOutput, StepReached, rows_of
from tilting.models.patched_pipeline import PatchedPipeline
from tilting.models.pipeline_class import source_of
from tilting.models.schedulers import Noise, first_order
from tilting.schedule import correction
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

GUIDERS = ("guidance_scale", "adaptive_projected_guidance_scale")
TEXTS = re.compile(r"negative_prompt(_\d+)?|prompt_\d+")
"""A guider's scales; the call's arguments that are a text for each image."""
INDEX = "_step_index"
"""Where schedulers keep the number of their step."""


class Point(Time):
    """A time that knows which grid it is of: number ``step`` of ``steps``."""

    step: int
    steps: int

    @classmethod
    def of(cls, time: Time, step: int, steps: int) -> Point:
        point = cls(*time)
        point.step, point.steps = step, steps
        return point


@dataclass(frozen=True)
class Mix:
    """Guidance as a line through two branches: first + scale (second - first).

    Attributes:
        scale: of the pair.
        reverse: whether the network answers with the second branch first.
    """

    scale: float
    reverse: bool

    def branches(self, seen: Sequence[tuple[str, Any]], m: int) -> tuple[Tensor, ...]:
        """The first and the second of m images, of one answer of 2 m rows or two of m; none of others."""
        held = [one for _, out in seen for one in tensors(out)]
        parts = held[0].split(m) if len(held) == 1 else tuple(held)
        if len(parts) != 2 or any(len(part) != m for part in parts):
            return ()
        return parts[::-1] if self.reverse else parts

    def guided(self, first: Tensor, second: Tensor) -> Tensor:
        """The guided output."""
        return first + self.scale * (second - first)

    def gives(self, branches: tuple[Tensor, ...], output: Tensor) -> bool:
        """Whether these branches' guided output is that of a call, which may have left some of it out."""
        found = self.guided(*branches)
        return found.shape[0] == len(output) and torch.equal(found[:, : output.shape[1]], output)


class Call:
    """The call of a pipeline at a number of steps, told the same of all images but their prompts.

    Args:
        door: the pipeline.
        steps: of its schedule.
        told: its other arguments, guidance among them.
        sample: any prompt, to look at the loop with.

    Attributes:
        shape: of the state of one image.
        grid: the points of its own schedule, steps + 1 of them or fewer where it begins from a picture.
        pair: whether its networks are asked more than once for an image.
        length: of its loop.
        alone: whether a step is made without those before it.
    """

    def __init__(self, patched: PatchedPipeline, steps: int, told: Mapping[str, Any], sample: Any):
        self.patched, self.steps, self.told = patched, steps, dict(told)
        self.noise: Noise = first_order(patched.pipe.scheduler)
        self.begin, self.length, self.dtype, self.direct = 0, -1, None, False
        self.prepared, self._placed = LRUCache(2**26), LRUCache(2**24)
        self._probe = self._probing()
        entry = InterceptedCall(self, [sample], 0, blind=True)
        halt = self.left(entry)
        if self.noise.variance_exploding and "self.scheduler.sigmas" in source_of(type(patched.pipe).__name__):
            raise TiltingError(
                f"a {type(patched.pipe).__name__} scales by sigmas of its own: give it a scheduler that keeps none"
            )
        assert entry.times is not None
        same = entry.times == torch.as_tensor(halt.t, dtype=entry.times.dtype, device=entry.times.device)
        self.begin = int(same.nonzero()[0])
        self.length = len(entry.times) - self.begin
        self.shape, self.dtype = tuple(halt.sample.shape[1:]), halt.sample.dtype
        self.copies = len(halt.sample)
        if not torch.allclose(halt.sample, halt.sample[:1].expand_as(halt.sample), 0.0, 0.0, equal_nan=True):
            raise TiltingError(
                f"the loop of a {type(patched.pipe).__name__} holds the frames of a video as images of their own"
            )
        made = entry.latents
        self.direct = (
            made is not None and made.shape == halt.sample.shape and torch.allclose(made, halt.sample, 0.0, 0.0, equal_nan=True)
        )
        self.from_picture = entry.noised
        self.pair = asked_twice(entry.seen, len(entry.prompts))
        times, sigmas = entry.times[self.begin :].tolist(), entry.sigmas
        points = self.noise.points(times, None if sigmas is None else sigmas[self.begin :].tolist())
        self.grid = [Point.of(t, i, steps) for i, t in enumerate(points)]
        self._longer: Call | None = None
        values = {name: one.default for name, one in patched.names.items()} | self.arguments([sample])
        none = frozenset(name for name, value in values.items() if value is None)
        kind = type(patched.pipe)
        self.alone = self.begin == 0 and kind.__module__.startswith("diffusers.") and alone(kind.__name__, none)
        self._mixes: dict[tuple[int, float], Mix | None] = {}

    def _probing(self) -> type:
        base, noise = self.noise.kind_of_scheduler, self.noise

        class Probe(base):
            order, init_noise_sigma = 1, 1.0
            entry: InterceptedCall

            @functools.wraps(base.set_timesteps)
            def set_timesteps(probe, *given: Any, **more: Any) -> None:
                entry, placed = probe.entry, self._placed

                def made() -> dict[str, Any]:
                    base.set_timesteps(probe, *given, **more)
                    return {name: value for name, value in probe.__dict__.items() if name != "entry"}

                probe.__dict__.update(placed.get((content_key(given), content_key(more)), made))
                if entry.places is not None:
                    where = list(entry.places)
                    probe.timesteps = picked(probe.timesteps, where)
                    if getattr(probe, "sigmas", None) is not None:
                        probe.sigmas = picked(probe.sigmas, [*where, where[-1] + 1])
                if entry.time is not None and entry.stop is not None:
                    place = (entry.call.begin if entry.places is None else 0) + entry.stop
                    probe.timesteps = probe.timesteps.clone()
                    probe.timesteps[place] = entry.time.t
                    if noise.flow:
                        probe.sigmas = probe.sigmas.clone()
                        probe.sigmas[place] = entry.time.alpha if noise.inverted else entry.time.sigma
                entry.times, entry.sigmas = probe.timesteps, getattr(probe, "sigmas", None)

            @staticmethod
            def scale_model_input(sample: Tensor, *_: Any, **__: Any) -> Tensor:
                return sample

            @functools.wraps(base.step)
            def step(probe, output: Tensor, t: Any, sample: Tensor, *_: Any, **more: Any) -> StepOutput:
                apart = more.get("per_token_timesteps") is not None  # by which a step goes the other way, x + |dt| output
                stepped = probe.entry.step(-output if apart else output, t, sample)
                if hasattr(base, f"_init{INDEX}"):  # by which a picture that is blended in after a step is noised
                    if probe.step_index is None:
                        base._init_step_index(probe, t)
                    setattr(probe, INDEX, getattr(probe, INDEX) + 1)
                return stepped

        for name in ("step", "set_timesteps"):
            own: Any = getattr(Probe, name)
            own.__signature__ = inspect.signature(getattr(base, name))  # pipelines ask for it at every turn

        def noised(name: str) -> Callable[..., Tensor]:
            inner = getattr(base, name)

            signature = inspect.signature(inner)

            @functools.wraps(inner)
            def told(probe: Any, *given: Any, **more: Any) -> Tensor:
                probe.entry.noised = probe.entry.noised or not probe.entry.looping
                asked = signature.bind(probe, *given, **more)  # (sample, noise, t) of diffusion, (sample, t, noise) of flow
                drawn: Tensor = asked.arguments["noise"]
                if probe.entry.noiseless:
                    asked.arguments["noise"] = torch.zeros_like(drawn)
                elif probe.entry.looping and probe.entry.noise is not None:
                    asked.arguments["noise"] = probe.entry.enters(probe.entry.noise, drawn, drawn.dtype)
                if noise.variance_exploding:
                    return noise.mixed(probe, *list(asked.arguments.values())[1:])
                return inner(*asked.args, **asked.kwargs)

            return told

        for name in ("add_noise", "scale_noise"):
            if hasattr(base, name):
                setattr(Probe, name, noised(name))
        return Probe

    def probe(self, entry: InterceptedCall) -> Any:
        """What stands where the scheduler was."""
        probe: Any = object.__new__(self._probe)
        held = {name: value for name, value in self.noise.held.items() if name != "init_noise_sigma"}
        probe.__dict__.update(held)
        probe.entry = entry
        return probe

    def guider(self, over: dict[str, Any]) -> list[tuple[Any, str, Any]]:
        """A guider without its memory of the path, which an evaluation has not; its scale one larger where that is asked."""
        guider, more = getattr(self.patched.pipe, "guider", None), over.pop("guider_scale", 0.0)
        swaps = []
        for name in ("guider", "ocr_guider"):
            one = getattr(self.patched.pipe, name, None)
            if one is not None:
                scales = {scale: getattr(one, scale) + more for scale in GUIDERS if hasattr(one, scale)}
                scales["guidance_scale"] = self.told.get("guider_scale", one.guidance_scale) + more
                memory = {"adaptive_projected_guidance_momentum": None} if has_momentum(one) else {}
                swaps.append((self.patched.pipe, name, one.new(**scales, **memory)))
        return swaps if guider is not None else []

    def arguments(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """What the call is told of these images."""
        names, m = self.patched.names, len(prompts)
        told = {k: copied(v) for k, v in self.told.items() if k in names}
        lone = m == 1 and "list of prompts is not" in source_of(type(self.patched.pipe).__name__)  # which takes a text alone
        told |= {k: [v] * m for k, v in told.items() if isinstance(v, str) and TEXTS.fullmatch(k) and not lone}
        if subject := self.patched.subject:
            told[subject] = m if subject == "batch_size" else prompts[0] if lone else list(prompts)
        own: dict[str, Any] = {"num_inference_steps": self.steps, "output_type": "pt", "return_dict": False}
        if "generator" in names:
            each = [torch.Generator().manual_seed(0) for _ in prompts]
            own["generator"] = each[0] if lone else each
        return told | {k: v for k, v in own.items() if k in names}

    @property
    def longer(self) -> Call:
        """One of two steps or more."""
        if self.length > 1:
            return self
        if self._longer is None:
            self._longer = Call(self.patched, self.steps + 1, self.told, self.a_prompt)
        return self._longer

    @property
    def a_prompt(self) -> Any:
        return 0 if self.patched.subject == "class_labels" else "a"

    def halted(
        self,
        x: Tensor,
        t: Time,
        prompts: Sequence[Any],
        replay: InterceptedCall | None = None,
        apart: bool = False,
        over: Mapping[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[StepReached, InterceptedCall]:
        """What the step at a time is given for latents x (m, ...), and the entry, which has what the networks said."""
        i, time = self.at(t)
        call, places = self, None
        if self.alone:
            places = (i,) if self.direct else (i, i)
            i = len(places) - 1
        elif i == 0 and not self.direct:
            call, i, time = self.longer, 1, t
        entry = InterceptedCall(call, prompts, i, x, time, replay, places=places, apart=apart, noise=noise)
        return self.left(entry, **(over or {})), entry

    def left(self, entry: InterceptedCall, **over: Any) -> StepReached:
        """How an entry left the call. Raises TiltingError where it came to the end."""
        halt = entry.run(**over)
        if not isinstance(halt, StepReached):
            raise TiltingError(f"the call of a {type(self.patched.pipe).__name__} makes no step {entry.stop}")
        return halt

    def several(self, prompts: Sequence[Any]) -> bool:
        """Whether the loop holds as many states as there are prompts."""
        halt = self.left(InterceptedCall(self, prompts, 0, blind=True))
        copies, odd = divmod(len(halt.sample), len(prompts))
        return not odd and tuple(halt.sample.shape[1:]) == self.shape and copies == self.copies

    def mixes(self, short: str, long: str) -> bool:
        """Whether what is said of a short prompt depends on a long one beside it: some pad to the longest and read the padding.
        Asked of the networks only where the prompts' lengths reach them."""
        sizes = []
        for prompt in (short, long):
            entry = InterceptedCall(self, [prompt], 0, blind=True)
            entry.run()
            sizes.append(entry.shapes)
        if sizes[0] == sizes[1]:
            return False
        noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0))
        x, t = noise.to(next(self.patched.inside[next(iter(self.patched.inside))].parameters()).device), self.grid[0]
        alone = self.denoise(x, t, [short]).x0
        beside = self.denoise(x.expand(2, *self.shape), t, [short, long]).x0[:1]
        most = 1e-3 if self.dtype == torch.float32 else 0.03
        return bool((alone - beside).abs().max() > most * alone.abs().max())

    def at(self, t: Time) -> tuple[int, Time | None]:
        """(index in the loop, the time to set there where it is not the loop's own)."""
        if isinstance(t, Point) and t.steps == self.steps:
            return t.step, None
        i = min(range(len(self.grid) - 1), key=lambda q: abs(self.grid[q].t - t.t))
        return i, None if self.grid[i].t == t.t else t

    def denoise(self, x: Tensor, t: Time, prompts: Sequence[Any], noise: Tensor | None = None) -> Prediction:
        """eps, x0 and the correction of latents x (m, ...) at a time.

        The correction is what the guided output gains by a scale larger by 1: cond - uncond wherever guidance is linear in it.
        The networks' answers are replayed for it, so that it costs no evaluation.
        """
        out, difference, _, halt = self.outputs(x, t, prompts, noise=noise)
        state = halt.sample[: len(x)]
        if state.dtype == x.dtype:
            seen_x = state
        else:  # what the loop rounded is x; what it blended in (a mask) is its own
            seen_x = torch.where(state == x.to(state.dtype), x, state.to(x.dtype))
        eps, x0 = self.noise.predict(out, seen_x, t)
        if difference is None:
            return Prediction(eps, x0, torch.zeros_like(x))
        return Prediction(eps, x0, correction(self.noise.kind, difference, t))

    def outputs(
        self, x: Tensor, t: Time, prompts: Sequence[Any], apart: bool = False, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, StepReached]:
        """(the guided output (m, ...); what a scale larger by 1 adds to it, or None where there is no pair; the branch of the
        prompt, where guidance is a line between two; how the step was left), in the precision of x.

        Args:
            x, t, prompts: see `denoise`.
            apart: each branch in a network call of its own.
            noise: (m, ...), see `InterceptedCall`.
        """
        halt, entry = self.halted(x, t, prompts, apart=apart, noise=noise)
        seen = entry.seen
        out = self._read(halt.output, x)
        if not asked_twice(seen, len(x)):
            return out, None, out, halt
        mix = self._mix(seen, halt.output, len(x), t.t)
        if mix is not None:
            wide = halt.output.shape[1]  # a call may leave their variance out, or the tokens of a picture
            first, second = (self._read(one[:, :wide], x) for one in mix.branches(seen, len(x)))
            return mix.guided(first, second), second - first, second, halt
        more = {name: value + 1.0 for name, value in self.patched.scales(self.told).items()} | {"guider_scale": 1.0}
        try:
            return out, self._read(self.halted(x, t, prompts, entry, over=more, noise=noise)[0].output, x) - out, None, halt
        except BranchMismatch:  # not those of a scale: of perturbed attention alone, or of layers left out
            return out, None, None, halt

    def _mix(self, seen: list[Any], output: Tensor, m: int, t: float) -> Mix | None:
        """How guidance mixes the answers of m images at a time; None where it is no line, or these do not tell."""
        if (m, t) in self._mixes:
            return self._mixes[m, t]
        mixes = [Mix(scale, reverse) for scale in set(self.patched.scales(self.told).values()) for reverse in (False, True)]
        pairs = [(mix, mix.branches(seen, m)) for mix in mixes]
        fitting = [mix for mix, branches in pairs if branches and mix.gives(branches, output[:m])]
        if len(fitting) < 2:
            self._mixes[m, t] = next(iter(fitting), None)
        return fitting[0] if len(fitting) == 1 else None

    def _read(self, output: Tensor, x: Tensor) -> Tensor:
        """An output of x (m, ...), without a learnt variance."""
        out = output[: len(x)].to(x.dtype)
        out = out.chunk(2, 1)[0] if out.shape[1] == 2 * x.shape[1] else out
        return -out if self.noise.inverted else out


def asked_twice(seen: Sequence[tuple[str, Any]], m: int) -> bool:
    """Whether networks that answered were asked more than once for each of m images: those that denoise, where their names say
    which they are, for a ControlNet answers with a list of maps."""
    rows: dict[str, int] = {}
    for name, out in seen:
        rows[name] = rows.get(name, 0) + rows_of(out)
    denoising = [count for name, count in rows.items() if name.startswith(("unet", "transformer", "prior"))]
    return max(denoising or rows.values(), default=0) > m


def picked(values: Tensor, places: Sequence[int]) -> Tensor:
    """Some of values, by numbers of the host; a list as an index would be sent to the device and waited for."""
    return torch.stack([values[place] for place in places])


def has_momentum(guider: Any) -> bool:
    """Whether a guider remembers its path."""
    return getattr(guider, "adaptive_projected_guidance_momentum", None) is not None
