"""What every command's options hold to, ours and others': documented, checked, alike on the command line, in YAML, Python."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import MISSING, dataclass
from typing import Annotated, Any

import pytest
import typer
import yaml
from annotated_types import Ge
from typing_extensions import Doc

import tilting as tl
from support.outside import write_package
from tilting.cli import app
from tilting.cli.command import COMMANDS
from tilting.config.base import BaseConfig
from tilting.declare import declared
from tilting.errors import TiltingError
from tilting.models import inputs
from tilting.models.placement import SWITCHES

FILE = """
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc

from tilting.cli.command import Call, Command, takes
from tilting.config.base import keywords
from tilting.config.generate import GenerateConfig
from tilting.declare import Alias


@dataclass(frozen=True)
class MyConfig(GenerateConfig):
    copies: Annotated[int, Ge(1), Alias("prints"), Doc("Copies of every picture.")] = 3


@takes(MyConfig, writes=False)
def mine(config: MyConfig, call: Call) -> None:
    "Print pictures."
    call.answer({"copies": config.copies, "steps": config.steps}, str(config.copies))


@keywords(MyConfig, "copies", "steps")
def python(**options):
    return options


COMMAND = Command("mine", mine)
"""


def configs() -> dict[str, type[BaseConfig]]:
    """The config of every command that takes one, by its words."""
    found = {}

    def walk(command: Any, words: str) -> None:
        for name, one in getattr(command, "commands", {}).items():
            walk(one, f"{words} {name}".strip())
        config = getattr(getattr(command, "callback", None), "config", None)
        if config is not None:
            found[words] = config

    walk(typer.main.get_command(app()), "")
    return found


CONFIGS = configs()


def broken(config: type[BaseConfig]) -> list[str]:
    """What a config's options lack."""
    options = config.options()
    bad = [f"{name} says nothing" for name, one in options.items() if not one.about]
    bad += [f"{name} has no default" for name, one in options.items() if one.default is MISSING and not one.given.positional]
    for name, one in options.items():
        unset = name == "set" or one.given.positional or one.default in (MISSING, None, ())
        if not unset and one.check(one.default) != one.default:
            bad.append(f"{name} refuses its default")
    return bad


def test_every_command_that_writes_has_a_config():
    assert set(CONFIGS) >= {"generate", "recipe"}
    assert set(COMMANDS) - {words.split()[0] for words in CONFIGS} <= {"lora", "methods", "objectives", "rewards", "models"}


@pytest.mark.parametrize("words", CONFIGS)
def test_options_are_documented_and_stand_everywhere(words):
    config = CONFIGS[words]
    assert broken(config) == []
    command: Any = typer.main.get_command(app())
    for word in words.split():
        command = command.commands[word]
    shown = {p.name: p for p in command.params if not getattr(p, "hidden", False)}
    said = {name: one for name, one in config.options().items() if not one.given.file}
    for name, one in said.items():
        assert shown[one.name].help == (one.about if one.given.positional else one.help), name
    beside = {"config", "print_config", "quiet", "as_json", "prompts_file", "overwrite"}
    assert set(shown) - beside == {one.name for one in said.values()}


LOADED = {"device", "precision", "long_prompts", "lora", *SWITCHES, "input", *inputs.OPTIONS}
"""Of `tilting.load`; the inputs by the names that the pipeline has for them."""
OBJECTS = {"particles", "settings", "published", "metadata", "model"}
"""Said by a preset or an objective, the prompts, or the model itself."""
FOLDERS = {"out", "split", "reward_device", "format", "only", "trace", "trace_every", "lora_steps", "tracker", "judge", "pairs"}
FOLDERS |= {"checkpoint_every", "keep_every", "sample_every", "sample_images", "early_stop", "skip_bad", "sweep"}
"""Of runs that are written, or their files."""
ELSEWHERE = {
    "condition fit": {"data", "label_by", "bins", "size", "group"},  # images and labels are in memory
    "condition train": {"classifier", "label"},
    "condition sample": {"control", "classifier", "label"},
}
OWN = {"steps", "cfg", "eta", "strengths", "objective", "reward", "method", "label", "prompts", "data"}
"""Whose defaults are the model's, the method's, or said by None."""
FUNCTIONS = ["generate", "finetune", "condition fit", "condition train", "condition sample"]


