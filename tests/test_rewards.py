"""What every reward must hold, and what each of them must equal."""

import io
from copy import deepcopy

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from tilting.errors import RewardError, TiltingError
from tilting.features.clip import CACHED, ClipEmbedder, StyleHead
from tilting.features.images import check_images
from tilting.models.words import POCKET
from tilting.rewards import REWARDS, checked, clip, combine, jpeg, jpeg_diff, style, user
from tilting.rewards.build import build
from tilting.rewards.spec import CATALOG, parse_spec, parse_specs

FOLDER = POCKET.parent / "pocket-clip"
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
number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(USER)
    return path


@pytest.fixture(scope="module")
def rewards(file):
    made = {name: factory() for name, (factory, *_) in REWARDS.items()}
    made["style:fluent"] = style("fluent")
    made["jpeg-diff:80"] = jpeg_diff(80)
    made["user"] = user(f"{file}:bright")
    made["user-diff"] = user(f"{file}:grey")
    made["combined"] = combine([(made["clip"], 2.0), (made["style"], -0.5)])
    made["mixed"] = combine([made["clip"], (made["jpeg"], 0.1)])
    return made


NAMES = [*CATALOG, "style:fluent", "jpeg-diff:80", "user", "user-diff", "combined", "mixed"]
SMOOTH = [n for n in NAMES if n not in ("jpeg", "jpeg-up", "user", "mixed")]
every = pytest.mark.parametrize("name", NAMES)


def images(b=5, h=64, w=64, seed=3):
    """Soft pictures: noise upsampled, so that nothing is all edges."""
    small = torch.rand(b, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (h, w), mode="bilinear") * 0.8 + 0.1


@every
def test_range_rank_and_count_are_checked(rewards, name):
    reward, x = rewards[name], images(2)
    assert reward(x + 0.0005, PROMPTS[:2]).shape == (2,)
    for wrong, says in [
        (x * 2 - 1, r"\[-1, 1\]"), (x * 255, r"\[0, 1\]"), (x - 0.2, r"\[0, 1\]"), (x[0], "shape"), (x[:, :1], "shape"),
        (x[:, :, :0], "empty"), ((x * 255).byte(), "float"), (x * float("nan"), "nan"), (x[:1], "prompts"),
    ]:  # fmt: skip
        with pytest.raises(TiltingError, match=says):
            reward(wrong, PROMPTS[:2])


@every
def test_an_image_scores_the_same_in_any_batch(rewards, name):
    reward, x = rewards[name], images()
    together = reward(x, PROMPTS)
    alone = torch.cat([reward(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(5)])
    order = [4, 2, 0, 3, 1]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[order], reward(x[order], [PROMPTS[i] for i in order]), atol=1e-5, rtol=1e-5)
    assert together.unique().numel() > 1


@every
def test_finite_on_extremes(rewards, name):
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for x in (torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), noise, noise[..., :1], noise[:, :, :1, :1], noise[..., :37]):
        x = x.clone().requires_grad_(rewards[name].differentiable)
        value = checked(rewards[name], x, ["a fox"])
        if x.requires_grad:
            assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()


@every
def test_empty_batch(rewards, name):
    x = torch.zeros(0, 3, 64, 64, requires_grad=True)
    value = rewards[name](x, [])
    assert value.shape == (0,) and value.is_floating_point()


@every
def test_says_whether_it_is_differentiable(rewards, name):
    x = images(2).requires_grad_()
    value = rewards[name](x, PROMPTS[:2])
    assert rewards[name].differentiable == (name in SMOOTH)
    if name in SMOOTH:
        assert torch.autograd.grad(value.sum(), x)[0].abs().amax((1, 2, 3)).min() > 0
    elif name != "mixed":
        assert not value.requires_grad


