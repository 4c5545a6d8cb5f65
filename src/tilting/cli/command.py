"""Commands made from configs: options, help and YAML keys are the config's declared fields, and the body gets a typed config.

    @takes(GenerateConfig)
    def generate(config: GenerateConfig, call: Call) -> None: ...

Options of the command line override those of ``--config``. Options that neither gives stay unset: defaults are filled in by
resolving the config, and nowhere else.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.core import TyperCommand

from tilting.config.base import BaseConfig
from tilting.config.prompts import KINDS
from tilting.config.settings import parse_setting
from tilting.config.yaml_file import read_yaml
from tilting.declare import FORMER, Field, Registry
from tilting.errors import TiltingError
from tilting.models.names import MODELS
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS
from tilting.rewards.declaration import REWARDS
from tilting.runs.overwrite import overwriting

Config = TypeVar("Config", bound=BaseConfig)


@dataclass(frozen=True)
class Command:
    """A command of ``tilting``.

    Attributes:
        name: of the command.
        run: a typer command, such as `takes` makes, or a typer app of several.
        resumes: whether the same command line resumes an interrupted run.
    """

    name: str
    run: Any
    resumes: bool = False


COMMANDS: Registry[Command] = Registry("command", "tilting.commands")
"""Commands by name, in the order of ``--help``."""


@dataclass(frozen=True)
class Call:
    """How a command was called, and how it prints.

    Attributes:
        words: the whole command line, which a manifest records.
        quiet: print nothing.
        json: print the summary as JSON.
    """

    words: list[str]
    quiet: bool = False
    json: bool = False

    def warn(self, unused: Sequence[str]) -> None:
        """Warn about options and settings that change nothing in this run; its manifest records them too."""
        if unused and not self.quiet:
            print(f"tilting: warning: {', '.join(unused)} changes nothing here", file=sys.stderr)

    def answer(self, summary: object, *lines: str) -> None:
        """Print a summary as JSON, or as the given lines, or nothing (quiet, or not rank 0)."""
        if not summary or os.environ.get("RANK", "0") != "0":
            return
        said = [json.dumps(summary, ensure_ascii=False)] if self.json else [] if self.quiet else lines
        try:
            for line in said:
                typer.echo(line)
        except (OSError, ValueError) as error:
            closed = getattr(error, "errno", None) == errno.EBADF or getattr(sys.stdout, "closed", True)
            if not closed:
                raise
            print("tilting: warning: the run is whole; its code has closed the standard output", file=sys.stderr)


def takes(
    config: type[Config], writes: bool = True, overwrites: bool | None = None
) -> Callable[[Callable[[Config, Call], None]], Any]:
    """Decorate a function of a config and a `Call` to make it a typer command.

    Args:
        config: the class whose declared fields are the options.
        writes: whether the command writes into ``--out``, which must then be given.
        overwrites: whether it has ``--overwrite``; default as ``writes``.
    """

    def decorate(body: Callable[[Config, Call], None]) -> Callable[..., None]:
        options = config.options()

        def command(**given: Any) -> None:
            context = given.pop("context")
            call = Call(["tilting", *context.obj], bool(given["quiet"]), bool(given["as_json"]))
            FORMER.clear()
            asked, call = _asked(options, given, call)
            resolved = config.resolve(asked)
            if not call.quiet:
                for line in FORMER:
                    print(f"tilting: warning: {line}", file=sys.stderr)
            if given["print_config"]:
                return typer.echo(resolved.yaml(), nl=False)
            if writes and getattr(resolved, "out", None) is None:
                raise TiltingError("say where to write: --out DIR")
            call.warn(getattr(resolved, "unused", ()))
            if given.get("overwrite") and getattr(resolved, "out", None):
                with overwriting(str(resolved.out), lambda asked: not sys.stdin.isatty() or typer.confirm(asked, err=True)):  # type: ignore[attr-defined]
                    return body(resolved, call)
            return body(resolved, call)

        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for one in options.values():
            parameters += _parameters(one)
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in {
                **SWITCHES,
                **(OVERWRITE if (writes if overwrites is None else overwrites) else {}),
            }.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__name__, command.__doc__ = body.__name__, body.__doc__
        command.config = config  # type: ignore[attr-defined]
        return command

    return decorate


SWITCHES: dict[str, Any] = {
    "config": Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="Options from YAML; the command line wins.", show_default=False),
    ],
    "print_config": Annotated[
        bool | None, typer.Option("--print-config", help="Print the resolved YAML and stop.", show_default=False)
    ],
    "quiet": Annotated[bool | None, typer.Option("--quiet", help="No progress and no summary.", show_default=False)],
    "as_json": Annotated[bool | None, typer.Option("--json", help="Print the summary as JSON.", show_default=False)],
}
"""Options of every command besides its own."""
OVERWRITE: dict[str, Any] = {
    "overwrite": Annotated[
        bool | None, typer.Option("--overwrite", help="Replace what --out holds; asked on a terminal.", show_default=False)
    ]
}
"""Option of commands that write into a folder."""


class Once(TyperCommand):
    """A command that refuses an option given twice, whose first value would otherwise be dropped silently."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # shell completion
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for name, count in Counter(p.opts[0] for p in order if p.param_type_name == "option" and not p.multiple).items():
                if count > 1:
                    raise TiltingError(f"{name} is given twice: give it once")
        return super().parse_args(ctx, args)


