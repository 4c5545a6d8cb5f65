"""`tilting methods`, `objectives`, `rewards`, `models`: what there is, told from the presets themselves; and how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from support.paths import ROOT
from tilting.cli import main
from tilting.config.about import about_method
from tilting.config.objectives import defaults
from tilting.cost import cost
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS
from tilting.reports.text import table


@pytest.mark.parametrize("command", ["methods", "objectives", "rewards", "models"])
def test_lists(command, capsys):
    assert main([command]) == 0
    assert {"methods": "codex", "objectives": "draft-lv", "rewards": "jpeg", "models": "pocket"}[
        command
    ] in capsys.readouterr().out
    assert main([command, "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_the_words_of_pocket(capsys):
    from tilting.models.words import load_words, read_prompt

    assert main(["models", "pocket", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    words = load_words()
    styles, colours, also = found.pop("styles"), found.pop("backgrounds"), found.pop("also")
    assert styles == list(words.styles) and colours == list(words.colours)
    assert sorted(name for names in found.values() for name in names) == sorted(words.concepts)
    assert all(read_prompt(words, f"a {name}").concept is not None for name in also)
    assert main(["models", "pocket"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120 and " fox," in shown
    assert main(["models", "pockt"]) == 2
    assert "did you mean 'pocket'" in capsys.readouterr().err


def test_the_table_is_aligned_and_says_what_the_presets_say(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    head = lines[0]
    names = ["method", "paper", "gradient", "eta > 0", "density", "evaluations per image"]
    starts = [head.index(name) for name in names]
    assert starts == sorted(starts)
    rows = lines[1 : lines.index("")]
    assert [row.split()[0] for row in rows] == list(METHODS)
    for row in rows:
        cells = [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert all(row[a - 1] == " " for a in starts[1:])  # a column never runs into the next
        kind = METHODS[cells[0]]
        known = [field.name for field in fields(kind)]
        gradient = "no" if not kind().needs_reward_gradient else "or probes" if "probes" in known else "yes"
        steps = 30 if cells[0] == "sdedit" else 50
        paid = ("at most " if cells[0] == "rbf" else "") + str(cost(kind().build(steps), steps).evaluations)
        yes = {True: "yes", False: "no"}
        assert cells[1:] == [kind.paper, gradient, yes[kind.selects], yes[kind.density], paid]


def test_what_the_table_says_of_a_few(capsys):
    """Facts of the papers, not of our attributes."""
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["zero_order"] for row in rows.values() if row["gradient"])  # issue: black-box rewards with every one
    assert not any(rows[name]["gradient"] for name in ("base", "bon", "code", "svdd", "smc", "fk", "rbf", "prompt"))
    assert all(rows[name]["stochastic"] for name in ("code", "codex", "svdd", "smc", "tds", "das", "fk", "rbf"))
    assert not any(rows[name]["density"] for name in ("codex", "freedom"))  # a correction at the drawn point; repeats
    assert rows["das"]["settings"]["temper"]["published"] == 0.008
    assert rows["codex"]["published_run"] == {"steps": 500, "cfg": 5}
    assert rows["svdd"]["settings"]["tau"]["published"] is None


@pytest.mark.parametrize("name", list(METHODS))
def test_one_method_shows_every_setting(name, capsys):
    assert main(["methods", name]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert METHODS[name].paper in out
    told = [line.split()[0] for line in out.splitlines() if line.startswith(f"{name}.")]
    own = [f.name for f in fields(METHODS[name]) if f.name in vars(METHODS[name]).get("__annotations__", {})]
    shared = [f.name for f in fields(METHODS[name]) if f.name not in own]
    assert told == [f"{name}.{field}" for field in (*own, *shared)]
    assert main(["methods", name, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert {**row, "measured": 0} == json.loads(json.dumps({**about_method(name), "measured": 0}))
    for field in fields(METHODS[name]):
        known = row["settings"][field.name]
        assert known["about"], f"{name}.{field.name} is not explained in its docstring"
        default = known["default"]
        assert (tuple(default) if isinstance(default, list) else default) == field.default


@pytest.mark.parametrize(
    ("words", "page", "parts"),
    [
        (
            ("methods", "dps"),
            "field-methods",
            ("clip (raw cosine) ", " over base", "judge - base ", " 100 evaluations an image, part"),
        ),
        (("objectives", "draft-lv"), "draft-fig3", ("style, train (log p of noto, nats) ", "5520 evaluations of training")),
    ],
)
def test_one_part_quotes_what_was_measured_of_it(words, page, parts, capsys):
    """With unit, budget and the gain over base, as the page has them."""
    assert main([*words]) == 0
    told = " ".join(capsys.readouterr().out.split()).partition("measured on pocket")[2]
    row = next(one for one in (ROOT / "docs" / page / "table.md").read_text().splitlines() if one.startswith(f"| {words[1]} "))
    assert all(part in told for part in (page, *parts)) and any(cell in told for cell in row.split(" | ") if " [" in cell)
    assert main([*words, "--json"]) == 0
    assert {one["part"] for one in json.loads(capsys.readouterr().out)["measured"]} == {words[1]}
    assert main(["methods", "base"]) == 0 and "measured on pocket" not in capsys.readouterr().out


def test_values_are_shown_as_set_takes_them(capsys):
    """Each default that is printed goes back through --set and changes nothing."""
    main(["generate", "a fox", "--method", "codex", "--print-config"])
    plain = capsys.readouterr().out
    words = []
    main(["methods", "codex"])
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("codex."):
            name, value = line.split()[:2]
            words += ["--set", f"{name}={value}"]
    assert len(words) == 2 * len(fields(METHODS["codex"]))
    assert main(["generate", "a fox", "--method", "codex", "--print-config", *words]) == 0
    assert capsys.readouterr().out == plain


def test_the_objectives_are_told_from_their_own_source(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["objectives"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 120
    told = [line.split()[0] for line in lines[1 : lines.index("")] if not line.startswith(" ")]
    assert told == list(OBJECTIVES)
    assert main(["objectives", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for name, row in rows.items():
        assert row["paper"] and row["paper"].partition(";")[0] in out and row["about"]
        assert (row["gradient"] == "none") == (not row["differentiable"])
        for field, known in row["settings"].items():
            assert known["about"], f"{name}.{field} is not explained in the docstring of its class"
            assert f"{field}=" in out
    of_a_density = "ddpo dpok grpo mixgrpo grpo-fast grpo-guard flow-dppo pref-grpo adjoint"
    assert [name for name, row in rows.items() if row["density"]] == of_a_density.split()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_one_objective_shows_settings_that_change_nothing(name, capsys):
    assert main(["objectives", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    shown = [line.split()[:2] for line in lines if line.startswith(f"{name}.")]
    assert [key for key, _ in shown] == [f"{name}.{field}" for field in defaults(name)]
    plain = ["finetune", "a fox", "--objective", name, "--print-config"]
    assert main(plain) == 0
    unset = capsys.readouterr().out
    assert main([*plain, *(word for key, value in shown for word in ("--set", f"{key}={value}"))]) == 0
    assert capsys.readouterr().out == unset


def test_an_unknown_objective_is_named_with_the_nearest(capsys):
    assert main(["objectives", "draft-vl"]) == 2
    assert capsys.readouterr().err == "tilting: there is no objective 'draft-vl'; did you mean 'draft-lv'?\n"


def test_an_unknown_method_is_named_with_the_nearest(capsys):
    assert main(["methods", "codx"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "tilting: there is no method 'codx'; did you mean 'codex'?\n"


def test_help_lists_and_refusals_import_no_network_library():
    code = (
        "import sys\nfrom tilting.cli import main\n"
        "assert main(['--help']) == main(['rewards']) == main(['models']) == main(['--version']) == 0\n"
        "assert main(['compare', '--help']) == 0\n"
        "assert main(['methods', 'codx']) == 2\n"
        "assert main(['objectives', 'ddpoo']) == 2 and main(['finetune', '--help']) == main(['doctor', '--help']) == 0\n"
        "assert main(['finetune', 'a fox', '--print-config']) == 0\n"
        "assert main(['generate', 'a fox', '--method', 'codex', '--reward', 'jpeg']) == 2\n"
        "assert main(['compare', 'a fox', '--methods', 'base,codex', '--reward', 'jpeg', '--out', 'o']) == 2\n"
        "assert main(['generate', 'a fox', '--print-config']) == main(['compare', 'a fox', '--print-config']) == 0\n"
        "import tilting\nassert {'generate', 'presets', 'rewards'} <= set(dir(tilting))\n"
        "assert main(['studio', '--help']) == 0 and main(['studio', '--host', '0.0.0.0']) == 2\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'gradio'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = (  # which count what a method or an objective costs by running it, on stubs
        "import sys\nfrom tilting.cli import main\nassert main(['methods']) == main(['methods', 'codex']) == 0\n"
        "assert main(['objectives']) == main(['objectives', 'ddpo']) == 0\n"
        "heavy = {'diffusers', 'transformers', 'PIL'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_zero_of_the_command_line_is_given_and_wins_over_the_yaml(tmp_path, capsys):
    yaml = tmp_path / "c.yaml"
    yaml.write_text("prompts: [a fox]\nsteps: 7\nseed: 3\neta: 0.5\n")
    assert main(["generate", "--config", str(yaml), "--seed", "0", "--eta", "0", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{line}\n" in shown for line in ("steps: 7", "seed: 0", "eta: 0.0"))


@pytest.mark.parametrize("words", ["rewards", "models", "recipe", "methods codex", "rewards clip"])
def test_lists_fit_a_narrow_terminal_and_lose_no_word(words, capsys, monkeypatch):
    told = {}
    for wide in ("80", "120"):
        monkeypatch.setenv("COLUMNS", wide)
        assert main(words.split()) == 0
        told[wide] = capsys.readouterr().out
        lines = [line for line in told[wide].splitlines() if words != "methods codex" or line[:4].strip()]
        assert max(map(len, lines)) <= int(wide)  # but for pseudo-code, which keeps its lines
    assert sorted(told["80"].split()) == sorted(told["120"].split())


def test_no_command_is_described_by_half_a_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for group in ([], ["condition"], ["lora"]):
        assert main([*group, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_a_table_of_numbers_that_is_wider_than_the_terminal_goes_on_below_itself(monkeypatch):
    rows = [["name", *(f"column {i}" for i in range(9))], ["x", *map(str, range(9))]]
    monkeypatch.setenv("COLUMNS", "40")
    assert table(rows) == [
        *("name  column 0  column 1  column 2", "x            0         1         2", ""),
        *("name  column 3  column 4  column 5", "x            3         4         5", ""),
        *("name  column 6  column 7  column 8", "x            6         7         8"),
    ]
    monkeypatch.setenv("COLUMNS", "120")
    assert len(table(rows)) == 2
