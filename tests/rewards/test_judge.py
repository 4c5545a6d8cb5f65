"""pocket-judge: its score is the log-probability of what the prompt asks, and nothing of it is a reward."""

import subprocess
import sys

import pytest
import torch

from tilting.errors import TiltingError
from tilting.features.judge import load_judge
from tilting.metrics.judge import PocketJudge
from tilting.models.words import POCKET, load_words, read_prompt, write_prompt

FOLDER = POCKET.parent / "pocket-judge"


@pytest.fixture(scope="module")
def judge():
    return PocketJudge()


def images(b=4, h=64, w=64):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("style", "background"), [(None, None), (1, None), (None, 3), (2, 7)])
def test_score_is_the_sum_of_what_is_asked(judge, style, background):
    words, x = load_words(), images()
    concepts = [0, 5, 40, len(words.concepts) - 1]
    prompts = [write_prompt(words, c, style, background) for c in concepts]
    assert [read_prompt(words, p).concept for p in prompts] == concepts
    with torch.no_grad():
        logits = load_judge(FOLDER)(x)
    logs = {name: v.double().softmax(-1).log() for name, v in logits.items()}
    rows = torch.arange(4)
    want = logs["concept"][rows, concepts]
    if style is not None:
        want = want + logs["style"][:, style]
    if background is not None:
        want = want + logs["background"][:, background]
    torch.testing.assert_close(judge.score(x, prompts).double(), want, atol=1e-5, rtol=0)


def test_nan_where_nothing_is_named(judge):
    words = load_words()
    score = judge.score(images(3), ["qwzx vbnm", write_prompt(words, 2), "noto style"])
    assert score.isnan().tolist() == [True, False, True]


def test_probabilities(judge):
    p = judge.probabilities(images())
    assert {name: v.shape[1] for name, v in p.items()} == {"concept": 444, "style": 3, "background": 12}
    for name, v in p.items():
        torch.testing.assert_close(v.sum(-1), torch.ones(4))
        torch.testing.assert_close(v.log(), judge.log_probabilities(images())[name])


def test_batch_invariance_and_empty(judge):
    x, prompts = images(5), ["a fox, noto style", "an owl", "a fox on a blue background", "a cat", "a dog"]
    alone = torch.cat([judge.score(x[i : i + 1], [prompts[i]]) for i in range(5)])
    torch.testing.assert_close(judge.score(x, prompts), alone, atol=1e-5, rtol=0, equal_nan=True)
    assert judge.score(x[:0], []).shape == (0,)
    assert judge.probabilities(x[:0])["style"].shape == (0, 3)


def test_other_sizes_and_no_gradient(judge):
    x = images(2)
    big = torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest").requires_grad_()
    score = judge.score(big, ["a fox"] * 2)
    assert not score.requires_grad
    wide = judge.score(images(1, 128, 96), ["a fox"])
    assert torch.isfinite(wide).all()
    box = torch.nn.functional.avg_pool2d(big.detach(), 4)  # what a resize of blocks must come near
    assert (score - judge.score(box, ["a fox"] * 2)).abs().max() < 0.2


def test_refusals(judge, tmp_path):
    with pytest.raises(TiltingError, match=r"\[-1, 1\]"):
        judge.score(images(1) * 2 - 1, ["a fox"])
    with pytest.raises(TiltingError, match="prompts"):
        judge.score(images(2), ["a fox"])
    with pytest.raises(TiltingError, match="no judge"):
        PocketJudge(tmp_path)
    words = load_words()
    with pytest.raises(TiltingError, match="vocabulary"):
        PocketJudge(words=type(words)(words.concepts[:-1], words.categories[:-1], words.styles, words.colours, words.held_out))


def test_rewards_and_metrics_never_meet():
    code = (
        "import sys; import tilting.metrics.judge; assert not [m for m in sys.modules if m.startswith('tilting.rewards')];"
        "import tilting.rewards; [getattr(tilting.rewards, n) for n in dir(tilting.rewards)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys; import tilting.rewards; [getattr(tilting.rewards, n) for n in dir(tilting.rewards)];"
        "assert not [m for m in sys.modules if m.startswith('tilting.metrics')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
