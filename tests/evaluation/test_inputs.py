"""What pictures were made of, beside them: on the pages of compare and evaluate, and as distances."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from support.tiny_pipelines import controlnet, make, mask, picture
from tilting.cli import main
from tilting.config.evaluate import EvaluateConfig
from tilting.config.picture import read_picture
from tilting.evaluation.measure import joined, load_instruments
from tilting.features.clip import ClipEmbedder
from tilting.features.lpips import load_lpips
from tilting.features.packaged import POCKET_CLIP
from tilting.features.picture import read_image
from tilting.features.vgg import Vgg16, conv_keys
from tilting.models.inputs import input_pictures

USUAL = ["--model", "sd15", "--steps", "2", "--reward", "jpeg", "--device", "cpu", "--quiet"]
INPAINT = ["--image", "picture.png", "--mask", "mask.png"]
CONTROL = ["--controlnet", "control", "--input", "control_image=picture.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("inputs")
    make("sd15")[0].save_pretrained(place / "sd15")
    controlnet().save_pretrained(place / "control")
    picture().save(place / "picture.png")
    picture(16, 3).save(place / "other.png")
    mask().save(place / "mask.png")
    torch.manual_seed(0)
    widths, names = (4, 4, 6, 6, 8), dict(conv_keys())
    state = Vgg16(widths).state_dict()
    save_file({f"features.{names[k.split('.')[1]]}.{k.split('.')[2]}": v for k, v in state.items()}, place / "vgg.safetensors")
    save_file({f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}, place / "lpips.safetensors")
    return place


def shown(page):
    """The pictures of a page, by their words."""
    found = re.findall(r'src="data:image/webp;base64,([^"]+)" alt="([^"]+)"', page)
    return {words: Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data, words in found}


@pytest.mark.slow
@pytest.mark.parametrize("how", [INPAINT, CONTROL])
def test_inputs_stand_beside_outputs_and_are_measured(folder, tmp_path, monkeypatch, how):
    monkeypatch.chdir(folder)
    out = tmp_path / "c"
    assert main(["compare", "a fox", "an owl", *USUAL, *how, "--methods", "base,bon", "--out", str(out)]) == 0
    seen = shown((out / "compare.html").read_text())
    assert {"a fox, the input", "an owl, the input"} <= set(seen) and "a fox, bon" in seen
    assert seen["a fox, the input"].tobytes() == picture().tobytes()
    assert Image.open(out / "compare.png").width > 3 * 192

    weights = ["--vgg", "vgg.safetensors", "--lpips", "lpips.safetensors"] if how is INPAINT else []
    runs = [str(out / "runs" / name) for name in ("base", "bon")]
    assert main(["evaluate", *runs, *weights, "--quiet", "--out", str(tmp_path / "e")]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert seen.keys() & shown((tmp_path / "e" / "report.html").read_text()).keys() >= {"a fox, the input", "an owl, the input"}
    bon = next(row for row in metrics["runs"] if row["name"] == "bon")
    images = torch.stack([read_image(out / "runs" / "bon" / f"images/0000{i}.png") for i in (0, 1)])
    given, clip = read_image("picture.png")[None], ClipEmbedder(POCKET_CLIP)
    with torch.no_grad():
        near = torch.cosine_similarity(clip.image(images), clip.image(given))
        assert bon["igram_clip"]["mean"] == pytest.approx(near.mean().item(), abs=1e-4)
        if weights:
            far = load_lpips("vgg.safetensors", "lpips.safetensors")(images, given.expand_as(images))
            assert bon["lpips_input"]["mean"] == pytest.approx(far.mean().item(), rel=1e-3)
            assert 0 < bon["igram_vgg"]["mean"] <= 1
        else:
            assert bon["lpips_input"] is None
            assert any("LPIPS to the input needs weights" in note for note in metrics["notes"])


def test_each_prompt_has_its_own_input(folder, tmp_path, monkeypatch):
    """Pictures in a column of prompts, one of which has none of its own beside that of all."""
    monkeypatch.chdir(folder)
    (folder / "prompts.csv").write_text("prompt,image\na fox,picture.png\nan owl,other.png\n")
    words = ["generate", "--prompts", "prompts.csv", *USUAL, "--mask", "mask.png", "--input", "image=picture.png"]
    assert main([*words, "--out", str(tmp_path / "r")]) == 0
    said = json.loads((tmp_path / "r" / "manifest.json").read_text())["config"]
    assert {p: file.name for p, file in input_pictures(said).items()} == {"a fox": "picture.png", "an owl": "other.png"}
    assert main(["evaluate", str(tmp_path / "r"), "--quiet", "--out", str(tmp_path / "e")]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    clip, near = ClipEmbedder(POCKET_CLIP), []
    for i, file in enumerate(("picture.png", "other.png")):
        both = torch.cat([read_image(tmp_path / "r" / f"images/0000{i}.png")[None], read_picture(file, 16, 16)])
        with torch.no_grad():
            near.append(torch.cosine_similarity(*clip.image(both).split(1)).item())
    assert metrics["runs"][0]["igram_clip"]["mean"] == pytest.approx(sum(near) / 2, abs=1e-4)
    assert [entry["input"] for entry in metrics["per_prompt"]] == ["picture.png", "other.png"]
    (folder / "moved.json").write_text(json.dumps({**said, "input": ["image=gone.png"], "metadata": []}))
    assert input_pictures(json.loads((folder / "moved.json").read_text())) == {}


@pytest.mark.parametrize("of", ["a fox", "an owl"])
def test_an_input_of_some_prompts_is_measured_whatever_the_batch(tmp_path, of):
    """Pictures are looked at 32 at a time: a batch without an input has NaN of the same names, first or last."""
    Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8)).save(tmp_path / "input.png")
    tools = load_instruments(EvaluateConfig((str(tmp_path),)), {of: tmp_path / "input.png"})
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = [tools.references(images, [prompt] * 2) for prompt in ("a fox", "an owl")]
        both = tools.references(images, ["a fox", "an owl"])
    whole = joined(alone)
    assert set(whole) == set(both) == {"clip_reference"}
    for i, prompt in enumerate(("a fox", "an owl")):
        mine = both["clip_reference"][i]
        assert mine.isfinite().all() == (prompt == of)
        torch.testing.assert_close(whole["clip_reference"][2 * i], mine, equal_nan=True)
    assert load_instruments(EvaluateConfig((str(tmp_path),)), {}).references(images, ["a fox"] * 2) == {}
