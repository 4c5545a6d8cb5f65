"""GenEval's geometry and rules on boxes whose place is known; detectors against transformers' own reading of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from support.learned import save_dino, save_geneval, save_owlvit
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.features.finder import read_finder
from tilting.rewards import GenEval, geneval, informed
from tilting.rewards.geneval import COLOURS, TEMPLATES, Box, distinct, overlap, relations

RGB = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "white": (1, 1, 1), "black": (0, 0, 0)}


class Painted:
    """Finds squares that a test has painted, and tells colours by the nearest: an oracle of pixels in the networks' place."""

    def __init__(self, boxes):
        self.boxes = boxes

    def __call__(self, image, names):
        return {name: self.boxes.get(name, []) for name in names}

    def text(self, prompts):
        at = [next((k for k, c in enumerate(COLOURS) if f" {c} " in p or f" {c}-" in p), 0) for p in prompts]
        return torch.eye(len(COLOURS))[at]

    def image(self, images):
        mean = images.mean((2, 3))
        far = torch.tensor([[(m - torch.tensor(RGB.get(c, (9, 9, 9)))).norm() for c in COLOURS] for m in mean])
        return torch.nn.functional.normalize((-far).softmax(-1), dim=-1)


def scene(*things, size=100):
    """A grey picture and what finds its things: (class, colour, left, top, side, score)."""
    picture, boxes = torch.full((3, size, size), 0.5), {}
    for name, colour, left, top, side, score in things:
        picture[:, top : top + side, left : left + side] = torch.tensor(RGB[colour], dtype=torch.float32)[:, None, None]
        boxes.setdefault(name, []).append((left, top, left + side, top + side, score))
    return picture, Painted(boxes)


def value(asked, *things, strict=False, **more):
    picture, oracle = scene(*things)
    reward = GenEval(oracle, oracle, strict, **more)  # type: ignore[arg-type]
    return informed(reward, ["it"], [asked])(picture[None], ["it"]).item()


def test_relations_are_those_of_centres_beyond_a_tenth_of_both_sizes():
    a = Box(40, 40, 60, 60, 1)
    for dx, dy, says in [
        (-30, 0, {"left of"}),
        (30, 0, {"right of"}),
        (0, -30, {"above"}),
        (0, 30, {"below"}),
        (-30, -30, {"left of", "above"}),
        (30, 28, {"right of", "below"}),
        (30, 10, {"right of"}),
        (3.9, 0, set()),
        (4.1, 0, set()),  # beyond by .1 of an offset of 4.1: no direction above 1/2
        (9, 0, {"right of"}),
        (0, 0, set()),
    ]:
        assert relations(Box(40 + dx, 40 + dy, 60 + dx, 60 + dy, 1), a) == says, (dx, dy)


def test_boxes_that_overlap_are_one_object():
    assert overlap(Box(0, 0, 9, 9, 1), Box(0, 0, 9, 9, 1)) == 1 and overlap(Box(0, 0, 9, 9, 1), Box(50, 50, 59, 59, 1)) == 0
    assert overlap(Box(0, 0, 9, 9, 1), Box(5, 0, 14, 9, 1)) == pytest.approx(50 / 150)
    boxes = [Box(0, 0, 20, 20, 0.3), Box(2, 0, 22, 20, 0.9), Box(60, 0, 80, 20, 0.5), Box(0, 60, 20, 80, 0.05)]
    assert distinct(boxes, 0.1, 0.5) == [boxes[1], boxes[2]]
    assert distinct(boxes, 0.1, 1.0) == [boxes[1], boxes[2], boxes[0]]
    assert len(distinct([Box(30 * k, 0, 30 * k + 9, 9, 0.5) for k in range(40)], 0.1, 0.5)) == 16


FOX, OWL = ("fox", "red", 10, 40, 20, 0.9), ("owl", "blue", 70, 40, 20, 0.8)
ONE = {"tag": "single_object", "include": [{"class": "fox", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "fox", "count": 1}, {"class": "owl", "count": 1}]}
THREE = {"tag": "counting", "include": [{"class": "fox", "count": 3}], "exclude": [{"class": "fox", "count": 4}]}
RED = {"tag": "colors", "include": [{"class": "fox", "count": 1, "color": "red"}]}
LEFT = {"tag": "position", "include": [{"class": "owl", "count": 1}, {"class": "fox", "count": 1, "position": ["left of", 0]}]}
BOTH = {"tag": "color_attr", "include": [{**RED["include"][0]}, {"class": "owl", "count": 1, "color": "blue"}]}


