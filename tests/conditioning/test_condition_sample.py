"""`condition sample`: the composition by hand with plain diffusers, what is saved draws what was trained, KL by hand, methods
and rewards on top, sweeps, resume, refusals. The model is a few thousand random weights (`small`)."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tilting as tl
from support.commands import manifest as manifest_of
from support.small import bright_fit, random_control
from tilting import rng
from tilting.cli import main
from tilting.conditioning.api import compose
from tilting.conditioning.readings import obedience
from tilting.conditioning.sample_run import condition_sample, describe
from tilting.config.condition_sample import SampleConfig
from tilting.errors import TiltingError
from tilting.features.fitted import FittedClassifier
from tilting.generation.plan import identities
from tilting.models.control_file import save_control
from tilting.models.control_spec import read_control
from tilting.models.families import weights_of
from tilting.models.labels import PLACES
from tilting.models.names import find_model
from tilting.models.prompt_embeds import NEGATIVE, PROMPT
from tilting.reports.grid import caption
from tilting.runs.files import digest
from tilting.runs.owner import RUN, SWEEP_OF_RUNS, kind_of
from tilting.schedule import Law

PROMPTS = ["a fox", "a cat"]
ASKED = {"steps": 4, "images": 2, "cfg": 2.0, "batch_size": 4}


@pytest.fixture(scope="module")
def fits(small):
    return [bright_fit(small, "bright").classifier, bright_fit(small, "light", seed=1).classifier]


@pytest.fixture(scope="module")
def controls(small, fits, tmp_path_factory, folder):
    """Two controls of random weights, and their folders, which say which model they are of."""

    made = [random_control(small, [fit], seed=i) for i, fit in enumerate(fits)]
    places = [tmp_path_factory.mktemp("controls") / name for name in ("one", "two")]
    for control, place in zip(made, places, strict=True):
        info = type(control.info)(**{**vars(control.info), "model": {"name": str(folder), "sha256": digest(folder)}})
        save_control(place, info, control.lora(), control.augmented.embedding.state_dict(), control.classifiers)
    return made, places


@pytest.fixture
def here(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: small)
    (tmp_path / "r.py").write_text("def red(images, prompts):\n    return images[:, 0].mean((1, 2))\n")
    return tmp_path


def words(out, places, *more, reward="r.py:red"):
    given = [w for place in places for w in ("--control", str(place))]
    return [
        "condition",
        "sample",
        *PROMPTS,
        *given,
        "--steps",
        "4",
        "--images",
        "2",
        "--cfg",
        "2",
        "--batch-size",
        "4",
        "--reward",
        reward,
        "--quiet",
        "--out",
        str(out),
        *more,
    ]


def test_two_controls_add_as_appendix_b_says_each_with_its_own_lora(small, controls, folder):
    """eps of two controls at strength 1.5 against plain diffusers: three pipelines, one as it is and two into which a control's
    LoRA was loaded by `load_lora_weights`. Float32: within 1e-5."""
    from diffusers import StableDiffusionPipeline

    made, places = controls
    pipes = [StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True) for _ in range(3)]
    tables = []
    for pipe, place, name in zip(pipes[1:], places, ("bright", "light"), strict=True):
        pipe.load_lora_weights(place / "lora")
        tables.append(load_file(place / "embedding.safetensors")[f"tables.{name}"])
    t = small.schedule.grid(4)[1]
    x = torch.randn(2, *small.latent_shape, generator=torch.Generator().manual_seed(0))
    text, none = (torch.cat([one[name] for one in small.texts(PROMPTS, 2.0)]) for name in (PROMPT, NEGATIVE))

    def net(pipe, x, context):
        with torch.no_grad():
            return pipe.unet(x, torch.full((2,), int(t.t)), encoder_hidden_states=context).sample

    free, plain = net(pipes[0], x, none), net(pipes[0], x, text)
    v = free + 2.0 * (plain - free)
    for pipe, table, row in zip(pipes[1:], tables, (1, 0), strict=True):
        v = v + 1.5 * (net(pipe, x + table[row].reshape(1, *small.latent_shape), text) - plain)
    wanted = t.alpha * v + t.sigma * x
    model = compose(made, {"bright": "yes", "light": "no"}, strength=1.5)
    with torch.no_grad():
        found = model.denoiser(PROMPTS, 2.0)(x, t, torch.arange(2))
        alone = small.denoiser(PROMPTS, 2.0)(x, t, torch.arange(2))
    assert torch.allclose(found.eps, wanted, atol=1e-5)
    assert (found.eps - alone.eps).abs().max() > 1e-2
    assert torch.allclose(alone.eps, t.alpha * (free + 2.0 * (plain - free)) + t.sigma * x, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_saved_draws_what_was_trained(small, fits, place, tmp_path):
    control = random_control(small, [fits[0]], place, seed=4)
    control.save(tmp_path / "ctl")
    again = tl.load_control(tmp_path / "ctl", small)
    assert again.info == control.info
    assert again.classifiers["bright"].schema == fits[0].schema
    a, b = (tl.condition_sample(c, PROMPTS, {"bright": "no"}, **ASKED).images for c in (control, again))
    base = tl.generate(small, PROMPTS, **ASKED).images
    assert torch.equal(a, b)
    assert (a - base).abs().max() > 1e-3
    assert torch.equal(tl.condition_sample(again, PROMPTS, {"bright": "no"}, strength=0.0, **ASKED).images, base)
    (tmp_path / "ctl" / "embedding.safetensors").write_bytes(b"cut")
    with pytest.raises(TiltingError, match="is not whole: embedding"):
        read_control(tmp_path / "ctl")


@pytest.mark.parametrize("name", ["strength", "self", "type", "a.b"])
def test_a_label_may_have_any_name(small, fits, name, tmp_path):
    control = random_control(small, [FittedClassifier(fits[0].net, replace(fits[0].schema, label=name))], seed=4)
    control.save(tmp_path / "ctl")
    again = tl.load_control(tmp_path / "ctl", small)
    a, b = (tl.condition_sample(c, PROMPTS, {name: "no"}, **ASKED) for c in (control, again))
    assert torch.equal(a.images, b.images)
    assert a.manifest["summary"]["kl_mean"] > 0
    assert again.fixed({name: "no"}, 2.0).parts[0][1:] == ({name: 0.0}, 2.0)
    if name != "strength":
        assert again.at(strength=2.0, **{name: "no"}).parts[0][1:] == ({name: 0.0}, 2.0)


def test_a_control_that_is_asked_for_some_of_its_labels_says_that_it_was_not_trained_so(here, small, fits, folder, capsys):

    control = random_control(small, fits, seed=9)
    with pytest.warns(UserWarning, match="bright, light was trained with all of these given, not with bright alone"):
        compose(control, {"bright": "yes"})
    with pytest.warns(UserWarning, match="not with light alone"):
        control.at(light="yes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose(control, {"bright": "yes", "light": "no"})
    control.info = replace(control.info, model={"name": str(folder), "sha256": digest(folder)})
    control.save("ctl")
    asked = [word for word in words("out", ["ctl"], "--label", "light=no") if word != "--quiet"]
    assert main(asked) == 0
    assert "tilting: the control of bright, light was trained" in capsys.readouterr().err
    assert main([*words("whole", ["ctl"]), "--label", "light=no", "--label", "bright=no"]) == 0
    assert "was trained" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("planner", "training", "unlabelled"),
    [
        ("classifier-free", {"label_dropout": 0.1}, True),
        ("classifier-free", {"label_dropout": 0.0}, False),
        ("classifier-free", {}, False),
        ("backprop", {"label_dropout": 0.1}, False),
    ],
)
def test_a_folder_says_whether_no_label_was_learnt(small, fits, tmp_path, planner, training, unlabelled):
    """At strength 0 such a control draws without a label by its own LoRA, another one as the model does."""
    control = random_control(small, [fits[0]], seed=4)
    control.info = replace(control.info, planner=planner, training=training)
    control.save(tmp_path / "ctl")
    again = tl.load_control(tmp_path / "ctl", small)
    assert again.augmented.unlabelled == unlabelled
    drawn = tl.condition_sample(again, PROMPTS, {"bright": "no"}, strength=0.0, **ASKED)
    assert (drawn.manifest["summary"]["kl_mean"] > 0) == unlabelled


@pytest.mark.parametrize("law", get_args(Law))
def test_the_path_kl_is_that_of_the_means(here, small, controls, law):
    """Σ |Δmean|² / (2 std²) along the drawn path, the chain written out by hand, whatever the law of its noise; the last step
    has no density."""
    made, places = controls
    assert main(words("out", places[:1], "--label", "bright=yes", "--sde", law, "--eta", "0.6")) == 0
    who, rows = identities(PROMPTS, 0, 2), torch.arange(4)
    prompts = [one.prompt for one in who]
    mine, base = made[0].at(bright="yes").denoiser(prompts, 2.0), small.denoiser(prompts, 2.0)
    x, far = rng.normal(who, 1, small.latent_shape, 0)[:, 0], torch.zeros(4, dtype=torch.float64)
    for i, (t, s) in enumerate(pairwise(small.schedule.grid(4))):
        a, now, then = t.alpha / s.alpha, t.sigma / (t.alpha + t.sigma), s.sigma / (s.alpha + s.sigma)
        n, std = s.alpha + s.sigma, 0.6 * s.sigma * math.sqrt(t.sigma**2 - a**2 * s.sigma**2) / t.sigma
        if law == "cps":
            std = s.sigma * math.sin(0.3 * math.pi)
        if law == "euler":
            left = 1 - (now if t.alpha else then)
            std = 0.6 * n * math.sqrt(now / left * (now - then)) if then else 0.0
        noise = s.sigma - std**2 / (2 * n * now) if law == "euler" else math.sqrt(max(s.sigma**2 - std**2, 0))
        with torch.no_grad():
            means = [s.alpha * p.x0 + noise * p.eps for p in (mine(x, t, rows), base(x, t, rows))]
        far += (means[0] - means[1]).double().flatten(1).square().sum(1) / (2 * std**2) if std else 0.0
        x = means[0] + std * rng.normal(who, 1, small.latent_shape, i + 1)[:, 0]
    records = manifest_of(here / "out")["images"]
    pictures = [np.array(Image.open(here / "out" / record["file"])).astype(int) for record in records]
    drawn = (small.decode(x).permute(0, 2, 3, 1) * 255).round().numpy()
    assert all(abs(one - two).max() <= 1 for one, two in zip(pictures, drawn, strict=True))
    assert [record["kl"] for record in records] == pytest.approx(far.tolist(), rel=1e-3)
    assert far.min() > 0.01
    alike = tl.condition_sample(made[0], PROMPTS, {"bright": "yes"}, **ASKED, sde=law, eta=0.6).manifest["images"]
    assert [record["kl"] for record in alike] == pytest.approx(far.tolist(), rel=1e-3)
    still = tl.condition_sample(made[0], PROMPTS, {"bright": "yes"}, **{**ASKED, "eta": 0.0})
    assert still.manifest["summary"]["kl_mean"] is None


def test_the_folder_is_that_of_generate_with_kl_and_obedience(here, small, controls, fits):
    made, places = controls
    assert main(words("out", places[:1], "--label", "bright=yes")) == 0
    manifest = manifest_of(here / "out")
    drawn = tl.condition_sample(made[0], PROMPTS, {"bright": "yes"}, **ASKED)
    pixels = (drawn.images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for record, wanted, image in zip(manifest["images"], pixels, drawn.images, strict=True):
        assert np.array_equal(np.array(Image.open(here / "out" / record["file"])), wanted)
        assert record["reward"] == pytest.approx(image[0].mean().item(), abs=1e-5)
    logits = fits[0](drawn.images)
    told = [r["labels"]["bright"] for r in manifest["images"]]
    assert [t["obeys"] for t in told] == (logits.argmax(1) == 1).tolist()
    assert [t["log_prob"] for t in told] == pytest.approx((logits / fits[0].schema.temperature).log_softmax(1)[:, 1].tolist())
    assert manifest["summary"]["kl_mean"] == pytest.approx(drawn.manifest["summary"]["kl_mean"], rel=1e-5)
    assert (here / "out" / "grid.png").is_file()
    share = round(manifest["summary"]["labels"]["bright"]["obeys"] * len(manifest["images"]))
    said = f"bright=yes obeyed {share} of {len(manifest['images'])}, KL {manifest['summary']['kl_mean']:.4g} nats an image"
    assert said in describe(manifest)
    # a killed run goes on: what is missing is drawn again, the same
    kept = np.array(Image.open(here / "out" / "images" / "00003.png")).astype(int)
    (here / "out" / "images" / "00003.png").unlink()
    assert main(words("out", places[:1], "--label", "bright=yes")) == 0
    again = np.array(Image.open(here / "out" / "images" / "00003.png"))
    assert abs(again - kept).max() <= 1 and (again != kept).mean() < 0.01  # alone in its batch: a last bit may round over
    assert manifest_of(here / "out")["images"][3]["reward"] == pytest.approx(manifest["images"][3]["reward"], abs=1e-6)
    after = manifest_of(here / "out")
    assert after["summary"]["kl_mean"] == pytest.approx(manifest["summary"]["kl_mean"], rel=1e-4)
    assert main(words("out", places[:1], "--label", "bright=no")) == 2


def test_a_sweep_begins_at_the_pretrained_model(here, small, controls, capsys):
    _, places = controls
    assert main(words("out", places, "--label", "bright=yes", "--label", "light=no", "--strength", "0,1")) == 0
    rows = json.loads((here / "out" / "sweep.json").read_text())["sweep"]
    base = tl.generate(small, PROMPTS, **ASKED).images
    pixels = (base.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for i in range(4):
        assert np.array_equal(np.array(Image.open(here / "out" / "strength-0" / "images" / f"{i:05d}.png")), pixels[i])
    assert rows[0]["summary"]["kl_mean"] == 0.0
    assert rows[1]["summary"]["kl_mean"] > 0.01
    assert set(rows[1]["summary"]["labels"]) == {"bright", "light"}
    assert (here / "out" / "sweep.png").is_file()
    capsys.readouterr()  # and holds nothing else
    assert kind_of(here / "out") is SWEEP_OF_RUNS and kind_of(here / "out" / "strength-0") is RUN
    side = ["compare", "a fox", "--methods", "base", "--out", "out"]
    for command in (words("out", places[:1], "--label", "bright=yes"), side):
        assert main(command) == 2
        assert "holds a sweep of strengths, not a " in capsys.readouterr().err
    first = describe({"sweep": rows}).splitlines()[0]
    assert first.startswith("strength 0: bright=yes obeyed ") and ", KL 0 nats an image" in first


@pytest.mark.parametrize("method", ["bon", "code"])
def test_a_control_and_a_reward_together(small, controls, method):
    """Best of 3 of the controlled model is at least its particle 0 (`base`); CoDe's blocks do not score lower on average."""
    made, _ = controls

    class Red:
        name, differentiable = "red", False

        def __call__(self, images, prompts):
            return images[:, 0].mean((1, 2))

    base = tl.condition_sample(made[0], PROMPTS, {"bright": "yes"}, reward=Red(), **ASKED)
    preset = getattr(tl.presets, method)(particles=3)
    mine = tl.condition_sample(made[0], PROMPTS, {"bright": "yes"}, reward=Red(), method=preset, **ASKED)
    then, now = ([r["reward"] for r in out.manifest["images"]] for out in (base, mine))
    assert now == pytest.approx(mine.images[:, 0].mean((1, 2)).tolist(), abs=1e-6)
    assert sum(now) > sum(then)
    if method == "bon":
        assert all(a >= b - 1e-6 for a, b in zip(now, then, strict=True))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--label", "brihgt=yes"], "did you mean 'bright'"),
        (["--label", "bright=yse"], "did you mean 'yes'"),
        (["--label", "bright"], "--label takes NAME=VALUE"),
        (["--label", "bright=yes", "--label", "bright=no"], "given twice"),
        ([], "is asked for nothing: give --label bright=..."),
        (["--control", "NONE", "--label", "bright=yes"], "there is no control in 'NONE'"),
        (["--label", "bright=yes", "--strength", "1,x"], "strength must be a number"),
        (["--label", "bright=yes", "--model", "pocket"], "which is not this 'pocket'"),
    ],
)
def test_refusals(here, controls, capsys, more, said):
    _, places = controls
    assert main(words("out", places[:1], *more)) == 2
    assert said in capsys.readouterr().err
    assert not (here / "out").exists()


