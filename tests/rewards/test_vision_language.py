"""Rewards of 2024 to 2026 equal an independent computation of what was published, on small networks in real files."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from support.learned import QWEN_MARKS, head_state, hpsv3_state, mps_state, save_hpsv3, save_unifiedreward, save_vqascore, tiny
from tilting.errors import TiltingError
from tilting.features.mps import READ
from tilting.features.packaged import question
from tilting.features.qwen import fitting
from tilting.rewards import hpsv3, unifiedreward, vqascore

PROMPTS = ["a fox", "An owl, a cat", "the red fox on a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vision-language")


def images(b=3, h=40, w=56, seed=3):
    """Soft pictures of whole bytes."""
    small = torch.rand(b, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(small, (h, w), mode="bilinear") * 255).round() / 255


def pictures(x):
    return [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in x]


def test_aesthetic_v2_5_is_one_affine_map_of_siglips_unit_embedding(folder):
    from transformers import SiglipImageProcessor, SiglipModel

    reward, x, at = tiny("aesthetic-v2-5", folder), images(h=32, w=32), folder / "tiny-aesthetic-v2-5"
    pixels = SiglipImageProcessor.from_pretrained(at)(pictures(x), return_tensors="pt").pixel_values
    with torch.no_grad():
        e = SiglipModel.from_pretrained(at).eval().vision_model(pixel_values=pixels).pooler_output
    e = e / e.norm(dim=-1, keepdim=True)
    state = torch.load(at / "aesthetic_predictor_v2_5.pth", weights_only=True)
    for place in (0, 2, 4, 6, 8):
        e = e @ state[f"scoring_head.{place}.weight"].T + state[f"scoring_head.{place}.bias"]
    torch.testing.assert_close(reward(x, PROMPTS), e[:, 0], atol=1e-5, rtol=1e-4)


def attention(q, k, v, heads, mask=0.0):
    """Of many query heads over one head of keys and values, a head at a time."""
    out = []
    for head in range(heads):
        mine = q[:, head * 64 : (head + 1) * 64] * 64**-0.5
        out.append(((mine @ k.T) + mask).softmax(-1) @ v)
    return torch.cat(out, -1)


def turned(x):
    """Rotary positions by complex numbers: pairs are (i, i + 32)."""
    angle = torch.arange(len(x))[:, None] * 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    heads = [torch.complex(part[:, :32], part[:, 32:]) * torch.polar(torch.ones_like(angle), angle) for part in x.split(64, -1)]
    return torch.cat([torch.cat((h.real, h.imag), -1) for h in heads], -1)


def test_mps_reads_the_words_that_its_condition_is_about(folder, monkeypatch):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    assert READ == 0.3
    monkeypatch.setattr("tilting.features.mps.READ", 0.9)  # of which words of so small a network fall short
    reward, x, at = tiny("mps", folder), images(h=28, w=28), folder / "tiny-mps"
    state, clip = mps_state(), reward.embedder.clip
    plain = CLIPModel(clip.config).eval()
    plain.load_state_dict({key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")})
    tokenizer = AutoTokenizer.from_pretrained(at)
    process = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pixels = process(pictures(x), return_tensors="pt").pixel_values

    def words(text):
        ids = tokenizer(text, max_length=77, padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = plain.text_model(input_ids=ids)
        return plain.text_projection(out.last_hidden_state)[0], plain.text_projection(out.pooler_output)[0]

    def layer(key):
        return state[f"cross_model.layers.{key}"]

    def silu_gate(h):
        a, gate = h.chunk(2, -1)
        return F.silu(gate) * a

    wanted, read = [], []
    with torch.no_grad():
        about, _ = words(reward.embedder.condition)
        for i, prompt in enumerate(PROMPTS):
            text, whole = words(prompt)
            near = (about @ text.T).max(0).values
            mask = torch.where(near / near.max() > 0.9, 0.0, -math.inf)
            read.append((mask == 0).float().mean().item())
            h = plain.visual_projection(plain.vision_model(pixel_values=pixels[i : i + 1]).last_hidden_state)[0]
            for n in range(2):
                y = F.layer_norm(h, h.shape[-1:], layer(f"{n}.0.fn.norm.weight"))
                k, v = (text @ layer(f"{n}.0.fn.to_kv.weight").T).chunk(2, -1)
                seen = attention(y @ layer(f"{n}.0.fn.to_q.weight").T, k, v, 2, mask) @ layer(f"{n}.0.fn.to_out.weight").T
                h = h + seen + silu_gate(y @ layer(f"{n}.0.fn.ff.0.weight").T) @ layer(f"{n}.0.fn.ff.2.weight").T
                y = F.layer_norm(h, h.shape[-1:], layer(f"{n}.1.fn.norm.weight"))
                q, k, v, ff = (y @ layer(f"{n}.1.fn.fused_attn_ff_proj.weight").T).split((128, 64, 64, 192), -1)
                seen = attention(turned(q), turned(k), v, 2) @ layer(f"{n}.1.fn.attn_out.weight").T
                h = h + seen + silu_gate(ff) @ layer(f"{n}.1.fn.ff_out.1.weight").T
            wanted.append(F.cosine_similarity(h[0], whole, dim=0))
    assert min(read) < 1, "every word is read: the mask is not tried"
    torch.testing.assert_close(reward(x, PROMPTS), torch.stack(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "bounds"),
    [((40, 56), (784, 3136)), ((512, 512), (200704,) * 2), ((300, 900), (784, 3136)), ((9, 80), (3136, 50176))],
)
def test_pictures_are_resized_as_qwens_processor_does(size, bounds):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assert fitting(*size, 28, *bounds) == smart_resize(*size, 28, *bounds)


def processed(at, x, pixels=None):
    """Qwen2-VL's own processor on whole bytes: patches and grid."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    more = {} if pixels is None else {"size": {"shortest_edge": pixels, "longest_edge": pixels}}
    process = Qwen2VLImageProcessorPil.from_pretrained(at, **more)
    return process([np.array(p) for p in pictures(x)], return_tensors="pt")


