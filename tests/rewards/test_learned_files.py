"""Where weights are found, what is refused, and that our preprocessing gives each original processor's pixels."""

import hashlib
import json
import pickle
import socket

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from support.learned import (
    NAMES,
    blip_state,
    head_state,
    open_clip_state,
    save_aesthetic,
    save_classifier,
    save_clip,
    save_hpsv2,
    save_imagereward,
    save_owlvit,
    save_processor,
    tiny,
)
from support.paths import ROOT
from tilting.errors import TiltingError
from tilting.features.checkpoints import read_state
from tilting.features.pixels import pixels_of, resize
from tilting.features.sources import Source, find_file, find_folder
from tilting.rewards import REWARDS, aesthetic, classify, detect, hpsv2, imagereward, pickscore

PROMPTS = ["a fox", "an owl"]
SIZES = [(32, 32), (64, 64), (32, 45), (50, 33), (200, 131), (7, 19), (33, 64), (96, 40)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, the hub off, and a list of what still tried to connect."""
    tried = []
    monkeypatch.setattr("tilting.features.checkpoints.Path.home", lambda: tmp_path / "home")
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, address: tried.append(address) or (_ for _ in ()).throw(OSError("no"))
    )
    yield tmp_path / "home"
    assert not tried


@pytest.mark.parametrize(
    ("make", "file", "address"),
    [
        (aesthetic, "sac+logos+ava1-l14-linearMSE.pth", "github.com/christophschuhmann/improved-aesthetic-predictor"),
        (pickscore, "model.safetensors", "yuvalkirstain/PickScore_v1"),
        (hpsv2, "HPS_v2_compressed.pt", "xswu/HPSv2"),
        (lambda: hpsv2(version="2.1"), "HPS_v2.1_compressed.pt", "xswu/HPSv2"),
        (imagereward, "ImageReward.pt", "THUDM/ImageReward"),
        (lambda: detect("cat"), "config.json", "google/owlvit-base-patch32"),
    ],
)
def test_missing_weights_are_one_sentence(home, make, file, address):
    with pytest.raises(TiltingError) as caught:
        make()
    said = str(caught.value)
    place = address if "github" in address else f"{address} on the Hugging Face hub"
    assert file in said
    assert f"{place} and put it into {home / '.cache' / 'tilting'}" in said
    assert "\n" not in said


def test_the_users_cache_comes_before_the_hub(home):
    cache, x = home / ".cache" / "tilting", torch.rand(2, 3, 40, 50)
    for name, save in (
        ("aesthetic", save_aesthetic),
        ("pickscore", save_clip),
        ("hpsv2", save_hpsv2),
        ("imagereward", save_imagereward),
    ):
        place = save(cache / name)
        found, given = REWARDS[name].factory(), REWARDS[name].factory(place)
        assert found.name == name and given.name == f"{name}:{place}"
        assert torch.equal(found(x, PROMPTS), given(x, PROMPTS))
    save_owlvit(cache / "detect")
    assert detect("cat").name == "detect:cat" and detect(["cat", "-owl"]).name == "detect:cat,-owl"
    words = (cache / "hpsv2" / "vocab.json").rename(cache / "hpsv2" / "else.json")
    with pytest.raises(TiltingError, match="laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        hpsv2()
    words.rename(cache / "hpsv2" / "vocab.json")
    model = cache / "hpsv2" / "HPS_v2_compressed.pt"
    assert hpsv2(model).name == f"hpsv2:{model}" and find_file(Source("x", "y/z", ("b.pt", model.name)), model.parent) == model


def test_places_that_do_not_exist(home, tmp_path):
    for make, says in [
        (lambda: hpsv2(tmp_path / "none.pt"), "no file or folder '.*none.pt' with the weights of 'hpsv2'"),
        (lambda: imagereward(tmp_path), "has no ImageReward.pt"),
        (lambda: hpsv2(version="3"), "there is no hpsv2 of version '3'"),
        (lambda: classify("no/such#3"), "'no/such' holds no image classifier that loads"),
        (lambda: pickscore(tmp_path), "holds no CLIP that loads"),
        (lambda: detect("cat", tmp_path), "holds no OWL-ViT"),
        (lambda: detect("cat", threshold=1), "threshold"),
        (lambda: detect("cat", score=0), "not both 0"),
    ]:
        with pytest.raises(TiltingError, match=says) as caught:
            make()
        assert "\n" not in str(caught.value)
    assert find_folder(Source("pickscore", "a/b")) == "a/b" and find_folder(Source("x", "a/b"), "c/d") == "c/d"


def spoiled(state, how):
    """A state dict with a key less, one more, or one of another shape."""
    state = dict(state)
    key = next(k for k in state if k.endswith(("ln_1.weight", "norm1.weight", "layers.2.weight")))
    value = state.pop(key)
    return (
        state if how == "missing" else state | ({key: value, "other.bias": value} if how == "unexpected" else {key: value[:-1]})
    )


@pytest.mark.parametrize("how", ["missing", "unexpected", "of another shape"])
@pytest.mark.parametrize(
    ("make", "save", "file", "state"),
    [
        (aesthetic, save_aesthetic, "sac+logos+ava1-l14-linearMSE.pth", lambda: head_state(24)),
        (hpsv2, save_hpsv2, "HPS_v2_compressed.pt", open_clip_state),
        (imagereward, save_imagereward, "ImageReward.pt", blip_state),
    ],
)
def test_wrong_checkpoints_are_refused_by_name(tmp_path, make, save, file, state, how):
    path = save(tmp_path) / file
    torch.save(spoiled(state(), how), path)
    with pytest.raises(TiltingError, match=rf"\d {how}") as caught:
        make(path)
    assert str(path) in str(caught.value) and f"'{make.__name__}'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [aesthetic, hpsv2, imagereward])
def test_cut_off_strange_and_foreign_files(tmp_path, make):
    path, state = tmp_path / "weights.pt", {f"layer.{k}": torch.randn(9, 9) for k in range(30)}
    torch.save(state, path)
    with pytest.raises(TiltingError, match=r"no checkpoint.*missing.*30 unexpected|30 unexpected"):
        make(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(TiltingError, match="is cut off"):
        make(path)
    path.write_bytes(b"")
    with pytest.raises(TiltingError, match="is cut off"):
        make(path)
    torch.save([1, 2], path)
    with pytest.raises(TiltingError, match="holds no state dict"):
        make(path)


class Runs:
    """A pickle that would write a file when loaded."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def test_a_pickle_never_runs(tmp_path):
    path = tmp_path / "ImageReward.pt"
    for write in (lambda x: path.write_bytes(pickle.dumps(x)), lambda x: torch.save(x, path)):
        write({"model": Runs(tmp_path / "ran")})
        with pytest.raises(TiltingError, match="'imagereward' does not load"):
            imagereward(path)
        assert not (tmp_path / "ran").exists()


def test_wrappings_are_opened(tmp_path):
    state = head_state(4)
    for name, kept in [
        ("a.pth", {"state_dict": state}),
        ("b.pth", {"model": {f"module.{k}": v for k, v in state.items()}, "step": 3}),
        ("c.pth", state),
    ]:
        torch.save(kept, tmp_path / name)
        read = read_state(tmp_path / name, "aesthetic")
        assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)
    save_file(state, tmp_path / "d.safetensors")
    assert read_state(tmp_path / "d.safetensors", "aesthetic").keys() == state.keys()


