"""`tilting evaluate` in process, on runs that `tilting generate` wrote: numbers, report, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support import commands
from support.commands import manifest
from support.commands import manifest as manifest_of
from support.outside import installed
from tilting.cli import main
from tilting.config.evaluate import EvaluateConfig
from tilting.errors import TiltingError
from tilting.evaluation.read_runs import Run, setup
from tilting.evaluation.report import render
from tilting.evaluation.run import describe
from tilting.metrics import METRICS
from tilting.reports.charts import Bar, bars, curve, number, scatter, ticks, typeset
from tilting.reports.pages import TEMPLATES
from tilting.rewards.spec import parse_specs, split_weight
from tilting.runs.files import keys_of
from tilting.runs.owner import EVALUATION, kind_of

PROMPTS = ("a fox", "an owl, noto style", "a castle on a blue background", "a banana, twemoji style")
USUAL = ("--steps", "4", "--images", "2", "--quiet")
pytestmark = pytest.mark.usefixtures("no_bars")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base and bon of one seed, base of another, and bon for another reward."""
    root = tmp_path_factory.mktemp("runs")
    for name, words in {
        "base": (),
        "bon": ("--method", "bon", "--particles", "3"),
        "again": ("--seed", "7"),
        "files": ("--method", "bon", "--particles", "3", "--reward", "jpeg=0.5"),
    }.items():
        assert main(["generate", *PROMPTS, *USUAL, *words, "--out", str(root / name)]) == 0
    return root


@pytest.fixture(scope="module")
def judged(runs):
    """metrics.json and report.html of all four."""
    out = runs / "judged"
    assert main(["evaluate", *(str(runs / n) for n in ("base", "bon", "files", "again")), "--out", str(out), "--quiet"]) == 0
    return json.loads((out / "metrics.json").read_text()), (out / "report.html").read_text()


def pixels(runs, name):
    files = [runs / name / r["file"] for r in manifest(runs / name)["images"]]
    stack = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def row(metrics, name):
    return next(r for r in metrics["runs"] if r["name"] == name)


def test_rewards_and_costs_are_the_manifests(runs, judged):
    metrics, _ = judged
    assert kind_of(runs / "judged") is EVALUATION
    for name in ("base", "bon", "again"):
        known, found = manifest(runs / name), row(metrics, name)
        assert found["rewards"]["clip"]["mean"] == pytest.approx(known["summary"]["reward_mean"], abs=1e-6)
        assert found["reward"] == found["rewards"]["clip"]
        assert found["rewards"]["clip"]["low"] <= found["rewards"]["clip"]["mean"] <= found["rewards"]["clip"]["high"]
        assert found["judge"]["mean"] == pytest.approx(known["summary"]["judge_mean"], abs=1e-5)
        assert found["evaluations_per_image"] == known["summary"]["evaluations"] / 8
        assert found["seconds_per_image"] == pytest.approx(known["summary"]["seconds"] / 8)
        assert found["kl"] is None
    assert row(metrics, "bon")["evaluations_per_image"] == 3 * row(metrics, "base")["evaluations_per_image"]


def test_the_judge_is_pocket_judge_on_the_pictures(runs, judged):
    """Of the files as they are on disk: within what bytes round of the record of the run, and far from the reward."""
    from tilting.features.picture import read_image
    from tilting.metrics.judge import PocketJudge

    judge = PocketJudge()
    for name in ("base", "bon"):
        records = manifest(runs / name)["images"]
        pictures = torch.stack([read_image(runs / name / r["file"]) for r in records])
        found = judge.score(pictures, [r["prompt"] for r in records]).tolist()
        assert [r["judge"] for r in records] == pytest.approx(found, abs=0.1)
        assert row(judged[0], name)["judge"]["mean"] == pytest.approx(np.mean(found), abs=0.05)


def test_a_reward_no_manifest_records_is_computed_from_the_pictures(runs, judged):
    metrics, _ = judged
    from io import BytesIO

    def kilobytes(image):
        file = BytesIO()
        image.convert("RGB").save(file, "jpeg", quality=95)
        return file.tell() / 1000

    for name in ("base", "bon", "files"):
        files = [runs / name / r["file"] for r in manifest(runs / name)["images"]]
        want = -np.mean([kilobytes(Image.open(file)) for file in files])
        assert row(metrics, name)["rewards"]["jpeg"]["mean"] == pytest.approx(want, abs=2e-3)
    assert row(metrics, "files")["reward"]["mean"] == pytest.approx(0.5 * row(metrics, "files")["rewards"]["jpeg"]["mean"])
    assert any("8 bits" in note for note in metrics["notes"])


