"""Steer, then bake: a LoRA distilled from CoDeX's samples (objective opd), against CoDeX and base on prompts it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilting.config.finetune import resolve_finetune
from tilting.config.generate import GenerateConfig, resolve
from tilting.generation import run as generating
from tilting.metrics import statistics
from tilting.rewards.spec import split_weight
from tilting.training import run as training
from tilting_papers.field.page import missing
from tilting_papers.numbers import OVER_PROMPTS, Values, by_prompt, image_values, interval
from tilting_papers.page import number, page, shown, table, tried
from tilting_papers.recipe import POCKET, Report, Run

STEPS, EPOCHS = 40, 24
"""Training steps, of eight steered images each, and updates from each of them: steering is what costs."""
IMAGES = 4
"""Of each held-out prompt."""
WANTED = 0.6
"""Of CoDeX's gain, that is hoped for."""


def requests(run: Run) -> dict[str, Any]:
    """The one command that bakes, and the runs on held-out prompts."""
    small, recipe = run.small, run.recipe
    steps, prompts = (recipe.tiny, recipe.held[:2]) if small else (recipe.steps, recipe.held)
    seeds, same = recipe.seeds or (run.seed,), {"model": recipe.model, "reward": list(recipe.reward), "steps": steps}
    bake = resolve_finetune(
        {
            **same,
            "prompts": list(recipe.train[:4] if small else recipe.train),
            "objective": "opd",
            "set": {"opd.method": "codex", "opd.epochs": 2 if small else EPOCHS, "opd.timesteps": 2},
            "train-steps": 2 if small else STEPS,
            "batch-size": 2 if small else 8,
            "sample-every": 0,
            "checkpoint-every": 1,
            "seed": seeds[0],
            "out": str(run.out / "runs" / "bake"),
        }
    )
    drawn: dict[str, Any] = {}
    for name, more in {"base": {}, "codex": {"method": "codex"}, "baked": {"lora": [str(run.out / "runs" / "bake")]}}.items():
        asked = {**same, "prompts": list(prompts), "images": 1 if small else IMAGES}
        asked["seed"] = seeds if len(seeds) > 1 else min(seeds)
        drawn[name] = asked | more | {"out": str(run.out / "runs" / name)}
    return {"bake": bake, **drawn}


def measure(run: Run) -> Report:
    """Bake, draw, and compare: what table.json holds."""
    asked = requests(run)
    bake = asked.pop("bake")
    run.say(f"baking: {bake.train_steps} steps of {bake.batch_size} steered images")
    trained = training.run(bake, run.argv, run.quiet)
    manifests: dict[str, dict[str, Any]] = {}
    for name, options in asked.items():
        run.say(name)
        config: GenerateConfig = resolve(options)
        manifests[name] = generating.run(config, run.argv, quiet=run.quiet)
    total = "reward" if len(run.recipe.reward) > 1 else ""
    spec = total or split_weight(run.recipe.reward[0])[0]
    rewards = {name: image_values([one], spec, total) for name, one in manifests.items()}
    judges = {name: image_values([one], "judge") for name, one in manifests.items()}
    told = "" if run.model == POCKET else f" --model {run.model}"
    told += "".join(f" --reward {Path(spec).name}" for spec in run.recipe.reward)
    rows = []
    for name, one in manifests.items():
        gains = {} if name == "base" else {"gain": interval(rewards[name], rewards["base"])}
        gains |= {} if name == "base" else {"judge_gain": interval(judges[name], judges["base"])}
        count = len(one["images"])
        rows.append(
            {
                "name": name,
                "value": interval(rewards[name]),
                **gains,
                "judge": interval(judges[name]),
                "evaluations": one["summary"]["evaluations"] / count,
                "seconds": one["summary"]["seconds"] / count,
            }
        )
    return {
        "prompts": [len(bake.prompts), len(asked["base"]["prompts"])],
        "images": asked["base"]["images"],
        "steps": bake.steps,
        "train_steps": bake.train_steps,
        "batch": bake.batch_size,
        "trained": {key: trained["summary"][key] for key in ("seconds", "stopped") if key in trained["summary"]},
        "command": f"tilting finetune PROMPTS.txt --objective opd --set opd.method=codex --set opd.epochs={EPOCHS}"
        f" --set opd.timesteps=2{told} --train-steps {STEPS} --steps {run.recipe.steps} --batch-size 8 --out DIR",
        "rows": rows,
        "share": share(rewards),
        "missing": [],
    }


def share(rewards: dict[str, Values]) -> dict[str, float | None]:
    """What of CoDeX's gain the LoRA gives, and an interval of it: (baked - base) - s (CoDeX - base) over prompts is 0 at its
    bounds (Fieller)."""
    apart = {
        name: by_prompt({key: value - rewards["base"][key] for key, value in rewards[name].items()})
        for name in ("baked", "codex")
    }
    of = sum(apart["baked"]) / sum(apart["codex"])
    bounds = [s / 100 for s in range(-100, 301) if _near(apart["baked"], apart["codex"], s / 100)]
    return {"mean": of, "low": min(bounds) if bounds else None, "high": max(bounds) if bounds else None}


def _near(baked: list[float], codex: list[float], s: float) -> bool:
    """Whether a share is within the 95 % interval."""
    apart = [b - s * c for b, c in zip(baked, codex, strict=True)]
    found = statistics.estimate(apart, [str(k) for k in range(len(apart))])
    bounds = found.interval()
    return bounds.low is None or bounds.high is None or bounds.low <= 0 <= bounds.high


def markdown(report: Report) -> str:
    """The page."""
    heads = ("row", "reward", "reward - base", "judge - base", "evaluations", "s/image")
    rows = [
        (
            row["name"],
            shown(row["value"]),
            shown(row.get("gain"), sign=True),
            shown(row.get("judge_gain"), sign=True),
            number(row["evaluations"]),
            number(row["seconds"], 2),
        )
        for row in report["rows"]
    ]
    of = report["share"]
    paid = {row["name"]: row["evaluations"] for row in report["rows"]}
    said = f"The LoRA gives {of['mean']:.0%} of CoDeX's gain" + (
        f" (95 % from {of['low']:.0%} to {of['high']:.0%})" if of["low"] is not None else ""
    )
    said += f" at {paid['baked'] / paid['codex']:.0%} of its evaluations"
    if of["mean"] >= WANTED:
        said += f", which is the {WANTED:.0%} that was hoped for or more."
    else:
        seen = report["train_steps"] * report["batch"]
        each = seen // report["prompts"][0]
        said += (
            f", less than the {WANTED:.0%} that was hoped for. It has learnt from {seen} steered samples, {each} of a prompt."
        )
    trained, held = report["prompts"]
    made = f"{report['train_steps']} steps of {report['batch']} images, {trained} prompts"
    asked = report.get("asked", {})
    seeds = ", ".join(map(str, asked.get("seeds") or [report["seed"]]))
    ours = f"Ours: {asked.get('model', POCKET)}, T = {report['steps']}, {made}; {held} held-out prompts x "
    ours += f"{report['images']} images, seed {seeds}{tried(report)}."
    kept = [i for i, head in enumerate(heads) if head != "judge - base" or any(row["judge"] for row in report["rows"])]
    lines = table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows])
    body = [*missing(report), said, "", f"    {report['command']}", "", *lines]
    return page(report, ours, body, [OVER_PROMPTS])
