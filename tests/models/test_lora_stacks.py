"""LoRAs on different layers of one network: what is on is a sum, in any order, equal to plain diffusers' `set_adapters`."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tilting as tl
from support.loras import lora_off, scaled
from support.small import bright_fit, random_control, write_small
from tilting.models.attach import attach_all
from tilting.models.lora import active, add_lora, load_lora, lora_state, remove
from tilting.models.lora_file import parse_lora
from tilting.models.lora_weights import save_lora
from tilting.objectives import draft_lv
from tilting.schedule import predict

PROMPT, STEPS, CFG = ["a fox"], 4, 3.0
PARTS = {"a": ("attn2", "ff"), "b": ("attn1",), "c": ("attn2",)}
SCALES = {"a": 0.7, "b": 1.0, "c": -0.4}
ORDERS = ["".join(order) for count in (1, 2, 3) for order in permutations("abc", count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, and three LoRAs of it in folders beside it."""
    root = tmp_path_factory.mktemp("stacks")
    write_small(root / "small")
    for seed, (name, parts) in enumerate(PARTS.items()):
        unet = tl.load(str(root / "small")).unet
        add_lora(unet, 2, parts, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        state = {
            key: torch.randn(value.shape, generator=generator) if ".lora.up." in key else value
            for key, value in lora_state(unet).items()
        }
        save_lora(state, root / name)
    return root


@pytest.fixture
def model(folder):
    return tl.load(str(folder / "small"))


@pytest.fixture
def plain(folder):
    """Plain diffusers, all three loaded, by name."""
    pipe = StableDiffusionPipeline.from_pretrained(folder / "small", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    for name in PARTS:
        pipe.load_lora_weights(str(folder / name), adapter_name=name)
    return pipe


@pytest.fixture(scope="module")
def control(folder):
    return random_control(tl.load(str(folder / "small")), [bright_fit(tl.load(str(folder / "small"))).classifier], size=0.3)


def specs(folder, order):
    return [parse_lora(f"{folder / name}={SCALES[name]}") for name in order]


def noise(model):
    return torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))


def ours(model):
    return tl.generate(model, PROMPT, steps=STEPS, cfg=CFG, eta=0.0, latents=noise(model)).images


def theirs(plain, model, order):
    plain.set_adapters(list(order), [SCALES[name] for name in order])
    return plain(PROMPT, latents=noise(model), num_inference_steps=STEPS, guidance_scale=CFG, eta=0.0, output_type="pt").images


@pytest.mark.parametrize("order", ORDERS)
def test_a_stack_in_any_order_draws_what_set_adapters_draws(folder, model, plain, order):
    base = ours(model)
    model = attach_all(model, specs(folder, order), STEPS)
    assert list(active(model.unet).values()) == [SCALES[name] for name in order]
    assert (ours(model) - theirs(plain, model, order)).abs().max() < 1e-5
    assert (ours(model) - base).abs().max() > 0.01
    for left in range(len(order)):  # each of them counts
        fewer = order[:left] + order[left + 1 :]
        if fewer:
            assert (ours(model) - theirs(plain, model, fewer)).abs().max() > 1e-3


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
def test_scales_and_removals_leave_the_others_as_they_are(folder, model, plain, order):
    model = attach_all(model, specs(folder, order), STEPS)
    whole, last = ours(model), len(order) - 1
    for i, name in enumerate(order):
        with scaled(model.unet, {f"stacked{i}": 0.0}):
            assert (ours(model) - theirs(plain, model, order.replace(name, ""))).abs().max() < 1e-5
    assert torch.equal(ours(model), whole)
    remove(model.unet, [f"stacked{last}"])
    assert (ours(model) - theirs(plain, model, order[:last])).abs().max() < 1e-5
    with pytest.raises(tl.TiltingError):
        load_lora(model.unet, {"unet.nowhere.lora.down.weight": torch.ones(2, 2)}, "other")
    down = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight"
    with pytest.raises(tl.TiltingError, match="fit"):
        load_lora(model.unet, {down: torch.ones(2, 3), down.replace("down", "up"): torch.ones(3, 2)}, "other")
    assert (ours(model) - theirs(plain, model, order[:last])).abs().max() < 1e-5