def test_two_controls_of_one_label_are_refused(small, controls):
    made, _ = controls
    with pytest.raises(TiltingError, match="known to both"):
        compose([made[0], made[0]], {"bright": "yes"})
    with pytest.raises(TiltingError, match="did you mean 'bright'"):
        made[0].at(brigth="yes")


SAID = [
    (0.9, None, "y=a obeyed 9 of 10, KL 3 nats an image"),
    (0.9, (-0.3, -0.26), "y=a obeyed 9 of 10, KL 3 nats an image; pictures are near the model's own (judge -0.30, base -0.26)"),
    (0.9, (-1.28, -0.26), "far from the model's own (judge -1.28, base -0.26): try a smaller --strength"),
    (0.4, (-0.3, -0.26), "near the model's own (judge -0.30, base -0.26): try a larger --strength, or train longer"),
    (0.4, (-1.28, -0.26), "far from the model's own (judge -1.28, base -0.26): train longer"),
]


@pytest.mark.parametrize(("share", "judged", "said"), SAID)
def test_obedience_and_quality_stand_side_by_side(share, judged, said):
    base = {} if judged is None else {"base": {"own": judged[0], "judge": judged[1]}}
    labels = {"y": {"asked": "a", "log_prob": -0.1, "obeys": share}}
    assert said in obedience({"images": 10, "kl_mean": 3.0, "labels": labels, **base})
    for mine, theirs, told in (
        (labels["y"], {"obeys": 0.25}, f"y=a obeyed {round(10 * share)} of 10 (base 1 of 4), KL 3"),
        ({"asked": 0.5, "log_prob": -1, "mean": 0.41}, {"mean": 0.125}, "y 0.41 for 0.5 (base 0.125), KL 3"),
    ):
        beside = {"base": {"judge": -0.3, "own": -0.3, "images": 4, "labels": {"y": theirs}}}
        assert told in obedience({"images": 10, "kl_mean": 3.0, "labels": {"y": mine}, **beside})


