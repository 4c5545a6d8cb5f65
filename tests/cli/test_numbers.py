"""Every number of a page has its command, and every command that a page names is there as it is said: parsed, never run."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec

import pytest
from typer import BadParameter
from typer.main import get_command

from support.paths import ROOT
from tilting.cli import app
from tilting.config.recipe import RECIPES

WRITTEN = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "src/tilting/assets/pocket/README.md",
    ROOT / "tests/mutation/README.md",
]
PAGES = [*WRITTEN, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DECIMAL = re.compile(r"(?<![\w./-])[+−-]?\d*\.\d+(?![\w.])")
PROGRAMS = "tilting|python|make|sh|accelerate"
SPAN = re.compile(rf"`((?:{PROGRAMS}) [^`]+|(?:tests|benchmarks|training)/[\w/]+\.py)`")
LINE = re.compile(rf"^(?:    |\$ )?((?:{PROGRAMS}) .*)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MAKES = re.compile(r"`(?:tilting (?:recipe|methods|objectives)|python|sh|make|tests/)[^`]*`|^    tilting recipe", re.MULTILINE)
"""A command that prints numbers; what only draws what a page shows is none."""
WHOLE = re.compile(r"makes|made by|derives|counts them|prints this|^    tilting recipe", re.MULTILINE | re.IGNORECASE)
"""Where an introduction says so of its command, all numbers of the page are that command's."""
HELD = re.compile(r"\]\((?:\.\./)?(?:[\w-]+/table|mixture-bias|ctrl-theory)\.md")
"""A link to a page of numbers, which has its command."""
DECLARED = {"glossary.md", "composing.md"}
"""What words mean, and examples that `tests/cli/test_site.py` runs."""


USAGE = BadParameter.__mro__[1]
"""What typer's click, which it has within or beside itself, says of words that it does not take."""


def named(page):
    return page.relative_to(ROOT).as_posix()


def spoken(text):
    """The commands of a page: in its words, in blocks of sh, and in indented lines."""
    sh = "\n".join(block for block in FENCE.findall(text) if block.startswith("```sh"))
    plain = FENCE.sub("", text)
    lines = [*LINE.findall(sh.replace("\\\n", " ")), *re.findall(rf"^    ((?:{PROGRAMS}) .*)$", plain, re.MULTILINE)]
    return [*(" ".join(one.split()) for one in SPAN.findall(plain)), *lines]


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_every_number_of_a_page_has_its_command(page):
    """The introduction says by what the whole page is made; or each paragraph and point with a number says by what."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    intro = re.split(r"^## |^\|", text, maxsplit=1, flags=re.MULTILINE)[0]
    if page.name in DECLARED or (MAKES.search(intro) and WHOLE.search(intro)):
        return
    for block in re.split(r"\n\n+|\n(?=- )", text):
        if DECIMAL.search(re.sub(r"`[^`]*`|arXiv:? [\d.]+|SD \d\.\d", "", block)):
            assert MAKES.search(block) or HELD.search(block), block


@pytest.fixture(scope="module")
def command():
    return get_command(app())


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_a_page_is_there(page, command):
    for said in spoken(page.read_text(encoding="utf-8")):
        words = shlex.split(re.sub(r"[\[\]…]|\.\.\.", " ", said), comments=True)
        assert (wrong := what_is_wrong(command, words)) is None, f"{said}: {wrong}"


def what_is_wrong(command, words):
    """Why a command cannot be run as it is written; None where it can. Names in capitals stand for what people choose."""
    program, *rest = words
    if program == "accelerate":
        program, *rest = rest[rest.index("-m") :] if "-m" in rest else ("python", *rest)
        program, rest = ("python", [program, *rest]) if program == "-m" else (program, rest)
    if program.endswith(".py"):
        program, rest = "python", words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {one}" for one in rest if "=" not in one and one not in targets), None)
    if program == "python" and rest[0] == "-m" and rest[1] == "tilting":
        program, rest = "tilting", rest[2:]
    if program == "tilting":
        return unparsed(command, rest)
    if rest[0] == "-m":
        return None if find_spec(rest[1]) else f"no module {rest[1]}"
    if not (file := ROOT / rest[0]).is_file():
        return f"no file {rest[0]}"
    text = file.read_text(encoding="utf-8")
    return next((f"no option {one}" for one in rest[1:] if one.startswith("--") and one not in text), None)


def unparsed(command, words):
    """What the command line itself says of words that it does not take."""
    context = command.context_class(command)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return None if words[0].isupper() else f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
        context = command.context_class(command, parent=context)
    try:
        command.make_parser(context).parse_args(list(words))
    except USAGE as error:
        return error.format_message()
    if command.name == "recipe":
        return next((f"no recipe {one}" for one in words[:1] if one.islower() and one not in RECIPES), None)
    return None


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("tilting generate x --stepz 3", "--stepz"),
        ("tilting generate x --steps", "requires an argument"),
        ("tilting draw x", "no command draw"),
        ("tilting recipe draft-fig99 --out x", "no recipe"),
        ("make dome", "no target dome"),
        ("python benchmarks/none.py", "no file"),
        ("python benchmarks/real_size.py --none", "no option --none"),
        ("tests/cli/none.py", "no file"),
        ("accelerate launch --num_processes 2 -m tilting generate x --stepz 3", "--stepz"),
    ],
)
def test_what_is_not_there_is_found(said, wrong, command):
    assert wrong in (what_is_wrong(command, shlex.split(said)) or "")
