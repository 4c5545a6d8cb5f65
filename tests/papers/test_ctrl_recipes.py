"""The CTRL recipes: cuts and classes by hand, path KL of guided chains by their own means, and a study end to end on a model of
a few thousand weights, whose accuracies and confusions are recomputed from the pictures on disk."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import tilting as tl
from tilting.cli import main
from tilting.conditioning.dataset import is_held_out
from tilting.conditioning.guided import ClassifierGuided
from tilting.errors import TiltingError
from tilting.features.fitted import load_classifier
from tilting.models.control_kl import PathKl
from tilting.presets.guided import reconstruction_guidance
from tilting.schedule import step_std, transition
from tilting_papers import RECIPES
from tilting_papers.ctrl import data as ctrl_data
from tilting_papers.ctrl import table2 as ctrl_table2
from tilting_papers.ctrl import table3 as ctrl_table3
from tilting_papers.ctrl import table5 as ctrl_table5
from tilting_papers.ctrl.artifacts import STRENGTHS
from tilting_papers.ctrl.claims import above, at_least
from tilting_papers.ctrl.labels import Labelled, classes_of, edges_of, read_scores, with_copies
from tilting_papers.ctrl.measure import best_cells, numbers_of
from tilting_papers.ctrl.pool import Pool
from tilting_papers.ctrl.sampling import combinations
from tilting_papers.ctrl.study import SIZE, Label, Row, Size, Study, brightness

TINY = Size(
    data=20,
    copies=1,
    second_round=1,
    images=2,
    steps=3,
    train_steps=2,
    batch=2,
    epochs=1,
    widths=(4, 4, 4),
    free_steps=2,
    free_batch=4,
    noisy_epochs=1,
)
HALVES = Label("size", SIZE.score, (0.4,), "\N{MINUS SIGN}kB", ("large", "small"))
LIGHT = Label("bright", brightness, (0.5,), "per cent", ("dark", "bright"))
ROWS = (
    Row("base", "base"),
    Row("ctrl-first", "first"),
    Row("ctrl", "ctrl"),
    Row("dps-1", "dps", 1),
    Row("dps-9", "dps", 9, small=False),
    Row("noisy-2", "noisy", 2),
    Row("free-1", "free", 1),
    Row("free-2", "free", 2),
)


@pytest.fixture(scope="module")
def model(folder):
    return str(folder)


def study_of(name, rows, labels, tiny, model):
    own = {"rows": rows, "labels": labels, "tiny": tiny, "prompts": ("a fox", "an owl"), "model": model}
    return Study(name=name, about="a try", paper="nobody", **own)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A study of one label, the lines that it said, and its report."""
    out, said = tmp_path_factory.mktemp("ctrl") / "out", []
    study = study_of("ctrl-try", ROWS, (HALVES,), TINY, model)
    return study, out, study.run(out, True, said.append), said


def kb(file: Path) -> float:
    """The size of a picture as a JPEG in kB, by PIL alone."""
    buffer = io.BytesIO()
    Image.open(file).convert("RGB").save(buffer, format="JPEG", quality=95)
    return len(buffer.getvalue()) / 1000


# Labels


def test_cuts_are_quantiles_and_classes_count_the_edges_below():
    scores = np.random.default_rng(0).normal(-2.4, 0.5, 137).tolist()
    edges = edges_of(scores, SIZE.quantiles)
    assert edges == pytest.approx(np.quantile(scores, [0.25, 0.6, 0.95]).tolist(), abs=1e-12)
    found = classes_of(scores, edges)
    assert found == [sum(score >= edge for edge in edges) for score in scores]
    assert np.bincount(found).tolist() == [34, 48, 48, 7]  # one in twenty is of the rare class
    assert classes_of(list(edges), edges) == [1, 2, 3]
    with pytest.raises(TiltingError, match="too few different"):
        edges_of([1.0] * 30, SIZE.quantiles)