@pytest.mark.parametrize("words", FUNCTIONS)
def test_a_function_of_python_has_every_option_of_its_command(words):
    """By the same name and default, with the same checks, before anything of a model is looked at; ``compare`` and ``evaluate``
    take all by `resolve`."""
    function, asked = getattr(tl, words.replace(" ", "_")), CONFIGS[words].options()
    takes, known = inspect.signature(function).parameters, {one.name: one for one in asked.values()}
    beside = LOADED | OBJECTS | FOLDERS | ELSEWHERE.get(words, set()) | {"strengths"}
    assert set(known) - set(takes) - beside == set()
    first = [name for name, one in takes.items() if one.default is inspect.Parameter.empty and one.kind is not one.VAR_KEYWORD]
    for name, one in known.items():
        if name not in takes:
            continue
        if name not in OWN and name not in first:
            assert takes[name].default == one.default, name
        if name not in {*first, "reward", "method", "objective", "prompts", "model", "image", "data", "label", "budget"}:
            with pytest.raises(TiltingError, match=one.option):
                function(**dict.fromkeys(first), **{name: object()})


@dataclass(frozen=True)
class Broken(BaseConfig):
    silent: int = 1
    low: Annotated[int, Ge(1), Doc("Not this low.")] = 1


def test_a_broken_declaration_is_found():
    assert broken(Broken) == ["silent says nothing"]
    with pytest.raises(TiltingError, match="low must be at least 1, not 0"):
        declared(Broken)["low"].check(0)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A process in which someone's package is installed: (words) -> (exit code, stdout, stderr)."""
    site = write_package(tmp_path_factory.mktemp("of") / "site", "own_command", FILE, "tilting.commands", "own_command:COMMAND")
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: str, code: str = "") -> tuple[int, str, str]:
        argv = ["-c", code] if code else ["-m", "tilting", *words]
        done = subprocess.run(
            [sys.executable, *argv], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_an_option_from_outside_is_known_everywhere(outside, tmp_path):
    assert "mine" in outside("--help")[1]
    shown = " ".join(outside("mine", "--help")[1].split())
    assert "--copies <int> Copies of every picture. [3]" in shown and "--steps" in shown and "--prints" not in shown
    assert json.loads(outside("mine", "a fox", "--json")[1]) == {"copies": 3, "steps": 50}
    assert json.loads(outside("mine", "a fox", "--copies", "5", "--json")[1])["copies"] == 5
    assert outside("mine", "a fox", "--copies", "0")[::2] == (2, "tilting: copies must be at least 1, not 0\n")
    printed = yaml.safe_load(outside("mine", "a fox", "--copies", "4", "--print-config")[1])
    assert printed["copies"] == 4
    (tmp_path / "c.yaml").write_text("prompts: [a fox]\ncopies: 6\n")
    assert json.loads(outside("mine", "--config", str(tmp_path / "c.yaml"), "--json")[1])["copies"] == 6
    code, out, err = outside("mine", "a fox", "--prints", "7", "--json")
    assert (code, json.loads(out)["copies"]) == (0, 7) and "warning: prints is now copies" in err
    python = "import inspect, own_command as o; print(o.python(copies=2), inspect.signature(o.python))"
    assert outside(code=python)[1:] == ("{'copies': 2} (*, steps: int = 50, copies: int = 3)\n", "")
    wrong = "import own_command as o\ntry: o.python(copy=2)\nexcept ValueError as error: print(error)"
    assert outside(code=wrong)[1] == "there is no option 'copy'; did you mean 'copies'?\n"
