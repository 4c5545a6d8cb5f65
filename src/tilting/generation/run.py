"""A `generate` run: draws what its folder lacks, then the grid. Torch-free to import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting.config.auto import AUTO, Budget
from tilting.config.generate import GenerateConfig, black_box
from tilting.config.picture import read_picture, read_video
from tilting.errors import TiltingError
from tilting.generation.auto import settled, told
from tilting.generation.fit import fitted
from tilting.generation.folder import Folder, Generated
from tilting.generation.generate import Drawn, Judge, draw, judge_of
from tilting.generation.pictures import check_format
from tilting.generation.plan import Model, Plan, identities, plan
from tilting.generation.progress import Progress, announce
from tilting.generation.trace import Recorder
from tilting.lazy import torch
from tilting.models import load
from tilting.models.attach import attach_all
from tilting.models.inputs import resolve_inputs
from tilting.models.lora_file import parse_window
from tilting.models.lora_targets import check_lora
from tilting.models.placement import FULL, Switches, device_of
from tilting.models.words import load_words, read_prompt
from tilting.reports.trace_page import write_page
from tilting.reports.words import TERMS
from tilting.rewards.elsewhere import elsewhere
from tilting.rewards.metadata import informed
from tilting.rewards.spec import Spec, build
from tilting.rewards.user_file import why_blind
from tilting.rng import Identity
from tilting.runs import files
from tilting.runs.background import Background
from tilting.runs.lock import exclusive
from tilting.runs.owner import RUN, folder_of, processes
from tilting.runs.processes import Processes, join_processes
from tilting.runs.run_folder import costs_told

if TYPE_CHECKING:
    from tilting.types import Reward


class Parts(NamedTuple):
    """What a run needs loaded: the model, its reward (or None) and its judge (or None)."""

    model: Model
    reward: Reward | None
    judge: Judge | None


def load_parts(
    config: GenerateConfig,
    model_of: Callable[..., Any] | None = None,
    reward_of: Callable[[Sequence[Spec]], Reward] | None = None,
) -> Parts:
    """Load what a config asks for; settings that contradict each other, and then a wrong reward, are refused before the model
    is read.

    Args:
        config: from `tilting.config.generate.resolve`.
        model_of, reward_of: what loads a model, as `tilting.models.load` does, and the reward of specs; a process that stays
            gives such as remember.
    """
    specs, preset = config.specs(), config.preset()
    preset.build(config.steps or 50)
    if config.lora:
        check_lora(config.model)
    device_of(config.reward_device or "auto", "reward-device")
    reward = (
        elsewhere(informed((reward_of or build)(specs), config.prompts, config.metadata), config.reward_device)
        if specs
        else None
    )
    if reward is not None and preset.needs_reward_gradient and not reward.differentiable:
        raise black_box(config.method, reward.name, why_blind(reward))
    inputs, each = resolve_inputs(config)
    how: dict[str, Any] = {
        "each": each,
        "long_prompts": config.long_prompts or "cut",
        "switches": Switches.of(config),
        **inputs,
    }
    model = (model_of or load)(config.model, config.device, config.precision or FULL, **how)
    if config.lora:
        window = parse_window(config.lora_steps) if config.lora_steps else None
        model = attach_all(model, config.loras(), config.steps, window)
    return Parts(model, reward, judge_of(config.model))


def run(
    config: Generated,
    argv: Sequence[str] = (),
    quiet: bool = False,
    parts: Callable[[Generated], Parts] = load_parts,
    folder: Callable[..., Folder] = Folder,
) -> dict[str, Any]:
    """Draw what is missing of a run and return its manifest, and under ``call`` what this call did of it.

    Args:
        config: from `tilting.config.generate.resolve`.
        argv: the command, for the manifest.
        quiet: no progress bar.
        parts: what loads model, reward and judge; only called when something is missing.
        folder: what is written.

    Raises:
        TiltingError: before anything is written, for a request or a folder that cannot work.
        RewardError: if the reward fails; images finished before stay, and the run resumes.
    """
    together = join_processes(config.device)
    quiet = quiet or not together.main
    with exclusive(config.out):
        if together.count > 1 and config.method == AUTO and config.budget and Budget.read(config.budget).timed:
            raise TiltingError("a budget of seconds is measured by one process: give evaluations, such as --budget 100")
        config, parts = _chosen(config, parts, quiet)
        place = together.agree(lambda: folder(config, argv))
        missing = together.all_gather(place.missing)[0]
        if missing and config.memory is not None:
            config, chosen = together.agree(partial(fitted, config))
            place.config = config
            place.head = {**place.head, "config": place.config_now()}
            announce(chosen, quiet or not together.main)
        if missing:
            if together.main:
                _warn_unknown(config)
            if parts is load_parts:  # who brings parts of their own has said so
                announce(f"loading {config.model}", quiet)
            _draw_missing(place, missing, together.agree(lambda: parts(config)), quiet, together)
        elif not place.told and together.main:
            place.begin()
        if together.main:
            _warn_constant(place)
            if place.complete:
                from tilting.reports.grid import write_grid  # draws with PIL

                write_grid(place.path, place.manifest)
            if config.trace and place.traced:
                write_page(place.path, place.traced, f"How {config.method} drew")
        return together.all_gather({**place.manifest, "call": place.call} if together.main else {})[0]


def _chosen(
    config: Generated, parts: Callable[[Generated], Parts], quiet: bool
) -> tuple[Generated, Callable[[Generated], Parts]]:
    """The request with the method that auto takes, or took when the folder was begun; what was loaded for it is used again."""
    if config.method != AUTO:
        return config, parts
    before = files.read_manifest(folder_of(config.out, RUN))
    if before and (before.get("auto") or {}).get("budget") == config.budget:
        was, why = before["config"], before["auto"]["why"]
        options = {key: was[key] for key in ("method", "set", "particles", "steps") if key in was}
        return told(config, options, why), parts
    announce(f"loading {config.model}", quiet)
    loaded = parts(config if config.memory is None else fitted(config)[0])
    found = settled(config, loaded.model, loaded.reward)
    if not quiet:
        print(found.auto[1], file=sys.stderr)
    return found, parts if config.memory is not None else lambda _: loaded  # another method may be fitted otherwise


def plan_missing(place: Folder, parts: Parts, missing: Sequence[int] | None = None) -> Plan:
    """The request of what a folder lacks, checked against what was loaded; its picture is read. Raises TiltingError."""
    config = place.config
    who = identities(config.prompts, config.seeds, config.images)
    made = plan_of(config, [who[number] for number in (place.missing if missing is None else missing)], parts)
    if processes() > 1 and config.split == "particles" and (place.follows or not getattr(made.method.engine, "parallel", True)):
        raise TiltingError(f"{made.method.name} has no particles that processes could share here: leave --split out")
    return made


def plan_of(config: GenerateConfig, who: Sequence[Identity], parts: Parts) -> Plan:
    """The request of some images of a config, checked against what was loaded; its picture is read. Raises TiltingError."""
    check_format(config.format, video=len(parts.model.image_shape) > 3)
    *frames, _, height, width = parts.model.image_shape
    reference = None
    if config.image and config.mask is None:
        reference = read_video(config.image, frames[0], height, width) if frames else read_picture(config.image, height, width)
    return plan(
        parts.model,
        who,
        config.preset(),
        parts.reward,
        reference=reference,
        steps=config.steps,
        cfg=config.cfg,
        eta=config.eta,
        sde=config.sde,
        negative_prompt=config.negative_prompt,
        batch_size=config.batch_size,
        strength=1.0 if config.strength is None else config.strength,
        reward_frames=config.reward_frames,
    )


def _draw_missing(place: Folder, missing: Sequence[int], parts: Parts, quiet: bool, together: Processes) -> None:
    config, over = place.config, None
    numbers = {w: i for i, w in enumerate(identities(config.prompts, config.seeds, config.images))}
    request = together.agree(lambda: plan_missing(place, parts, missing))
    if together.count > 1 and config.split == "particles":
        over = together
    elif together.count > 1:
        request = request.share(together.index, together.count)
    together.agree(lambda: place.begin(together.index))
    background = Background()
    # On a CPU a judge's threads would take the network's cores: there nothing is done beside it.
    beside = not place.follows and torch.device(getattr(parts.model, "device", "cpu")).type != "cpu"
    try:
        recorder = Recorder(parts.model, request, config.trace_every) if config.trace else None
        with Progress(request, quiet) as progress:
            for event in draw(parts.model, request, over=over, later=recorder is None and not place.follows):
                traces = [] if recorder is None else recorder(event)
                if not isinstance(event, Drawn):
                    progress.step(event.reward)
                elif together.main or over is None:
                    add = partial(place.add, event, [numbers[w] for w in event.who], parts.judge, traces)
                    background.submit(add) if beside else add()
                    progress.reward(place.mean)
        background.finish()
        added = sum(together.all_gather(place.added))
    except BaseException:
        with suppress(TiltingError):  # of a full disk, which is told already
            with suppress(TiltingError):
                background.finish()
            if together.main:
                place.collect(place.added if together.count == 1 else None)
                place.sum_up()
        raise
    if together.main:
        place.collect(added)
        place.sum_up()


def _warn_constant(place: Folder) -> None:
    for spec in place.config.reward:
        values = [record["rewards"].get(spec) for record in place.records.values()]
        if len(values) > 1 and None not in values and len(set(values)) == 1:
            print(f"tilting: warning: reward {spec!r} is constant over the run ({values[0]:g})", file=sys.stderr)


def _warn_unknown(config: GenerateConfig) -> None:
    """Name the prompts of pocket that ask for nothing it has learnt to draw: their pictures show anything."""
    if config.model == "pocket":
        unknown = [prompt for prompt in config.prompts if read_prompt(load_words(), prompt).concept is None]
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            said = f"{unknown[0]!r}{more} names nothing that pocket has learnt to draw: see `tilting models pocket`"
            print(f"tilting: warning: {said}", file=sys.stderr)


def describe(manifest: dict[str, Any]) -> str:
    """Lines for people: what is there, and what this call paid."""
    summary, config, call = manifest["summary"], manifest["config"], manifest.get("call") or {}
    count, had = len(manifest["images"]), call.get("already", 0)
    wanted = call.get("total", count)
    parts = [f"{count if count == wanted else f'{count} of {wanted}'} image{'' if wanted == 1 else 's'} in {config['out']}"]
    if had:
        parts[0] += f" ({had} of {wanted} {'was' if had == 1 else 'were'} already there)"
    if summary["reward_mean"] is not None:
        sem, over = summary["reward_sem"], summary.get("reward_sem_over", "images")
        sem = f" ± {sem:.4f} (standard error over {over})" if sem is not None else ""
        parts.append(f"reward {summary['reward_mean']:.4f}{sem}")
    if summary["judge_mean"] is not None:
        parts.append(f"judge {summary['judge_mean']:.3f}")
    if summary.get("look_bias") is not None:
        error = "" if summary["look_bias_sem"] is None else f" ± {summary['look_bias_sem']:.4f}"
        parts.append(f"looks see {summary['look_bias']:+.4f}{error} of it")
    lines = [", ".join([*parts, *costs_told(summary, call)])]
    if summary["judge_mean"] is not None:
        lines.append(f"judge: {TERMS['judge'].short}; `tilting compare` has that of base beside it")
    return "\n".join(lines)
