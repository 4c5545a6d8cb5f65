"""A diffusers pipeline's own ``__call__`` as pure functions of latents: run anew for every evaluation, and left at the
scheduler's step.

    model output = the call up to step i     x is injected as what step i - 1 returned (at step 0: as the prepared latents)
    image        = the call to its end       x is injected as what the last step returned; the call decodes it (`decoding`)

So prompt encoding, packing, guidance, ControlNets, masks, experts, sizes and decoding are the pipeline's own. In skipped steps
the networks return zeros; encoders are run once for each content. This file knows the loop that the pipelines of diffusers
share (one loop, one ``self.scheduler.step`` in it), and no family of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.cache import LRUCache, copied, tensors
from tilting.models.independent_steps import independent
from tilting.models.intercepted_call import BranchMismatch, InterceptedCall, StepReached, batch_size_of
from tilting.models.patched_pipeline import PatchedPipeline
from tilting.models.pipeline_class import REWRITES, source_of
from tilting.models.probe import probe_class, probe_of
from tilting.models.schedulers import Noise, first_order
from tilting.schedule import correction
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

GUIDERS = ("guidance_scale", "adaptive_projected_guidance_scale")
TEXTS = re.compile(r"negative_prompt(_\d+)?|prompt_\d+")
"""A guider's scales; the call's arguments that are a text for each image."""
ONE_GENERATOR = re.compile(r"torch\.randn\([^)]*\bgenerator=generator\b")
"""In the source of a call that draws with torch itself, which takes no list of generators."""


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
class LinearGuidance:
    """Classifier-free guidance of two branches: first + scale (second - first).

    Attributes:
        scale: of guidance.
        reverse: whether the second branch comes first in the batch.
    """

    scale: float
    reverse: bool

    def branches(self, answers: Sequence[tuple[str, Any]], m: int) -> tuple[Tensor, ...]:
        """The two branches of m images, from one output of 2 m rows or two of m; none from others."""
        held = [one for _, out in answers for one in tensors(out)]
        parts = held[0].split(m) if len(held) == 1 else tuple(held)
        if len(parts) != 2 or any(len(part) != m for part in parts):
            return ()
        return parts[::-1] if self.reverse else parts

    def guided(self, first: Tensor, second: Tensor) -> Tensor:
        """The guided output."""
        return first + self.scale * (second - first)

    def explains(self, branches: tuple[Tensor, ...], output: Tensor) -> bool:
        """Whether these branches, guided, give the output of a call, which may have left channels out."""
        found = self.guided(*branches)
        return found.shape[0] == len(output) and torch.equal(found[:, : output.shape[1]], output)


class Call:
    """The call of a pipeline at a number of steps, with inputs that all images share; only their prompts differ.

    Args:
        patched: the pipeline.
        steps: of its schedule.
        inputs: its other arguments, guidance among them.

    Attributes:
        shape: of the state of one image.
        grid: the points of its own schedule, steps + 1 of them or fewer where it begins from a picture.
        pair: whether its networks are evaluated more than once for an image, as classifier-free guidance does.
        length: of its loop.
        independent: whether a step can be made without those before it.
    """

    def __init__(self, patched: PatchedPipeline, steps: int, inputs: Mapping[str, Any]):
        self.patched, self.steps, self.inputs = patched, steps, dict(inputs)
        self.noise: Noise = first_order(patched.pipe.scheduler)
        self.first_step, self.length, self.dtype, self.direct = 0, -1, None, False
        self.prepared = LRUCache(2**26)
        self._probe = probe_class(self.noise)
        intercepted = InterceptedCall(self, [patched.any_prompt], 0, skip_networks=True)
        halt = self.run_to_step(intercepted)
        if self.noise.variance_exploding and "self.scheduler.sigmas" in source_of(type(patched.pipe).__name__):
            raise TiltingError(
                f"a {type(patched.pipe).__name__} scales by sigmas of its own: give it a scheduler that keeps none"
            )
        assert intercepted.times is not None
        same = intercepted.times == torch.as_tensor(halt.t, dtype=intercepted.times.dtype, device=intercepted.times.device)
        self.first_step = int(same.nonzero()[0])
        self.length = len(intercepted.times) - self.first_step
        self.shape, self.dtype = tuple(halt.sample.shape[1:]), halt.sample.dtype
        self.copies = len(halt.sample)
        if not alike(halt.sample, halt.sample[:1].expand_as(halt.sample)):
            raise TiltingError(
                f"the loop of a {type(patched.pipe).__name__} holds the frames of a video as images of their own"
            )
        made = intercepted.latents
        self.direct = made is not None and alike(made, halt.sample)
        self.from_picture = intercepted.noises_picture
        self.pair = evaluated_twice(intercepted.network_outputs, len(intercepted.prompts))
        times, sigmas = intercepted.times[self.first_step :].tolist(), intercepted.sigmas
        points = self.noise.points(times, None if sigmas is None else sigmas[self.first_step :].tolist())
        self.grid = [Point.of(t, i, steps) for i, t in enumerate(points)]
        self._longer: Call | None = None
        values = {name: one.default for name, one in patched.parameters.items()} | self.arguments([patched.any_prompt])
        none = frozenset(name for name, value in values.items() if value is None)
        kind = type(patched.pipe)
        self.independent = (
            self.first_step == 0 and kind.__module__.startswith("diffusers.") and independent(kind.__name__, none)
        )
        self._guidance: dict[tuple[int, float], LinearGuidance | None] = {}

    def probe(self, intercepted: InterceptedCall) -> Any:
        """A scheduler that is put in the place of the pipeline's own."""
        return probe_of(self._probe, self.noise, intercepted)

    def guider(self, over: dict[str, Any]) -> list[tuple[Any, str, Any]]:
        """Patches: a guider without momentum, since an evaluation has no past; its scale larger by ``guider_scale``."""
        guider, more = getattr(self.patched.pipe, "guider", None), over.pop("guider_scale", 0.0)
        swaps = []
        for name in ("guider", "ocr_guider"):
            one = getattr(self.patched.pipe, name, None)
            if one is not None:
                scales = {scale: getattr(one, scale) + more for scale in GUIDERS if hasattr(one, scale)}
                scales["guidance_scale"] = self.inputs.get("guider_scale", one.guidance_scale) + more
                memory = {"adaptive_projected_guidance_momentum": None} if has_momentum(one) else {}
                swaps.append((self.patched.pipe, name, one.new(**scales, **memory)))
        return swaps if guider is not None else []

    def arguments(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """The arguments of the call for these images."""
        names, m = self.patched.parameters, len(prompts)
        inputs = {k: copied(v) for k, v in self.inputs.items() if k in names}
        source = source_of(type(self.patched.pipe).__name__)
        lone = m == 1 and "list of prompts is not" in source  # which takes a text alone
        inputs |= {k: [v] * m for k, v in inputs.items() if isinstance(v, str) and TEXTS.fullmatch(k) and not lone}
        if condition := self.patched.condition_argument:
            inputs[condition] = m if condition == "batch_size" else prompts[0] if lone else list(prompts)
        own: dict[str, Any] = {"num_inference_steps": self.steps, "output_type": "pt", "return_dict": False}
        if "generator" in names:
            each = [torch.Generator().manual_seed(0) for _ in prompts]
            own["generator"] = each[0] if lone or ONE_GENERATOR.search(source) else each
        return inputs | {k: v for k, v in (own | REWRITES).items() if k in names}

    @property
    def longer(self) -> Call:
        """One of two steps or more."""
        if self.length > 1:
            return self
        if self._longer is None:
            self._longer = Call(self.patched, self.steps + 1, self.inputs)
        return self._longer

    def until_step(
        self,
        x: Tensor,
        t: Time,
        prompts: Sequence[Any],
        replay: InterceptedCall | None = None,
        split: bool = False,
        over: Mapping[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> tuple[StepReached, InterceptedCall]:
        """What the scheduler's step is given at a time for latents x (m, ...), and the run, which has the networks' outputs."""
        i, time = self.at(t)
        call, step_indices = self, None
        if self.independent:
            step_indices = (i,) if self.direct else (i, i)
            i = len(step_indices) - 1
        elif i == 0 and not self.direct:
            call, i, time = self.longer, 1, t
        intercepted = InterceptedCall(call, prompts, i, x, time, replay, step_indices=step_indices, split=split, noise=noise)
        return self.run_to_step(intercepted, **(over or {})), intercepted

    def run_to_step(self, intercepted: InterceptedCall, **over: Any) -> StepReached:
        """What the scheduler's step was given. Raises TiltingError where the call came to its end."""
        halt = intercepted.run(**over)
        if not isinstance(halt, StepReached):
            raise TiltingError(f"the call of a {type(self.patched.pipe).__name__} makes no step {intercepted.stop}")
        return halt

    def takes_batches(self, prompts: Sequence[Any]) -> bool:
        """Whether the loop holds as many states as there are prompts."""
        halt = self.run_to_step(InterceptedCall(self, prompts, 0, skip_networks=True))
        copies, odd = divmod(len(halt.sample), len(prompts))
        return not odd and tuple(halt.sample.shape[1:]) == self.shape and copies == self.copies

    def padding_matters(self, short: str, long: str) -> bool:
        """Whether a short prompt's output depends on a long one in the batch: some pad to the longest and attend to the
        padding. The networks are run for it only where the prompts' lengths reach them."""
        sizes = []
        for prompt in (short, long):
            intercepted = InterceptedCall(self, [prompt], 0, skip_networks=True)
            intercepted.run()
            sizes.append(intercepted.network_keys)
        if sizes[0] == sizes[1]:
            return False
        noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0))
        network = next(iter(self.patched.loop_modules.values()))
        x, t = noise.to(next(network.parameters()).device), self.grid[0]
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
        The networks' outputs are replayed for it, so that it costs no evaluation.
        """
        out, difference, _, seen = self.outputs(x, t, prompts, noise=noise)
        eps, x0 = self.noise.predict(out, seen, t)
        if difference is None:
            return Prediction(eps, x0, torch.zeros_like(x))
        return Prediction(eps, x0, correction(self.noise.kind, difference, t))

    def outputs(
        self, x: Tensor, t: Time, prompts: Sequence[Any], split: bool = False, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """(the guided output (m, ...); what a scale larger by 1 adds to it, or None without guidance; the branch of the
        prompt, where guidance is a line between two; the latents that the network saw, which are not x where the loop blended
        a picture in), in the precision of x.

        Args:
            x, t, prompts: see `denoise`.
            split: each branch in a network call of its own.
            noise: (m, ...), see `InterceptedCall`.
        """
        halt, intercepted = self.until_step(x, t, prompts, split=split, noise=noise)
        answers = intercepted.network_outputs
        out, seen = self._read(halt.output, x), _seen(halt.sample[: len(x)], x)
        if not evaluated_twice(answers, len(x)):
            return out, None, out, seen
        guidance = self._guidance_of(answers, halt.output, len(x), t.t)
        if guidance is not None:
            wide = halt.output.shape[1]  # a call may leave their variance out, or the tokens of a picture
            first, second = (self._read(one[:, :wide], x) for one in guidance.branches(answers, len(x)))
            return guidance.guided(first, second), second - first, second, seen
        more = {name: value + 1.0 for name, value in self.patched.scales(self.inputs).items()} | {"guider_scale": 1.0}
        try:
            larger = self.until_step(x, t, prompts, intercepted, over=more, noise=noise)[0].output
            return out, self._read(larger, x) - out, None, seen
        except BranchMismatch:  # not those of a scale: of perturbed attention alone, or of layers left out
            return out, None, None, seen

    def _guidance_of(self, answers: list[Any], output: Tensor, m: int, t: float) -> LinearGuidance | None:
        """How guidance combines the network outputs of m images at a time; None where it is not linear, or they do not tell."""
        if (m, t) in self._guidance:
            return self._guidance[m, t]
        scales = set(self.patched.scales(self.inputs).values())
        candidates = [LinearGuidance(scale, reverse) for scale in scales for reverse in (False, True)]
        pairs = [(guidance, guidance.branches(answers, m)) for guidance in candidates]
        fitting = [guidance for guidance, branches in pairs if branches and guidance.explains(branches, output[:m])]
        if len(fitting) < 2:
            self._guidance[m, t] = next(iter(fitting), None)
        return fitting[0] if len(fitting) == 1 else None

    def _read(self, output: Tensor, x: Tensor) -> Tensor:
        """An output of x (m, ...), without a learnt variance."""
        out = output[: len(x)].to(x.dtype)
        out = out.chunk(2, 1)[0] if out.shape[1] == 2 * x.shape[1] else out
        return -out if self.noise.inverted else out


def _seen(state: Tensor, x: Tensor) -> Tensor:
    """A loop's latents in the precision of x: what it rounded is x; what it blended in (a mask) is its own."""
    return state if state.dtype == x.dtype else torch.where(state == x.to(state.dtype), x, state.to(x.dtype))


def evaluated_twice(answers: Sequence[tuple[str, Any]], m: int) -> bool:
    """Whether networks were evaluated more than once for each of m images: those that denoise, where their names say which they
    are, for a ControlNet returns a list of feature maps."""
    rows: dict[str, int] = {}
    for name, out in answers:
        rows[name] = rows.get(name, 0) + batch_size_of(out)
    denoising = [count for name, count in rows.items() if name.startswith(("unet", "transformer", "prior"))]
    return max(denoising or rows.values(), default=0) > m


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same, also where it is NaN."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)


def has_momentum(guider: Any) -> bool:
    """Whether a guider remembers its path."""
    return getattr(guider, "adaptive_projected_guidance_momentum", None) is not None
