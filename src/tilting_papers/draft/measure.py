"""Makes a figure of the DRaFT paper: trains what is missing of every run in DIR/runs, evaluates variants of the trained LoRAs,
and computes rows, training curves and claims from the scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tilting.config.finetune import FinetuneConfig
from tilting.errors import TiltingError
from tilting.objectives import OBJECTIVES
from tilting.training.folder import METRICS, FinetuneFolder, read_lines
from tilting.training.run import load_parts
from tilting_papers import parts
from tilting_papers.cache import PartsCache
from tilting_papers.draft.evaluate import evaluate_variant
from tilting_papers.draft.study import BASE, SEED, SMALL_PROMPTS, Protocol, Results, Study, seeded, values_of
from tilting_papers.draft.training import config_of, seconds_of, train
from tilting_papers.numbers import interval
from tilting_papers.page import claimed
from tilting_papers.published import published
from tilting_papers.recipe import Report, Run

COSTS = ("step", "images", "evaluations", "reward_calls", "seconds")


def measure(run: Run) -> Report:
    """Make what is missing of a study and measure it."""
    cache = PartsCache(load_parts, run.recipe.own())
    run = able(run, cache)
    study: Study = run.recipe
    results = Results(study, size_of(run), run.out, run.small, cache, protocol_of(run))
    configs, protocol = requests_of(run), results.protocol
    minutes = {name: seconds_of(config, protocol) / 60 for name, config in configs.items()}
    done = {name: part_of(run, name, FinetuneFolder(config, run.argv)) for name, config in configs.items()}
    mine = run.share(minutes)
    for i, name in enumerate(mine):
        left = sum(minutes[later] for later in mine[i:] if not done[later])
        about = "trained before" if done[name] else f"about {left:.0f} min left if idle"
        run.say(f"run {i + 1} of {len(mine)}: {name} ({about})")
        if not done[name]:
            train(configs[name], protocol, results.cache, run.argv)
            done[name] = part_of(run, name, FinetuneFolder(configs[name], run.argv))
    for name, part in done.items():
        first, _, further = name.partition(SEED)
        if part and further:
            results.repeats.setdefault(first, []).append(part["summary"])
        elif part:
            results.configs[name], results.summaries[name] = configs[name], part["summary"]
    results.repeats = {name: kept for name, kept in results.repeats.items() if name in results.summaries}
    if not results.summaries:
        raise TiltingError(f"no run of {study.name} by its first seed is there yet: make the other shards too")
    one = next(iter(results.configs.values()))
    for variant in study.variants(results):
        run.say(f"evaluating {variant.name}")
        scores = evaluate_variant(variant, protocol, results.cache, one, run.out)
        if scores is None:
            results.left.append(variant.name)
        else:
            results.variants[variant.name] = scores
    run.say("measuring")
    results.extra = study.extra(results)  # nosec B610: a study's, and no database
    figures = [name for name in study.figures(results) if name]
    about = {"model": one.model, "steps": results.size.steps, "cfg": one.cfg, **protocol.about}
    about |= {"seed": run.seed, "notes": list(study.notes)} | ({"left_out": results.left} if results.left else {})
    return {
        **about,
        "prompts": list(one.prompts),
        "units": dict(study.units),
        "published": study.published,
        "rows": [row_of(results, name) for name in results.names],
        "curves": curves_of(results),
        "extra": results.extra,
        "minutes": minutes,
        "claims": [claimed(claim.text, claim.published, claim.test(results)) for claim in study.claims],
        "figures": figures,
    }


def part_of(run: Run, name: str, folder: FinetuneFolder) -> dict[str, Any] | None:
    """The part of a training run, written first if it is finished; None if it is not. Raises TiltingError, as `parts.read`."""
    part = parts.read(run.out, name, folder, parts.TRAINED)
    if part is None and not folder.finished:
        return None
    protocol, summary = protocol_of(run), part["summary"] if part else folder.summary
    seen = {where: set(scores["prompts"]) for where, scores in summary["points"][-1]["sets"].items()}
    if summary.get("looked") != protocol.about or seen != {where: set(prompts) for where, prompts in protocol.sets.items()}:
        raise TiltingError(f"{name} in {str(run.out)!r} was looked at in another way: choose another --out")
    if part:
        return part
    norms = [row["gradient_norm"] for row in read_lines(folder.path / METRICS)]
    return parts.keep(run.out, name, folder, {"summary": {**folder.summary, "norms": norms}})


def size_of(run: Run) -> Any:
    """The sizes of training and evaluation."""
    return run.recipe.tiny if run.small else run.recipe.size


def protocol_of(run: Run) -> Protocol:
    """How a study's models are evaluated."""
    study: Study = run.recipe
    size = size_of(run)
    sets = {name: prompts[: size.prompts] for name, prompts in study.sets.items()}
    return Protocol(sets, size.images, study.scored or study.reward, study.given[0] if study.given else run.seed, study.between)


