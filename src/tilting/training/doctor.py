"""Checks before a long fine-tuning run: sizes, memory, and whether gradients can be right.

    ⟨∇r, d⟩ against (8 [r(x + h/2 d) - r(x - h/2 d)] - [r(x + h d) - r(x - h d)]) / (6 h)      Richardson, two step sizes

along the gradient and along directions half random: the gradient's own would not see that a part of it is missing.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tilting.config.finetune import FinetuneConfig
from tilting.config.training import bytes_trained
from tilting.errors import TiltingError
from tilting.objectives import ddpo
from tilting.objectives.batch import BaseObjective, TrainBatch, closed
from tilting.objectives.rollout import rollout
from tilting.runs.owner import processes
from tilting.training import processes as home
from tilting.training.batches import Batches
from tilting.training.loop import DETACHED
from tilting.training.processes import Engine
from tilting.training.run import Parts, load_parts, trainer_of
from tilting.training.trainer import Trainer

CLOSE = 0.05
"""Allowed distance of a gradient and its finite differences, over the gradient's size along a direction."""
SHORT = 2.0
"""Seconds of a training step."""
SAME = 1e-5
"""Allowed distance of an importance ratio from 1 and of a step's KL from 0 before training, and of equal computations."""


def doctor(config: FinetuneConfig, full: bool = False, parts: Callable[[FinetuneConfig], Parts] = load_parts) -> dict[str, Any]:
    """Examine a run without training it; nothing is written.

    Args:
        config: of the run.
        full: look at a whole batch instead of one group, for the seconds and the peak memory of a whole training step.
        parts: what loads model, reward and judge.

    Returns:
        ``batch``, ``memory`` (bytes), ``checks`` by name (ok and a line), ``hours_in_all`` on this machine (None where no step
        could be made), and with ``full`` ``step``.

    Raises:
        TiltingError: for a request that cannot work. A check that fails is reported, not raised.
    """
    if config.pairs:
        raise TiltingError("doctor examines training on a reward, and --pairs have none: leave them out")
    count, objective = processes(), config.made_objective
    small = config if full else replace(config, batch_size=objective.group_size, accumulate=1)
    loaded = parts(config)
    trainer = trainer_of(small, loaded, _alone(config))
    batch = trainer.batches(0, {})
    checks = {"reward gradient": _gradient(trainer, batch, objective, config.seed)}
    if batch.steps > 1:
        checks |= _first_update(replace(batch, eta=batch.eta or 1.0), config)
    checks["precision"] = _precision(trainer, batch)
    memory = _memory(trainer, batch, config, count)
    found = {"batch": _batch(config, objective.group_size, count), "memory": memory, "checks": checks}
    try:
        step = _step(trainer)
        found["hours_in_all"] = step["seconds"] * config.batch_size / small.batch_size / count * config.train_steps / 3600
        found |= {"step": {**step, "hours_in_all": found["hours_in_all"]}} if full else {}
    except TiltingError as error:
        found["hours_in_all"] = None
        checks |= {"step": {"ok": False, "line": str(error)}} if full else {}
    return found


def _alone(config: FinetuneConfig) -> Engine:
    accelerator = home.accelerator(config.device)
    if accelerator.num_processes > 1:
        raise TiltingError("doctor looks at one process: run it without a launcher")
    return home.over(accelerator, config.device)


def _batch(config: FinetuneConfig, group: int, count: int) -> dict[str, Any]:
    """The arithmetic of a training step."""
    return {
        "images": config.batch_size,
        "groups": config.batch_size // group,
        "group": group,
        "processes": count,
        "parts": config.accumulate,
        "at_once": config.batch_size // count // config.accumulate,
        "prompts": len(dict.fromkeys(config.prompts)),
        "images_in_all": config.batch_size * config.train_steps,
    }


def _gradient(trainer: Trainer[Batches], batch: TrainBatch, objective: BaseObjective, seed: int) -> dict[str, Any]:
    """Whether the reward's gradient at finished latents is that of its values."""
    if not objective.needs_gradient:
        return {"ok": True, "line": f"{objective.name} asks for none"}
    with torch.no_grad():
        clean = rollout(batch, closed(batch)).clean[:1].float()
    rows = batch.rows[:1]
    x = clean.clone().requires_grad_(True)
    value = batch.value(x, rows).sum()
    if not value.isfinite():
        return {"ok": False, "line": trainer.batches.trouble or "the reward is not finite"}
    slope = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    if slope is None or not slope.isfinite().all() or slope.norm() == 0:
        return {"ok": False, "line": DETACHED}

    def at(offset: Tensor) -> float:
        with torch.no_grad():
            return batch.value(clean + offset, rows).item()

    generator = torch.Generator("cpu").manual_seed(seed)
    steepest, worst = slope / slope.norm(), 0.0
    for k in range(4):
        random = torch.randn(clean.shape, generator=generator, device="cpu").to(clean)
        towards = steepest if k == 0 else steepest + random / random.norm()
        towards = towards / towards.norm()
        wanted, closest = (slope * towards).sum().item(), math.inf
        for h in (0.01 * clean.norm().item(), 0.0025 * clean.norm().item()):
            near, far = (at(w * towards) - at(-w * towards) for w in (h / 2, h))
            closest = min(closest, abs((8 * near - far) / (6 * h) - wanted) / abs(wanted))
        worst = max(worst, closest)
    line = f"within {worst:.1%} of finite differences, |gradient| {slope.norm().item():.3g}"
    return {"ok": worst <= CLOSE, "line": line, "error": worst}


