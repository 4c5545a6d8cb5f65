"""LoRA files in the names that people's programs give them draw what plain diffusers draws from them, text encoders included;
what we write, any program reads at the same scale. Pipelines of random weights: Stable Diffusion, SDXL, SD3, FLUX."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file

import tilting as tl
from support import tiny_pipelines
from support.small import write_small
from support.today import write
from tilting.cli import main
from tilting.errors import TiltingError
from tilting.models.attach import attach_all
from tilting.models.lora import add_lora, lora_state, parts
from tilting.models.lora_file import ADAPTER_CONFIG, ADAPTER_FILE, FILE, parse_lora
from tilting.models.lora_names import OTHERS, check_format
from tilting.models.lora_weights import mix, read_lora, save_lora

PROMPT, STEPS, CFG = ["a fox"], 4, 3.0
FAMILIES = ("sd", "sdxl", "sd3", "flux")
UNETS = FAMILIES[:2]
INPUTS = {"flux": {"height": 16, "width": 16, "max_sequence_length": 512}}
"""What the call of a family is told."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: write_small(root / name) if name == "sd" else write(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def models(places):
    return cache(lambda name: tl.load(str(places[name]), **INPUTS.get(name, {})))


@pytest.fixture(scope="module")
def pipes(places):
    @cache
    def pipe(name):
        found = DiffusionPipeline.from_pretrained(places[name], **({"safety_checker": None} if name == "sd" else {}))
        found.set_progress_bar_config(disable=True)
        return found

    return pipe


@pytest.fixture(scope="module")
def states(places):
    """A LoRA of each family whose B is not 0, text encoders with their own: by canonical names, each layer of rank 2."""

    @cache
    def state(name, seed=1, rank=2, text=True):
        model = tl.load(str(places[name]))
        for component, network in parts(model).items():
            if text or not component.startswith("text"):
                add_lora(network, rank, ("attn2", "ff", "attn1"), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        made = lora_state(model)
        size = {"sd": 0.4, "sdxl": 0.6, "sd3": 0.6, "flux": 0.6}[name]
        return {k: size * torch.randn(v.shape, generator=generator) if ".up." in k else v for k, v in made.items()}

    return state


def noise(model):
    return torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(5))


def ours(model, source=None, cfg=CFG):
    loras = [parse_lora(str(source))] if source is not None else []
    drawn = attach_all(model, loras, STEPS)
    return tl.generate(drawn, PROMPT, steps=STEPS, cfg=cfg, eta=0.0, latents=noise(model)).images


def theirs(pipe, name, model, source=None, **how):
    latents, more = noise(model), {}
    if name == "flux":
        latents = latents if latents.ndim == 3 else FluxPipeline._pack_latents(latents, *latents.shape)
        more = INPUTS["flux"]
    if name in UNETS:
        more = {"eta": 0.0}
    if source is not None:
        pipe.load_lora_weights(source, **how)
    made = pipe(PROMPT, latents=latents, num_inference_steps=STEPS, guidance_scale=CFG, output_type="pt", **more).images
    if source is not None:
        pipe.unload_lora_weights()
    return made


# Other people's names, written here by hand from the canonical ones

ALPHA = 1.0
"""Of rank 2: B counts by half, which a reader that leaves it out does not see."""


def sides(state):
    for key, value in state.items():
        component, _, rest = key.partition(".")
        layer, _, side = rest.partition(".lora.")
        yield component, layer, side.removesuffix(".weight"), value


def diffusers_names(state):
    return {f"{c}.{layer}.lora.{side}.weight": v for c, layer, side, v in sides(state) if not c.startswith("text")} | {
        f"{c}.{layer}.lora_linear_layer.{side}.weight": v for c, layer, side, v in sides(state) if c.startswith("text")
    }


def peft_names(state):
    return {f"{c}.{layer}.lora_{'A' if side == 'down' else 'B'}.weight": v for c, layer, side, v in sides(state)}


