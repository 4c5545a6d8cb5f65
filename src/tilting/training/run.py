"""A `finetune` run in a folder: evaluated before training and at intervals, with early stopping by the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tilting.config.finetune import FinetuneConfig, black_box
from tilting.config.pairs import check_pictures, read_pairs
from tilting.errors import TiltingError
from tilting.generation.coerce import reward_of
from tilting.generation.generate import Judge, judge_of
from tilting.models import load
from tilting.models.inputs import resolve_inputs
from tilting.models.lora_file import lora_file
from tilting.models.lora_targets import check_lora
from tilting.models.lora_weights import read_lora
from tilting.models.placement import Switches, device_of
from tilting.models.sampler_inputs import SamplerInputs, read_inputs
from tilting.rewards.elsewhere import elsewhere
from tilting.rewards.metadata import informed
from tilting.rewards.spec import build, build_one, parse_spec
from tilting.rewards.user_file import why_blind
from tilting.rewards.weighted_sum import framed
from tilting.runs.lock import exclusive
from tilting.runs.run_folder import costs_told
from tilting.training.bar import kl_of
from tilting.training.batches import Batches
from tilting.training.driver import Observer, enter, train_in_folder
from tilting.training.folder import FinetuneFolder, already_told
from tilting.training.loop import Info
from tilting.training.processes import Engine, place_before
from tilting.training.samples import AFTER, BEFORE, keep_look, look, write_look
from tilting.training.trainer import Trainer, on_device
from tilting.training.trainer import trainer_of as make
from tilting.types import Reward


class Parts(NamedTuple):
    """What a run needs loaded: model, reward (None with pairs), judge (or None), and the weights and sampler inputs that it
    starts from (or None)."""

    model: Any
    reward: Reward | None
    judge: Judge | None
    start: dict[str, Tensor] | None
    inputs: SamplerInputs | None = None


def load_parts(config: FinetuneConfig) -> Parts:
    """Load what a config asks for: the reward first, so that a wrong one is refused before the model is read, and
    before it a device that is not here."""
    device_of(config.device)
    device_of(config.reward_device or "auto", "reward-device")
    check_lora(config.model)
    if config.pairs:
        check_pictures(read_pairs(config.pairs))
    reward = informed(build(config.specs()), config.prompts, config.metadata) if config.reward else None
    reward = framed(reward and elsewhere(reward, config.reward_device), config.reward_frames)
    if reward is not None and config.made_objective.needs_gradient and not reward.differentiable:
        raise black_box(config.objective, reward.name, why_blind(reward))
    judge: Judge | None = judge_of(config.model) if config.judge is None else build_one(parse_spec(config.judge))
    judge = informed(judge, config.prompts, config.metadata)
    told, each = resolve_inputs(config)
    how: dict[str, Any] = {"each": each, "long_prompts": config.long_prompts or "cut", "switches": Switches.of(config), **told}
    model, start, inputs = load(config.model, place_before(config.device), config.precision, **how), None, None
    if config.init_lora:
        start, inputs = read_lora(config.init_lora, model), read_inputs(lora_file(config.init_lora).parent)
    return Parts(model, reward, judge, start, inputs)


def trainer_of(config: FinetuneConfig, parts: Parts, engine: Engine) -> Trainer[Batches]:
    """The run that a config asks for, on the process's device, its LoRA attached."""
    reward = reward_of(parts.reward)
    assert reward is not None or config.pairs
    model = on_device(parts.model, engine)
    return make(config, model, reward, config.made_objective, engine, parts.start, parts.inputs)


