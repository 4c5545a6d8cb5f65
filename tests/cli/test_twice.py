"""What is said twice, and what a line is: nothing of either is dropped or cut in silence."""

from __future__ import annotations

import pytest
import typer

from tilting.cli import app, main
from tilting.config.prompts import read_prompts

BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


def single() -> list[tuple[str, str]]:
    """Every command that takes a config, and each of its options that say what is wanted."""
    found = []

    def walk(words, command):
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{words} {name}".strip(), inner)
        config = getattr(command.callback, "config", None)
        for name, one in config.options().items() if config else ():
            if one.given.once or name == "prompts":
                found.append((words, f"--{name}"))

    walk("", typer.main.get_command(app()))
    return found


@pytest.mark.parametrize(("words", "option"), single())
def test_what_is_wanted_is_not_said_twice(words, option, capsys):
    command = [*words.split(), option, "1", f"{option}=2"]
    assert main(command) == 2
    assert f"{option} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("odd", BREAKS)
def test_lines_of_prompts_end_at_newlines_alone(tmp_path, odd, ending):
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"a fox{odd}on a hill{ending}a cat{ending}".encode())
    assert read_prompts(file).texts == (f"a fox{odd}on a hill", "a cat")