def adapter_names(state):
    return {f"{c}.{layer}.lora_{'A' if side == 'down' else 'B'}.default_0.weight": v for c, layer, side, v in sides(state)}


def base_model_names(state):
    return {f"{c}.base_model.model.{layer}.lora_{'A' if s == 'down' else 'B'}.weight": v for c, layer, s, v in sides(state)}


def comfy_names(state):
    out = {}
    for c, layer, side, v in sides(state):
        begins = f"{c}." if c.startswith("text") else "diffusion_model."
        out[f"{begins}{layer}.lora_{'A' if side == 'down' else 'B'}.weight"] = v
    return out


def processor_names(state):
    """diffusers of 2023: attention's LoRA in its processor, a text encoder's in names of its own."""
    out = {}
    for c, layer, side, v in sides(state):
        if c.startswith("text"):
            layer = re.sub(r"self_attn\.(q|k|v|out)_proj", r"self_attn.to_\1_lora", layer)
            out[f"{c}.{layer}.{side}.weight"] = v
        elif ".attn" in layer:
            layer = re.sub(r"\.(to_q|to_k|to_v|to_out)(\.0)?$", r".processor.\1_lora", layer)
            out[f"{c}.{layer}.{side}.weight"] = v
        else:
            out[f"{c}.{layer}.lora.{side}.weight"] = v
    return out


def kohya_names(state, te="lora_te_"):
    out = {}
    for c, layer, side, v in sides(state):
        begins = {"unet": "lora_unet_", "text_encoder": te, "text_encoder_2": "lora_te2_"}[c]
        out[f"{begins}{layer.replace('.', '_')}.lora_{side}.weight"] = v
        out[f"{begins}{layer.replace('.', '_')}.alpha"] = torch.tensor(ALPHA)
    return out


def stability_names(state):
    """kohya's of SDXL: blocks by the numbers of Stability's own UNet; here with one layer to a block of two."""
    out = {}
    for key, value in kohya_names(state, "lora_te1_").items():
        key = re.sub(
            r"unet_down_blocks_(\d)_attentions_(\d)", lambda m: f"unet_input_blocks_{1 + 2 * int(m[1]) + int(m[2])}_1", key
        )
        key = re.sub(r"unet_mid_block_attentions_0", "unet_middle_block_1", key)
        key = re.sub(r"unet_up_blocks_(\d)_attentions_(\d)", lambda m: f"unet_output_blocks_{2 * int(m[1]) + int(m[2])}_1", key)
        out[key] = value
    return out


def flux_names(state, begins="lora_unet_", dots=False):
    """kohya's of FLUX, and ComfyUI's: the double blocks' own names, q, k and v in one weight; without its single blocks, whose
    widths the converter knows of real ones alone, and text encoders."""
    names = {
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
    }
    out = {}
    for c, layer, side, v in sides(state):
        block, _, rest = layer.removeprefix("transformer_blocks.").partition(".")
        if c == "text_encoder":
            out[f"lora_te1_{layer.replace('.', '_')}.lora_{side}.weight"] = v
            out[f"lora_te1_{layer.replace('.', '_')}.alpha"] = torch.tensor(ALPHA)
        elif rest in names and layer.startswith("transformer_blocks"):
            name = f"double_blocks.{block}.{names[rest]}"
            name = name if dots else name.replace(".", "_")
            out[f"{begins}{name}.lora_{side}.weight"] = v
            out[f"{begins}{name}.alpha"] = torch.tensor(ALPHA)
    return out


READS = {
    "diffusers": (FAMILIES, diffusers_names),
    "peft": (FAMILIES, peft_names),
    "processor": (UNETS, processor_names),
    "kohya": (("sd",), kohya_names),
    "kohya-sdxl": (("sdxl",), lambda state: kohya_names(state, "lora_te1_")),
    "stability-sdxl": (("sdxl",), stability_names),
    "kohya-flux": (("flux",), flux_names),
    "comfy-flux": (("flux",), lambda state: flux_names(without_text(state), "diffusion_model.", True)),
}
"""Naming -> (families, how to write it): what plain diffusers reads."""
SAME = {"adapter": (FAMILIES, adapter_names), "base_model": (FAMILIES, base_model_names), "comfy": (FAMILIES, comfy_names)}
"""What plain diffusers does not read, or not of all of these; it means what the same weights under its own names mean."""


