"""Noise schedule and timesteps of a pipeline's scheduler."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from tilting.errors import nearest
from tilting.schedule import Kind, predict
from tilting.types import TiltingError, Time

if TYPE_CHECKING:
    from torch import Tensor


def meant_by(config: Mapping[str, Any]) -> Kind:
    """What a network's output means, as its scheduler's configuration says. Raises TiltingError for what nobody knows."""
    kind = config.get("prediction_type", "epsilon")
    if kind not in get_args(Kind):
        raise TiltingError(f"a model whose prediction_type is {kind!r} is not known{nearest(str(kind), get_args(Kind))}")
    return kind


FIRST_ORDER = {
    "CogVideoXDPMScheduler": "CogVideoXDDIMScheduler",
    "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
}
"""Schedulers of the noise of another, which steps by the first order: their own lists have times twice, or their steps more."""
OWN = ("DDIM", "LCM", "TCD")
"""What the names of schedulers hold whose times are taken as they are, though they keep no sigmas."""


@dataclass(frozen=True)
class Noise:
    """What a pipeline's scheduler says of noise and times, for steps of ours.

    Its own times are taken where it makes one step a time (flow matching, Euler, DPM++, UniPC, DEIS, LMS, DDIM, LCM, TCD, each
    with its spacing, shift, karras sigmas and last sigma); those of DDIM in its configuration where it makes more, or repeats
    some (PNDM, Heun, KDPM2, DPM-SDE), or keeps no list (DDPM).

    Attributes:
        kind: what the network's output means.
        flow: whether x_t = (1 - σ) x_0 + σ noise.
        inverted: a flow whose σ is 1 at clean data.
        kind_of_scheduler: the class whose times are taken.
        held: the attributes of one.
        clip: the largest x0, where the scheduler clips it.
        boundary: sigma_data and the scaling of times of a consistency model's c_skip and c_out, or None.
        last: ᾱ at the end of the grid, where no sigma says it.
        alpha_bar: ᾱ of training times, where there are some.
    """

    kind: Kind
    flow: bool
    inverted: bool
    kind_of_scheduler: Any
    held: Mapping[str, Any] = field(repr=False)
    clip: float | None = None
    boundary: tuple[float, float] | None = None
    last: float = 1.0
    alpha_bar: tuple[float, ...] = ()

    @property
    def variance_exploding(self) -> bool:
        """Whether what the scheduler noises is x_0 + σ noise, which the loop's x_t is not."""
        return not self.flow and "sigmas" in self.held and not hasattr(self.kind_of_scheduler, "_sigma_to_alpha_sigma_t")

    def mixed(self, probe: Any, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t at times (m,) of the probe's list."""
        where = [int((probe.timesteps == t).nonzero()[0]) for t in times.reshape(-1)]
        points = self.points([0.0] * len(probe.timesteps), probe.sigmas.tolist())
        shape = (-1, *[1] * (clean.ndim - 1))
        alpha, sigma = (clean.new_tensor([points[i][part] for i in where]).reshape(shape) for part in (1, 2))
        return alpha * clean + sigma * noise

    def points(self, times: Sequence[float], sigmas: Sequence[float] | None) -> list[Time]:
        """The grid of these times, the end of it included."""
        if self.flow:
            assert sigmas is not None
            scales = [(s, 1 - s) if self.inverted else (1 - s, s) for s in sigmas[: len(times) + 1]]
            points = [Time(float(t), a, s) for t, (a, s) in zip(times, scales, strict=False) if s > 0]
            return [*points, Time(0.0, *scales[len(times)])]
        if sigmas is not None and len(sigmas) > len(times):
            scales = [(1 / math.hypot(1, s), s / math.hypot(1, s)) for s in sigmas[: len(times) + 1]]
            points = [Time(float(t), *one) for t, one in zip(times, scales, strict=False)]
            last = sigmas[len(times)]  # what is left at the end is decoded as x_0 + σ noise, where x_t is that
            return [*points, Time(0.0, 1.0, last) if self.variance_exploding else Time(0.0, *scales[len(times)])]
        bar = [self.alpha_bar[int(t)] for t in times]
        points = [Time(float(t), math.sqrt(a), math.sqrt(1 - a)) for t, a in zip(times, bar, strict=True)]
        return [*points, Time(0.0, math.sqrt(self.last), math.sqrt(1 - self.last))]

    def predict(self, output: Tensor, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(eps, x0) of an output; x0 as the scheduler clips it, or as its consistency function has it."""
        eps, x0 = predict(self.kind, output, x, t)
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        if self.boundary is not None:
            data, scaling = self.boundary
            scaled = t.t * scaling
            skip, out = data**2 / (scaled**2 + data**2), scaled / math.hypot(scaled, data)
            x0 = out * x0 + skip * x
            eps = (x - t.alpha * x0) / t.sigma
        return eps, x0


def first_order(scheduler: Any) -> Noise:
    """What is taken of a pipeline's scheduler; see `Noise`. Raises TiltingError for one that says too little, or more."""
    import diffusers

    real, config = type(scheduler), scheduler.config
    name, options = real.__name__, inspect.signature(real.__init__).parameters
    if config.get("thresholding") and "thresholding" in options:
        raise TiltingError(f"a {name} with thresholding, which clips every estimate, is not known")
    matching = name.startswith("FlowMatch")
    if matching or (config.get("use_flow_sigmas") and "use_flow_sigmas" in options):
        kind = "flow" if matching or config.get("prediction_type") == "flow_prediction" else meant_by(config)
        if kind == "v_prediction" or (matching and (config.get("sigma_max") or 1) > 1):
            raise TiltingError(f"a {name} whose states are no mixture of a picture and noise is not known")
        if name in FIRST_ORDER:
            scheduler = getattr(diffusers, FIRST_ORDER[name]).from_config(config)
        return Noise(kind, True, bool(config.get("invert_sigmas")), type(scheduler), dict(scheduler.__dict__))
    if not hasattr(scheduler, "alphas_cumprod") or name.startswith("EDM"):
        raise TiltingError(f"a {name} does not say with which noise this model was trained")
    kind = meant_by(config)
    alpha_bar = tuple(scheduler.alphas_cumprod.double().tolist())
    one = config.get("set_alpha_to_one", True) or "set_alpha_to_one" not in options
    clips = config.get("clip_sample") and "if self.config.clip_sample:" in inspect.getsource(real.step)
    clip = float(config.get("clip_sample_range", 1.0)) if clips else None
    more: dict[str, Any] = {"clip": clip, "last": 1.0 if one else alpha_bar[0], "alpha_bar": alpha_bar}
    if name.startswith("LCM"):
        more |= {"boundary": (0.5, config.get("timestep_scaling", 10.0)), "last": 1.0}
    sigmas = hasattr(scheduler, "sigmas") and getattr(scheduler, "order", 1) == 1
    if sigmas or (any(part in name for part in OWN) and "Inverse" not in name):
        return Noise(kind, False, False, real, dict(scheduler.__dict__), **more)
    other = getattr(diffusers, FIRST_ORDER.get(name, "DDIMScheduler"))
    made = other.from_config(config, clip_sample=bool(clips), set_alpha_to_one=bool(one))
    if not made.alphas_cumprod.allclose(scheduler.alphas_cumprod, atol=1e-6):
        raise TiltingError(f"the noise of a {name} is not known: its training schedule is not that of its betas")
    return Noise(kind, False, False, other, dict(made.__dict__), **more)
