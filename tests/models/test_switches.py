"""How a model is run: each switch is on where it was asked for, keeps the picture that it says it keeps, or is refused."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import tilting as tl
from support import today
from tilting.cli import main
from tilting.config.finetune import resolve_finetune
from tilting.config.generate import resolve
from tilting.errors import TiltingError
from tilting.models.placement import NEUTRAL, SWITCHES, Switches, bytes_of
from tilting.models.switches import Idle, idle, switched
from tilting.objectives import OBJECTIVES

SIZE = today.TOLD["flux"]
BASE = {"steps": 2, "seed": 3}


def bright(images, prompts):
    return images.mean((1, 2, 3))


bright.differentiable = True


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return str(today.write("flux", tmp_path_factory.mktemp("flux") / "folder"))


def picture(model, method="base", **more):
    return tl.generate(model, ["a fox"], bright, method, **BASE, **more).images


@pytest.mark.parametrize("given", [{"vae_slicing": True, "channels_last": True, "attention": "native"}, {"offload": "parts"}])
def test_neutral_switches_keep_the_picture(given):
    assert {name.replace("_", "-") for name in given} <= set(NEUTRAL)
    codex = tl.presets.codex(particles=2, block=1, gradient_block=1, window=(1, 0))
    assert (picture(tl.load(**given), codex) - picture(tl.load(), codex)).abs().max() < 1e-3


def test_slicing_decodes_one_image_at_a_time_and_tiling_in_tiles():
    model = tl.load(vae_slicing=True, vae_tiling=True)
    assert model.vae.use_slicing and model.vae.use_tiling
    sizes = []
    model.vae.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    model.decode(torch.zeros(3, *model.latent_shape))
    assert sizes == [1, 1, 1]


def test_parts_have_precisions_of_their_own():
    model = tl.load(precision="bf16", precision_vae="bf16")
    assert (model.dtype, model.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    found = tl.generate(model, ["a fox"], bright, tl.presets.codex(particles=2), steps=3)
    assert found.images.dtype == torch.float32
    plain = tl.generate(tl.load(), ["a fox"], bright, tl.presets.codex(particles=2), steps=3)
    assert 0 < (found.images - plain.images).abs().mean() < 0.1
    assert tl.load(precision="bf16").vae.dtype == torch.float32


def test_an_autoencoder_that_overflows_is_refused_before_a_weight_is_read(tmp_path, capsys):
    folder = today.write("sdxl", tmp_path / "xl")
    for part in folder.rglob("*.safetensors"):
        part.write_bytes(b"no weights")
    words = ["generate", "a fox", "--model", str(folder), "--precision-vae", "fp16", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "overflows in fp16, as its force_upcast says: give --precision-vae bf16" in capsys.readouterr().err
    resolve({"prompts": ["a fox"], "model": str(folder), "precision-vae": "bf16"})
    resolve({"prompts": ["a fox"], "precision-vae": "fp16"})  # pocket's says so too, as every autoencoder's does by itself


def test_a_network_without_repeated_blocks_is_compiled_once_for_all_evaluations(flux, monkeypatch):
    """Its forward, and not what an entry puts in the module's place, which differs from call to call."""
    made, asked = [], []

    def compiled(forward):
        made.append(forward)
        return lambda *given, **more: asked.append(1) or forward(*given, **more)

    model = tl.load(flux, **SIZE)
    monkeypatch.setattr(type(model.backbone), "_repeated_blocks", [])
    monkeypatch.setattr("tilting.models.switches.torch.compile", compiled)
    model = switched(model, Switches(compile=True), None, None)
    assert made and model.backbone._compiled_call_impl is None
    tl.generate(model, "a fox", steps=2, progress=False)
    assert len(made) == 1 and len(asked) >= 2


def test_blocks_are_compiled_and_attention_has_its_back_end(flux):
    model = tl.load(flux, **SIZE, compile=True, attention="_native_math")
    blocks = [*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks) and model.transformer._compiled_call_impl is None
    assert blocks[0].attn.processor._attention_backend.value == "_native_math"
    with pytest.raises(TiltingError, match="attention cannot be 'natve'; did you mean 'native'"):
        tl.load(flux, **SIZE, attention="natve")
    with pytest.raises(TiltingError, match="attention 'flash' is not for"):
        tl.load(flux, **SIZE, attention="flash")


def test_a_first_block_cache_passes_over_blocks_within_a_group_and_is_refused_where_it_would_mix(flux):
    eager, lazy = tl.load(flux, **SIZE), tl.load(flux, **SIZE, cache=1.0)
    asked = []
    lazy.transformer.single_transformer_blocks[0].norm.register_forward_hook(lambda *_: asked.append(1))
    drawn = [tl.generate(model, ["a fox", "an owl"], steps=4, batch_size=1).images for model in (eager, lazy)]
    assert len(asked) == 2  # the first step of each image, and no other
    assert (drawn[0] - drawn[1]).abs().max() > 0
    first = [tl.generate(model, ["a fox"], steps=1).images for model in (eager, lazy)]
    assert torch.equal(*first)
    with pytest.raises(TiltingError, match="which a first-block cache would mix"):
        picture(lazy, "code")
    with pytest.raises(TiltingError, match="give --batch-size 4 at least"):
        picture(lazy, tl.presets.bon(particles=4), batch_size=2)
    with pytest.raises(TiltingError, match="the unet of 'pocket' has no first-block cache"):
        resolve({"prompts": ["a fox"], "cache": 0.05})
    with pytest.raises(TiltingError, match="no gradient of its own"):
        resolve_finetune({"prompts": ["a fox"], "model": flux, "reward": ["clip"], "cache": 0.05})


