"""Measure the assets and write the model card: every number on the card is printed by this script.

python evaluate.py            # all figures -> evaluation.json, card pictures, src/tilting/assets/pocket/README.md
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from data import ASSETS, HERE, Drawings, log_of
from tilting.models.words import article, load_words, write_prompt

torch.set_num_threads(2)
STYLE_PROMPTS = 200
SEED = 20_26


def picture(images: torch.Tensor, columns: int, path: Path, scale: int = 2) -> None:
    """Tile images (n, 3, h, w) in [0, 1] row by row into a PNG."""
    from PIL import Image

    n, _, h, w = images.shape
    rows = -(-n // columns)
    tiles = torch.ones(rows * columns, 3, h, w)
    tiles[:n] = images
    sheet = tiles.reshape(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    array = (sheet * 255).round().byte().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).resize((columns * w * scale, rows * h * scale), Image.Resampling.LANCZOS).save(path, optimize=True)


def measure_vae(model, drawings: Drawings) -> dict:
    """PSNR of reconstructions: drawings that the autoencoder never saw, and fresh jitter of the known ones."""
    gen = torch.Generator().manual_seed(91)
    sprite = drawings.unseen[torch.randperm(len(drawings.unseen), generator=gen)[:256]]
    unseen = drawings.compose(sprite, drawings.backgrounds(sprite, gen, drawings.trained, 0.25), gen).images
    out = {}
    for name, images in (("unseen", unseen), ("known", drawings.batch(256, seed=91, step=0).images)):
        with torch.no_grad():
            again = torch.cat([model.decode(model.encode(x)) for x in images.split(64)])
        psnr = -10 * (images - again).square().mean((1, 2, 3)).log10()
        out[name] = {"psnr_mean_db": psnr.mean().item(), "psnr_p10_db": psnr.quantile(0.1).item(), "pictures": len(psnr)}
        if name == "unseen":
            picture(torch.stack([images[:24], again[:24]], 1).flatten(0, 1), 12, HERE / "card" / "vae.png")
    return out


def draw_prompts(model, prompts: list[str], seed: int = SEED, steps: int = 50, cfg: float = 4.0) -> torch.Tensor:
    from tilting.generation.api import generate

    return generate(model, prompts, steps=steps, cfg=cfg, eta=0.0, seed=seed, batch_size=48).images


def measure_speed(model) -> float:
    """Seconds per picture of 50 steps, in one batch of 48, after a warm-up."""
    draw_prompts(model, ["a fox"], steps=2)
    begun = time.perf_counter()
    draw_prompts(model, ["a fox"] * 48)
    return (time.perf_counter() - begun) / 48


def judged(net, images: torch.Tensor, labels: dict[str, torch.Tensor], among: torch.Tensor | None = None) -> dict:
    """What the judge says of images: shares of labels found; concepts also ``among`` a list of candidates."""
    with torch.no_grad():
        logits = net(images)
    out = {}
    if among is not None:
        rank = among[logits["concept"][:, among].argsort(1, descending=True)]
        out["concept_top1_among"] = (rank[:, 0] == labels["concept"]).float().mean().item()
        out["concept_top5_among"] = (rank[:, :5] == labels["concept"][:, None]).any(1).float().mean().item()
    for name, label in labels.items():
        keep = label >= 0
        if keep.any():
            rank = logits[name][keep].argsort(1, descending=True)
            out[f"{name}_top1"] = (rank[:, 0] == label[keep]).float().mean().item()
            if name == "concept":
                out["concept_top5"] = (rank[:, :5] == label[keep, None]).any(1).float().mean().item()
    return out


def main() -> None:
    from tilting.features.judge import load_judge
    from tilting.models import load
    from tilting.rewards import clip as clip_reward

    words = load_words()
    drawings, model, net = Drawings(words), load("pocket"), load_judge(ASSETS / "pocket-judge")
    gen = torch.Generator().manual_seed(SEED)
    out: dict = {"vae": measure_vae(model, drawings)}

    # The judge's own ceiling: real drawings with fresh jitter, in combinations it did not train on, and in all.
    from train_judge import split as judge_split

    real = drawings.batch(512, seed=93, step=1, allowed=~judge_split(drawings) & torch.ones_like(drawings.trained), white=0.0)
    labels = {"concept": real.concept, "style": real.style, "background": real.background}
    out["judge_on_real_held_out"] = judged(net, real.images, labels)

    # Known prompts, new combinations.
    c = torch.randperm(len(words.concepts), generator=gen)[:STYLE_PROMPTS]
    s = torch.randint(3, (STYLE_PROMPTS,), generator=gen)
    b = torch.randint(len(words.colours), (STYLE_PROMPTS,), generator=gen)
    for i in range(STYLE_PROMPTS):
        while (int(c[i]), int(s[i]), int(b[i])) in words.held_out:
            b[i] = (b[i] + 1) % len(words.colours)
    out["seconds_per_image_50_steps"] = measure_speed(model)
    images = draw_prompts(model, [write_prompt(words, int(i), int(j), int(k)) for i, j, k in zip(c, s, b, strict=True)])
    out["generated_known"] = judged(net, images, {"concept": c, "style": s, "background": b}, among=c)
    picture(images[:48], 12, HERE / "card" / "known.png")
    held = torch.tensor(sorted(words.held_out))
    held = held[torch.randperm(len(held), generator=gen)[:STYLE_PROMPTS]]
    new = draw_prompts(model, [write_prompt(words, *map(int, row)) for row in held])
    out["generated_new_combinations"] = judged(net, new, dict(zip(("concept", "style", "background"), held.T, strict=True)))
    picture(new[:48], 12, HERE / "card" / "new.png")
    pairs = list(words.aliases.items())
    others = [pairs[i] for i in torch.randperm(len(pairs), generator=gen)[:80].tolist()]
    pictures = draw_prompts(model, [article(alias) for alias, _ in others])
    out["aliases"] = judged(net, pictures, {"concept": torch.tensor([i for _, i in others])})

    # The nearest training view of each of 50 pictures, in pixels: is anything copied?
    views = torch.cat(
        [
            drawings.compose(torch.arange(drawings.known), torch.zeros(drawings.known, dtype=torch.long), gen).images
            for _ in range(4)
        ]
    )
    plain = draw_prompts(model, [write_prompt(words, int(i), int(j), 0) for i, j in zip(c[:50], s[:50], strict=True)], 3)
    far = torch.cdist(plain.flatten(1), views.flatten(1), p=1) / plain[0].numel()
    nearest = far.argmin(1)
    picture(torch.stack([plain, views[nearest]], 1).flatten(0, 1), 10, HERE / "card" / "nearest.png")
    mine = (nearest % drawings.known) // 3 == c[:50]
    out["nearest_training_view"] = {"l1": far.min(1).values.mean().item(), "is_its_concept": mine.float().mean().item()}

    # pocket-clip: retrieval among the names, on held-out combinations of real drawings, and agreement with the judge.
    from train_clip import split as clip_split

    reward = clip_reward()
    from tilting.features.clip import ClipEmbedder

    embedder = ClipEmbedder(ASSETS / "pocket-clip")
    unseen = drawings.batch(512, seed=95, step=2, allowed=~clip_split(drawings), white=0.0)
    names = embedder.text([write_prompt(words, i) for i in range(len(words.concepts))])
    with torch.no_grad():
        rank = (embedder.image(unseen.images) @ names.T).argsort(1, descending=True)
    out["clip_on_real_held_out"] = {
        "top1": (rank[:, 0] == unseen.concept).float().mean().item(),
        "top5": (rank[:, :5] == unseen.concept[:, None]).any(1).float().mean().item(),
    }
    prompts = [write_prompt(words, int(i), int(j), int(k)) for i, j, k in zip(c, s, b, strict=True)]
    with torch.no_grad():
        scores = reward(images, prompts)
        logits, asked = net(images), {"concept": c, "style": s, "background": b}
        log_p = sum(F.log_softmax(logits[k], 1).gather(1, v[:, None])[:, 0] for k, v in asked.items())
    ranks = torch.stack([scores.argsort().argsort().float(), log_p.argsort().argsort().float()])
    out["clip_judge_rank_correlation"] = torch.corrcoef(ranks)[0, 1].item()

    # Diversity: two seeds of a prompt against two training drawings of the concept, mean absolute difference of pixels.
    plain = [write_prompt(words, int(i)) for i in c[:60]]
    a, d = draw_prompts(model, plain, 1), draw_prompts(model, plain, 2)
    sprite = 3 * c[:60] + torch.randint(3, (60,), generator=gen)
    views = [drawings.compose(sprite, drawings.backgrounds(sprite, gen, drawings.trained, 0.3), gen).images for _ in range(2)]
    out["diversity"] = {
        "generated_pair_l1": (a - d).abs().mean().item(),
        "training_pair_l1": (views[0] - views[1]).abs().mean().item(),
    }
    out["parameters"] = {
        "unet": sum(p.numel() for p in model.unet.parameters()),
        "vae": sum(p.numel() for p in model.vae.parameters()),
        "text_encoder": sum(p.numel() for p in model.text_encoder.parameters()),
        "clip": sum(p.numel() for p in embedder.parameters()),
        "judge": sum(p.numel() for p in net.parameters()),
    }
    out["bytes"] = sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file())
    for part in ("vae", "unet", "clip", "judge"):
        log = log_of(part)
        if log.exists():
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            out.setdefault("training", {})[part] = {"last": rows[-1], "minutes": sum(r["seconds"] * 50 for r in rows) / 60}
    (HERE / "evaluation.json").write_text(json.dumps(out, indent=1) + "\n")
    json.dump(out, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
