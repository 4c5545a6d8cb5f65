"""From prompts to images: groups of images through the one loop, as a generator that any consumer can drive.

Images are worked in groups of max(1, batch // N), which finish before the next; every image depends on (seed, prompt, index)
alone, so groups are a matter of memory and never of results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tilting import sample as loop
from tilting.presets import Base, Preset
from tilting.rewards.check import checked
from tilting.rng import Identity
from tilting.schedule import Schedule
from tilting.types import Denoise, Reward, RewardError, TiltingError, Value


class Model(Protocol):
    """What generation asks of a model; `tilting.models.stable_diffusion.StableDiffusion` is one."""

    name: str
    schedule: Schedule
    latent_shape: tuple[int, ...]
    usual_steps: int
    usual_cfg: float

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Step(NamedTuple):
    """Progress: a draw of a group.

    Attributes:
        group, groups: which group, of how many.
        step, steps: draws made in it, of how many.
        reward: mean estimate over the group's particles when the method looked, else None.
    """

    group: int
    groups: int
    step: int
    steps: int
    reward: float | None


@dataclass(frozen=True)
class Counts:
    """What a run has paid: denoiser evaluations, decoded latents, images scored by the reward, seconds."""

    evaluations: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.evaluations + other.evaluations, self.decodes + other.decodes,
            self.reward_calls + other.reward_calls, self.seconds + other.seconds,
        )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A finished group.

    Attributes:
        who: identities of its images.
        images: (b, 3, h, w) float in [0, 1], on the CPU.
        rewards: per reward spec, b numbers (empty without a reward).
        reward: b weighted sums, or None.
        counts: what this group cost.
    """

    who: tuple[Identity, ...]
    images: Tensor
    reward: list[float] | None
    rewards: dict[str, list[float]]
    counts: Counts


def identities(prompts: Sequence[str], seed: int, images: int) -> list[Identity]:
    """``images`` identities per prompt, prompt by prompt; a repeated prompt goes on counting, so no image comes twice."""
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        first = seen.get(prompt, 0)
        out += [Identity(seed, prompt, first + i) for i in range(images)]
        seen[prompt] = first + images
    return out


def value_of(model: Model, reward: Reward, prompts: Sequence[str]) -> Value:
    """The value function of a problem: reward of the decoded estimate."""

    def value(x0: Tensor, rows: Tensor) -> Tensor:
        try:
            return checked(reward, model.decode(x0), [prompts[int(i)] for i in rows])
        except RewardError as error:
            row = int(rows[error.row]) if error.row is not None else None
            raise RewardError(str(error), row) from error

    return value


@dataclass(frozen=True)
class Plan:
    """A checked request: what `draw` runs. Make it with `plan`, which fills in the model's and the preset's defaults."""

    who: tuple[Identity, ...]
    preset: Preset
    steps: int
    cfg: float
    eta: float
    negative: str = ""
    batch_size: int = 16
    method: loop.Method = field(default=loop.Method("base"))


def plan(
    model: Model, who: Sequence[Identity], preset: Preset | None = None, reward: Reward | None = None,
    steps: int | None = None, cfg: float | None = None, eta: float | None = None, negative: str = "", batch_size: int = 16,
) -> Plan:  # fmt: skip
    """Fill in what is unset and refuse what cannot work, before anything is drawn."""
    preset = preset or Base()
    steps = model.usual_steps if steps is None else steps
    cfg = model.usual_cfg if cfg is None else cfg
    eta = 1.0 if eta is None else eta
    if batch_size < 1:
        raise TiltingError(f"batch_size must be at least 1, not {batch_size}")
    model.schedule.grid(steps)
    method = preset.build(steps)
    loop.check(method, steps, eta, cfg, None if reward is None else reward.differentiable)
    return Plan(tuple(who), preset, steps, cfg, eta, negative, batch_size, method)