def test_altered_copies_are_labelled_by_the_function_and_cover_more_than_the_pictures(tmp_path):
    gen = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(40, 3, 8, 8, generator=gen), size=32, mode="bilinear") * 0.5 + 0.25
    files = [tmp_path / f"{i}.png" for i in range(40)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(file)
    scores = [-kb(f) for f in files]
    edges = edges_of(scores, SIZE.quantiles)
    plain = Labelled(tuple(files), ("a fox",) * 40, tuple(scores), tuple(classes_of(scores, edges)), edges, tmp_path / "l.csv")
    both = with_copies(SIZE, plain, 2, 0)
    assert len(both.files) == 120 and both.files[:40] == plain.files and both.edges == edges
    assert list(both.scores) == pytest.approx([-kb(f) for f in both.files])
    assert list(both.classes) == [sum(-kb(f) >= edge for edge in edges) for f in both.files]
    assert np.std(both.scores[40:]) > 2 * np.std(scores)
    made = [f.read_bytes() for f in both.files]
    for f in both.files[40:]:
        f.unlink()
    assert [f.read_bytes() for f in with_copies(SIZE, plain, 2, 0).files] == made
    assert not {f.read_bytes() for f in with_copies(SIZE, plain, 2, 1).files[40:]} & set(made)


def test_scores_are_those_of_the_files(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    pixels[0, :] = 40
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file)
    assert read_scores(SIZE, files) == pytest.approx([-kb(file) for file in files], abs=1e-6)
    light = [float(np.mean(p @ np.array([0.299, 0.587, 0.114])) / 2.55) for p in pixels]
    assert read_scores(LIGHT, files) == pytest.approx(light, abs=1e-4)


# Numbers of rows


def cell(asked, classes, folder="x"):
    n = len(classes)
    who = {"prompts": [f"p{i % 3}" for i in range(n)], "index": [i // 3 for i in range(n)]}
    return {
        "asked": {"size": asked},
        "folder": folder,
        **who,
        "judge": [None] * n,
        "kl": [1.0] * n,
        "scores": {"size": [float(c) for c in classes]},
        "classes": {"size": classes},
        "evaluations": 10 * n,
        "seconds": 2.0 * n,
    }


def test_numbers_of_a_row_by_hand():
    rows = [cell(0, [0, 0, 0, 1, 0, 0], "a"), cell(1, [1, 0, 1, 0, 1, 0], "b")]
    found = numbers_of(rows, (HALVES,))
    part = found["labels"]["size"]
    assert part["confusion"] == [[5, 1], [3, 3]]
    assert part["accuracy"]["mean"] == pytest.approx(8 / 12)
    assert part["per_class"] == pytest.approx([5 / 6, 3 / 6])
    assert part["macro_f1"] == pytest.approx((2 * 5 / (2 * 5 + 1 + 3) + 2 * 3 / (2 * 3 + 3 + 1)) / 2)
    assert part["mean_score"] == pytest.approx([1 / 6, 3 / 6])
    assert (found["evaluations"], found["seconds"], found["images"], found["judge"]) == (10, 2, 12, None)


def test_the_best_cell_is_chosen_for_each_class():
    weak, strong = [cell(0, [0, 0, 1]), cell(1, [0, 0, 1])], [cell(0, [0, 1, 1]), cell(1, [1, 0, 1])]
    assert best_cells([weak, strong]) == [weak[0], strong[1]]


def test_verdicts():
    good, bad = [cell(y, [y] * 12) for y in (0, 1)], [cell(y, [1 - y] * 12) for y in (0, 1)]
    mixed = [cell(y, [0, 1] * 6) for y in (0, 1)]
    assert above("a", good, bad, "")["finding"]["verdict"] == "holds"
    assert above("a", bad, good, "")["finding"]["verdict"] == "fails"
    assert above("a", mixed, mixed, "")["finding"]["verdict"] == "undecided"
    assert at_least("a", 0.85, 0.85)["finding"]["verdict"] == "holds"
    assert at_least("a", 0.849, 0.85)["finding"]["verdict"] == "fails"


def test_every_combination_of_two_labels():
    assert combinations({"a": 2, "b": 2}) == [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 1, "b": 1}]


# A study


def test_accuracy_and_confusion_are_those_of_the_pictures_on_disk(made):
    out = made[1]
    table = json.loads((out / "table.json").read_text())
    scores = [-kb(out / "data" / "size" / f"images/{i:05d}.png") for i in range(40)]
    edge = float(np.quantile(scores, 0.4))
    assert table["labels"]["size"]["edges"] == pytest.approx([edge], abs=1e-6)
    below = sum(score < edge for score in scores)
    assert table["labels"]["size"]["counts"] == [below, 40 - below]
    for line in table["rows"]:
        if isinstance(line["strength"], list):
            continue
        counts = np.zeros((2, 2), int)
        for asked in (0, 1):
            place = out / "runs" / line["name"] / ("" if line["family"] == "base" else f"size{asked}")
            files = sorted((place / "images").glob("*.png"))
            assert len(files) == 4
            for file in files:
                counts[asked, int(-kb(file) >= edge)] += 1
        assert line["labels"]["size"]["confusion"] == counts.tolist(), line["name"]
        assert line["labels"]["size"]["accuracy"]["mean"] == pytest.approx(np.trace(counts) / 8)
    best = next(line for line in table["rows"] if line["name"] == "free, best")
    each = [next(line for line in table["rows"] if line["name"] == f"free-{k}")["labels"]["size"]["per_class"] for k in (1, 2)]
    assert best["labels"]["size"]["per_class"] == np.max(each, 0).tolist()
    assert all((out / name).is_file() for name in table["figures"])
    assert str(out) not in (out / "table.md").read_text()


def test_the_second_classifier_learns_from_what_the_first_control_drew(made):
    _, out, report, _ = made
    first, fit = (part[""]["size"]["records"] for part in (report["before"], report["fits"]))
    assert sum(first.values()) == 2 * 40  # each picture and a copy of it
    assert sum(fit.values()) == 2 * (40 + 2 * 2 * len(STRENGTHS))  # and two classes of two prompts at every strength
    with (out / "first" / "size.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    edge = report["labels"]["size"]["edges"][0]
    for row in rows:
        assert int(row["size"]) == int(-kb(out / "first" / row["file"]) >= edge)
    drawn = {(out / "first" / row["origin"]).resolve() for row in rows if "/asked/" in f"/{row['origin']}"}
    assert drawn == {p.resolve() for p in (out / "first" / "asked").rglob("images/*.png")}
    origin = {row["file"]: row["origin"] for row in rows}
    held = {name for name in origin if is_held_out(0, origin[name])}
    assert (
        len(rows) == len(origin) and len(held) == fit["held_out"] and all(origin[name] in held for name in held)
    )  # a copy is where its picture is
    learnt = [(out / name / "classifier.safetensors").read_bytes() for name in ("fit/size", "first/fit/size")]
    assert learnt[0] != learnt[1]
    assert any("first round: drawing" in line for line in made[3])


def test_what_leaves_the_base_model_pays_path_kl_and_what_does_not_pays_none(made):
    kl = {line["name"]: line["kl"]["mean"] for line in made[2]["rows"]}
    assert kl["base"] == 0
    assert min(kl["ctrl"], kl["free-1"], kl["dps-1"], kl["noisy-2"]) > 0
    assert kl["free-2"] > 2 * kl["free-1"]  # the push is twice as long


def test_a_finished_study_draws_and_trains_nothing_again(made, monkeypatch):
    study, out, report, _ = made
    stamps = {f: f.stat().st_mtime_ns for pattern in ("*.safetensors", "images/*") for f in out.rglob(pattern)}

    def fail(*arguments, **options):
        raise AssertionError("something was loaded again")

    for name in ("tilting.generation.run.load_parts", "tilting.conditioning.train_run.load_parts", "tilting.models.load"):
        monkeypatch.setattr(name, fail)
    again = study.run(out, True, lambda line: None)
    assert json.dumps(again["rows"]) == json.dumps(report["rows"])
    assert stamps == {f: f.stat().st_mtime_ns for f in stamps}
    with pytest.raises(TiltingError, match="another seed"):
        study.run(out, True, lambda line: None, seed=1)


def test_two_labels_learn_from_pictures_that_are_not_shared(model, tmp_path):
    rows = (Row("base", "base"), Row("ctrl", "ctrl"), Row("dps-1", "dps", 1), Row("free-1", "free", 1))
    size = replace(TINY, data=12, images=1)
    report = study_of("ctrl-two", rows, (HALVES, LIGHT), size, model).run(tmp_path, True, lambda line: None)
    sets = [{f.read_bytes() for f in (tmp_path / "data" / name / "images").iterdir()} for name in ("size", "bright")]
    assert [len(s) for s in sets] == [24, 24] and not sets[0] & sets[1]
    assert [c["asked"] for c in report["cells"]["ctrl"]] == combinations({"size": 2, "bright": 2})
    assert set(report["rows"][1]["labels"]) == {"size", "bright"}
    both = report["rows"][1]["all"]["mean"]
    assert both <= min(part["accuracy"]["mean"] for part in report["rows"][1]["labels"].values())


# Path KL


@pytest.fixture(scope="module")
def loaded(model):
    return tl.load(model)


class Apart:
    """A classifier of noisy latents that is linear: log p = y · mean(x)."""

    def log_prob(self, x, t, y):
        return y * x.flatten(1).mean(1)


def test_path_kl_of_classifier_guidance_is_that_of_its_means(loaded):
    """Against both chains' kernels, computed apart at the states that are visited."""
    kl = PathKl(loaded.schedule.grid(4), 1.0)
    guided = ClassifierGuided(loaded, {"size": Apart()}, {"size": 1.0}, 700.0, kl)
    x = torch.randn(2, *loaded.latent_shape, generator=torch.Generator().manual_seed(0))
    rows, prompts, by_hand = torch.arange(2), ["a fox", "an owl"], torch.zeros(2, dtype=torch.float64)
    mine, base = guided.denoiser(prompts, 2.0), loaded.denoiser(prompts, 2.0)
    with torch.no_grad():
        for t, s in pairwise(loaded.schedule.grid(4)):
            a, b = transition(mine(x, t, rows), t, s, 1.0), transition(base(x, t, rows), t, s, 1.0)
            if step_std(t, s, 1.0) > 0:
                by_hand += ((a.mean - b.mean).double().flatten(1) / a.std).square().sum(1) / 2
            x = a.mean
    found = kl.take(2)
    assert found is not None and by_hand.min() > 1e-3
    assert torch.allclose(found, by_hand, rtol=1e-3)


def test_watching_reconstruction_guidance_changes_nothing(loaded):
    reward, kl = tl.rewards.jpeg_diff(), PathKl(loaded.schedule.grid(3), 1.0)
    options = {"reward": reward, "steps": 3, "cfg": 2.0}
    seen = tl.generate(loaded, "a fox", method=reconstruction_guidance(4.0, watch=kl), **options).images
    plain = tl.generate(loaded, "a fox", method=tl.presets.dps(4.0, form="score"), **options).images
    assert torch.equal(seen, plain)
    taken = kl.take(1)
    assert taken is not None and taken[0] > 0


# The recipes


@pytest.mark.parametrize("module", [ctrl_table2, ctrl_table3, ctrl_table5])
def test_rows_have_names_of_their_own_and_published_lines_are_lines(module):
    study = module.STUDY
    names = [row.name for row in study.rows]
    assert len(set(names)) == len(names) and study.name in RECIPES
    lines = {*names, *(f"{row.family}, best" for row in study.rows)}
    assert set(study.published) <= lines
    assert len(study.prompts) * study.size.data * min(study.labels[0].quantiles[0], 1 - study.labels[0].quantiles[-1]) > 20


def test_data_counts_are_parts_of_one_data_set():
    study = ctrl_data.STUDY
    assert max(ctrl_data.COUNTS) == study.size.data * len(study.prompts)
    names = {row.name for row in study.rows}
    fewest = ctrl_data.COUNTS[0]
    for n in ctrl_data.COUNTS:
        assert {*ctrl_data.controls(n, ctrl_data.KINDS if n == fewest else ("pool",)), *ctrl_data.free(n)} <= names
    assert {row.part for row in study.rows if row.family != "base"} == set(study.counts) == set(study.kinds)
    assert all(study.counts[part] == int(part.partition("-")[0]) for part in study.counts)
    assert len({(row.part, row.made_by) for row in study.rows if row.family == "ctrl"}) == 5 * len(ctrl_data.GAMMAS)


def seen(asked, right, judge, prompts="abcd"):
    """A cell of a picture of each prompt, so many (from the first) of the class asked for."""
    classes = [asked if i < right else 9 for i in range(len(prompts))]
    return {
        "asked": {"size": asked},
        "prompts": list(prompts),
        "index": [0] * len(prompts),
        "judge": list(judge),
        "classes": {"size": classes},
    }


def test_lines_are_chosen_on_half_of_the_prompts_and_compared_at_matched_judge_on_the_others():
    cells = {
        "base": [seen(0, 1, [-1.0] * 4)],
        "ruined": [seen(0, 4, [-2.0, -1.0, -2.0, -1.0])],  # the most accurate, a nat down where it is chosen
        "good": [{**seen(0, 0, [-1.4] * 4), "classes": {"size": [0, 0, 0, 9]}}],
        "worse": [{**seen(0, 0, [-1.0] * 4), "classes": {"size": [0, 9, 9, 9]}}],
        "poor": [seen(0, 0, [-3.0] * 4)],
    }
    assert ctrl_data.halves(cells) == ({"a", "c"}, {"b", "d"})
    assert ctrl_data.chosen(("ruined", "good", "worse", "absent"), cells) == "good"
    assert ctrl_data.chosen(("ruined", "poor"), cells) == "ruined"  # none is near: the one with the best judge
    assert ctrl_data.chosen(("absent",), cells) is None
    found = ctrl_data.compared(("ruined", "good"), ("worse",), cells)
    assert found is not None and found["difference"]["mean"] == 0.5  # of b and d: one right, and none
    assert "good 0.5, worse 0; judge \N{MINUS SIGN}0.4" in found["found"]
    assert ctrl_data.compared(("absent",), ("worse",), cells) is None


@pytest.mark.slow
def test_a_study_has_kinds_of_classifiers_and_a_grid_of_gamma(model, tmp_path):
    """Two controls of one pool of three CNNs, each fit of 4 steps whatever its pictures; made in shards, it is whole."""
    rows = (Row("base", "base"), Row("a-5", "ctrl", part="a", gamma=5.0), Row("a-50", "ctrl", part="a", gamma=50.0))
    rows += (Row("b", "ctrl", part="b"),)
    tiny, parts = replace(TINY, copies=0, second_round=0, fit_steps=4), {"a": 30, "b": 40}
    study = study_of("ctrl-kinds", rows, (HALVES,), tiny, model)
    study = replace(study, counts=parts, kinds={"a": "pool", "b": "mlp"}, sharded=True, worst=None)
    folder = tmp_path / "out"
    first = study.run(folder, True, print, shard=(2, 2))
    assert [row["name"] for row in first["rows"]] == ["base", "b"]
    report = study.run(folder, True, print, shard=(1, 2))
    assert [row["name"] for row in report["rows"]] == ["base", "a-5", "a-50", "b"]
    controls = [json.loads((folder / f"a/ctrl-{gamma}/manifest.json").read_text())["config"] for gamma in (5, 50)]
    assert [one["gamma"] for one in controls] == [5.0, 50.0]
    fits = [folder / "a/fit" / name for name in ("size", "size-1", "size-2")]
    configs = [json.loads((fit / "manifest.json").read_text())["config"] for fit in fits]
    assert [one["seed"] for one in configs] == [0, 1, 2] and {(one["epochs"], one["patience"]) for one in configs} == {(4, 4)}
    assert json.loads((folder / "b/fit/size/classifier.json").read_text())["network"]["name"] == "mlp"
    pool = Pool(fits)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    table = pool(images, ["x"] * 3)
    logs = [F.log_softmax(one(images) / one.schema.temperature, 1) for one in map(load_classifier, fits)]
    want = torch.exp((logs[0] + logs[1] + logs[2]) / 3)
    assert torch.allclose(table.exp(), want / want.sum(1, keepdim=True), atol=1e-6)
    assert torch.autograd.grad(table[:, 0].sum(), images)[0].abs().sum() > 0
    assert not torch.allclose(logs[0], logs[1], atol=1e-4) and pool.classes == ("0", "1") and pool.label == "size"


def test_the_command_lists_them(capsys):
    assert main(["recipe"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("ctrl-table2", "ctrl-table3", "ctrl-table5", "ctrl-data"))