def test_a_classifier_that_guides_is_not_trained_longer():
    summary = {"images": 8, "kl_mean": 75.0, "labels": {"y": {"asked": "a", "log_prob": -1.0, "obeys": 0.4}}}
    near, far = ({"base": {"own": own, "judge": -0.26}} for own in (-0.3, -1.28))
    assert obedience({**summary, **near}, trained=False).endswith(": try a larger --strength")
    assert obedience({**summary, **far}, trained=False).endswith(": train a control (tilting condition train)")
    assert "train longer" not in obedience(summary, trained=False)


def test_captions_say_what_was_read():
    read = {"log_prob": math.log(0.25), "read": "b", "obeys": False, "asked": "a"}
    assert caption({"reward": 1.0, "labels": {"y": read}}) == "a 0.25 ✗ b"
    assert caption({"reward": 1.0, "labels": {"y": {**read, "obeys": True}}}) == "a 0.25 ✓"
    assert caption({"reward": None, "labels": {"n": {"log_prob": 0.4, "mean": 1.234, "asked": "2"}}}) == "n 1.23 for 2"
    assert caption({"reward": 0.5}) == caption({"reward": 0.5, "labels": {}}) == "0.500"


@pytest.mark.slow
def test_the_base_that_pictures_are_compared_with_is_the_models_own(pocket, tmp_path, monkeypatch):
    """Drawn with the same prompts and noise, no control in the model."""
    fitted = bright_fit(pocket).classifier
    random_control(pocket, [fitted], sha256=digest(weights_of(find_model("pocket")))).save(tmp_path / "control")
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: pocket)
    asked = {"prompts": ["a fox", "a cat"], "control": [str(tmp_path / "control")], "label": ["bright=yes"], "steps": 3}
    config = SampleConfig.resolve({**asked, "images": 2, "out": str(tmp_path / "run")})
    found = condition_sample(config, quiet=True)["summary"]
    drawn = tl.generate(pocket, ["a fox", "a cat"], steps=3, images=2, progress=False)
    plain, base = drawn.manifest["summary"], found["base"]
    judged = {"judge": pytest.approx(plain["judge_mean"], abs=1e-4), "own": found["judge_mean"], "images": 4}
    assert base == {**judged, "labels": base["labels"]}
    obeys = (fitted(drawn.images).argmax(1) == fitted.schema.target("yes")).double().mean()
    assert base["labels"]["bright"]["asked"] == "yes" and base["labels"]["bright"]["obeys"] == pytest.approx(float(obeys))
    assert found["judge_mean"] != plain["judge_mean"] and found["evaluations"] == plain["evaluations"]
