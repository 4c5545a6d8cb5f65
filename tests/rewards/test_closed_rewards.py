"""Each reward of a closed form against its formula, written out again by other means; files, scales, refusals."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor
from transformers import CLIPImageProcessor, CLIPModel

from support.closed import STAGES, files, lpips_state, vgg_state
from tilting.errors import TiltingError
from tilting.features.fitted import EmbeddingMlp, FittedClassifier, ResidualCnn, load_classifier, log_prob, save_classifier
from tilting.features.lpips import load_lpips
from tilting.features.schema import Schema, read_schema
from tilting.features.vgg import load_vgg16
from tilting.models.words import POCKET
from tilting.rewards import Scales, checked, color, combine, diversity, gram, jpeg, likelihood, rotation, symmetry
from tilting.rewards.weighted_sum import framed

CLIP = POCKET.parent / "pocket-clip"
PROMPTS = ["a"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return files(tmp_path_factory.mktemp("files"))


def images(b=4, h=24, w=24, seed=0):
    """Noise whose values are bytes."""
    return (torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


def test_rotation_is_the_papers_sum():
    x = images(h=24, w=30)
    want = []
    for picture in x.double().numpy().transpose(0, 2, 3, 1):
        square = picture[:, 3:27]
        want.append(sum(((square - np.rot90(square, k)) ** 2).sum() for k in (1, 2, 3)) / 3)
    torch.testing.assert_close(rotation()(x.double(), PROMPTS), torch.tensor(want, dtype=torch.float64))
    one = torch.zeros(1, 3, 2, 2)
    one[..., 0, 0] = 1  # turned, the corner goes elsewhere: each of three terms is 2 pixels x 3 channels
    assert rotation()(one, ["a"]).item() == 6
    assert rotation()(one + one.rot90(1, (2, 3)) + one.rot90(2, (2, 3)) + one.rot90(3, (2, 3)), ["a"]).item() == 0


def test_symmetry_is_the_mirrors():
    x = images(h=20, w=31)
    n = x.double().numpy()
    lr = -((n - np.array([np.fliplr(p.transpose(1, 2, 0)).transpose(2, 0, 1) for p in n])) ** 2).mean((1, 2, 3))
    ud = -((n - np.array([np.flipud(p.transpose(1, 2, 0)).transpose(2, 0, 1) for p in n])) ** 2).mean((1, 2, 3))
    for mirror, want in (("lr", lr), ("ud", ud), ("both", (lr + ud) / 2)):
        torch.testing.assert_close(symmetry(mirror)(x.double(), PROMPTS), torch.tensor(want))
    striped = torch.zeros(1, 3, 4, 4)
    striped[:, :, 0] = 1
    assert symmetry()(striped, ["a"]).item() == 0 and symmetry("ud")(striped, ["a"]).item() == -0.5
    assert [symmetry().name, symmetry("ud").name] == ["symmetry", "symmetry:ud"]
    with pytest.raises(TiltingError, match="did you mean 'both'"):
        symmetry("bothh")


@pytest.mark.parametrize(("text", "rgb"), [("red", "red"), ("#f80", "#f80"), ("#FF8800", "#f80"), ("RebeccaPurple", "#639")])
def test_color_is_the_squared_distance(text, rgb):
    x, wanted = images(), np.array(ImageColor.getrgb(rgb)) / 255
    per_pixel = -((x.double().numpy() - wanted[:, None, None]) ** 2).mean((1, 2, 3))
    mean = -((x.double().numpy().mean((2, 3)) - wanted) ** 2).mean(1)
    torch.testing.assert_close(color(text)(x.double(), PROMPTS), torch.tensor(per_pixel))
    torch.testing.assert_close(color(f"{text},mean")(x.double(), PROMPTS), torch.tensor(mean))
    flat = torch.tensor(wanted)[:, None, None].expand(1, 3, 4, 4)
    assert color(text)(flat, ["a"]).item() == pytest.approx(0, abs=1e-15)


def activations(x, layers):
    """VGG16 by the numbers of torchvision's Sequential: convolutions, ReLUs and pools in a row, the ones after ``layers``."""
    state, out, number = {k: v.double() for k, v in vgg_state().items()}, [], 0
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (x.double() - mean) / std
    for numbers in STAGES:
        for number in numbers:
            x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1).clamp(min=0)
            if number + 1 in layers:
                out.append(x)
        x = F.max_pool2d(x, 2, 2)
    return out


