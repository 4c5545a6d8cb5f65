"""Our schedules of diffusers' schedulers: only how a model was trained, and where its steps fall, is read of them.

Flow matching spaces T steps evenly in t and shifts them, t -> shift t / (1 + (shift - 1) t): by a constant (Esser et al. 2024),
or by exp(mu), mu linear in the tokens of an image. Stable Diffusion 3's pipeline spaces from 1 to the last time of the shifted
training schedule (and shifts that again), FLUX's from 1 to 1 / T.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from tilting.schedule import Kind, Schedule
from tilting.types import TiltingError

DISTILLED = ("LCMScheduler", "TCDScheduler")
UNKNOWN = ("invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def schedule_of(scheduler: Any) -> Schedule:
    """Our schedule of a diffusers scheduler (DDIM, DDPM, PNDM, Euler, ...: only its training schedule is read)."""
    config, name = scheduler.config, type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise TiltingError(f"a {name} does not say with which noise this model was trained")
    if name in DISTILLED:
        raise TiltingError(f"a model distilled for {name} cannot be steered: its few steps are not those of a diffusion")
    options = inspect.signature(type(scheduler).__init__).parameters  # diffusers keeps what another scheduler left in a config
    if config.get("thresholding") and "thresholding" in options:
        raise TiltingError(f"a {name} with thresholding, which clips every estimate, is not known")
    kind: Kind = config.get("prediction_type", "epsilon")
    alpha_bar = tuple(scheduler.alphas_cumprod.double().tolist())
    one = config.get("set_alpha_to_one", True) or "set_alpha_to_one" not in options
    final = 1.0 if one else alpha_bar[0]
    return Schedule(kind, alpha_bar, final, config.get("timestep_spacing", "leading"), config.get("steps_offset", 0))


def flow_schedule(scheduler: Any, tokens: int, even: bool, most: float = 1.15) -> Schedule:
    """Our schedule of a FlowMatchEulerDiscreteScheduler.

    Args:
        scheduler: of the pipeline.
        tokens: of an image, which a dynamic shift depends on.
        even: whether steps fall evenly from 1 to the last training time, rather than to 1 / T.
        most: the largest mu where the configuration has none.

    Raises:
        TiltingError: for one that places its steps in another way.
    """
    config = scheduler.config
    if "base_shift" not in config:
        raise TiltingError(f"a {type(scheduler).__name__} is not the flow matching that this model was trained by")
    for option in UNKNOWN:
        if config.get(option):
            raise TiltingError(f"a flow matching schedule with {option} is not known")
    last = 1 / config["num_train_timesteps"]
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        first, largest = config.get("base_shift", 0.5), config.get("max_shift", most)
        mu = first + (largest - first) * (tokens - low) / (high - low)
        shift = mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)
    else:
        shift = config.get("shift", 1.0)
        last = shift * last / (1 + (shift - 1) * last)
    return Schedule("flow", spacing="linspace" if even else "trailing", shift=shift, last=last)