def test_distances_and_floor_from_the_pictures(runs, judged):
    """The features by the networks themselves; FID by scipy; CMMD by its formula."""
    from scipy.linalg import sqrtm

    from tilting.features.clip import ClipEmbedder
    from tilting.metrics.extract import POCKET_CLIP
    from tilting.metrics.judge import PocketJudge

    metrics, _ = judged
    clip, net = ClipEmbedder(POCKET_CLIP), PocketJudge().net
    with torch.no_grad():
        embeds = {n: clip.image(pixels(runs, n)).double().numpy() for n in ("base", "bon", "again")}
        features = {n: net.features(pixels(runs, n)).double().numpy() for n in ("base", "bon", "again")}

    def cmmd(a, b):
        def kernel(x, y):
            return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 200).mean()

        return 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))

    def fid(a, b):
        first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        ridge = 1e-9 * np.eye(len(first))  # scipy's root wants a regular matrix
        root = sqrtm((first + ridge) @ (second + ridge)).real
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)

    assert metrics["reference"] == "again" and metrics["floor"]["kind"] == "runs"
    for name in ("base", "bon"):
        found = row(metrics, name)
        assert found["cmmd"]["pooled"] == pytest.approx(cmmd(embeds[name], embeds["again"]), abs=1e-4)
        assert found["fid"]["pooled"] == pytest.approx(fid(features[name], features["again"]), rel=1e-3)
        each = [cmmd(embeds[name][i : i + 2], embeds["again"][i : i + 2]) for i in range(0, 8, 2)]
        assert found["cmmd"]["per_prompt"]["mean"] == pytest.approx(np.mean(each), abs=1e-4)
    assert metrics["floor"]["fid"] == row(metrics, "base")["fid"]
    assert row(metrics, "again")["fid"] is None


def test_t_clip_diversity_and_labels_from_the_pictures(runs, judged):
    from tilting.metrics.extract import POCKET_CLIP
    from tilting.metrics.judge import PocketJudge
    from tilting.rewards import clip

    metrics, _ = judged
    images, prompts = pixels(runs, "bon"), [p for p in PROMPTS for _ in range(2)]
    with torch.no_grad():
        cosine = clip(POCKET_CLIP)(images, ["A photo depicts " + p for p in prompts])
        features = PocketJudge().net.features(images)
        style = PocketJudge().probabilities(images)["style"].argmax(1)
    found = row(metrics, "bon")
    assert found["tclip"]["mean"] == pytest.approx(2.5 * cosine.clamp_min(0).mean().item(), abs=1e-4)
    unit = features / features.norm(dim=1, keepdim=True)
    gaps = [(unit[i] - unit[i + 1]).norm().item() for i in range(0, 8, 2)]
    assert found["diversity"]["mean"] == pytest.approx(np.mean(gaps), abs=1e-4)
    from tilting.models.words import load_words

    asked, rows = ["noto", "noto", "twemoji", "twemoji"], [2, 3, 6, 7]
    right = np.mean([load_words().styles[int(style[i])] == name for i, name in zip(rows, asked, strict=True)])
    assert found["labels"]["style"]["images"] == 4
    assert found["labels"]["style"]["accuracy"] == pytest.approx(right)
    assert np.sum(found["labels"]["concept"]["confusion"]) == 8


def test_verdicts_are_against_the_base_of_the_same_seed(judged):
    metrics, _ = judged
    bon, files = row(metrics, "bon")["verdict"], row(metrics, "files")["verdict"]
    assert bon["base"] == files["base"] == "base" and bon["paired"]
    assert set(bon["judges"]) == {"pocket-judge", "diversity"}  # T-CLIP reads what the reward reads
    assert set(files["judges"]) == {"pocket-judge", "diversity", "T-CLIP"}
    gap = row(metrics, "bon")["reward"]["mean"] - row(metrics, "base")["reward"]["mean"]
    assert bon["reward"]["mean"] == pytest.approx(gap)
    for verdict in (bon, files):
        up = verdict["reward"]["low"] > 0
        fallen = {name for name, v in verdict["judges"].items() if v["high"] < 0}
        word = "gamed" if fallen - {"diversity"} else "less diverse" if fallen else "better"
        assert verdict["word"] == (word if up else "no gain")
    assert row(metrics, "base")["verdict"] is None


