"""pocket-judge: a convolutional classifier with its own seed and its own split, never used as a reward."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from common import train
from data import ASSETS, WORK, Drawings, write_words
from tilting.features.judge import JudgeNet, save_judge

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 1800


def split(drawings: Drawings) -> torch.Tensor:
    """The judge's own 90 % of the combinations (the other 10 % measure it)."""
    keep = torch.rand(drawings.trained.shape, generator=torch.Generator().manual_seed(31)) > 0.1
    keep[:, :, 0] = True
    return keep


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(3)
    drawings = Drawings(write_words(ASSETS / "pocket"))
    w = drawings.words
    net = JudgeNet({"concept": len(w.concepts), "style": len(w.styles), "background": len(w.colours)})
    net = net.to(memory_format=torch.channels_last)
    allowed = split(drawings)

    def loss_of(step: int):
        batch = drawings.batch(96, seed=3, step=step, allowed=allowed, white=0.15)
        gen = torch.Generator().manual_seed(step)
        # Its own augmentations: it must read the blurred and noisy pictures a small model makes.
        x = batch.images
        soft = F.interpolate(F.avg_pool2d(x, 2), (64, 64), mode="bilinear")
        x = torch.lerp(x, soft, torch.rand(96, 1, 1, 1, generator=gen) * 1.2)
        x = (x + 0.06 * torch.rand(96, 1, 1, 1, generator=gen) * torch.randn(x.shape, generator=gen)).clamp(0, 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = {k: v.float() for k, v in net(x.contiguous(memory_format=torch.channels_last)).items()}
        labels = {"concept": batch.concept, "style": batch.style, "background": batch.background}
        losses = {k: F.cross_entropy(logits[k], labels[k], label_smoothing=0.05) for k in labels}
        hits = {f"acc_{k}": (logits[k].argmax(1) == labels[k]).float().mean().item() for k in labels}
        return losses["concept"] + losses["style"] + 0.5 * losses["background"], hits

    train(net, loss_of, WORK / "judge.pt", STEPS, peak=3e-3, weight_decay=0.05)
    save_judge(net, ASSETS / "pocket-judge")


if __name__ == "__main__":
    main()
