"""What every model family holds to, ours and others': documented, found by what a folder says, defaults alike everywhere."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import tilting as tl
from support.commands import manifest as manifest_of
from support.outside import installed
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.models import FAMILIES, defaults, find_model
from tilting.models.families import CONFIG, INDEX, Family, family_of


def hold_to_the_contract(family: Family, tmp_path) -> None:
    """Assert of a family what lists, defaults and loading take for granted."""
    assert family.about and family.loader.__doc__, f"{family.name} is not documented"
    assert family.classes and family.steps >= 1 and family.cfg >= 1 and callable(family.loader.load)
    others = [name for other in FAMILIES.values() if other is not family for name in other.classes]
    assert not set(family.classes) & set(others), f"{family.name} takes what another takes"
    for i, kind in enumerate(family.classes):
        for file in (INDEX, CONFIG):
            folder = tmp_path / f"{family.name}{i}{file}"
            (folder / "transformer").mkdir(parents=True)
            (folder / "transformer" / CONFIG).write_text(json.dumps({"guidance_embeds": True}))
            (folder / file).write_text(json.dumps({"_class_name": kind}))
            assert find_model(str(folder)) == str(folder) and family_of(str(folder)) is family
            assert defaults(str(folder)) == (family.steps, family.cfg)


def test_a_class_that_nothing_loads_is_refused_by_name(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / INDEX).write_text(json.dumps({"_class_name": "OtherPipeline"}))
    with pytest.raises(TiltingError, match="the installed diffusers has no OtherPipeline"):
        tl.load(tmp_path / "other")


class Bare:
    """A loader."""

    load = classmethod(lambda cls, *args, **more: None)


@pytest.mark.parametrize(("facts", "says"), [({"about": ""}, "is not documented"), ({"classes": ()}, ""), ({"steps": 0}, "")])
def test_a_broken_family_is_found(facts, says, tmp_path):
    family = Family(**{"name": "bare", "loader": Bare, "about": "bare", "classes": ("B",), "steps": 1, "cfg": 1.0, **facts})
    with pytest.raises(AssertionError, match=says):
        hold_to_the_contract(family, tmp_path)


TOY = '''
"""A plain PyTorch model: pictures are their own latents, the denoiser draws everything towards a colour."""
import json
from pathlib import Path
import torch
from safetensors.torch import load_file
from tilting.models import FAMILIES
from tilting.schedule import Schedule, predict, scaled_linear
from tilting.types import Prediction

@FAMILIES.declare("toy", "a plain PyTorch toy", ("ToyNet",), steps=6, cfg=1.5)
class Toy(torch.nn.Module):
    """x0 = the colour."""
    def __init__(self, name, steps, cfg, side):
        super().__init__()
        self.name, self.default_steps, self.default_cfg = name, steps, cfg
        self.schedule = Schedule("sample", scaled_linear())
        self.latent_shape = self.image_shape = (3, side, side)
        self.colour = torch.nn.Parameter(torch.zeros(3), requires_grad=False)

    @classmethod
    def load(cls, source, name, steps, cfg, dtype):
        toy = cls(name, steps, cfg, json.loads((Path(source) / "config.json").read_text())["side"])
        toy.load_state_dict(load_file(Path(source) / "weights.safetensors"))
        return toy

    def denoiser(self, prompts, cfg, negative=""):
        def denoise(x, t, rows):
            eps, x0 = predict("sample", self.colour[:, None, None].expand_as(x) + 0.5 * x * t.alpha, x, t)
            return Prediction(eps, x0, torch.zeros_like(x))
        return denoise

    def decode(self, latents):
        return (latents / 2 + 0.5).clamp(0, 1)

    def encode(self, images):
        return images * 2 - 1
'''


def test_a_family_from_outside_is_known_everywhere(tmp_path, monkeypatch, capsys):
    """One file, one line, plain PyTorch: the command line, YAML, Python, the list and the refusals know it."""
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / CONFIG).write_text(json.dumps({"_class_name": "ToyNet", "side": 16}))
    save_file({"colour": torch.tensor([0.9, -0.5, -0.5])}, tmp_path / "toy" / "weights.safetensors")
    with pytest.raises(TiltingError, match=r"is not a diffusers pipeline: it has no model_index\.json"):
        find_model("toy")
    with installed(FAMILIES, tmp_path / "site", "a_toy", TOY, "a_toy:Toy"):
        hold_to_the_contract(FAMILIES["toy"], tmp_path)
        assert main(["models"]) == 0 and "a plain PyTorch toy" in " ".join(capsys.readouterr().out.split())
        (tmp_path / "run.yaml").write_text("model: toy\nreward: jpeg\nmethod: code\n")
        for words in (["--model", "toy", "--reward", "jpeg", "--method", "code"], ["--config", "run.yaml"]):
            assert main(["generate", "a fox", *words, "--print-config"]) == 0
            told = yaml.safe_load(capsys.readouterr().out)
            assert (told["model"], told["steps"], told["cfg"]) == ("toy", 6, 1.5)
        run = ["generate", "a fox", "--config", "run.yaml", "--out", "run", "--quiet"]
        assert main(run) == main(run) == 0
        manifest = manifest_of(tmp_path / "run")
        assert manifest["model"]["name"] == "toy" and manifest["model"]["sha256"]
        model = tl.load("toy")
        out = tl.generate(model, "a fox", reward="jpeg", method="code")
        assert out.images.shape == (1, 3, 16, 16) and out.images[0, 0].mean() > out.images[0, 1].mean() + 0.2
        assert model.default_steps == 6 and manifest["images"][0]["reward"] == pytest.approx(
            out.manifest["images"][0]["reward"], abs=0.02
        )
        save_file({"colour": torch.tensor([0.0, 0.9, 0.0])}, tmp_path / "toy" / "weights.safetensors")
        capsys.readouterr()
        assert main(run) == 2 and "model" in capsys.readouterr().err
    assert "toy" not in FAMILIES
