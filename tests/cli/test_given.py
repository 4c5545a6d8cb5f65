"""What the Python functions take: a name, a plain function or a picture of PIL means what its long form does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import tilting as tl
from tilting.generation.coerce import model_of, preset_of, reward_of
from tilting.objectives import ddpo, draft_k


@pytest.fixture(scope="module")
def pipe():
    return tl.load("pocket")


def warm(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def test_names_draw_what_the_objects_draw(pipe):
    named = tl.generate(pipe, "a fox", "clip", "dps", steps=3)
    made = tl.generate(pipe, "a fox", tl.rewards.clip(), tl.presets.dps(), steps=3)
    assert torch.equal(named.images, made.images)
    assert named.manifest["images"] == made.manifest["images"]
    assert not torch.equal(named.images, tl.generate(pipe, "a fox", steps=3).images)


def test_a_plain_function_is_a_reward(pipe):
    out = tl.generate(pipe, "a fox", warm, tl.presets.bon(particles=3), steps=3)
    record = out.manifest["images"][0]
    assert record["rewards"]["warm"] == record["reward"] == pytest.approx(warm(out.images, []).item(), abs=1e-6)
    alone = tl.generate(pipe, "a fox", warm, steps=3).manifest["images"][0]["reward"]
    assert record["reward"] >= alone  # particle 0 starts from the noise of base
    who = tl.identities(["a fox"], 0, 1)
    drawn: Any = list(tl.draw(pipe, tl.plan(pipe, who, "bon", warm, steps=3)))[-1]
    assert drawn.rewards["warm"] == drawn.reward
    assert (
        tl.generate(pipe, "a fox", warm, "dps", steps=2).manifest["images"][0]["reward"] is not None
    )  # it is tried, and has one
    with pytest.raises(tl.TiltingError, match="differentiable"):
        tl.generate(pipe, "a fox", lambda images, prompts: warm(images, prompts).tolist(), "dps", steps=2)


def test_a_preset_is_taken_apart_and_drawn_with(pipe):
    """CoDe built by its preset with the last word given to the first particle: its x is that of the particle itself."""
    from dataclasses import replace

    whole = tl.presets.code(particles=2).build(4)
    same = tl.generate(pipe, "a fox", warm, whole, steps=4)
    assert torch.equal(same.images, tl.generate(pipe, "a fox", warm, tl.presets.code(particles=2), steps=4).images)
    alone = tl.generate(pipe, "a fox", warm, replace(whole, select=None, final="first"), steps=4)
    assert torch.allclose(alone.images, tl.generate(pipe, "a fox", steps=4).images, atol=1e-4)  # drawn in a batch of two
    with pytest.raises(tl.TiltingError, match="final 'all'"):
        tl.generate(pipe, "a fox", warm, replace(whole, final="all"), steps=4)


def test_a_step_shows_its_particles(pipe):
    request = tl.plan(pipe, tl.identities(["a fox"], 0, 2), "bon", warm, steps=3)
    *steps, last = tl.draw(pipe, request)
    assert [s.state.x.shape for s in steps] == [(2, 4, *pipe.latent_shape)] * 3
    pictures = pipe.decode(steps[-1].state.x.flatten(0, 1)).unflatten(0, (2, 4))
    for mine, among in zip(last.images, pictures, strict=True):
        assert (mine - among).flatten(1).abs().amax(1).min() < 1e-5


def test_fine_tuning_takes_names_and_plain_functions(pipe):
    options = {"train_steps": 1, "steps": 2, "batch_size": 1, "rank": 2}
    named = tl.finetune(pipe, "a fox", "clip", "draft-k", **options).history
    made = tl.finetune(pipe, "a fox", tl.rewards.clip(), draft_k(), **options).history
    assert named == made and named[0]["gradient_norm"] > 0
    two = {**options, "batch_size": 2}  # of one image nothing is learnt: its advantage is 0
    seen = tl.finetune(pipe, "a fox", warm, "ddpo", **two).history[0]["reward"]
    assert seen == pytest.approx(tl.finetune(pipe, "a fox", reward_of(warm), ddpo(), **two).history[0]["reward"])
    for reward, objective, said in (
        (lambda images, prompts: warm(images, prompts).tolist(), "draft", "is black-box \\(tried on a picture"),
        ("clp", None, "did you mean 'clip'"),
        (None, None, "needs a reward"),
        ("clip", "drft", "did you mean 'draft'"),
        ("clip", ddpo, "or its name"),
    ):
        with pytest.raises(tl.TiltingError, match=said):
            tl.finetune(pipe, "a fox", reward, objective, **options)


def test_a_function_that_says_so_gives_its_gradient(pipe):
    class Told:
        differentiable = True

        def __call__(self, images, prompts):
            return warm(images, prompts)

    told = Told()
    base, steered = (tl.generate(pipe, "a fox", told, method, steps=4).manifest["images"][0] for method in ("base", "dps"))
    assert steered["reward"] > base["reward"]


def test_a_picture_may_be_a_file_or_of_pil(pipe, tmp_path):
    pixels = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).mul(255).round()
    Image.fromarray(pixels.byte().numpy()).save(tmp_path / "a.png")
    tensor = (pixels / 255).permute(2, 0, 1)[None]
    drawn = [
        tl.generate(pipe, "a fox", steps=3, strength=0.7, image=image).images
        for image in (tensor, tmp_path / "a.png", Image.open(tmp_path / "a.png"))
    ]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    with pytest.raises(tl.TiltingError, match="the picture is CMYK"):
        tl.generate(pipe, "a fox", steps=2, image=Image.new("CMYK", (64, 64)))


def test_what_is_none_of_these_is_refused(pipe):
    wrong: Any
    for wrong, says in (("clp", "did you mean 'clip'"), (3, "must be a function"), (dict, "dict is a class")):
        with pytest.raises(tl.TiltingError, match=says):
            reward_of(wrong)
    for wrong, says in (("codx", "did you mean 'codex'"), (3, "must be a preset"), (tl.presets.code, "must be a preset")):
        with pytest.raises(tl.TiltingError, match=says):
            preset_of(wrong)
    with pytest.raises(tl.TiltingError, match="no prompt is given"):
        tl.generate(pipe, [])


class Warm:
    """A reward as a class: what it declares is there, and calling it makes one."""

    name, differentiable = "warm", True

    def __call__(self, images, prompts):
        return warm(images, prompts)


class Grey:
    """As a model of one's own declares itself."""

    name, default_cfg, schedule = "grey", 1.0, None


