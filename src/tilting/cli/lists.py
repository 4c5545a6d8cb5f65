"""The commands `tilting methods`, `objectives`, `rewards`, `models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tilting.config.about import LEGEND, STEPS, about_method, of_few
from tilting.declare import Registry
from tilting.errors import TiltingError, nearest
from tilting.models import FAMILIES, MODELS
from tilting.models.pipeline_class import REQUIRED, RESERVED, pipeline_classes, steerable_class
from tilting.models.words import load_words
from tilting.objectives import OBJECTIVES
from tilting.objectives.about import LEGEND as OBJECTIVE_LEGEND
from tilting.objectives.about import about_objective
from tilting.presets import METHODS
from tilting.reports.text import columns
from tilting.rewards.declaration import REWARDS

DIFFUSERS = "diffusers"
LONG = 24
"""Maximum characters of a default in its column of a table."""
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
About = Callable[[str], dict[str, Any]]
Page = Callable[[str, dict[str, Any]], list[str]]
Table = Callable[[dict[str, dict[str, Any]]], list[str]]

ROWS = Path(__file__).parent.parent / "assets" / "measured.json"
"""Measurements of methods and objectives by recipes, which `python docs/site.py --rows` extracts from their pages."""
SAID = 'Say "a fox", "a fox on a blue background", "a fox, noto style" or "a fox on a blue background, noto style".'
"""How pocket's words make a prompt."""


def _words() -> dict[str, list[str]]:
    """The words of pocket: its concepts by category, everyday words for them, styles, and colours of backgrounds."""
    words = load_words()
    named = list(zip(words.concepts, words.categories, strict=True))
    by = {kind: [concept for concept, its in named if its == kind] for kind in dict.fromkeys(words.categories)}
    return {**by, "also": sorted(words.aliases), "styles": list(words.styles), "backgrounds": list(words.colours)}


def _show(rows: dict[str, dict[str, Any]], as_json: bool) -> None:
    """Print names with their descriptions, or everything as JSON."""
    if as_json:
        return typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    cells = []
    for name, row in rows.items():
        cells += [[name, row["about"]], *(["", note] for note in row.get("notes", []))]
    typer.echo("\n".join(columns(cells)))


def _measured(name: str) -> list[dict[str, str]]:
    """The measurements of a part."""
    return [row for row in json.loads(ROWS.read_bytes()) if row["part"] == name]


