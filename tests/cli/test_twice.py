"""What is said twice, and what a line is: nothing of either is dropped or cut in silence."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from tilting.cli import app, main
from tilting.config.prompts import read_prompts

BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


def single() -> list[tuple[str, Any]]:
    """Every command, and each of its options of one value."""
    found = []

    def walk(words, command):
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{words} {name}".strip(), inner)
            if not hasattr(inner, "commands"):
                options = [p for p in inner.params if p.param_type_name == "option" and not p.multiple]
                found.extend((f"{words} {name}".strip(), option) for option in options)

    walk("", typer.main.get_command(app()))
    return found


@pytest.mark.parametrize(("words", "option"), [pytest.param(words, p, id=f"{words}{p.opts[0]}") for words, p in single()])
def test_what_is_wanted_is_not_said_twice(words, option, capsys):
    for name in option.opts:
        first, value = option.opts[0], [] if option.is_flag else ["1"]
        assert main([*words.split(), first, *value, name, *value]) == 2
        assert f"{first} is given twice: give it once" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
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
        ["generate", "a fox", "-o", "a", "--out=b"],
        ["generate", "a fox", "-oa", "-ob"],
        ["generate", "a fox", "--method", "codex", "--set", "codex.tau=1", "--set", "codex.tau=2"],
        ["lora", "scale", "x", "-1", "--out", "a", "-o", "b"],
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
