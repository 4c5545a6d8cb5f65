"""The choice of `--method auto`, given the loaded model and reward: gradient, speed, and whether rewards vary."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tilting.config.auto import Budget, Choice, Unfit, choose, measured
from tilting.config.generate import GenerateConfig
from tilting.cost import calls_of
from tilting.generation.fit import fitted
from tilting.generation.generate import Drawn, draw
from tilting.generation.plan import Model, identities, plan
from tilting.presets import METHODS, Preset
from tilting.types import Reward, TiltingError

Asked = TypeVar("Asked", bound=GenerateConfig)
OF = "pocket"
"""The model that the table is of."""
LOOKS = 4
"""Pictures that a reward is looked at by, two steps each."""
BACKWARD = 3.0
"""What an evaluation, or a score, with its gradient takes, relative to one without."""


def take(
    model: Model,
    reward: Reward | None,
    budget: str,
    steps: int,
    cfg: float,
    prompts: Sequence[str],
    fits: Unfit = lambda method, settings: None,
) -> Choice:
    """The method for a budget, for a model and a reward.

    Args:
        model: what draws.
        reward: what is to be climbed.
        budget: evaluations per image, or seconds, such as "30s".
        steps, cfg: of the run.
        prompts: of which the first are looked at.
        fits: why a method does not fit into the memory that there is, or None.

    Raises:
        TiltingError: no reward, a constant one, a budget below one image.
    """
    asked = Budget.read(budget)
    if reward is None:
        raise TiltingError("method auto needs a reward: give one by --reward")
    gradient = bool(reward.differentiable)

    def unfit(method: str, settings: Mapping[str, Any]) -> str | None:
        return fits(method, settings) or _refused(model, reward, METHODS[method](**settings), steps, cfg, prompts)

    choice = None if asked.timed else choose(int(asked.amount), steps, gradient, unfit)  # what cannot be is said before a look
    evaluation, value = _look(model, reward, cfg, prompts)
    if choice is not None:
        return _named(choice, model)
    cells = {(c["gradient"], round(c["budget"] / c["steps"] * steps)) for c in measured() if gradient or not c["gradient"]}
    for kind, cell in sorted(cells, reverse=True):  # gradients first; where the decoder makes them too dear, those without
        choice = choose(max(cell, steps), steps, kind, unfit)
        each = calls_of(METHODS[choice.method](**choice.settings).build(steps), steps)
        paid = (each.evaluations + BACKWARD * each.evaluation_grads) * evaluation
        paid += (each.values + each.finals + BACKWARD * each.value_grads) * value
        if paid <= asked.amount:
            dear = "; a gradient takes longer" if gradient and not kind else ""
            return _named(replace(choice, why=f"{choice.why}; about {paid:.2g} s an image here{dear}"), model)
    least = steps * evaluation
    if least > asked.amount:
        raise TiltingError(
            f"a budget of {budget} is below the {least:.2g} s that one image of {steps} steps takes here: give more"
        )
    return _named(choose(steps, steps, gradient, unfit), model)


def _named(choice: Choice, model: Model) -> Choice:
    """The choice, whose line says where the table is of another kind of model."""
    kind = "a flow model" if model.schedule.kind == "flow" else "another"
    return choice if model.name == OF else replace(choice, why=f"{choice.why}; the table is of {OF}, this is {kind}")


def _refused(model: Model, reward: Reward, preset: Preset, steps: int, cfg: float, prompts: Sequence[str]) -> str | None:
    """Why a method cannot steer this model: the sentence that would refuse it, or that so few steps leave it nothing to do."""
    if preset.selects and preset.build(steps).choices(steps) == 0:
        return f"it never selects in {steps} step{'' if steps == 1 else 's'}"
    try:
        with warnings.catch_warnings(action="ignore"):
            plan(model, identities(prompts[:1], 0, 1), preset, reward, steps=steps, cfg=cfg)
    except TiltingError as error:
        return str(error)
    return None


def _look(model: Model, reward: Reward, cfg: float, prompts: Sequence[str]) -> tuple[float, float]:
    """Seconds of an evaluation and of a decode with its score; a reward that is the same of all pictures is refused."""
    who = identities([prompts[k % len(prompts)] for k in range(LOOKS)], 0, 1)
    seconds, values, counts = [], [], None
    for steps in (2, 4):
        begun = time.perf_counter()
        for event in draw(model, plan(model, who, "base", reward, steps=steps, cfg=cfg)):
            if isinstance(event, Drawn):
                values += event.reward or []
                counts = event.counts
        seconds.append(time.perf_counter() - begun)
    assert counts is not None
    if max(values) == min(values):
        name = getattr(reward, "name", "the reward")
        raise TiltingError(
            f"reward {name!r} is {values[0]:g} on all of {len(values)} pictures that were looked at: auto has nothing to climb,"
            " so name a method"
        )
    evaluation = max((seconds[1] - seconds[0]) / (2 * LOOKS), 1e-6)
    return evaluation, max(seconds[0] / LOOKS - 2 * evaluation, 0.0)


def settled(config: Asked, model: Model, reward: Reward | None) -> Asked:
    """The request with the method that auto takes."""
    assert config.budget is not None

    def fits(method: str, settings: Mapping[str, Any]) -> str | None:
        if config.memory is None:
            return None
        try:
            fitted(told(config, {"method": method, "set": {f"{method}.{key}": value for key, value in settings.items()}}, ""))
        except TiltingError as error:
            return str(error)
        return None

    choice = take(model, reward, config.budget, config.steps, config.cfg, config.prompts, fits)
    return told(config, choice.options, choice.why)


def told(config: Asked, options: dict[str, Any], why: str) -> Asked:
    """A request for auto, as one for the method that was chosen."""
    own = {key: value for key, value in config.mapping().items() if key not in ("method", "set", "budget", "particles", "eta")}
    return replace(type(config).resolve({**own, **options}), auto=(config.budget or "", why), unused=config.unused)
