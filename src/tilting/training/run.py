"""A `finetune` run as a resumable folder. Importing this does not import torch.

A run goes on from its newest checkpoint: lines after it are cut, and made again, bit for bit, for everything random is keyed
by (seed, training step). The judge looks at fixed samples before training and every so often, and can stop it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.config.finetune import FinetuneConfig, black_box, check_batch
from tilting.errors import TiltingError
from tilting.models import load
from tilting.training.diversity import diversity
from tilting.training.driver import Bar, bring, enter, kl_of, patient, record
from tilting.training.folder import FinetuneFolder

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.generation.generate import Judge
    from tilting.generation.plan import Model
    from tilting.models.sampler_inputs import SamplerInputs
    from tilting.training.processes import Engine
    from tilting.training.samples import Look
    from tilting.training.trainer import Tuning
    from tilting.types import Reward


class Parts(NamedTuple):
    """What a run needs loaded: model, reward, judge (or None), and the weights and sampler inputs it starts from (or None)."""

    model: Model
    reward: Reward
    judge: Judge | None
    start: dict[str, Tensor] | None
    inputs: SamplerInputs | None = None


def load_parts(config: FinetuneConfig) -> Parts:
    """Load what a config asks for, on the CPU: the reward first, so that a wrong one is refused before the model is read, and
    before it a device that is not here."""
    from tilting.config.objectives import GRADIENT
    from tilting.generation.generate import judge_of
    from tilting.models.placement import device_of
    from tilting.rewards.spec import build, build_one, parse_spec

    device_of(config.device)
    reward = build(config.specs())
    if config.objective in GRADIENT and not reward.differentiable:
        raise black_box(config.objective, reward.name)
    judge: Judge | None = None
    if config.judge is not None:
        judge = build_one(parse_spec(config.judge))
    else:
        judge = judge_of(config.model)
    start = inputs = None
    if config.init_lora:
        from tilting.models.lora import read_lora
        from tilting.models.lora_file import lora_file
        from tilting.models.sampler_inputs import read_inputs

        start, inputs = read_lora(config.init_lora), read_inputs(lora_file(config.init_lora).parent)
    return Parts(load(config.model, precision=config.precision), reward, judge, start, inputs)


def tuning_of(config: FinetuneConfig, parts: Parts, engine: Engine) -> Tuning:
    """The run that a config asks for, its LoRA attached."""
    from tilting.models.adapt import with_dropout
    from tilting.training.loop import Optimiser
    from tilting.training.trainer import tuning

    bring(parts.model, engine)
    optimiser = Optimiser(config.lr, config.weight_decay, clip=config.clip, decay=config.lr_decay)
    reward = with_dropout(parts.reward, config.reward_dropout) if config.reward_dropout else parts.reward
    return tuning(
        parts.model, config.prompts, reward, config.made_objective(), optimiser, config.steps, config.eta,
        config.cfg, config.batch_size, config.rank, config.parts or (), config.seed, config.negative_prompt, config.accumulate,
        parts.start, engine, config.learn, parts.inputs, diversity(config.diversity) if config.diversity else None,
    )  # fmt: skip


def stopped(samples: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the judge has not risen for so many samplings."""
    judged = [row["judge"] for row in samples if row["judge"] is not None]
    return patience is not None and len(judged) - 1 - (judged.index(max(judged)) if judged else 0) >= patience


def run(
    config: FinetuneConfig, argv: Sequence[str] = (), quiet: bool = False,
    parts: Callable[[FinetuneConfig], Parts] = load_parts,
) -> dict[str, Any]:  # fmt: skip
    """Train what is missing of a run and return its manifest.

    Args:
        config: from `tilting.config.finetune.resolve_finetune`.
        argv: the command, for the manifest.
        quiet: no progress bar, and no line about skipped steps.
        parts: what loads model, reward and judge; only called when something is missing.

    Raises:
        TiltingError: before anything is written, for a request or a folder that cannot work; and when ten steps in a row were
            skipped, the last good state kept.
    """
    place = FinetuneFolder(config, argv)
    if not place.finished:
        _train(place, parts(config), quiet)
    return place.manifest


def _train(place: FinetuneFolder, parts: Parts, quiet: bool) -> None:
    config, (engine, held) = place.config, enter(place)
    check_batch(config, engine.count)
    tuning = tuning_of(config, parts, engine)
    samples: list[dict[str, Any]] = []
    paid = 0
    if held is not None:
        state = tuning.restore(held)
        samples, paid = state["samples"], state["sampling_evaluations"]
    writer = _Writer(config, place, parts, tuning, samples, paid)
    if held is None:
        writer.look()  # before anything is written: it may be refused
    if engine.main:
        place.begin(tuning.training.step)
    engine.track()
    try:
        with patient(engine) as interrupted, Bar(
            config.objective, config.train_steps, tuning.training.step, quiet or not engine.main
        ) as bar:  # fmt: skip
            if not stopped(samples, config.early_stop):
                for row in tuning.steps(config.train_steps):
                    last = row.step == config.train_steps
                    seen = writer.look() if config.sample_every and (last or row.step % config.sample_every == 0) else {}
                    writer.add(row.numbers | seen, row.seconds)
                    judged = samples[-1]["judge"] if samples else None
                    bar.show(row.step, row.skipped, reward=row.numbers.get("reward"), judge=judged, **kl_of(row.numbers))
                    over, left = last or stopped(samples, config.early_stop), interrupted()
                    if left or (not over and row.step % config.checkpoint_every == 0):  # the last is saved below
                        writer.save(finished=over)
                    if over or left:
                        break
    except TiltingError:
        writer.save()
        raise
    writer.save(finished=True)
    engine.close()


