"""`run_study` makes a figure of the DRaFT paper: it trains what is missing of every arm into DIR/runs, looks at variants of the
trained LoRAs, and writes table.md, table.json and figures.

Claims are read from the numbers, never stated: each says what was found, and whether it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilting.config.finetune import FinetuneConfig
from tilting.training.folder import FinetuneFolder
from tilting_papers.draft.arms import SMALL, SMALL_PROMPTS, Shelf, config_of, seconds_of, train_arm
from tilting_papers.draft.looks import Looks, Seen, interval, look_at, values_of
from tilting_papers.draft.results import BASE, Claim, Results, Study
from tilting_papers.folder import Report, Say, check_out, command, opening, write_table


def row_of(results: Results, name: str) -> dict[str, Any]:
    """A line of the table: every set's reward and judge, and their gains over the base model, paired image by image."""
    seen, base = results.seen(name), _base_of(results, name)
    sets = {}
    for where, part in seen.items():
        numbers: dict[str, Any] = {"spread": part["spread"]}
        for what in (*results.looks.reward, "judge", "apart"):
            mine, theirs = values_of(part, what), values_of(base[where], what)
            numbers[what] = {"mean": interval(mine), "gain": None if name == BASE else interval(mine, theirs)}
        sets[where] = numbers
    row: dict[str, Any] = {"name": name, "sets": sets}
    if name in results.summaries:
        arm = next(a for a in results.study.arms if a.name == name)
        config, last = results.configs[name], results.points(name)[-1]
        key, _ = results.study.published or ("", "")
        row |= {
            "objective": config.objective, "set": dict(config.settings), "lr": config.lr, "clip": config.clip,
            "reward": [Path(spec).name for spec in config.reward],
            "batch": config.batch_size, "eta": config.eta,
            **{k: last[k] for k in ("step", "images", "evaluations", "reward_calls", "seconds")},
            "stopped": results.summaries[name]["stopped"], "skipped": results.summaries[name]["skipped"],
            "published_row": arm.published, "published": _published(key, arm.published),
        }  # fmt: skip
    return row


def _base_of(results: Results, name: str) -> dict[str, Seen]:
    """The base model in the same sampler: an arm's own first look."""
    return results.points(name)[0]["sets"] if name in results.summaries else results.seen(BASE)


def _published(key: str, row: str | None) -> float | None:
    from tilting_papers.published import published

    return None if row is None else published(key)[row]


def curves_of(results: Results) -> dict[str, list[dict[str, Any]]]:
    """By arm, its looks as means: step, costs, and by set the rewards and the judge."""
    found = {}
    for name in results.summaries:
        found[name] = [
            {
                **{k: point[k] for k in ("step", "images", "evaluations", "reward_calls", "seconds")},
                "sets": {
                    where: {what: interval(values_of(seen, what)) for what in (*results.looks.reward, "judge", "apart")}
                    | {"spread": seen["spread"]}
                    for where, seen in point["sets"].items()
                },
            }
            for point in results.points(name)
        ]
    return found


def run_study(study: Study, out: Path, small: bool, say: Say, seed: int = 0, quiet: bool = True) -> Report:
    """Make a study, or what is missing of it.

    Args:
        study: which.
        out: the folder to write, or to go on with.
        small: a few tiny steps, to try it.
        say: takes lines of progress.
        seed: of training and looks.
        quiet: taken for the recipes' common form; arms have no bars.

    Returns:
        What table.json holds.

    Raises:
        TiltingError: a folder that cannot be written, or holds something else.
    """
    from tilting_papers.draft.render import markdown

    check_out(study.name, out, small, seed)
    size = SMALL if small else study.size
    cut = SMALL_PROMPTS if small else 8
    sets = {name: prompts[:cut] for name, prompts in study.sets.items()}
    looks = Looks(sets, size.images, study.scored or study.reward, seed)
    results = Results(study, size, out, seed, small, Shelf(study.own() if study.own else None), looks)
    argv = command(study.name, out, small, seed)
    prompts = study.prompts[:SMALL_PROMPTS] if small else study.prompts
    arms = [arm for arm in study.arms if arm.small or not small]
    asked = {arm.name: config_of(arm, prompts, study.reward, size, small, out, seed) for arm in arms}
    minutes = minutes_of(study, asked, looks)
    done = [FinetuneFolder(config, argv).finished for config in asked.values()]
    for i, (name, config) in enumerate(asked.items()):
        left = sum(m for m, made in zip(list(minutes.values())[i:], done[i:], strict=True) if not made)
        say(f"arm {i + 1} of {len(asked)}: {name} ({'trained before' if done[i] else f'about {left:.0f} min left if idle'})")
        results.summaries[name] = train_arm(config, looks, results.shelf, argv)["summary"]
        results.configs[name] = config
    for variant in study.variants(results) if study.variants else []:
        say(f"looking at {variant.name}")
        config = next(iter(results.configs.values()))
        results.variants[variant.name] = look_at(variant, looks, results.shelf, config, out)
    if study.extra is not None:
        say("measuring")
        results.extra = study.extra(results)
    names = [*([BASE] if asked else []), *results.summaries, *results.variants]
    one = next(iter(asked.values()), None)
    report: Report = {
        **opening(study, small, seed), "model": one.model if one else "pocket", "steps": size.steps,
        "cfg": one.cfg if one else None, **looks.about,
        "prompts": list(prompts), "units": dict(study.units), "published": study.published,
        "rows": [row_of(results, name) for name in names], "curves": curves_of(results), "extra": results.extra,
        "minutes": minutes, "claims": [_claim(claim, results) for claim in study.claims], "notes": list(study.notes),
    }  # fmt: skip
    report["figures"] = study.figures(results)
    write_table(out, markdown(report), report)
    return report


def minutes_of(study: Study, asked: Mapping[str, FinetuneConfig], looks: Looks) -> dict[str, float]:
    """Estimated minutes of each arm on two idle cores, by counted evaluations."""
    looked = sum(len(dict.fromkeys(prompts)) for prompts in looks.sets.values()) * looks.images

    def one(config: FinetuneConfig) -> float:
        return seconds_of(config, looked, 1 + -(-config.train_steps // config.checkpoint_every)) / 60

    return {name: one(config) for name, config in asked.items()}


def _claim(claim: Claim, results: Results) -> dict[str, Any]:
    found = claim.test(results)
    return {"text": claim.text, "published": claim.published, "finding": found}
