"""What a command was asked: its own signature names every option once, and typer's context holds what was given of them.

The options of ``--config`` come first and those of the command line win; what neither gives is not there at all, so that the
defaults stand in one place, where a config is resolved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import typer

from tilting.config.settings import parse_setting
from tilting.config.yaml_file import read_yaml
from tilting.errors import TiltingError


class Resolved(Protocol):
    """What a config has."""

    @property
    def out(self) -> str | None: ...

    def yaml(self) -> str: ...


@dataclass(frozen=True)
class Request:
    """A command's options, and how it answers.

    Attributes:
        options: by option name, with hyphens; only those that are given.
        words: the whole command line, which a manifest records.
        print_config: whether the config is only to be printed.
    """

    options: dict[str, Any]
    words: list[str]
    print_config: bool = False

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be said."""
        return bool(self.options.get("quiet"))

    @property
    def json(self) -> bool:
        """Whether the summary is to be JSON."""
        return bool(self.options.get("json"))

    @classmethod
    def of(cls, context: typer.Context, known: Sequence[str], **instead: Any) -> Request:
        """Read a command's request.

        Args:
            context: of the command; its parameters are named as their options, but for ``prompts_file`` (``--prompts``),
                ``settings`` (``--set``), and ``as_json``.
            known: the options that a YAML file may hold.
            instead: values that replace a parameter's own, None to leave it out.

        Raises:
            TiltingError: for a YAML file that cannot be read, prompts given twice, or a setting without a value.
        """
        given = {**context.params, **instead}
        file, printed = given.pop("config"), given.pop("print_config", False)
        options = read_yaml(file, known) if file is not None else {}
        given["json"] = given.pop("as_json")
        if "prompts_file" in given:
            given["prompts"] = prompts_of(given["prompts"], given.pop("prompts_file"))
        settings = given.pop("settings", None) or ()
        options |= {name.replace("_", "-"): value for name, value in given.items() if value not in (None, (), [])}
        if "settings" in context.params:
            options["set"] = {**(options.get("set") or {}), **dict(map(parse_setting, settings))}
        return cls(options, ["tilting", *context.obj], printed)

    def only_prints(self, config: Resolved, writes: bool = True) -> bool:
        """Whether the config was only to be printed, which is done. Raises TiltingError where a command that ``writes`` has no
        folder to write."""
        if self.print_config:
            typer.echo(config.yaml(), nl=False)
        elif writes and config.out is None:
            raise TiltingError("say where to write: --out DIR")
        return self.print_config

    def tell(self, unused: Sequence[str]) -> None:
        """Say which options and settings change nothing in this run; its manifest records them too."""
        if unused and not self.quiet:
            print(f"tilting: warning: {', '.join(unused)} changes nothing here", file=sys.stderr)

    def answer(self, summary: object, *lines: str) -> None:
        """Print a summary as JSON, or the lines for people, or nothing: of several processes the first one speaks."""
        if not summary or os.environ.get("RANK", "0") != "0":
            return
        if self.json:
            typer.echo(json.dumps(summary, ensure_ascii=False))
        elif not self.quiet:
            for line in lines:
                typer.echo(line)


def prompts_of(words: Sequence[str] | None, file: str | None) -> list[str] | str | None:
    """Prompts as words or as a file, None if there are neither. Raises TiltingError if both are given."""
    if words and file is not None:
        raise TiltingError("prompts are given both as words and by --prompts: give one of them")
    return file if file is not None else list(words or ()) or None
