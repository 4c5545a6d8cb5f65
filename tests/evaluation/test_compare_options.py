"""`tilting compare` before anything is drawn: what is refused, how options are read; and its numbers where some are unknown."""

from __future__ import annotations

import os

import pytest
import yaml

from support.commands import refused
from tilting.cli import main
from tilting.config.compare import CompareConfig
from tilting.evaluation.compare import measure

USUAL = ("--steps", "4", "--images", "2", "--quiet")
BRIGHT = "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"
pytestmark = pytest.mark.usefixtures("no_bars")


BAD = [
    (("--methods", "base,codx"), "did you mean 'codex'"),
    (("--methods", "code,base,code"), "'code' is named twice"),
    (("--methods", ","), "no method is named"),
    (("--methods", "base,codex:strenght=0.4"), "has no 'strenght'; did you mean 'strength'"),
    (("--methods", "base,codex:strength"), "must be METHOD:FIELD=VALUE"),
    (("--methods", "base,codex:block=0"), "codex:block=0: codex.block must be at least 1"),
    (("--methods", "code:N=2,code:N=2"), "'code:N=2' is named twice"),
    (("--methods", "base,code:N/2"), "must be METHOD:FIELD=VALUE"),
    (("--methods", "base,lora:nowhere"), "there is no LoRA at 'nowhere'"),
    (("--methods", "base,control:nowhere"), "a control is control:DIR:LABEL=VALUE"),
    (("--methods", "base,control:nowhere:bright=1"), "nowhere"),
    (("--methods", "base,codex:strength=[0.1"), "codex.strength must be"),
    (("--methods", "codex:strength=!!python/object:os.system"), "codex.strength must be"),
    (("--methods", "codex:steps=2026-12-01"), "steps must be"),
    (("--sweep", "codex.strength=0.1,%5"), "codex.strength must be"),
    (("--sweep", "codex.strength=0.1"), "--sweep takes METHOD.FIELD=A,B,..."),
    (("--sweep", "codex.strenght=0.1,0.2"), "did you mean 'strength'"),
    (("--methods", "base,codex", "--reward", "jpeg"), "codex needs a differentiable reward"),
    (("--methods", "base,bon,code", "--eta", "0"), "code selects in blocks"),
    (("--methods", "base,freedom", "--cfg", "1"), "freedom scales its gradient"),
    (("--methods", "base,sdedit"), "sdedit starts from a picture"),
    (("--methods", "code", "--particles", "0"), "particles must be at least 1"),
    (("--methods", "code", "--set", "code.blok=2"), "did you mean 'code.block'"),
    (("--methods", "code", "--batch-size", "0"), "batch-size must be at least 1"),
    (("--method", "code"), "did you mean '--methods'"),
    (("--methods", "base,prompt", "--set", "prompt.templates=x"), "prompt: a prompt template must contain {}"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_what_cannot_work_is_refused_before_anything_is_drawn(words, said, capsys, tmp_path):
    assert said in refused(capsys, "compare", "a fox", *USUAL, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_black_box_function_is_refused_by_the_method_that_climbs(capsys, tmp_path, no_model):
    (tmp_path / "r.py").write_text(BRIGHT + "bright.differentiable = False\n")
    words = ("compare", "a fox", *USUAL, "--reward", f"{tmp_path / 'r.py'}:bright", "--out", str(tmp_path / "out"), "--methods")
    assert "das needs a differentiable reward" in refused(capsys, *words, "base,code,das")
    assert not (tmp_path / "out").exists()


def test_folders_of_others_are_left_alone(capsys, tmp_path, no_model):
    (tmp_path / "metrics.json").write_text('{"runs": []}')
    assert "is not of a comparison" in refused(capsys, "compare", "a fox", *USUAL, "--out", str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"config": {}, "images": []}')
    assert "holds a run of pictures" in refused(capsys, "compare", "a fox", *USUAL, "--out", str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "metrics.json"]
    assert "--out" in refused(capsys, "compare", "a fox", *USUAL)


def test_settings_reach_their_method_and_yaml_reads_back(capsys, tmp_path):
    words = [
        "compare",
        "a fox",
        "--methods",
        "base,code,codex,reno",
        "--set",
        "codex.tau=0.01",
        "--set",
        "svdd.tau=1",
        "--steps",
        "5",
    ]
    words += ["--set", "code.particles=3", "--set", "codex.block=2", "--seed", "9", "--print-config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert config["methods"] == ["base", "code", "codex", "reno"]
    assert (config["set"]["codex.tau"], config["set"]["codex.block"], config["set"]["code.particles"]) == (0.01, 2, 3)
    assert "svdd.tau" not in config["set"]
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["compare", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    (tmp_path / "c.yaml").write_text("prompts: [a fox]\nmethods: code,svdd\nmethod: code\n")
    assert "did you mean 'methods'" in refused(capsys, "compare", "--config", str(tmp_path / "c.yaml"), "--print-config")
    request = CompareConfig.resolve(yaml.safe_load(printed))
    assert [one.particles for one in request.runs] == [None, 3, 4, None]
    assert [one.eta for one in request.runs] == [1, 1, 1, 0]  # reno's own, as in generate
    asked = {"prompts": ["a fox"], "methods": ["base"], "particles": 2, "set": {"code.tau": 1.0}, "strength": 0.5}
    assert CompareConfig.resolve(asked).unused == ("code.tau", "particles", "strength")


def test_columns_have_settings_and_options_of_their_own(tmp_path):
    """A method twice, steps, N and cfg of a column, and a sweep's columns, each in a folder of its own."""
    asked = {
        "prompts": ["a fox"],
        "steps": 6,
        "out": str(tmp_path),
        "set": {"codex.tau": 0.5},
        "methods": "base, codex,codex:strength=0.4+N=2,code:steps=3+cfg=2",
        "sweep": "bon.N=2,4",
    }
    config = CompareConfig.resolve(asked)
    assert config.methods == ("base", "codex", "codex:strength=0.4+N=2", "code:steps=3+cfg=2", "bon:N=2", "bon:N=4")
    runs = dict(zip(config.methods, config.runs, strict=True))
    own = runs["codex:strength=0.4+N=2"]
    assert dict(own.settings)["codex.strength"] == 0.4 and dict(own.settings)["codex.tau"] == 0.5 and own.particles == 2
    assert dict(runs["codex"].settings)["codex.strength"] == 0.2 and runs["codex"].particles == 4
    assert (runs["code:steps=3+cfg=2"].steps, runs["code:steps=3+cfg=2"].cfg, runs["base"].steps) == (3, 2.0, 6)
    assert [runs[f"bon:N={n}"].particles for n in (2, 4)] == [2, 4]
    assert len({one.out for one in config.runs}) == 6
    again = CompareConfig.resolve({**config.mapping(), "out": str(tmp_path)})
    assert again == config
    assert CompareConfig.resolve({"prompts": ["a fox"], "sweep": "codex.strength=0.1,0.2"}).methods[0] == "base"


def test_what_no_reward_or_judge_knows_is_null():
    """Numbers of runs without a reward, and of a judge that cannot read one of two prompts."""

    def run(method: str, judges: list[float | None]) -> dict:
        images = [
            {"file": f"images/{i:05d}.png", "prompt": f"p{i}", "index": 0, "reward": None, "judge": j}
            for i, j in enumerate(judges)
        ]
        return {
            "images": images,
            "config": {"particles": None},
            "summary": {"evaluations": 8, "decodes": 2, "reward_calls": 0, "seconds": 1.0},
        }

    first, second = measure({"dps": run("dps", [1.0, None]), "bon": run("bon", [3.0, 5.0])})["methods"]
    assert first["reward"] is second["gain"] is second["wins"] is None
    assert first["judge"] == {"mean": 1.0, "sem": None}
    assert second["judge"] == {"mean": 4.0, "sem": 1.0}
    assert second["judge_gain"] == {"mean": 2.0, "low": None, "high": None}  # one pair has no interval


def test_an_equal_reward_is_half_a_win():
    """The same pictures under another name win as often as they lose."""

    def run(*rewards: float) -> dict:
        images = [
            {"file": f"images/{i:05d}.png", "prompt": f"p{i}", "index": 0, "reward": reward, "judge": None}
            for i, reward in enumerate(rewards)
        ]
        costs = {"evaluations": 8, "decodes": 2, "reward_calls": 2, "seconds": 1.0}
        return {"images": images, "config": {"particles": None}, "summary": costs}

    rows = measure({"base": run(1, 2, 3, 4), "same": run(1, 2, 3, 4), "better": run(2, 3, 3, 1)})["methods"]
    assert [row["wins"] for row in rows] == [None, 0.5, 0.625]
