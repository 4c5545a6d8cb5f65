"""What every reward holds to, ours and others': documented, checked, digested, told everywhere alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tilting as tl
from support.closed import files
from support.commands import manifest as manifest_of
from support.outside import installed, write_package
from tilting import rewards
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.rewards import REWARDS, Argument
from tilting.rewards.declaration import RewardEntry
from tilting.rewards.spec import build, parse_spec
from tilting.runs.files import digests_of

EXAMPLES = {
    "STYLE": "noto",
    "WORDS": "fox",
    "QUALITY": "80",
    "LR|UD|BOTH": "ud",
    "COLOUR": "red",
    "IMAGE[#VGG16]": "{}/ref.png#{}/vgg.pth",
    "VGG16[#LPIPS]": "{}/vgg.pth#{}/lpips.pth",
    "FOLDER#LABEL=VALUE": "{}/cnn#size=1",
    "FOLDER#LABEL": "{}/cnn#cat",
    "QUERY[,QUERY]": "cat,-dog",
    "URL#MODEL[#FILE][#OPTION=VALUE]": "http://localhost:1/v1#tiny#{}/ref.txt#retries=0",
    "//HOST/PATH": "//localhost/score",
    "FOLDER": "{}/cnn",
    "FILE": "{}/ref.png",
}
"""Of an argument, by what it is called."""
NAMES_FILES = ("FILE", "FOLDER", "IMAGE", "VGG16", "LPIPS", "WEIGHTS", "PATH", "DIR")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return files(tmp_path)


def refusal(text: str) -> str:
    with pytest.raises(TiltingError) as caught:
        parse_spec(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hold_to_the_contract(entry: RewardEntry, here: Path) -> None:
    """Assert of a reward what listings, checks and digests take for granted; its files are written to."""
    assert entry.about and entry.units and entry.told and entry.told[0].endswith("."), f"{entry.name} is not documented"
    factory = getattr(rewards, entry.name.replace("-", "_"))
    assert REWARDS[entry.name] is entry and getattr(factory, "func", factory) is entry.make
    argument = entry.argument
    if argument is None:
        assert "takes nothing after a colon" in refusal(f"{entry.name}:x")
        assert digests_of([parse_spec(entry.name)]) == digests_of([parse_spec(entry.name)])
        return
    assert argument.metavar == argument.metavar.upper()
    assert f"no {argument.metavar.lower()} after it" in refusal(f"{entry.name}:")
    if argument.check is not str:
        refusal(f"{entry.name}:?,")
    if argument.required:
        assert entry.usage in refusal(entry.name)
    spec = parse_spec(f"{entry.name}:{EXAMPLES[argument.metavar].replace('{}', str(here))}=2")
    assert spec.weight == 2 and spec.entry is entry
    named = [word for word in NAMES_FILES if word in argument.metavar and not argument.metavar.startswith("//")]
    reads = [path for path in spec.reads.files if here in path.parents]
    assert bool(reads) == bool(named), f"{entry.name} is given {argument.metavar} and reads {reads}"
    for file in [file for path in reads for file in ([path] if path.is_file() else path.glob("*.safetensors"))]:
        before = digests_of([spec])
        file.write_bytes(file.read_bytes() + b" ")
        assert digests_of([spec]) != before, f"{entry.name} does not see that {file.name} is another"


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward(name, here, capsys):
    hold_to_the_contract(REWARDS[name], here)
    assert main(["rewards", name]) == 0
    out = capsys.readouterr().out
    assert REWARDS[name].usage in out and REWARDS[name].units in out and REWARDS[name].told[0].split(".")[0][:40] in out


def bright(file=None):
    """How bright it is."""
    return tl.rewards.color("white")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"about": ""}, "not documented"),
        ({"make": lambda file=None: None}, ""),
        ({"argument": Argument("FILE", files=False)}, "and reads"),
        ({"argument": Argument("FILE", check=lambda text: text)}, "DID NOT RAISE"),
        ({"argument": Argument("file")}, ""),
    ],
)
def test_a_broken_reward_is_found(facts, says, here):
    entry = RewardEntry(**{"name": "bright", "make": bright, "about": "bright", "units": "mean", **facts})
    REWARDS.register(entry)
    try:
        with pytest.raises((AssertionError, IndexError, pytest.fail.Exception), match=says):
            hold_to_the_contract(entry, here)
    finally:
        del vars(REWARDS)["_parts"]["bright"]


MINE = '''
"""A reward of mine."""
from dataclasses import dataclass
from tilting.rewards import REWARDS, Argument, Scorer

@REWARDS.declare("mine", "nearness of the mean to a number in a file", "-distance", True, Argument("FILE", required=True))
@dataclass(frozen=True)
class Mine(Scorer):
    """r(x) = -|mean x - number|."""
    file: str
    name: str = "mine"
    differentiable: bool = True

    def values(self, images, prompts):
        return -(images.mean((1, 2, 3)) - float(open(self.file).read())).abs()
'''


@pytest.mark.parametrize("point", ["of_mine", "of_mine:Mine"])
def test_a_reward_from_outside_is_known_everywhere(point, here, small, folder, capsys):
    """One file, one line: the command line, YAML, Python, the list, the refusals and the digest know it."""
    (here / "number").write_text("0.25")
    with installed(REWARDS, here / "site", "of_mine", MINE, point):
        hold_to_the_contract(REWARDS["mine"], here)
        assert tl.rewards.mine("number").name == "mine" and "mine" in REWARDS
        assert main(["rewards", "mine"]) == 0
        shown = capsys.readouterr().out
        assert all(part in shown for part in ("mine:FILE", "-distance, differentiable", "r(x) = -|mean x")), shown
        assert main(["rewards", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["mine"]["usage"] == "mine:FILE"
        assert "did you mean 'mine'" in refusal("mime:number") and "mine:FILE" in refusal("mine")
        (here / "run.yaml").write_text("reward: mine:number=2\n")
        own = ["generate", "a fox", "--model", str(folder), "--steps", "2", "--method", "codex"]
        for more in (["--reward", "mine:number=2"], ["--config", "run.yaml"]):
            assert main([*own, *more, "--print-config"]) == 0
            assert "mine:number=2" in capsys.readouterr().out
        run = [*own, "--reward", "mine:number", "--out", "run", "--quiet"]
        assert main(run) == main(run) == 0
        told = manifest_of(here / "run")
        images = tl.generate(small, "a fox", reward="mine:number", method="codex", steps=2).images
        value = build([parse_spec("mine:number")])(images, ["a fox"])
        torch.testing.assert_close(value, tl.rewards.mine("number")(images, ["a fox"]))
        assert told["images"][0]["rewards"]["mine:number"] == pytest.approx(value.item(), abs=0.01)
        (here / "number").write_text("0.75")
        capsys.readouterr()
        assert main(run) == 2 and "whose reward had other weights or code" in capsys.readouterr().err
    assert "mine" not in REWARDS


def test_an_installed_package_is_found_by_the_command(tmp_path):
    site = write_package(tmp_path / "site", "of_mine", MINE, "tilting.rewards", "of_mine")
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from tilting.cli import main; sys.exit(main(['rewards']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nearness of the mean" in done.stdout