def without_text(state):
    return {key: value for key, value in state.items() if not key.startswith("text")}


def cases(table):
    return [(name, family) for name, (families, _) in table.items() for family in families]


@pytest.mark.parametrize(("naming", "family"), cases(READS))
def test_a_file_of_any_naming_draws_what_plain_diffusers_draws_from_it(models, pipes, states, tmp_path, naming, family):
    model, pipe = models(family), pipes(family)
    save_file({k: v.contiguous() for k, v in READS[naming][1](states(family)).items()}, tmp_path / FILE)
    base, want = ours(model), theirs(pipe, family, model, str(tmp_path))
    assert (base - theirs(pipe, family, model)).abs().max() < 1e-5
    assert (ours(model, tmp_path) - want).abs().max() < 1e-5
    assert (base - want).abs().max() > 0.01
    assert (ours(model) - base).abs().max() == 0  # nothing is left of it


@pytest.mark.parametrize(("naming", "family"), cases(SAME))
def test_names_that_diffusers_does_not_know_mean_what_its_own_mean(models, pipes, states, tmp_path, naming, family):
    model, state = models(family), states(family)
    save_file(diffusers_names(state), tmp_path / FILE)
    want = theirs(pipes(family), family, model, str(tmp_path))
    save_file(SAME[naming][1](state), tmp_path / "other.safetensors")
    assert (ours(model, tmp_path / "other.safetensors") - want).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_encoders_layers_count(models, states, tmp_path, family):
    save_lora(states(family), tmp_path / "all")
    save_lora(without_text(states(family)), tmp_path / "some")
    model = models(family)
    assert (ours(model, tmp_path / "all") - ours(model, tmp_path / "some")).abs().max() > 1e-3
    found = read_lora(tmp_path / "all")
    assert found.keys() == states(family).keys() and all(torch.equal(found[k], v) for k, v in states(family).items())


def test_a_file_of_peft_draws_what_peft_draws(models, states, pipes, tmp_path):
    """An adapter's folder, its alpha and its patterns in the config beside it."""
    state = without_text(states("sd"))
    layers = sorted({layer for _, layer, _, _ in sides(state)})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": layers, "alpha_pattern": {"to_k": 0.5}}
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config))
    save_file({f"base_model.model.{k.partition('.')[2]}": v for k, v in peft_names(state).items()}, tmp_path / ADAPTER_FILE)
    pipe = pipes("sd")
    plain = pipe.unet
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path)
    want = theirs(pipe, "sd", models("sd"))
    pipe.unet = pipe.unet.unload()
    assert pipe.unet is plain
    assert (ours(models("sd"), tmp_path) - want).abs().max() < 1e-5
    assert (ours(models("sd")) - want).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("into", ["diffusers", "peft"])