def _first_update(batch: TrainBatch, config: FinetuneConfig) -> dict[str, dict[str, Any]]:
    """Importance ratios and KL of the first batch, by DDPO with a KL, none of whose updates are made."""
    ratio = kl = 0.0
    with torch.no_grad():
        for loss in ddpo(kl=1.0)(batch):
            ratio, kl = max(ratio, loss.numbers["ratio_far"]), max(kl, loss.numbers["kl_step"])
    found = {"ratio": {"ok": ratio <= SAME, "line": f"importance ratios are within {ratio:.2g} of 1 on the first batch"}}
    if config.init_lora:
        return found | {"kl": {"ok": True, "line": f"KL of a step {kl:.3g}: the run starts from a LoRA"}}
    return found | {"kl": {"ok": kl <= SAME, "line": f"KL of a step to the base model is {kl:.2g} on the first batch"}}


def _precision(trainer: Trainer[Batches], batch: TrainBatch) -> dict[str, Any]:
    """Whether a step is computed alike in the rollout (no gradients) and when it is scored again (gradients)."""
    x, t = batch.noise(0), batch.grid[len(batch.grid) // 2 - 1]
    with torch.no_grad():
        rolled = batch.denoise(x, t, batch.rows).eps
    with torch.enable_grad():
        scored = batch.denoise(x, t, batch.rows).eps.detach()
    far = (rolled - scored).abs().max().item()
    kinds = {str(p.dtype).removeprefix("torch.") for p in trainer.state.parameters.values()}
    latents = str(rolled.dtype).removeprefix("torch.")
    network = str(trainer.model.dtype).removeprefix("torch.")
    line = f"rollout and re-scoring differ by {far:.2g}; network {network}, latents {latents}, LoRA {', '.join(kinds)}"
    return {"ok": far <= SAME and kinds == {"float32"}, "line": line}


def _memory(trainer: Trainer[Batches], batch: TrainBatch, config: FinetuneConfig, count: int) -> dict[str, int]:
    """Bytes by what holds them; activations are measured on one image and multiplied (steps are checkpointed: one at a
    time)."""
    whole, objective = cast(Any, trainer.model), config.made_objective
    mine = {id(p) for p in trainer.state.parameters.values()}
    weights = sum(p.numel() * p.element_size() for p in whole.parameters() if id(p) not in mine)
    lora = sum(bytes_trained(p.numel(), config.optimizer) for p in trainer.state.parameters.values())
    x, row = batch.noise(0)[:1], batch.rows[:1]
    with torch.enable_grad():
        network = _held(lambda: batch.denoise(x, batch.grid[0], row).eps)
        wanted = x.clone().requires_grad_(True)
        scored = _held(lambda: batch.value(wanted, row)) if objective.needs_gradient else 0
    at_once = config.batch_size // count // config.accumulate
    path = (
        objective.latents_kept(config.steps)
        * (at_once if objective.splits else config.batch_size // count)
        * x.numel()
        * x.element_size()
    )
    activations = at_once * objective.graphs_at_once * (network + scored)
    texts = trainer.batches.text_bytes
    found = {"model": weights, "lora_and_optimiser": lora, "activations": activations, "path": path, "texts": texts}
    return {**found, "peak": sum(found.values())}


def _held(call: Callable[[], Tensor]) -> int:
    """Bytes that a call keeps for going back, each storage once, parameters left out."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.grad_fn is not None:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = call()
    del kept
    return sum(seen.values())


def _step(trainer: Trainer[Batches]) -> dict[str, Any]:
    """One whole training step: seconds, what it cost, the peak of memory. A short one is made twice: the first one warms up."""
    trainer.batches.counts.evaluations = trainer.batches.counts.reward_calls = trainer.batches.counts.images = 0
    cuda = str(trainer.engine.device).startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(trainer.engine.device)
    rows = trainer.steps(2)
    row = next(rows)
    seconds = row.seconds if row.seconds > SHORT else min(row.seconds, next(rows).seconds)
    peak = (
        torch.cuda.max_memory_allocated(trainer.engine.device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {"seconds": seconds, "peak_process": peak, **row.numbers}


def duration(hours: float) -> str:
    """For people: 40 s, 12 min, 3.5 h."""
    seconds = 3600 * hours
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{hours:.2g} h"


def lines(found: dict[str, Any], config: FinetuneConfig) -> list[str]:
    """For people."""
    batch, memory = found["batch"], found["memory"]
    out = [
        f"batch      {batch['images']} images = {batch['groups']} groups x {batch['group']}; {batch['processes']} processes x "
        f"{batch['parts']} parts x {batch['at_once']} at once; {batch['prompts']} prompts to draw from",
        f"run        {config.train_steps} training steps, {batch['images_in_all']} images of {config.steps} steps, "
        f"{config.objective}, eta {config.eta:g}, cfg {config.cfg:g}",
        f"memory     about {memory['peak'] / 1e6:.0f} MB: "
        + ", ".join(f"{key.replace('_', ' ')} {value / 1e6:.0f}" for key, value in memory.items() if key != "peak"),
    ]
    if found["hours_in_all"] is not None:
        how = "a whole step was" if "step" in found else "one group was"
        out.insert(
            2,
            f"time       about {duration(found['hours_in_all'])} on this machine ({how} timed; samples and judge come on top)",
        )
    if "step" in found:
        step = found["step"]
        out.append(
            f"step       {step['seconds']:.2f} s, {step['evaluations']} evaluations, "
            f"{step['reward_calls']} rewards, peak of the process {step['peak_process'] / 1e6:.0f} MB"
        )
    return out + [f"{'ok  ' if check['ok'] else 'FAIL'} {name}: {check['line']}" for name, check in found["checks"].items()]
