"""The autoencoder: 64x64 pictures to 8x8x8 latents. L1 + multi-scale L1 + edges + a little KL.

loss = |x - x'| + 0.5 |pool(x) - pool(x')| + |∇x - ∇x'| + 1e-6·KL; no adversary (the next order may add one).
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from common import train
from data import ASSETS, WORK, Drawings, write_words

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 3800


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=8, norm_num_groups=8, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
    )  # fmt: skip


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    vae, drawings = build(), Drawings(write_words(ASSETS / "pocket"))

    def loss_of(step: int):
        x = drawings.batch(24, seed=1, step=step, known=0.75).images * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            gen = torch.Generator().manual_seed(step)
            noise = torch.randn(posterior.mean.shape, generator=gen)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        l1 = (x - y).abs().mean()
        coarse = (F.avg_pool2d(x, 4) - F.avg_pool2d(y, 4)).abs().mean()
        edge = sum((a - b).abs().mean() for a, b in zip(edges(x), edges(y), strict=True))
        kl = posterior.kl().mean() / 512
        psnr = -10 * ((x - y).detach() / 2).square().mean().log10()
        return l1 + 0.5 * coarse + edge + 1e-3 * kl, {
            "l1": float(l1),
            "edge": float(edge),
            "kl": float(kl),
            "psnr": float(psnr),
        }

    train(vae, loss_of, WORK / "vae.pt", STEPS, peak=2e-3)
    # The latent scale: one over the standard deviation of the latents, as Stable Diffusion's .18215 is.
    with torch.no_grad():
        z = torch.cat([vae.encode(drawings.batch(64, seed=9, step=i).images * 2 - 1).latent_dist.mean for i in range(16)])
    vae.register_to_config(scaling_factor=round(float(1 / z.std()), 5))
    vae.half().save_pretrained(ASSETS / "pocket" / "vae")


if __name__ == "__main__":
    main()