@pytest.mark.parametrize(
    "call",
    [
        lambda: reward_of(Warm),
        lambda: tl.rewards.combine([Warm]),  # type: ignore[list-item]
        lambda: tl.rewards.combine([(Warm(), 1.0), (Warm, 2.0)], keys=("a", "b")),  # type: ignore[list-item]
        lambda: model_of(Grey),
    ],
)
def test_a_class_in_the_place_of_one_of_it_is_told(call):
    """It was a bare TypeError, at the first picture."""
    with pytest.raises(tl.TiltingError, match=r"(Warm|Grey) is a class: give"):
        call()


def test_what_is_no_model_no_reward_and_no_seed_is_told(pipe):
    from tilting.errors import TiltingError

    for call, said in (
        (lambda: tl.generate("pocket", "a fox", steps=2), r"give tilting.load\('pocket'\)"),  # type: ignore[arg-type]
        (lambda: tl.generate(object(), "a fox", steps=2), "must be a loaded one, not a object"),  # type: ignore[arg-type]
        (lambda: tl.generate(pipe, "a fox", tl.rewards.clip, "code", steps=2), r"call it, tilting.rewards.clip\(\)"),  # type: ignore[arg-type]
        (lambda: tl.generate(pipe, "a fox", steps=2, seed="x"), "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: tl.load(pipe), "a model is a name, a folder or a hub id"),
        (lambda: tl.load("pockt"), "did you mean 'pocket'"),
        (lambda: tl.load(device="gpu"), "did you mean 'cuda'"),
        (lambda: tl.load(precision="float16"), "did you mean 'fp16'"),
    ):
        with pytest.raises(TiltingError, match=said):
            call()


def test_torchs_own_words_for_a_device_and_a_precision(pipe):
    made = tl.load(device=torch.device("cpu"), precision=torch.bfloat16)
    assert {p.dtype for p in made.unet.parameters()} == {torch.bfloat16}
    listed = tl.generate(pipe, "a fox", ["jpeg=2", "clip"], steps=2).manifest["images"][0]  # type: ignore[arg-type]
    jpeg, clip = listed["rewards"].values()
    assert jpeg < 0 < clip and listed["reward"] == pytest.approx(2 * jpeg + clip)
