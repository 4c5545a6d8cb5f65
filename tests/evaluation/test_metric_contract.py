"""What every metric holds to, ours and others': documented, given what it takes, of the form it says, better where it says."""

from __future__ import annotations

import math

import pytest
import torch

from support.outside import installed
from tilting.config.evaluate import EvaluateConfig
from tilting.errors import TiltingError
from tilting.features.lpips import Lpips
from tilting.features.vgg import Vgg16
from tilting.metrics import METRICS, Metric, PocketJudge
from tilting.metrics.declaration import INPUTS

PROMPTS = ["a fox", "an owl", "a cat", "no word of these"]


@pytest.fixture(scope="module")
def judge():
    return PocketJudge()


def inputs(judge, seed: int = 0, near: float = 0.0) -> dict:
    """One of every input: unit vectors, the nearer to those of the reference the larger ``near``."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(4, 8, generator=draw)
    target = torch.ones(8)
    vectors = torch.nn.functional.normalize((1 - near) * vectors + near * target, dim=1)
    named = {"clip": vectors, "gram": vectors, "spread": vectors, "fid": vectors, "captions": target.expand(4, 8)}
    named |= {"clip_reference": target.expand(4, 8), "gram_reference": target.expand(4, 8), "judge": judge, "lpips": None}
    flat = torch.full((4, 3, 64, 64), 0.5)
    images = (1 - near) * torch.rand(4, 3, 64, 64, generator=draw) + near * flat
    return named | {"images": images, "reference": flat, "prompts": PROMPTS}


def hold_to_the_contract(metric: Metric, judge) -> None:
    """Assert of a metric what reports and verdicts take for granted."""
    assert metric.title and metric.about and (metric.function.__doc__ or "").strip(), f"{metric.name} is not documented"
    assert metric.takes and set(metric.takes) <= set(INPUTS), f"{metric.name} takes what nobody has"
    assert set(metric.needs) <= set(EvaluateConfig.options()), f"{metric.name} needs what cannot be given"
    assert not (metric.judges and metric.better == "lower"), f"{metric.name}: a fall of it is no loss"
    mine = inputs(judge)
    assert set(mine) == set(INPUTS)
    if metric.of == "sets":
        far, near = metric(mine, inputs(judge, 1, 0.9)), metric(mine, inputs(judge, 2))
        assert isinstance(far, float) and (far > near) == (metric.better == "lower"), f"{metric.name} is not {metric.better}"
        with pytest.raises(TiltingError):
            metric(mine, {key: torch.zeros(4, 3) for key in metric.takes})
    elif metric.of == "prompt":
        assert isinstance(metric(mine), float) and (metric(mine) > metric(inputs(judge, 0, 0.9))) == (metric.better == "higher")
        with pytest.raises(TiltingError):
            metric({key: value[:1] if key in ("spread", "images") else value for key, value in mine.items()})
    else:
        torch.manual_seed(0)
        more = {"lpips": Lpips(Vgg16((4, 4, 6, 6, 8)))}
        values = metric(mine | more)
        assert values.shape == (4,) and values.is_floating_point() and math.isfinite(values[0])
        if "reference" in metric.takes[-1]:
            assert ((metric(inputs(judge, 0, 0.9) | more) > values) == (metric.better == "higher")).all()


@pytest.mark.parametrize("name", METRICS)
def test_every_metric(name, judge):
    hold_to_the_contract(METRICS[name], judge)


def spread(features):
    """The spread of features."""
    return features.std().item()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"about": ""}, "is not documented"),
        ({"takes": ("pixels",)}, "takes what nobody has"),
        ({"needs": ("luck",)}, "needs what cannot be given"),
        ({"better": "lower", "judges": True}, "a fall of it is no loss"),
        ({"of": "image"}, ""),
        ({"function": lambda features: features}, "is not documented"),
        ({}, "DID NOT RAISE"),
    ],
)
def test_a_broken_metric_is_found(facts, says, judge):
    facts = {"function": spread, "of": "prompt", "takes": ("spread",), **facts}
    metric = Metric(**{"name": "spread", "title": "Spread", "about": "a deviation", **facts})
    with pytest.raises((AssertionError, AttributeError, pytest.fail.Exception), match=says):
        hold_to_the_contract(metric, judge)


MINE = '''
"""A metric of mine."""
from tilting.metrics import METRICS

@METRICS.declare("brightness", "Brightness", "mean over pixels, in [0, 1]", ("images",))
def brightness(images):
    """The mean of every image."""
    return images.mean((1, 2, 3))
'''


def test_a_metric_from_outside_is_known(judge, tmp_path):
    with installed(METRICS, tmp_path / "site", "a_metric", MINE, "a_metric"):
        hold_to_the_contract(METRICS["brightness"], judge)
        assert METRICS["brightness"](inputs(judge)).shape == (4,) and METRICS.find("brightness").title == "Brightness"
    assert "brightness" not in METRICS
