"""`tilting generate --image --strength` in process, with the model pocket: what it computes, accepts, refuses, resumes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

import tilting as tl
from support.commands import manifest, refused
from tilting.cli import main
from tilting.config.picture import open_picture, read_picture
from tilting.cost import cost as count
from tilting.errors import TiltingError
from tilting.features.pixels import centre_crop, resize
from tilting.presets import METHODS
from tilting.rng import Identity, normal

FOX = ("a fox", "--model", "pocket", "--quiet", "--steps", "4")


@pytest.fixture
def loaded(pocket, monkeypatch):
    """The model is read from disk once for all tests."""
    monkeypatch.setattr("tilting.generation.run.load", lambda name, *more, **how: pocket)
    return pocket


def drawn(width: int = 64, height: int = 64) -> Image.Image:
    """A green sun over a violet sea, which no fox looks like."""
    image = Image.new("RGB", (width, height), (90, 40, 160))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width, height // 2), fill=(230, 240, 250))
    pen.ellipse((width // 4, height // 8, 3 * width // 4, 5 * height // 8), fill=(30, 170, 60))
    return image


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "ref.png"
    drawn().save(file)
    return file


def pixels(folder: Path) -> np.ndarray:
    files = sorted((folder / "images").iterdir())
    return np.stack([np.asarray(Image.open(file).convert("RGB"), float) / 255 for file in files])


def generate(out: Path, *words: str) -> np.ndarray:
    assert main(["generate", *FOX, *words, "--out", str(out)]) == 0
    return pixels(out)


def test_the_smaller_the_strength_the_more_is_kept(tmp_path, picture, loaded):
    """r = 1 is the model by itself, as pocket's x_T holds nothing but noise; the distance to the reference falls with r."""
    words = ("--images", "4", "--image", str(picture), "--strength")
    known = np.asarray(drawn(), float) / 255
    free = generate(tmp_path / "free", "--images", "4")
    far = {}
    for strength, steps in (("1", 4), ("0.75", 3), ("0.5", 2), ("0.3", 1)):
        out = tmp_path / strength
        images = generate(out, *words, strength)
        far[strength] = np.sqrt(((images - known) ** 2).mean((1, 2, 3)))
        assert manifest(out)["summary"]["evaluations"] == 4 * steps
        assert manifest(out)["config"]["strength"] == float(strength)
        if strength == "1":
            assert np.abs(images - free).max() <= 1 / 255 + 1e-9
    rows = np.stack([far[s] for s in ("1", "0.75", "0.5", "0.3")])
    assert (np.diff(rows.mean(1)) < 0).all()
    assert (rows[-1] < 0.6 * rows[0]).all(), rows


