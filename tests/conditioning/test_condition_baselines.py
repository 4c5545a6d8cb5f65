"""CTRL's baselines as a user reaches them: classifiers of noisy latents, guidance by fitted classifiers, classifier-free
fine-tuning. The model is a few thousand random weights (`small`); what is compared with is written out here."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tilting as tl
from support.commands import manifest as manifest_of
from support.commands import over
from support.loras import lora_off
from tilting.cli import main
from tilting.conditioning.cfree import ClassifierFree, batch_of
from tilting.conditioning.dataset import read_tables
from tilting.conditioning.guided import ClassifierGuided, classifier_guided
from tilting.conditioning.noisy import NoisyClassifier, NoisyNet, load_noisy
from tilting.conditioning.trainer import make_control_trainer
from tilting.conditioning.triplets import labelled
from tilting.errors import TiltingError
from tilting.features.fitted import load_classifier
from tilting.features.schema import FILE, Schema
from tilting.oracle.mixture import ZERO_SNR
from tilting.rewards import likelihood
from tilting.runs.files import digest, digest_of
from tilting.training import checkpoint
from tilting.types import Prediction

PROMPTS = ["a fox", "a cat"]
ASKED = {"steps": 3, "images": 4, "cfg": 2.0, "batch_size": 8}
WORDS = ["--steps", "3", "--images", "4", "--cfg", "2", "--batch-size", "8", "--quiet"]
NOISY = ["--kind", "noisy", "--widths", "16", "--lr", "0.01", "--batch-size", "16"]


def sided(images, right):
    """Pictures whose right half (left, where ``right`` is False) is brighter by .4, which a random autoencoder lets through."""
    ramp = torch.where(torch.arange(16) < 8, -0.2, 0.2)
    return (images + torch.where(right, 1.0, -1.0)[:, None, None, None] * ramp).clamp(0, 1)


@pytest.fixture(scope="module")
def pictures(small):
    """Eighty pictures of the model, one half of each brighter, and their labels."""
    images = tl.generate(small, PROMPTS, steps=3, images=40, cfg=2.0, batch_size=80).images
    right = torch.rand(len(images), generator=torch.Generator().manual_seed(0)) < 0.5
    return sided(images, right), ["yes" if one else "no" for one in right]


@pytest.fixture(scope="module")
def table(pictures, tmp_path_factory):
    """The same in a folder, with prompts in half of the rows and a number that is the label's sign."""
    place = tmp_path_factory.mktemp("data")
    lines = ["file,bright,signed,prompt"]
    for i, (image, word) in enumerate(zip(*pictures, strict=True)):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(place / f"{i}.png")
        lines.append(f"{i}.png,{word},{(1 if word == 'yes' else -1) + i / 1000},{'' if i % 2 else PROMPTS[i // 40]}")
    (place / "labels.csv").write_text("\n".join(lines) + "\n")
    return place / "labels.csv"


