"""A checkpoint in one file, in the layout of Stable Diffusion's authors, is what its folder is; and what it may not be."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tilting as tl
from support.tiny_pipelines import sd, unet
from tilting.errors import TiltingError
from tilting.models.names import find_model
from tilting.runs.run_folder import files

PROMPTS = ["a fox on a blue background", "an owl"]
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
RESNET |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0"}
OUTSIDE |= {"conv_norm_out": "out.0", "conv_out": "out.2"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _resnet(end):
    for ours, theirs in RESNET.items():
        end = re.sub(rf"^{ours}\b", theirs, end)
    return end


def unet_key(key, last):
    """CompVis' name of a UNet's tensor, of two blocks with one layer each."""
    for ours, theirs in OUTSIDE.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    side, *rest = key.split(".")
    if side == "mid_block":
        kind, i, end = rest[0], int(rest[1]), ".".join(rest[2:])
        return f"middle_block.{2 * i}.{_resnet(end)}" if kind == "resnets" else f"middle_block.1.{end}"
    block, kind, i, end = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{2 * (block + 1)}.0.op.{end.removeprefix('conv.')}"
        n = 1 + 2 * block + i
        return f"input_blocks.{n}.0.{_resnet(end)}" if kind == "resnets" else f"input_blocks.{n}.1.{end}"
    n = 2 * block + (1 if kind == "upsamplers" else i)
    if kind == "upsamplers":
        return f"output_blocks.{n}.{2 if block in last else 1}.{end}"
    return f"output_blocks.{n}.0.{_resnet(end)}" if kind == "resnets" else f"output_blocks.{n}.1.{end}"


def vae_key(key, blocks=2):
    """CompVis' name of an autoencoder's tensor."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        head, end = key.split("mid_block.attentions.0.")
        for ours, theirs in ATTENTION.items():
            end = re.sub(rf"^{ours}\b", theirs, end)
        key = f"{head}mid.attn_1.{end}"
    return key


def as_one_file(pipe, file):
    """A Stable Diffusion 1.x in the layout of its authors: a UNet, an autoencoder, CLIP's text model."""
    last = [i for i, block in enumerate(pipe.unet.up_blocks) if hasattr(block, "attentions")]
    state = {f"model.diffusion_model.{unet_key(k, last)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        linear = "attentions" in key and value.ndim == 2
        state[f"first_stage_model.{vae_key(key)}"] = value[:, :, None, None] if linear else value
    for key, value in pipe.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    total = sum(len(p.state_dict()) for p in (pipe.unet, pipe.vae, pipe.text_encoder))
    assert len(state) == total
    save_file({k: v.contiguous().clone() for k, v in state.items()}, file)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(a folder, its weights in one file, its configuration alone)."""
    place = tmp_path_factory.mktemp("one")
    pipe = sd()
    pipe.save_pretrained(place / "folder")
    as_one_file(pipe, place / "model.safetensors")
    shutil.copytree(place / "folder", place / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return place / "folder", place / "model.safetensors", place / "config"


def drawn(model):
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return tl.generate(model, PROMPTS, steps=3, cfg=4.0, eta=0.0, latents=latents).images


def test_a_model_in_one_file_draws_what_its_folder_draws(both):
    folder, file, config = both
    want = drawn(tl.load(folder, device="cpu"))
    for model in (tl.load(f"{file}={config}", device="cpu"), tl.load(file, device="cpu", model_config=config)):
        assert type(model.pipe).__name__ == "StableDiffusionPipeline"
        assert (drawn(model) - want).abs().max() < 1e-5
    assert want.std() > 0.03
    told = tl.load(f"{file}={config}", device="cpu", guidance_rescale=0.0)
    assert (drawn(told) - want).abs().max() < 2e-5


def test_half_precision_is_of_network_and_text_encoder_alone(both):
    _, file, config = both
    model = tl.load(f"{file}={config}", device="cpu", precision="bf16")
    kinds = [{p.dtype for p in part.parameters()} for part in (model.unet, model.text_encoder, model.vae)]
    assert kinds == [{torch.bfloat16}, {torch.bfloat16}, {torch.float32}]


def test_its_digest_is_of_the_file(both):
    from tilting.models.families import weights_of

    _, file, config = both
    assert files.digest(weights_of(find_model(f"{file}={config}"))) == files.digest(file) is not None


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("model.diffusion_model.middle_block.1.norm.weight", "has not all the tensors of the parts"),
        ("first_stage_model.decoder.conv_in.bias", "has not all the tensors of the parts"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "has not the whole text_encoder"),
        ("first_stage_model.", "Failed to load AutoencoderKL"),
        ("cond_stage_model.", "Failed to load CLIPTextModel"),
    ],
)
def test_a_file_without_a_tensor_or_a_part_is_refused(both, lost, said, tmp_path):
    _, file, config = both
    save_file({k: v for k, v in load_file(file).items() if not k.startswith(lost)}, tmp_path / "less.safetensors")
    with pytest.raises(TiltingError, match=said):
        tl.load(tmp_path / "less.safetensors", device="cpu", model_config=config)


def test_a_file_of_another_size_is_refused(both, tmp_path):
    _, file, config = both
    shutil.copytree(config, tmp_path / "other")
    unet(cross=16).save_config(tmp_path / "other" / "unet")
    with pytest.raises(TiltingError, match="cannot load the model"):
        tl.load(file, device="cpu", model_config=tmp_path / "other")


def test_what_is_no_model_in_one_file_is_refused_before_a_weight_is_read(both, tmp_path):
    _, file, config = both
    for name in ("model.ckpt", "model.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(TiltingError, match=r"from \.safetensors only"):
            find_model(str(tmp_path / name))
    with pytest.raises(TiltingError, match="there is no file"):
        find_model(str(tmp_path / "none.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(TiltingError, match="is no safetensors file"):
        find_model(f"{tmp_path / 'cut.safetensors'}={config}")
    with pytest.raises(TiltingError, match=r"is no diffusers folder: it has no model_index\.json"):
        find_model(f"{file}={tmp_path}")
    save_file({"unet.a.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(TiltingError, match="a LoRA, which is given by --lora"):
        find_model(str(tmp_path / "lora.safetensors"))
    with pytest.raises(TiltingError, match=r"holds weights alone.*as .*model\.safetensors=FOLDER"):
        find_model(str(file))
