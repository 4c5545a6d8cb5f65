"""The same request as a command, as YAML and as Python: each asks for what the page asked for."""

from __future__ import annotations

import shlex

import pytest

from tilting.cli import main
from tilting.config.compare import CompareConfig
from tilting.config.condition_train import TrainConfig
from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.studio.same import command_line, python_of, words_of, yaml_of

ASKED = {
    "plain": ("generate", GenerateConfig, {"prompts": ["a fox"]}),
    "settings": (
        "generate",
        GenerateConfig,
        {
            "prompts": ["a fox, noto style", "--a 'cat'"],
            "reward": ["clip=0.123456789", "color:red=-0.01"],
            "method": "codex",
            "steps": 7,
            "seed": [3, 4],
            "eta": 0.123456789012,
            "negative-prompt": "-",
            "out": "o",
            "set": {"codex.window": [0.5, 0.25], "codex.particles": 2, "codex.tau": 1e-5, "codex.start": "copy"},
        },
    ),
    "flags": (
        "generate",
        GenerateConfig,
        {"prompts": ["a fox"], "published": True, "method": "code", "trace": True, "only": ["0:0"]},
    ),
    "compare": (
        "compare",
        CompareConfig,
        {"prompts": ["a"], "methods": ["base", "codex:strength=0.4+particles=2"], "steps": 3},
    ),
    "finetune": (
        "finetune",
        FinetuneConfig,
        {
            "prompts": ["a"],
            "objective": "ddpo",
            "target-modules": ["attn2"],
            "batch-size": 8,
            "lr": 1e-4,
            "train-text-encoder": True,
        },
    ),
    "train": ("condition train", TrainConfig, {"prompts": [], "objective": "classifier-free", "data": ["DATA"], "rank": 3}),
}


@pytest.mark.parametrize("case", ASKED)
def test_the_command_and_the_yaml_ask_for_the_same(case, tmp_path, capsys):
    command, config, asked = ASKED[case]
    (tmp_path / "t.csv").write_text("file,bright\na.png,yes\n")
    asked = {key: [str(tmp_path / "t.csv")] if value == ["DATA"] else value for key, value in asked.items()}
    wanted = config.resolve(asked).yaml()
    words = words_of(command, config, asked)
    assert shlex.split(command_line(words)) == ["tilting", *words]
    named = len(command.split())  # a prompt may begin with dashes: what stands behind "--" is one
    assert main([*words[:named], "--print-config", *words[named:]]) == 0
    assert capsys.readouterr().out == wanted
    (tmp_path / "run.yaml").write_text(yaml_of(asked))
    assert main([*command.split(), "--config", str(tmp_path / "run.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == wanted


def test_python_draws_the_same_pictures(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    asked = {
        "prompts": ["a fox", "a 'cat'"],
        "model": str(folder),
        "reward": ["jpeg", "symmetry=0.5"],
        "method": "code",
        "steps": 4,
        "seed": 5,
        "eta": 0.5,
        "set": {"code.particles": 2, "code.block": 2},
        "out": "python",
    }
    exec(python_of(asked), {})
    assert main([*words_of("generate", GenerateConfig, {**asked, "out": "command"}), "--quiet"]) == 0
    for number in range(2):
        name = f"images/{number:05d}.png"
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
