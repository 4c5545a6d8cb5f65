"""A figure of the DRaFT paper made: what is missing of every training run is trained into DIR/runs, variants of the trained
LoRAs are evaluated, and the rows, training curves and claims are read from the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilting.config.finetune import FinetuneConfig
from tilting.training.folder import FinetuneFolder
from tilting.training.run import load_parts
from tilting_papers.cache import PartsCache
from tilting_papers.draft.evaluate import evaluate_variant
from tilting_papers.draft.study import BASE, SMALL, SMALL_PROMPTS, Protocol, Results, Scores, Study, values_of
from tilting_papers.draft.training import config_of, seconds_of, train
from tilting_papers.numbers import interval
from tilting_papers.page import claimed
from tilting_papers.published import published
from tilting_papers.recipe import Report, Run

COSTS = ("step", "images", "evaluations", "reward_calls", "seconds")


def measure(run: Run) -> Report:
    """Make what is missing of a study: what table.json holds."""
    study: Study = run.recipe
    results = Results(study, size_of(run), run.out, run.small, PartsCache(load_parts, study.own()), protocol_of(run))
    results.configs = requests_of(run)
    configs, protocol = results.configs, results.protocol
    minutes = {name: seconds_of(config, protocol) / 60 for name, config in configs.items()}
    done = {name: FinetuneFolder(config, run.argv).finished for name, config in configs.items()}
    for i, (name, config) in enumerate(configs.items()):
        left = sum(minutes[later] for later in list(configs)[i:] if not done[later])
        about = "trained before" if done[name] else f"about {left:.0f} min left if idle"
        run.say(f"run {i + 1} of {len(configs)}: {name} ({about})")
        results.summaries[name] = train(config, protocol, results.cache, run.argv)["summary"]
    one = next(iter(configs.values()))
    for variant in study.variants(results):
        run.say(f"evaluating {variant.name}")
        results.variants[variant.name] = evaluate_variant(variant, protocol, results.cache, one, run.out)
    run.say("measuring")
    results.extra = study.extra(results)
    about = {"model": one.model, "steps": results.size.steps, "cfg": one.cfg, **protocol.about}
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
        "figures": study.figures(results),
    }


def size_of(run: Run) -> Any:
    """How much is trained and evaluated."""
    return SMALL if run.small else run.recipe.size


def protocol_of(run: Run) -> Protocol:
    """How a study's models are evaluated."""
    study: Study = run.recipe
    sets = {name: prompts[: SMALL_PROMPTS if run.small else 8] for name, prompts in study.sets.items()}
    return Protocol(sets, size_of(run).images, study.scored or study.reward, run.seed)


def requests_of(run: Run) -> dict[str, FinetuneConfig]:
    """The training runs as requests, by name."""
    study: Study = run.recipe
    prompts = study.prompts[:SMALL_PROMPTS] if run.small else study.prompts
    runs = [one for one in study.runs if one.small or not run.small]
    return {one.name: config_of(one, prompts, study.reward, size_of(run), run.small, run.out, run.seed) for one in runs}


def row_of(results: Results, name: str) -> dict[str, Any]:
    """A line of the table: every set's reward and judge, and their gains over the base model in the same sampler (a run's own
    first evaluation), paired image by image."""
    base = results.points(name)[0]["sets"] if name in results.summaries else results.scores(BASE)
    sets = {}
    for where, scores in results.scores(name).items():
        sets[where] = {"spread": scores["spread"]}
        for what in (*results.protocol.reward, "judge", "apart"):
            mine, theirs = values_of(scores, what), values_of(base[where], what)
            sets[where][what] = {"mean": interval(mine), "gain": None if name == BASE else interval(mine, theirs)}
    row: dict[str, Any] = {"name": name, "sets": sets}
    if name not in results.summaries:
        return row
    config, summary = results.configs[name], results.summaries[name]
    key = next(one.published for one in results.study.runs if one.name == name)
    row |= {"objective": config.objective, "set": dict(config.settings), "lr": config.lr, "clip": config.clip}
    row |= {"reward": [Path(spec).name for spec in config.reward], "batch": config.batch_size, "eta": config.eta}
    row |= {cost: results.points(name)[-1][cost] for cost in COSTS}
    row |= {"stopped": summary["stopped"], "skipped": summary["skipped"], "published_row": key}
    return row | {"published": published(results.study.published[0])[key] if key and results.study.published else None}


def curves_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """By training run, its evaluations as means: step, costs, and by set the rewards and the judge."""

    def means(scores: Scores) -> dict[str, Any]:
        whats = (*results.protocol.reward, "judge", "apart")
        return {what: interval(values_of(scores, what)) for what in whats} | {"spread": scores["spread"]}

    def point(at: dict[str, Any]) -> dict[str, Any]:
        return {**{cost: at[cost] for cost in COSTS}, "sets": {where: means(scores) for where, scores in at["sets"].items()}}

    return {name: [point(at) for at in results.points(name)] for name in results.summaries}