def test_a_fused_weight_of_flux_is_written_as_the_three_that_it_is(tmp_path, into, dtype):
    """kohya has q, k and v in one, whose down matrix the three then share: in a file it stands three times."""
    torch.manual_seed(0)
    name, wide = "lora_unet_double_blocks_0_img_attn", 3072
    state = {f"{name}_{part}.lora_down.weight": torch.randn(2, wide) for part in ("qkv", "proj")}
    state |= {f"{name}_qkv.lora_up.weight": torch.randn(3 * wide, 2), f"{name}_proj.lora_up.weight": torch.randn(wide, 2)}
    state = {key: value.to(dtype) for key, value in state.items()}
    save_file(
        {**state, **{f"{name}_{part}.alpha": torch.tensor(2.0) for part in ("qkv", "proj")}}, tmp_path / "kohya.safetensors"
    )
    words = ["lora", "export", str(tmp_path / "kohya.safetensors"), "--format", into, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    found = read_lora(tmp_path / "out")
    for i, layer in enumerate(("to_q", "to_k", "to_v")):
        down, up = (
            found[f"transformer.transformer_blocks.0.attn.{layer}.lora.{side}.weight"].float() for side in ("down", "up")
        )
        assert torch.equal(down, state[f"{name}_qkv.lora_down.weight"].float())
        assert torch.equal(up, state[f"{name}_qkv.lora_up.weight"].float()[i * wide : (i + 1) * wide])


@pytest.mark.parametrize("part", OTHERS)
def test_a_format_that_is_not_read_is_named(tmp_path, part, states):
    name = part if part.startswith("text_enc") else f"lora_unet_a.{part.strip('.$')}"
    save_file({**kohya_names(without_text(states("sd"))), name: torch.ones(2, 2)}, tmp_path / FILE)
    with pytest.raises(TiltingError, match=re.escape(OTHERS[part])):
        read_lora(tmp_path)


def test_a_prefix_that_a_format_is_called_by_is_no_such_format(states):
    key = "model.diffusion_model.input_blocks.1.1.proj_in"
    check_format({f"{key}.lora_down.weight": torch.ones(2, 4), f"{key}.lora_up.weight": torch.ones(4, 2)})
    with pytest.raises(TiltingError, match="a difference of whole weights"):
        check_format({f"{key}.diff_b": torch.ones(2)})


def test_layers_that_no_converter_knows_are_named_and_not_left_out(models, states, tmp_path):
    strange = {"lora_unet_double_blocks_0_img_other.lora_down.weight": torch.ones(2, 4)}
    strange |= {"lora_unet_double_blocks_0_img_other.lora_up.weight": torch.ones(4, 2)}
    save_file({**flux_names(states("flux")), **strange}, tmp_path / FILE)
    with pytest.raises(TiltingError, match="img_other"):
        read_lora(tmp_path)
    save_file({"lora_other_x.lora_down.weight": torch.ones(2, 4)}, tmp_path / FILE)
    with pytest.raises(TiltingError, match="lora_other_x"):
        read_lora(tmp_path)
    save_lora(states("sdxl"), tmp_path / "sdxl")
    with pytest.raises(TiltingError, match="of another model"):
        attach_all(models("sd"), [parse_lora(str(tmp_path / "sdxl"))], STEPS)


def test_a_window_of_steps_is_one_of_the_text_encoders_too(models, states, tmp_path):
    """On in all steps it is the LoRA, on in none it is the base model, though prompts are encoded before the first."""
    save_lora(states("sd"), tmp_path)
    model, spec = models("sd"), parse_lora(str(tmp_path))
    base, whole = ours(model), ours(model, tmp_path)
    for window, want in (((0, None), whole), ((STEPS, None), base)):
        drawn = attach_all(model, [spec], STEPS, window)
        found = tl.generate(drawn, PROMPT, steps=STEPS, cfg=CFG, eta=0.0, latents=noise(model)).images
        assert torch.equal(found, want)
    attach_all(model, [], STEPS)


# What we write


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mix_of_ranks_and_parts_is_read_by_others_at_the_same_scale(models, pipes, states, tmp_path, family):
    """Of one rank throughout, so that no reader has to guess: whatever alpha it takes, rank's or the first layer's."""
    one, two = states(family), without_text(states(family, seed=2, rank=3))
    some = {key: value for key, value in two.items() if not re.search(r"\.ff|proj_mlp|proj_out", key)}
    mixed = mix([one, some], [1.0, 0.5])
    assert len({len(v) for k, v in mixed.items() if ".down." in k}) > 1
    save_lora(mixed, tmp_path)
    file = load_file(tmp_path / FILE)
    for component in {key.partition(".")[0] for key in mixed}:
        ranks = {len(v) for k, v in file.items() if k.startswith(f"{component}.") and re.search(r"\.down\.weight|lora_A", k)}
        assert len(ranks) == 1
    model = models(family)
    want = theirs(pipes(family), family, model, str(tmp_path))
    assert (ours(model, tmp_path) - want).abs().max() < 1e-5


@pytest.mark.parametrize(("form", "family"), [*(("kohya", f) for f in UNETS), *(("diffusers", f) for f in FAMILIES)])
def test_an_export_is_drawn_from_by_plain_diffusers_and_read_back(models, pipes, states, tmp_path, form, family, capsys):
    save_lora(states(family), tmp_path / "lora")
    words = ["lora", "export", str(tmp_path / "lora"), "--format", form, "--out", str(tmp_path / form)]
    assert main(words) == 0
    (file,) = (tmp_path / form).glob("*.safetensors")
    if form == "kohya":
        keys = list(load_file(file))
        assert all(key.startswith(("lora_unet_", "lora_te")) and "." in key for key in keys)
        assert sum(key.endswith(".alpha") for key in keys) * 3 == len(keys)
    model = models(family)
    want = theirs(pipes(family), family, model, str(file.parent), weight_name=file.name)
    assert (ours(model, tmp_path / "lora") - want).abs().max() < 1e-5
    assert (ours(model, tmp_path / form) - want).abs().max() < 1e-5
    assert main(words) == 2  # there is one already
    assert "holds weights already" in capsys.readouterr().err


def test_an_export_for_peft_is_an_adapter_and_what_a_format_cannot_hold_is_refused(models, pipes, states, tmp_path, capsys):
    save_lora(without_text(states("sd")), tmp_path / "unet")
    save_lora(states("sd"), tmp_path / "all")
    save_lora(states("sd3"), tmp_path / "sd3")
    assert main(["lora", "export", str(tmp_path / "unet"), "--format", "peft", "--out", str(tmp_path / "peft")]) == 0
    pipe = pipes("sd")
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path / "peft")
    want = theirs(pipe, "sd", models("sd"))
    pipe.unet = pipe.unet.unload()
    for place in ("unet", "peft"):
        assert (ours(models("sd"), tmp_path / place) - want).abs().max() < 1e-5
    for place, form, said in (("all", "peft", "of one network"), ("sd3", "kohya", "--format diffusers")):
        assert main(["lora", "export", str(tmp_path / place), "--format", form, "--out", str(tmp_path / "no")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert main(["lora", "export", str(tmp_path / "unet"), "--format", "a1111", "--out", str(tmp_path / "no")]) == 2


# Files in the names of a model's original code, which its own pipeline converts


def original(names, begins="diffusion_model.", flat=False):
    """A layer's name -> that of its original code; in kohya's way with underscores, and an alpha of half the rank."""

    def write(state):
        out = {}
        for _, layer, side, v in sides(state):
            for ours_, its in names:
                layer = re.sub(ours_, its, layer)
            layer = begins + (layer.replace(".", "_") if flat else layer)
            out[f"{layer}.lora_{side}.weight" if flat else f"{layer}.lora_{'A' if side == 'down' else 'B'}.weight"] = v
            out |= {f"{layer}.alpha": torch.tensor(ALPHA)} if flat else {}
        return out

    return write


WAN = [(r"attn1\.", "self_attn."), (r"attn2\.", "cross_attn."), (r"to_out\.0", "o"), (r"to_(q|k|v)", r"\1")]
WAN += [(r"ffn\.net\.0\.proj", "ffn.0"), (r"ffn\.net\.2", "ffn.2")]
ORIGINAL = {
    "wan": ("wan", original(WAN)),
    "wan-kohya": ("wan", original(WAN, "lora_unet_", True)),
    "qwen-kohya": ("qwen", original([], "lora_unet_", True)),
    "z-image-kohya": ("z_image", original([], "lora_unet_", True)),
    "z-image-comfy": ("z_image", original([])),
    "ltx-comfy": ("ltx", original([])),
    "hidream-comfy": ("hidream", original([])),
}


@pytest.mark.parametrize("naming", ORIGINAL)
def test_a_file_in_the_names_of_a_models_original_code_adds_what_diffusers_adds(tmp_path, naming):
    name, written = ORIGINAL[naming]
    pipe, told = tiny_pipelines.make(name)
    add_lora(pipe.transformer, 2, ("attn2", "ff", "attn1"), "made")
    state = {k: torch.randn(v.shape) for k, v in lora_state(pipe.transformer, "made").items()}
    pipe.transformer.delete_adapters("made")
    file = written(state)
    save_file({k: v.contiguous() for k, v in file.items()}, tmp_path / FILE)

    def added(adapter):
        layers = [(n, m) for n, m in pipe.transformer.named_modules() if adapter in getattr(m, "lora_A", {})]
        return {n: m.scaling[adapter] * m.lora_B[adapter].weight @ m.lora_A[adapter].weight for n, m in layers}

    attach_all(tl.load(pipe, **told), [parse_lora(str(tmp_path))], STEPS)
    found = added("stacked0")
    pipe.load_lora_weights(str(tmp_path), adapter_name="theirs")
    want = added("theirs")
    assert len(found) == len(state) / 2 and found.keys() == want.keys()
    assert all((found[n] - want[n]).abs().max() < 1e-5 * want[n].abs().max() for n in want)
    strange = {re.sub(r"\d", "77", k, count=1): v.clone() for k, v in list(file.items())[:3]}
    save_file({**{k: v.contiguous() for k, v in file.items()}, **strange}, tmp_path / FILE)
    with pytest.raises(TiltingError, match=r"77|names for in a WanPipeline"):
        attach_all(tl.load(pipe, **told), [parse_lora(str(tmp_path))], STEPS)


@pytest.mark.parametrize("naming", ORIGINAL)
def test_tools_convert_a_file_of_original_code_by_the_model_that_it_is_of(tmp_path, capsys, naming):
    """Without one they say so, where its names are not diffusers' own."""
    name, written = ORIGINAL[naming]
    pipe, _ = tiny_pipelines.make(name)
    add_lora(pipe.transformer, 2, ("attn2", "ff", "attn1"), "made")
    state = {k: torch.randn(v.shape) for k, v in lora_state(pipe.transformer, "made").items()}
    pipe.transformer.delete_adapters("made")
    pipe.save_pretrained(tmp_path / "model")
    save_file({k: v.contiguous() for k, v in written(state).items()}, tmp_path / FILE)
    file, of = str(tmp_path / FILE), ("--model", str(tmp_path / "model"))
    for words in (["info", file], ["mix", file, "--out", "no"], ["export", file, "--format", "diffusers", "--out", "no"]):
        if not naming.endswith("comfy"):
            assert main(["lora", *words]) == 2 and "say of what model it is, by --model" in capsys.readouterr().err
    assert main(["lora", "info", file, *of, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == len(state) // 2
    assert main(["lora", "export", file, "--format", "diffusers", "--out", str(tmp_path / "out"), *of]) == 0
    assert main(["lora", "mix", f"{file}=0.5", f"{file}=0.5", "--out", str(tmp_path / "mixed"), *of]) == 0
    half = 1.0 if "kohya" not in naming else ALPHA / 2
    for place in ("out", "mixed"):
        found = read_lora(tmp_path / place)
        assert found.keys() == state.keys()
        for down in (k for k in state if k.endswith("down.weight")):
            up = down.replace("down", "up")
            want = half * state[up] @ state[down]
            assert (found[up] @ found[down] - want).abs().max() < 1e-5 * want.abs().max()


def test_tools_refuse_a_file_of_another_model(tmp_path, states, places, capsys):
    save_lora(states("sd3"), tmp_path / "sd3")
    assert main(["lora", "info", str(tmp_path / "sd3"), "--model", str(places["flux"])]) == 2
    assert "has not all of its layers" in capsys.readouterr().err
    assert main(["lora", "info", str(tmp_path / "sd3"), "--model", str(places["sd3"])]) == 0