def test_text_encoders_wait_and_the_network_is_refused_its_gradient(flux):
    waiting, plain = tl.load(flux, **SIZE, offload="network"), tl.load(flux, **SIZE)
    assert torch.allclose(picture(waiting), picture(plain), atol=1e-6)
    moved = []
    encoder = waiting.text_encoder_2
    encoder.to = lambda where: moved.append(str(where)) or encoder
    waiting.texts(["an owl"], 1.0)
    assert moved == ["cpu", "cpu"]  # fetched to where the model is, and sent back
    with pytest.raises(TiltingError, match="needs the whole network at once: use --offload parts"):
        picture(waiting, tl.presets.dps())
    with pytest.raises(TiltingError, match="use --offload text"):
        resolve_finetune({"prompts": ["a fox"], "offload": "network"})
    with pytest.raises(TiltingError, match="doctor --size` says what fits"):
        resolve_finetune({"prompts": ["a fox"], "memory": "12GB"})


def test_what_looks_is_away_while_the_network_runs():
    """On a machine of one device, by what is moved when: fetched by a look, away before the next evaluation, its graph past."""
    model, log = tl.load(offload="parts"), []
    reward = tl.rewards.clip()
    wait = idle(model, reward, "cpu")
    assert isinstance(wait, Idle) and len(wait.networks) >= 2 and idle(tl.load(), reward, "cpu") is None

    class Part(torch.nn.Module):
        def to(self, where):
            log.append(where)
            return self

    wait = Idle([Part()], "here")
    denoise = wait.before(lambda x, t, rows: log.append("network") or x)
    for _ in range(2):
        denoise(None, None, None)
        denoise(None, None, None)
        wait.fetch()
        wait.fetch()
    assert log == ["cpu", "network", "network", "here"] * 2


QUANTIZED = {
    "4bit": ("bitsandbytes", "Params4bit", 0.5),
    "8bit": ("bitsandbytes", "Int8Params", 0.5),
    "int8": ("torchao", "Int8Tensor", 0.05),
}


@pytest.mark.parametrize("bits", QUANTIZED)
def test_a_quantized_base_is_near_and_carries_gradients(flux, bits):
    library, kind, most = QUANTIZED[bits]
    pytest.importorskip(library)
    model, plain = tl.load(flux, **SIZE, quantize=bits), tl.load(flux, **SIZE)
    linear = {type(part.weight).__name__ for part in model.transformer.modules() if hasattr(part, "in_features")}
    assert linear == {kind} and model.dtype == torch.float32
    x, t, rows = torch.randn(1, *model.latent_shape), model.schedule.grid(2)[0], torch.zeros(1, dtype=torch.long)
    slopes = []
    for one in (model, plain):
        y = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(one.denoiser(["a fox"], 3.5)(y, t, rows).x0.square().sum(), y)[0])
    assert 0 < (slopes[0] - slopes[1]).norm() < most * slopes[1].norm()


@pytest.fixture(scope="module")
def full(flux):
    """Plain diffusers' pipeline of the same folder, in float32."""
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(flux)


@pytest.fixture(scope="module")
def bases(flux):
    """The model on a base, by its bits."""

    @cache
    def of(bits):
        pytest.importorskip(QUANTIZED[bits][0])
        return tl.load(flux, **SIZE, quantize=bits)

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits"),
    [*((name, "4bit") for name in OBJECTIVES if not OBJECTIVES[name].takes_teacher), ("draft-lv", "int8"), ("grpo", "int8")],
)
def test_every_objective_trains_a_lora_on_a_base_of_few_bits_that_the_full_one_loads(bases, full, name, bits, tmp_path):
    model, pipe = bases(bits), full
    tuned = tl.finetune(model, ["a fox"], bright, name, steps=2, train_steps=1, rank=1, lr=1e-2)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in tuned.lora.values())
    assert any(value.abs().max() > 0 for key, value in tuned.lora.items() if "lora_B" in key or "lora.up" in key)
    tuned.save(tmp_path)
    pipe.load_lora_weights(tmp_path)
    held = {key: value for key, value in pipe.transformer.state_dict().items() if ".lora_B." in key}
    assert len(held) == len(tuned.lora) // 2 and any(value.abs().max() > 0 for value in held.values())
    pipe.unload_lora_weights()


def test_every_switch_is_an_option_of_generate_and_finetune_and_unset_by_itself():
    assert Switches.of(resolve({"prompts": ["a fox"]})) == Switches.of(resolve_finetune({"prompts": ["a fox"]})) == Switches()
    assert {name.replace("_", "-") for name in SWITCHES} >= set(NEUTRAL)
    assert not {name.replace("_", "-") for name in SWITCHES} & set(resolve_finetune({"prompts": ["a fox"]}).mapping())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((one, "did you mean '12GB'?") for one in ("12GG", "12", "12 G", "12TB", "12GBs")),
        ("12mbit", "'12MB'"),
        *((one, f"such as 12GB, not {one!r}") for one in ("GB", "0GB", "-1GB", "1e1GB", "12,5GB", "nanGB", "")),
    ],
)
def test_a_mistyped_size_is_one_sentence(text, said, capsys):
    assert main(["generate", "a fox", "--memory", text, "--out", "x"]) == 2
    assert said in capsys.readouterr().err
    assert (bytes_of("12GB"), bytes_of("1.5 gib"), bytes_of("80 MB")) == (12 * 10**9, 3 * 2**29, 8 * 10**7)
