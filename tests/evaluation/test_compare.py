"""`tilting compare` in process, with the model pocket: its numbers from the runs' own pictures, its page, its refusals."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tilting as tl
from support.commands import manifest, refused
from tilting.cli import main
from tilting.evaluation.compare_page import asked_for
from tilting.runs.owner import COMPARISON, RUN, kind_of

PROMPTS = ("a fox", "an <b>owl</b> & co, noto style")
METHODS = ("base", "bon", "code", "codex")
USUAL = ("--steps", "4", "--images", "2", "--quiet")


@pytest.fixture(scope="module", autouse=True)
def loaded(pocket):
    """What every command loads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tilting.generation.run.load", lambda name, *more, **how: pocket)
        yield pocket


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a comparison, and what its metrics.json holds."""
    out = tmp_path_factory.mktemp("compare") / "out"
    words = ("compare", *PROMPTS, "--methods", "base,bon", "--methods", "code, codex", "--seed", "3", *USUAL)
    assert main([*words, "--out", str(out)]) == 0
    return out, json.loads((out / "metrics.json").read_text())


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_rewards_are_those_of_the_pictures(made):
    """CLIP's cosine of the pictures and prompts, computed from the files; means and errors by numpy."""
    from tilting.features.clip import ClipEmbedder

    out, metrics = made
    clip = ClipEmbedder(Path(tl.__file__).parent / "assets" / "pocket-clip")
    assert [row["method"] for row in metrics["methods"]] == list(METHODS)
    assert metrics["reference"] == "base"
    for row in metrics["methods"]:
        records = manifest(out / "runs" / row["method"])["images"]
        stack = np.stack([pixels(out / "runs" / row["method"] / r["file"]) for r in records])
        images = torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            want = (clip.image(images) * clip.text([r["prompt"] for r in records])).sum(1).numpy()
        shown = [entry["methods"][row["method"]]["reward"] for entry in metrics["images"]]
        assert np.abs(np.array(shown) - want).max() < 0.02  # the files hold bytes
        assert row["reward"]["mean"] == pytest.approx(np.mean(shown))
        means = np.reshape(shown, (2, 2)).mean(1)  # of each prompt
        assert row["reward"]["sem"] == pytest.approx(abs(means[0] - means[1]) / 2)
        judged = [entry["methods"][row["method"]]["judge"] for entry in metrics["images"]]
        known = [value for value in judged if value is not None]
        assert row["judge"]["mean"] == pytest.approx(np.mean(known))


def test_gains_are_paired_and_their_interval_is_that_of_two_prompts(made):
    """Two prompts: t_1 = 12.706, a quarter wider, times half the difference of their means, which is the standard error."""
    _, metrics = made
    table = {m: np.array([e["methods"][m]["reward"] for e in metrics["images"]]) for m in METHODS}
    for row in metrics["methods"]:
        difference = table[row["method"]] - table["base"]
        if row["method"] == "base":
            assert row["gain"] is row["wins"] is row["judge_gain"] is None
            continue
        assert row["gain"]["mean"] == pytest.approx(difference.mean())
        half = 5 / 4 * 12.706204736 * abs(difference[:2].mean() - difference[2:].mean()) / 2
        bounds = (difference.mean() - half, difference.mean() + half)
        assert (row["gain"]["low"], row["gain"]["high"]) == pytest.approx(bounds)
        assert row["wins"] == np.where(abs(difference) < 1e-6, 0.5, difference > 0).mean()
    assert metrics["methods"][1]["gain"]["mean"] >= 0  # best of four, base's own noise among them


def test_costs_are_the_formulas(made):
    """T, N T, N T, N (T + G): at T = 4 gradients fall on the draws 2 and 3, inside t/T <= .6."""
    _, metrics = made
    paid = {row["method"]: row for row in metrics["methods"]}
    assert [paid[m]["evaluations_per_image"] for m in METHODS] == [4, 16, 16, 24]
    assert [paid[m]["evaluations"] for m in METHODS] == [16, 64, 64, 96]
    assert paid["base"]["decodes_per_image"] == 1
    assert paid["bon"]["reward_calls_per_image"] == 4
    assert all(row["seconds"] == pytest.approx(4 * row["seconds_per_image"]) for row in metrics["methods"])


