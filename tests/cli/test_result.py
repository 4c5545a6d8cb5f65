"""What `tl.generate` gives shows itself and is saved as the command's own folder; seeds, single images and formats of runs."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import tilting as tl
from support.commands import manifest, refused
from tilting.cli import main
from tilting.config.evaluate import EvaluateConfig
from tilting.errors import TiltingError
from tilting.evaluation.read_runs import no_reference, read_run
from tilting.generation.api import Result
from tilting.models.control_file import Control
from tilting.reports import grid
from tilting.training.trainer import Tuned

PROMPTS = ["a fox", "a cat"]
WORDS = ("--method", "bon", "--particles", "2", "--reward", "jpeg", "--steps", "3", "--images", "2")


@pytest.fixture
def command(folder, small, monkeypatch):
    """(words) -> what `tilting generate` of PROMPTS by the small model returns, which is loaded once."""
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: small)
    return lambda *words: main(["generate", *PROMPTS, "--model", str(folder), *WORDS, *map(str, words)])


def drawn(model, **given):
    return tl.generate(model, PROMPTS, "jpeg", tl.presets.bon(particles=2), steps=3, images=2, progress=False, **given)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_result_shows_itself(small, capsys):
    out = tl.generate(small, PROMPTS, "jpeg", tl.presets.bon(particles=2), steps=3, images=2, seed=5)
    assert "bon" in capsys.readouterr().err  # the bar
    assert drawn(small, seed=5).manifest["images"] == out.manifest["images"]
    assert capsys.readouterr().err == ""
    assert repr(out).startswith("Result(4 images of 16x16, bon, reward -") and len(repr(out)) < 120
    assert [np.asarray(one).tolist() for one in out.pil] == [
        (image.permute(1, 2, 0) * 255).round().byte().tolist() for image in out.images
    ]
    sheet = np.asarray(out.grid())
    corner = np.asarray(out.pil[0]).repeat(12, 0).repeat(12, 1)  # a whole multiple, of nearest pixels
    assert any(np.array_equal(sheet[y : y + 192, 12 : 12 + 192], corner) for y in range(40, 120))
    html = out._repr_html_()
    assert html.count("<img") == 1 and "a fox, a cat" in html
    with Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1].split('"')[0]))) as shown:
        assert shown.size == out.grid().size


def test_every_value_of_python_shows_itself_in_a_line(folder):
    """As it does at the end of a cell: no weights, no tensors, no addresses."""
    small = tl.load(str(folder))  # LoRAs stay on it
    pictures = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    usual = {"train_steps": 1, "steps": 2, "batch_size": 2, "progress": False}
    fit = tl.condition_fit(pictures, ["dark", "bright"] * 12, "light", kind="cnn", widths=(4, 4), epochs=1, progress=False)
    trained = tl.condition_train(small, fit.classifier, ["a fox"], **usual)
    tuned = tl.finetune(small, ["a fox"], "color:red", "draft", **usual)
    clip = tl.rewards.clip()
    request = tl.plan(small, tl.identities(["a fox"], seed=0, images=1), tl.presets.bon(particles=2), clip, steps=2)
    events = list(tl.draw(small, request))
    values = [
        small,
        clip,
        request,
        *events,
        fit,
        fit.classifier,
        trained,
        trained.control,
        trained.control.at(light="dark"),
        tuned,
    ]
    for value in values:
        said = repr(value)
        assert "\n" not in said and "tensor(" not in said and " at 0x" not in said and len(said) < 1500, said
    assert repr(clip).startswith("Clip(embedder=ClipEmbedder(") and len(repr(clip)) < 100
    assert repr(tuned).startswith("Tuned(1 step, reward ") and "Control(of " in repr(trained)
    assert "light: bright, dark" in repr(fit) and "accuracy 0." in repr(fit)


@pytest.mark.parametrize("columns", [1, 3, 12])
@pytest.mark.parametrize("words", [3, 30, 90])
def test_a_sheets_header_is_told_whole(columns, words, monkeypatch):
    """In as many lines as it takes, above the pictures."""
    written = []
    monkeypatch.setattr(
        grid.Sheet, "text", lambda sheet, x, y, text, width, size=15, ink=grid.INK: written.append((y, text, size))
    )
    below = " ".join(f"number-{i}" for i in range(words))
    sheet = grid.sheet_of([("a fox", [("0.5", Image.new("RGB", (16, 16)))] * columns)], f"title of {words} words", below)
    head = [one for one in written if one[0] < sheet.top - 12]
    assert " ".join(text for _, text, _ in head) == f"title of {words} words {below}"
    assert all(grid.letters(size).getlength(text) <= sheet.width - 24 for _, text, size in head)
    assert [y for y, _, _ in head] == sorted({y for y, _, _ in head}) and head[-1][0] + 15 <= sheet.top


def test_a_saved_result_is_the_folder_of_the_command(small, command, tmp_path, monkeypatch):
    """Pixels, records and config; the command finds it finished, and loads nothing."""
    drawn(small, seed=[3, 4]).save(tmp_path / "saved")
    assert command("--seed", "3,4", "--out", tmp_path / "run", "--quiet") == 0
    ours, theirs = manifest(tmp_path / "saved"), manifest(tmp_path / "run")
    assert ours["images"] == theirs["images"]
    assert ours["model"] == theirs["model"] and ours["reward"] == theirs["reward"]
    assert ours["config"] | {"out": None} == theirs["config"] | {"out": None}
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == sorted(p.name for p in (tmp_path / "run").iterdir())
    for record in ours["images"]:
        assert (tmp_path / "saved" / record["file"]).read_bytes() == (tmp_path / "run" / record["file"]).read_bytes()
    monkeypatch.setattr("tilting.generation.run.load", None)
    assert command("--seed", "3,4", "--out", tmp_path / "saved", "--quiet") == 0
    with pytest.raises(TiltingError, match="is there already"):
        drawn(small, seed=3).save(tmp_path / "saved")


def test_what_no_command_says_keeps_commands_out(small, command, tmp_path, capsys):
    """A function as reward, latents of one's own: the folder is whole, and no command goes on in it."""

    def bright(images, prompts):
        return images.mean((1, 2, 3))

    made = tl.generate(small, PROMPTS, bright, "bon", steps=3, progress=False, latents=torch.zeros(2, *small.latent_shape))
    assert made.beyond == ("latents", "reward")
    folder = made.save(tmp_path / "own")
    assert manifest(folder)["config"]["python"] == ["latents", "reward"] and (folder / "grid.png").is_file()
    assert command("--out", folder) == 2
    assert "holds a run with" in capsys.readouterr().err
    said = no_reference(EvaluateConfig(), [read_run(str(folder), "own")])
    assert "--steps 3" in said and "--reward" not in said  # which no command says: it was <function bright>, or <lambda>


