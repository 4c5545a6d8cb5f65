"""What is said twice, and what a line is: nothing of either is dropped or cut in silence."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from tilting.cli import app, main
from tilting.config.prompts import read_prompts

BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


def single() -> list[tuple[str, str]]:
    """Every command that takes a config, and each of its options of one value."""
    found = []

    def walk(words, command):
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{words} {name}".strip(), inner)
        config = getattr(command.callback, "config", None)
        for name, one in config.options().items() if config else ():
            if name == "prompts" or not (one.given.file or one.repeats):
                found.append((words, f"--{name}"))
        found.extend([(words, "--config")] if config else [])

    walk("", typer.main.get_command(app()))
    return found


def click_of(words: str) -> Any:
    """The command itself."""
    command: Any = typer.main.get_command(app())
    for word in words.split():
        command = command.commands[word]
    return command


@pytest.mark.parametrize(("words", "option"), single())
def test_what_is_wanted_is_not_said_twice(words, option, capsys):
    (flag,) = (p.is_flag for p in click_of(words).params if option in p.opts)
    assert main([*words.split(), *([option, option] if flag else [option, "1", f"{option}=2"])]) == 2
    assert f"{option} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("odd", BREAKS)
def test_lines_of_prompts_end_at_newlines_alone(tmp_path, odd, ending):
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"a fox{odd}on a hill{ending}a cat{ending}".encode())
    assert read_prompts(file).texts == (f"a fox{odd}on a hill", "a cat")


def test_what_is_told_by_two_names_or_two_ways_is_told_twice(capsys):
    for words in (
        ["generate", "a fox", "--negative", "x", "--negative-prompt", "y"],
        ["finetune", "a fox", "--learn", "lora", "--learn=negative"],
        ["condition", "fit", "--skip-bad", "--skip-bad"],
    ):
        assert main(words) == 2
        assert "is given twice: give it once" in capsys.readouterr().err


def test_what_repeats_may_be_told_again(capsys):
    words = [
        "generate",
        "a fox",
        "--reward",
        "clip",
        "--reward",
        "jpeg=0.1",
        "--set",
        "base.x=1",
        "--set",
        "base.y=1",
        "--steps",
        "3",
    ]
    assert main([*words, "--print-config"]) == 2
    assert "twice" not in capsys.readouterr().err
    assert main(["generate", "a fox", "--steps", "3", "--out=--steps", "--print-config", "--", "--steps", "--steps"]) == 0
