"""Rewards whose weights come with a package: real readers and detectors, without a network."""

import nudenet.nudenet as theirs
import numpy as np
import pytest
import torch
from nudenet import NudeDetector

from support.closed import written
from tilting.errors import TiltingError
from tilting.rewards import nsfw, ocr, wheels
from tilting.rewards.metadata import informed


def test_ocr_reads_and_counts_edits_as_flow_grpo_does():
    """fox read as "fo": one edit of three; "owl" shares nothing; a longer text that holds the words is whole."""
    x = torch.stack([written(word, 160) for word in ("fox", "fo", "OWL 42", "a fox", "")])
    assert [wheels.read(image).replace(" ", "") for image in x] == ["fox", "fo", "OWL42", "afox", ""]
    assert ocr()(x, ['a sign "fox"'] * 5).tolist() == pytest.approx([1, 2 / 3, 0, 1, 0])
    assert ocr()(x, ['"Owl 4 2" in neon'] * 5).tolist() == pytest.approx([0, 0, 1, 0, 0])
    assert (
        ocr()(x[2:3], ['"Owl 4 2!"'])[0] == pytest.approx(5 / 6)
        and ocr("fox").name == "ocr:fox"
        and ocr("fox")(x, ["a sign"] * 5).tolist() == pytest.approx([1, 2 / 3, 0, 1, 0])
    )
    assert ocr("fox")(x[:1], ['a sign "OWL" and "fox"'])[0] < 1, "the prompt's own words come first"
    assert ocr("OWL")(x[2:3], ['a sign "OWL" and "fox"'])[0] == 1


def test_the_words_may_stand_in_the_metadata():
    x, prompts = torch.stack([written("fox"), written("owl")]), ["one", 'a "cat"']
    told = informed(ocr(), prompts, [{"text": "fox"}, {"text": "owl"}])
    assert told(x, prompts).tolist() == [1, 1] and told.name == "ocr"
    other = informed(ocr(), prompts, [{"Text": "fox"}, {"TEXT": "fox", "text": "owl"}])  # in any case; as written before others
    assert other(x, prompts).tolist() == [1, 1]
    with pytest.raises(TiltingError, match="the prompt 'one' asks for no words to read: put them in double quotes"):
        ocr()(x, prompts)


@pytest.mark.parametrize("prompt", ["a fox", 'a 1" pipe', '"" nothing', '"  "'])
def test_a_prompt_without_words_is_refused(prompt):
    with pytest.raises(TiltingError, match="asks for no words") as caught:
        ocr()(written("fox")[None], [prompt])
    assert "\n" not in str(caught.value)


def test_nsfw_is_the_network_of_nudenet_on_the_pixels_it_reads(tmp_path):
    """The scores are those of its own reading of the same file, and it reports the largest of them where that is enough."""
    labels = vars(theirs)["__labels"]
    assert {name: labels.index(name) for name in wheels.EXPOSED} == wheels.EXPOSED
    assert {name for name in labels if name.endswith("EXPOSED")} - set(wheels.EXPOSED) == {
        "MALE_BREAST_EXPOSED",
        "FEET_EXPOSED",
        "ARMPITS_EXPOSED",
        "BELLY_EXPOSED",
    }
    detector = NudeDetector()
    small = torch.rand(4, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    for x in torch.nn.functional.interpolate(small, (48, 80), mode="bilinear"):
        whole = np.ascontiguousarray((x * 255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1])
        blob = theirs._read_image(whole, 320)[0]
        assert np.abs(blob - wheels.blob(x)).max() < 1e-6
        (seen,) = detector.onnx_session.run(None, {detector.input_name: blob})
        largest = max(seen[0, 4 + k].max() for k in wheels.EXPOSED.values())
        assert nsfw()(x[None], ["a fox"])[0] == pytest.approx(-largest, abs=1e-6)
        assert (largest >= 0.25) == any(d["class"] in wheels.EXPOSED for d in detector.detect(whole))
