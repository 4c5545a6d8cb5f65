"""The autoencoder: 64x64 pictures to 12x8x8 latents. L1 + squares + edges + a little KL.

loss = |x - x'| + |x - x'|² + 0.5 |∇x - ∇x'| + 2e-3·KL per latent number.
"""

from __future__ import annotations

import sys

import torch
from diffusers import AutoencoderKL

from common import train
from data import ASSETS, WORK, Drawings, write_words

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 2600


def build() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=8,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # begin almost without noise: a posterior of unit width drowns the first thousand steps
        vae.quant_conv.bias[12:] = -4.0
    return vae.to(memory_format=torch.channels_last)


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    vae, drawings = build(), Drawings(write_words(ASSETS / "pocket"))

    def loss_of(step: int):
        x = drawings.batch(24, seed=1, step=step, known=0.75).images.contiguous(memory_format=torch.channels_last) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            gen = torch.Generator().manual_seed(step)
            noise = torch.randn(posterior.mean.shape, generator=gen)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        l1, square = (x - y).abs().mean(), (x - y).square().mean()
        edge = sum((a - b).abs().mean() for a, b in zip(edges(x), edges(y), strict=True))
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * (square.detach() / 4).log10()
        loss = l1 + square + 0.5 * edge + 2e-3 * kl
        return loss, {"l1": l1.item(), "edge": edge.item(), "kl": kl.item(), "psnr": psnr.item()}

    train(vae, loss_of, WORK / "vae.pt", STEPS, peak=6e-3, every=200)
    # The latent scale: one over the standard deviation of the latents, as Stable Diffusion's .18215 is.
    with torch.no_grad():
        z = torch.cat([vae.encode(drawings.batch(64, seed=9, step=i).images * 2 - 1).latent_dist.mean for i in range(16)])
    vae.register_to_config(scaling_factor=round(float(1 / z.std()), 5))
    vae.half().save_pretrained(ASSETS / "pocket" / "vae")


if __name__ == "__main__":
    main()
