"""The pages of docs/ that declarations make, one of each kind: `python -m tilting.cli.reference DIR` writes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilting.cli.lists import evaluations_of, shown
from tilting.config.about import STEPS, about_method, of_few
from tilting.objectives import OBJECTIVES
from tilting.objectives.about import about_objective
from tilting.objectives.cost import STEPS as TRAINING_STEPS
from tilting.presets import METHODS
from tilting.reports.text import markdown as plain_markdown
from tilting.reports.words import glossary
from tilting.rewards.declaration import REWARDS

YES = {True: "yes", False: "no"}
MADE = "`python -m tilting.cli.reference docs` makes this page of what is declared."


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, whose cells may hold the mark of columns."""
    return plain_markdown(heads, [[cell.replace("|", "\\|") for cell in row] for row in rows])


def methods() -> str:
    """The page of methods."""
    rows = {name: about_method(name) for name in METHODS}
    heads = ("method", "what it is", "paper", "gradient", "eta > 0", "density", f"evaluations at T = {STEPS}")
    table = []
    for name, row in rows.items():
        gradient = "or probes" if row["gradient"] and row["zero_order"] else YES[row["gradient"]]
        facts = (gradient, YES[row["stochastic"]], YES[row["density"]], evaluations_of(row))
        table.append((f"[`{name}`](#{name})", row["about"], row["paper"], *facts))
    lines = [
        "# Methods",
        "",
        "Steering at inference, without training. One loop runs them all: look, correct, select, guide, draw. Evaluations",
        "are of one image with default settings, finals included, counted by running the loop: one is a latent through",
        "the denoiser, a CFG pair counts as one, and the evaluation made to select is the one the next draw needs.",
        "Defaults suit `pocket`; `--published` (`tl.presets.das.as_published()`) takes the paper's. Every gradient method",
        "takes a black-box reward too, with zero-order gradients (`--set codex.probes=10`). How near each comes to the",
        "exact tilt, where that is known:",
        f"[mixture-bias](mixture-bias.md). {MADE}",
        "",
        *markdown(heads, table),
    ]
    for name, row in rows.items():
        lines += method(name, row)
    return "\n".join(lines) + "\n"


def method(name: str, row: dict[str, Any], level: int = 2) -> list[str]:
    """Lines of what there is to know of a method, under a heading of a level."""
    runs = {"by itself": row["published_run"], **{f"with {case}": used for case, used in row["published_for"].items()}}
    said = [f"{case}: {_listed(used)}" for case, used in runs.items() if used]
    more = [of_few(row)] if row["few"] else []
    more += [f"Published runs, {'; '.join(said)}."] if said else []
    return [*_opening(name, row, level), *(line for one in more for line in (one, "")), *_settings(name, row)]


def objective(name: str, row: dict[str, Any], level: int = 2) -> list[str]:
    """Lines of what there is to know of an objective, under a heading of a level."""
    return [*_opening(name, row, level), *_settings(name, row)]


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in settings.items())


def objectives() -> str:
    """The page of objectives."""
    rows = {name: about_objective(name) for name in OBJECTIVES}
    heads = ("objective", "what it is", "paper", "gradient goes through", "eta", "evaluations", "reward calls")
    table = [
        (
            f"[`{name}`](#{name})",
            row["about"],
            row["paper"],
            row["gradient"],
            f"{row['eta']:g}",
            f"{'~' if row['drawn'] else ''}{row['evaluations']:g}",
            f"{row['reward_calls']:g}",
        )
        for name, row in rows.items()
    ]
    lines = [
        "# Objectives",
        "",
        f"Fine-tuning a LoRA. Evaluations and reward calls are of an image and training step, counted at T = {TRAINING_STEPS};",
        f"~ is a mean, where it draws how much it does. With no gradient the reward may be a black box. {MADE}",
        "",
        *markdown(heads, table),
    ]
    for name, row in rows.items():
        lines += objective(name, row)
    return "\n".join(lines) + "\n"


def rewards() -> str:
    """The page of rewards."""
    heads = ("reward", "what it says", "units", "gradient", "usage")
    table = [(f"`{one.name}`", one.about, one.units, YES[one.differentiable], f"`{one.usage}`") for one in REWARDS.values()]
    lines = [
        "# Rewards",
        "",
        "Scores of a picture and its prompt, higher is better. `--reward NAME[:ARGUMENT][=WEIGHT]`, repeatable: parts are",
        "summed by their weights, and each is recorded beside the sum. `--reward my.py:score` is your own function,",
        "images (b, 3, h, w) in [0, 1] and prompts in, (b,) out; with a third parameter `metadata` it is given what a prompts",
        "file's further columns say of each prompt, as `geneval` and `ocr` are. Written in torch it has a gradient: where one",
        "is needed it is tried once on a small picture, unless `score.differentiable = False` (or True) says so. `tilting",
        "rewards NAME` says more: what to download or install, too.",
        "",
        *markdown(heads, table),
    ]
    return "\n".join(lines) + "\n"


def _opening(name: str, row: dict[str, Any], level: int) -> list[str]:
    source = "" if row["paper"] in row["about"] else f" {row['paper'][0].upper()}{row['paper'][1:]}."
    lines = ["", f"{'#' * level} {name}", "", f"{row['about'].removesuffix('.')}.{source}", ""]
    for part in row["more"]:
        lines += (
            ["```", *(line.removeprefix("    ") for line in part.splitlines()), "```", ""]
            if part.startswith("    ")
            else [part, ""]
        )
    return lines


def _settings(name: str, row: dict[str, Any]) -> list[str]:
    if not row["settings"]:
        return ["It has no settings."]
    published = any("published" in known for known in row["settings"].values())
    heads = ("setting", "default", *(("published",) if published else ()), "what it is")
    cells: list[Sequence[str]] = []
    for field, known in row["settings"].items():
        theirs = (shown(known["published"]) if "published" in known else "",) if published else ()
        choices = f" One of {', '.join(map(str, known['choices']))}." if known["choices"] else ""
        about = known["about"].removesuffix(".")
        cells.append((f"`{name}.{field}`", shown(known["default"]), *theirs, f"{about}.{choices}"))
    return markdown(heads, cells)


PAGES = {
    "methods.md": methods,
    "objectives.md": objectives,
    "rewards.md": rewards,
    "glossary.md": lambda: "\n".join(glossary()) + "\n",
}

if __name__ == "__main__":
    for file, page in PAGES.items():
        Path(sys.argv[1], file).write_text(page(), encoding="utf-8")