def test_each_run_is_a_run_of_generate(made, tmp_path, monkeypatch):
    out, _ = made
    assert kind_of(out) is COMPARISON and kind_of(out / "runs" / "code") is RUN
    alone = tmp_path / "alone"
    words = ("generate", *PROMPTS, "--method", "code", "--seed", "3", *USUAL)
    assert main([*words, "--out", str(alone)]) == 0
    assert manifest(alone)["images"] == manifest(out / "runs" / "code")["images"]
    for record in manifest(alone)["images"]:
        assert np.array_equal(pixels(alone / record["file"]), pixels(out / "runs" / "code" / record["file"]))

    def load(name, *more, **how):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tilting.generation.run.load", load)
    assert main([*words, "--out", str(out / "runs" / "code")]) == 0  # goes on with it: nothing is missing
    assert main(["generate", *PROMPTS, "--seed", "3", *USUAL, "--out", str(out / "runs" / "base")]) == 0


class Page(HTMLParser):
    """Pictures, text and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append(tag)
        self.addresses += [known[key] for key in ("src", "href") if known.get(key)]
        if tag == "img":
            self.images.append(known)

    def handle_data(self, data):
        self.text.append(data.strip())


def test_the_page_holds_all_pictures_in_order_and_fetches_nothing(made):
    out, metrics = made
    text = (out / "compare.html").read_text()
    page = Page(text)
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in page.addresses)
    for word in ("@import", "<script", "<link"):
        assert word not in text
    assert text.count("url(") == text.count("url(data:image/webp;base64,") == len(metrics["images"])  # base's, under the mouse
    for word in re.findall('href="#([a-z0-9-]+)"', text):
        assert text.count(f'id="{word}"') == 1, word
    assert "b" not in page.tags[: page.tags.index("figure")]  # the prompt's <b> is text
    top = text.partition("<h2>Pictures</h2>")[0].partition("<h1>")[2]
    for row in metrics["methods"]:  # what it comes to, before the pictures
        assert (row["verdict"] is not None) == (f"{row['method']} <span" in top)
    assert top.count('class="pill') == sum(row["verdict"] is not None for row in metrics["methods"]) > 0
    assert text.count('class="scroll"') == text.count('class="scroll" tabindex="0" role="region" aria-label="') == 2
    cells = [(e, m) for e in metrics["images"] for m in METHODS]
    assert len(page.images) == len(cells)
    for shown, (entry, method) in zip(page.images, cells, strict=True):
        assert shown["alt"] == f"{entry['prompt']}, {method}"
        embedded = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
        assert np.array_equal(np.asarray(embedded.convert("RGB")), pixels(out / entry["methods"][method]["file"]))
    for prompt in PROMPTS:
        assert prompt in page.text
    for row in metrics["methods"]:
        assert f"{row['reward']['mean']:.3f}".lstrip("-") in text
    assert "prefers-color-scheme: dark" in text


def test_the_sheet_shows_methods_as_columns_and_images_as_rows(made):
    """Every picture is found on it, three times as large, columns from left to right and rows from top to bottom."""
    out, metrics = made
    sheet = pixels(out / "compare.png").astype(int)
    places = {}
    for i, entry in enumerate(metrics["images"]):
        for j, method in enumerate(METHODS):
            small = pixels(out / entry["methods"][method]["file"])
            big = small.repeat(3, 0).repeat(3, 1).astype(int)
            found = [
                (y, x)
                for y, x in zip(*np.nonzero((sheet[:-191, :-191] == big[0, 0]).all(-1)), strict=True)
                if np.array_equal(sheet[y : y + 192, x : x + 192], big)
            ]
            assert found, (entry["prompt"], method)
            places[i, j] = found[0] if len(found) == 1 else None
    for i in range(4):
        row = [places[i, j] for j in range(4) if places[i, j]]
        assert len({y for y, _ in row}) <= 1
        assert [x for _, x in row] == sorted(x for _, x in row)
    for j in range(4):
        column = [places[i, j] for i in range(4) if places[i, j]]
        assert len({x for _, x in column}) <= 1
        assert [y for y, _ in column] == sorted(y for y, _ in column)
    assert sum(place is not None for place in places.values()) >= 8


def test_another_method_joins_and_what_is_missing_is_drawn(made, capsys, monkeypatch):
    from tilting.evaluation import compare as module

    out, metrics = made
    words = ("compare", *PROMPTS, "--seed", "3", *USUAL, "--out", str(out), "--methods")
    kept = pixels(out / "runs" / "code" / "images" / "00002.png")
    (out / "runs" / "code" / "images" / "00002.png").unlink()
    drawn, plan = [], module.plan_missing

    def spy(place, parts):
        drawn.append((place.config.method, 4 - len(place.records)))
        return plan(place, parts)

    monkeypatch.setattr(module, "plan_missing", spy)
    capsys.readouterr()
    assert main([*words, "code,svdd", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert drawn == [("code", 1), ("svdd", 4)]
    assert shown["reference"] == "code"  # base is not among them
    assert shown["methods"][0]["reward"]["mean"] == pytest.approx(metrics["methods"][2]["reward"]["mean"], abs=1e-5)
    again = pixels(out / "runs" / "code" / "images" / "00002.png").astype(int)
    assert np.abs(again - kept).max() <= 1  # drawn alone instead of in a group of four
    assert sorted(os.listdir(out / "runs")) == sorted([*METHODS, "svdd"])
    other = [*words[:-1]]
    other[other.index("--seed") + 1] = "4"
    assert "another seed" in refused(capsys, *other, "--methods", "base")
    assert main([*words, ",".join(METHODS)]) == 0  # as the other tests expect it


def test_the_table_for_people(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    out, metrics = made
    words = ("compare", *PROMPTS, "--seed", "3", "--steps", "4", "--images", "2", "--out", str(out), "--methods")
    assert main([*words, ",".join(METHODS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["method", "reward", "judge", "evaluations", "seconds"]
    assert len({len(line) for line in lines[: 1 + len(METHODS)]}) == 1
    for line, row in zip(lines[1:], metrics["methods"], strict=False):
        assert line.split()[:4] == [row["method"], f"{row['reward']['mean']:.4f}", "±", f"{row['reward']['sem']:.4f}"]
    for line, row in zip(lines[len(METHODS) + 1 :], metrics["methods"][1:], strict=False):
        assert line == f"{row['method']}: {row['verdict']['reason']}"
    assert lines[-2].startswith("judge: how surely")
    assert lines[-1] == f"page: {out / 'compare.html'}, picture: {out / 'compare.png'}"


def test_a_failing_reward_keeps_what_is_finished_and_resumes(capsys, tmp_path):
    file, out = tmp_path / "r.py", tmp_path / "out"
    file.write_text(
        "from pathlib import Path\ndef bright(images, prompts):\n"
        "    if len(images) > 1 and not Path(__file__ + '.ok').exists():\n        raise RuntimeError('too many')\n"
        "    return images.mean((1, 2, 3))\n"
    )
    words = (
        "compare",
        "a fox",
        "--steps",
        "4",
        "--quiet",
        "--reward",
        f"{file}:bright",
        "--out",
        str(out),
        "--methods",
        "base,bon",
    )
    assert "too many" in refused(capsys, *words)
    assert len(manifest(out / "runs" / "base")["images"]) == 1
    assert not (out / "compare.html").exists()
    (tmp_path / "r.py.ok").write_text("")
    assert main(list(words)) == 0
    rows = json.loads((out / "metrics.json").read_text())["methods"]
    assert rows[0]["evaluations"] == 4  # base was not drawn again
    assert rows[0]["reward"]["sem"] is None
    assert rows[1]["gain"]["low"] is None is rows[1]["gain"]["high"] and rows[1]["gain"]["mean"] >= -1e-6
    mean = pixels(out / "runs" / "base" / "images" / "00000.png").mean() / 255
    assert rows[0]["reward"]["mean"] == pytest.approx(mean, abs=0.5 / 255)


def test_from_a_picture(tmp_path):
    """The reference of every method: all stay near it at a small strength."""
    flat = np.full((64, 64, 3), (40, 90, 200), np.uint8)
    Image.fromarray(flat).save(tmp_path / "ref.png")
    words = ("compare", "a fox", "--steps", "4", "--quiet", "--methods", "base,code", "--out", str(tmp_path / "out"))
    assert main([*words, "--image", str(tmp_path / "ref.png"), "--strength", "0.25"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["evaluations"] for row in metrics["methods"]] == [1, 4]
    assert metrics["config"]["strength"] == 0.25
    assert "ref.png" in (tmp_path / "out" / "compare.html").read_text()


def test_tables_and_figures_hold_what_the_page_says(made):
    """CSV with all digits, a table of booktabs, and every chart as SVG and PDF of colours, not of the page's variables."""
    out, _ = made
    metrics = json.loads((out / "metrics.json").read_text())  # another test has drawn a picture of it again
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["method"] for row in rows] == list(METHODS)
    for row, known in zip(rows, metrics["methods"], strict=True):
        assert float(row["reward"]) == known["reward"]["mean"] and float(row["evaluations"]) == known["evaluations_per_image"]
        assert row["verdict"] == ("" if known["verdict"] is None else known["verdict"]["word"])
        assert row["gain over base"] == ("" if known["gain"] is None else str(known["gain"]["mean"]))
    latex = (out / "table.tex").read_text()
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}"):
        assert latex.count(word) == 1
    body = latex.partition("midrule\n")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert [line.count("&") for line in body] == [len(rows[0]) - 1] * 4
    names = sorted(file.name for file in (out / "figures").iterdir())
    assert names == sorted(f"{name}.{end}" for name in ("cost", "gain", "judge_gain") for end in ("pdf", "svg"))
    for name in names:
        data = (out / "figures" / name).read_bytes()
        assert data.startswith(b"%PDF" if name.endswith("pdf") else b"<?xml")
        assert b"#0a0b" not in data and (name.endswith("pdf") or b"#3b6fd4" in data)


