"""What callers in Python have in their hands (numpy's numbers, None, arrays, bytes) is taken by every public function that
asks for such a thing, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tilting as tl
from support.small import random_control, write_small
from tilting.errors import TiltingError
from tilting.features.fitted import FittedClassifier, ResidualCnn
from tilting.features.schema import Schema
from tilting.generation.coerce import picture_of


@pytest.fixture(scope="module")
def load_small(tmp_path_factory):
    folder = write_small(tmp_path_factory.mktemp("callers") / "small")
    return lambda: tl.load(str(folder))


@pytest.fixture(scope="module")
def model(load_small):
    return load_small()


@pytest.fixture(scope="module")
def functions(model, load_small) -> dict[str, Callable[..., Any]]:
    """Every public function that draws or trains: (prompts, **options) -> numbers to compare."""
    net = ResidualCnn(2, (4,))
    fitted = FittedClassifier(net, Schema("bright", classes=("no", "yes"))).eval().requires_grad_(False)
    control = random_control(load_small(), fitted)
    quick = {"steps": 2, "train_steps": 1, "batch_size": 2}

    def generate(prompts="a fox", **options):
        return tl.generate(model, prompts, **{"steps": 2, **options}).images

    def plan(prompts="a fox", seed=0, images=1, **options):
        prompts = prompts if isinstance(prompts, list | tuple) else [prompts]
        *_, last = tl.draw(model, tl.plan(model, tl.identities(prompts, seed, images), **{"steps": 2, **options}))
        return last.images

    def condition_sample(prompts="a fox", **options):
        return tl.condition_sample(control, prompts, {"bright": "yes"}, **{"steps": 2, **options}).images

    def finetune(prompts="a fox", **options):
        options.pop("images", None)
        return torch.tensor(tl.finetune(model, prompts, bright, "draft-k", **{**quick, **options}).history[0]["reward"])

    def condition_train(prompts="a fox", **options):
        options.pop("images", None)
        trained = tl.condition_train(load_small(), fitted, prompts, **{**quick, **options})
        return torch.tensor(trained.history[0]["log_prob"])

    return {f.__name__: f for f in (generate, plan, condition_sample, finetune, condition_train)}


def bright(images, prompts):
    return images.mean((1, 2, 3))


bright.differentiable = True  # type: ignore[attr-defined]
DRAW = ["generate", "plan", "condition_sample", "finetune", "condition_train"]
NUMBERS = {"seed": 3, "steps": 3, "batch_size": 2, "cfg": 2.0, "images": 2, "eta": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
def test_numbers_of_numpy_and_torch_are_numbers(functions, name):
    function = functions[name]
    plain = function(**NUMBERS)
    of_numpy = {k: np.float32(v) if isinstance(v, float) else np.int64(v) for k, v in NUMBERS.items()}
    of_torch = {k: torch.tensor(v) for k, v in NUMBERS.items()}
    assert torch.equal(function(**of_numpy), plain) and torch.equal(function(**of_torch), plain)


NO_NUMBERS = [1.5, np.float64(1.5), True, np.True_, torch.tensor(1.5), object()]
NO_COUNTS = [*NO_NUMBERS, "2", np.array([1, 2])]  # a seed may be several


@pytest.mark.parametrize(
    ("option", "value"),
    [*(("seed", v) for v in NO_NUMBERS), *((option, v) for option in ("steps", "batch_size") for v in NO_COUNTS)],
)
@pytest.mark.parametrize("name", DRAW)
def test_what_is_no_whole_number_is_refused(functions, name, value, option):
    with pytest.raises(TiltingError, match=rf"{option.replace('_', '-')} must be a (whole number|list of numbers)"):
        functions[name](**{option: value})


@pytest.mark.parametrize("value", [[None], [], [3], "", ["a fox", " "], {"text": "a fox"}, 3, [["a fox"]]])
@pytest.mark.parametrize("name", ["generate", "condition_sample", "finetune", "condition_train"])
def test_what_is_no_prompt_is_refused(functions, name, value):
    if name == "condition_train" and value == []:
        pytest.skip("everything that pocket draws")
    with pytest.raises(TiltingError):
        functions[name](value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "condition_sample", "finetune", "condition_train"])
def test_prompts_may_be_any_sequence_and_bring_metadata(functions, name):
    plain = functions[name](["a fox", "a cat"])
    for prompts in (("a fox", "a cat"), np.array(["a fox", "a cat"]), [{"prompt": "a fox", "tag": 1}, "a cat"]):
        assert torch.equal(functions[name](prompts), plain)


@pytest.mark.parametrize("name", DRAW)
def test_none_is_what_is_not_given(functions, name):
    none = {"negative_prompt": None, "cfg": None, "eta": None} | ({} if name == "plan" else {"seed": None})
    assert torch.equal(functions[name](**none), functions[name]())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_denoiser_by_hand_takes_none(model, functions):
    x, t = torch.zeros(1, *model.latent_shape), model.schedule.grid(2)[0]
    rows = torch.zeros(1, dtype=torch.long)
    none, empty = (model.denoiser(["a fox"], 2.0, negative)(x, t, rows).eps for negative in (None, ""))
    assert torch.equal(none, empty)
    assert torch.equal(functions["generate"](negative=None), functions["generate"]())


PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def encoded() -> bytes:
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    return file.getvalue()


FORMS: dict[str, Callable[[], Any]] = {
    "PIL": lambda: Image.fromarray(PIXELS),
    "bytes": encoded,
    "BytesIO": lambda: BytesIO(encoded()),
    "array of bytes": lambda: PIXELS,
    "array of floats": lambda: PIXELS / 255,
    "float32": lambda: (PIXELS / 255).astype(np.float32),
    "a batch of arrays": lambda: PIXELS[None],
    "tensor": lambda: torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
    "a batch of tensors": lambda: torch.from_numpy(PIXELS).permute(2, 0, 1).float()[None] / 255,
    "list": lambda: [Image.fromarray(PIXELS)],
    "tuple of arrays": lambda: (PIXELS,),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_is_the_same_picture(form):
    want = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].float() / 255
    assert (picture_of(FORMS[form](), 64, 64) - want).abs().max() <= 1e-6
    if "tensor" not in form:  # which stays as it is
        assert (picture_of(FORMS[form](), 32, 16) - picture_of(Image.fromarray(PIXELS), 32, 16)).abs().max() <= 1e-6


def test_several_pictures_are_one_for_each_image(model):
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    options: dict = {"steps": 2, "strength": 0.5}
    drawn = tl.generate(model, ["a fox", "a cat"], image=[pictures[0], np.array(pictures[1])], **options).images
    for i, prompt in enumerate(["a fox", "a cat"]):
        alone = tl.generate(model, prompt, image=pictures[i], **options).images
        assert (drawn[i] - alone[0]).abs().max() < 1e-4


WRONG = [
    3,
    [],
    {"image": 1},
    b"no picture",
    BytesIO(b""),
    np.zeros((64, 64)),
    np.zeros((3, 64, 64), np.uint8),
    np.full((64, 64, 3), 200.0),
    np.full((64, 64, 3), -1, np.int64),
    np.full((64, 64, 3), np.nan),
    torch.zeros(64, 64),
    torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    "nowhere.png",
]


@pytest.mark.parametrize("image", WRONG, ids=[str(type(one).__name__) + str(i) for i, one in enumerate(WRONG)])
def test_what_is_no_picture_is_refused(model, image):
    with pytest.raises(TiltingError, match=r"picture|reference|array|image"):
        tl.generate(model, "a fox", image=image, steps=1)


def test_latents_may_be_an_array_or_lists(model):
    noise = torch.randn(1, *model.latent_shape)
    want = tl.generate(model, "a fox", steps=1, latents=noise).images
    for latents in (noise.numpy(), noise.double().numpy(), noise.tolist()):
        assert torch.equal(tl.generate(model, "a fox", steps=1, latents=latents).images, want)
    for latents in ("x", [[1.0], [1.0, 2.0]], noise[0].numpy(), 3):
        with pytest.raises(TiltingError, match="latents must be"):
            tl.generate(model, "a fox", steps=1, latents=latents)


def test_labels_of_numpy_are_numbers_and_not_names():
    images, numbers = (
        torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        np.linspace(0, 1, 24, dtype=np.float32),
    )
    options: dict = {"epochs": 1, "widths": (4,), "seed": 1}
    for labels in (numbers, list(numbers), torch.from_numpy(numbers)):
        fitted = tl.condition_fit(images, labels, **options)
        assert fitted.classifier.schema.kind == "gaussian"
    classes = tl.condition_fit(images, np.arange(24) % 2, **options).classifier.schema
    assert classes.classes == ("0", "1")


@pytest.mark.parametrize("progress", [True, False])
def test_a_fit_has_a_bar_unless_told(progress, capsys):
    tl.condition_fit(torch.rand(24, 3, 8, 8), ["a", "b"] * 12, epochs=1, widths=(4,), seed=1, kind="cnn", progress=progress)
    assert ("label, cnn" in capsys.readouterr().err) == progress
