"""Learned rewards equal an independent computation of their published formula, on small networks in the files' real format."""

import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from support.learned import (
    BERT,
    MERGES,
    NAMES,
    blip_state,
    clip_vocabulary,
    head_state,
    open_clip_state,
    save_classifier,
    save_owlvit,
    tiny,
)
from tilting.errors import TiltingError
from tilting.rewards import REWARDS, build, classify, detect
from tilting.rewards.spec import parse_spec, parse_specs

PROMPTS = ["a fox", "An owl, a cat", "the red fox on a cat"]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
every = pytest.mark.parametrize("name", [name for name in NAMES if REWARDS[name].differentiable])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("learned")


@pytest.fixture(scope="module")
def rewards(folder):
    return {name: tiny(name, folder) for name in NAMES}


def images(b=3, h=32, w=32, seed=3):
    """Soft pictures of whole bytes."""
    small = torch.rand(b, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(small, (h, w), mode="bilinear") * 255).round() / 255


def pictures(x):
    return [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in x]


def test_aesthetic_is_one_affine_map_of_the_unit_embedding(rewards, folder):
    from transformers import CLIPImageProcessor, CLIPModel

    x, at = images(), folder / "tiny-aesthetic"
    model = CLIPModel.from_pretrained(at).eval()
    pixels = CLIPImageProcessor.from_pretrained(at)(pictures(x), return_tensors="pt").pixel_values
    with torch.no_grad():
        e = model.visual_projection(model.vision_model(pixels).pooler_output).double()
    e = e / e.square().sum(-1, keepdim=True).sqrt()
    weight, bias, state = torch.eye(24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64), head_state(24)
    for place in (0, 2, 4, 6, 7):
        w, b = state[f"layers.{place}.weight"].double(), state[f"layers.{place}.bias"].double()
        weight, bias = w @ weight, w @ bias + b
    want = (e @ weight.T + bias)[:, 0]
    torch.testing.assert_close(rewards["aesthetic"](x, PROMPTS), want.float(), atol=1e-5, rtol=0)
    assert want.std() > 1e-3 and torch.equal(rewards["aesthetic"](x, PROMPTS), rewards["aesthetic"](x, PROMPTS[::-1]))


def test_pickscore_is_the_official_score_without_its_scale(rewards, folder):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    x, at = images(), folder / "tiny-pickscore"
    model, tokenizer = CLIPModel.from_pretrained(at).eval(), CLIPTokenizer.from_pretrained(at)
    pixels = CLIPImageProcessor.from_pretrained(at)(pictures(x), return_tensors="pt").pixel_values
    words = tokenizer(PROMPTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=pixels, **words)
        official = torch.stack([model.logit_scale.exp() * (out.text_embeds[i] @ out.image_embeds[i]) for i in range(3)])
    torch.testing.assert_close(rewards["pickscore"](x, PROMPTS), official / model.logit_scale.exp().detach(), atol=1e-5, rtol=0)


def spell(prompt):
    """CLIP's byte-pair numbers of a prompt of plain letters, padded with zeros as open_clip pads."""
    words, found = clip_vocabulary(), []
    for word in re.findall(r"[a-z]+|[^\sa-z]+", prompt.lower()):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in MERGES:
            k = 0
            while k < len(pieces) - 1:
                if (pieces[k], pieces[k + 1]) == pair:
                    pieces[k : k + 2] = ["".join(pair)]
                k += 1
        found += [words[piece] for piece in pieces]
    found = [words["<|startoftext|>"], *found, words["<|endoftext|>"]]
    return torch.tensor(found + [0] * (77 - len(found)))


