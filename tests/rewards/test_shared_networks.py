"""A network that several parts of a sum stand on is loaded once and asked once, with the values and gradients of each apart."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from support.learned import save_aesthetic, save_classifier, save_owlvit
from tilting.features.clip import ClipEmbedder
from tilting.features.fitted import EmbeddingMlp, FittedClassifier
from tilting.features.fitted import save_classifier as save_fit
from tilting.features.once import once
from tilting.features.packaged import POCKET_CLIP
from tilting.features.schema import Schema
from tilting.rewards import build, combine, detect
from tilting.rewards.spec import parse_specs

TRIO = ("style:noto", "style:twemoji=-0.5", "clip=3")
PROMPTS = ["a cat", "a red fox", "an owl"]


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    at = tmp_path_factory.mktemp("shared")
    save_aesthetic(at / "clip")
    save_classifier(at / "vit")
    save_owlvit(at / "owl")
    torch.manual_seed(0)
    for name in ("bright", "red"):
        save_fit(FittedClassifier(EmbeddingMlp(2), Schema(name, classes=("no", "yes"))), at / name)
    return at


def pictures(seed=0):
    return torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(seed))


@contextmanager
def convolutions():
    """The calls of convolutions, which every network here begins with."""
    calls = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: calls.append(m) if isinstance(m, nn.Conv2d) else None)
    try:
        yield calls
    finally:
        hook.remove()


def slopes(reward, images):
    images = images.clone().requires_grad_()
    values = reward(images, PROMPTS)
    return values.detach(), torch.autograd.grad(values.sum(), images)[0]


@pytest.mark.parametrize(
    "specs",
    [
        ("style:noto", "style:twemoji=-0.5", "style:fluent=2"),
        ("clip", "style=0.1"),
        ("clip=3", "diversity"),
        ("classify:AT/vit#owl", "classify:AT/vit#Tabby=-1"),
        ("clip:AT/clip", "aesthetic:AT/clip=0.1"),
        ("likelihood:AT/bright#bright=yes", "likelihood:AT/bright#bright=no=-0.3"),
        ("likelihood:AT/bright#bright=yes", "likelihood:AT/red#red=yes", "clip"),
    ],
)
def test_parts_on_one_network_ask_it_once(specs, at):
    parsed = parse_specs([spec.replace("AT", str(at)) for spec in specs])
    together, apart, images = build(parsed), [build([one]) for one in parsed], pictures()
    with convolutions() as paid:
        got, slope = slopes(together, images)
    each = []
    for one in apart:
        with convolutions() as calls:
            each.append((*slopes(one, images), len(calls)))
    assert len(paid) == max(calls for _, _, calls in each) > 0
    torch.testing.assert_close(got, sum(value for value, _, _ in each), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slope, sum(one for _, one, _ in each), atol=1e-5, rtol=1e-4)
    again = slopes(together, pictures(1))[0]
    torch.testing.assert_close(again, sum(slopes(one, pictures(1))[0] for one in apart), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", ["all", "middle", "2"])
def test_frames_of_videos_are_looked_at_once(frames):
    videos = torch.rand(3, 4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    together, apart = (
        [replace(combine(group), frames=frames) for group in groups]
        for groups in ([build(parse_specs(TRIO)).parts], [[part] for part in build(parse_specs(TRIO)).parts])
    )
    paid, found = [], []
    for sums in (together, apart):
        with convolutions() as calls:
            found.append([slopes(one, videos) for one in sums])
        paid.append(len(calls))
    assert paid[1] == 3 * paid[0] > 0
    for got, each in zip(zip(*found[0], strict=True), zip(*found[1], strict=True), strict=True):
        torch.testing.assert_close(got[0], sum(each), atol=1e-5, rtol=1e-4)


def test_queries_of_one_detector_look_once(at):
    with once():
        cat, fox = detect("cat", at / "owl"), detect("-red fox", at / "owl")
    assert cat.embedder is fox.embedder and detect("cat", at / "owl").embedder is not cat.embedder
    with convolutions() as paid, torch.no_grad():
        got = combine([cat, (fox, 2.0)])(pictures(), PROMPTS)
    assert len(paid) == 1
    torch.testing.assert_close(got, cat(pictures(), PROMPTS) + 2 * fox(pictures(), PROMPTS))


def test_nothing_is_taken_for_something_else():
    network, images = ClipEmbedder(POCKET_CLIP), pictures()
    with once():
        made = [network.image(images * scale) for scale in (1.0, 0.7, 0.4)]  # freed at once, so that memory is used again
        with torch.no_grad():
            plain = network.image(images)
        leaf = images.requires_grad_()
        assert network.image(leaf).requires_grad and not plain.requires_grad
        with once():
            assert network.image(leaf) is network.image(leaf)
        assert network.image(leaf) is network.image(leaf)
    for scale, one in zip((1.0, 0.7, 0.4), made, strict=True):
        torch.testing.assert_close(one, network.image(images * scale))
    assert network.image(leaf) is not network.image(leaf)