def grams(maps):
    return [torch.einsum("bchw,bdhw->bcd", f, f) / (f.shape[2] * f.shape[3]) for f in maps]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_gram_is_gatys_distance_in_vgg(folder, suffix):
    x, layers = images(h=33, w=40), (1, 6, 11, 18, 25)
    reference = torch.tensor(np.asarray(Image.open(folder / "ref.png"))).permute(2, 0, 1)[None] / 255
    want = torch.zeros(4, dtype=torch.float64)
    for g, a in zip(grams(activations(x, layers)), grams(activations(reference, layers)), strict=True):
        want -= (g - a).square().sum((1, 2)) / (4 * g.shape[1] ** 2) / 5
    reward = gram(f"{folder}/ref.png#{folder}/vgg.{suffix}")
    torch.testing.assert_close(reward(x, PROMPTS), want.float(), rtol=1e-4, atol=1e-6)
    assert reward(reference, ["a"]).item() == pytest.approx(0, abs=1e-9) and want.max() < -1e-3
    assert reward.name == f"gram:{folder}/ref.png#{folder}/vgg.{suffix}"


def test_gram_is_the_distance_of_clips_patch_tokens(folder):
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32, local_files_only=True).eval()
    processor, seen = CLIPImageProcessor.from_pretrained(CLIP), []
    model.vision_model.encoder.layers[2].register_forward_hook(lambda _, __, out: seen.append(out))
    x = images(h=64, w=64)
    reference = Image.open(folder / "ref.png")
    pictures = [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in x]
    with torch.no_grad():
        for group in (pictures, [reference]):
            model.vision_model(pixel_values=processor(group, return_tensors="pt").pixel_values)
    g, a = (torch.stack([f.T @ f / len(f) for f in (s[0] if isinstance(s, tuple) else s)[:, 1:].double()]) for s in seen)
    want = -(g - a).square().sum((1, 2)) / (4 * g.shape[1] ** 2)
    torch.testing.assert_close(
        gram(f"{folder}/ref.png")(x, PROMPTS).double(), want, rtol=0.02, atol=0
    )  # PIL's bytes of ref.png
    exact = gram(f"{folder}/ref.png").style.grams(x)[0]
    torch.testing.assert_close(exact.double(), g, rtol=1e-4, atol=1e-4)


def lpips(a, b, weights):
    """Pair by pair, layer by layer, with explicit loops over the two pictures."""
    total = 0
    for i, (p, q) in enumerate(zip(activations(a, (3, 8, 15, 22, 29)), activations(b, (3, 8, 15, 22, 29)), strict=True)):
        p, q = (f[0] / (f[0].pow(2).sum(0) + 1e-20).sqrt() for f in (p, q))
        w = torch.ones(len(p)) if weights is None else weights[f"lin{i}.model.1.weight"].flatten()
        total += float((w.double()[:, None, None] * (p - q) ** 2).sum(0).mean())
    return total


@pytest.mark.parametrize("own", [False, True])
def test_lpips_and_the_diversity_in_it(folder, own):
    x = images(h=32, w=48)
    weights = lpips_state() if own else None
    table = torch.tensor([[lpips(x[i : i + 1], x[j : j + 1], weights) for j in range(4)] for i in range(4)])
    net = load_lpips(folder / "vgg.pth", folder / "lpips.pth" if own else None)
    torch.testing.assert_close(net(x[:2], x[2:]), table[[0, 1], [2, 3]], rtol=1e-4, atol=1e-6)
    reward = diversity(f"{folder}/vgg.pth#{folder}/lpips.pth" if own else f"{folder}/vgg.pth")
    torch.testing.assert_close(reward(x, PROMPTS), table.sum(1) / 3, rtol=1e-4, atol=1e-6)


def test_diversity_is_the_mean_distance_of_embeddings():
    x = images(h=64, w=64)
    reward = diversity()
    e = reward.space.image(x).double().numpy()
    want = [np.mean([np.linalg.norm(e[i] - e[j]) for j in range(4) if j != i]) for i in range(4)]
    torch.testing.assert_close(reward(x, PROMPTS), torch.tensor(want).float(), rtol=1e-4, atol=1e-5)
    assert reward(x[:1], ["a"]).item() == 0 and reward.batch_dependent
    twin = x[[0, 0]].requires_grad_()
    value = reward(twin, ["a", "a"])
    assert value.abs().max() < 1e-6 and torch.isfinite(torch.autograd.grad(value.sum(), twin)[0]).all()
    assert combine([reward, jpeg()]).batch_dependent and not combine([jpeg()]).batch_dependent