def _quoted(rows: list[dict[str, str]], paid: str) -> list[str]:
    """Measurements as lines, by page; ``paid`` says what their evaluations are per."""
    cells = []
    for row in rows:
        number = f", {row['number']}" if row["number"] else ""
        judge = f"; {row['judged']} {row['judge']}" if row["judge"] else ""
        base = f"{row['gain']} over base" if row["gain"] else f"base {row['base']}"
        said = f"{row['what']} {row['value']}, {base}{judge}; {row['evaluations']} evaluations {paid}{number}"
        cells.append([row["page"], said])
    return ["", "measured on pocket (tilting recipe NAME)", *columns(cells, indent="  ")] if cells else []


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One method, with all its settings.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, or the settings of one. Paper, what each needs, its cost; with NAME, what --set changes."""
    _list(METHODS, about_method, _method, _methods, name, as_json)


def _list(parts: Registry[Any], about: About, page: Page, table: Table, name: str | None, as_json: bool) -> None:
    """Print a table of all parts, or the page of one; or what they are made of, as JSON."""
    if name is not None:
        parts.find(name)
    rows = {key: about(key) | {"measured": _measured(key)} for key in ([name] if name else parts)}
    if as_json:
        return typer.echo(json.dumps(rows[name] if name else rows, indent=1, ensure_ascii=False))
    for line in page(name, rows[name]) if name else table(rows):
        typer.echo(line)


def _methods(rows: dict[str, dict[str, Any]]) -> list[str]:
    yes = {True: "yes", False: "no"}
    cells = [["method", "paper", "gradient", "eta > 0", "density", "evaluations per image"]]
    for name, row in rows.items():
        gradient = "or probes" if row["gradient"] and row["zero_order"] else yes[row["gradient"]]
        cells.append([name, row["paper"], gradient, yes[row["stochastic"]], yes[row["density"]], evaluations_of(row)])
    return [*columns(cells), "", *columns([[" ".join(LEGEND[:-1])], [LEGEND[-1]]])]


def evaluations_of(row: dict[str, Any]) -> str:
    return f"{'at most ' if row['at_most'] else ''}{row['evaluations']}"


def _method(name: str, row: dict[str, Any]) -> list[str]:
    gradient = f"a differentiable reward{', or zero-order probes' if row['zero_order'] else ''}"
    needs = [
        gradient if row["gradient"] else "no gradient",
        "eta above 0" if row["stochastic"] else "any eta",
        "tractable density" if row["density"] else "no tractable density",
    ]
    paid = f"{evaluations_of(row)} at {STEPS} steps"
    told = [["paper", row["paper"]], ["needs", "; ".join(needs)], ["evaluations per image", paid]]
    runs = {"published": row["published_run"], **{_case(case): used for case, used in row["published_for"].items()}}
    told += [["few steps", of_few(row)]] if row["few"] else []
    told += [[case, ", ".join(f"{key} {shown(value)}" for key, value in used.items())] for case, used in runs.items() if used]
    lines = columns([[f"{name}: {row['about']}"]])
    for text in row["more"]:  # pseudo-code keeps its lines
        lines += ["", *text.splitlines(), ""] if text.startswith("    ") else columns([[text]])
    lines += ["", *columns(told), *_quoted(row["measured"], "an image")]
    if not row["settings"]:
        return [*lines, "", f"{name} has no settings."]
    cells = [["setting", "default", "published", "what it is"]]
    for field, known in row["settings"].items():
        published = shown(known["published"]) if "published" in known else ""
        default, about = _setting(known)
        cells.append([f"{name}.{field}", default, published, about])
    return [*lines, "", *columns(cells)]


def _case(case: str) -> str:
    return "- with --image" if case == "image" else f"- with --reward {case}"


def _setting(known: dict[str, Any]) -> tuple[str, str]:
    """A setting's default and description, as cells of a table."""
    hidden = [word for word in known["choices"] if f'"{word}"' not in known["about"]]
    choices = f"; one of {', '.join(known['choices'])}" if hidden else ""
    default, about = shown(known["default"]), known["about"] + choices
    return ("(long)", f"{about}; by default {default}") if len(default) > LONG else (default, about)


def objectives(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One objective, with all its settings.")] = None,
    as_json: Json = False,
) -> None:
    """List the objectives of fine-tuning, or the settings of one. Paper, gradient, cost; with NAME, what --set changes."""
    _list(OBJECTIVES, about_objective, _objective, _objectives, name, as_json)


def _objectives(rows: dict[str, dict[str, Any]]) -> list[str]:
    cells = [["objective", "paper", "gradient", "evaluations", "rewards", "settings"]]
    for name, row in rows.items():
        settings = " ".join(f"{field}={shown(known['default'])}" for field, known in row["settings"].items())
        costs = [_counted(row, "evaluations"), _counted(row, "reward_calls")]
        cells.append([name, row["paper"].partition(";")[0], row["gradient"], *costs, settings])
    return [*columns(cells), "", *columns([[" ".join(OBJECTIVE_LEGEND[:-1])], [OBJECTIVE_LEGEND[-1]]])]


def _counted(row: dict[str, Any], key: str) -> str:
    return f"{'~' if row['drawn'] and row[key] % 1 else ''}{row[key]:.3g}"