def test_patches_are_the_processors(folder):
    reward, x = tiny("unifiedreward", folder), images(h=60, w=90)
    given = processed(folder / "tiny-unifiedreward", x)
    patches, grid = reward.embedder.patches(x)
    assert torch.equal(grid, given["image_grid_thw"])
    assert (patches - given["pixel_values"]).abs().max() < 2 / 255 / 0.26


def chat(text, count):
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * count
        + f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
def test_hpsv3_is_the_head_at_its_token_of_a_body_without_picture_positions(folder):
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    reward, x, at = tiny("hpsv3", folder), images(h=448, w=448), folder / "tiny-hpsv3"
    state = load_file(at / "HPSv3.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(at)
    tokenizer.add_special_tokens({"additional_special_tokens": [*QWEN_MARKS, "<|Reward|>"]})
    config = reward.embedder.body.config
    model = Qwen2VLForConditionalGeneration(config).eval()
    new = {key.replace("visual.", "model.visual."): value for key, value in state.items() if key.startswith("visual.")}
    new |= {key.replace("model.", "model.language_model."): v for key, v in state.items() if key.startswith("model.")}
    model.load_state_dict(new | {"lm_head.weight": state["lm_head.weight"]})
    given, wanted = processed(at, x, 200704), []
    assert given["image_grid_thw"].tolist() == [[1, 32, 32]] * 3
    with torch.no_grad():
        seen = model.model.visual(given["pixel_values"], grid_thw=given["image_grid_thw"]).pooler_output.split(256)
        for prompt, picture in zip(PROMPTS, seen, strict=True):
            ids = tokenizer(chat(question("hpsv3", prompt), 256), return_tensors="pt").input_ids
            embeds = model.get_input_embeddings()(ids)
            embeds[ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")] = picture
            hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
            (h,) = hidden[ids == tokenizer.convert_tokens_to_ids("<|Reward|>")]
            for place in (0, 3, 5):
                h = h @ state[f"rm_head.{place}.weight"].T + state[f"rm_head.{place}.bias"]
                h = h.relu() if place < 5 else h
            wanted.append(h[0])
    got = reward(x, PROMPTS)
    torch.testing.assert_close(got, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    assert got.std() > 0.005
    said = ["<|Reward|> a fox", "a fox<|image_pad|>", "<|im_end|> a fox"]
    assert torch.isfinite(reward(x, said)).all(), "a prompt writes a special token"


def test_unifiedreward_is_the_mean_of_the_ratings_that_may_be_written(folder):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    reward, x, at = tiny("unifiedreward", folder), images(h=28, w=56), folder / "tiny-unifiedreward"
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(at).eval(), AutoTokenizer.from_pretrained(at)
    given, wanted = processed(at, x), []
    count, digits = int(given["image_grid_thw"][0].prod()) // 4, tokenizer.convert_tokens_to_ids(list("0123456789"))

    @torch.no_grad()
    def after(i, text):
        ids = tokenizer(chat(question("unifiedreward", PROMPTS[i]), count) + text, return_tensors="pt").input_ids
        kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        pixels = given["pixel_values"].unflatten(0, (3, -1))[i]
        out = model(input_ids=ids, pixel_values=pixels, image_grid_thw=given["image_grid_thw"][:1], mm_token_type_ids=kinds)
        return out.logits[0, -1]

    for i in range(3):
        first = after(i, "Final Score: ")[digits[1:6]].softmax(-1)
        total = first[4] * 5
        for k in range(1, 5):
            dot = after(i, f"Final Score: {k}").softmax(-1)[tokenizer.convert_tokens_to_ids(".")]
            tenth = after(i, f"Final Score: {k}.")[digits].softmax(-1) @ torch.arange(10.0)
            total = total + first[k - 1] * (k + dot * tenth / 10)
        wanted.append(total)
    got = reward(x, PROMPTS)
    torch.testing.assert_close(got, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    assert got.min() >= 1 and got.max() <= 5 and got.std() > 0.01


@pytest.mark.parametrize("size", [(28, 28), (40, 56), (50, 33)])
def test_vqascore_is_the_likelihood_of_yes(folder, size):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    reward, x, at = tiny("vqascore", folder), images(h=size[0], w=size[1]), folder / "tiny-vqascore"
    state = load_file(at / "model.safetensors")
    model = T5ForConditionalGeneration(T5Config.from_pretrained(at)).eval()
    model.load_state_dict({key: value for key, value in state.items() if "projector" not in key})
    tower, process = CLIPVisionModel.from_pretrained(at / "tower").eval(), CLIPImageProcessor.from_pretrained(at / "tower")
    tokenizer, wanted = AutoTokenizer.from_pretrained(at), []
    colour = tuple(int(c * 255) for c in process.image_mean)
    squares = reward.embedder.squared(x)
    for mine, picture, prompt in zip(squares, pictures(x), PROMPTS, strict=True):
        side, (w, h) = max(picture.size), picture.size
        square = Image.new("RGB", (side, side), colour)
        square.paste(picture, ((side - w) // 2, (side - h) // 2))
        with torch.no_grad():
            assert np.array_equal(np.array(square), (mine * 255).round().byte().permute(1, 2, 0).numpy())
            pixels = reward.embedder.pixels(mine[None])  # whose parity with the processor is tested beside the others'
            assert (pixels - process(square, return_tensors="pt").pixel_values).abs().max() < 2 / 255 / 0.26
            e = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
            e = F.gelu(e @ state["mm_projector.0.weight"].T + state["mm_projector.0.bias"])
            e = e @ state["mm_projector.2.weight"].T + state["mm_projector.2.bias"]
            text = (
                "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
                "detailed, and polite answers to the user's questions. USER: <image>\nDoes this figure show \""
                + prompt
                + '"? Please answer yes or no. ASSISTANT: '
            )
            before, behind = (tokenizer(part, return_tensors="pt").input_ids for part in text.split("<image>"))
            embeds = torch.cat((model.shared(before), e, model.shared(behind)), 1)
            labels = tokenizer("Yes", return_tensors="pt").input_ids
            assert labels.tolist() == [[3, 1]]
            wanted.append((-model(inputs_embeds=embeds, labels=labels).loss).exp())
    torch.testing.assert_close(reward(x, PROMPTS), torch.stack(wanted), atol=0, rtol=1e-3)


@pytest.mark.parametrize("how", ["missing", "unexpected", "another shape"])
@pytest.mark.parametrize("part", ["rm_head.3.weight", "visual.merger.mlp.0.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path, how, part):
    save_hpsv3(tmp_path)
    state = hpsv3_state()
    value = state.pop(part)
    if how == "unexpected":
        state |= {part: value, part.replace("weight", "other"): value}
    elif how == "another shape":
        state[part] = value[:-1]
    save_file({key: v.contiguous().clone() for key, v in state.items()}, tmp_path / "HPSv3.safetensors")
    with pytest.raises(TiltingError, match=r"HPSv3\.safetensors") as caught:
        hpsv3(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_models_are_refused(tmp_path):
    save_vqascore(tmp_path / "t5")
    save_unifiedreward(tmp_path / "qwen")
    for make, says in [
        (lambda: unifiedreward(tmp_path / "t5"), "holds no Qwen2-VL that loads|not a Qwen2-VL"),
        (lambda: vqascore(tmp_path / "qwen"), "no CLIP-FlanT5"),
        (lambda: vqascore(tmp_path / "t5", tmp_path / "qwen"), "holds no CLIP|tokens of"),
        (lambda: hpsv3(tmp_path), r"has no HPSv3\.safetensors"),
    ]:
        with pytest.raises(TiltingError, match=says) as caught:
            make()
        assert "\n" not in str(caught.value)
    save_file(head_state(24), tmp_path / "HPSv3.safetensors")
    with pytest.raises(TiltingError, match=r"hpsv3|Qwen2-VL"):
        hpsv3(tmp_path / "HPSv3.safetensors", tmp_path / "qwen")
