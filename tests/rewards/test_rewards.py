"""What `clip`, `style`, `jpeg`, `jpeg-diff`, a user's function and their sums must equal, and what builds and checks them."""

import io

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from tilting.errors import RewardError, TiltingError
from tilting.features.clip import CACHED, ClipEmbedder, StyleHead
from tilting.features.images import check_images
from tilting.models.words import POCKET
from tilting.rewards import REWARDS, Combined, checked, clip, color, combine, http, jpeg, jpeg_diff, rotation, style, symmetry
from tilting.rewards.spec import build, parse_spec, parse_specs

FOLDER = POCKET.parent / "pocket-clip"
PROMPTS = ["a fox, twemoji style", "an owl on a red background", "a cat", "grapes, fluent style", "a bus"]


@pytest.fixture(scope="module")
def rewards():
    return {"clip": clip(), "style": style(), "style:fluent": style("fluent"), "jpeg": jpeg()}


def images(b=5, h=64, w=64, seed=3):
    """Soft pictures: noise upsampled, so that nothing is all edges."""
    small = torch.rand(b, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (h, w), mode="bilinear") * 0.8 + 0.1


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
    halves = {"clip": torch.tensor([100.0]).half(), "jpeg": torch.tensor([2.0])}
    assert combine([(a, 1000.0), (b, 1.0)]).total(halves).tolist() == [100002.0]  # and not infinite
    assert not both.differentiable and combine([a]).differentiable
    for wrong, says in [([], "at least one"), ([a, a], "twice"), ([(a, float("inf"))], "finite")]:
        with pytest.raises(TiltingError, match=says):
            combine(wrong)


def test_build_follows_the_specs(tmp_path):
    x, file = images(3), tmp_path / "mine.py"
    file.write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
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


@pytest.mark.parametrize("name", list(REWARDS))
def test_the_registry_tells_the_truth(name):
    entry = REWARDS[name]
    assert entry.about and entry.units and callable(entry.factory)
    if not (entry.weights or (entry.argument and entry.argument.required)):
        assert entry.factory().name == name and entry.factory().differentiable == entry.differentiable


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("rotation", rotation()),
        ("symmetry:ud", symmetry("ud")),
        ("color:#f80", color("#f80")),
        ("jpeg-up", jpeg(True)),
        ("color:red,mean", color("red,mean")),
        ("http://host/score?k=2", http("http://host/score?k=2")),
    ],
)
def test_a_spec_alone_is_the_reward_itself(spec, want):
    assert build([parse_spec(spec)]) == want and want.name == spec
    weighted = build([parse_spec(f"{spec}=0.5")])
    assert isinstance(weighted, Combined) and weighted.parts == ((want, 0.5),) and weighted.keys == (f"{spec}=0.5",)


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
        (torch.tensor([1.0, 2.0, -float("inf")]), 2, "gave -inf for image 2"),
        (torch.zeros(3, 1), None, "shape"),
        (torch.zeros(()), None, "shape"),
        (torch.zeros(3).long(), None, "floats"),
        ([0.0] * 3, None, "list"),
        (lambda: 1 / 0, None, "ZeroDivisionError"),
    ]:
        with pytest.raises(RewardError, match=says) as caught:
            checked(Odd(answer), x, PROMPTS[:3])
        assert caught.value.row == row and "'odd'" in str(caught.value)
    with pytest.raises(TiltingError, match="prompts"):
        checked(Odd(torch.zeros(3)), x, PROMPTS)


def test_functions_keep_their_names_beside_their_files():
    import tilting.rewards
    import tilting.rewards.clip_scores
    import tilting.rewards.weighted_sum

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