def _parameters(one: Field) -> list[inspect.Parameter]:
    """The parameters of a field: its option with former names, or its positional arguments (and --prompts)."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    if one.given.file:
        return []
    if one.given.positional:
        words = typer.Argument(metavar=one.given.positional, help=one.about, show_default=False)
        found = [inspect.Parameter(one.name, keyword, default=None, annotation=Annotated[_given_as(one.hint) | None, words])]
        if one.option == "prompts":
            told = f"Prompts: {', '.join(KINDS)}."
            file = typer.Option("--prompts", metavar="FILE", help=told, show_default=False)
            found.append(inspect.Parameter("prompts_file", keyword, default=None, annotation=Annotated[str | None, file]))
        return found
    found = []
    for name in (one.option, *one.aliases):
        former = name != one.option
        short = [f"-{one.given.letter}"] if one.given.letter and not former else []
        option = typer.Option(
            f"--{name}",
            *short,
            metavar=one.metavar or None,
            help=one.help,
            show_default=False,
            hidden=former,
            autocompletion=_completing(one),
        )
        parameter = name.replace("-", "_") if former else one.name
        found.append(
            inspect.Parameter(parameter, keyword, default=None, annotation=Annotated[_given_as(one.hint) | None, option])
        )
    return found


NAMES: dict[str, Any] = {"method": METHODS, "objective": OBJECTIVES, "reward": REWARDS, "judge": REWARDS, "model": MODELS}
"""Registries of these options' values, for shell completion."""


def _completing(one: Field) -> Callable[[str], list[str]] | None:
    """Shell completion of an option's value: its choices, or names of parts; None if any value is allowed."""
    known = one.choices or NAMES.get(one.option, ())
    return (lambda incomplete: [str(name) for name in known if str(name).startswith(incomplete)]) if known else None


def _given_as(hint: Any) -> Any:
    """The type that typer parses an option as; comma-separated numbers are text."""
    plain = next((part for part in get_args(hint) if part is not type(None)), hint) if type(None) in get_args(hint) else hint
    if get_origin(plain) is tuple:
        first = get_args(plain)[0]
        return list[str] if first is str or get_origin(first) is tuple else str
    return plain if plain in (int, float, bool) else str


def _asked(options: Mapping[str, Field], given: Mapping[str, Any], call: Call) -> tuple[dict[str, Any], Call]:
    """Merge the options of the YAML file and of the command line, which wins."""
    former = [alias for one in options.values() for alias in one.aliases]
    asked = read_yaml(given["config"], (*options, *former)) if given["config"] is not None else {}
    for name, one in options.items():
        value = given.get(one.name)
        if one.given.positional and "prompts_file" in given and name == "prompts":
            file = given["prompts_file"]
            if value and file is not None:
                raise TiltingError("prompts are given both as words and by --prompts: give one of them")
            value = file if file is not None else value
            if value not in (None, (), []):
                asked.pop("metadata", None)  # of the YAML file's own prompts
        if name == "set":
            settings = list(map(parse_setting, value or ()))
            twice = next((key for i, (key, _) in enumerate(settings) if key in dict(settings[:i])), None)
            if twice is not None:
                raise TiltingError(f"--set {twice} is given twice: give it once")
            asked["set"] = {**(asked.get("set") or {}), **dict(settings)}
        elif value not in (None, (), []):
            asked[name] = value
        for alias in one.aliases:
            if given[alias.replace("-", "_")] not in (None, (), []):
                if value not in (None, (), []) and not one.repeats:
                    raise TiltingError(f"--{name} is given twice: give it once")
                asked[alias] = given[alias.replace("-", "_")]
    quiet, json_ = call.quiet or bool(asked.pop("quiet", False)), call.json or bool(asked.pop("json", False))
    return asked, Call(call.words, quiet, json_)