@pytest.mark.parametrize("spec", [None, "{}/vgg.pth#{}/lpips.pth"])
def test_diversity_of_videos_is_frame_by_frame(folder, spec):
    """A video's own frames are no other images: still ones are as far apart as their pictures, and one alone is at 0."""
    x, reward = images(h=32, w=32), diversity(spec and spec.replace("{}", str(folder)))
    moving = torch.stack([x[:2], x[2:]], 1)
    each = [reward(frames, PROMPTS[:2]) for frames in moving.unbind(1)]
    torch.testing.assert_close(checked(reward, moving, PROMPTS[:2]), torch.stack(each).mean(0))
    still = x[:, None].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(checked(combine([reward]), still, PROMPTS), reward(x, PROMPTS))
    assert checked(reward, moving[:1], PROMPTS[:1]).item() == 0
    torch.testing.assert_close(checked(combine([reward]), moving, PROMPTS[:2]), torch.stack(each).mean(0))
    first = framed(reward, "first")
    assert first is not None
    torch.testing.assert_close(checked(first, moving, PROMPTS[:2]), each[0])


def test_likelihood_of_a_class_is_the_softmax_at_its_temperature(folder):
    x, net = images(h=21, w=16), load_classifier(folder / "cnn").net
    state = {k: v.double() for k, v in net.state_dict().items()}

    def norm(y, key):
        g, b, m, v = (state[f"{key}.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var"))
        return (y - m) / (v + 1e-5).sqrt() * g + b

    y = x.double()
    for i, stride in enumerate((1, 2, 2)):  # Table 2: full size, half, a quarter
        key = f"blocks.{i}"
        h = norm(F.conv2d(y, state[f"{key}.conv1.weight"], stride=stride, padding=1), f"{key}.norm1").clamp(min=0)
        h = norm(F.conv2d(h, state[f"{key}.conv2.weight"], padding=1), f"{key}.norm2")
        y = (h + norm(F.conv2d(y, state[f"{key}.short.0.weight"], stride=stride), f"{key}.short.1")).clamp(min=0)
    logits = y.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
    powers = np.exp(logits.numpy() / 0.5)
    for k, name in enumerate(("small", "1", "large")):
        want = torch.tensor(np.log(powers[:, k] / powers.sum(1))).float()
        torch.testing.assert_close(likelihood(f"{folder}/cnn#size={name}")(x, PROMPTS), want, rtol=1e-4, atol=1e-5)
    assert y.shape[2:] == (6, 4)


def test_likelihood_of_a_number_is_a_gaussian_density(folder):
    x, fitted = images(h=64, w=64), load_classifier(folder / "mlp")
    state = fitted.net.head.state_dict()
    e = fitted.net.embedder.image(x)
    for layer in (0, 3):
        e = (e @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]).clamp(min=0)
    mean = 0.3 + 2.0 * (e @ state["6.weight"].T + state["6.bias"])[:, 0]
    want = torch.distributions.Normal(mean, 0.4 * math.sqrt(1.5)).log_prob(torch.tensor(0.25))
    torch.testing.assert_close(likelihood(f"{folder}/mlp#bright=0.25")(x, PROMPTS), want, rtol=1e-4, atol=1e-5)
    grid = torch.linspace(-20, 20, 20001)
    density = log_prob(fitted.schema, fitted(x[:1]).expand(len(grid), 1), grid).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)


def test_temperature_can_be_fitted_and_the_papers_layers_are_the_default():
    schema, logits = Schema("y", classes=("a", "b")), torch.tensor([[2.0, 0.0]])
    t = torch.tensor(2.0, requires_grad=True)
    value = log_prob(schema, logits, torch.tensor([0]), t)
    assert value.item() == pytest.approx(-math.log(1 + math.exp(-1)))
    (slope,) = torch.autograd.grad(value.sum(), t)
    assert slope.item() == pytest.approx(-(2 / 4) / (1 + math.e))  # d/dT log sigmoid(2/T)
    mlp, cnn = EmbeddingMlp(7), ResidualCnn(7)
    assert [m.out_features for m in mlp.head if isinstance(m, torch.nn.Linear)] == [1024, 128, 64, 16, 7]
    assert [b.conv2.out_channels for b in cnn.blocks] == [64, 128, 256] and cnn.linear.out_features == 7
    e = torch.nn.functional.normalize(torch.randn(3, mlp.embedder.dim), dim=-1)
    zero = mlp.eval().head(torch.zeros_like(e))
    torch.testing.assert_close(mlp.head(2 * e) - zero, 2 * (mlp.head(e) - zero), rtol=1e-3, atol=1e-5)  # linear, as printed