@pytest.mark.parametrize(
    ("reward", "judge", "word"), [(0.5, -3.0, "gamed"), (0.5, 0.0, "better"), (0.5, 3.0, "better"), (0.0, -3.0, "no gain")]
)
def test_verdicts_on_constructed_manifests(reward, judge, word, runs, tmp_path):
    """The base's own pictures under another method, with numbers moved: prompt by prompt not by the same amount."""
    place = tmp_path / "moved"
    shutil.copytree(runs / "base", place)
    known = manifest_of(place)
    known["config"]["method"], known["summary"]["kl"] = "bon", 12.5
    known["config"]["image"] = str(runs / "base" / "images" / "00002.png")  # what it was drawn from is I-Gram's reference
    for i, record in enumerate(known["images"]):
        record["rewards"] = {"clip": record["rewards"]["clip"] + reward * (1 + 0.1 * i)}
        record["judge"] += judge * (1 + 0.1 * i)
    (place / "manifest.json").write_text(json.dumps(known))
    assert main(["evaluate", str(runs / "base"), str(place), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    found = row(json.loads((tmp_path / "out" / "metrics.json").read_text()), "moved")
    assert found["verdict"]["word"] == word and found["kl"] == 12.5
    assert found["verdict"]["reward"]["mean"] == pytest.approx(reward * 1.35, abs=1e-6)
    assert found["verdict"]["judges"]["pocket-judge"]["mean"] == pytest.approx(judge * 1.35, abs=1e-6)
    assert found["verdict"]["judges"]["diversity"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert 0 < found["igram_clip"]["mean"] < 1 and found["igram_vgg"] is None
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert word in page.text and typeset(found["verdict"]["reason"]) in page.text


def test_too_few_prompts_give_no_verdict(runs, tmp_path, capsys):
    for kept, said in ((2, "2 prompts are too few to tell"), (1, "2 pictures of one prompt are too few to tell")):
        for name in ("base", "bon"):
            place = tmp_path / f"{name}{kept}"
            shutil.copytree(runs / name, place)
            known = manifest_of(place)
            known["images"] = known["images"][: 2 * kept]
            known["config"]["prompts"] = known["config"]["prompts"][:kept]
            (place / "manifest.json").write_text(json.dumps(known))
        places = [str(tmp_path / f"{name}{kept}") for name in ("base", "bon")]
        assert main(["evaluate", *places, "--out", str(tmp_path / f"out{kept}")]) == 0
        assert said in capsys.readouterr().out
        verdict = row(json.loads((tmp_path / f"out{kept}" / "metrics.json").read_text()), f"bon{kept}")["verdict"]
        assert verdict["word"] == "too few to say" and verdict["base"] == f"base{kept}"


def test_numbers_and_ticks_of_charts():
    assert [number(v) for v in (None, 0.12345, -12.345, 220.86, 12345.6, 2e-4)] == [
        "–",
        "0.123",
        "−12.35",
        "220.9",
        "12,346",
        "2.0e−04",
    ]
    for low, high in ((0.0, 1.0), (-8.1, 0.0), (0.28, 0.33), (0.0, 3e-4), (0.0, 12345.0)):
        marks = ticks(low, high)
        assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 8
    svg = bars("t", [Bar("a", "c0", 2.0, 1.0, 3.0), Bar("b", "cb", None), Bar("<c>", "c1", 4.0)], floor=1.0)
    ends = re.findall(r'<path d="M ([\d.]+) [\d.]+ L ([\d.]+) [^"]*" style="fill: var\(--c\d\)', svg)
    widths = [float(end) - float(begin) for begin, end in ends]
    assert len(widths) == 2 and widths[1] == pytest.approx(2 * widths[0], abs=0.2)  # bars start at 0
    assert "&lt;c&gt;" in svg and "floor 1.000" in svg and svg.count('class="whisker"') == 3
    small = curve("t", [(x, Bar("a", "c0", 1.0)) for x in (0.00015, 0.00025)], "x")
    assert ">0.00015<" in small and ">0.00025<" in small  # words keep their digits


def test_a_setting_over_its_powers_stands_at_even_distances():
    """What the marks of a sweep over 0.1, 0.4 and 1.6 are apart, and of one over 1, 2 and 3."""
    for values in ((0.1, 0.4, 1.6), (1.0, 2.0, 3.0)):
        svg = curve("t", [(x, Bar("a", "c0", 1.0)) for x in values], "x")
        places = [float(re.search(rf'x="([\d.]+)" y="[\d.]+">{x:g}<', svg)[1]) for x in values]
        assert places[1] - places[0] == pytest.approx(places[2] - places[1], rel=0.1)


def test_sentences_of_pages_have_the_minus_signs_of_their_tables():
    assert typeset("judge -0.283 [-.781, +0.215]; a - b, gpt-4, 1e-05") == "judge −0.283 [−.781, +0.215]; a - b, gpt-4, 1e-05"
    for page in TEMPLATES.glob("*.html"):
        assert "reason }}" not in page.read_text(), page


def test_names_of_points_of_one_cost_stand_in_the_order_of_the_points():
    svg = scatter("t", [Bar("low", "c0", 0.69), Bar("high", "c1", 0.70), Bar("base", "cb", 0.5)], [12, 12, 4], "cost")
    heights = [float(re.search(rf'y="([\d.]+)">{name}<', svg)[1]) for name in ("high", "low")]
    assert heights[0] < heights[1]


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_whole_and_fetches_nothing(judged):
    metrics, page = judged
    parsed = Page(page)
    assert parsed.open == []
    kinds = [tag for tag, _ in parsed.tags]
    assert not {"script", "link", "iframe"} & set(kinds)
    for tag, attributes in parsed.tags:
        for key in ("src", "href"):
            if key in attributes:
                assert attributes[key].startswith(("data:image/", "#")), (tag, attributes[key][:40])
    assert not re.search(r"url\((?!data:image/)|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert kinds.count("img") == 4 * 4 + 4 * 8  # first pictures, then all prompt by prompt
    assert sum(1 for _, a in parsed.tags if a.get("class") == "prompt") == 4
    for text in (
        *PROMPTS,
        "base",
        "bon",
        "files",
        "again",
        "pocket-judge (384 features)",
        "pocket-clip",
        metrics["floor"]["how"],
    ):
        assert text in parsed.text
    assert typeset(row(metrics, "bon")["verdict"]["reason"]) in parsed.text
    assert f"floor {metrics['floor']['cmmd']['pooled']:.3f}" in parsed.text
    assert "FID of fewer than 50 pictures a side says nothing" in parsed.text and "too few" in parsed.text
    assert f"{row(metrics, 'bon')['fid']['pooled']:#.4g}" not in parsed.text
    assert parsed.text.count("too few") >= 3 * (4 + 1) + 1  # FID of each prompt too
    assert "CMMD, mean of prompts" in parsed.text and "KL to base" not in page.partition("<dl")[0]
    assert kinds.count("svg") >= 10 and "prefers-color-scheme: dark" in page
    assert page.count('class="scroll"') == page.count('class="scroll" tabindex="0" role="region" aria-label="') >= 3
    assert all(name not in parsed.text for name in metrics["extractors"] if "_" in name)  # titles, not keys
    whiskers = [a for tag, a in parsed.tags if tag == "path" and a.get("class") == "whisker"]
    assert len(whiskers) >= 3 * 4 * 4  # of the rewards, judge and T-CLIP of every run


def test_a_floor_of_halves_that_are_too_few_is_no_number(judged, runs):
    """Runs of 60 pictures are enough for FID, and halves of 30 are not: on the page and on the command line."""
    metrics = json.loads(json.dumps(judged[0]))
    for one in metrics["runs"]:
        one["images"] = 60
    for images, known in (([60, 60], True), ([30, 30], False)):
        metrics["floor"]["images"] = images
        value, line = metrics["floor"]["fid"]["pooled"], next(x for x in describe(metrics).split("\n") if x.startswith("floor"))
        assert (f"{value:.4g}" in line, "too few" in line) == (known, not known)
        page = Page(render(metrics, {name: runs / name for name in ("base", "bon", "files", "again")})).text
        assert (f"floor {number(value)}" in page) == known


def test_a_finished_evaluation_given_again_says_so(runs, tmp_path, capsys, monkeypatch):
    shutil.copytree(runs / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "base", "--out", "out"]
    assert main([*words, "--json"]) == 0
    first, files = json.loads(capsys.readouterr().out), {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()}
    monkeypatch.setattr("tilting.evaluation.run.load_instruments", None)  # nothing is measured
    assert main([*words, "--json"]) == 0
    out, said = capsys.readouterr()
    assert json.loads(out) == first and "holds this evaluation already" in said
    assert main(words) == 0 and "report: out" in capsys.readouterr().out.replace(os.sep, "/")
    assert "of other runs or options" in refused(capsys, "base", "--seed", "3", "--out", "out")
    record = Path("base/images.jsonl").read_text()
    Path("base/images.jsonl").write_text(record.replace('"index": 0', '"index": 00'.replace("00", "0 "), 1))
    assert "of other runs or options" in refused(capsys, "base", "--out", "out")
    assert {p.name: p.stat().st_mtime_ns for p in Path("out").iterdir()} == files


def test_prompts_are_text_not_html(runs, tmp_path):
    bad = "a fox <script>alert(1)</script> & co"
    for name in ("base", "again"):
        shutil.copytree(runs / name, tmp_path / name)
        for file in (tmp_path / name / "manifest.json", tmp_path / name / "images.jsonl"):
            file.write_text(file.read_text().replace('"a fox"', json.dumps(bad)))
    out = tmp_path / "out"
    assert main(["evaluate", str(tmp_path / "base"), str(tmp_path / "again"), "--out", str(out), "--quiet"]) == 0
    page = (out / "report.html").read_text()
    assert "<script" not in page and bad in Page(page).text


def test_reference_alone_gives_a_floor_of_halves(runs, tmp_path, capsys):
    words = ["evaluate", str(runs / "bon"), "--reference", str(runs / "again"), "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, "--quiet"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["floor"]["kind"] == "halves" and summary["floor"]["images"] == [4, 4]
    assert summary["floor"]["cmmd"]["per_prompt"] is None  # one image of a prompt in either half
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [r["role"] for r in metrics["runs"]] == ["steered", "reference"]
    assert row(metrics, "bon")["verdict"]["base"] == "again" and row(metrics, "bon")["verdict"]["paired"] is False


def test_a_reference_of_plain_pictures_is_as_far_as_the_run_that_holds_them(runs, tmp_path, capsys):
    """Pooled distances are those to the run; of prompts pictures know nothing; two halves are the floor."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    for i, record in enumerate(manifest(runs / "again")["images"]):
        shutil.copy(runs / "again" / record["file"], folder / ("more" if i % 2 else ".") / f"{i}.PNG")
    (folder / "notes.txt").write_text("mine")
    far = {}
    for name, reference in (("run", runs / "again"), ("pictures", folder)):
        words = [str(runs / "base"), str(runs / "bon"), "--reference", str(reference), "--out", str(tmp_path / name)]
        assert main(["evaluate", *words, "--quiet"]) == 0
        far[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    metrics = far["pictures"]
    assert metrics["reference"] == "photographs" and [r["name"] for r in metrics["runs"]] == ["base", "bon"]
    for name in ("base", "bon"):
        for key in ("fid", "cmmd", "cmmd_unbiased"):
            theirs = row(far["run"], name)[key]["pooled"]
            assert theirs != 0 and row(metrics, name)[key]["pooled"] == pytest.approx(theirs, rel=1e-6)
            assert row(metrics, name)[key]["per_prompt"] is None
    assert row(metrics, "bon")["verdict"]["base"] == "base"
    assert metrics["floor"]["kind"] == "pictures" and metrics["floor"]["images"] == [4, 4]
    assert "no prompts" in " ".join(metrics["notes"]) and "half against half" in (tmp_path / "pictures/report.html").read_text()
    capsys.readouterr()
    again = ["evaluate", str(runs / "base"), str(runs / "bon"), "--reference", str(folder), "--out", str(tmp_path / "pictures")]
    Image.open(folder / "0.PNG").rotate(90).save(folder / "0.PNG")
    assert main([*again, "--quiet"]) == 2 and "other runs or options" in capsys.readouterr().err
    (folder / "broken.webp").write_bytes(b"RIFF")
    assert "broken.webp" in refused(capsys, str(runs / "bon"), "--reference", str(folder), "--out", str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_without_a_reference_distances_are_null_and_say_how(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["evaluate", str(runs / "base"), str(runs / "bon"), "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["reference"] is None and metrics["floor"] is None
    assert all(r["fid"] is None and r["cmmd"] is None for r in metrics["runs"])
    note, page = metrics["no_distances"], Page((out / "report.html").read_text()).text
    told = capsys.readouterr().out
    assert note.startswith("Distances need") and all(page.count(one) == 1 and one in told for one in metrics["notes"])
    command = re.search(r"tilting (generate .*?), then give --reference (\S+)\.$", note)
    import shlex

    words = shlex.split(command[1])
    again = str(tmp_path / command[2])
    words[words.index("--out") + 1] = again
    assert main([*words, "--quiet"]) == 0  # the command works, and what it writes serves
    words = [
        "evaluate",
        str(runs / "base"),
        str(runs / "bon"),
        "--reference",
        again,
        "--out",
        str(tmp_path / "with"),
        "--quiet",
    ]
    assert main(words) == 0
    assert json.loads((tmp_path / "with" / "metrics.json").read_text())["floor"]["kind"] == "runs"


def test_reference_image_and_weights(runs, tmp_path):
    from safetensors.torch import save_file

    from tilting.features.vgg import Vgg16, conv_keys

    torch.manual_seed(0)
    widths = (4, 4, 6, 6, 8)
    vgg = Vgg16(widths)
    names = dict(conv_keys())
    state = {f"features.{names[k.split('.')[1]]}.{k.split('.')[2]}": v for k, v in vgg.state_dict().items()}
    save_file(state, tmp_path / "vgg.safetensors")
    save_file({f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}, tmp_path / "lpips.safetensors")
    picture = runs / "base" / "images" / "00000.png"
    words = ["--reference-image", str(picture), "--vgg", str(tmp_path / "vgg.safetensors"), "--quiet"]
    words += ["--lpips", str(tmp_path / "lpips.safetensors"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(runs / "base"), str(runs / "bon"), *words]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["extractors"]["diversity"].startswith("LPIPS") and "VGG16" in metrics["extractors"]["igram_vgg"]
    images = pixels(runs, "base")
    from tilting.features.clip import ClipEmbedder
    from tilting.features.lpips import load_lpips
    from tilting.metrics.extract import POCKET_CLIP

    with torch.no_grad():
        embeds = ClipEmbedder(POCKET_CLIP).image(images)
        distance = load_lpips(tmp_path / "vgg.safetensors", tmp_path / "lpips.safetensors")
        gaps = [distance(images[i : i + 1], images[i + 1 : i + 2]).item() for i in range(0, 8, 2)]
    found = row(metrics, "base")
    assert found["igram_clip"]["mean"] == pytest.approx((embeds @ embeds[0]).mean().item(), abs=1e-4)
    assert found["igram_vgg"]["mean"] < 1
    assert found["diversity"]["mean"] == pytest.approx(np.mean(gaps), rel=1e-3)


def altered(runs, root, name, copy, summary=None, **options):
    """A copy of a run whose manifest says that it was drawn otherwise."""
    shutil.copytree(runs / name, root / copy)
    said = manifest(root / copy)
    said["config"] |= options
    said["summary"] |= summary or {}
    (root / copy / "manifest.json").write_text(json.dumps(said))
    return str(root / copy)


def test_what_method_base_draws_with_a_lora_or_a_control_is_not_the_base_model(runs, tmp_path, capsys):
    base = str(runs / "base")
    tuned = altered(runs, tmp_path, "again", "tuned", lora=["runs/horse"])
    control = altered(runs, tmp_path, "again", "control", {"kl_mean": 0.5}, control=["ctl"], strength=[1.0], seed=8)
    for other in (tuned, control):
        parts = setup(EvaluateConfig.resolve({"runs": [base, other], "out": "o"}))
        assert parts.reference == "base" and parts.bases == {Path(other).name: "base"} and parts.floor is None
        assert not any("strength" in note for note in parts.notes)
        assert "must be a run of method base alone" in refused(capsys, base, "--reference", other, "--out", str(tmp_path / "o"))
    alone = setup(EvaluateConfig.resolve({"runs": [control], "out": "o"}))
    said = alone.no_distances or ""
    assert alone.reference is None and "--strength" not in said and "--method base" in said
    assert main(["evaluate", base, tuned, control, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    metrics, page = json.loads((tmp_path / "out/metrics.json").read_text()), (tmp_path / "out/report.html").read_text()
    assert [row(metrics, name)["role"] for name in ("base", "tuned", "control")] == ["reference", "steered", "steered"]
    assert row(metrics, "tuned")["verdict"]["base"] == "base" and "base + lora" in page and "base + control" in page
    assert row(metrics, "control")["kl"] == 0.5 and row(metrics, "tuned")["kl"] is None


def broken(root, runs, what):
    """A copy of a run with something wrong."""
    place = root / "bad"
    shutil.copytree(runs / "bon", place)
    if what == "missing":
        (place / "images" / "00003.png").unlink()
    elif what == "corrupt":
        (place / "images" / "00003.png").write_bytes((place / "images" / "00003.png").read_bytes()[:300])
    elif what == "text":
        (place / "images" / "00003.png").write_text("no picture")
    elif what == "manifest":
        (place / "manifest.json").write_text("{")
    elif what == "outside":
        file = place / "images.jsonl"
        file.write_text(file.read_text().replace("images/00003.png", "../../secret.png"))
    elif what == "prompts":
        file = place / "images.jsonl"
        file.write_text(file.read_text().replace('"a fox"', '"a wolf"'))
    elif what == "unfinished":
        file = place / "images.jsonl"
        file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    elif what == "stale":
        held = json.loads((place / "manifest.json").read_text())
        held["summary"]["images"] -= 1
        (place / "manifest.json").write_text(json.dumps(held))
    return place


BAD = [
    ("missing", "lacks 'images/00003.png'"),
    ("corrupt", "00003.png' cannot be read"),
    ("text", "cannot be read as a picture"),
    ("manifest", "corrupt"),
    ("stale", "is unfinished, its summary is of fewer images"),
    ("outside", "outside it"),
    ("prompts", "different prompts"),
    ("unfinished", "7 of 8 images"),
]


@pytest.mark.parametrize(("what", "said"), BAD)
def test_a_broken_run_is_one_sentence_and_nothing_is_written(what, said, runs, tmp_path, capsys):
    place, out = broken(tmp_path, runs, what), tmp_path / "out"
    assert said in refused(capsys, str(runs / "base"), str(place), "--out", str(out))
    assert sorted(os.listdir(tmp_path)) == ["bad"]


def refused(capsys, *words: str) -> str:
    """The sentence of a refusal of `tilting evaluate`, after whatever was printed before."""
    capsys.readouterr()
    return commands.refused(capsys, "evaluate", *words, "--quiet")


def test_refusals(runs, tmp_path, capsys, monkeypatch):
    base, bon, again = (str(runs / name) for name in ("base", "bon", "again"))
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("empty").mkdir()
    Path("file").write_text("x")
    Path("runs.yaml").write_text("runs: 5")
    for words, said in [
        (("--out", "o"), "no run is given"),
        ((base,), "--out DIR"),
        (("nowhere", "--out", "o"), "no folder 'nowhere'"),
        (("empty", "--out", "o"), "not a run"),
        ((base, "--out", "full"), "is there already"),
        ((base, "--out", "file"), "is a file"),
        ((base, base, "--out", "o"), "given twice"),
        ((base, "--reference", bon, "--out", "o"), "must be a run of method base"),
        ((bon, "--reference", base, "--out", "o"), "seed"),
        ((bon, "--reference", "empty", "--out", "o"), "'empty' is not a run, and holds no picture"),
        ((bon, "--reference", "nowhere", "--out", "o"), "no folder 'nowhere'"),
        ((base, again, "--inception", "none.pth", "--out", "o"), "no file 'none.pth' for --inception"),
        ((base, again, "--inception", "file", "--out", "o"), "'file'"),
        ((base, "--lpips", "file", "--out", "o"), "--vgg"),
        ((base, "--clip", "empty", "--out", "o"), "'empty'"),
        ((base, "--refrence", again, "--out", "o"), "did you mean '--reference'"),
        ((base, "--config", "none.yaml", "--out", "o"), "none.yaml"),
        (("--config", "runs.yaml", "--out", "o"), "runs must be a list"),
    ]:
        assert said in refused(capsys, *words), words
    assert sorted(os.listdir()) == ["empty", "file", "full", "runs.yaml"] and os.listdir("full") == ["mine.txt"]
    Path("compared/runs").mkdir(parents=True)
    shutil.copytree(runs / "bon", "compared/runs/bon")
    assert f"there is: {Path('compared/runs/bon')}" in refused(capsys, "compared", "--out", "o")


def test_config_file_and_print_config(runs, tmp_path, capsys):
    import yaml

    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"runs": [str(runs / "base")], "out": "a", "reference_image": str(runs / "base/grid.png")}))
    assert main(["evaluate", "--config", str(file), "--out", "b", "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["runs"] == [str(runs / "base")] and shown["out"] == "b" and shown["reference-image"].endswith("grid.png")
    file.write_text("rnus: [a]\n")
    assert "did you mean 'runs'" in refused(capsys, "--config", str(file))


def test_what_runs_differ_in_is_told_whatever_changes_a_base_model(runs, tmp_path):
    """The law of the noise and the size too, and the command for a reference has them."""
    shutil.copytree(runs / "base", tmp_path / "other")
    known = manifest_of(runs / "base")
    known["config"] |= {"sde": "euler", "height": 96, "format": "jpeg"}
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(known))
    asked = {"runs": [str(tmp_path / "other")], "out": "o"}
    assert "--sde euler" in (said := setup(EvaluateConfig.resolve(asked)).no_distances or "") and "--height 96" in said
    notes = setup(EvaluateConfig.resolve({**asked, "reference": str(runs / "again")})).notes
    assert [note.partition(":")[0].split()[-1] for note in notes] == ["sde", "height", "format"]
    alone = setup(EvaluateConfig.resolve({"runs": [str(tmp_path / "other"), str(runs / "bon")], "out": "o"})).notes
    said = "bon and the base run other differ in {}: that is not the method's doing alone."
    assert alone == tuple(map(said.format, ("sde", "height", "format")))  # of what a verdict is against


@pytest.mark.parametrize(
    ("specs", "weights"), [(("clip=2", "jpeg"), {"clip": 2, "jpeg": 1}), (("clip", "clip=.5"), {"clip": 1.5})]
)
def test_weights_of_a_reward_that_stands_twice_add_up(specs, weights):
    assert Run("r", Path(), {"config": {"reward": list(specs)}}).weights == weights


def test_images_of_several_seeds_are_paired_by_seed_and_index_whatever_their_order():
    def keys(*drawn):
        return dict(zip(drawn, keys_of({"prompt": "p", "seed": seed, "index": i} for seed, i in drawn), strict=True))

    first = keys((1, 0), (1, 1), (2, 0), (2, 1))
    assert first == keys((2, 0), (2, 1), (1, 0), (1, 1)) == keys((1, 0), (2, 0), (1, 1), (2, 1))
    assert list(first.values()) == [("p", i) for i in range(4)]


def test_parts_of_runs(runs):
    def chosen(*names, **more):
        return setup(EvaluateConfig.resolve({"runs": [str(runs / n) for n in names], "out": "o", **more}))

    assert chosen("base", "bon").reference is None
    assert chosen("bon", "base", "again").reference == "again"
    both = chosen("base", "again")
    assert (both.reference, both.floor) == ("again", "base")
    named = chosen("again", "base", "bon", reference=str(runs / "again"))
    assert (named.reference, named.floor, named.bases) == ("again", "base", {"bon": "base"})
    with pytest.raises(TiltingError, match="no run"):
        EvaluateConfig.resolve({"out": "o"})
    assert split_weight("clip=2") == ("clip", 2.0) and split_weight("my.py:f") == ("my.py:f", 1.0)
    assert split_weight("classify:m#a=b") == ("classify:m#a=b", 1.0)
    assert split_weight("likelihood:FIT#bright=0") == ("likelihood:FIT#bright=0", 1.0)
    assert split_weight("likelihood:FIT#bright=0=2") == ("likelihood:FIT#bright=0", 2.0)
    assert split_weight("http://h/s?a=2") == ("http://h/s?a=2", 1.0)


def test_a_reward_stands_on_files_and_a_clip(tmp_path, monkeypatch):
    """A network that a reward reads is no judge of it; a run does not go on when a file that it stands on is another one."""
    from tilting.evaluation.rows import networks_of
    from tilting.features.packaged import POCKET_CLIP
    from tilting.features.sources import identity
    from tilting.rewards.classifiers import files_of_classifier
    from tilting.runs.files import digest_of, digests_of

    monkeypatch.chdir(tmp_path)
    for name, net in (
        ("cnn", {"name": "cnn"}),
        ("mlp", {"name": "mlp", "embedder": None}),
        ("far", {"name": "mlp", "embedder": "owner/clip"}),
    ):
        Path(name).mkdir()
        schema = {"label": "bright", "kind": "classes", "classes": ["0", "1"]}
        (Path(name) / "classifier.json").write_text(json.dumps({"schema": schema, "network": net}))
        (Path(name) / "classifier.safetensors").write_bytes(name.encode())
    Path("ref.png").write_bytes(b"1")
    for spec, read in (
        ("jpeg", set()),
        ("clip", {"pocket-clip"}),
        ("style:noto", {"pocket-clip"}),
        ("gram:ref.png", {"pocket-clip"}),
        ("diversity", {"pocket-clip"}),
        ("aesthetic", {"openai/clip-vit-large-patch14"}),
        ("likelihood:cnn#bright=0", set()),
        ("likelihood:mlp#bright=0", {"pocket-clip"}),
        ("likelihood:far#bright=0", {"owner/clip"}),
        ("gone.py:f", set()),
        ("pickscore:mine", {"mine"}),
        ("geneval", {"openai/clip-vit-large-patch14"}),
        ("vqascore", {"openai/clip-vit-large-patch14-336"}),
    ):
        assert networks_of({spec: 1.0}) == read, spec
    same = {identity(name) for name in ("pocket-clip", str(POCKET_CLIP), os.path.relpath(POCKET_CLIP) + "/")}
    assert len(same) == 1 and identity("owner/clip") == {"owner/clip"}  # the same network under another name is no judge
    Path("heads").mkdir()
    Path("heads/head.pth").write_bytes(b"1")
    Path("body").mkdir()
    Path("body/model.safetensors").write_bytes(b"1")
    Path("headed").mkdir()
    schema = {"label": "bright", "kind": "classes", "classes": ["0", "1"]}
    Path("headed/classifier.json").write_text(json.dumps({"schema": schema, "network": {"name": "folder", "folder": "body"}}))
    Path("headed/classifier.safetensors").write_bytes(b"1")
    watched = ("gram:ref.png", "likelihood:cnn#bright=0", "aesthetic:heads", "likelihood:headed#bright=0", "style")
    before, head = digests_of(parse_specs(watched)), digest_of(files_of_classifier("headed"))
    assert all(one["sha256"] for one in before)
    Path("ref.png").write_bytes(b"2")
    Path("cnn/classifier.safetensors").write_bytes(b"another")
    Path("heads/head.pth").write_bytes(b"another")
    Path("body/model.safetensors").write_bytes(b"another")
    after = digests_of(parse_specs(watched))
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, False, False, True]
    assert digest_of(files_of_classifier("headed")) != head  # so `condition train` and `sample` remember its body too


def test_a_metric_from_outside_is_measured_and_shown(runs, tmp_path, capsys):
    code = """
from tilting.metrics import METRICS

@METRICS.declare("brightness", "Brightness", "mean over pixels, in [0, 1]", ("images",), judges=True)
def brightness(images):
    return images.mean((1, 2, 3)).double()
"""
    with installed(METRICS, tmp_path / "site", "a_metric", code, "a_metric"):
        assert main(["evaluate", str(runs / "base"), str(runs / "again"), "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    values = [np.mean([np.asarray(Image.open(file)) for file in sorted((runs / "base" / "images").glob("*.png"))]) / 255]
    assert row(metrics, "base")["brightness"]["mean"] == pytest.approx(values[0], abs=1e-6)
    assert metrics["per_prompt"][0]["runs"]["base"]["brightness"] is not None
    assert "Brightness" in Page((tmp_path / "out" / "report.html").read_text()).text and "Brightness" in capsys.readouterr().out