def test_a_heading_names_a_file_without_its_folders():
    assert asked_for({"reward": ["a/b/my.py:score=2", "clip", "style:noto"]}) == "my.py:score=2 + clip + style:noto"


def test_latex_escapes_what_it_reads_otherwise():
    from tilting.reports.tables import as_latex

    text = as_latex(["a_b", "50 %"], [["x & y", 0.123456], ["~{^", None], ["z", -1.5e-7]], "# 1")
    power = r"z & $-1.5 \times 10^{-7}$"
    for part in (
        r"a\_b & 50 \% ",
        r"x \& y & $0.1235$",
        r"\textasciitilde{}\{\textasciicircum{} & --",
        r"\caption{\# 1}",
        power,
    ):
        assert part in text


def test_the_functions_of_python_are_the_commands(pocket, tmp_path, capsys):
    out = tmp_path / "compared"
    given = {"reward": "jpeg", "steps": 2, "images": 2, "particles": 2, "model": pocket}
    made = tl.compare(["a fox", "a cat"], "base,bon", out=out, progress=False, **given)
    assert capsys.readouterr().err == ""
    assert [row["method"] for row in made["methods"]] == ["base", "bon"]
    assert made["methods"] == json.loads((out / "metrics.json").read_text())["methods"]
    found = tl.evaluate([out / "runs" / "base", out / "runs" / "bon"], out=tmp_path / "judged", progress=False)
    assert [row["name"] for row in found["runs"]] == ["base", "bon"]
    lines = (tmp_path / "judged" / "table.csv").read_text().splitlines()
    assert lines[0].startswith("run,method,jpeg,") and len(lines) == 3
    assert r"\toprule" in (tmp_path / "judged" / "table.tex").read_text()
    assert "base" in repr(made) and repr(made).endswith("compare.html") and made._repr_html_().count("<img") == 1
    assert repr(found).endswith("report.html") and len(repr(found)) < 2000 and "<pre>" in found._repr_html_()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda out: tl.compare("a fox", "codx", out=out), "did you mean 'codex'"),
        (lambda out: tl.compare("a fox", ["base", tl.presets.bon()], out=out), "names of its methods: give texts"),
        (lambda out: tl.compare("a fox", tl.presets.bon(), out=out), "names of its methods: give texts"),
        (lambda out: tl.compare("a fox", reward=lambda images, prompts: 1, out=out), "such as 'my.py:score'"),
        (lambda out: tl.evaluate(torch.zeros(1), out=out), r"save one by out.save\(DIR\)"),
        (lambda out: tl.evaluate([out, 3], out=out), r"save one by out.save\(DIR\)"),
        (lambda out: tl.evaluate(Path(__file__).parent, out=out), "is not a run: it holds no manifest.json"),
    ],
)
def test_what_the_functions_of_python_cannot_take_is_a_sentence(call, said, tmp_path):
    with pytest.raises(tl.TiltingError, match=said):
        call(tmp_path / "no")
    assert not (tmp_path / "no").exists()


