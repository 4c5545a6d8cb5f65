"""Fitting and calibrating p(y | x): formulas by hand, known temperatures, labels learnt from rendered pictures, resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, r2_score

import tilting.training.checkpoint as checkpoint
from support.commands import over, refused
from support.learned import save_classifier as save_vit
from tilting.cli import main
from tilting.conditioning import calibrate
from tilting.conditioning.fit import Likelihood, begin, ended, epochs, schema_of
from tilting.conditioning.fit_label import fit_label, measured
from tilting.conditioning.fit_run import describe
from tilting.conditioning.networks import build_network, inputs_of
from tilting.conditioning.pictures import InMemory, Pictures
from tilting.conditioning.table import Column
from tilting.config.condition_fit import FitConfig
from tilting.errors import TiltingError
from tilting.features.fitted import FittedClassifier, ResidualCnn, load_classifier, log_prob, save_classifier
from tilting.features.pixels import resize
from tilting.features.schema import Schema
from tilting.rewards import likelihood
from tilting.runs.owner import FIT as KIND_OF_FIT
from tilting.runs.owner import kind_of

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}
QUICK = ["--kind", "cnn", "--widths", "4,8,8", "--size", "16", "--batch-size", "16", "--lr", "0.02", "--quiet"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """90 noisy squares of three colours in 16 x 16 pixels; colour and light of each in labels.csv."""
    folder = tmp_path_factory.mktemp("rendered")
    rng = np.random.default_rng(0)
    lines = ["file,colour,light"]
    for i in range(90):
        name = list(COLOURS)[i % 3]
        pixels = np.array(COLOURS[name]) * rng.uniform(0.5, 1.2) + rng.normal(0, 25, (16, 16, 3))
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{name},{100 * pixels.mean() / 255:.4f}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def words(rendered: Path, out: Path, *more: str) -> list[str]:
    return ["condition", "fit", "--data", str(rendered / "labels.csv"), *QUICK, "--out", str(out), *more]


def draws(seed: int, count: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: calibrated by construction."""
    rng = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(count, classes, generator=rng, dtype=torch.float64)
    return z, torch.multinomial(z.softmax(1), 1, generator=rng)[:, 0]


def test_ece_by_hand():
    """Two bins: (0, 1/2] holds .4 (right) and .5 (wrong); (1/2, 1] holds .6 (right), .9 (wrong) and 1 (right)."""
    p = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    p, y = (p * 10).round().double() / 10, torch.tensor([0, 1, 1, 2, 2])
    found = calibrate.reliability(p, y, 2)
    assert found.items.tolist() == [2, 3]
    assert found.confidence.tolist() == pytest.approx([0.45, 2.5 / 3]) and found.accuracy.tolist() == pytest.approx(
        [0.5, 2 / 3]
    )
    assert calibrate.ece(p, y, 2) == pytest.approx(2 / 5 * 0.05 + 3 / 5 * (2.5 / 3 - 2 / 3))
    assert calibrate.ece(p, y, 10) == pytest.approx((0.6 + 0.5 + 0.4 + 0.9 + 0.0) / 5)  # one in each bin
    with pytest.raises(TiltingError, match="after the softmax"):
        calibrate.ece(p * 2, y)


def test_temperature_is_the_minimum_of_a_grid():
    z, y = draws(0, 200)
    z = 3 * z + 7  # a shift of all logits does nothing
    grid = torch.logspace(-0.5, 1.2, 1601, dtype=torch.float64)
    nll = torch.stack([torch.nn.functional.cross_entropy(z / t, y) for t in grid])
    best = float(grid[nll.argmin()])
    assert calibrate.temperature(z, y) == pytest.approx(best, rel=3e-3)
    for factor in (1e-4, 1e4):  # whatever the unit of the logits
        assert calibrate.temperature(factor * z, y) == pytest.approx(min(factor * best, 100), rel=3e-3)


