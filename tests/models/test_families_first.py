"""What is of one family alone is refused for another before a weight is read: of a folder whose index is all there is."""

from __future__ import annotations

import json

import pytest

from support.small import bright_fit, random_control, write_small
from tilting.cli import main
from tilting.features.fitted import save_classifier
from tilting.models.lora_file import FILE, INPUTS

KINDS = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A classifier, a control and learned inputs of the sampler, in folders."""
    import tilting as tl

    root = tmp_path_factory.mktemp("parts")
    model = tl.load(str(write_small(root / "small")))
    classifier = bright_fit(model).classifier
    save_classifier(classifier, root / "fit")
    random_control(model, [classifier]).save(root / "control")
    (root / "learned").mkdir()
    for name in (FILE, INPUTS):
        (root / "learned" / name).write_bytes(b"not read")
    return root


NOISY = (
    ("condition", "fit", "--data", "labels.csv", "--kind", "noisy"),
    "classifiers of noisy latents are for Stable Diffusion",
)
NONE = "KandinskyCombinedPipeline"
ANY = (
    ("condition", "train", "a fox", "--classifier", "{parts}/fit"),
    ("condition", "sample", "a fox", "--control", "{parts}/control", "--label", "bright=yes"),
    ("finetune", "a fox", "--reward", "jpeg", "--objective", "ddpo", "--learn", "lora,guidance"),
    ("generate", "a fox", "--lora", "{parts}/learned"),
)


@pytest.mark.parametrize(
    ("kind", "words", "what"),
    [*((kind, *NOISY) for kind in KINDS), *((NONE, words, f"a {NONE} cannot be steered") for words in ANY)],
)
def test_a_family_is_asked_for_before_anything_is_loaded(parts, tmp_path, monkeypatch, capsys, kind, words, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    command = [word.format(parts=parts) for word in words]
    assert main([*command, "--model", "other", "--out", "out"]) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