def in_double(reward):
    """The same reward with float64 weights."""
    reward = deepcopy(reward)
    for part in [r for r, _ in reward.parts] if hasattr(reward, "parts") else [reward]:
        for module in (getattr(part, "embedder", None), getattr(part, "head", None)):
            if module is not None:
                module.double()
    return reward


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (90, 70), (40, 56)])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_is_the_finite_difference(rewards, name, size):
    reward = in_double(rewards[name])
    x = images(2, *size, seed=8).double().requires_grad_()
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value = reward(x, PROMPTS[:2])
    assert value.dtype == torch.float64
    (gradient,) = torch.autograd.grad(value.sum(), x)
    exact = (gradient * along).sum((1, 2, 3))
    with torch.no_grad():
        h = 1e-7
        measured = (reward(x + h * along, PROMPTS[:2]) - reward(x - h * along, PROMPTS[:2])) / (2 * h)
    assert exact.abs().min() > 1e-6
    torch.testing.assert_close(exact, measured, rtol=1e-4, atol=1e-7)


def test_clip_is_clips_cosine(rewards):
    model = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
    processor = CLIPImageProcessor.from_pretrained(FOLDER)
    x = (images() * 255).round() / 255
    pictures = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in x]
    pixels = processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        out = model(pixel_values=pixels, **dict(tokenizer(PROMPTS, padding=True, return_tensors="pt").items()))
    want = (out.logits_per_image / model.logit_scale.exp()).diagonal()
    torch.testing.assert_close(rewards["clip"](x, PROMPTS), want, atol=1e-5, rtol=0)
    head = StyleHead(FOLDER)
    logits = out.image_embeds * 10 @ head.linear.weight.T + head.linear.bias
    asked = [1, 0, 0, 2, 0]
    got = rewards["style"](x, PROMPTS)
    torch.testing.assert_close(got, logits.double().softmax(-1).log()[range(5), asked].float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(rewards["style:fluent"](x, PROMPTS)[3], got[3])


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (200, 130), (70, 99), (33, 47), (512, 512), (65, 64), (20, 121)])
@pytest.mark.parametrize("kind", ["soft", "noise"])
def test_preprocessing_is_the_processors(rewards, size, kind):
    soft, noise = images(1, *size), torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(4))
    x = ((soft if kind == "soft" else noise) * 255).round() / 255
    processor = CLIPImageProcessor.from_pretrained(FOLDER)
    picture = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    want = processor(picture, return_tensors="pt").pixel_values
    embedder = rewards["clip"].embedder
    got = embedder.preprocess(x)
    assert got.shape == want.shape == (1, 3, 64, 64)
    assert ((got - want) * embedder.std).abs().max() <= (1e-5 if min(size) == 64 else 2 / 255)


def test_text_is_cached_truncated_and_free_of_its_batch():
    embedder = ClipEmbedder(FOLDER)
    calls = []
    embedder.model.text_model.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        first = embedder.text(["a fox", "a cat on a red background, noto style"])
    again = embedder.text(["a cat on a red background, noto style", "a fox", "a fox"])
    assert len(calls) == 1 and torch.equal(again[[1, 0]], first) and torch.equal(again[1], again[2])
    assert not embedder.text(["a fox"]).is_inference()
    torch.testing.assert_close(ClipEmbedder(FOLDER).text(["a fox"])[0], first[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(2))
    long = "a fox " * 40
    torch.testing.assert_close(embedder.text([long]), embedder.text([long + "and an owl"]))
    embedder._texts = {str(i): again[0] for i in range(CACHED)}
    embedder.text(["7", "new"])
    assert set(embedder._texts) == {"7", "new"}


def test_frozen():
    embedder = ClipEmbedder(FOLDER).train()
    assert not any(m.training for m in embedder.modules()) and not any(p.requires_grad for p in embedder.parameters())
    assert {p.dtype for p in embedder.parameters()} == {torch.float32}


def test_what_does_not_load_is_refused(tmp_path):
    with pytest.raises(TiltingError, match="there is no CLIP folder"):
        ClipEmbedder(tmp_path / "none")
    with pytest.raises(TiltingError, match="holds no CLIP"):
        clip(str(tmp_path))
    with pytest.raises(TiltingError, match="no style head"):
        style(folder=tmp_path)
    with pytest.raises(TiltingError, match="did you mean 'twemoji'"):
        style("twemojis")


def test_jpeg_is_the_size_of_the_file(rewards, tmp_path):
    x = images(3, 48, 80)
    sizes = []
    for i, picture in enumerate(x):
        path = tmp_path / f"{i}.jpg"
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(path, quality=95)
        sizes.append(path.stat().st_size / 1000)
    torch.testing.assert_close(jpeg()(x, PROMPTS[:3]), -torch.tensor(sizes))
    torch.testing.assert_close(jpeg(incompressible=True)(x, PROMPTS[:3]), torch.tensor(sizes))
    assert jpeg().name == "jpeg" and jpeg(incompressible=True).name == "jpeg-up"


@pytest.mark.parametrize("quality", [20, 50, 90])
def test_jpeg_diff_loses_about_what_a_file_loses(quality):
    x = (images(3, 64, 48) * 255).round() / 255
    lost = []
    for picture in x:
        file = io.BytesIO()
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        back = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8).reshape(64, 48, 3)
        lost.append((picture - back.permute(2, 0, 1) / 255).square().sum())
    got = jpeg_diff(quality)(x, PROMPTS[:3])
    torch.testing.assert_close(-got, torch.stack(lost), rtol=0.2, atol=0)  # kornia's soft rounding is not libjpeg's
    assert torch.equal(jpeg_diff(quality, up=True)(x, PROMPTS[:3]), -got)


