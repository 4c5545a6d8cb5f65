"""pocket-clip: a small CLIP over drawings and what can truly be said of them, and a linear style head.

Every picture meets the batch's prompts. A prompt is a positive of every picture of which it is true ("a fox" is true of
a fox in any style), and each picture also brings one false prompt (its own with the style, colour or concept changed).
loss = InfoNCE with many positives: -log Σ_true exp(s) / Σ_all exp(s), both ways, + cross-entropy of the style head.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from common import train
from data import ASSETS, WORK, Batch, Drawings, write_words
from tilting.models.words import write_prompt
from tokenizer import LENGTH

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2400
BATCH = 128


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def split(drawings: Drawings) -> torch.Tensor:
    """The 90 % of combinations that the CLIP sees, drawn with its own seed (the other 10 % measure it)."""
    keep = torch.rand(drawings.trained.shape, generator=torch.Generator().manual_seed(11)) > 0.1
    keep[:, :, 0] = True
    return keep


def statements(batch: Batch, drawings: Drawings, gen: torch.Generator) -> tuple[list[str], torch.Tensor]:
    """2 b prompts, the second half changed in one word, and the truth (b, 2 b) of each prompt of each picture."""
    w, b = drawings.words, len(batch.sprite)
    say = torch.rand(b, 3, generator=gen)
    concept, texts = batch.sprite.clone(), []  # identity: the concept, or the drawing itself outside the vocabulary
    inside = batch.concept >= 0
    concept[inside] = batch.concept[inside] - 10_000
    style = torch.where((say[:, 0] < 0.6) & inside, batch.style, -1)
    colour = torch.where((say[:, 1] < 0.6) & inside, batch.background, -1)
    other_style = (batch.style + torch.randint(1, 3, (b,), generator=gen)) % 3
    other_colour = (batch.background + torch.randint(1, len(w.colours), (b,), generator=gen)) % len(w.colours)
    change = say[:, 2] < 0.5
    style2 = torch.where(change & inside, other_style, style)
    colour2 = torch.where(~change & inside, other_colour, colour)
    for s_, k_ in ((style, colour), (style2, colour2)):
        for i in range(b):
            s, k = int(s_[i]), int(k_[i])
            if inside[i]:
                texts.append(write_prompt(w, int(batch.concept[i]), s if s >= 0 else None, k if k >= 0 else None))
            else:
                texts.append(drawings.names[int(batch.sprite[i])])
    c, s, k = torch.cat([concept, concept]), torch.cat([style, style2]), torch.cat([colour, colour2])
    same = concept[:, None] == c[None]
    truth = (
        same & ((s[None] < 0) | (batch.style[:, None] == s[None])) & ((k[None] < 0) | (batch.background[:, None] == k[None]))
    )
    return texts, truth


def many_positives(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """-log Σ_true exp / Σ_all exp over rows that have a positive."""
    good = scores.masked_fill(~truth, -1e4).logsumexp(1)
    return (scores.logsumexp(1) - good)[truth.any(1)].mean()


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(1)
    folder = ASSETS / "pocket-clip"
    drawings = Drawings(write_words(ASSETS / "pocket"))
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "pocket" / "tokenizer")
    model = nn.ModuleDict({"clip": build(tokenizer), "style": nn.Linear(128, 3)})
    model["clip"].set_attn_implementation("eager")  # twice as fast as the fused kernel for 65 tokens on a CPU
    allowed = split(drawings)
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (processor.image_mean, processor.image_std))

    def loss_of(step: int):
        batch = drawings.batch(BATCH, seed=2, step=step, known=0.9, allowed=allowed, white=0.15)
        gen = torch.Generator().manual_seed(step)
        texts, truth = statements(batch, drawings, gen)
        unique, index = torch.unique(tokenizer(texts, padding=True, return_tensors="pt").input_ids, dim=0, return_inverse=True)
        x = (
            batch.images + 0.04 * torch.rand(BATCH, 1, 1, 1, generator=gen) * torch.randn(batch.images.shape, generator=gen)
        ).clamp(0, 1)
        clip = model["clip"]
        with torch.autocast("cpu", torch.bfloat16):
            out = clip(input_ids=unique, pixel_values=(x - mean) / std)
            styles = model["style"](out.image_embeds * 10).float()
        image, text = out.image_embeds.float(), out.text_embeds.float()[index]
        scores = clip.logit_scale.exp().clamp(max=60) * image @ text.T
        loss = many_positives(scores, truth) + many_positives(scores.T, truth.T)
        known = batch.concept >= 0
        style = F.cross_entropy(styles[known], batch.style[known])
        hit = truth.gather(1, scores.argmax(1, keepdim=True)).float().mean()
        acc = (styles.argmax(1) == batch.style)[known].float().mean()
        return loss + style, {
            "loss": loss.item(),
            "hit": hit.item(),
            "style": acc.item(),
            "scale": clip.logit_scale.exp().item(),
        }

    train(model, loss_of, WORK / "clip.pt", STEPS, peak=2e-3, weight_decay=0.05)
    model["clip"].half().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    head = {k: v.half() for k, v in model["style"].state_dict().items()}
    save_file(head, folder / "style.safetensors")
    (folder / "style.json").write_text(json.dumps({"styles": list(drawings.words.styles), "scale": 10}) + "\n")


if __name__ == "__main__":
    main()