OF_LOADING = [
    *({name: value} for name, value in {"precision": "fp16", "height": 32, "frames": 2, "mask": "m.png"}.items()),
    *({name: value} for name, value in {"compile": True, "quantize": "8bit", "long_prompts": "chunk", "device": "cpu"}.items()),
    {"input": ["clip_skip=1"]},
]


@pytest.mark.parametrize("given", OF_LOADING, ids=[next(iter(one)) for one in OF_LOADING])
def test_what_only_loading_can_give_is_refused_beside_a_loaded_model(pocket, given, tmp_path):
    """It was ignored, and recorded in the manifest as if it had been heard."""
    said = "the model is loaded in fp32" if "precision" in given else f"{next(iter(given))} is of loading"
    with pytest.raises(tl.TiltingError, match=said):
        tl.compare("a fox", "base", out=tmp_path / "no", model=pocket, steps=1, progress=False, **given)
    assert not (tmp_path / "no").exists()


def test_a_comparison_records_the_precision_that_its_loaded_model_has(pocket, tmp_path, monkeypatch):
    """Its own may be said beside it; no precision said is its own, not fp32."""
    seen = []
    monkeypatch.setattr("tilting.evaluation.compare.compare", lambda config, *_: seen.append(config.precision) or {})
    monkeypatch.setattr("tilting.evaluation.compare.describe", lambda found: "")
    half = type("Half", (), {"dtype": torch.bfloat16, "__getattr__": lambda self, name: getattr(pocket, name)})()
    for model, more in ((pocket, {}), (pocket, {"precision": "fp32"}), (half, {}), (half, {"precision": "bf16"})):
        tl.compare("a fox", "base", out=tmp_path / "out", model=model, **more)
    assert seen == [None, None, "bf16", "bf16"]
    with pytest.raises(tl.TiltingError, match="a loaded one, not a int"):
        tl.compare("a fox", "base", out=tmp_path / "out", model=3)


