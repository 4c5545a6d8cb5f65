"""What training makes of a reward: DPG's critic, dropout inside, the diversity term; on pocket and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tilting as tl
from support.finetuning import Bright, bright
from tilting.config.diversity import parse_diversity
from tilting.errors import TiltingError
from tilting.features.linear_head import LinearHead
from tilting.models.adapt import adapted, networks, with_dropout
from tilting.objectives import dpg, draft_k, draft_lv
from tilting.training.diversity import diversity, root_mean_square, to_reverse
from tilting.training.trainer import make_trainer

SMALL = {"steps": 2, "batch_size": 2, "rank": 2, "cfg": 3.0}
WORDS = ["a fox", "a cat"]


@pytest.fixture(scope="module")
def pocket():
    return tl.load("pocket")


# The critic


def test_a_critic_begins_as_the_reward_and_leaves_it_alone():
    reward = tl.rewards.clip()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = reward(images, WORDS)
    critic, trained = adapted(reward, 2)
    assert torch.allclose(critic(images, WORDS), before, atol=1e-6)
    mine = {p.data_ptr() for p in networks(reward)[0].parameters()}
    theirs = {p.data_ptr() for p in networks(critic)[0].parameters()}
    assert mine < theirs  # the same tensors, and the LoRA's
    for p in trained.values():
        p.data += 0.05
    assert torch.equal(reward(images, WORDS), before)
    assert (critic(images, WORDS) - before).abs().max() > 1e-3
    critic(images, WORDS).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    assert all(p.grad is None for p in networks(reward)[0].parameters())
    assert adapted(Bright()) is None


def test_dpg_trains_policy_and_critic_of_pocket(pocket):
    reward = tl.rewards.clip()
    run = make_trainer(pocket, WORDS, reward, dpg(), lr=1e-3, **SMALL | {"steps": 3})
    names = {name.partition(".")[0] for name in run.state.parameters}
    assert "critic" in names and len(names) > 1
    before = {name: p.detach().clone() for name, p in run.state.parameters.items()}
    row = next(iter(run.steps(1)))
    changed = {name for name, p in run.state.parameters.items() if not torch.equal(p, before[name])}
    assert any(n.startswith("critic.") and "lora_B" in n for n in changed)
    assert any(not n.startswith("critic.") and "lora_B" in n for n in changed)
    assert row.numbers["critic_error"] > 0 and row.numbers["reward_calls"] == 2
    assert not any("critic" in key for key in run.lora())


# Diversity


def test_the_other_image_is_the_reverse_one_and_the_gradient_is_of_all_pairs():
    """Σ_i d(x_i, x_{b-1-i}) written out, for one process and for two that gather."""
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    far = to_reverse(images, root_mean_square)
    wanted = torch.stack([(images[i] - images[4 - i]).square().mean().sqrt() if i != 2 else images.sum() * 0 for i in range(5)])
    assert torch.allclose(far, wanted)
    far.sum().backward()
    found, images.grad = images.grad.clone(), None
    wanted.sum().backward()
    assert torch.allclose(found, images.grad)
    assert found[2].abs().max() == 0
    four = images.detach()[:4]
    whole = to_reverse(four, root_mean_square)
    for index in range(2):
        mine = four[2 * index : 2 * index + 2].clone().requires_grad_(True)
        part = to_reverse(mine, root_mean_square, lambda value: four, index)
        assert torch.equal(part, whole[2 * index : 2 * index + 2])
        part.sum().backward()
        assert torch.allclose(mine.grad, _gradient(four)[2 * index : 2 * index + 2])


def _gradient(images):
    images = images.clone().requires_grad_(True)
    (2 * (images[0] - images[3]).square().mean().sqrt() + 2 * (images[1] - images[2]).square().mean().sqrt()).backward()
    return images.grad


@pytest.mark.parametrize("spec", ["euclid=0.5", "clip=2"])
def test_the_term_is_added_to_the_reward(pocket, spec):
    term = diversity(spec)
    run = make_trainer(pocket, WORDS, Bright(), draft_k(1), diversity=spec, **SMALL)
    world = run.batches(0, {})
    x = torch.randn(2, *pocket.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    images = pocket.decode(x)
    if spec.startswith("clip"):
        a, b = tl.rewards.clip().embedder.image(images)
        apart = (a - b).norm()
    else:
        apart = (images[0] - images[1]).square().mean().sqrt()
    found = world.value(x, world.rows)
    assert torch.allclose(found, bright(images, []) + term.weight * apart, atol=1e-5)
    (wanted,) = torch.autograd.grad((bright(images, []) + term.weight * apart).sum(), x)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(slope, wanted, atol=1e-4 * wanted.abs().max().item())
    assert run.batches.numbers == {"dissimilarity": pytest.approx(apart.item(), rel=1e-4)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("euclit", "did you mean 'euclid'"),
        ("clip=x", "must be a number"),
        ("lpips", "VGG16"),
        ("clip:a=1", "takes no argument"),
        ("euclid=inf", "finite"),
    ],
)
def test_a_wrong_measure_is_refused(text, said):
    with pytest.raises(TiltingError, match=said):
        parse_diversity(text)


# Dropout inside


def test_units_are_dropped_inside_the_reward_by_one_mask_a_step(pocket):
    """clip: cos(W (m * f) , text) by hand, m redrawn every training step; the reward itself drops nothing."""
    reward = tl.rewards.clip()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = reward(images, WORDS)
    thin = with_dropout(reward, 0.75)
    assert torch.equal(thin(images, WORDS), whole)
    run = make_trainer(pocket, WORDS, reward, draft_lv(), reward_dropout=0.75, **SMALL)
    thin = run.batches.reward
    run.batches(0, {})
    (mask,) = [m.clone() for m in thin.masks]
    assert set(mask.tolist()) == {0.0, 4.0} and 0.5 < (mask == 0).float().mean() < 0.95
    embedder = reward.embedder
    features = embedder.model.vision_model(pixel_values=embedder.preprocess(images)).pooler_output
    wanted = F.cosine_similarity(embedder.model.visual_projection(features * mask), embedder.text(WORDS))
    assert torch.allclose(thin(images, WORDS), wanted, atol=1e-5)
    assert (wanted - whole).abs().max() > 1e-3
    assert torch.equal(reward(images, WORDS), whole)
    run.batches(1, {})
    assert not torch.equal(thin.masks[0], mask)
    run.batches(0, {})
    assert torch.equal(thin.masks[0], mask)  # keyed by (seed, step)
    for share, given in ((1.0, reward), (0.5, Bright())):
        with pytest.raises(TiltingError, match=r"below 1|no layer to drop"):
            with_dropout(given, share)


def test_the_aesthetic_head_is_thinned_between_its_layers():
    from tilting.rewards import Aesthetic

    torch.manual_seed(0)
    head = LinearHead((12, 7, 6, 5, 4, 1))

    class Flat(torch.nn.Module):
        def image(self, images):
            return images.flatten(1)[:, :12]

    thin = with_dropout(Aesthetic(Flat(), head), 0.5)
    assert thin.widths == (7, 6, 5, 4)
    thin.redraw(torch.Generator().manual_seed(1))
    images = torch.rand(3, 3, 2, 2)
    x = images.flatten(1)[:, :12]
    layers = [m for m in head.layers if isinstance(m, torch.nn.Linear)]
    for layer, mask in zip(layers, [torch.ones(12), *thin.masks], strict=True):
        x = layer(x * mask)
    assert torch.allclose(thin(images, [""] * 3), x[:, 0], atol=1e-6)