def test_one_step_is_the_formula(tmp_path, picture, loaded):
    """x_t = α_t E(ref) + σ_t noise, the guided v of it by the U-Net itself, decoded x0 = α_t x_t - σ_t v."""
    from diffusers import DDIMScheduler

    made = generate(
        tmp_path / "run", "--images", "2", "--seed", "5", "--cfg", "3", "--image", str(picture), "--strength", "0.25"
    )
    scheduler = DDIMScheduler.from_pretrained(str(Path(tl.__file__).parent / "assets" / "pocket" / "scheduler"))
    scheduler.set_timesteps(4)
    t = int(scheduler.timesteps[-1])
    alpha, sigma = float(scheduler.alphas_cumprod[t].sqrt()), float((1 - scheduler.alphas_cumprod[t]).sqrt())
    scale, ref = loaded.vae.config.scaling_factor, torch.from_numpy(np.array(drawn())).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        clean = loaded.vae.encode(ref).latent_dist.mean * scale
        noise = normal([Identity(5, "a fox", i) for i in range(2)], 1, loaded.latent_shape, 0)[:, 0]
        x = alpha * clean + sigma * noise
        fox, empty = (one["prompt_embeds"] for one in loaded.texts(["a fox", ""], 1.0))
        with_text, without = (
            loaded.unet(x, torch.full((2,), t), encoder_hidden_states=c.expand(2, -1, -1)).sample for c in (fox, empty)
        )
        v = without + 3 * (with_text - without)
        want = loaded.vae.decode((alpha * x - sigma * v) / scale).sample / 2 + 0.5
    assert np.abs(made - want.clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < 0.6 / 255


@pytest.mark.slow
def test_every_method_starts_from_it(tmp_path, picture, loaded):
    """Each pays for the steps it makes, and stays nearer to the reference than without it."""
    known = np.asarray(drawn(), float) / 255
    free = np.sqrt(((generate(tmp_path / "free") - known) ** 2).mean())
    for name, kind in METHODS.items():
        out = tmp_path / name
        fewer = ("--set", f"{name}.iterations=2") if name in ("reno", "doodl", "zo") else ()
        image = generate(out, "--method", name, "--image", str(picture), "--strength", "0.5", "--particles", "2", *fewer)
        held = manifest(out)
        config = held["config"]
        settings = {key.partition(".")[2]: value for key, value in config["set"].items()}
        settings |= {"particles": 2} if config["particles"] else {}
        method = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}).build(2)
        cost = count(method, 2)
        paid = held["summary"]["evaluations"]
        assert (1 < paid <= cost.evaluations) if name == "rbf" else (paid == cost.evaluations), name
        assert np.sqrt(((image - known) ** 2).mean()) < 0.9 * free, name


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "P clear", "RGB clear"])
def test_modes_are_read_as_colours_on_white(mode, tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    clear = rng.integers(0, 256, (9, 7, 1), dtype=np.uint8)
    file = tmp_path / "a.png"
    if mode == "RGB":
        Image.fromarray(colour).save(file)
        want = colour
    elif mode == "RGBA":
        Image.fromarray(np.concatenate([colour, clear], 2)).save(file)
        want = clear / 255 * colour + (1 - clear / 255) * 255
    elif mode == "L":
        Image.fromarray(colour[..., 0]).save(file)
        want = colour[..., :1].repeat(3, 2)
    elif mode == "LA":
        Image.fromarray(np.concatenate([colour[..., :1], clear], 2), "LA").save(file)
        want = (clear / 255 * colour[..., :1] + (1 - clear / 255) * 255).repeat(3, 2)
    elif mode == "RGB clear":
        colour[:, :3] = (10, 20, 30)
        Image.fromarray(colour).save(file, transparency=(10, 20, 30))
        want = np.where((colour == (10, 20, 30)).all(-1, keepdims=True), 255, colour)
    else:
        index = rng.integers(0, 3, (9, 7), dtype=np.uint8)
        image = Image.fromarray(index)
        image.putpalette([200, 10, 20, 30, 180, 40, 50, 60, 170])
        image.save(file, **({"transparency": 1} if "clear" in mode else {}))
        want = np.array([(200, 10, 20), (255,) * 3 if "clear" in mode else (30, 180, 40), (50, 60, 170)])[index]
    assert np.abs(np.asarray(open_picture(file), float) - want).max() <= 1
    assert open_picture(file).mode == "RGB"


@pytest.mark.parametrize("size", [(200, 120), (90, 150), (40, 40), (33, 61), (64, 64)])
def test_the_middle_at_the_models_size(size, tmp_path):
    """Against the differentiable resize of the rewards, which is PIL's within 2 / 255 and crops after it."""
    image = drawn(*size)
    image.save(tmp_path / "a.png")
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    scale = 64 / min(size)
    want = centre_crop(resize(whole, round(size[1] * scale), round(size[0] * scale)), 64, 64)
    got = read_picture(tmp_path / "a.png", 64, 64)
    assert got.shape == (1, 3, 64, 64)
    assert (got - want).abs().mean() < 2 / 255
    if size == (64, 64):
        assert torch.equal(got, whole)
    tall = read_picture(tmp_path / "a.png", 64, 32)
    assert (tall - read_picture(tmp_path / "a.png", 64, 64)[..., 16:48]).abs().mean() < (0.02 if size[0] == size[1] else 1)


def test_a_photograph_turned_by_its_camera_is_upright(tmp_path):
    image = drawn(64, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.rotate(90).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), np.asarray(image))


def _bad(folder: Path) -> dict[str, str]:
    """Files that are no reference picture, and what is said of them."""
    drawn().convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.ones((8, 8), np.float32)).save(folder / "float.tif")
    Image.fromarray(np.ones((8, 8), np.uint16)).save(folder / "deep.png")
    drawn().convert("1").save(folder / "bits.png")
    drawn().save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:120])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "none.ppm").write_bytes(b"P6 0 0 255\n")
    return {
        "print.jpg": "CMYK",
        "float.tif": "floating-point",
        "deep.png": "8 bits",
        "bits.png": "1 bit",
        "cut.png": "cannot be read",
        "text.png": "cannot be read",
        "empty.png": "cannot be read",
        "none.ppm": "none.ppm",
        "missing.png": "not there",
        ".": "is a folder",
    }