@pytest.mark.parametrize("true", [3.0, 0.5])
def test_temperature_of_overconfident_and_timid_logits_is_recovered(true):
    z, y = draws(1, 20000)
    found = calibrate.temperature(true * z, y)
    assert found == pytest.approx(true, rel=0.03)
    before, after = (calibrate.ece((true * z / t).softmax(1), y) for t in (1, found))
    assert before > 0.05 and after < 0.015


def test_temperature_where_there_is_none():
    z = torch.eye(3).repeat(4, 1)
    y = torch.arange(3).repeat(4)
    assert calibrate.temperature(z, y) == 1.0  # separable: sharper for ever
    assert calibrate.temperature(z, (y + 1) % 3) == calibrate.HOTTEST  # always wrong: flatter for ever
    with pytest.raises(TiltingError, match="finite logits"):
        calibrate.temperature(z * math.nan, y)


def test_gaussian_calibration():
    rng = torch.Generator().manual_seed(2)
    gaps = 1.7 * torch.randn(5000, generator=rng, dtype=torch.float64)
    t = calibrate.gaussian_temperature(gaps)
    schema = Schema("y", "gaussian", std=2.0)
    grid = torch.linspace(2, 4, 2001, dtype=torch.float64)
    nll = torch.stack([-log_prob(schema, torch.zeros(5000, 1).double(), 2 * gaps, v).mean() for v in grid])
    assert t == pytest.approx(float(grid[nll.argmin()]), abs=1e-3) and t == pytest.approx(1.7**2, rel=0.06)
    wide, calibrated = calibrate.gaussian_ece(gaps), calibrate.gaussian_ece(gaps / t**0.5)
    levels = (np.arange(15) + 0.5) / 15
    z = torch.special.ndtri(torch.tensor(levels))
    assert wide == pytest.approx(float((torch.special.ndtr(z / 1.7) - torch.tensor(levels)).abs().mean()), abs=0.015)
    assert calibrated < 0.012
    assert calibrate.gaussian_ece(torch.zeros(3), 4) == pytest.approx((0.125 + 0.375 + 0.375 + 0.125) / 4)


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, guess = rng.integers(0, 4, 200), rng.integers(0, 5, 200)  # class 4 is guessed and never true, class 5 neither
    counts = calibrate.confusion(torch.tensor(y), torch.tensor(guess), 6)
    assert counts.tolist() == confusion_matrix(y, guess, labels=range(6)).tolist()
    assert calibrate.macro_f1(counts) == pytest.approx(f1_score(y, guess, average="macro", zero_division=0))
    real = rng.normal(size=50)
    assert calibrate.r_squared(torch.tensor(real), torch.tensor(real**2)) == pytest.approx(r2_score(real, real**2))