def test_jpeg_diff_names_and_refusals():
    assert [jpeg_diff().name, jpeg_diff(80).name, jpeg_diff(up=True).name] == ["jpeg-diff", "jpeg-diff:80", "jpeg-diff-up"]
    with pytest.raises(TiltingError, match="between 1 and 100"):
        jpeg_diff(0.5)
    flat, busy = torch.full((1, 3, 64, 64), 128 / 255), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small, large = float(jpeg_diff()(flat, [""])), float(jpeg_diff()(busy, [""]))
    assert 0 >= small > -0.2 and large < 1000 * small  # a flat picture loses less than one level of 255


def test_combined_is_the_weighted_sum(rewards):
    x, a, b = images(), rewards["clip"], rewards["jpeg"]
    both = combine([(a, 2.0), (b, -0.25)])
    each = both.each(x, PROMPTS)
    assert list(each) == ["clip", "jpeg"] and both.name == "clip + jpeg" and both.parts == ((a, 2.0), (b, -0.25))
    torch.testing.assert_close(each["jpeg"], b(x, PROMPTS))
    torch.testing.assert_close(both(x, PROMPTS), 2 * a(x, PROMPTS) - 0.25 * b(x, PROMPTS))
    torch.testing.assert_close(both.total(each), both(x, PROMPTS))
    assert not both.differentiable and combine([a]).differentiable
    for wrong, says in [([], "at least one"), ([a, a], "twice"), ([(a, float("inf"))], "finite")]:
        with pytest.raises(TiltingError, match=says):
            combine(wrong)


def test_build_follows_the_specs(file):
    x = images(3)
    assert build([parse_spec("jpeg")]) == jpeg() and build([parse_spec("jpeg-diff:80")]) == jpeg_diff(80.0)
    texts = ["jpeg-up=0.5", "style:noto", f"{file}:bright=-1", "jpeg-diff-up:20"]
    reward = build(parse_specs(texts))
    each = reward.each(x, PROMPTS[:3])  # type: ignore[attr-defined]
    assert list(each) == texts
    torch.testing.assert_close(each[texts[0]], jpeg(True)(x, PROMPTS[:3]))
    torch.testing.assert_close(each[texts[3]], jpeg_diff(20, True)(x, PROMPTS[:3]))
    total = 0.5 * each[texts[0]] + each[texts[1]] - x.mean((1, 2, 3)) + each[texts[3]]
    torch.testing.assert_close(reward(x, PROMPTS[:3]), total)
    assert build([parse_spec("jpeg=1")]).name == "jpeg=1" and build([parse_spec(f"{file}:bright")]).name == f"{file}:bright"
    with pytest.raises(TiltingError, match="no reward"):
        build([])