def controlled(plain, control, stack, x, t):
    """eps of a stack with a control, by plain diffusers' own network: App. B's sum, of what predicts v."""
    weights = [SCALES[name] for name in stack]
    embedding = control.augmented.embedding({"bright": torch.tensor([float(control.info.code("bright", "yes"))])}).reshape(
        x.shape
    )
    pipe = control.augmented.model.pipe

    def read(text):
        ids = pipe.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return pipe.text_encoder(ids)[0]

    context, empty = read(PROMPT[0]), read("")

    def network(x, context, *more):
        names = [*stack, *more]
        plain.unet.set_adapters(names, [*weights, *(1.0 for _ in more)]) if names else plain.unet.disable_lora()
        plain.unet.enable_lora() if names else None
        return plain.unet(x, t.t, encoder_hidden_states=context, return_dict=False)[0]

    strength = 2.0 if t.t > control.augmented.off else 0.0
    without, text, told = network(x, empty), network(x, context), network(x + embedding, context, "control")
    return predict("v_prediction", without + CFG * (text - without) + strength * (told - text), x, t)[0]


@pytest.mark.parametrize("window", [None, (1, 2)])
@pytest.mark.parametrize("order", ["abc", "cba", "bac"])
@pytest.mark.parametrize("first", ["stack", "control"])
def test_a_stack_with_a_control_and_a_window_in_any_order(folder, model, plain, control, order, first, window):
    control.save(folder / "control")
    if first == "stack":
        model = attach_all(model, specs(folder, order), STEPS, window)
        attached = tl.load_control(folder / "control", model)
    else:
        attached = tl.load_control(folder / "control", model)
        stacked = attach_all(model, specs(folder, order), STEPS, window)
        if window is not None:
            attached = tl.load_control(folder / "control", stacked)  # a window is a model of its own
    plain.load_lora_weights(str(folder / "control" / "lora"), adapter_name="control")
    denoise = attached.at(bright="yes", strength=2.0).denoiser(PROMPT, CFG)
    x, rows = noise(model), torch.tensor([0])
    with torch.no_grad():
        for i, t in enumerate(model.schedule.grid(STEPS)[:-1]):
            on = order if window is None or window[0] <= i < window[1] else ""
            assert (denoise(x, t, rows).eps - controlled(plain, attached, on, x, t)).abs().max() < 1e-5


def test_training_is_on_top_of_what_is_on(folder, model, plain):
    attach_all(model, specs(folder, "abc"), STEPS)
    stack = ours(model)

    class Bright:
        name, differentiable = "bright", True

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))

    options = {"train_steps": 1, "steps": STEPS, "batch_size": 1, "cfg": CFG, "target_modules": ("attn1",), "lr": 0.1}
    tuned = tl.finetune(model, PROMPT, Bright(), draft_lv(copies=0), **options)
    assert list(active(model.unet)) == ["stacked0", "stacked1", "stacked2", "tilting"]
    after = ours(model)
    assert (after - stack).abs().max() > 1e-3
    tuned.save(folder / "tuned")
    plain.load_lora_weights(str(folder / "tuned"), adapter_name="tuned")
    plain.set_adapters([*PARTS, "tuned"], [*SCALES.values(), 1.0])
    words = {"num_inference_steps": STEPS, "guidance_scale": CFG, "eta": 0.0, "output_type": "pt"}
    assert (plain(PROMPT, latents=noise(model), **words).images - after).abs().max() < 1e-5
    remove(model.unet, ["tilting"])
    assert torch.equal(ours(model), stack)
    with lora_off(model.unet):
        assert (ours(model) - stack).abs().max() > 0.01
