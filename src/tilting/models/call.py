"""A diffusers pipeline's own ``__call__`` as pure functions of latents: entered anew for every evaluation, left where the
scheduler would step.

    output  = the call up to step i      x enters as what step i - 1 returned (at step 0: as what the call's latents are)
    picture = the call to its end        x enters as what the last step returned, and the call's own tail decodes it

So text, packing, guidance, ControlNets, masks, experts, sizes and decoding are the pipeline's own. The networks of steps that
are passed over answer zeros; what encodes prompts and pictures is asked once for each content. This file knows the loop that
the pipelines of diffusers share (one loop, one ``self.scheduler.step`` in it), and no family of models.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.door import Door, own_numbers, swapped
from tilting.models.entry import Entry, Halt, Stepped, rows_of
from tilting.models.memo import fresh
from tilting.models.schedulers import Noise, first_order
from tilting.schedule import correction
from tilting.types import Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

GUIDERS = ("guidance_scale", "adaptive_projected_guidance_scale")
TEXTS = re.compile(r"negative_prompt(_\d+)?|prompt_\d+")
"""A guider's scales; the call's arguments that are a text for each image."""


class Point(Time):
    """A time that knows which grid it is of: number ``step`` of ``steps``."""

    step: int
    steps: int

    @classmethod
    def of(cls, time: Time, step: int, steps: int) -> Point:
        point = cls(*time)
        point.step, point.steps = step, steps
        return point


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
    """

    def __init__(self, door: Door, steps: int, told: Mapping[str, Any], sample: Any):
        self.door, self.steps, self.told = door, steps, dict(told)
        self.noise: Noise = first_order(door.pipe.scheduler)
        self.begin, self.length, self.dtype = 0, -1, None
        self._probe = self._probing()
        entry = Entry(self, [sample], 0, blind=True)
        halt = entry.run()
        if not isinstance(halt, Halt):
            raise TiltingError(f"the call of a {type(door.pipe).__name__} makes no step")
        assert entry.times is not None
        same = entry.times == torch.as_tensor(halt.t, dtype=entry.times.dtype, device=entry.times.device)
        self.begin = int(same.nonzero()[0])
        self.length = len(entry.times) - self.begin
        self.shape, self.dtype = tuple(halt.sample.shape[1:]), halt.sample.dtype
        self.copies = len(halt.sample)
        made = entry.latents
        self.direct = made is not None and made.shape == halt.sample.shape and torch.equal(made, halt.sample)
        self.from_picture = entry.noised
        self.pair = asked_twice(entry.seen, len(entry.prompts))
        times, sigmas = entry.times[self.begin :].tolist(), entry.sigmas
        points = self.noise.points(times, None if sigmas is None else sigmas[self.begin :].tolist())
        self.grid = [Point.of(t, i, steps) for i, t in enumerate(points)]
        self._longer: Call | None = None

    def _probing(self) -> type:
        base, noise = self.noise.kind_of_scheduler, self.noise

        class Probe(base):
            order, init_noise_sigma = 1, 1.0
            entry: Entry

            @functools.wraps(base.set_timesteps)
            def set_timesteps(probe, *given: Any, **more: Any) -> None:
                noise.place(probe, base, *given, **more)
                entry = probe.entry
                if entry.time is not None and entry.stop is not None:
                    place = entry.call.begin + entry.stop
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
            def step(probe, output: Tensor, t: Any, sample: Tensor, *_: Any, **__: Any) -> Stepped:
                return probe.entry.step(output, t, sample)

        def noised(name: str) -> Callable[..., Tensor]:
            inner = getattr(base, name)

            signature = inspect.signature(inner)

            @functools.wraps(inner)
            def told(probe: Any, *given: Any, **more: Any) -> Tensor:
                probe.entry.noised = probe.entry.noised or not probe.entry.looping
                asked = signature.bind(probe, *given, **more)  # (sample, noise, t) of diffusion, (sample, t, noise) of flow
                if probe.entry.noiseless:
                    asked.arguments["noise"] = torch.zeros_like(asked.arguments["noise"])
                if noise.variance_exploding:
                    return noise.mixed(probe, *list(asked.arguments.values())[1:])
                return inner(*asked.args, **asked.kwargs)

            return told

        for name in ("add_noise", "scale_noise"):
            if hasattr(base, name):
                setattr(Probe, name, noised(name))
        return Probe

    def probe(self, entry: Entry) -> Any:
        """What stands where the scheduler was."""
        probe: Any = object.__new__(self._probe)
        held = {name: value for name, value in self.noise.held.items() if name != "init_noise_sigma"}
        probe.__dict__.update(held)
        probe.entry = entry
        return probe

    def guider(self, over: dict[str, Any]) -> list[tuple[Any, str, Any]]:
        """A guider without its memory of the path, which an evaluation has not; its scale one larger where that is asked."""
        guider, more = getattr(self.door.pipe, "guider", None), over.pop("guider_scale", 0.0)
        swaps = []
        for name in ("guider", "ocr_guider"):
            one = getattr(self.door.pipe, name, None)
            if one is not None:
                scales = {scale: getattr(one, scale) + more for scale in GUIDERS if hasattr(one, scale)}
                scales["guidance_scale"] = self.told.get("guider_scale", one.guidance_scale) + more
                memory = {"adaptive_projected_guidance_momentum": None} if has_momentum(one) else {}
                swaps.append((self.door.pipe, name, one.new(**scales, **memory)))
        return swaps if guider is not None else []

    def arguments(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """What the call is told of these images."""
        names, m = self.door.names, len(prompts)
        told = {k: fresh(v) for k, v in self.told.items() if k in names}
        told |= {k: [v] * m for k, v in told.items() if isinstance(v, str) and TEXTS.fullmatch(k)}
        if subject := self.door.subject:
            told[subject] = m if subject == "batch_size" else list(prompts)
        own = {"num_inference_steps": self.steps, "output_type": "pt", "return_dict": False}
        if "generator" in names:
            own["generator"] = [torch.Generator().manual_seed(0) for _ in prompts]
        return told | {k: v for k, v in own.items() if k in names}

    @property
    def longer(self) -> Call:
        """One of two steps or more."""
        if self.length > 1:
            return self
        if self._longer is None:
            self._longer = Call(self.door, self.steps + 1, self.told, self.a_prompt)
        return self._longer

    @property
    def a_prompt(self) -> Any:
        return 0 if self.door.subject == "class_labels" else "a"

    def halted(
        self, x: Tensor, t: Time, prompts: Sequence[Any], replay: list[Any] | None = None, **over: Any
    ) -> tuple[Halt, list[Any]]:
        """What the step at a time is given for latents x (m, ...), and what the networks said."""
        i, time = self.at(t)
        call = self
        if i == 0 and not self.direct:
            call, i, time = self.longer, 1, t
        entry = Entry(call, prompts, i, x, time, replay)
        halt = entry.run(**over)
        return halt, entry.seen

    def several(self, prompts: Sequence[Any]) -> bool:
        """Whether the loop holds as many states as there are prompts."""
        halt = Entry(self, prompts, 0, blind=True).run()
        copies, odd = divmod(len(halt.sample), len(prompts))
        return not odd and tuple(halt.sample.shape[1:]) == self.shape and copies == self.copies

    def mixes(self, short: str, long: str) -> bool:
        """Whether what is said of a short prompt depends on a long one beside it: some pad to the longest and read the padding.
        Asked of the networks only where the prompts' lengths reach them."""
        sizes = []
        for prompt in (short, long):
            entry = Entry(self, [prompt], 0, blind=True)
            entry.run()
            sizes.append(entry.shapes)
        if sizes[0] == sizes[1]:
            return False
        noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0))
        x, t = noise.to(next(self.door.inside[next(iter(self.door.inside))].parameters()).device), self.grid[0]
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

    def denoise(self, x: Tensor, t: Time, prompts: Sequence[Any]) -> Prediction:
        """eps, x0 and the correction of latents x (m, ...) at a time.

        The correction is what the guided output gains by a scale larger by 1: cond - uncond wherever guidance is linear in it.
        The networks' answers are replayed for it, so that it costs no evaluation.
        """
        halt, seen = self.halted(x, t, prompts)
        out, kind = self.guided(halt, x), self.noise.kind
        state = halt.sample[: len(x)]
        if state.dtype == x.dtype:
            seen_x = state
        else:  # what the loop rounded is x; what it blended in (a mask) is its own
            seen_x = torch.where(state == x.to(state.dtype), x, state.to(x.dtype))
        eps, x0 = self.noise.predict(out, seen_x, t)
        if not asked_twice(seen, len(x)):
            return Prediction(eps, x0, torch.zeros_like(x))
        more = {name: value + 1.0 for name, value in self.door.scales(self.told).items()} | {"guider_scale": 1.0}
        again = self.guided(self.halted(x, t, prompts, seen, **more)[0], x)
        return Prediction(eps, x0, correction(kind, again - out, t))

    def guided(self, halt: Halt, x: Tensor) -> Tensor:
        """The guided output (m, ...), without a learnt variance."""
        out = halt.output[: len(x)].to(x.dtype)
        out = out.chunk(2, 1)[0] if out.shape[1] == 2 * x.shape[1] else out
        return -out if self.noise.inverted else out

    def decode(self, x: Tensor, prompts: Sequence[Any], look: Callable[..., Any] | None = None) -> Tensor:
        """Pictures (m, 3, h, w), or films (m, frames, 3, h, w), in [0, 1] of clean latents; differentiable. ``look`` decodes in
        the autoencoder's place."""
        door, kept = self.door, []
        if door.vae is None:
            return (own_numbers(x) / 2 + 0.5).clamp(0, 1)  # a model of pixels
        with door.lock:
            decode = look or door.vae.decode

            @functools.wraps(door.vae.decode)
            def decoded(*given: Any, **more: Any) -> Any:
                out = decode(*given, **more)
                kept.append(out[0] if isinstance(out, tuple) else out.sample)
                return out

            with swapped((door.vae, "decode", decoded)):
                try:
                    made = Entry(self, prompts, None, x).run()[0]
                except (RuntimeError, TypeError):  # a tail of numpy, which takes no gradient
                    if not kept:
                        raise
                    made = None
        if not isinstance(made, torch.Tensor):
            image = (own_numbers(kept[0]) / 2 + 0.5).clamp(0, 1)
            image = image.transpose(1, 2) if image.ndim == 5 else image
            self._same(image, made)
            made = image
        return made.to(x.dtype)

    def _same(self, image: Tensor, made: Any) -> None:
        """Refuse a tail that does more to a picture than to bring it into [0, 1]."""
        if made is None or not hasattr(made, "shape"):
            return
        theirs = torch.as_tensor(made).to(image).movedim(-1, -3)
        if theirs.shape != image.shape or not theirs.allclose(image.detach(), atol=1e-3, equal_nan=True):
            raise TiltingError(f"what a {type(self.door.pipe).__name__} makes of its autoencoder's picture is not known")

    def clean(self, prompts: Sequence[Any]) -> Tensor:
        """The clean latents (m, ...) that a call from pictures begins around."""
        halt = Entry(self, prompts, 0, blind=True, noiseless=True).run()
        return halt.sample[: len(prompts)].float() / self.grid[0].alpha

    def before_decoder(self, x: Tensor, prompts: Sequence[Any]) -> Tensor:
        """What the autoencoder is to decode of latents x, as the tail hands it over."""

        def stop(z: Tensor, *_: Any, **__: Any) -> None:
            raise Halt(z, None, z)

        door = self.door
        with door.lock, swapped((door.vae, "decode", stop)):
            return Entry(self, prompts, None, x).run().output

    def encode(self, images: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Latents (m, ...) of pictures (m, 3, h, w) or films (m, frames, 3, h, w) in [0, 1]: the tail backwards.

        Up to the autoencoder the tail is z = A x + b, A a scaled permutation (packing, mean, std, scale, shift), so that
        x = Aᵀ((z - b) / d²), d² = A Aᵀ 1, Aᵀ by one vector-Jacobian product. Where d = 0 the picture is not x's (outside an
        inpainting's mask), and x is 0.
        """
        vae, m = self.door.vae, len(images)
        if vae is None:
            return images * 2 - 1
        x = torch.zeros(m, *self.shape, device=images.device).requires_grad_()
        with torch.enable_grad():
            b = self.before_decoder(x, prompts)

            def back(z: Tensor) -> Tensor:
                return torch.autograd.grad(b, x, z.to(b), retain_graph=True)[0]

            ones = back(torch.ones_like(b))
        with torch.no_grad():
            squared = self.before_decoder(ones, prompts) - b
            pixels = images * 2 - 1
            pixels = pixels.transpose(1, 2) if pixels.ndim == 5 else pixels[:, :, None] if b.ndim == 5 else pixels
            made = vae.encode(pixels.to(vae.dtype))
            z = made.latent_dist.mode() if hasattr(made, "latent_dist") else made[0]
            if z.shape != b.shape:
                raise TiltingError(
                    f"pictures {tuple(images.shape[1:])} have latents {tuple(z.shape[1:])}, not {tuple(b.shape[1:])}"
                )
        off = z.to(b) - b.detach()
        return back(torch.where(squared == 0, 0.0, off / squared.masked_fill(squared == 0, 1)))


def asked_twice(seen: Sequence[tuple[str, Any]], m: int) -> bool:
    """Whether networks that answered were asked more than once for each of m images: those that denoise, where their names say
    which they are, for a ControlNet answers with a list of maps."""
    rows: dict[str, int] = {}
    for name, out in seen:
        rows[name] = rows.get(name, 0) + rows_of(out)
    denoising = [count for name, count in rows.items() if name.startswith(("unet", "transformer", "prior"))]
    return max(denoising or rows.values(), default=0) > m


def has_momentum(guider: Any) -> bool:
    """Whether a guider remembers its path."""
    return getattr(guider, "adaptive_projected_guidance_momentum", None) is not None
