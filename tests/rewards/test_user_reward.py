"""A reward of the user's own file: what it gets, what it may answer, and how its failures are told."""

import pytest
import torch

from tilting.errors import RewardError, TiltingError
from tilting.rewards import build, checked, combine, jpeg, user
from tilting.rewards.spec import parse_specs

PROMPTS = ["a fox, twemoji style", "an owl on a red background", "a cat", "grapes, fluent style", "a bus"]
USER = """
import torch

def bright(images, prompts):
    return images.mean((1, 2, 3))

def grey(images, prompts):
    return (images.mean(1) ** 2).mean((1, 2))
grey.differentiable = True

def listed(images, prompts):
    return [float(len(p)) for p in prompts]

def column(images, prompts):
    return images.mean((1, 2, 3))[:, None]

def broken(images, prompts):
    if (images.amax((1, 2, 3)) < 0.01).any():
        raise KeyError("too dark")
    return images.mean((1, 2, 3))

def holes(images, prompts):
    values = images.mean((1, 2, 3))
    return torch.where(values < 0.01, float("nan"), values)

def several(images, prompts):
    if len(images) > 1:
        raise MemoryError("too many")
    return images.mean((1, 2, 3))

def spoils(images, prompts):
    images.zero_()
    return images.sum((1, 2, 3))

def text(images, prompts):
    return "good"

def leaves(images, prompts):
    raise SystemExit(3)

def tried(images, prompts, metadata):
    return images[:, 0].mean((1, 2))

def whole(images, prompts):
    return images.mean((1, 2, 3, 4))
whole.videos = True

def shut(images, prompts):
    return images.mean((1, 2, 3))
shut.differentiable = False

def steps(images, prompts):
    return (images > 0.5).float().mean((1, 2, 3))

def away(images, prompts):
    return [float(x.numpy().mean()) for x in images]
number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(USER)
    return path


def images(b=5, h=64, w=64, seed=3):
    """Soft pictures: noise upsampled, so that nothing is all edges."""
    small = torch.rand(b, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (h, w), mode="bilinear") * 0.8 + 0.1


def test_user_rewards(file):
    x = images()
    torch.testing.assert_close(user(f"{file}:bright")(x, PROMPTS), x.mean((1, 2, 3)))
    assert user(f"{file}:listed")(x, PROMPTS).tolist() == [float(len(p)) for p in PROMPTS]
    assert user(f"{file}:grey").says and user(f"{file}:bright").says is None
    before = x.clone()
    user(f"{file}:spoils")(x, PROMPTS)
    assert torch.equal(x, before)


def test_user_errors_name_the_reward_and_the_row(file):
    x = images()
    x[3] = 0
    for function, row, says in [
        ("broken", 3, "KeyError on image 3 of 5: 'too dark'"),
        ("holes", 3, "nan for image 3 of 5"),
        ("column", None, r"shape \(5,\), one value per image, not \(5, 1\)"),
        ("several", None, "MemoryError: too many"),
        ("text", None, "not str"),
        ("leaves", 0, "raised SystemExit on image 0 of 5: 3"),
    ]:
        for reward in (user(f"{file}:{function}"), combine([user(f"{file}:{function}"), jpeg()])):
            with pytest.raises(RewardError, match=says) as caught:
                checked(reward, x, PROMPTS)
            assert caught.value.row == row and f"mine.py:{function}" in str(caught.value)


def test_user_files_that_do_not_load(file, tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    (tmp_path / "script.py").write_text("def f(images, prompts): return images.mean((1, 2, 3))\nraise SystemExit(0)")
    (tmp_path / "helper.py").write_text("LEVEL = 0.5")
    (tmp_path / "good.py").write_text("from helper import LEVEL\ndef f(images, prompts): return images.mean((1, 2, 3)) - LEVEL")
    for spec, says in [
        (f"{file}:brigth", "did you mean 'bright'"),
        (f"{file}:number", "not a function"),
        (f"{tmp_path}/bad.py:f", "does not run: ModuleNotFoundError"),
        (f"{tmp_path}/script.py:f", "does not run: SystemExit"),
        (f"{tmp_path}/none.py:f", "there is no file"),
    ]:
        with pytest.raises(TiltingError, match=says):
            user(spec)
    x = images(2)
    torch.testing.assert_close(user(f"{tmp_path}/good.py:f")(x, PROMPTS[:2]), x.mean((1, 2, 3)) - 0.5)


def test_a_file_runs_once_for_all_the_functions_of_a_request(tmp_path):
    file, count = tmp_path / "mine.py", tmp_path / "count"
    text = f"open({str(count)!r}, 'a').write('x')\ndef a(images, prompts): return images.mean((1, 2, 3))\nb = a\n"
    file.write_text(text)
    build(parse_specs([f"{file}:a", f"{file}:b=2"]))
    assert count.read_text() == "x"
    build(parse_specs([f"{file}:a"]))  # another request is another beginning
    assert count.read_text() == "xx"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("bright", ""),
        ("grey", ""),
        ("tried", ""),
        ("whole", ""),
        ("shut", None),
        ("listed", "by torch alone"),
        ("steps", "by torch alone"),
        ("away", "raised RuntimeError"),
        ("leaves", "raised SystemExit"),
    ],
)
def test_a_gradient_is_found_by_trying_where_the_function_does_not_say(function, why, file):
    """Nobody who needs none tries it: what is asked of it then has no gradient."""
    images = torch.rand(2, *((2, 3) if function == "whole" else (3,)), 8, 8, requires_grad=True)
    reward = user(f"{file}:{function}")
    if why == "" and reward.says is None:
        assert not reward(images, PROMPTS[:2]).requires_grad
    assert reward.differentiable is (why == "")
    if why:
        assert why in reward.blind
    elif why == "":
        assert reward(images, PROMPTS[:2]).requires_grad