def draw(
    model: Model, plan: Plan, reward: Reward | None = None, latents: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Step | Drawn]:  # fmt: skip
    """Run a plan. Yields a Step after every draw and a Drawn after every group.

    Args:
        model: what draws.
        plan: from `plan`.
        reward: the score, required by every method but ``base``.
        latents: x_T of every image (len(plan.who), ...), instead of keyed noise.
        device: where the latents live.

    Raises:
        RewardError: with the image's identity in its text, if the reward fails.
    """
    size = max(1, plan.batch_size // plan.method.particles)
    groups = [plan.who[i : i + size] for i in range(0, len(plan.who), size)]
    grid = model.schedule.grid(plan.steps)
    for g, who in enumerate(groups):
        begun = time.perf_counter()
        prompts = [i.prompt for i in who]
        given = None if latents is None else latents[g * size : g * size + len(who)]
        counts = Counts()
        try:
            with torch.no_grad():
                problem = loop.Problem(
                    model.denoiser(prompts, plan.cfg, plan.negative), grid, who, model.latent_shape,
                    None if reward is None else value_of(model, reward, prompts), plan.eta, plan.cfg, plan.batch_size, device,
                )  # fmt: skip
                state = loop.start(problem, plan.method, given)
            steps = loop.sample(problem, plan.method, state)
            while True:
                with torch.no_grad():  # never across a yield: the mode would leak into the consumer
                    drawn = next(steps, None)
                if drawn is None:
                    break
                state, info = drawn
                counts += Counts(info.evaluations, info.values, info.values)
                mean = None if info.value is None else info.value.mean().item()
                yield Step(g, len(groups), info.step, plan.steps, mean)
            with torch.no_grad():
                final = loop.finish(problem, plan.method, state)
                if final.value is not None:
                    counts += Counts(0, final.value.numel(), final.value.numel())
                images = model.decode(final.x[:, 0]).float().cpu()
                total, rewards = (None, {}) if reward is None else _scores(reward, images.to(final.x.device), prompts)
                counts += Counts(0, len(who), 0 if reward is None else len(who))
        except RewardError as error:
            if error.row is None:
                raise
            bad = who[min(error.row, len(who) - 1)]
            raise RewardError(f"{error} (image {bad.index} of {bad.prompt!r}, seed {bad.seed})", error.row) from error
        yield Drawn(who, images, total, rewards, counts + Counts(seconds=time.perf_counter() - begun))


def _scores(reward: Reward, images: Tensor, prompts: list[str]) -> tuple[list[float], dict[str, list[float]]]:
    """The reward of images and, by spec, of its parts, each computed once."""
    each: Callable | None = getattr(reward, "each", None)
    total: Callable | None = getattr(reward, "total", None)
    if each is None or total is None:
        values = checked(reward, images, prompts).tolist()
        return values, {reward.name: values}
    parts = each(images, prompts)
    return total(parts).tolist(), {name: value.tolist() for name, value in parts.items()}


@dataclass(frozen=True)
class Result:
    """What `generate` returns.

    Attributes:
        images: (n, 3, h, w) float in [0, 1], prompt by prompt.
        manifest: the same numbers that the command line writes to manifest.json.
    """

    images: Tensor
    manifest: dict


def summarise(records: Sequence[dict], counts: Counts) -> dict:
    """The ``summary`` of a manifest: means with standard errors, and what the run cost."""
    rewards = [r["reward"] for r in records if r["reward"] is not None]
    judged = [r["judge"] for r in records if r.get("judge") is not None]
    values = torch.tensor(rewards, dtype=torch.float64)
    return {
        "reward_mean": values.mean().item() if rewards else None,
        "reward_sem": (values.std() / len(rewards) ** 0.5).item() if len(rewards) > 1 else None,
        "judge_mean": sum(judged) / len(judged) if judged else None,
        "evaluations": counts.evaluations,
        "decodes": counts.decodes,
        "reward_calls": counts.reward_calls,
        "seconds": round(counts.seconds, 3),
        "images_per_second": round(len(records) / counts.seconds, 4) if counts.seconds else None,
    }


def records_of(drawn: Drawn, judge: Callable[[Tensor, list[str]], Tensor] | None = None) -> list[dict]:
    """One manifest entry per image of a group; ``judge`` gives NaN where it cannot judge, recorded as null."""
    scores = judge(drawn.images, [w.prompt for w in drawn.who]).tolist() if judge else [float("nan")] * len(drawn.who)
    return [
        {
            "prompt": who.prompt,
            "index": who.index,
            "seed": who.seed,
            "reward": drawn.reward[i] if drawn.reward is not None else None,
            "rewards": {name: values[i] for name, values in drawn.rewards.items()},
            "judge": scores[i] if scores[i] == scores[i] else None,
        }
        for i, who in enumerate(drawn.who)
    ]


def generate(
    model: Model, prompts: str | Sequence[str], reward: Reward | None = None, method: Preset | None = None,
    steps: int | None = None, cfg: float | None = None, eta: float | None = None, seed: int = 0, images: int = 1,
    negative: str = "", batch_size: int = 16, latents: Tensor | None = None,
) -> Result:  # fmt: skip
    """Draw images of prompts with a method and a reward.

    Args:
        model: from `tilting.load`.
        prompts: one or several.
        reward: such as ``tilting.rewards.clip()``; only ``base`` needs none.
        method: a preset such as ``tilting.presets.codex(particles=4)``; default ``base``.
        steps, cfg, eta: sampler settings; default the model's own, eta 1.
        seed: of the run; images are keyed by (seed, prompt, index).
        images: per prompt.
        negative: the negative prompt.
        batch_size: latents per denoiser call.
        latents: (images in all, ...) x_T instead of keyed noise, for particle 0 of each image.

    Raises:
        TiltingError: for settings that cannot work, in one sentence.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or any(not p.strip() for p in prompts):
        raise TiltingError("a prompt is empty: say what to draw")
    if images < 1:
        raise TiltingError(f"images must be at least 1, not {images}")
    who = identities(prompts, seed, images)
    request = plan(model, who, method, reward, steps, cfg, eta, negative, batch_size)
    pictures, records, counts = [], [], Counts()
    for event in draw(model, request, reward, latents):
        if isinstance(event, Drawn):
            pictures.append(event.images)
            records += records_of(event)
            counts += event.counts
    manifest = {"images": records, "summary": summarise(records, counts)}
    return Result(torch.cat(pictures), manifest)