@pytest.mark.parametrize("out", ["", None, 3])
def test_where_nothing_can_be_saved_is_one_sentence(out, tmp_path, monkeypatch):
    """Of a result, a LoRA, a control, a comparison and an evaluation: str(None) was a folder's name."""
    monkeypatch.chdir(tmp_path)
    result = Result(torch.zeros(0, 3, 8, 8), {"images": [], "summary": {}})
    calls = (
        result.save,
        Tuned({}, []).save,
        Control(None, None, {}, "").save,  # type: ignore[arg-type]
        lambda out: tl.compare("a fox", out=out),
        lambda out: tl.evaluate("runs", out=out),
    )
    for call in calls:
        with pytest.raises(TiltingError, match=r"say in which folder to write, such as 'runs/fox', not "):
            call(out)
    assert not list(tmp_path.iterdir())


def test_several_seeds_are_several_runs_in_one(small, command, tmp_path):
    """Image by image what runs of one seed each draw; each is keyed by its own seed."""
    assert command("--seed", "3,4", "--out", tmp_path / "both", "--quiet") == 0
    for seed in (3, 4):
        assert command("--seed", seed, "--out", tmp_path / str(seed), "--quiet") == 0
    both = manifest(tmp_path / "both")
    assert [(r["prompt"], r["seed"], r["index"]) for r in both["images"]] == [
        (prompt, seed, index) for prompt in PROMPTS for seed in (3, 4) for index in (0, 1)
    ]
    for record in both["images"]:
        one = next(
            r
            for r in manifest(tmp_path / str(record["seed"]))["images"]
            if (r["prompt"], r["index"]) == (record["prompt"], record["index"])
        )
        assert one["reward"] == pytest.approx(record["reward"])
        there = pixels(tmp_path / str(record["seed"]) / one["file"]).astype(int)
        assert np.abs(pixels(tmp_path / "both" / record["file"]) - there).max() <= 1
    assert both["config"]["seed"] == [3, 4]
    assert command("--seed", "3,4", "--out", tmp_path / "both", "--quiet") == 0


