"""Schedulers that are put in the place of a pipeline's own while its call runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.cache import LRUCache, content_key
from tilting.models.intercepted_call import InterceptedCall, StepOutput
from tilting.models.schedulers import Noise

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "_step_index"
"""Where schedulers keep the number of their step."""


def probe_class(noise: Noise) -> type:
    """The class of schedulers that are put in the place of a pipeline's own: they set the same times, and their ``step`` is the
    `InterceptedCall`'s that runs."""
    base, placed = noise.kind_of_scheduler, LRUCache(2**24)

    class Probe(base):
        order, init_noise_sigma = 1, 1.0
        intercepted: InterceptedCall

        @functools.wraps(base.set_timesteps)
        def set_timesteps(probe, *given: Any, **more: Any) -> None:
            intercepted = probe.intercepted

            def made() -> dict[str, Any]:
                base.set_timesteps(probe, *given, **more)
                return {name: value for name, value in probe.__dict__.items() if name != "intercepted"}

            probe.__dict__.update(placed.get((content_key(given), content_key(more)), made))
            if intercepted.step_indices is not None:
                where = list(intercepted.step_indices)
                probe.timesteps = picked(probe.timesteps, where)
                if getattr(probe, "sigmas", None) is not None:
                    probe.sigmas = picked(probe.sigmas, [*where, where[-1] + 1])
            if intercepted.time is not None and intercepted.stop is not None:
                place = (intercepted.call.first_step if intercepted.step_indices is None else 0) + intercepted.stop
                probe.timesteps = probe.timesteps.clone()
                probe.timesteps[place] = intercepted.time.t
                if noise.flow:
                    probe.sigmas = probe.sigmas.clone()
                    probe.sigmas[place] = intercepted.time.alpha if noise.inverted else intercepted.time.sigma
            intercepted.times, intercepted.sigmas = probe.timesteps, getattr(probe, "sigmas", None)

        @staticmethod
        def scale_model_input(sample: Tensor, *_: Any, **__: Any) -> Tensor:
            return sample

        @functools.wraps(base.step)
        def step(probe, output: Tensor, t: Any, sample: Tensor, *_: Any, **more: Any) -> StepOutput:
            # with times for each token a step goes the other way: x + |dt| output
            reversed_step = more.get("per_token_timesteps") is not None
            stepped = probe.intercepted.step(-output if reversed_step else output, t, sample)
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
        def wrapped(probe: Any, *given: Any, **more: Any) -> Tensor:
            probe.intercepted.noises_picture = probe.intercepted.noises_picture or not probe.intercepted.in_loop
            asked = signature.bind(probe, *given, **more)  # (sample, noise, t) of diffusion, (sample, t, noise) of flow
            drawn: Tensor = asked.arguments["noise"]
            if probe.intercepted.noiseless:
                asked.arguments["noise"] = torch.zeros_like(drawn)
            elif probe.intercepted.in_loop and probe.intercepted.noise is not None:
                asked.arguments["noise"] = probe.intercepted.repeated(probe.intercepted.noise, drawn, drawn.dtype)
            if noise.variance_exploding:
                return noise.mixed(probe, *list(asked.arguments.values())[1:])
            return inner(*asked.args, **asked.kwargs)

        return wrapped

    for name in ("add_noise", "scale_noise"):
        if hasattr(base, name):
            setattr(Probe, name, noised(name))
    return Probe


def probe_of(kind: type, noise: Noise, intercepted: InterceptedCall) -> Any:
    """One of them for a run, as far as the pipeline's own was configured."""
    probe: Any = object.__new__(kind)
    held = {name: value for name, value in noise.held.items() if name != "init_noise_sigma"}
    probe.__dict__.update(held)
    probe.intercepted = intercepted
    return probe


def picked(values: Tensor, step_indices: Sequence[int]) -> Tensor:
    """Some of values, by numbers of the host; a list as an index would be sent to the device and waited for."""
    return torch.stack([values[place] for place in step_indices])