def foxes(count, colour="red", score=0.9):
    return [("fox", colour, 20 * k, 10, 12, score) for k in range(count)]


@pytest.mark.parametrize(
    ("asked", "things", "strict", "parts"),
    [
        (ONE, [FOX], 1, 1),
        (ONE, [OWL], 0, 0),
        (ONE, foxes(2), 1, 0),  # GenEval asks for at least one; a policy's count is near or not
        (TWO, [FOX, OWL], 1, 1),
        (TWO, [FOX], 0, 0.5),
        (THREE, foxes(3), 1, 1),
        (THREE, foxes(2), 0, (2 / 3 + 1) / 2),
        (THREE, foxes(4), 0, (2 / 3 + 0) / 2),
        (THREE, foxes(3, score=0.15), 0, (0 + 1) / 2),  # to count, the detector must be surer
        (RED, [FOX], 1, 1),
        (RED, foxes(1, "green"), 0, 0.5),
        (RED, [OWL], 0, 0),
        (LEFT, [FOX, OWL], 1, 1),
        (LEFT, [("fox", "red", 75, 40, 20, 0.9), ("owl", "blue", 5, 40, 20, 0.9)], 0, 2 / 3),
        (LEFT, [FOX], 0, (0 + 1 + 0) / 3),
        (BOTH, [FOX, OWL], 1, 1),
        (BOTH, [("fox", "blue", 10, 40, 20, 0.9), ("owl", "red", 70, 40, 20, 0.9)], 0, 0.5),
    ],
)
def test_the_six_kinds_of_prompt(asked, things, strict, parts):
    assert value(asked, *things, strict=True) == strict
    assert value(asked, *things) == pytest.approx(parts)


def test_only_the_surest_count_for_colours_and_places():
    """A second, less sure fox of another colour does not spoil GenEval's measure; a surer one does."""
    sure, other = ("fox", "red", 10, 40, 20, 0.9), ("fox", "green", 70, 40, 20, 0.5)
    assert value(RED, sure, other, strict=True) == 1
    assert value(RED, sure, (*other[:5], 0.95), strict=True) == 0


def test_thresholds():
    assert value(ONE, (*FOX[:5], 0.12), strict=True) == 1 and value(ONE, (*FOX[:5], 0.12), strict=True, threshold=0.2) == 0
    near = ("fox", "red", 12, 40, 20, 0.5)
    assert value(THREE, FOX, near, *foxes(1), strict=True, most_overlap=1.0) == 1
    assert value(THREE, FOX, near, *foxes(1), strict=True) == 0


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "has no list of objects under the key include"),
        ({"include": []}, "has no list of objects"),
        ({"include": '[{"class": "fox"}]'}, "has no list of objects"),
        ({"include": [{"class": "fox"}]}, "class and a count of at least 1"),
        ({"include": [{"class": "fox", "count": 0}]}, "a count of at least 1"),
        ({"include": [{"class": "fox", "count": 1, "color": "purpel"}]}, "the colour 'purpel'; did you mean 'purple'"),
        ({"include": [{"class": "fox", "count": 1, "position": ["left of", 0]}]}, "index of an object before it"),
        ({"include": [{"class": "fox", "count": 1}], "exclude": [{"class": "fox"}]}, "a count of at least 1"),
    ],
)
def test_an_annotation_of_another_form_is_refused(asked, says):
    with pytest.raises(TiltingError, match=says) as caught:
        value(asked, FOX)
    assert "\n" not in str(caught.value) and "'it'" in str(caught.value)


def test_colours_are_asked_by_geneval_three_templates(tmp_path):
    """Of a real CLIP, with random weights: mean of three unit vectors, then the likeliest of the crop."""
    reward = geneval(save_geneval(tmp_path))
    image, box = torch.rand(3, 60, 80), Box(10.6, 5.2, 50.9, 40.1, 0.5)
    (told,) = reward.colours(image, [box], "fox")
    crop = reward.clip.image(image[None, :, 5:40, 11:51])  # as PIL's crop rounds, which GenEval's code uses
    means = []
    for colour in COLOURS:
        e = reward.clip.text([t.format(colour=colour, name="fox") for t in TEMPLATES]).mean(0)
        means.append(crop[0] @ e / e.norm())
    assert told == COLOURS[int(torch.stack(means).argmax())] and reward.colours(image, [], "fox") == []
    assert len(reward.colours(image, [Box(-5, -5, 0.2, 0.3, 1), Box(79.9, 59.9, 99, 99, 1)], "fox")) == 2