@pytest.mark.parametrize("save", [save_clip, save_owlvit, save_classifier])
def test_folders_with_a_part_of_the_weights_are_refused(tmp_path, save):
    folder = save(tmp_path / "model")
    make = {save_clip: pickscore, save_owlvit: lambda at: detect("cat", at), save_classifier: lambda at: classify(at, 1)}[save]
    make(folder)
    path = folder / "model.safetensors"
    state, whole = load_file(path), path.read_bytes()
    gone = next(k for k in state if k.endswith(("mlp.fc1.weight", "intermediate.dense.weight")))
    del state[gone]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(TiltingError, match=r"1 missing \(such as .*fc1.weight|dense.weight\)"):
        make(folder)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TiltingError, match="that loads"):
        make(folder)


def test_the_published_aesthetic_head_is_read_bit_for_bit(tmp_path):
    """LAION's own file, which holds tensors of a GPU: `tests/fixtures/README.md` says whose it is."""
    file = ROOT / "tests/fixtures/sac+logos+ava1-l14-linearMSE.pth"
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith("21dd590f3ccdc646f0d53120778b2960")
    state = torch.load(file, map_location="cpu", weights_only=True)
    reward, x = aesthetic(file, save_clip(tmp_path, dim=768)), torch.rand(3, 3, 32, 32)
    held = reward.head.state_dict()
    assert [tuple(held[f"layers.{k}.weight"].shape) for k in (0, 2, 4, 6, 7)] == [
        (1024, 768),
        (128, 1024),
        (64, 128),
        (16, 64),
        (1, 16),
    ]
    assert held.keys() == state.keys() and all(torch.equal(held[k], state[k]) and held[k].dtype == torch.float32 for k in held)
    e = torch.eye(768)[:5]  # the head is affine: what it says of axes is said of everything
    for k in (0, 2, 4, 6, 7):
        e = torch.nn.functional.linear(e, state[f"layers.{k}.weight"], state[f"layers.{k}.bias"])
    assert torch.equal(reward.head(torch.eye(768)[:5]), e[:, 0])
    given = reward(x, ["a fox"] * 3)
    torch.testing.assert_close(given, reward.head(reward.embedder.image(x)))
    assert 1 < given.mean() < 10 and given.std() > 0
    with pytest.raises(TiltingError, match="has embeddings of 24, 'aesthetic' needs 768"):
        aesthetic(file, save_clip(tmp_path / "narrow"))