def test_classifiers_are_kept_whole_and_others_refused(tmp_path):
    torch.manual_seed(0)
    fitted = FittedClassifier(ResidualCnn(2, (4, 4, 4)), Schema("day", classes=("no", "yes"), temperature=1.7)).eval()
    save_classifier(fitted, tmp_path / "a")
    again, x = load_classifier(tmp_path / "a"), images()
    assert again.schema == fitted.schema == read_schema(tmp_path / "a") and not again.net.linear.weight.requires_grad
    assert torch.equal(again.log_prob(x, torch.ones(4)), fitted.log_prob(x, torch.ones(4)))
    for change, says in [
        ({"network": {"name": "cn"}}, "did you mean 'cnn'"),
        ({"network": {"name": "cnn", "widths": [4, 4, 5]}}, "not load"),
        ({"network": {"name": "cnn", "widths": [4, 4]}}, r"has a surplus 'blocks\.2"),
        ({"network": 3}, "not the description"),
        ({"network": {"name": "cnn", "widths": [4, 4, 4, 4]}}, r"lacks 'blocks\.3"),
        ({"schema": {"label": "day", "classes": ["no", "no"]}}, "all different"),
        ({"schema": {"a": 1}}, "not the description"),
        ({"schema": {"label": "day", "kind": "gaussian", "std": 0}}, "above 0"),
    ]:
        config = json.loads((tmp_path / "a" / "classifier.json").read_text()) | change
        other = tmp_path / "b"
        other.mkdir(exist_ok=True)
        (other / "classifier.json").write_text(json.dumps(config))
        (other / "classifier.safetensors").write_bytes((tmp_path / "a" / "classifier.safetensors").read_bytes())
        with pytest.raises(TiltingError, match=says) as caught:
            load_classifier(other)
        assert "\n" not in str(caught.value)
    (tmp_path / "a" / "classifier.safetensors").write_bytes(b"cut")
    with pytest.raises(TiltingError, match="does not load"):
        load_classifier(tmp_path / "a")


def test_wrong_weights_and_pictures_are_refused_by_name(folder, tmp_path):
    missing = {k: v for k, v in vgg_state().items() if k != "features.17.bias"}
    narrow = vgg_state() | {"features.2.weight": torch.zeros(5, 4, 3, 3)}
    for state, says in ((missing, "lacks 'features.17.bias'"), (narrow, "'features.2'"), ({"x": torch.zeros(1)}, "features.0")):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(TiltingError, match=says) as caught:
            load_vgg16(tmp_path / "bad.pth")
        assert "bad.pth" in str(caught.value)
    (tmp_path / "cut.pth").write_bytes((folder / "vgg.pth").read_bytes()[:900])
    with pytest.raises(TiltingError, match=r"cut\.pth"):
        load_vgg16(tmp_path / "cut.pth")
    torch.save(lpips_state() | {"lin2.model.1.weight": torch.zeros(1, 9, 1, 1)}, tmp_path / "lin.pth")
    with pytest.raises(TiltingError, match=r"lin2\.model\.1\.weight"):
        load_lpips(folder / "vgg.pth", tmp_path / "lin.pth")
    (tmp_path / "ref.png").write_bytes(b"no picture")
    with pytest.raises(TiltingError, match=r"ref\.png"):
        gram(f"{tmp_path}/ref.png")


def test_scales_are_the_moments_of_all_that_was_seen():
    torch.manual_seed(1)
    rotate, red = rotation(), color("red")
    reward = combine([(rotate, 2.0), (red, -1.0)], scales=Scales({}))
    raw, x = {"rotation": [], "color:red": []}, images(9)
    assert torch.equal(reward(x, ["a"] * 9), 2 * rotate(x, ["a"] * 9) - red(x, ["a"] * 9))  # nothing seen: raw
    for part in (x[:1], x[1:5], x[5:5], x[5:]):
        values = reward.each(part, ["a"] * len(part))
        torch.testing.assert_close(values["color:red"], red(part, ["a"] * len(part)), rtol=0, atol=0)
        before, reward = reward, reward.observed(values)
        for key, value in values.items():
            raw[key] += value.tolist()
    assert before.scales != reward.scales and before.scales.moments["rotation"].count == 5
    for key, seen in raw.items():
        moments = reward.scales.moments[key]
        assert moments.mean == pytest.approx(np.mean(seen)) and moments.std == pytest.approx(np.std(seen, ddof=1))
    y = images(3, seed=5)
    want = sum(
        w * (r(y, ["a"] * 3).double() - np.mean(raw[r.name])) / np.std(raw[r.name], ddof=1) for w, r in ((2, rotate), (-1, red))
    )
    torch.testing.assert_close(reward(y, ["a"] * 3).double(), want, rtol=1e-4, atol=1e-4)
    saved = Scales.of(json.loads(json.dumps(reward.scales.json())))
    assert saved == reward.scales and torch.equal(reward(y, ["a"] * 3), combine(reward.parts, scales=saved)(y, ["a"] * 3))
    constant = Scales({}).add({"c": torch.full((5,), 0.1)})
    assert constant.moments["c"].std == 1 and constant.scaled("c", torch.tensor([0.6])).item() == pytest.approx(0.5)
