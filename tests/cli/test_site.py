"""The site: links lead somewhere, every page has a place, commands and sentences are those of the program, notebooks run."""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
import yaml
from typer.testing import CliRunner

import tilting
from cli.test_docs import script
from support.paths import ROOT
from tilting.cli import app, main
from tilting.declare import declared
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS
from tilting.rewards.declaration import REWARDS

DOCS = ROOT / "docs"
site = script(DOCS / "site.py")
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def made():
    """Every page by its place."""
    return site.contents()


def places(entries):
    for one in entries:
        for inner in one.values() if isinstance(one, dict) else [one]:
            yield from places(inner) if isinstance(inner, list) else [inner]


def test_every_page_has_its_place_once_and_every_part_a_page(made):
    order = list(places(site.order(made)))
    assert Counter(order) == Counter(list(made))
    for kind, registry in (("methods", METHODS), ("objectives", OBJECTIVES), ("rewards", REWARDS)):
        for name, part in registry.items():
            page = made[f"{kind}/{name}.md"]
            assert page.lstrip().startswith(f"# {name}\n") and "## codex\n" not in page
            assert kind == "rewards" or all(f"`{name}.{field}`" in page for field in declared(part))


def test_a_reward_that_needs_nothing_has_its_picture(made):
    told = json.loads((DOCS / "rewards.json").read_text())
    assert list(told) == list(site.SEEN)
    for name, one in REWARDS.items():
        needs = one.sources or one.extra or one.together or (one.argument and one.argument.required and one.argument.files)
        assert (name in told) == (not needs and name != "http"), name
        assert (f"../pictures/reward-{name}.png" in made[f"rewards/{name}.md"]) == (name in told)
        assert name not in told or (DOCS / "pictures" / f"reward-{name}.png").is_file()


def test_a_link_goes_with_its_page(tmp_path):
    text = "[a](methods.md#codex) [b](README.md) [c](../src/tilting/cost.py) [d](models.md#x) [g](#here)\n"
    text += "```\n[f](methods.md)\n```"
    told = site.moved(text, DOCS / "codex-table1" / ".." / "start.md", "guides/start.md")
    assert told.startswith("[a](../methods/codex.md) [b](../numbers.md) c [d](../models.md#x) [g](#here)")
    assert told.endswith("```\n[f](methods.md)\n```")


def test_tables_keep_an_interval_on_one_line_and_have_minus_signs(made):
    told = "| a | -0.10 [−1, 0.5] | 0.1 / -2 | a, b [1, x] |\nbefore [0, 1] - 2 / 3"
    kept = "| a | −0.10 [−1,\u00a00.5] | 0.1\u00a0/ −2 | a, b [1, x] |\nbefore [0, 1] - 2 / 3"
    assert site.tabled(told) == kept
    rows = [line for page in made.values() for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 1000 and not [line for line in rows if re.search(r"\d, [−\d.]+\]| -\d[\d.]* \|", line)]


def test_the_first_page_says_what_the_library_does(made):
    assert "steers diffusion models with rewards" in made["index.md"].split("```")[0]


def test_a_long_command_is_broken_before_its_options(made):
    said = 'tilting compare "a fox" "a cat" --reward warm.py:warm --methods base,bon,codex --steps 25 --images 2 -o hour/warm'
    lines = site.folded(f"# short\ncat > a.py <<'END'\n{'x' * 99} --y\nEND\n{said} \\\n    --seed 1").splitlines()
    assert lines[:4] == ["# short", "cat > a.py <<'END'", f"{'x' * 99} --y", "END"] and len(lines) == 6
    assert all(len(line) <= site.WIDE for line in lines[4:]) and lines[5].startswith("    -")
    assert shlex.split(" ".join(lines[4:]).replace("\\ ", "")) == shlex.split(f"{said} --seed 1")
    assert "--reward 'symmetry:lr'" in made["rewards/symmetry.md"]  # one that runs, not what stands for several


@pytest.mark.slow
@pytest.mark.skipif(find_spec("zensical") is None or find_spec("mkdocstrings") is None, reason="tilting[docs] is not installed")
def test_zensical_builds_it_and_finds_no_link_that_leads_nowhere(tmp_path):
    site.write(tmp_path)
    words = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "zensical.toml"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert "tilting.generation.api.generate" in pages["api/index.html"] and "methods/codex/index.html" in pages
    fetched = {one for page in pages.values() for one in re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))', page)}
    assert not fetched


def test_how_to_choose_is_what_the_rows_of_the_pages_say():
    assert (DOCS / "choose.md").read_text() == site.choose()
    for choice in site.CHOICES:  # nobody of the page is better for as much
        best = site.chosen(choice)
        page = DOCS / choice["page"]
        for row in site.rows_of(page / "table.md" if page.is_dir() else page.with_suffix(".md")):
            cost = next((site.value(row[key]) for key in row if key.startswith("evaluations")), None)
            score = site.value(row[choice["score"]])
            name = row.get("row") or row["method"]
            if (
                score is not None
                and cost is not None
                and cost <= choice["most"]
                and not name.startswith(("base", "floor", "exact"))
            ):
                sign = -1 if choice.get("least") else 1
                assert sign * score <= sign * site.value(best[choice["score"]]), name