def test_towers_that_do_not_fit_are_refused(tmp_path):
    place = save_aesthetic(tmp_path)
    torch.save(head_state(30), place / "sac+logos+ava1-l14-linearMSE.pth")
    with pytest.raises(TiltingError, match="has embeddings of 24, 'aesthetic' needs 30"):
        aesthetic(place)
    state = open_clip_state()
    torch.save({k: v[:96] if k == "visual.conv1.weight" else v for k, v in state.items()}, place / "HPS_v2_compressed.pt")
    with pytest.raises(TiltingError, match="no ViT-H-14, which 'hpsv2' needs: it is 96 and 128 wide"):
        hpsv2(place)
    place = save_imagereward(tmp_path / "blip")
    (place / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(TiltingError, match="the tokenizer of 'imagereward' has 8 tokens, but its text encoder has 18"):
        imagereward(place)


def torchvision_like(picture, side):
    """Resize(side), CenterCrop(side) as the published code of ImageReward has them, on PIL."""
    w, h = picture.size
    short = min(w, h)
    picture = picture.resize((side, int(side * h / w)) if w == short else (int(side * w / h), side), Image.Resampling.BICUBIC)
    left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def centred_on_black(picture, side):
    """The longest edge to the side, the rest black: the published code of HPS v2, on PIL."""
    scale = side / max(picture.size)
    small = picture.resize(tuple(round(edge * scale) for edge in picture.size), Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (side, side))
    whole.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return whole


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("original", ["CLIP", "OWL-ViT", "ViT", "ConvNeXt", "large ConvNeXt", "ImageReward", "HPS v2"])
def test_pixels_are_the_original_processors(tmp_path, original, size):
    from transformers import AutoImageProcessor

    small = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(7))
    fine = 0.2 * torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    x = ((F.interpolate(small, size, mode="bilinear") * 0.5 + 0.15 + fine) * 255).round() / 255
    picture = Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    folder, square = tmp_path, {"height": 32, "width": 32}
    kinds = {
        "CLIP": ("CLIPImageProcessor", {"shortest_edge": 32}, {"crop_size": square, "do_center_crop": True}),
        "OWL-ViT": ("OwlViTImageProcessor", square, {"do_center_crop": False}),
        "ViT": ("ViTImageProcessor", square, {"resample": 2}),
        "ConvNeXt": ("ConvNextImageProcessor", {"shortest_edge": 28}, {"crop_pct": 0.875}),
        "large ConvNeXt": ("ConvNextImageProcessor", {"shortest_edge": 384}, {"crop_pct": 0.95}),
    }
    if original in kinds:
        kind, asked, fields = kinds[original]
        save_processor(folder, kind, asked, **fields)
        want = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
        pixels = pixels_of(json.loads((folder / "preprocessor_config.json").read_text()), "here")
    else:
        name, side, draw = {"ImageReward": ("imagereward", 32, torchvision_like), "HPS v2": ("hpsv2", 28, centred_on_black)}[
            original
        ]
        bare, pixels = draw(picture, side), tiny(name, folder).embedder.pixels
        whole = torch.frombuffer(bytearray(bare.tobytes()), dtype=torch.uint8).reshape(side, side, 3).permute(2, 0, 1)
        want = (whole / 255 - pixels.mean)[None] / pixels.std
    got = pixels(x)
    assert got.shape == want.shape
    assert ((got - want) * pixels.std).abs().max() <= (1e-5 if size == tuple(got.shape[2:]) else 2 / 255)


@pytest.mark.parametrize(
    ("size", "wanted"), [((96, 40), (76, 32)), ((50, 33), (32, 32)), ((9, 7), (40, 30)), ((60, 90), (20, 95))]
)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_is_pils_two_passes_on_hard_edges(size, wanted, mode):
    bits = torch.randint(0, 2, (3, *size), generator=torch.Generator().manual_seed(2), dtype=torch.uint8) * 255
    how = Image.Resampling[mode.upper()]
    picture = Image.fromarray(bits.permute(1, 2, 0).numpy()).resize((wanted[1], size[0]), how).resize(wanted[::-1], how)
    want = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(*wanted, 3).permute(2, 0, 1) / 255
    assert (resize(bits[None] / 255, *wanted, mode)[0] - want).abs().max() <= 2 / 255


def test_preprocessings_that_are_not_followed_are_refused():
    square = {"height": 32, "width": 32}
    assert pixels_of({"size": 32, "crop_size": 32}, "old").edge == 32 and pixels_of({"size": [24, 16]}, "old").size == (24, 16)
    for config in (
        {"size": square, "resample": 1},
        {"size": square, "do_rescale": False},
        {"size": square, "do_pad": True},
        {"size": {"shortest_edge": 32}},
        {},
        {"size": square, "crop_size": 16},
        {"size": square, "rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 16}, "crop_size": 32},
    ):
        with pytest.raises(TiltingError, match="the preprocessing of 'mine' is not"):
            pixels_of(config, "mine")


def test_every_learned_reward_is_catalogued():
    from tilting.rewards.spec import REWARDS

    assert {name for name, entry in REWARDS.items() if entry.weights} == set(NAMES)