def _objective(name: str, row: dict[str, Any]) -> list[str]:
    needs = "a differentiable reward" if row["differentiable"] else "any reward"
    chain = "eta above 0" if row["density"] else "eta above 0 where a kl is asked for" if "kl" in row["settings"] else "any eta"
    per = f"per image and training step at T = {row['counted_at']}"
    told = [
        ["paper", row["paper"]],
        ["needs", f"{needs}; {chain}"],
        ["gradient", row["gradient"]],
        [f"evaluations {per}", _counted(row, "evaluations")],
        [f"reward calls {per}", _counted(row, "reward_calls")],
    ]
    cells = [["setting", "default", "what it is"]]
    cells += [[f"{name}.{field}", *_setting(known)] for field, known in row["settings"].items()]
    head = columns([[f"{name}: {row['about']}"]])
    for part in row["more"]:  # pseudo-code keeps its lines
        head += ["", *part.splitlines()] if part.startswith("    ") else ["", *columns([[part]])]
    return [*head, "", *columns(told), *_quoted(row["measured"], "of training"), "", *columns(cells)]


def shown(value: Any) -> str:
    """A setting as --set takes it."""
    if isinstance(value, tuple | list):
        return ",".join(map(shown, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value) or "''"


def rewards(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One reward.")] = None, as_json: Json = False
) -> None:
    """List the rewards, or show one. Units, whether it has a gradient, what it is given after a colon."""
    rows = {}
    for entry in REWARDS.values() if name is None else [REWARDS.find(name)]:
        kind = "differentiable" if entry.differentiable else "black-box"
        row: dict[str, Any] = {"about": entry.about, "units": entry.units, "differentiable": entry.differentiable}
        if as_json:
            row |= {"usage": entry.usage, "weights": entry.weights, "of_batch": entry.together, "remote": entry.remote}
            row |= {"needs": entry.needs}
        else:
            row["notes"] = [f"{entry.units}, {kind}{f'; {entry.usage}' if entry.argument else ''}"]
            row["notes"] += [*entry.told, *entry.needs] if name else []
        rows[entry.name] = row
    if not as_json and name is None:
        rows["FILE.py:FUNCTION"] = {
            "about": "your own: (images [b,3,h,w] in [0,1], prompts) -> (b,); tried for a gradient unless it says"
        }
    _show(rows, as_json)


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="pocket, with its words; diffusers, with its pipelines; one of them, with its inputs."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models. With NAME the words of pocket, the pipelines of diffusers that can be steered, or what one takes."""
    if name == DIFFUSERS:
        return _pipelines(as_json)
    if name is not None and name.endswith("Pipeline"):
        own = {key: value for key, value in steerable_class(name).parameters.items() if key not in RESERVED}
        takes = {key: "required" if value is REQUIRED else value for key, value in own.items()}
        takes = {key: "of its own" if value is ... else value for key, value in takes.items()}
        lines = columns([["input", "default"], *([key, shown(value)] for key, value in takes.items())])
        return typer.echo(json.dumps(takes, indent=1) if as_json else "\n".join(lines))
    if name is not None:
        if name not in MODELS:
            raise TiltingError(f"the words of {name!r} are not known here{nearest(name, [*MODELS, DIFFUSERS])}")
        found = _words()
        lines = [*columns([[key, ", ".join(words)] for key, words in found.items()]), "", SAID]
        return typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(lines))
    rows: dict[str, dict[str, Any]] = {name: {"about": about} for name, about in MODELS.items()}
    if not as_json:
        rows["FOLDER"] = {"about": "; ".join(["a diffusers folder of safetensors", *(f.about for f in FAMILIES.values())])}
        rows["FOLDER"]["notes"] = ["of any pipeline whose call can be entered: see `tilting models diffusers`"]
        rows["OWNER/NAME"] = {"about": "the same from a hub, where there is network"}
    _show(rows, as_json)


def _pipelines(as_json: bool) -> None:
    """Every class of pipelines that the installed diffusers has: whether it can be steered, and why not."""
    found = {name: {"steered": not cls.unsupported, "why": cls.unsupported or None} for name, cls in pipeline_classes().items()}
    if as_json:
        return typer.echo(json.dumps(found, indent=1))
    cells = [["pipeline", "steered", "why not"]]
    cells += [[name, "no" if row["why"] else "yes", row["why"] or ""] for name, row in found.items()]
    many = sum(not row["why"] for row in found.values())
    for line in [*columns(cells), "", f"{many} of {len(found)} can be; `tilting models NAME` says what one takes by --input."]:
        typer.echo(line)