@pytest.mark.parametrize("name", list(CATALOG))
def test_the_registry_tells_the_truth(name):
    factory, about, units, differentiable = REWARDS[name]
    reward = factory()
    assert reward.name == name and reward.differentiable == differentiable and about and units


def test_user_rewards(file):
    x = images()
    torch.testing.assert_close(user(f"{file}:bright")(x, PROMPTS), x.mean((1, 2, 3)))
    assert user(f"{file}:listed")(x, PROMPTS).tolist() == [float(len(p)) for p in PROMPTS]
    assert user(f"{file}:grey").differentiable and not user(f"{file}:bright").differentiable
    before = x.clone()
    user(f"{file}:spoils")(x, PROMPTS)
    assert torch.equal(x, before)


def test_user_errors_name_the_reward_and_the_row(file):
    x = images()
    x[3] = 0
    for function, row, says in [
        ("broken", 3, "KeyError on image 3 of 5: 'too dark'"), ("holes", 3, "nan for image 3 of 5"),
        ("column", None, r"shape \(5,\), one value per image, not \(5, 1\)"), ("several", None, "MemoryError: too many"),
        ("text", None, "not str"),
    ]:  # fmt: skip
        for reward in (user(f"{file}:{function}"), combine([user(f"{file}:{function}"), jpeg()])):
            with pytest.raises(RewardError, match=says) as caught:
                checked(reward, x, PROMPTS)
            assert caught.value.row == row and f"mine.py:{function}" in str(caught.value)


def test_user_files_that_do_not_load(file, tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    (tmp_path / "helper.py").write_text("LEVEL = 0.5")
    (tmp_path / "good.py").write_text("from helper import LEVEL\ndef f(images, prompts): return images.mean((1, 2, 3)) - LEVEL")
    for spec, says in [
        (f"{file}:brigth", "did you mean 'bright'"), (f"{file}:number", "not a function"),
        (f"{tmp_path}/bad.py:f", "does not run: ModuleNotFoundError"), (f"{tmp_path}/none.py:f", "there is no file"),
    ]:  # fmt: skip
        with pytest.raises(TiltingError, match=says):
            user(spec)
    x = images(2)
    torch.testing.assert_close(user(f"{tmp_path}/good.py:f")(x, PROMPTS[:2]), x.mean((1, 2, 3)) - 0.5)


class Odd:
    """A reward that answers what it is told to."""

    name, differentiable = "odd", False

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, images, prompts):
        return self.answer() if callable(self.answer) else self.answer


def test_checked(rewards):
    x = images(3)
    torch.testing.assert_close(checked(jpeg(), x, PROMPTS[:3]), jpeg()(x, PROMPTS[:3]))
    for answer, row, says in [
        (torch.tensor([1.0, float("nan"), float("inf")]), 1, "gave nan for image 1 of 3"),
        (torch.tensor([1.0, 2.0, -float("inf")]), 2, "gave -inf for image 2"), (torch.zeros(3, 1), None, "shape"),
        (torch.zeros(()), None, "shape"), (torch.zeros(3).long(), None, "floats"), ([0.0] * 3, None, "list"),
        (lambda: 1 / 0, None, "ZeroDivisionError"),
    ]:  # fmt: skip
        with pytest.raises(RewardError, match=says) as caught:
            checked(Odd(answer), x, PROMPTS[:3])
        assert caught.value.row == row and "'odd'" in str(caught.value)
    with pytest.raises(TiltingError, match="prompts"):
        checked(Odd(torch.zeros(3)), x, PROMPTS)


def test_functions_keep_their_names_beside_their_files():
    import tilting.rewards
    import tilting.rewards.clip
    import tilting.rewards.combine

    assert tilting.rewards.clip is clip and tilting.rewards.combine is combine
    with pytest.raises(AttributeError):
        tilting.rewards.nothing  # noqa: B018


def test_check_images_leaves_gradients_alone():
    x = images(1).requires_grad_()
    y = x * 1
    check_images(y, ["a fox"])
    assert y.grad_fn is not None
    check_images(torch.zeros(0, 3, 4, 4), [])
    with pytest.raises(TiltingError, match="one string"):
        check_images(x, "a")
