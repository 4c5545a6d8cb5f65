"""What every reward must hold, whatever it computes: one suite over all of them."""

from copy import deepcopy
from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import nn

from support.closed import files, serving, written
from support.learned import doubled, tiny
from support.vlms import by_brightness, chatting
from tilting.errors import TiltingError
from tilting.rewards import checked, combine
from tilting.rewards.spec import REWARDS, build, parse_spec

USER = """
def bright(images, prompts):
    return images.mean((1, 2, 3))

def grey(images, prompts):
    return (images.mean(1) ** 2).mean((1, 2))
grey.differentiable = True
"""
PROMPTS = ["a fox, twemoji style", "an owl on a red background", "a cat", "grapes, fluent style", "a bus"]
SPECS = {
    "clip": "clip",
    "style": "style",
    "style:fluent": "style:fluent",
    "jpeg": "jpeg",
    "jpeg-up": "jpeg-up",
    "jpeg-diff": "jpeg-diff",
    "jpeg-diff:80": "jpeg-diff:80",
    "jpeg-diff-up": "jpeg-diff-up",
    "rotation": "rotation",
    "symmetry": "symmetry",
    "symmetry:both": "symmetry:both",
    "color": "color:#ff8800",
    "color,mean": "color:red,mean",
    "gram": "gram:{}/ref.png",
    "gram-vgg": "gram:{}/ref.png#{}/vgg.pth",
    "likelihood": "likelihood:{}/cnn#size=1",
    "likelihood-mlp": "likelihood:{}/mlp#bright=0.25",
    "diversity": "diversity",
    "diversity-vgg": "diversity:{}/vgg.pth",
    "diversity-lpips": "diversity:{}/vgg.pth#{}/lpips.pth",
    "ocr": "ocr:fox",
    "nsfw": "nsfw",
    "user": "{}/mine.py:bright",
    "user-diff": "{}/mine.py:grey",
}
LEARNED = [name for name, entry in REWARDS.items() if entry.weights]
NAMES = [*SPECS, "http", "vlm", "combined", "mixed", *LEARNED]
UNSEEN = [n for n in LEARNED if not REWARDS[n].differentiable]
BLACK_BOX = ("jpeg", "jpeg-up", "ocr", "nsfw", "vlm", "http", "mixed", *UNSEEN)
TOGETHER = ("diversity", "diversity-vgg", "diversity-lpips")
SMOOTH = [n for n in NAMES if n not in BLACK_BOX]
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    folder = files(tmp_path_factory.mktemp("files"))
    (folder / "mine.py").write_text(USER)
    made = {}

    def get(name):
        if name not in made:
            if name == "http":
                made[name] = build([parse_spec(server.url)])
            elif name == "vlm":
                made[name] = build([parse_spec(f"vlm:{chat}#tiny")])
            elif name == "combined":
                made[name] = combine([(get("clip"), 2.0), (get("style"), -0.5)])
            elif name == "mixed":
                made[name] = combine([get("clip"), (get("jpeg"), 0.1)])
            elif name in LEARNED:
                made[name] = tiny(name, tmp_path_factory.mktemp(name))
            else:
                made[name] = build([parse_spec(SPECS[name].replace("{}", str(folder)))])
        return made[name]

    with serving() as server, chatting(by_brightness) as (_, chat):
        yield get


def images(b=5, h=64, w=64, seed=3):
    """Soft pictures: noise upsampled, so that nothing is all edges."""
    small = torch.rand(b, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (h, w), mode="bilinear") * 0.8 + 0.1


def pictures(name):
    """Five of `images`, or of words where nothing else is seen."""
    return torch.stack([written(word) for word in ("fox", "fo", "owl", "f0x", "")]) if name == "ocr" else images()


def test_every_reward_is_here():
    assert set(REWARDS) <= set(NAMES) and "aesthetic" in LEARNED


@every
def test_range_rank_and_count_are_checked(rewards, name):
    reward, x = rewards(name), images(2)
    assert reward(x + 0.0005, PROMPTS[:2]).shape == (2,)
    for wrong, says in [
        (x * 2 - 1, r"\[-1, 1\]"),
        (x * 255, r"\[0, 1\]"),
        (x - 0.2, r"\[0, 1\]"),
        (x[0], "shape"),
        (x[:, :1], "shape"),
        (x[:, :, :0], "empty"),
        ((x * 255).byte(), "float"),
        (x * float("nan"), "nan"),
        (x[:1], "prompts"),
    ]:
        with pytest.raises(TiltingError, match=says):
            reward(wrong, PROMPTS[:2])