def test_what_is_no_picture_is_one_sentence_and_leaves_nothing(capsys, tmp_path, no_model):
    for name, said in _bad(tmp_path).items():
        message = refused(capsys, "generate", *FOX, "--image", str(tmp_path / name), "--out", str(tmp_path / "out"))
        assert said in message, name
        assert str(tmp_path / name) in message
        with pytest.raises(TiltingError):
            open_picture(tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_bad_strengths_and_sdedit_alone(capsys, tmp_path, picture, no_model):
    out = ("--out", str(tmp_path / "out"))
    for strength in ("0", "-0.5", "1.01", "nan", "inf"):
        said = refused(capsys, "generate", *FOX, "--image", str(picture), "--strength", strength, *out)
        assert "strength must be" in said
    assert "--image" in refused(capsys, "generate", *FOX, "--method", "sdedit", *out)
    assert "strength must be a number" in refused(capsys, "generate", "--config", _yaml(tmp_path, "strength: big"), *FOX, *out)
    assert "image must be text" in refused(capsys, "generate", "--config", _yaml(tmp_path, "image: 3"), *FOX, *out)
    assert not (tmp_path / "out").exists()


def _yaml(folder: Path, text: str) -> str:
    (folder / "c.yaml").write_text(text)
    return str(folder / "c.yaml")


def test_refusals_import_no_torch(tmp_path, picture):
    (tmp_path / "text.png").write_text("no")
    code = (
        "import sys\nfrom tilting.cli import main\n"
        f"assert main(['generate', 'a fox', '--image', {str(tmp_path / 'text.png')!r}, '--out', 'o']) == 2\n"
        f"assert main(['generate', 'a fox', '--image', {str(picture)!r}, '--print-config']) == 0\n"
        "assert main(['generate', 'a fox', '--method', 'sdedit', '--out', 'o']) == 2\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "o").exists()


def test_in_yaml_and_strength_without_a_picture(capsys, tmp_path, picture, loaded):
    file = _yaml(tmp_path, f"image: {picture}\nstrength: 3e-1\nmethod: sdedit\n")
    assert main(["generate", *FOX, "--config", file, "--strength", "0.5", "--print-config"]) == 0
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert (config["image"], config["strength"], config["method"]) == (str(picture), 0.5, "sdedit")
    assert main(["generate", "--config", _yaml(tmp_path, printed), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["generate", *FOX, "--image", str(picture), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["strength"] == 0.6
    generate(tmp_path / "out", "--strength", "0.5")
    config = manifest(tmp_path / "out")["config"]
    assert (config["unused"], config["strength"], config["image"]) == (["strength"], None, None)


def test_resume_knows_the_picture_by_what_it_holds(capsys, tmp_path, picture, loaded, monkeypatch):
    out = tmp_path / "out"
    words = ("--images", "3", "--method", "code", "--particles", "2", "--image")
    whole = generate(out, *words, str(picture))
    (out / "images" / "00001.png").unlink()
    assert np.array_equal(generate(out, *words, str(picture)), whole)
    moved = tmp_path / "moved.png"
    os.rename(picture, moved)

    def load(name, *more, **how):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tilting.generation.run.load", load)
    assert np.array_equal(generate(out, *words, str(moved)), whole)
    drawn().rotate(90).save(tmp_path / "other.png")
    before = (out / "manifest.json").read_bytes()
    command = ("generate", *FOX, *words)
    assert "another image" in refused(capsys, *command, str(tmp_path / "other.png"), "--out", str(out))
    os.rename(tmp_path / "other.png", picture)
    assert "was another picture" in refused(capsys, *command, str(picture), "--out", str(out))
    assert "another strength" in refused(capsys, *command, str(moved), "--strength", "0.7", "--out", str(out))
    assert "another " in refused(capsys, "generate", *FOX, *words[:-1], "--out", str(out))
    assert (out / "manifest.json").read_bytes() == before