def test_what_seeds_and_single_images_can_be(capsys, tmp_path):
    fox = ("generate", "a fox", "a cat", "--out", str(tmp_path / "out"))
    for words, said in (
        (("--seed", "1,x"), "seed must be a whole number"),
        (("--seed", "1,1"), "seed 1 is given twice"),
        (("--only", "fox"), "only takes PROMPT:INDEX"),
        (("--only", "a fix:0"), "did you mean 'a fox'"),
        (("--only", "2:0"), "names no image of this run, which has prompts 0 to 1 and images 0 to 0 of each"),
        (("--format", "bmp"), "format cannot be 'bmp'"),
    ):
        assert said in refused(capsys, *fox, *words)
    assert not (tmp_path / "out").exists()


def test_one_image_is_drawn_again_and_the_call_says_what_it_paid(command, tmp_path, capsys):
    out = tmp_path / "run"
    assert command("--out", out, "--only", "a cat:1", "--only", "0:0") == 0
    said, err = capsys.readouterr()
    assert err.startswith("tilting: loading ")
    assert said.startswith(f"2 of 4 images in {out}, reward ") and "12 evaluations, " in said  # 2 particles, 3 steps
    assert [r["index"] for r in manifest(out)["images"]] == [0, 1]
    assert not (out / "grid.png").exists()
    assert command("--out", out) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"4 images in {out} (2 of 4 were already there), reward ")
    assert "12 evaluations and " in said and "(24 evaluations and " in said
    first = pixels(out / "images" / "00003.png").astype(int)
    (out / "images" / "00003.png").write_bytes(b"")
    assert command("--out", out, "--only", "a cat:1", "--json") == 0
    call = json.loads(capsys.readouterr().out)["call"]
    assert (call["already"], call["drawn"], call["total"], call["evaluations"]) == (3, 1, 4, 6)
    assert np.abs(pixels(out / "images" / "00003.png") - first).max() <= 1
    assert command("--out", out) == 0
    said, err = capsys.readouterr()
    assert "(4 of 4 were already there)" in said and "0 evaluations and 0.0 s now (30 evaluations" in said and err == ""


@pytest.mark.parametrize(("kind", "end", "off"), [("webp", "webp", 0), ("jpeg", "jpg", 40)])
def test_pictures_of_other_formats_hold_the_same_and_resume(kind, end, off, command, tmp_path):
    assert command("--out", tmp_path / "png", "--quiet") == 0
    assert command("--out", tmp_path / kind, "--format", kind, "--quiet") == 0
    for record in manifest(tmp_path / kind)["images"]:
        assert record["file"].endswith(f".{end}")
        theirs = pixels(tmp_path / "png" / record["file"].replace(f".{end}", ".png")).astype(int)
        assert np.abs(pixels(tmp_path / kind / record["file"]) - theirs).max() <= off
        with Image.open(tmp_path / kind / record["file"]) as image:
            told = json.loads(image.getexif()[0x010E])
        assert (told["prompt"], told["seed"], told["method"]) == (record["prompt"], "0", "bon")
    torn = tmp_path / kind / "images" / f"00001.{end}"
    torn.write_bytes(torn.read_bytes()[:-3])
    assert command("--out", tmp_path / kind, "--format", kind, "--quiet") == 0
    assert pixels(torn).shape == (16, 16, 3)
    assert manifest(tmp_path / kind)["summary"]["evaluations"] == 30