def test_cnn_learns_a_colour_and_a_brightness(rendered, tmp_path, capsys):
    """Both labels of one table, end to end, and everything the folder holds."""
    out = tmp_path / "FIT"
    assert main([*words(rendered, out, "--epochs", "14"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["colour"]["accuracy"] > 0.85 > 0.5 > summary["colour"]["commonest"] and summary["colour"]["macro_f1"] > 0.8
    assert summary["light"]["r2"] > 0.5
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert kind_of(out) is KIND_OF_FIT
    assert (
        manifest["labels"]["colour"]["classes"] == ["blue", "green", "red"]
        and manifest["labels"]["light"]["kind"] == "gaussian"
    )
    assert json.loads((out / "metrics.json").read_bytes()) == summary
    for name, picture in (("colour", "confusion.png"), ("light", "predicted.png")):
        for file in (picture, "reliability.png"):
            with Image.open(out / name / file) as image:
                assert min(image.size) > 300 and len(image.convert("RGB").getcolors(2**24) or ()) > 20
        assert not (out / name / "checkpoints").exists()

    from tilting.conditioning.dataset import read_data

    data = read_data(FitConfig.resolve({"data": str(rendered / "labels.csv")}))
    held = data.split(0)[1]
    x = torch.stack(
        [torch.tensor(np.array(Image.open(rendered / data.records[i].file)).transpose(2, 0, 1) / 255.0) for i in held]
    )
    for name in ("colour", "light"):
        one, row = load_classifier(out / name), summary[name]
        y = torch.tensor([one.schema.target(data.records[i].labels[name]) for i in held])
        with torch.no_grad():
            logits = one(x.float()).double()
        assert -float(one.log_prob(x.float(), y).mean()) == pytest.approx(row["nll"]["after"], abs=1e-5)
        assert row["nll"]["after"] <= row["nll"]["before"] + 1e-9
        assert row["nll"]["before"] == pytest.approx(min(h["held_out"] for h in row["history"]), abs=1e-5)
        if name == "colour":
            assert row["accuracy"] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
            assert row["confusion"] == confusion_matrix(y, logits.argmax(1), labels=range(3)).tolist()
            p = (logits / one.schema.temperature).softmax(1)
            assert row["ece"]["after"] == pytest.approx(calibrate.ece(p, y.long()), abs=1e-6)
            asked = likelihood(f"{out / name}#colour=red")
            assert torch.allclose(asked(x.float(), [""] * len(x)).double(), p[:, 2].log(), atol=1e-5)
        else:
            assert row["rmse"] == pytest.approx(
                float((one.schema.shift + one.schema.scale * logits[:, 0] - y).square().mean() ** 0.5)
            )


@pytest.mark.parametrize("kind", ["mlp", "folder"])
def test_a_head_on_frozen_embeddings_learns(rendered, tmp_path, kind, capsys):
    folder = str(save_vit(tmp_path / "vit")) if kind == "folder" else "mlp"
    more = ["--widths", "16"] if kind == "mlp" else []
    out = tmp_path / "FIT"
    words = [
        "condition",
        "fit",
        "--data",
        str(rendered / "labels.csv"),
        "--label",
        "colour",
        "--kind",
        folder,
        "--epochs",
        "30",
    ]
    assert main([*words, *more, "--batch-size", "16", "--lr", "0.02", "--json", "--quiet", "--out", str(out)]) == 0
    row = json.loads(capsys.readouterr().out)["colour"]
    assert row["accuracy"] > 0.8 > 0.5 > row["commonest"]
    one = load_classifier(out)
    x = torch.tensor(np.array(Image.open(rendered / "0.png")).transpose(2, 0, 1) / 255.0).float()[None]
    x.requires_grad_()
    one.log_prob(x, torch.tensor([2])).sum().backward()
    assert x.grad is not None and float(x.grad.abs().max()) > 0  # what training against it needs
    assert not any(key.startswith("embedder") for key in checkpoint.load_file(out / "classifier.safetensors"))


def test_an_interrupted_fit_is_the_same_fit(rendered, tmp_path, monkeypatch, capsys):
    """Killed in the middle of its second checkpoint, then run again; dropout, batch norm and two labels on the way."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(rendered, whole, "--epochs", "3")) == 0
    write, calls = checkpoint.write, []

    def dies(folder, saved, keep=2):
        calls.append(saved.step)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        return write(folder, saved, keep)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", dies)
        assert main(words(rendered, parts, "--epochs", "3")) == 130
        assert "goes on where it stopped" in capsys.readouterr().err
        assert not (parts / "colour" / "classifier.json").exists()
        assert main(words(rendered, parts, "--epochs", "3")) == 130  # in the second label now
        assert (parts / "colour" / "classifier.json").exists()
    assert calls == [1, 2, 2, 3, 1]
    assert main(words(rendered, parts, "--epochs", "3")) == 0
    for file in ("colour/classifier.safetensors", "light/classifier.safetensors", "light/classifier.json", "metrics.json"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()
    stamp = (parts / "metrics.json").stat().st_mtime_ns
    assert main(words(rendered, parts, "--epochs", "3")) == 0 and (parts / "metrics.json").stat().st_mtime_ns == stamp


def test_a_fit_of_which_nothing_was_kept_binds_nobody(rendered, tmp_path, capsys):
    out = tmp_path / "FIT"
    assert main(over(words(rendered, out, "--label", "colour", "--epochs", "1"), "--lr", "1e30")) == 2
    assert "not finite any more" in capsys.readouterr().err
    assert main(words(rendered, out, "--label", "colour", "--epochs", "1")) == 0


def test_another_request_or_other_data_are_refused_in_the_same_folder(rendered, tmp_path, capsys):
    out, data = tmp_path / "FIT", tmp_path / "data"
    data.mkdir()
    for file in rendered.iterdir():
        (data / file.name).write_bytes(file.read_bytes())
    assert main(words(data, out, "--label", "colour", "--epochs", "1")) == 0
    capsys.readouterr()
    assert main(words(data, out, "--label", "colour", "--epochs", "2")) == 2
    assert "other epochs (1 there, 2 now)" in capsys.readouterr().err
    with (data / "labels.csv").open("a") as file:
        file.write("\n0.png,blue,3.5")
    assert main(words(data, out, "--label", "colour", "--epochs", "1")) == 2
    assert "whose data were others" in capsys.readouterr().err


def test_dropout_is_keyed_and_nothing_outside_is_seeded(rendered):
    """An MLP with much dropout, stopped and restored through a file, against one run; the caller's generator stays put."""
    pictures = Pictures([rendered / f"{i}.png" for i in range(40)], 16)
    y = torch.tensor([float(i % 3) for i in range(40)])
    options = FitConfig(epochs=4, batch_size=8, lr=0.01, seed=5)
    learn, held = list(range(30)), list(range(30, 40))

    def fresh():
        net = build_network("mlp", 3, 5, "colour", (16, 8))
        assert [m.p for m in net.head if isinstance(m, torch.nn.Dropout)] == [0.2, 0.2]
        return net, begin(net, schema_of("colour", ("a", "b", "c"), y), options)

    torch.manual_seed(11)
    state = torch.get_rng_state()
    net, one = fresh()
    inputs = inputs_of(net, pictures)
    reports = list(epochs(one, inputs, y, learn, held, options))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    _, first = fresh()
    steps = epochs(first, inputs, y, learn, held, options)
    next(steps), next(steps)
    _, second = fresh()
    second.restore(first.saved())
    rest = list(epochs(second, inputs, y, learn, held, options))
    assert rest == reports[2:] and second.best_epoch == one.best_epoch
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])


def test_a_cnn_sees_pictures_of_any_size_as_those_that_it_was_calibrated_on(tmp_path):
    """The largest centred square at its own size; a file from before sizes were kept takes pictures as they are."""
    torch.manual_seed(0)
    fitted = FittedClassifier(ResidualCnn(2, (4, 4), 16), Schema("day", classes=("no", "yes"))).eval()
    fine = torch.rand(2, 3, 64, 64)
    wide = torch.cat([torch.zeros(2, 3, 64, 16), fine, torch.ones(2, 3, 64, 16)], -1)
    with torch.no_grad():
        want = fitted(resize(fine, 16, 16))
        assert torch.allclose(fitted(fine), want, atol=1e-6) and torch.allclose(fitted(wide), want, atol=1e-6)
        assert (fitted.net.linear(fitted.net.blocks(fine).mean((2, 3))) - want).abs().max() > 1e-3
        save_classifier(fitted, tmp_path / "new")
        assert torch.allclose(load_classifier(tmp_path / "new")(wide), want, atol=1e-6)
        told = json.loads((tmp_path / "new" / "classifier.json").read_text())
        assert told["network"].pop("size") == 16
        (tmp_path / "new" / "classifier.json").write_text(json.dumps(told))
        assert not torch.allclose(load_classifier(tmp_path / "new")(wide), want, atol=1e-3)
    y = torch.tensor([0.0, 1.0] * 5)
    column, config = Column("day", "classes", ("no", "yes")), FitConfig(kind="cnn", epochs=1, batch_size=4, widths=(4,))
    for size, kept in ((None, 64), (16, 16)):
        source = partial(inputs_of, pictures=InMemory(torch.rand(10, 3, size or 64, size or 64)))
        found = fit_label(replace(config, size=size), column, y, range(8), [8, 9], source)
        assert found.classifier.net.config["size"] == kept


def test_the_best_epoch_is_kept_and_patience_ends_a_fit(rendered):
    """At a rate that overshoots, held-out likelihood turns; what is kept has the lowest of the history."""
    pictures = Pictures([rendered / f"{i}.png" for i in range(40)], 16)
    y = torch.tensor([float((i * 7) % 2) for i in range(40)])  # parity: not to be seen in the pictures
    options = FitConfig(epochs=40, batch_size=8, lr=0.03, patience=3, seed=1)
    net = build_network("cnn", 2, 1, "parity", (4, 4))
    fit = begin(net, schema_of("parity", ("even", "odd"), y), options)
    inputs = inputs_of(net, pictures)
    held = list(range(30, 40))
    reports = list(epochs(fit, inputs, y, list(range(30)), held, options))
    lowest = min(r.held_out for r in reports)
    assert len(reports) < 40 and len(reports) - fit.best_epoch == 3 and reports[-1].held_out > lowest == reports[-1].best
    schema, outputs = ended(fit, inputs, held)
    classifier = FittedClassifier(fit.net, schema)
    with torch.no_grad():
        again = -classifier.log_prob(pictures(held), y[held]).mean()
    assert float(again) == pytest.approx(lowest, abs=1e-5)
    assert -float(log_prob(classifier.schema, outputs, y[held]).mean()) == pytest.approx(lowest, abs=1e-5)


def test_a_number_has_the_likelihood_of_its_unit():
    """The learnt σ of a linear model on given vectors is the residuals' own, in the unit of the label."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(600, 4, generator=rng)
    y = 50 + 20 * (x[:, 0] - 0.5 * x[:, 1]).double() + 5 * torch.randn(600, generator=rng).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 1)

    options = FitConfig(epochs=40, batch_size=50, lr=0.01, patience=40)
    fit = begin(Net(), schema_of("size", (), y[:500]), options)
    reports = list(epochs(fit, lambda rows: x[list(rows)], y, list(range(500)), list(range(500, 600)), options))
    found = fit.model
    sigma = found.schema.scale * math.exp(float(found.log_sigma.detach()))
    design = torch.cat([x.double(), torch.ones(600, 1).double()], 1)[:500]
    exact = torch.linalg.lstsq(design, y[:500, None]).solution[:, 0]
    assert sigma == pytest.approx(float((design @ exact - y[:500]).std()), rel=0.06)
    assert found.schema.scale * float(found.part.weight[0, 0].detach()) == pytest.approx(float(exact[0]), rel=0.03)
    assert reports[-1].held_out == pytest.approx(math.log(5) + 0.5 * math.log(2 * math.pi * math.e), abs=0.25)


def test_held_out_numbers_that_are_all_alike_have_no_r_squared_and_the_rest_is_told():
    y, column = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), Column("size", "gaussian", ())
    _, metrics = measured(schema_of("size", (), y), torch.tensor([[0.5], [0.1]]).double(), y[[1, 1]], column)
    row = metrics | {"epochs": 1, "best_epoch": 1, "records": {"held_out": 2}, "network": "cnn"}
    assert row["r2"] is None and json.loads(json.dumps(row)) == row
    assert describe({"config": {"out": "o"}, "summary": {"size": row}}).startswith(f"size: RMSE {row['rmse']:.4g}, ECE ")


def test_labels_stay_where_they_are_and_in_their_own_precision():
    """A device without float64 is never given one: an interpreter of torch calls sees what would be made on "meta"."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.append((out.device.type, out.dtype)) if isinstance(out, torch.Tensor) else None
            return out

    y = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    number = Schema("n", "gaussian", shift=1e9, scale=2.0, std=2.0)
    outputs = torch.zeros(3, 2, device="meta"), torch.zeros(3, 1, device="meta")
    with Watch():
        found = [log_prob(Schema("c", classes=("a", "b")), outputs[0], y), log_prob(number, outputs[1], y)]
        found += [Likelihood(torch.nn.Identity(), schema_of("c", ("a", "b"), y))(outputs[0], y)]
        found += [Likelihood(torch.nn.Identity().to("meta"), number).to("meta")(outputs[1], y)]
    assert [f.device.type for f in found] == ["meta"] * 4
    assert ("meta", torch.float64) not in made
    assert ("meta", torch.float32) in made


def test_config_reads_back_what_it_prints(rendered, tmp_path, capsys):
    given = words(rendered, tmp_path / "FIT", "--label", "colour=red,green,blue", "--bins", "3", "--skip-bad")
    assert main([*given, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    assert main(["condition", "fit", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed and "widths:\n- 4\n- 8\n- 8" in printed and not (tmp_path / "FIT").exists()


def test_a_fit_goes_where_it_is_told(rendered, tmp_path, monkeypatch, capsys):
    assert "device cannot be 'gpu'" in refused(capsys, *words(rendered, tmp_path / "out"), "--device", "gpu")
    assert "there is no device 'cuda:99' here" in refused(capsys, *words(rendered, tmp_path / "out"), "--device", "cuda:99")
    assert not (tmp_path / "out").exists()
    seen = []

    def begin(net, schema, options, device):
        seen.append(device)
        raise TiltingError("far enough")

    monkeypatch.setattr("tilting.conditioning.fit_label.begin", begin)
    monkeypatch.setattr("tilting.conditioning.fit_run.device_of", lambda text: f"the {text} one")
    for device in ("mps", "auto"):
        assert main([*words(rendered, tmp_path / "out", "--label", "colour"), "--device", device]) == 2
    assert seen == ["the mps one", "the auto one"]


def test_auto_takes_the_network_under_which_held_out_pictures_are_likelier(rendered, tmp_path, capsys):
    """Frozen features come first and say what else there is; a fit that is there goes on as the kind that it is."""
    data = [
        "condition",
        "fit",
        "--data",
        str(rendered / "labels.csv"),
        "--label",
        "colour",
        "--epochs",
        "3",
        "--batch-size",
        "16",
        "--size",
        "16",
    ]
    assert main([*data, "--lr", "0.02", "--kind", "auto", "--out", str(tmp_path / "auto")]) == 0
    told = capsys.readouterr().out
    metrics = json.loads((tmp_path / "auto" / "metrics.json").read_text())
    assert set(metrics["tried"]) == {"mlp", "cnn"} and metrics["nll"]["after"] == min(metrics["tried"].values())
    assert metrics["network"] == min(metrics["tried"], key=metrics["tried"].get) and f"{metrics['network']} it is" in told
    assert not (tmp_path / "auto" / "checkpoints").exists()
    assert main([*data, "--out", str(tmp_path / "plain")]) == 0
    assert "--kind auto takes the better" in capsys.readouterr().out
    assert json.loads((tmp_path / "plain" / "manifest.json").read_text())["config"]["kind"] == "mlp"
    assert main([*data, "--out", str(tmp_path / "auto"), "--lr", "0.02"]) == 0
    capsys.readouterr()
    assert "two: leave them out" in refused(capsys, *data, "--kind", "auto", "--widths", "4", "--out", str(tmp_path / "no"))
