"""The command line, in process: refusals before any model loads, YAML, resumable folders. A tiny analytic model draws."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from support.commands import manifest as manifest_of
from support.commands import refused
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.presets import METHODS

REWARD = "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"


class Tiny:
    """Exact denoiser of N(m(prompt), I) latents; pictures of 64 x 64."""

    name, default_steps, default_cfg, latent_shape, image_shape = "tiny", 50, 4.0, (3, 8, 8), (3, 64, 64)

    def __init__(self):
        import torch

        from tilting.schedule import Schedule

        bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.schedule = Schedule("epsilon", tuple(bar.tolist()), 1.0, "trailing", 0)

    def denoiser(self, prompts, cfg, negative=""):
        import torch

        from tilting.types import Prediction

        means = torch.tensor([len(p) / 10 for p in prompts])

        def denoise(x, t, rows):
            m = means[rows].reshape(-1, 1, 1, 1)
            x0 = m + t.alpha * (x - t.alpha * m)
            return Prediction((x - t.alpha * x0) / t.sigma, x0, torch.full_like(x, 0.1))

        return denoise

    def decode(self, latents):
        return latents.sigmoid().repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: Tiny())


FOX = ("generate", "a fox", "--out", "OUT")
BAD = [
    (("generate", "--out", "OUT"), "no prompt"),
    (("generate", "a fox", " ", "--out", "OUT"), "prompt 2 of 2 is blank"),
    (("generate", "--out", "OUT", ""), "blank"),
    (("generate", "a fox", "prompts.txt", "--out", "OUT"), "'prompts.txt' is a file: give it as --prompts"),
    (("generate", "--prompts", "nothing.txt", "--out", "OUT"), "nothing.txt"),
    (("generate", "a fox"), "--out"),
    ((*FOX, "--reward", "clipp"), "did you mean 'clip'"),
    ((*FOX, "--reward", "clip=nan"), "finite"),
    ((*FOX, "--method", "codx"), "did you mean 'codex'"),
    ((*FOX, "--method", "codxe"), "did you mean 'codex'"),
    ((*FOX, "--model", "poket"), "did you mean 'pocket'"),
    ((*FOX, "--metod", "code"), "did you mean '--method'"),
    (("genrate", "a fox"), "did you mean 'generate'"),
    ((*FOX, "--particles", "0", "--method", "code"), "particles must be at least 1"),
    ((*FOX, "--steps", "0"), "steps must be at least 1"),
    ((*FOX, "--steps", "-3"), "steps must be at least 1"),
    ((*FOX, "--steps", "2.5"), "--steps must be a whole number"),
    ((*FOX, "--cfg", "x"), "--cfg must be a number"),
    ((*FOX, "--images", "0"), "images must be at least 1"),
    ((*FOX, "--batch-size", "0"), "batch-size must be at least 1"),
    ((*FOX, "--eta", "nan"), "eta must be a finite number"),
    ((*FOX, "--cfg", "nan"), "cfg must be a finite number"),
    ((*FOX, "--cfg", "inf"), "cfg must be a finite number"),
    ((*FOX, "--cfg", "0"), "cfg must be above 0, not 0: 1 is the prompt without guidance"),
    ((*FOX, "--cfg=-2"), "cfg must be above 0, not -2"),
    ((*FOX, "--eta", "1.5"), "eta must be between 0 and 1"),
    ((*FOX, "--eta", "0", "--method", "code"), "eta 0"),
    ((*FOX, "--eta", "0", "--method", "codex"), "eta 0"),
    ((*FOX, "--eta", "0", "--method", "smc"), "eta 0"),
    ((*FOX, "--eta", "0", "--method", "bon", "--set", "bon.start=copy"), "eta 0"),
    ((*FOX, "--method", "codex", "--reward", "jpeg"), "code or bon"),
    ((*FOX, "--method", "codex", "--reward", "clip", "--reward", "jpeg=0.1"), "code or bon"),
    ((*FOX, "--method", "codex", "--cfg", "1"), "cfg"),
    ((*FOX, "--method", "codex", "--set", "codex.tua=1"), "did you mean 'codex.tau'"),
    ((*FOX, "--set", "codx.tau=1"), "did you mean 'codex'"),
    ((*FOX, "--method", "codex", "--set", "codex.tau=nan"), "finite"),
    ((*FOX, "--method", "codex", "--set", "codex.block=0.5"), "whole number"),
    ((*FOX, "--method", "codex", "--set", "codex.block=0"), "at least 1"),
    ((*FOX, "--method", "codex", "--set", "codex.source=papr"), "did you mean 'paper'"),
    ((*FOX, "--method", "codex", "--set", "codex.window=0.1,0.5"), "high, low"),
    ((*FOX, "--method", "codex", "--reward", "clip", "--set", "codex.clusters=2"), "codex.gradient_on is all"),
    ((*FOX, "--method", "das", "--reward", "clip", "--set", "das.adaptive=true", "--set", "das.temper=1"), "das.temper unset"),
    ((*FOX, "--set", "codex.tau"), "METHOD.FIELD=VALUE"),
    ((*FOX, "--config", "nothing.yaml"), "nothing.yaml"),
    ((*FOX, "--prompts", "p.txt"), "one of them"),
    (("generate", "a fox", "--out", "a_file"), "a_file"),
    (("generate", "a fox", "--out", "a_file/deeper"), "a_file"),
    (("generate", "a fox", "--out", "/proc/nowhere/out"), "/proc/nowhere/out"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(w[1:])[:60] for w, _ in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(words, said, capsys, tmp_path, monkeypatch, no_model):
    monkeypatch.chdir(tmp_path)
    for name in ("a_file", "prompts.txt"):
        Path(name).write_text("x")
    assert said in refused(capsys, *words)
    assert sorted(os.listdir()) == ["a_file", "prompts.txt"]


PROMPT_FILES = [
    ("empty.txt", "", "no prompts"),
    ("blank.txt", " \n\n", "no prompts"),
    ("blank.csv", "prompt,x\na,1\n ,2\n", "prompt 2 in"),
    ("p.jsonl", '{"words": "a"}\n', "line 1"),
    ("p.jsonl", "a fox\n", "not JSON"),
    ("p.csv", "words\na\n", "column prompt; there is: words"),
    ("p.csv", "prompt\n", "no prompts"),
    ("p.doc", "a fox", ".txt"),
    ("bad.txt", b"\xff\xfe\x00", "UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "said"), PROMPT_FILES)
def test_bad_prompt_files(name, content, said, capsys, tmp_path, no_model):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in refused(capsys, "generate", "--prompts", str(file), "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a fox\nan owl\n"),
        ("p.txt", "\na fox\n\n  \nan owl\n\n"),
        ("p.jsonl", '{"prompt": "a fox"}\n{"prompt": "an owl", "x": 1}\n'),
        ("p.csv", "id,prompt\n1,a fox\n2,an owl\n"),
    ],
)
def test_prompt_files(name, content, capsys, tmp_path):
    (tmp_path / name).write_text(content)
    assert main(["generate", "--prompts", str(tmp_path / name), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["prompts"] == ["a fox", "an owl"]


BAD_YAML = [
    ("stepz: 4", "did you mean 'steps'"),
    ("steps: true", "whole number"),
    ("eta: .nan", "finite"),
    ("steps: [", "not YAML"),
    ("- a", "mapping"),
    ("steps: 4\nsteps: 5", "twice"),
    ("negative_prompt: a\nnegative-prompt: b", "'negative-prompt' is given twice"),
    ("codex.tau: 0.1\nset: {codex: {tau: 0.2}}", "'codex.tau' is given twice"),
    ("set: {codex.tua: 1}", "did you mean 'codex.tau'"),
    ("reward: 3", "reward"),
    ("prompts: [1]", "text"),
    ("!!python/object/apply:os.system ['true']", "not YAML"),
]


@pytest.mark.parametrize(("text", "said"), BAD_YAML)
def test_bad_yaml(text, said, capsys, tmp_path, no_model):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    prompts = [] if "prompts" in text else ["a fox"]
    assert said in refused(capsys, "generate", *prompts, "--config", str(file), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_yaml_the_command_line_wins_and_print_config_reads_back(capsys, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "prompts: [a cow, a fox]\nmethod: codex\nsteps: 7\ncfg: 3\nnegative_prompt: blurry\nreward: [clip, style:noto=0.5]\n"
        "set:\n  codex: {tau: 1e-3, window: [0.5, 0.1]}\ncodex.block: 2\n"
    )
    words = ["generate", "--config", str(file), "--steps", "9", "--set", "codex.block=3", "--print-config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert config["prompts"] == ["a cow", "a fox"]
    assert (config["steps"], config["cfg"], config["negative-prompt"], config["particles"]) == (9, 3.0, "blurry", 4)
    assert config["set"]["codex.tau"] == 0.001
    assert config["set"]["codex.window"] == [0.5, 0.1]
    assert config["set"]["codex.block"] == 3
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert main(["generate", "--config", str(again), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a fox", "--method", "auto", "--budget", "100", "--reward", "clip"),
        ("generate", "a fox", "--method", "auto", "--budget", "30s", "--reward", "clip", "--steps", "9", "--cfg", "3"),
        ("recipe", "codex-table1", "--seeds", "1,2"),
        ("recipe", "codex-table1", "--seed", "3", "--small"),
    ],
)
def test_what_is_printed_is_read_back_where_options_exclude_each_other(words, capsys, tmp_path):
    assert main([*words, "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert main([words[0], "--config", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_every_method_runs_with_defaults_at_six_steps(tmp_path, tiny):
    file = tmp_path / "r.py"
    file.write_text(REWARD + "bright.differentiable = True\n")
    for method in ("base", "bon", "code", "codex", "smc"):
        out = tmp_path / method
        words = ["generate", "a fox", "--method", method, "--steps", "6", "--reward", f"{file}:bright", "--out", str(out)]
        assert main([*words, "--quiet", "--particles", "3"]) == 0
        manifest = manifest_of(out)
        assert manifest["config"]["unused"] == (["particles"] if method == "base" else [])
        assert manifest["config"]["particles"] == (None if method == "base" else 3)
        evaluations = manifest["summary"]["evaluations"]
        assert evaluations > 18 if method == "codex" else evaluations == 6 * (1 if method == "base" else 3)


def test_interleaved_prompts_and_the_folder(capsys, tmp_path, tiny):
    out = tmp_path / "run"
    words = ["generate", "a fox", "--images", "2", "une forêt ☃", "--reward", "jpeg", "--method", "bon", "--steps", "4"]
    words += ["--particles", "2", "--out", str(out), "--seed", "3", "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    manifest = manifest_of(out)
    told = json.loads(captured.out)
    call = told.pop("call")
    assert told == manifest["summary"]
    assert (call["already"], call["drawn"], call["total"], call["evaluations"]) == (0, 4, 4, 4 * 2 * 4)
    assert "step" in captured.err
    assert manifest["argv"] == ["tilting", *words]
    assert [(r["prompt"], r["index"]) for r in manifest["images"]] == [
        ("a fox", 0),
        ("a fox", 1),
        ("une forêt ☃", 0),
        ("une forêt ☃", 1),
    ]
    assert manifest["summary"]["evaluations"] == 4 * 2 * 4
    for record in manifest["images"]:
        with Image.open(out / record["file"]) as image:
            text = image.text  # type: ignore[attr-defined]
        assert text == {"prompt": record["prompt"], "seed": "3", "method": "bon", "reward": repr(record["reward"])}
        assert record["rewards"] == {"jpeg": record["reward"]}
    with Image.open(out / "grid.png") as grid:
        assert grid.height > 2 * 192
        assert np.asarray(grid).std() > 5


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p), float) / 255 for p in sorted((folder / "images").iterdir())}


def test_interrupted_then_resumed_is_the_uninterrupted_run(capsys, tmp_path, tiny, monkeypatch):
    from tilting.generation import run as generate

    def words(out: Path) -> list[str]:
        return [
            "generate",
            "a fox",
            "an owl",
            "--images",
            "2",
            "--steps",
            "4",
            "--method",
            "code",
            "--particles",
            "2",
            "--reward",
            "jpeg",
            "--batch-size",
            "2",
            "--out",
            str(out),
            "--quiet",
        ]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(words(whole)) == 0
    draw = generate.draw

    def interrupted(*a, **k):
        for event in draw(*a, **k):
            yield event
            if isinstance(event, generate.Drawn):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "draw", interrupted)
        assert main(words(parts)) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert list(pixels(parts)) == ["00000.png"]
    assert len(manifest_of(parts)["images"]) == 1
    assert main(words(parts)) == 0
    (parts / "images" / "00002.png").unlink()
    (parts / "images" / "00003.png").write_bytes((parts / "images" / "00003.png").read_bytes()[:-20])  # torn by a power cut
    assert main(words(parts)) == 0
    a, b = pixels(whole), pixels(parts)
    assert list(a) == list(b) == [f"{i:05d}.png" for i in range(4)]
    assert all(np.abs(a[k] - b[k]).max() <= 1e-4 for k in a)
    one, two = (manifest_of(f) for f in (whole, parts))
    assert one["images"] == two["images"]
    assert two["summary"]["evaluations"] == one["summary"]["evaluations"] * 6 // 4  # two were paid for twice
    assert two["summary"]["reward_mean"] == pytest.approx(one["summary"]["reward_mean"])


def test_finished_folder_loads_nothing_and_another_config_is_refused(capsys, tmp_path, tiny, monkeypatch):
    out = str(tmp_path / "run")
    bare = ["generate", "a fox", "--reward", "jpeg", "--out", out, "--quiet"]
    words = [*bare, "--steps", "4"]
    assert main(words) == 0
    before = (tmp_path / "run" / "manifest.json").read_bytes()

    def load(name, *more, **how):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tilting.generation.run.load", load)
    assert main(words) == 0
    capsys.readouterr()
    assert "with other steps (4 there, 5 now): choose another --out" in refused(capsys, *bare, "--steps", "5")
    assert "another seed" in refused(capsys, *words, "--seed", "5")
    assert "with other prompts" in refused(capsys, *words, "an owl")
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


HOLLOW = '{"config": {}, "images": [{}], "summary": {}, "model": {}, "reward": []}'


@pytest.mark.parametrize("content", ["{", "[]", "{}", HOLLOW])
def test_corrupt_manifest_is_named(content, capsys, tmp_path, no_model):
    (tmp_path / "manifest.json").write_text(content)
    said = refused(capsys, "generate", "a fox", "--out", str(tmp_path))
    assert str(tmp_path / "manifest.json") in said
    assert "corrupt" in said
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_run_older_than_a_setting_goes_on_unless_the_setting_is_told(capsys, tmp_path, tiny):
    out = tmp_path / "run"
    words = ["generate", "a fox", "--steps", "4", "--method", "fk", "--reward", "jpeg", "--out", str(out), "--quiet"]
    assert main(words) == 0
    manifest = manifest_of(out)
    assert manifest["config"]["set"].pop("fk.start") == "independent"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert main(words) == 0
    assert "another fk.start" in refused(capsys, *words, "--set", "fk.start=copy")


def test_the_folder_of_another_command_is_not_called_corrupt(capsys, tmp_path, no_model):
    (tmp_path / "manifest.json").write_text('{"config": {}, "summary": {"steps": 3}, "model": {}, "reward": []}')
    said = refused(capsys, "generate", "a fox", "--out", str(tmp_path))
    assert "holds training, not a run of pictures" in said and "corrupt" not in said


def test_options_that_change_nothing_are_told(capsys, tmp_path, tiny):
    words = ("generate", "a fox", "--steps", "2", "--reward", "jpeg", "--particles", "3", "--strength", "0.5")
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    assert "tilting: warning: particles, strength changes nothing here\n" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "p"), "--quiet"]) == 0
    assert "changes nothing" not in capsys.readouterr().err


def test_pictures_of_others_are_not_overwritten(capsys, tmp_path, no_model):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "grid.png").write_bytes(b"mine")
    assert "is not of a run" in refused(capsys, "generate", "a fox", "--out", str(tmp_path / "mine"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00000.png").write_bytes(b"mine")
    assert "no manifest.json" in refused(capsys, "generate", "a fox", "--out", str(tmp_path))


def test_user_reward_black_box_is_refused_before_the_model_loads(capsys, tmp_path, no_model):
    file = tmp_path / "r.py"
    file.write_text(REWARD + "bright.differentiable = False\n")
    said = refused(capsys, "generate", "a fox", "--method", "codex", "--reward", f"{file}:bright", "--out", str(tmp_path / "o"))
    assert "code or bon" in said
    assert not (tmp_path / "o").exists()


def test_published_settings_stand_in_for_pockets_and_set_goes_over_them(capsys, tmp_path, no_model):
    def config(*words):
        assert main(["generate", "a fox", "--print-config", *words]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    das = config("--method", "das", "--published", "--set", "das.temper=0.1")
    assert (das["particles"], das["steps"], das["cfg"]) == (16, 100, 5)  # Kim et al. 2025, SD 1.5
    assert (das["set"]["das.beta"], das["set"]["das.temper"]) == (0.005, 0.1)
    assert config("--method", "das", "--published", "--steps", "20", "--particles", "2")["particles"] == 2
    codex, plain = config("--method", "codex", "--published"), config("--method", "codex")
    assert codex["steps"] == 500 and codex["set"]["codex.schedule"] == [2, 2, 2, 4, 4, 4, 4, 6, 6, 6]
    assert plain["steps"] == 50 and plain["set"]["codex.schedule"] is None and "published" not in codex
    assert config("--published")["steps"] == 50  # base has no paper's
    pick = config("--method", "codex", "--published", "--reward", "pickscore")  # App. A.3 and Table 4 of the thesis
    assert (pick["set"]["codex.gradient_block"], pick["set"]["codex.window"], pick["set"]["codex.tau"]) == (4, [1, 0], 3e-4)
    assert pick["set"]["codex.schedule"] == [2, 6, 6, 2, 2, 2, 4, 4, 6, 6] and pick["steps"] == 500
    two = config("--method", "codex", "--published", "--reward", "pickscore", "--reward", "aesthetic")
    assert two["set"] == codex["set"]
    picture = tmp_path / "p.png"
    Image.new("RGB", (64, 64)).save(picture)
    edit = config("--method", "codex", "--published", "--reward", "pickscore", "--image", str(picture))  # App. A.5
    assert (edit["steps"], edit["strength"], edit["particles"], edit["set"]["codex.schedule"]) == (100, 0.6, 4, None)
    assert (edit["set"]["codex.gradient_block"], edit["set"]["codex.strength"]) == (2, 0.4)
    method = METHODS["codex"].as_published("pickscore", "image").build(60)  # r T of T = 100: the thesis' 29 gradient rounds
    assert method.correct_when.count(60) == 29
    assert METHODS["codex"].as_published("pickscore").build(500).correct_when.count(500) == 124
    assert config("--method", "ug", "--published", "--reward", "pickscore")["set"]["ug.strength"] == 150
    assert config("--method", "das", "--published", "--reward", "pickscore")["set"]["das.beta"] == 1e-4
    with pytest.raises(TiltingError, match="no published settings of its own for 'pikscore': it has pickscore and image"):
        METHODS["codex"].as_published("pikscore")
    for name, kind in METHODS.items():
        paper = kind.published
        for key, value in vars(kind.as_published()).items():
            assert value == paper.get(key, getattr(kind(), key)), (name, key)


def test_failing_user_reward_keeps_finished_images_and_resumes(capsys, tmp_path, tiny):
    file, out = tmp_path / "r.py", tmp_path / "o"
    body = "    if 'owl' in prompts[0] and {}:\n        raise RuntimeError('no owls')\n    return images.mean((1, 2, 3))\n"
    head = "from pathlib import Path\ndef bright(images, prompts):\n"
    file.write_text(head + body.format("not Path(__file__ + '.ok').exists()"))
    words = ["generate", "a fox", "an owl", "--steps", "4", "--reward", f"{file}:bright", "--out", str(out)]
    words += ["--batch-size", "1", "--quiet"]
    said = refused(capsys, *words)
    assert "an owl" in said
    assert "no owls" in said
    assert list(pixels(out)) == ["00000.png"]
    (tmp_path / "r.py.ok").write_text("")
    assert main(words) == 0
    assert len(pixels(out)) == 2


@pytest.mark.parametrize(
    "error", ["torch.OutOfMemoryError('CUDA out of memory. Tried')", "RuntimeError('MPS backend out of memory (MPS)')"]
)
def test_a_device_whose_memory_is_full_is_one_sentence_and_the_run_goes_on(capsys, tmp_path, tiny, error):
    file, out = tmp_path / "r.py", tmp_path / "o"
    body = f"    if 'an owl' in prompts and not Path(__file__ + '.ok').exists():\n        raise {error}\n"
    head = "import torch\nfrom pathlib import Path\ndef bright(images, prompts):\n"
    file.write_text(f"{head}{body}    return images.mean((1, 2, 3))\n")
    words = ["generate", "a fox", "an owl", "--steps", "2", "--reward", f"{file}:bright", "--out", str(out)]
    said = refused(capsys, *words, "--batch-size", "2", "--quiet")
    assert "memory is full: " in said and "--memory 12GB" in said and "--batch-size" in said and "stays" in said
    said = refused(capsys, *words, "--batch-size", "1", "--quiet")
    assert list(pixels(out)) == ["00000.png"]
    (tmp_path / "r.py.ok").write_text("")
    assert main([*words, "--batch-size", "1", "--quiet"]) == 0
    assert len(pixels(out)) == 2


@pytest.mark.parametrize(("body", "said"), [("[:, None]", "not (2, 1)"), (".new_tensor([])", "not (0,)")])
def test_a_wrong_shape_names_the_images_that_were_asked_about(capsys, tmp_path, tiny, body, said):
    (tmp_path / "r.py").write_text(f"def odd(images, prompts):\n    return images.mean((1, 2, 3)){body}\n")
    words = ("generate", "a fox", "an owl", "--steps", "2", "--reward", f"{tmp_path / 'r.py'}:odd", "--quiet")
    found = refused(capsys, *words, "--out", str(tmp_path / "o"))
    assert said in found and "(image 0 of 'a fox', seed 0, or one of the 1 drawn with it)" in found


def test_prompts_that_pocket_cannot_draw_are_named(capsys, tmp_path, tiny):
    words = ["generate", "--steps", "2", "--reward", "jpeg", "--quiet"]
    assert main([*words, "a fox", "a quokka juggling", "zyx", "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'a quokka juggling' (and 1 more)" in said and "tilting models pocket" in said
    assert main([*words, "a fox", "two cats, noto style", "--out", str(tmp_path / "b")]) == 0
    assert "pocket" not in capsys.readouterr().err


def test_constant_reward_is_a_warning(capsys, tmp_path, tiny):
    file = tmp_path / "r.py"
    file.write_text("import torch\ndef flat(images, prompts):\n    return torch.ones(len(images))\n")
    words = ["generate", "a fox", "--images", "2", "--steps", "4", "--reward", f"{file}:flat", "--out", str(tmp_path / "o")]
    assert main([*words, "--quiet"]) == 0
    assert "constant" in capsys.readouterr().err
