"""The model card, from evaluation.json and the training logs alone: src/tilting/assets/pocket/README.md and a curve plot."""

from __future__ import annotations

import json

from data import ASSETS, HERE, log_of
from tilting.models.words import load_words


def percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def curves() -> None:
    """card/curves.png: the loss that each part printed, smoothed over 50 steps, against its steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 2.8))
    shown = {"vae": "psnr", "unet": "mse", "clip": "hit", "judge": "acc_concept"}
    for axis, (part, key) in zip(axes, shown.items(), strict=True):
        log = log_of(part)
        if log.exists():
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            axis.plot([r["step"] for r in rows], [r[key] for r in rows])
        axis.set_title(f"{part}: {key}")
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(HERE / "card" / "curves.png", dpi=80)


def main() -> None:
    e = json.loads((HERE / "evaluation.json").read_text())
    known, new, real = e["generated_known"], e["generated_new_combinations"], e["judge_on_real_held_out"]
    clip, p = e["clip_on_real_held_out"], e["parameters"]
    rows = [
        ("concept, first of 444", "concept_top1"),
        ("concept, in the top 5", "concept_top5"),
        ("style word obeyed", "style_top1"),
        ("background colour obeyed", "background_top1"),
    ]
    table = "\n".join(f"| {label} | {percent(real[k])} | {percent(known[k])} | {percent(new[k])} |" for label, k in rows)
    words = json.loads((ASSETS / "pocket" / "words.json").read_text())
    unseen = len(words["held_out"]) / (len(words["concepts"]) * len(words["styles"]) * len(words["colours"]))
    logged = e.get("training", {})
    numbers = {part: {k: v for k, v in t["last"].items() if k not in ("step", "seconds")} for part, t in logged.items()}
    steps = "\n".join(
        f"| {part} | {t['last']['step']} | {t['minutes']:.0f} | `{json.dumps(numbers[part])}` |" for part, t in logged.items()
    )
    text = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# pocket

A small Stable Diffusion, trained from nothing on two CPU cores, that draws 64x64 pictures of 444 concepts in three drawing
styles (noto, twemoji, fluent) over twelve background colours, and knows {len(load_words().aliases)} everyday words for them.
It exists so that steering can be tried, tested and measured without downloads: its likeness to large models is in its parts
and its mathematics, not in its pictures. `python training/pocket/evaluate.py` makes this card.

- `StableDiffusionPipeline.from_pretrained(<this folder>)` loads it. AutoencoderKL f8 with 12 latent channels ({p["vae"]:,}
  parameters), CLIP text encoder of 2 layers ({p["text_encoder"]:,}), UNet ({p["unet"]:,}), DDIM scheduler with zero terminal
  SNR, trailing spacing and v-prediction. fp16 safetensors; all assets together {e["bytes"] / 1e6:.1f} MB.
- Prompts: "a fox", "a fox, noto style", "a fox on a blue background", "a fox on a blue background, noto style".
  `words.json` lists the vocabulary and the {percent(unseen)} of (concept, style, colour) triples that training never showed.
- Beside it: `pocket-clip`, a CLIP ({p["clip"]:,} parameters) with a style head, the reward; and `pocket-judge`, a
  convolutional
  classifier ({p["judge"]:,}) with another seed and split, the judge. The judge is never a reward.

## Data and licences

Renderings of Noto Emoji (Apache-2.0), Twemoji (CC BY 4.0) and Fluent Emoji Flat (MIT), by way of the npm packages
`@iconify-json/*`; see NOTICE. The recipe is `training/pocket` (`make pocket`).

## Figures

Printed by `python training/pocket/evaluate.py` (DDIM 50 steps, CFG 4, {200} prompts each). "Real" is the judge on real
drawings in combinations it was not trained on: the ceiling of the other two columns.

| judged by pocket-judge | real drawings | generated, known combinations | generated, new combinations |
| --- | --- | --- | --- |
{table}

- Among the 200 concepts that were asked for, the judge names the right one first in {percent(known["concept_top1_among"])}
  and in its top 5
  in {percent(known["concept_top5_among"])}. Of the aliases ("a bunny"), first of 444 in
  {percent(e["aliases"]["concept_top1"])}.
- Autoencoder: {e["vae"]["unseen"]["psnr_mean_db"]:.2f} dB mean PSNR on {e["vae"]["unseen"]["pictures"]} pictures of
  drawings it never saw
  ({e["vae"]["unseen"]["psnr_p10_db"]:.2f} dB at the 10th percentile); {e["vae"]["known"]["psnr_mean_db"]:.2f} dB on the
  known ones.
- pocket-clip on real drawings in combinations it did not train on: the right name first of 444 in {percent(clip["top1"])}, in
  the top 5 in {percent(clip["top5"])}. Rank correlation with the judge over generated pictures:
  {e["clip_judge_rank_correlation"]:.3f}.
- Diversity, mean absolute pixel difference: two seeds of one prompt {e["diversity"]["generated_pair_l1"]:.3f}; two training
  pictures of the concept {e["diversity"]["training_pair_l1"]:.3f}. The nearest of four training views of every drawing is
  {e["nearest_training_view"]["l1"]:.3f} away, and shows the concept asked for in
  {percent(e["nearest_training_view"]["is_its_concept"])} (`card/nearest.png`).
- {e["seconds_per_image_50_steps"]:.2f} s per picture (50 steps, batches of 48, two cores).

## Training

| part | steps | minutes | last 50 steps |
| --- | --- | --- | --- |
{steps}

Curves and sample sheets: `training/pocket/card/`. Every batch is a function of (seed, step).

## Limits

Simple shapes are drawn well, intricate ones melt; a style word is obeyed less surely than a concept or a colour, and training
has not reached its end (see the curves). Words outside the vocabulary mean little, and it knows nothing but these drawings.
Emoji of people are left out. Not for any use where the content of a picture matters.
"""
    (ASSETS / "pocket" / "README.md").write_text(text)
    curves()


if __name__ == "__main__":
    main()