@every
def test_an_image_scores_the_same_in_any_batch_or_the_reward_says_so(rewards, name):
    reward, x = rewards(name), pictures(name)
    together = reward(x, PROMPTS)
    alone = torch.cat([reward(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(5)])
    order = [4, 2, 0, 3, 1]
    torch.testing.assert_close(together[order], reward(x[order], [PROMPTS[i] for i in order]), atol=1e-5, rtol=1e-5)
    assert together.unique().numel() > 1
    assert getattr(reward, "batch_dependent", False) == (name in TOGETHER)
    if name in TOGETHER:
        assert (together - alone).abs().min() > 1e-3
    else:
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@every
def test_finite_on_extremes(rewards, name):
    reward, noise = rewards(name), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for x in (torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64), noise, noise[..., :1], noise[:, :, :1, :1], noise[..., :37]):
        x = x.clone().requires_grad_(reward.differentiable)
        value = checked(reward, x, ["a fox", "an owl"])
        if x.requires_grad:
            assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()


@every
def test_empty_batch(rewards, name):
    value = rewards(name)(torch.zeros(0, 3, 64, 64, requires_grad=True), [])
    assert value.shape == (0,) and value.is_floating_point()


@every
def test_says_whether_it_is_differentiable(rewards, name):
    x = images(2).requires_grad_()
    value = rewards(name)(x, PROMPTS[:2])
    assert rewards(name).differentiable == (name in SMOOTH)
    if name in SMOOTH:
        assert torch.autograd.grad(value.sum(), x)[0].abs().amax((1, 2, 3)).min() > 0
    elif name != "mixed":
        assert not value.requires_grad


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_agree(rewards, name, dtype):
    x = images(3).bfloat16().requires_grad_()
    want = rewards(name)(x.detach().float(), PROMPTS[:3])
    given = x if dtype == torch.bfloat16 else x.detach().double().requires_grad_()
    got = rewards(name)(given, PROMPTS[:3])
    slack = 1e-2 if dtype == torch.bfloat16 and name.startswith("user") else 1e-4  # a user's function computes in what it gets
    torch.testing.assert_close(got.double(), want.double(), atol=slack, rtol=slack)
    if name in SMOOTH:
        (gradient,) = torch.autograd.grad(got.sum(), given)
        assert gradient.dtype == dtype and torch.isfinite(gradient).all()


def in_double(reward):
    """A copy of the same reward with float64 weights."""
    reward = deepcopy(reward)
    for part in [r for r, _ in reward.parts] if hasattr(reward, "parts") else [reward]:
        for field in fields(part) if is_dataclass(part) else ():
            module = getattr(part, field.name)
            if isinstance(module, nn.Module):
                doubled(module)
    return reward


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (90, 70), (40, 57)])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_is_the_finite_difference(rewards, name, size, exact):
    reward = in_double(rewards(name))
    assert reward.differentiable  # asked here, so that the test is of its own when it runs alone
    generator = torch.Generator().manual_seed(2)
    x = images(3, *size, seed=8).double()
    if name.endswith(("vgg", "lpips")):  # ramps give a max-pool near-ties, at which there is no gradient
        x = x + 0.02 * torch.rand(x.shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    along = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    value = reward(x, PROMPTS[:3])
    assert value.dtype == torch.float64
    weights = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((value * weights).sum(), x)
    if name in TOGETHER:  # a value depends on every image: one direction for the batch
        known = (gradient * along).sum()[None]
    else:
        known = (gradient * along).sum((1, 2, 3)) / weights
    with torch.no_grad():
        h = 1e-7
        measured = (reward(x + h * along, PROMPTS[:3]) - reward(x - h * along, PROMPTS[:3])) / (2 * h)
    if name in TOGETHER:
        measured = (measured * weights).sum()[None]
    assert known.abs().min() > 1e-6
    torch.testing.assert_close(known, measured, rtol=1e-4, atol=1e-7)