def test_owlvit_is_read_as_transformers_reads_it(tmp_path):
    from transformers import AutoImageProcessor, OwlViTForObjectDetection, OwlViTProcessor

    small = torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(3))
    image = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear")[0] * 0.8 + 0.1
    finder = read_finder(save_owlvit(tmp_path))
    names, model = ("fox", "cat"), OwlViTForObjectDetection.from_pretrained(tmp_path).eval()
    queries, full = [f"a photo of a {name}" for name in names], {"padding": "max_length", "max_length": 16}
    tokens = finder.detector.tokenizer(queries, return_tensors="pt", **full)
    with torch.no_grad():
        out = model(**tokens, pixel_values=finder.detector.pixels(image[None]))
        found = finder(image, names)
    process = OwlViTProcessor(AutoImageProcessor.from_pretrained(tmp_path), finder.detector.tokenizer)
    (told,) = process.post_process_grounded_object_detection(out, threshold=0.0, target_sizes=[(64, 64)])
    for k, name in enumerate(names):
        mine = np.array(found[name]).reshape(-1, 5)
        keep = told["labels"] == k
        np.testing.assert_allclose(mine[:, :4], told["boxes"][keep].numpy(), atol=1e-3)
        np.testing.assert_allclose(mine[:, 4], told["scores"][keep].numpy(), atol=1e-5)
    assert sum(map(len, found.values())) == 9 and all(found.values())


def test_grounding_dino_counts_by_the_tokens_of_a_name(tmp_path):
    finder, image = read_finder(save_dino(tmp_path)), torch.rand(3, 60, 90)
    assert type(finder).__name__ == "DinoFinder"
    with torch.no_grad():
        found = finder(image, ("fox", "red cats"))
        ids = finder.tokenizer("fox. red cats.", return_tensors="pt")
        pixels = finder.processor(np.array((image * 255).round().byte().permute(1, 2, 0)), return_tensors="pt")
        out = finder.model(**pixels, input_ids=ids.input_ids, attention_mask=ids.attention_mask)
    words = finder.tokenizer.convert_ids_to_tokens(ids.input_ids[0].tolist())
    assert words == ["[CLS]", "fox", ".", "red", "cat", "##s", ".", "[SEP]"]
    scores = torch.stack((out.logits[0, :, 1].sigmoid(), out.logits[0, :, 3:6].sigmoid().amax(-1)), -1)
    best = scores.argmax(-1)
    assert [len(found["fox"]), len(found["red cats"])] == [int((best == 0).sum()), int((best == 1).sum())]
    rows = {name: torch.tensor(found[name]).reshape(-1, 5) for name in found}
    x, y, w, h = out.pred_boxes[0].double().unbind(-1)
    for k, name in enumerate(("fox", "red cats")):
        torch.testing.assert_close(rows[name][:, 4].double(), scores[best == k, k].double(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rows[name][:, 0].double(), ((x - w / 2) * 90)[best == k], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(rows[name][:, 3].double(), ((y + h / 2) * 60)[best == k], atol=1e-3, rtol=1e-4)


def test_a_prompts_file_of_geneval_works_as_it_is(tmp_path, folder, monkeypatch):
    """Lines of evaluation_metadata.jsonl, as they are published."""
    monkeypatch.chdir(tmp_path)
    save_geneval(tmp_path / "found")
    lines = [
        {
            "tag": "two_object",
            "include": [{"class": "cat", "count": 1}, {"class": "fox", "count": 1}],
            "prompt": "a cat and a fox",
        },
        {
            "tag": "position",
            "include": [{"class": "fox", "count": 1}, {"class": "cat", "count": 1, "position": ["above", 0]}],
            "prompt": "a photo of a cat above a fox",
        },
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = ["generate", "--prompts", "evaluation_metadata.jsonl", "--model", str(folder), "--steps", "2", "--method", "bon"]
    run += ["--particles", "2", "--reward", "geneval:found", "--reward", "geneval-strict:found", "--out", "run", "--quiet"]
    assert main(run) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "images.jsonl").read_text().splitlines()]
    assert all(0 <= row["rewards"]["geneval:found"] <= 1 and row["rewards"]["geneval-strict:found"] in (0, 1) for row in rows)
    with pytest.raises(TiltingError, match="has no list of objects"):
        geneval("found")(torch.rand(1, 3, 32, 32), ["a cat"])
    told = replace(geneval("found", threshold=0.99), metadata={"a cat": lines[0]})
    assert told(torch.rand(1, 3, 32, 32), ["a cat"]).item() == 0