def stopped(samples: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the judge has not risen for so many samplings."""
    judged = [row["judge"] for row in samples if row["judge"] is not None]
    return patience is not None and len(judged) - 1 - (judged.index(max(judged)) if judged else 0) >= patience


def run(
    config: FinetuneConfig, argv: Sequence[str] = (), quiet: bool = False, parts: Callable[[FinetuneConfig], Parts] = load_parts
) -> dict[str, Any]:
    """Train what is missing of a run and return its manifest.

    Args:
        config: from `FinetuneConfig.resolve`.
        argv: the command, for the manifest.
        quiet: no progress bar, and no line about skipped steps.
        parts: what loads model, reward and judge; only called when something is missing.

    Raises:
        TiltingError: before anything is written, for a request or a folder that cannot work; and when ten steps in a row were
            skipped, the last good state kept.
    """
    with exclusive(config.out):
        folder = FinetuneFolder(config, argv)
        if not folder.finished:
            loaded = parts(config)
            engine, saved = enter(folder)
            train_in_folder(Sampled(folder, trainer_of(config, loaded, engine), loaded), saved, quiet)
        return folder.answer


class Sampled(Observer[FinetuneConfig]):
    """The same prompts and noise at every look, judged; the LoRA that the judge likes best is kept.

    Args:
        folder, trainer: of the run.
        parts: reward and judge.
    """

    def __init__(self, folder: FinetuneFolder, trainer: Trainer[Batches], parts: Parts):
        super().__init__(folder, trainer)
        self.parts, self.name = parts, self.config.objective
        self.paid = 0

    def resume(self, state: Mapping[str, Any]) -> None:
        self.samples, self.paid = state["samples"], state["sampling_evaluations"]

    def state(self) -> dict[str, Any]:
        return {"samples": self.samples, "sampling_evaluations": self.paid}

    def shown(self, row: Info) -> dict[str, float | None]:
        judge = self.samples[-1]["judge"] if self.samples else None
        return {"reward": row.numbers.get("reward"), "judge": judge, **kl_of(row.numbers)}

    @property
    def over(self) -> bool:
        return stopped(self.samples, self.config.early_stop)

    def sample(self) -> dict[str, Any]:
        """Sample, judge, keep the best; the means, on every process.

        Raises:
            TiltingError: where the first look gives early stopping nothing to go by; nothing is written of it.
        """
        config, engine, step = self.config, self.trainer.engine, self.trainer.state.step
        numbers: dict[str, Any] | None = None
        seen = None
        if engine.main or engine.shard is not None:  # all call a network in shards
            seen = look(
                self.trainer.model,
                config.prompts,
                config.sample_images,
                self.parts.reward,
                self.parts.judge,
                config.steps,
                config.cfg,
                config.eta,
                config.seed,
                config.negative_prompt,
                device=engine.device,
                context=engine.context,
                sde=config.sde,
            )
            numbers = {**seen.numbers(), "evaluations": seen.evaluations}
        numbers = dict(engine.broadcast(numbers))
        if config.early_stop and not self.samples and numbers["judge"] is None:
            raise TiltingError(
                f"early-stop has nothing to go by: the judge {config.judge or 'of pocket'} says nothing of any sample of these "
                "prompts; give another --judge, or leave --early-stop out"
            )
        if seen is not None and engine.main:
            title = f"{config.objective}, {' + '.join(config.reward) or 'pairs'}, step {step} of {config.train_steps}"
            self.folder.make()
            write_look(seen, self.folder.path / "samples" / f"{step:06d}.png", title)
            keep_look(seen, self.folder.path, AFTER if self.samples else BEFORE, step)
        self.paid += numbers.pop("evaluations")
        self.samples.append({"step": step, **numbers})
        judged = [row["judge"] for row in self.samples if row["judge"] is not None]
        best = judged and judged[-1] == numbers["judge"] and judged.index(max(judged)) == len(judged) - 1
        if config.early_stop and best and engine.main:
            self.trainer.save_weights(self.folder.path / "best")
        return numbers

    def summary(self, finished: bool) -> dict[str, Any]:
        judged = [row for row in self.samples if row["judge"] is not None]
        inputs, step = self.trainer.inputs, self.trainer.state.step
        return {
            "stopped_early": finished and step < self.config.train_steps,
            "best_step": max(judged, key=lambda row: row["judge"])["step"] if judged else None,
            "sampling_evaluations": self.paid,
            "samples": self.samples,
            "guidance": inputs.scales() if inputs else None,
        }


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people; none in a process that is not the main one, whose summary is empty."""
    summary, out = manifest["summary"], Path(manifest["config"]["out"])
    if not summary:
        return ""
    parts = [f"{summary['steps']} training steps in {out}{already_told(manifest)}"]
    samples = summary["samples"]
    for key, word in (("sample_reward", "reward of the samples"), ("judge", "judge")):
        values = [row[key] for row in samples if row[key] is not None]
        if len(values) > 1:
            parts.append(f"{word} {values[0]:.4f} -> {values[-1]:.4f}")
    if summary["stopped_early"]:
        parts.append(f"stopped early, best at step {summary['best_step']}")
    if summary["skipped"]:
        parts.append(f"{summary['skipped']} steps skipped")
    parts += costs_told(summary, manifest.get("call"))
    plain = "lora" in manifest["config"].get("learn", ["lora"])
    return f"{', '.join(parts)}\n" + (
        f"LoRA: {out / 'lora'} (pipe.load_lora_weights)" if plain else f"learned inputs: {out / 'lora'} (--lora {out})"
    )