@pytest.fixture
def here(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    for room in ("generation.run", "conditioning.fit_run", "conditioning.train_run"):
        monkeypatch.setattr(f"tilting.{room}.load", lambda name, *more, **how: small)
    return tmp_path


@pytest.fixture(scope="module")
def fits(table, folder, small, tmp_path_factory):
    """A classifier of clean pictures and one of noisy latents, by the command, of the same table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tilting.conditioning.fit_run.load", lambda name, *more, **options: small)
        places = {kind: tmp_path_factory.mktemp("fits") / kind for kind in ("clean", "noisy")}
        data = ["condition", "fit", "--data", str(table), "--label", "bright=no,yes", "--quiet"]
        clean = ["--kind", "cnn", "--size", "16", "--widths", "4,4,8", "--epochs", "12", "--batch-size", "16", "--lr", "0.02"]
        assert main([*data, *clean, "--out", str(places["clean"])]) == 0
        assert main([*data, *NOISY, "--epochs", "25", "--model", str(folder), "--out", str(places["noisy"])]) == 0
    return places


@contextmanager
def interrupted(after):
    """Ctrl-C right after so many checkpoints, whose steps it gives."""
    write, made = checkpoint.write, []

    def stop(place, saved):
        write(place, saved)
        made.append(saved.step)
        if len(made) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", stop)
        yield made


# the mathematics of guidance


def toy(x, t, rows):
    """A denoiser in float64 that is not linear."""
    eps = torch.tanh(x) * 0.7 + 0.1
    return Prediction(eps, (x - t.sigma * eps) / t.alpha, 0.3 * eps)


class Toy:
    """It, as a model."""

    def denoiser(self, prompts, cfg, negative=""):
        return toy


@pytest.mark.parametrize("shape", [(5,), (4, 8, 8)])
def test_the_shift_of_the_score_is_the_gradient_of_log_p_by_finite_differences(shape):
    """Two labels, one of classes and one a number, on latents: directional derivatives of Σ log p, and eps and x0 agree."""
    torch.manual_seed(0)
    schemas = [Schema("a", classes=("u", "v", "w"), temperature=1.7), Schema("b", "gaussian", shift=1.0, scale=2.0, std=0.8)]
    nets = {s.label: NoisyClassifier(NoisyNet(s.outputs, shape, 16), s).double().eval() for s in schemas}
    asked, gamma, t = {"a": 2.0, "b": -0.5}, 3.0, ZERO_SNR.grid(5)[2]
    x, rows = torch.randn(3, *shape, dtype=torch.float64), torch.arange(3)
    mine = ClassifierGuided(Toy(), nets, asked, gamma).denoiser(["", "", ""], 1.0)(x, t, rows)
    before = toy(x, t, rows)

    def log_p(x):
        each = [net.log_prob(x, t, torch.full((3,), asked[name], dtype=torch.float64)) for name, net in nets.items()]
        return each[0] + each[1]

    shift = before.eps - mine.eps
    for seed in range(3):
        u = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        slope = (log_p(x + 1e-5 * u) - log_p(x - 1e-5 * u)) / 2e-5
        assert torch.allclose((shift * u).flatten(1).sum(1), t.sigma * gamma * slope, rtol=1e-6, atol=1e-9)
    assert shift.abs().max() > 1e-3
    assert torch.allclose(t.alpha * mine.x0 + t.sigma * mine.eps, x, atol=1e-12)
    assert torch.equal(mine.correction, before.correction)
    for where, strength in ((t, 0.0), (ZERO_SNR.grid(5)[0], gamma)):  # strength 0, and pure noise
        assert where is t or where.alpha == 0
        given = Prediction(x, x + 1, x - 1)
        assert (
            classifier_guided(lambda x, t, rows, out=given: out, lambda x, t, rows: log_p(x), strength)(x, where, rows) is given
        )


# fitting on noisy latents


def test_a_fit_of_noisy_latents_says_its_kind_and_model_and_knows_less_the_more_noise(fits, folder, small):
    config = json.loads((fits["noisy"] / "classifier.json").read_text())
    assert config["network"] == {"name": "noisy", "shape": [4, 8, 8], "width": 16}
    assert config["model"] == {"name": str(folder), "sha256": digest(folder)}
    assert config["schema"]["classes"] == ["no", "yes"]
    metrics = json.loads((fits["noisy"] / "metrics.json").read_text())
    levels = metrics["by_noise"]
    held = metrics["records"]["held_out"]
    assert sum(level["items"] for level in levels) == 8 * held
    assert metrics["nll"]["after"] == pytest.approx(sum(n["items"] * n["nll"] for n in levels) / (8 * held))
    assert metrics["accuracy"] == pytest.approx(sum(n["items"] * n["accuracy"] for n in levels) / (8 * held))
    assert metrics["temperature"] == config["schema"]["temperature"]
    assert all(a["sigma"][1] <= b["sigma"][0] for a, b in pairwise(levels))
    print([round(level["accuracy"], 2) for level in levels])
    assert levels[0]["accuracy"] > 0.8
    assert levels[0]["nll"] < 0.6 * levels[-1]["nll"]
    assert (fits["noisy"] / "reliability.png").is_file()


def test_its_accuracy_is_that_of_pictures_it_never_saw(fits, small, pictures):
    """Pictures of another seed, encoded and noised here by hand: right where there is little noise, chance at pure noise."""
    fresh = tl.generate(small, PROMPTS, steps=3, images=30, cfg=2.0, batch_size=60, seed=9).images
    classifier, right = load_noisy(fits["noisy"]), {}
    grid = small.schedule.grid(20)
    with torch.no_grad():
        x0 = small.encode(torch.cat([sided(fresh, torch.ones(60) > 0), sided(fresh, torch.ones(60) < 0)]))
    y, gen = (torch.arange(120) < 60).float(), torch.Generator().manual_seed(0)
    for t in (grid[-2], grid[0]):
        x = t.alpha * x0 + t.sigma * torch.randn(x0.shape, generator=gen)
        said = classifier.log_prob(x, t, torch.ones(120)) > math.log(0.5)
        right[t.alpha] = (said == (y == 1)).float().mean().item()
    little, much = right[grid[-2].alpha], right[grid[0].alpha]
    print(f"accuracy at little noise {little:.2f}, at pure noise {much:.2f}")
    assert little > 0.8
    assert 0.35 < much < 0.65


def test_a_stopped_fit_goes_on_to_the_same_weights(here, table):
    words = ["condition", "fit", "--data", str(table), "--label", "bright", *NOISY, "--epochs", "5", "--quiet", "--out"]
    assert main([*words, "whole"]) == 0
    with interrupted(3):
        assert main([*words, "stopped"]) == 130
    assert not (here / "stopped" / "classifier.json").exists()
    assert main([*words, "stopped"]) == 0
    for name in ("classifier.safetensors", "classifier.json"):
        assert (here / "stopped" / name).read_bytes() == (here / "whole" / name).read_bytes()


def test_the_function_fits_as_the_command_does_and_a_number_too(small, pictures):
    images, words = pictures
    made = tl.condition_fit(images, words, "bright", kind="noisy", widths=(16,), model=small, epochs=20, batch_size=16, lr=0.01)
    assert made.metrics["by_noise"][0]["accuracy"] > 0.75
    assert made.classifier.model == {"name": small.name, "sha256": digest(Path(small.name))}
    numbers = [1.0 if word == "yes" else -1.0 for word in words]
    number = tl.condition_fit(
        images,
        [v + i / 1000 for i, v in enumerate(numbers)],
        "signed",
        kind="noisy",
        widths=(16,),
        model=small,
        epochs=20,
        batch_size=16,
        lr=0.01,
    )
    levels = number.metrics["by_noise"]
    assert levels[0]["rmse"] < 0.97 * levels[-1]["rmse"]
    assert number.metrics["rmse"] ** 2 == pytest.approx(
        sum(n["items"] * n["rmse"] ** 2 for n in levels) / sum(n["items"] for n in levels)
    )
    with pytest.raises(TiltingError, match="needs a model"):
        tl.condition_fit(images, words, kind="noisy")
    with pytest.raises(TiltingError, match="has no use for a model"):
        tl.condition_fit(images, words, model=small)
    with pytest.raises(TiltingError, match="sees images 3x16x16, not 3x8x8"):
        tl.condition_fit(images[:, :, :8, :8], words, kind="noisy", model=small)


# guiding by fitted classifiers


def sample(fit, *more, out="out"):
    return ["condition", "sample", *PROMPTS, "--classifier", str(fit), *WORDS, "--out", out, *more]


def read(place):
    return manifest_of(place)


@pytest.mark.parametrize("kind", ["clean", "noisy"])
def test_a_sweep_begins_at_the_base_model_bit_for_bit_and_leaves_it(here, fits, small, folder, kind):
    assert main(sample(fits[kind], "--model", str(folder), "--label", "bright=yes", "--strength", "0,4")) == 0
    rows = json.loads((here / "out" / "sweep.json").read_text())["sweep"]
    base = tl.generate(small, PROMPTS, **ASKED).images
    pixels = (base.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    for i in range(8):
        drawn = Image.open(here / "out" / "strength-0" / "images" / f"{i:05d}.png")
        assert (torch.from_numpy(np.array(drawn)) == torch.from_numpy(pixels[i])).all()
    assert rows[0]["summary"]["kl_mean"] == 0
    assert rows[1]["summary"]["kl_mean"] > 1e-3
    said = [row["summary"]["labels"]["bright"]["log_prob"] for row in rows]
    print(f"{kind}: log p {said[0]:.3f} -> {said[1]:.3f}, KL {rows[1]['summary']['kl_mean']:.3f}")
    assert kind == "noisy" or said[1] > said[0] + 0.02  # of latents see below: a random autoencoder does not read back
    found = read(here / "out" / "strength-4")
    assert found["model"]["classifiers"] == [{"name": str(fits[kind]), "sha256": digest_of((fits[kind], fits[kind] / FILE))}]
    assert main(sample(fits[kind], "--model", str(folder), "--label", "bright=yes", "--strength", "0,4")) == 0  # all there
    assert main(sample(fits[kind], "--model", str(folder), "--label", "bright=no", "--strength", "0,4")) == 2


@pytest.mark.parametrize("kind", ["clean", "noisy"])
def test_the_function_draws_as_the_command_and_the_kl_is_that_of_the_strength(here, fits, small, folder, kind):
    """Of three steps the first is of pure noise and the last has no density: in between the KL is quadratic in the strength."""
    fit: Any = (load_classifier if kind == "clean" else load_noisy)(fits[kind])
    one, two = (tl.condition_sample(small, PROMPTS, {"bright": "yes"}, s, classifiers=fit, **ASKED) for s in (1.0, 2.0))
    base = tl.generate(small, PROMPTS, **ASKED).images
    zero = tl.condition_sample(small, PROMPTS, {"bright": "yes"}, 0.0, classifiers=[fit], **ASKED)
    assert torch.equal(zero.images, base)
    assert (two.images - base).abs().max() > 1e-3
    kls = [[r["kl"] for r in out.manifest["images"]] for out in (one, two)]
    assert min(kls[0]) > 0
    assert kls[1] == pytest.approx([4 * kl for kl in kls[0]], rel=1e-3)
    assert main(sample(fits[kind], "--model", str(folder), "--label", "bright=yes", "--strength", "2")) == 0
    manifest = read(here / "out")
    assert [r["kl"] for r in manifest["images"]] == pytest.approx(kls[1], rel=1e-4)
    for record, image in zip(manifest["images"], two.images, strict=True):
        drawn = torch.from_numpy(np.array(Image.open(here / "out" / record["file"])))
        assert (drawn == (image.permute(1, 2, 0) * 255).round().byte()).all()
    told = [r["labels"]["bright"]["log_prob"] for r in manifest["images"]]
    if kind == "clean":
        wanted = fit.log_prob(two.images, torch.ones(8))
    else:  # the images encoded, at the first of the training times
        alpha = small.schedule.alpha_bar[0] ** 0.5
        t = small.schedule.grid(3)[1]._replace(alpha=alpha, sigma=(1 - alpha**2) ** 0.5)
        with torch.no_grad():
            wanted = fit.log_prob(alpha * small.encode(two.images), t, torch.ones(8))
    assert told == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_classifier_of_clean_pictures_is_dps_with_its_log_likelihood(fits, small):
    """Against the preset and the reward put together by hand, which `tilting generate` has."""
    mine = tl.condition_sample(small, PROMPTS, {"bright": "no"}, 3.0, classifiers=load_classifier(fits["clean"]), **ASKED)
    reward = likelihood(f"{fits['clean']}#bright=no")
    preset = tl.presets.dps(3.0, form="score")
    theirs = tl.generate(small, PROMPTS, reward=reward, method=preset, **ASKED)
    assert torch.equal(mine.images, theirs.images)


def test_classifier_guidance_climbs_what_it_is_guided_by(fits, small, monkeypatch):
    """log p(y | x_t, t) of the latents that are drawn, at the least noise of the chain."""
    fit, seen, decoder = load_noisy(fits["noisy"]), [], small.decoder

    def looked(prompts):
        decode = decoder(prompts)
        return lambda x, rows: seen.append(x) or decode(x, rows)

    monkeypatch.setattr(small, "decoder", looked)
    for strength in (0.0, 1.0, 3.0):
        tl.condition_sample(small, PROMPTS, {"bright": "yes"}, strength, classifiers=fit, **ASKED | {"steps": 8})
    t = small.schedule.grid(40)[-2]
    with torch.no_grad():
        said = [fit.log_prob(t.alpha * x, t, torch.ones(len(x))).mean().item() for x in seen]
    print(f"log p of latents {said[0]:.3f} -> {said[1]:.3f} -> {said[2]:.3f}")
    assert said[1] > said[0] + 0.02
    assert said[2] > said[1]


def test_classifier_guidance_and_a_method_together(fits, small):
    class Red:
        name, differentiable = "red", False

        def __call__(self, images, prompts):
            return images[:, 0].mean((1, 2))

    fit = load_noisy(fits["noisy"])
    asked = {"classifiers": fit, "reward": Red(), **ASKED}
    one = tl.condition_sample(small, PROMPTS, {"bright": "yes"}, 2.0, **asked)
    best = tl.condition_sample(small, PROMPTS, {"bright": "yes"}, 2.0, method=tl.presets.bon(particles=3), **asked)
    pairs = zip(best.manifest["images"], one.manifest["images"], strict=True)
    assert all(a["reward"] >= b["reward"] - 1e-6 for a, b in pairs)


def test_print_config_reads_back(here, fits, folder, capsys):
    for kind in ("clean", "noisy"):
        words = sample(fits[kind], "--model", str(folder), "--label", "bright=yes", "--strength", "2,3")
        assert main([*words, "--print-config"]) == 0
        text = capsys.readouterr().out
        (here / f"{kind}.yaml").write_text(text)
        assert main(["condition", "sample", "--config", f"{kind}.yaml", "--print-config"]) == 0
        assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("kinds", "more", "said"),
    [
        ("", ["--label", "bright=yes"], "say what shall be obeyed: --control CTL"),
        ("clean", [], "the classifier"),
        ("clean", ["--label", "bright=yse"], "did you mean 'yes'"),
        ("clean", ["--label", "brigth=yes"], "no classifier here knows a label 'brigth'; did you mean 'bright'?"),
        ("clean", ["--label", "bright=yes", "--control", "CTL"], "--classifier guides the pre-trained model: beside --control"),
        ("clean", ["--label", "bright=yes", "--method", "codex"], "guides by --method dps: for codex give --reward"),
        ("clean", ["--label", "bright=yes", "--reward", "clip"], "leave --reward out"),
        ("clean", ["--label", "bright=yes", "--set", "dps.strength=2"], "is given by --strength"),
        ("clean noisy", ["--label", "bright=yes"], "is of clean pictures and"),
        ("clean clean", ["--label", "bright=yes"], "is given twice"),
        ("noisy", ["--label", "bright=yes", "--model", "pocket"], "which is not this 'pocket'"),
        ("noisy", ["--label", "bright=yes", "--strength", "1,x"], "strength must be a number"),
        ("noisy", ["--label", "bright=yes", "--steps", "1"], "no effect at pure noise"),
    ],
)
def test_refusals_of_guidance(here, fits, folder, capsys, kinds, more, said):
    places = [word for kind in kinds.split() for word in ("--classifier", str(fits[kind]))]
    model = [] if "--model" in more else ["--model", str(folder)]
    assert main(over(["condition", "sample", *PROMPTS, *places, *WORDS, "--out", "out", *model], *more)) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (here / "out").exists()


def test_refusals_of_kinds(here, fits, table, small, folder, capsys):
    fit = ["condition", "fit", "--data", str(table), "--label", "bright", "--quiet", "--out", "out"]
    for more, said in (
        (["--kind", "noisy", "--size", "8"], "--size is of pictures"),
        (["--kind", "noisy", "--widths", "12"], "one multiple of 8, not 12"),
        (["--kind", "cnn", "--model", str(folder)], "--kind cnn does not"),
        (["--kind", "noisy", "--model", "pockte"], "did you mean 'pocket'"),
    ):
        assert main([*fit, *more]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(TiltingError, match="is of noisy latents: this needs one of clean pictures"):
        load_classifier(fits["noisy"])
    with pytest.raises(TiltingError, match="is of clean pictures: classifier guidance needs one of noisy latents"):
        load_noisy(fits["clean"])
    odd = NoisyClassifier(NoisyNet(2, (3, 4, 4), 8), Schema("bright", classes=("no", "yes")))
    with pytest.raises(TiltingError, match="of another model cannot guide"):
        tl.condition_sample(small, PROMPTS, {"bright": "yes"}, classifiers=odd, **ASKED)
    preset = tl.presets.bon()
    with pytest.raises(TiltingError, match="leave both out"):
        tl.condition_sample(
            small, PROMPTS, {"bright": "yes"}, classifiers=load_classifier(fits["clean"]), method=preset, **ASKED
        )
    assert not (here / "out").exists()


# classifier-free fine-tuning


FREE = {"objective": "classifier-free", "rank": 2, "batch_size": 8, "seed": 3}


@pytest.fixture(scope="module")
def triplets(small, table):
    return labelled(small, read_tables([str(table)], ["bright=no,yes"]))


def loss_of(run, data, dropout, step=7, index=0, count=1):
    world, clean = batch_of(run.augmented, data.triplets, 8, dropout, 3, step, index, count)
    return world, clean, next(iter(ClassifierFree(lambda w: w.mine(clean), run.model.schedule.kind)(world))).value


@pytest.mark.parametrize("place", ["latent", "score", "time"])
def test_without_labels_the_loss_is_the_base_models_and_nothing_is_learnt_of_them(small, triplets, place):
    """At dropout 1, whatever the embedding holds: mean |network - v|² written out, one image at each of eight times."""
    run = make_control_trainer(small, data=triplets, place=place, **FREE)
    with torch.no_grad():
        for p in run.augmented.embedding.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    world, clean, loss = loss_of(run, triplets, 1.0)
    noise, at = world.noise(0, "fit"), torch.rand(8, generator=world.generator("time"))
    text, errors = small.encode_prompts(world.prompts), []
    for i in range(8):
        t, row = world.grid[int((i + at[i].item()) / 8 * world.steps)], torch.tensor([i])
        x = t.alpha * clean[row] + t.sigma * noise[row]
        with torch.no_grad(), lora_off(small.unet):
            output = small.network(x, t, text[row])
        errors.append((output - (t.alpha * noise[row] - t.sigma * clean[row])).square().mean())
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    loss.backward()
    grads = [p.grad for p in run.augmented.embedding.parameters()]
    assert all(g is None or not g.any() for g in grads)
    assert abs(loss_of(run, triplets, 0.0)[2].item() - loss.item()) > 1e-4
    halves = [loss_of(run, triplets, 0.3, index=i, count=2)[2].item() for i in range(2)]
    assert sum(halves) / 2 == pytest.approx(loss_of(run, triplets, 0.3)[2].item(), rel=1e-5)  # two processes are one
    run.control()


def test_triplets_are_what_the_tables_say(small, table, tmp_path):
    """Two tables with a label each and no shared picture; classes in the order of a classifier, numbers in its unit."""
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    there = table.parent
    parts = [("bright", 1, rows[:40]), ("signed", 2, rows[40:])]
    for name, column, mine in parts:
        lines = [f"file,{name},prompt", *(f"{there / row[0]},{row[column]},{row[3]}" for row in mine)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    known = [Schema("bright", classes=("yes", "no")), Schema("signed", "gaussian", shift=0.5, scale=2.0)]
    places = [str(tmp_path / f"{name}.csv") for name in ("bright", "signed")]
    found = labelled(small, read_tables(places, ["bright", "signed=gaussian"]), known)
    y = found.triplets.labels
    assert y["bright"][:40].tolist() == [0.0 if row[1] == "yes" else 1.0 for row in rows[:40]]
    assert y["signed"][40:].tolist() == pytest.approx([(float(row[2]) - 0.5) / 2 for row in rows[40:]])
    assert y["bright"][40:].isnan().all()
    assert y["signed"][:40].isnan().all()
    assert list(found.triplets.prompts) == [row[3] for row in rows]
    assert "" in found.triplets.prompts
    image = torch.from_numpy(np.array(Image.open(there / "47.png"))).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        assert torch.allclose(found.triplets.latents[47], small.encode(image[None])[0], atol=1e-5)
    with pytest.raises(TiltingError, match="knows left, right, the data no, yes"):
        labelled(small, read_tables([str(table)], ["bright"]), [Schema("bright", classes=("left", "right"))])
    with pytest.raises(TiltingError, match="the label 'bright' is in both"):
        read_tables([str(table), places[0]], ["bright"])
    with pytest.raises(TiltingError, match="did you mean 'bright'"):
        read_tables([str(table)], ["brigth"])


def train(out, table, fits, folder, *more):
    return [
        "condition",
        "train",
        "--sample-every",
        "0",
        "--objective",
        "classifier-free",
        "--data",
        str(table),
        "--label",
        "bright=no,yes",
        "--classifier",
        str(fits["clean"]),
        "--model",
        str(folder),
        "--rank",
        "2",
        "--batch-size",
        "8",
        "--seed",
        "3",
        "--train-steps",
        "8",
        "--checkpoint-every",
        "2",
        "--lora-lr",
        "0.01",
        "--quiet",
        "--out",
        out,
        *more,
    ]


def test_a_stopped_training_goes_on_and_the_function_trains_the_same(here, table, fits, folder, small, triplets):
    assert main(train("whole", table, fits, folder)) == 0
    with interrupted(2) as made:
        assert main(train("stopped", table, fits, folder)) == 130
    assert made == [2, 4]
    assert main(train("stopped", table, fits, folder)) == 0
    for name in ("embedding.safetensors", "lora/pytorch_lora_weights.safetensors", "metrics.jsonl"):
        assert (here / "stopped" / name).read_bytes() == (here / "whole" / name).read_bytes()
    rows = [json.loads(line) for line in (here / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["evaluations"] == 8 * 8
    summary = read(here / "whole")["summary"]
    assert summary["last"] == {"error": rows[-1]["error"]}
    info = json.loads((here / "whole" / "control.json").read_text())
    assert (info["planner"], info["effective_gamma"], info["off"]) == ("classifier-free", 1.0, -1.0)
    assert info["labels"][0]["classes"] == ["no", "yes"]
    # the function
    mine = tl.condition_train(
        small, load_classifier(fits["clean"]), data=table, labels=["bright=no,yes"], train_steps=8, lora_lr=0.01, **FREE
    )
    assert [row["error"] for row in mine.history] == [row["error"] for row in rows]
    theirs = tl.load_control(here / "whole", small)
    state, saved = (c.augmented.embedding.state_dict() for c in (mine.control, theirs))
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert state["tables.bright"].abs().max() > 0
    drawn = [tl.condition_sample(c, PROMPTS, {"bright": "yes"}, **ASKED) for c in (mine.control, theirs)]
    assert torch.equal(drawn[0].images, drawn[1].images)
    assert "obeys" in drawn[1].manifest["summary"]["labels"]["bright"]
    # it learns: the loss of a batch it has not seen, before and after
    fresh = make_control_trainer(small, data=triplets, **FREE)
    before = loss_of(fresh, triplets, 0.0, step=1000)[2].item()
    fresh.control()
    with torch.no_grad():
        after = loss_of(type("Run", (), {"augmented": theirs.augmented, "model": small}), triplets, 0.0, step=1000)[2].item()
    print(f"error of unseen noise {before:.4f} -> {after:.4f}")
    assert after < before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--objective", "ctrl"], "data has a use in --objective classifier-free alone: ctrl learns from --classifier"),
        (["--objective", "ctlr"], "did you mean 'ctrl'"),
        (["a fox"], "prompts has a use in --objective ctrl alone"),
        (["--planner", "ppo"], "planner has a use in --objective ctrl alone"),
        (["--gamma", "3"], "gamma has a use in --objective ctrl alone"),
        (["--label-dropout", "1"], "label-dropout must be below 1"),
        (["--classifier", "NOISY"], "is of noisy latents: a control needs one of clean pictures"),
        (["--classifier", "f.py:f"], "not the function 'f.py:f'"),
        (["--label", "brigth"], "there is no column 'brigth' of labels"),
        (["--data", "nothing.csv"], "there is no file or folder 'nothing.csv'"),
    ],
)
def test_refusals_of_training(here, table, fits, folder, capsys, more, said):
    given = [str(fits["noisy"]) if word == "NOISY" else word for word in more]
    words = [word for word in train("out", table, fits, folder) if word != "--objective" or "--objective" not in given]
    if "--objective" in given:
        words.remove("classifier-free")
    if "--label" in given:
        words[words.index("bright=no,yes")] = "bright"
    assert main([*words, *given]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (here / "out").exists()
    if given[0] == "a fox":
        assert main(["condition", "train", "--objective", "classifier-free", "--out", "out", "--quiet"]) == 2
        assert "give --data labels.csv" in capsys.readouterr().err