@pytest.mark.parametrize("there", ["images/0.png", "grid.png", "a.txt"])
def test_a_folder_that_is_no_run_is_said_to_be_none(there, tmp_path, capsys):
    file = tmp_path / "pictures" / there
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert main(["evaluate", str(tmp_path / "pictures"), "--out", str(tmp_path / "judged")]) == 2
    assert "is not a run: it holds no manifest.json of `tilting generate`" in capsys.readouterr().err


def test_columns_of_settings_and_of_a_lora(small, folder, tmp_path, monkeypatch):
    """Each is the run that `tilting generate` makes; the LoRA changes no other column; a sweep has its curves."""
    from tilting.models.lora import add_lora, lora_state, remove
    from tilting.models.lora_weights import save_lora

    state = lora_state(small.unet) if add_lora(small.unet) else {}
    save_lora({key: 0.3 * torch.ones_like(value) for key, value in state.items()}, tmp_path / "tuned")
    remove(small.unet, ["tilting"])
    monkeypatch.setattr("tilting.generation.run.load", lambda *given, **options: tl.load(str(folder)))
    usual = ("--model", str(folder), "--reward", "jpeg", "--steps", "3", "--images", "2", "--quiet")
    columns = f"base,bon,lora:{tmp_path / 'tuned'}"
    words = ("compare", "a fox", "a cat", *usual, "--methods", columns, "--sweep", "bon.N=2,3", "--out", str(tmp_path / "out"))
    assert main(list(words)) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = {row["method"]: row for row in metrics["methods"]}
    assert list(rows) == [*columns.split(","), "bon:N=2", "bon:N=3"]
    assert [rows[m]["evaluations_per_image"] for m in ("base", "bon:N=2", "bon:N=3")] == [3, 6, 9]
    lora = ("generate", "a fox", "a cat", *usual, "--lora", str(tmp_path / "tuned"), "--out", str(tmp_path / "alone"))
    assert main(list(lora)) == 0
    assert main(["generate", "a fox", "a cat", *usual, "--out", str(tmp_path / "base")]) == 0
    kept = tmp_path / "out" / rows[f"lora:{tmp_path / 'tuned'}"]["folder"]
    assert manifest(kept)["images"] == manifest(tmp_path / "alone")["images"]
    assert manifest(tmp_path / "out" / "runs" / "base")["images"] == manifest(tmp_path / "base")["images"]
    assert manifest(kept)["images"][0]["reward"] != manifest(tmp_path / "base")["images"][0]["reward"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "How does bon.N change the reward?" in page and 'aria-label="reward over bon.N"' in page
    for label, own in (("bon:N=2", "particles=2"), (f"lora:{tmp_path / 'tuned'}", f"lora={tmp_path / 'tuned'}")):
        assert f"</i>{label} <code>{own}</code> </p>" in page
    assert rows["bon"]["verdict"]["word"] == "too few to say"  # of two prompts
    assert main(list(words)) == 0
