"""LoRA files: the same images as plain diffusers, mixes as sums of products, stacks, step windows, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import tilting as tl
from support.loras import lora_off, scaled
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.models.attach import attach_all
from tilting.models.lora import activate, active, add_lora, load_lora, lora_state
from tilting.models.lora_file import FILE, parse_lora, parse_window
from tilting.models.lora_weights import mix, read_lora, save_lora
from tilting.models.words import POCKET
from tilting.training.trainer import attach

PROMPT, STEPS, CFG = ["a fox"], 4, 4.0


@pytest.fixture
def model():
    return tl.load("pocket")


def weights(seed: int, rank: int = 2, parts=("attn2", "ff"), size: float = 0.2) -> dict[str, torch.Tensor]:
    """A LoRA whose B is not zero, and which moves images visibly."""
    unet = tl.load("pocket").unet
    add_lora(unet, rank, parts, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return {
        key: size * torch.randn(value.shape, generator=generator) if ".lora.up." in key else value
        for key, value in lora_state(unet).items()
    }


@pytest.fixture(scope="module")
def one():
    return weights(1)


@pytest.fixture(scope="module")
def two():
    return weights(2, rank=3)


def noise(model):
    return torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))


def ours(model, steps=STEPS):
    return tl.generate(model, PROMPT, steps=steps, cfg=CFG, eta=0.0, latents=noise(model)).images


def products(state):
    """B A of every layer, by matrix products."""
    keys = [key for key in state if key.endswith("lora.down.weight")]
    return {key: state[key.replace("lora.down", "lora.up")].double() @ state[key].double() for key in keys}


def test_plain_diffusers_draws_the_same_images_from_the_folder(model, one, tmp_path):
    save_lora(one, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(POCKET, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    base = ours(model)
    pipe.load_lora_weights(str(tmp_path))
    theirs = pipe(PROMPT, latents=noise(model), num_inference_steps=STEPS, guidance_scale=CFG, eta=0.0, output_type="pt").images
    load_lora(model.unet, read_lora(tmp_path), "mine")
    assert (ours(model) - theirs).abs().max() < 1e-4
    assert (base - theirs).abs().max() > 0.05
    # and at another scale, theirs by their own switch
    pipe.set_adapters(pipe.get_active_adapters(), [0.4])
    less = pipe(PROMPT, latents=noise(model), num_inference_steps=STEPS, guidance_scale=CFG, eta=0.0, output_type="pt").images
    with scaled(model.unet, {"mine": 0.4}):
        assert (ours(model) - less).abs().max() < 1e-4
    assert (less - theirs).abs().max() > 0.01


@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_of_diffusers_with_an_alpha_of_its_own_draws_what_diffusers_draws(model, rslora, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict
    from peft.utils import set_peft_model_state_dict

    pipe = StableDiffusionPipeline.from_pretrained(POCKET, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pattern = {"to_q": 6.0, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 1.0}
    pipe.unet.add_adapter(
        LoraConfig(
            r=8,
            lora_alpha=2,
            use_rslora=rslora,
            target_modules=["to_q", "to_k"],
            rank_pattern={"to_k": 3},
            alpha_pattern=pattern,
        )
    )
    state, generator = get_peft_model_state_dict(pipe.unet), torch.Generator().manual_seed(0)
    state = {key: 0.3 * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    set_peft_model_state_dict(pipe.unet, state)
    settings = pipe.unet.peft_config["default"].to_dict()
    pipe.save_lora_weights(str(tmp_path), convert_state_dict_to_diffusers(state), unet_lora_adapter_metadata=settings)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(tmp_path))
    theirs = pipe(PROMPT, latents=noise(model), num_inference_steps=STEPS, guidance_scale=CFG, eta=0.0, output_type="pt").images
    base = ours(model)
    load_lora(model.unet, read_lora(tmp_path), "mine")
    assert (ours(model) - theirs).abs().max() < 1e-4
    assert (base - theirs).abs().max() > 0.05


def test_an_alpha_beside_a_layer_counts_and_one_that_cannot_be_read_is_refused(one, tmp_path):
    layer = next(key for key in one if ".down." in key).removesuffix(".lora.down.weight")
    save_file({**one, f"{layer}.alpha": torch.tensor(0.5)}, tmp_path / FILE)
    read = read_lora(tmp_path)
    assert set(read) == set(one)
    assert all(torch.equal(read[key], one[key] * (0.25 if key == f"{layer}.lora.up.weight" else 1)) for key in one)
    for said in ("[1", "[]", '{"unet.lora_alpha": "much"}'):
        save_file(one, tmp_path / FILE, metadata={"lora_adapter_metadata": said})
        with pytest.raises(TiltingError, match="cannot be read"):
            read_lora(tmp_path)
    for odd, said in ((f"{layer}.lora_magnitude_vector", "is a DoRA"), ("unet.other.lora.up.weight", "not of a plain LoRA")):
        save_file({**one, odd: torch.ones(2, 2)}, tmp_path / FILE)
        with pytest.raises(TiltingError, match=said):
            read_lora(tmp_path)
    save_file({key: value for key, value in one.items() if key != f"{layer}.lora.up.weight"}, tmp_path / FILE)
    with pytest.raises(TiltingError, match="cannot be read"):
        read_lora(tmp_path)


def test_stacks_take_the_place_of_those_before(model, one, two, tmp_path):
    for name, state in (("one", one), ("two", two)):
        save_lora(state, tmp_path / name)
    specs = [parse_lora(str(tmp_path / "one")), parse_lora(f"{tmp_path / 'two'}=0.5")]
    base = ours(model)
    attach_all(model, specs, STEPS)
    assert active(model.unet) == {"stacked0": 1.0, "stacked1": 0.5}
    attach_all(model, specs[:1], STEPS)
    assert active(model.unet) == {"stacked0": 1.0}
    load_lora(model.unet, two, "other")
    activate(model.unet, ["stacked0"])  # as a control's is off in the base model's term
    attach_all(model, [], STEPS)
    assert active(model.unet) == {} and torch.equal(ours(model), base)


def test_a_model_is_loaded_with_loras_and_takes_more(model, one, two, tmp_path):
    """As `attach_all` stacks them; what does not fit or has inputs of the sampler is refused, and nothing stays."""
    for name, state in (("one", one), ("two", two)):
        save_lora(state, tmp_path / name)
    both = [f"{tmp_path / 'one'}=0.5", str(tmp_path / "two")]
    wanted = ours(attach_all(model, [parse_lora(text) for text in both], STEPS))
    assert torch.equal(ours(tl.load("pocket", lora=both)), wanted)
    later = tl.load("pocket", lora=tmp_path / "one").load_lora(tmp_path / "two")
    assert list(active(later.unet).values()) == [1.0, 1.0]
    assert torch.equal(ours(tl.load("pocket").load_lora(tmp_path / "one", 0.5).load_lora(tmp_path / "two")), wanted)
    (tmp_path / "two" / "sampler_inputs.safetensors").write_bytes(b"")
    with pytest.raises(TiltingError, match=r"give tilting.load\(\.\.\., lora="):
        model.load_lora(tmp_path / "two")
    with pytest.raises(TiltingError, match="there is no LoRA at"):
        tl.load("pocket", lora=str(tmp_path / "three"))


def test_scale_zero_and_off_are_the_base_model_exactly(model, one):
    base = ours(model)
    load_lora(model.unet, one, "mine")
    changed = ours(model)
    with scaled(model.unet, {"mine": 0.0}):
        assert torch.equal(ours(model), base)
    with lora_off(model.unet):
        assert torch.equal(ours(model), base)
    assert torch.equal(ours(model), changed)
    assert not torch.allclose(changed, base, atol=0.02)


def test_a_mix_is_the_sum_of_products_and_a_stack_is_the_mix(model, one, two):
    mixed = mix([one, two], [0.7, -0.3])
    wanted, other = products(one), products(two)
    for key, product in products(mixed).items():
        assert torch.allclose(product, 0.7 * wanted[key] - 0.3 * other[key], atol=1e-6)
        assert mixed[key].shape[0] == 5
    halves = mix([weights(3, parts=("attn2",)), weights(4, parts=("ff",))], [1.0, 2.0])  # layers of one only are kept
    assert len(products(halves)) == len(wanted)
    load_lora(model.unet, mixed, "mixed")
    images = ours(model)
    model.unet.delete_adapters("mixed")
    load_lora(model.unet, one, "a", 0.7)
    load_lora(model.unet, two, "b", -0.3)
    assert (ours(model) - images).abs().max() < 1e-4


def test_a_lora_is_read_back_bit_for_bit_and_trained_further(model, one, tmp_path):
    save_lora(one, tmp_path)
    state = read_lora(tmp_path)
    assert set(state) == set(one) and all(torch.equal(state[key], one[key]) for key in one)
    parameters = attach(model.unet, None, (), 0, state)
    again = lora_state(model.unet)
    assert set(again) == set(one) and all(torch.equal(again[key], one[key]) for key in one)
    assert all(p.requires_grad == (name in parameters) for name, p in model.unet.named_parameters())

    class Bright:
        name, differentiable = "bright", True

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))

    with pytest.raises(TiltingError, match="leave rank, lora_alpha"):
        tl.finetune(model, PROMPT, Bright(), train_steps=1, start=state, rank=4)
    before = ours(model)
    tuned = tl.finetune(model, PROMPT, Bright(), train_steps=1, steps=STEPS, batch_size=1, start=state)
    moved = [key for key in one if not torch.equal(tuned.lora[key], one[key])]
    assert len(moved) == len(one)
    assert (tuned.lora[moved[0]] - one[moved[0]]).abs().max() < 2e-3  # further, not anew
    assert not torch.equal(ours(model), before)


def test_what_is_not_a_lora_of_this_model_is_refused(model, one, tmp_path):
    with pytest.raises(TiltingError, match="no LoRA at"):
        read_lora(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(TiltingError, match="safetensors only"):
        read_lora(tmp_path / "x.bin")
    (tmp_path / FILE).write_bytes(b"x" * 50)
    with pytest.raises(TiltingError, match="not a LoRA file"):
        read_lora(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(TiltingError, match="no LoRA weights"):
        read_lora(tmp_path)
    base = ours(model)
    elsewhere = {key.replace("attentions", "elsewhere"): value for key, value in one.items()}
    narrow = {key: value[:, :-1].contiguous() if ".lora.down." in key else value for key, value in one.items()}
    for other, said in ((elsewhere, "another model"), (narrow, "does not fit")):
        with pytest.raises(TiltingError, match=said):
            load_lora(model.unet, other, "other")
    assert torch.equal(ours(model), base)


def test_words_for_a_lora_and_its_steps(tmp_path, one):
    save_lora(one, tmp_path / "run" / "lora")
    assert parse_lora(f"{tmp_path}/run=0.5")[:2] == (tmp_path / "run" / "lora" / FILE, 0.5)
    assert parse_lora(str(tmp_path / "run" / "lora" / FILE)).scale == 1.0
    for text in (f"{tmp_path}/run=x", f"{tmp_path}/run=inf", f"{tmp_path}/nothing"):
        with pytest.raises(TiltingError):
            parse_lora(text)
    assert parse_window("2:5") == (2, 5) and parse_window("3:") == (3, None) and parse_window(":4") == (0, 4)
    for text in ("3", "5:2", "a:b", "-1:3"):
        with pytest.raises(TiltingError):
            parse_window(text)


def picture(folder: Path):
    from PIL import Image

    with Image.open(folder / "images" / "00000.png") as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).astype(int))


def test_lora_and_generate_commands(tmp_path, monkeypatch, capsys, one, two, model):
    monkeypatch.chdir(tmp_path)

    def fresh(name, *more, **how):
        for adapter in list(getattr(model.unet, "peft_config", {})):
            model.unet.delete_adapters(adapter)
        return model

    monkeypatch.setattr("tilting.generation.run.load", fresh)
    save_lora(one, Path("one"))
    save_lora(two, Path("two"))
    assert main(["lora", "scale", "one", "0.7", "--out", "less", "--quiet"]) == 0
    assert main(["lora", "mix", "less", "two=-0.3", "--out", "both", "--quiet"]) == 0
    wanted, other = products(one), products(two)
    for key, product in products(read_lora("both")).items():
        assert torch.allclose(product, 0.7 * wanted[key] - 0.3 * other[key], atol=1e-6)
    capsys.readouterr()
    assert main(["lora", "scale", "one", "-1", "--out", "minus", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 2
    for key, product in products(read_lora("minus")).items():
        assert torch.allclose(product, -wanted[key], atol=1e-6)
    Path("held").mkdir()
    Path("held/manifest.json").write_text('{"config": {}, "images": []}')
    for out, said in (("held", "holds a run"), ("both", "holds a LoRA already"), ("", "say where to write")):
        assert main(["lora", "mix", "one", "two", "--out", out]) == 2
        assert said in capsys.readouterr().err
    assert main(["lora", "info", "both", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["rank"], info["parts"], info["layers"]) == (5, ["attn2", "ff"], len(wanted))
    norm = sum((0.7 * wanted[key] - 0.3 * other[key]).square().sum().item() for key in wanted) ** 0.5
    assert info["norm"] == pytest.approx(norm, rel=1e-4)

    def drawn(out, *words):
        assert main(["generate", *PROMPT, "--steps", str(STEPS), "--eta", "0", "--quiet", "--out", out, *words]) == 0
        return picture(Path(out))

    base, full, stack = drawn("base"), drawn("full", "--lora", "one"), drawn("stack", "--lora", "one=0.7", "--lora", "two=-0.3")
    assert (base - full).abs().max() > 10
    assert torch.equal(drawn("zero", "--lora", "one=0"), base)
    assert (stack - drawn("mix", "--lora", "both")).abs().max() <= 1
    window = drawn("late", "--lora", "one", "--lora-steps", "2:")
    assert (window - base).abs().max() > 2 and (window - full).abs().max() > 2
    assert torch.equal(drawn("all", "--lora", "one", "--lora-steps", f"0:{STEPS}"), full)
    side = ["compare", *PROMPT, "--methods", "base", "--steps", str(STEPS), "--eta", "0", "--lora", "one", "--out", "side"]
    assert main([*side, "--quiet"]) == 0 and torch.equal(picture(Path("side/runs/base")), full)
    manifest = json.loads(Path("stack/manifest.json").read_text())
    assert manifest["config"]["lora"] == ["one=0.7", "two=-0.3"]
    assert all(len(sha) == 16 for sha in manifest["config"]["lora-sha256"])
    capsys.readouterr()
    save_lora(two, Path("one"))
    for words, said in (
        (["full", "--lora", "one"], "LoRA had other weights"),
        (["base", "--lora", "two"], "another lora"),
        (["new", "--lora", "nowhere"], "no LoRA at 'nowhere'"),
        (["new", "--lora", "one", "--lora-steps", "9:"], "begins after the last"),
    ):
        assert main(["generate", *PROMPT, "--steps", str(STEPS), "--eta", "0", "--quiet", "--out", *words]) == 2
        assert said in capsys.readouterr().err