def requests_of(run: Run) -> dict[str, FinetuneConfig]:
    """The requests of the training runs by name, all first seeds before the second ones."""
    study: Study = run.recipe
    prompts = study.prompts[:SMALL_PROMPTS] if run.small else study.prompts
    runs = [one for one in study.runs if one.small or not run.small]
    size = size_of(run)
    seeds = {one.name: len(study.given) or (1 if run.small else one.seeds or study.seeds) for one in runs}
    named = [
        (replace(one, name=seeded(one.name, i)), i) for i in range(max(seeds.values())) for one in runs if i < seeds[one.name]
    ]
    number = study.given or range(run.seed, run.seed + max(seeds.values()))
    same = (prompts, study.reward, size, run.small, run.out)
    return {one.name: config_of(one, *same, number[i], study.model) for one, i in named}


def able(run: Run, cache: PartsCache) -> Run:
    """The run without training runs that need a gradient which a reward of one's own has not; a note says which those are.

    Raises:
        TiltingError: none is left.
    """
    study: Study = run.recipe
    if "reward" not in run.asked or cache.reward(*study.reward).differentiable:
        return run
    blind = [one for one in study.runs if OBJECTIVES[one.objective]().needs_gradient]
    there = tuple(one for one in study.runs if one not in blind)
    if not any(one.small or not run.small for one in there):
        raise TiltingError(f"every run of {study.name} needs a gradient, which {' + '.join(study.reward)} has not")
    note = f"Left out, for they need a gradient, which the reward has not: {', '.join(one.name for one in blind)}."
    return replace(run, recipe=replace(study, runs=there, notes=(*study.notes, note) if blind else study.notes))


def row_of(results: Results, name: str) -> dict[str, Any]:
    """A row of the table: reward and judge on every set, and their gains over the base model in the same sampler (a run's own
    first evaluation), paired by image."""
    base = results.points(name)[0]["sets"] if name in results.summaries else results.scores(BASE)[0]
    sets = {}
    for where in results.protocol.sets:
        sets[where] = {"spread": results.spread(name, where)}
        for what in (*results.protocol.reward, "judge", "apart"):
            mine, theirs = results.values(name, what, where), values_of(base[where], what)
            gain = None if name == BASE else interval(mine, theirs, seeded=True)
            sets[where][what] = {"mean": interval(mine, seeded=True), "gain": gain}
    row: dict[str, Any] = {"name": name, "sets": sets}
    if name not in results.summaries:
        return row
    config, summary = results.configs[name], results.summaries[name]
    key = next(one.published for one in results.study.runs if one.name == name)
    row |= {"objective": config.objective, "set": dict(config.settings), "lr": config.lr, "clip": config.clip}
    row |= {"reward": [Path(spec).name for spec in config.reward], "batch": config.batch_size, "eta": config.eta}
    row |= {cost: results.points(name)[-1][cost] for cost in COSTS}
    row |= {"seeds": len(results.of_seeds(name))}
    row |= {"stopped": summary["stopped"], "skipped": summary["skipped"], "published_row": key}
    return row | {"published": published(results.study.published[0])[key] if key and results.study.published else None}


def curves_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The evaluations of each training run as means: step, costs, and by set the rewards and the judge."""

    whats = (*results.protocol.reward, "judge", "apart")

    def curve(name: str) -> list[dict[str, Any]]:
        points = results.points(name)
        rows: list[dict[str, Any]] = [{**{cost: at[cost] for cost in COSTS}, "sets": {}} for at in points]
        for where in results.protocol.sets:
            there = [(row, at["sets"][where]["spread"]) for row, at in zip(rows, points, strict=True) if where in at["sets"]]
            by_look = {what: results.over_training(name, what, where) for what in whats}
            for i, (row, spread) in enumerate(there[: len(by_look["judge"])]):
                numbers = {what: interval(looks[i], seeded=True) for what, looks in by_look.items()}
                row["sets"][where] = {**numbers, "spread": spread}
        return rows

    return {name: curve(name) for name in results.summaries}