def test_the_rows_that_the_lists_quote_are_those_of_the_pages():
    assert (ROOT / "src/tilting/assets/measured.json").read_text(encoding="utf-8") == site.rows()
    told = [row["what"] for row in site.quoted() if (row["page"], row["row"]) == ("field-methods", "rbf")]
    assert told == ["clip (raw cosine)", "style (log p of noto, nats)", "jpeg (- kilobytes)"]  # a page's later tables too


def test_rows_are_read_as_they_stand():
    (row,) = [row for row in site.rows_of(DOCS / "codex-table1" / "table.md") if row["row"] == "code-4"]
    assert site.value(row["reward - base"]) == 2.77 and site.value(row["judge (log p)"]) == -0.689
    assert site.value("–") is None and site.value("1.1e+03") == 1100.0
    assert [site.part_of(name) for name in ("codex-4-greedy", "draft-lv-free", "das N 4", "floor", "noisy-5")] == [
        *("codex", "draft-lv", "das"),
        None,
        None,
    ]


def commands(page):
    """The commands of a page, of each block."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        text = re.sub(r"<<'?(\w+)'?.*?^\1$", "", block, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
        yield [shlex.split(line, comments=True) for line in text.splitlines() if shlex.split(line, comments=True)]


@pytest.mark.parametrize("name", site.WALKS)
def test_the_page_of_a_walk_says_what_its_script_runs(name, tmp_path, made):
    asked = {**os.environ, "TILTING": "echo tilting"}
    words = ["sh", str(ROOT / "examples" / f"{name}.sh")]
    done = subprocess.run(words, cwd=tmp_path, env=asked, capture_output=True, text=True, check=True)
    page = tmp_path / "page.md"
    page.write_text(made[f"walks/{name}.md"])
    told = [words for block in commands(page) for words in block]
    assert [" ".join(words) for words in told if words[0] == "tilting"] == done.stdout.splitlines()
    assert [words for words in told if words[0] not in ("tilting", "cat")] == []
    for file in tmp_path.rglob("*.py"):
        assert f"cat > {file.relative_to(tmp_path)} <<'END'\n{file.read_text()}END\n" in page.read_text()


def known_words(command, words):
    """The options of a command that are not there."""
    at, context = app(), None
    del context
    from typer.main import get_command

    group = get_command(at)
    while words and words[0] in getattr(group, "commands", {}):
        group, words = group.commands[words[0]], words[1:]
    options = {name for one in group.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    return [word for word in words if word.startswith("-") and len(word) > 1 and word.partition("=")[0] not in options]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_command_of_a_page_has_the_options_that_it_says(page):
    for block in commands(page):
        for words in block:
            words = [*words[words.index("tilting") + 1 :]] if "tilting" in words else []
            if page.stem != "troubleshooting":
                assert known_words(app, words) == [], words


REFUSALS = re.compile(r"^```sh\n(.*?)^```\n\n> (.*?)$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("said", [sentence for _, sentence in REFUSALS.findall((DOCS / "troubleshooting.md").read_text())])
def test_a_refusal_of_the_page_is_what_its_command_says(said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (lines,) = [lines for lines, sentence in REFUSALS.findall((DOCS / "troubleshooting.md").read_text()) if sentence == said]
    *before, last = [shlex.split(line)[1:] for line in lines.splitlines()]
    for words in before:
        assert main(words) == 0
    capsys.readouterr()
    assert main(last) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"tilting: {said}"


@pytest.mark.parametrize(
    "page", [page for page in sorted(DOCS.glob("*.md")) if "```pycon" in page.read_text()], ids=lambda page: page.stem
)
def test_examples_of_a_page_give_what_it_says(page):
    parts = re.findall(r"^```pycon\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(parts), {}, page.name, str(page), 0)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["practitioner", "researcher", "scientist"])
def test_a_notebook_runs(name, monkeypatch, capsys):
    """Cell by cell in one namespace, as a kernel has it; what a cell ends with is shown as a notebook shows it."""
    monkeypatch.setenv("SMALL", "1")
    told = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())
    assert told["nbformat"] == 4 and told["cells"][0]["source"][0].startswith("# ")
    space, shown = {"__name__": "__main__"}, []
    for cell in told["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, name, "exec"), space)
            value = None if last is None else eval(compile(last, name, "eval"), space)
            shown += [] if value is None else [value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)]
    assert len(shown) >= 3 and any("<" in one for one in shown)


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_config_of_the_examples_is_taken(file, capsys):
    words = shlex.split(file.read_text().splitlines()[0].removeprefix("# tilting"))
    words[words.index("--config") + 1] = str(file)
    assert main([*words, "--print-config"]) == 0
    told, asked = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(file.read_text())
    assert all(told[key] == value for key, value in asked.items() if key not in ("set", "methods"))


def test_the_citation_names_what_is_there():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert told["version"] == tilting.__version__ and told["license"] == "Apache-2.0" and told["cff-version"] == "1.2.0"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tilting gen", {"generate"}),
        ("tilting generate x --method cod", {"code", "codex"}),
        ("tilting generate x --method codex --sde c", {"cps"}),
        ("tilting finetune x --objective draft-l", {"draft-lv"}),
        ("tilting generate x --reward jp", {"jpeg"}),
    ],
)
def test_a_shell_completes_names(words, offered):
    asked = {"_TILTING_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = CliRunner().invoke(app(), env=asked, prog_name="tilting")
    assert offered <= set(done.output.split()), done.output