def test_hpsv2_is_open_clips_cosine(rewards):
    state = {k: v.float() for k, v in open_clip_state().items()}

    def norm(place, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{place}.weight"], state[f"{place}.bias"])

    def tower(place, x, heads, mask=None):
        for n in range(2):
            at = f"{place}.resblocks.{n}"
            attention = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True).eval()
            attention.load_state_dict(
                {k.removeprefix(f"{at}.attn."): v for k, v in state.items() if k.startswith(f"{at}.attn.")}
            )
            y = norm(f"{at}.ln_1", x)
            x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
            y = F.linear(norm(f"{at}.ln_2", x), state[f"{at}.mlp.c_fc.weight"], state[f"{at}.mlp.c_fc.bias"])
            x = x + F.linear(F.gelu(y), state[f"{at}.mlp.c_proj.weight"], state[f"{at}.mlp.c_proj.bias"])
        return x

    x, ids = images(h=28, w=28), torch.stack([spell(p) for p in PROMPTS])
    with torch.no_grad():
        h = F.conv2d((x - MEAN) / STD, state["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
        h = torch.cat([state["visual.class_embedding"].expand(3, 1, -1), h], 1) + state["visual.positional_embedding"]
        h = norm("visual.ln_post", tower("visual.transformer", norm("visual.ln_pre", h), 2)[:, 0]) @ state["visual.proj"]
        t = state["token_embedding.weight"][ids] + state["positional_embedding"]
        t = norm("ln_final", tower("transformer", t, 2, torch.full((77, 77), float("-inf")).triu(1)))
        t = t[torch.arange(3), ids.argmax(-1)] @ state["text_projection"]
        want = (h * t).sum(-1) / (h.norm(dim=-1) * t.norm(dim=-1))
    torch.testing.assert_close(rewards["hpsv2"](x, PROMPTS), want, atol=1e-5, rtol=0)
    assert want.std() > 0.01
    long = "a fox " * 60
    torch.testing.assert_close(rewards["hpsv2"](x[:1], [long]), rewards["hpsv2"](x[:1], [long + "and an owl"]))


def blip_score(state, x, ids, mask):
    """ImageReward in plain torch: BLIP's image encoder, BERT with cross-attention, the head, the normalisation."""

    def lin(place, v):
        return F.linear(v, state[f"{place}.weight"], state[f"{place}.bias"])

    def norm(place, v, eps):
        return F.layer_norm(v, v.shape[-1:], state[f"{place}.weight"], state[f"{place}.bias"], eps)

    def heads(v):
        return v.unflatten(-1, (-1, 64)).transpose(1, 2)

    def attend(q, k, v, hidden=None):
        scores = heads(q) @ heads(k).transpose(-1, -2) / 8
        scores = scores if hidden is None else scores.masked_fill(hidden, float("-inf"))
        return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)

    at = "blip.visual_encoder"
    h = F.conv2d((x - MEAN) / STD, state[f"{at}.patch_embed.proj.weight"], state[f"{at}.patch_embed.proj.bias"], stride=16)
    h = torch.cat([state[f"{at}.cls_token"].expand(len(x), -1, -1), h.flatten(2).transpose(1, 2)], 1) + state[f"{at}.pos_embed"]
    for n in range(2):
        block = f"{at}.blocks.{n}"
        q, k, v = lin(f"{block}.attn.qkv", norm(f"{block}.norm1", h, 1e-6)).chunk(3, -1)
        h = h + lin(f"{block}.attn.proj", attend(q, k, v))
        h = h + lin(f"{block}.mlp.fc2", F.gelu(lin(f"{block}.mlp.fc1", norm(f"{block}.norm2", h, 1e-6))))
    h = norm(f"{at}.norm", h, 1e-6)
    at, hidden = "blip.text_encoder", (mask == 0)[:, None, None]
    t = (
        state[f"{at}.embeddings.word_embeddings.weight"][ids]
        + state[f"{at}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    )
    t = norm(f"{at}.embeddings.LayerNorm", t, 1e-12)
    for n in range(2):
        for kind, seen, out in (("attention", None, hidden), ("crossattention", h, None)):
            part = f"{at}.encoder.layer.{n}.{kind}"
            seen = t if seen is None else seen
            q, k, v = lin(f"{part}.self.query", t), lin(f"{part}.self.key", seen), lin(f"{part}.self.value", seen)
            t = norm(f"{part}.output.LayerNorm", t + lin(f"{part}.output.dense", attend(q, k, v, out)), 1e-12)
        part = f"{at}.encoder.layer.{n}"
        y = lin(f"{part}.output.dense", F.gelu(lin(f"{part}.intermediate.dense", t)))
        t = norm(f"{part}.output.LayerNorm", t + y, 1e-12)
    s = t[:, 0]
    for place in (0, 2, 4, 6, 7):
        s = lin(f"mlp.layers.{place}", s)
    return (s[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_blip_with_its_head(rewards):
    x, ids, mask = images(seed=5), torch.zeros(3, 35, dtype=torch.long), torch.zeros(3, 35, dtype=torch.long)
    prompts = ["A foxs on the cat", "an owl, [ENC] grapes [DEC]", "purple"]
    pieces = [["a", "fox", "##s", "on", "the", "cat"], ["an", "owl", ",", "[ENC]", "grapes", "[DEC]"], ["[UNK]"]]
    known = [*BERT, "[DEC]", "[ENC]"]
    for row, words in enumerate(pieces):
        line = [known.index(word) for word in ("[CLS]", *words, "[SEP]")]
        ids[row, : len(line)], mask[row, : len(line)] = torch.tensor(line), 1
    want = blip_score(blip_state(), x, ids, mask)
    torch.testing.assert_close(rewards["imagereward"](x, prompts), want, atol=1e-5, rtol=1e-5)
    assert want.std() > 1e-2
    long = "a fox " * 40
    torch.testing.assert_close(rewards["imagereward"](x[:1], [long]), rewards["imagereward"](x[:1], [long + "and an owl"]))


@pytest.mark.parametrize(("score", "area", "threshold"), [(1.0, 0.0, 0.0), (0.5, 3.0, 0.0), (0.0, 1.0, 0.3)])
def test_detect_sums_scores_and_areas(tmp_path, score, area, threshold):
    from transformers import AutoTokenizer, OwlViTForObjectDetection, OwlViTImageProcessor

    at, x, queries = save_owlvit(tmp_path / "owl"), images(2, 48, 48), ["cat", "red fox"]
    model = OwlViTForObjectDetection.from_pretrained(at).eval()
    words = AutoTokenizer.from_pretrained(at)(queries * 2, padding="max_length", max_length=16, return_tensors="pt")
    pixels = OwlViTImageProcessor.from_pretrained(at)(pictures(x), return_tensors="pt").pixel_values
    with torch.no_grad():
        out = model(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels)
    want = [0.0, 0.0]
    for row in range(2):
        for patch in range(9):
            _, _, w, h = out.pred_boxes[row, patch].tolist()
            for logit, sign in zip(out.logits[row, patch].tolist(), (1, -1), strict=True):
                s = float(torch.tensor(logit).sigmoid())
                want[row] += sign * s * (score + area * w * h) * (s >= threshold)
    got = detect("cat,-red fox", at, score=score, area=area, threshold=threshold)(x, ["", "any"])
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=1e-5)
    removed = detect("-cat", at)(x, ["", ""])
    torch.testing.assert_close(removed, -detect(["cat"], at)(x, ["", ""]))
    assert removed.max() < 0


@pytest.mark.parametrize("several", [False, True])
def test_classify_is_the_log_probability(tmp_path, several):
    from transformers import AutoConfig, ViTForImageClassification, ViTImageProcessor

    at, x = save_classifier(tmp_path / "vit"), images()
    if several:
        config = AutoConfig.from_pretrained(at)
        config.problem_type = "multi_label_classification"
        config.save_pretrained(at)
    model = ViTForImageClassification.from_pretrained(at).eval()
    with torch.no_grad():
        logits = model(ViTImageProcessor.from_pretrained(at)(pictures(x), return_tensors="pt").pixel_values).logits.double()
    odds = logits.exp()
    want = (odds / (1 + odds) if several else odds / odds.sum(-1, keepdim=True)).log().float()
    for label, k in (("owl", 1), ("Tabby", 0), ("red fox, vulpes vulpes", 2), ("vulpes vulpes", 2), (3, 3), ("3", 3)):
        torch.testing.assert_close(classify(at, label)(x, PROMPTS), want[:, k], atol=1e-5, rtol=1e-5)
    for wrong, says in (("owll", "did you mean 'owl'"), ("4", "labels 0 to 3, not 4")):
        with pytest.raises(TiltingError, match=says):
            classify(at, wrong)
    spec = f"classify:{at}#drawing"
    torch.testing.assert_close(build([parse_spec(spec)])(x, PROMPTS), want[:, 3], atol=1e-5, rtol=1e-5)


@every
def test_rows_are_free_of_their_batch_and_sizes_may_differ(rewards, name):
    for size in ((64, 64), (90, 64), (1, 40), (33, 32)):
        x = images(3, *size)
        alone = torch.cat([rewards[name](x[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(rewards[name](x, PROMPTS), alone, atol=1e-5, rtol=1e-5)
    assert rewards[name](torch.zeros(0, 3, 8, 8, requires_grad=True), []).shape == (0,)
    for module in (rewards[name].embedder, rewards[name].embedder.train()):
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in module.parameters()) and not module.training


def test_specs_build_them(rewards, folder):
    x = images()
    specs = parse_specs([f"aesthetic:{folder}/tiny-aesthetic=1", f"pickscore:{folder}/tiny-pickscore=150"])
    total = build(specs)(x, PROMPTS)
    torch.testing.assert_close(total, rewards["aesthetic"](x, PROMPTS) + 150 * rewards["pickscore"](x, PROMPTS))
    for text, says in [
        ("detect", "needs more after a colon"),
        ("detect:cat,,dog", "is empty"),
        ("detect:-", "is empty"),
        ("detect:cat,-cat", "twice"),
        ("classify:folder", "classify:FOLDER#LABEL"),
        ("classify:#3", "classify:FOLDER#LABEL"),
    ]:
        with pytest.raises(TiltingError, match=says):
            parse_spec(text)
