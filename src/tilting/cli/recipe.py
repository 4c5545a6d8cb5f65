"""`tilting recipe`: the papers' experiments, each one command."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from tilting.cli.options import Config, Json, Out, PrintConfig, Quiet, Seed, option
from tilting.cli.request import Request
from tilting.config.settings import boolean, integer, text
from tilting.errors import TiltingError, nearest
from tilting.runs.owner import RECIPE, folder_of


@cache
def recipes() -> dict[str, Any]:
    """The recipes of every package that names some under the entry point ``tilting.recipes``, by name."""
    return {name: one for point in entry_points(group="tilting.recipes") for name, one in point.load().items()}


def recipe(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which; without, a list.", show_default=False)] = None,
    out: Out = None,
    small: Annotated[bool | None, option("--small", help="As little of it as makes a table: a minute, to try it.")] = None,
    seed: Seed = None,
    config: Config = None,
    print_config: PrintConfig = False,
    quiet: Quiet = None,
    as_json: Json = None,
) -> None:
    """Repeat an experiment of a paper on pocket. Our numbers beside the published ones: table.md, table.json, figures."""
    request = Request.of(context, ("recipe", "out", "small", "seed"), recipe=name, name=None)
    options, silent = request.options, request.quiet
    if options.get("recipe") is None:
        return _list(request.json)
    name = text("recipe", options["recipe"])
    if name not in recipes():
        raise TiltingError(f"there is no recipe {name!r}{nearest(name, recipes())}")
    found = recipes()[name]
    small = boolean("small", options.get("small", False))
    if "seed" in options:
        integer("seed", options["seed"], 0)
        if not found.seeded:
            raise TiltingError(f"the recipe {options['recipe']} has seeds of its own: leave --seed out")
    if print_config:
        import yaml

        kept = {key: options.get(key) for key in ("recipe", "out")} | {"small": small}
        kept |= {"seed": options.get("seed", 0)} if found.seeded else {}
        return typer.echo(yaml.safe_dump(kept, sort_keys=False), nl=False)
    folder = folder_of(options.get("out") and text("out", options["out"]), RECIPE)

    def say(line: str) -> None:
        if not silent:
            print(f"{options['recipe']}: {line}", file=sys.stderr)

    seeded = {"seed": options.get("seed", 0), "quiet": silent} if found.seeded else {}
    found.run(folder, small, say, **seeded)
    shown = (folder / "table.md").read_text(encoding="utf-8")
    request.answer(json.loads((folder / "table.json").read_bytes()), shown, f"table: {Path(folder) / 'table.md'}")


def _list(as_json: bool) -> None:
    if as_json:
        rows = {name: {"about": recipe.about, "paper": recipe.paper} for name, recipe in recipes().items()}
        return typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    width = max(map(len, recipes())) + 2
    for name, recipe in recipes().items():
        typer.echo(f"{name:{width}}{recipe.about}")
        typer.echo(f"{'':{width}}{recipe.paper}")
