"""`tilting recipe`: the papers' experiments, each one command."""

from __future__ import annotations

import json
import sys

import typer

from tilting.cli.command import Call, takes
from tilting.config.recipe import RECIPES, RecipeConfig
from tilting.reports.text import columns
from tilting.runs.owner import RECIPE, folder_of


@takes(RecipeConfig, writes=False, overwrites=True)
def recipe(config: RecipeConfig, call: Call) -> None:
    """Repeat a paper's experiment, on pocket or a model of your own. Our numbers beside the published ones: table.md,
    table.json, figures."""
    if config.recipe is None:
        return _list(call.json)
    folder = folder_of(config.out, RECIPE)

    def say(line: str) -> None:
        if not call.quiet:
            print(f"{config.recipe}: {line}", file=sys.stderr)

    asked = {"asked": config.asked} if config.asked else {}
    RECIPES[config.recipe].run(folder, config.small, say, config.seed, call.quiet, config.part, **asked)
    page = (folder / "table.md").read_text(encoding="utf-8")
    return call.answer(json.loads((folder / "table.json").read_bytes()), page, f"table: {folder / 'table.md'}")


def _list(as_json: bool) -> None:
    if as_json:
        rows = {name: {"about": one.about, "paper": one.paper} for name, one in RECIPES.items()}
        return typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    typer.echo("\n".join(columns([cell for name, one in RECIPES.items() for cell in ([name, one.about], ["", one.paper])])))
