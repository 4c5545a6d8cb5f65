"""A user's code that breaks in every way there is: one sentence, exit 2, what was finished kept; Ctrl-C alone goes through."""

from __future__ import annotations

import pytest
import torch

from support.commands import refused
from tilting.errors import RewardError, TiltingError
from tilting.rewards import checked, user

FILE = """
import os, sys

class Mine(BaseException):
    pass

class Mute(Exception):
    def __str__(self):
        raise Mine

class Asked:
    @property
    def differentiable(self):
        raise Mine("who asks")

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))

class Odd:
    def __len__(self):
        raise Mine
    __float__ = __array__ = __iter__ = __len__

def base(images, prompts): raise Mine("no")
def gone(images, prompts): raise GeneratorExit
def left(images, prompts): sys.exit(3)
def stop(images, prompts): raise StopIteration(1)
def loud(images, prompts): raise ValueError("x" * 1_000_000)
def lines(images, prompts): raise ValueError("a\\n" * 1000)
def mute(images, prompts): raise Mute
def deep(images, prompts): return deep(images, prompts)
def odd(images, prompts): return Odd()
def interrupted(images, prompts): raise KeyboardInterrupt
def closes(images, prompts):
    sys.stdout.close()
    return images.mean((1, 2, 3))
def shuts(images, prompts):
    os.close(1)
    return images.mean((1, 2, 3))
asked = Asked()
"""
SAYS = {
    "base": "raised Mine on image 0 of 2: no",
    "gone": "raised GeneratorExit on image 0 of 2",
    "left": "raised SystemExit on image 0 of 2: 3",
    "stop": "raised StopIteration on image 0 of 2: 1",
    "loud": "raised ValueError on image 0 of 2: xxx",
    "lines": "raised ValueError on image 0 of 2: a a a",
    "mute": "raised Mute on image 0 of 2",
    "deep": "raised RecursionError on image 0 of 2",
    "odd": "must return a tensor",
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "r.py").write_text(FILE)
    return tmp_path / "r.py"


@pytest.mark.parametrize("function", SAYS)
def test_what_it_raises_is_a_sentence(function, file):
    with pytest.raises(RewardError) as error:
        checked(user(f"{file}:{function}"), torch.rand(2, 3, 8, 8), ["a", "b"])
    said = str(error.value).replace(str(file.parent), "")
    assert SAYS[function] in said and len(said) < 300 and "\n" not in said


def test_an_interrupt_goes_through(file):
    with pytest.raises(KeyboardInterrupt):
        checked(user(f"{file}:interrupted"), torch.rand(2, 3, 8, 8), ["a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        "class Mine(BaseException): pass\nraise Mine",
        "raise GeneratorExit",
        "import sys\nsys.modules.pop(__name__)\nraise SystemExit",
        "def __getattr__(name): raise SystemError(name)",
        "def __getattr__(name): raise SystemExit(name)",
        "raise ValueError('x' * 1_000_000)",
        "def f(:",
        "\0",
        "f = type('F', (), {'__call__': lambda s, i, p: i, '__getattr__': lambda s, n: 1 / 0})()",
    ],
)
def test_a_file_that_breaks_is_one_sentence(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(text)
    said = refused(capsys, "generate", "a fox", "--reward", "r.py:f", "--steps", "2", "--quiet", "--out", "out")
    assert len(said) < 320 and "r.py" in said and not (tmp_path / "out").exists()


def test_an_attribute_that_raises_is_a_sentence(file):
    with pytest.raises(TiltingError, match="raised Mine: who asks, asked for 'differentiable'"):
        _ = user(f"{file}:asked").differentiable


@pytest.mark.slow
@pytest.mark.parametrize("function", ["closes", "shuts"])
def test_a_reward_that_closes_the_output_ends_whole(function, file, folder):
    from support.processes import begun

    words = ["generate", "a fox", "--reward", f"r.py:{function}", "--steps", "2", "--model", str(folder), "--out", "out"]
    process = begun(file.parent, *words)
    said = process.communicate(timeout=120)[1].replace("\r", "\n")
    assert process.returncode == 0 and "has closed the standard output" in said and "Traceback" not in said, said
    assert (file.parent / "out" / "grid.png").exists()
