"""FLOP and memory of a run, for `tilting doctor --size`: by part, and what fits into 8 to 80 GB, without reading weights."""

from __future__ import annotations

from typing import Any

from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.generation.fit import RESERVE, ROOMS, Fit, Need, need_of, reward_of
from tilting.generation.size import flop, sizes
from tilting.models.placement import Switches
from tilting.objectives.cost import cost_of
from tilting.runs.owner import processes


def need_of_training(config: FinetuneConfig) -> tuple[Need, dict[str, float]]:
    """What a fine-tuning run asks of a device, and what an image of a training step costs."""
    objective = config.made_objective
    paid = cost_of(objective, config.steps)
    rows = config.batch_size // processes() // config.accumulate
    need = Need(
        rows, paid.evaluation_grads > 0, paid.value_grads > 0, paid.reward_calls > 0, objective.graphs_at_once, trains=True
    )
    plain = {"evaluations": paid.evaluations - paid.evaluation_grads, "values": paid.reward_calls - paid.value_grads}
    return need, {**plain, "evaluation_grads": paid.evaluation_grads, "value_grads": paid.value_grads, "finals": 0.0}


def counted(config: GenerateConfig | FinetuneConfig) -> dict[str, Any]:
    """What a run takes.

    Returns:
        ``tflop`` of an image by part, ``gigabytes`` of weights by part, ``living`` bytes of one image by what is done,
        ``plans``: GB -> what fits, in words.

    Raises:
        TiltingError: for a model that is not counted (`tilting.models.skeleton`).
    """
    reward = reward_of(config)
    if isinstance(config, FinetuneConfig):
        need, paid = need_of_training(config)
    else:
        need, calls = need_of(config)
        paid = dict(calls._asdict())
    found = sizes(config, reward, back=need.network_grad or need.value_grad)
    fit = Fit(config, need, reward)
    fit.known(config, Switches.of(config).recompute, found)
    parts = {key: value / 1e12 for key, value in flop(found, paid).items()}
    weights = {**found.weights, **({"LoRA and optimiser": found.trained} if need.trains else {})}
    plans = {}
    for room in ROOMS:
        words, choice, fits = fit.within(room * 10**9)
        plans[room] = f"{words}{'; ' if words else ''}{choice}{'' if fits else ', which does not fit'}"
    return {
        "tflop": {**parts, "all": sum(parts.values())},
        "gigabytes": {key: value / 1e9 for key, value in weights.items()},
        "living": {key: unit.peak for key, unit in found.units.items()},
        "plans": plans,
    }


def lines(found: dict[str, Any], config: GenerateConfig | FinetuneConfig) -> list[str]:
    """For people."""
    one = f"an image of {config.steps} steps by {getattr(config, 'method', None) or getattr(config, 'objective', '')}"
    tflop = ", ".join(f"{key} {value:.4g}" for key, value in found["tflop"].items() if value)
    weights = ", ".join(f"{key} {value:.3g}" for key, value in found["gigabytes"].items() if value)
    living = {key: value / 1e9 for key, value in found["living"].items() if value}
    out = [
        f"TFLOP      {one}: {tflop}",
        f"weights    GB: {weights}",
        f"beside     GB that live at once of one image: {', '.join(f'{key} {value:.3g}' for key, value in living.items())}",
        f"what fits  with {RESERVE / 1e9:.0f} GB left to the device's own libraries; counted, never measured on a GPU",
    ]
    return out + [f"  {room:3d} GB   {plan}" for room, plan in found["plans"].items()]