class _Writer:
    """What the main process writes; on the others it only takes part in what all must know."""

    def __init__(self, config: FinetuneConfig, place: FinetuneFolder, parts: Parts, tuning: Tuning,
                 samples: list[dict[str, Any]], paid: int):  # fmt: skip
        self.config, self.place, self.parts, self.tuning, self.samples, self.paid = config, place, parts, tuning, samples, paid
        self.engine, self.sampling = tuning.engine, 0.0

    def look(self) -> dict[str, Any]:
        """Sample, judge, keep the best; the means, on every process.

        Raises:
            TiltingError: where the first look gives early stopping nothing to go by; nothing is written of it.
        """
        from tilting.training.samples import look, write_look

        if not self.config.sample_every:
            return {}
        config, step, begun = self.config, self.tuning.training.step, time.perf_counter()
        numbers: dict[str, Any] | None = None
        seen: Look | None = None
        if self.engine.main:
            seen = look(self.tuning.model, config.prompts, config.sample_images, self.parts.reward, self.parts.judge,
                        config.steps, config.cfg, config.eta, config.seed, config.negative_prompt,
                        device=self.engine.device, context=self.engine.context)  # fmt: skip
            numbers = {**seen.numbers(), "evaluations": seen.evaluations}
        numbers = dict(self.engine.broadcast(numbers))
        if config.early_stop and not self.samples and numbers["judge"] is None:
            raise TiltingError(
                f"early-stop has nothing to go by: the judge {config.judge or 'of pocket'} says nothing of any sample of these "
                "prompts; give another --judge, or leave --early-stop out"
            )
        if seen is not None:
            title = f"{config.objective}, {' + '.join(config.reward)}, step {step} of {config.train_steps}"
            self.place.make()
            write_look(seen, self.place.path / "samples" / f"{step:06d}.png", title)
        self.paid += numbers.pop("evaluations")
        self.samples.append({"step": step, **numbers})
        judged = [row["judge"] for row in self.samples if row["judge"] is not None]
        if config.early_stop and judged and judged[-1] == numbers["judge"] and judged.index(max(judged)) == len(judged) - 1:
            self._write("best")
        self.sampling += time.perf_counter() - begun
        return numbers

    def add(self, line: dict[str, Any], seconds: float) -> None:
        """A line of metrics, of timing and of the trackers."""
        record(self.place, self.engine, line, seconds=seconds, sampling=self.sampling)
        self.sampling = 0.0

    def save(self, finished: bool = False) -> None:
        """The LoRA, a checkpoint, the manifest."""
        from tilting.training.checkpoint import write

        if not self.engine.main:
            return
        self._write("lora")
        write(self.place.checkpoints, self.tuning.saved(samples=self.samples, sampling_evaluations=self.paid))
        judged = [row for row in self.samples if row["judge"] is not None]
        step = self.tuning.training.step
        self.place.sum_up({
            "steps": step, "finished": finished, "stopped_early": finished and step < self.config.train_steps,
            "best_step": max(judged, key=lambda row: row["judge"])["step"] if judged else None,
            "skipped": self.tuning.training.skipped, **self.tuning.costs, "sampling_evaluations": self.paid,
            "samples": self.samples, "processes": self.engine.count,
            "guidance": self.tuning.inputs.scales() if self.tuning.inputs else None,
        })  # fmt: skip

    def _write(self, name: str) -> None:
        from tilting.models.lora import save_lora
        from tilting.models.sampler_inputs import save_inputs

        if self.engine.main:
            save_lora(self.tuning.lora(), self.place.path / name)
            if self.tuning.inputs is not None:
                save_inputs(self.tuning.inputs, self.place.path / name)


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people; none in a process that is not the main one, whose summary is empty."""
    summary, out = manifest["summary"], Path(manifest["config"]["out"])
    if not summary:
        return ""
    parts = [f"{summary['steps']} training steps in {out}"]
    samples = summary["samples"]
    for key, word in (("sample_reward", "reward of the samples"), ("judge", "judge")):
        values = [row[key] for row in samples if row[key] is not None]
        if len(values) > 1:
            parts.append(f"{word} {values[0]:.4f} -> {values[-1]:.4f}")
    if summary["stopped_early"]:
        parts.append(f"stopped early, best at step {summary['best_step']}")
    if summary["skipped"]:
        parts.append(f"{summary['skipped']} steps skipped")
    parts += [f"{summary['evaluations']} evaluations", f"{summary['seconds']:.1f} s"]
    plain = "lora" in manifest["config"].get("learn", ["lora"])
    return f"{', '.join(parts)}\n" + (
        f"LoRA: {out / 'lora'} (pipe.load_lora_weights)" if plain else f"learned inputs: {out / 'lora'} (--lora {out})"
    )
