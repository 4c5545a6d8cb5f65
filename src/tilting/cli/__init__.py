"""The command line. Imports neither torch, diffusers nor transformers: wrong options are refused before these are loaded."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tilting.cli.command import COMMANDS, Command, Once
from tilting.cli.compare import compare
from tilting.cli.condition import condition
from tilting.cli.doctor import doctor
from tilting.cli.evaluate import evaluate
from tilting.cli.finetune import finetune
from tilting.cli.generate import generate
from tilting.cli.lists import methods, models, objectives, rewards
from tilting.cli.lora import lora
from tilting.cli.recipe import recipe
from tilting.cli.studio import studio
from tilting.errors import TiltingError, ToldElsewhere, nearest, out_of_memory, refusal_of
from tilting.lazy import hush
from tilting.runs.processes import leave_processes
from tilting.runs.signals import exit_code, signals_handled
from tilting.version import __version__

for _command in (
    Command("generate", generate, resumes=True),
    Command("compare", compare, resumes=True),
    Command("evaluate", evaluate),
    Command("finetune", finetune, resumes=True),
    Command("doctor", doctor),
    Command("lora", lora),
    Command("condition", condition, resumes=True),
    Command("recipe", recipe, resumes=True),
    Command("studio", studio),
    Command("methods", methods),
    Command("objectives", objectives),
    Command("rewards", rewards),
    Command("models", models),
):
    COMMANDS.register(_command)


LONGEST = 300
"""Maximum characters of an error message; the middle of a longer one is cut out."""


class _InOrder(TyperGroup):
    """Lists commands in the registry's order; typer's own puts groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)


@cache
def app() -> typer.Typer:
    """The typer app, with other packages' commands; built on first use, since those packages import this module."""
    made = typer.Typer(
        name="tilting",
        cls=_InOrder,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    made.callback(invoke_without_command=True)(tilting)
    for command in COMMANDS.values():
        if isinstance(command.run, typer.Typer):
            made.add_typer(command.run, name=command.name)
        else:
            made.command(command.name)(command.run)
    _once(made)
    return made


def _once(app: typer.Typer) -> None:
    """Give every command of an app and its groups the class `Once`, other packages' commands too."""
    for command in app.registered_commands:
        command.cls = Once if command.cls in (None, TyperCommand) else command.cls
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _once(group.typer_instance)


def tilting(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Steer diffusion models with rewards: at inference, as a LoRA, or as a new control."""
    if version:
        typer.echo(f"tilting {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command in this process.

    Args:
        argv: the words after ``tilting``; default those of the process.

    Returns:
        The exit code: 0 done, 2 wrong input (one sentence on stderr), 1 our fault (a traceback); 130, 143 or 129
        interrupted by Ctrl-C, SIGTERM or SIGHUP.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    odd = next((i for i, word in enumerate(words) if not _encodes(word)), None)
    if odd is not None:
        return _refuse(f"word {odd + 1} of the command is not valid Unicode text: {words[odd]!a}")
    with signals_handled():
        return _main(words)


def _encodes(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8
        return False
    return True


def _main(words: list[str]) -> int:
    try:
        result = app()(words, prog_name="tilting", standalone_mode=False, obj=words)
        # typer turns Ctrl-C into an exit of 130 by itself, or into Abort, by version.
        return _interrupted(words) if result == 130 else result if isinstance(result, int) else 0
    except ToldElsewhere:
        return 2
    except TiltingError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(words)
    except BrokenPipeError:
        return 0
    except OSError as error:
        message = refusal_of(error)
        if message is None:
            traceback.print_exc()
        return 1 if message is None else _refuse(message)
    except Exception as error:
        # typer's own refusals; it carries a copy of click, or uses click, by version: both format themselves.
        if hasattr(error, "format_message"):
            return _refuse(_grammar(error))
        if (full := out_of_memory(error)) is not None:
            return _refuse(f"{full}: {_smaller(words)}")
        traceback.print_exc()
        return 1


def run() -> None:
    """The console entry point: `main`, with the libraries' progress bars and warnings off."""
    hush()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.showwarning = _tell
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Metal has no kernel for is computed on the CPU
    code = main()
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # closed, by a user's code or by who has read it
        sys.stdout = None
    leave_processes()
    sys.exit(code)


def _tell(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print a warning as one line, without the source line."""
    print("tilting: warning: " + " ".join(str(message).split()), file=sys.stderr)


def _interrupted(words: list[str]) -> int:
    resumes = bool(words) and words[0] in COMMANDS and COMMANDS[words[0]].resumes
    _say(f"tilting: interrupted{'; the same command goes on where it stopped' if resumes else ''}")
    return exit_code()


def _smaller(words: list[str]) -> str:
    """Options of a command that reduce memory."""
    command, takes = words[0] if words else "", "give --memory 12GB, which chooses how to run, or a smaller --batch-size"
    takes = "give --accumulate, --recompute or --offload text" if command in ("finetune", "doctor") else takes
    takes = "give --accumulate, or a smaller --batch-size" if words[:2] == ["condition", "train"] else takes
    resumes = command in COMMANDS and COMMANDS[command].resumes
    return f"{takes}{'; what is finished stays' if resumes else ''}"


def _refuse(message: str) -> int:
    if re.search(r" holds (a|an|training) .*: choose another --out$", message, re.DOTALL):
        message += ", or --overwrite"
    words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    if len(words) > LONGEST:
        words = f"{words[: LONGEST - 100]} ... {words[-95:]}"
    _say(f"tilting: {words}")
    return 2


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # user code has closed stderr
        print(line, file=sys.stderr)


def _grammar(error) -> str:
    """One sentence for an error of the parser."""
    message = error.format_message().strip().rstrip(".")
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    if option is not None and type(error).__name__ == "NoSuchOption":
        known = [o for p in context.command.params for o in p.opts if o.startswith("--")] if context else []
        return f"there is no option {option!r}{nearest(option, known)}"
    command = re.fullmatch(r"No such command '(.*?)'.*", message, re.DOTALL)
    if command:
        known = getattr(getattr(context, "command", None), "commands", COMMANDS)
        return f"there is no command {command[1]!r}{nearest(command[1], known)}"
    kind = re.fullmatch(r"Invalid value for '(.*?)': Input should be a valid (integer|number)\b.*", message, re.DOTALL)
    if kind:
        return f"{kind[1]} must be {'a whole number' if kind[2] == 'integer' else 'a number'}"
    return message[:1].lower() + message[1:]
