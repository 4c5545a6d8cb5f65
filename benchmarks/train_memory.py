"""Peak memory of a training step of full DRaFT, every step checkpointed, against DRaFT-1's.

    python benchmarks/train_memory.py              a UNet of Stable Diffusion 1.5's shape at 32x32 latents
    python benchmarks/train_memory.py --small      the same on a small one, in seconds

The UNet has SD 1.5's configuration (860 M parameters) with random weights in bf16 under autocast; the LoRA (attn2 and ff,
rank 8) is float32. Text encoder and VAE are random and tiny: memory is the network's. Each arm runs in a process of its own;
the peak is the resident set's, over what stood there when everything was loaded. The promise is a ratio of at most 1.3.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

SHAPE = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280), "sample_size": 32}
SMALL = {"cross_attention_dim": 64, "attention_head_dim": 4, "block_out_channels": (64, 128), "sample_size": 32,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip


class Bright:
    """A reward that costs nothing."""

    name, differentiable = "bright", True

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def model(small: bool):
    """A Stable Diffusion of random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    import tilting as tl
    from tilting.models.stable_diffusion import StableDiffusion

    shape = SMALL if small else SHAPE
    width = shape["cross_attention_dim"]
    tokenizer = tl.load("pocket").tokenizer
    torch.manual_seed(0)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=8,
        max_position_embeddings=tokenizer.model_max_length,
    ))  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)  # the weights are never held in float32
    unet = UNet2DConditionModel(**shape)
    torch.set_default_dtype(torch.float32)
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4)  # fmt: skip
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False)
    parts = SimpleNamespace(tokenizer=tokenizer, text_encoder=text, unet=unet, vae=vae, scheduler=scheduler)
    return StableDiffusion(parts, "random")


def memory(key: str) -> int:
    """Bytes of a line of this process's status: VmRSS now, VmHWM at its highest."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def measure(arm: str, steps: int, small: bool, cfg: float) -> dict[str, float]:
    """One training step in this process."""
    from tilting.experiments.finetune.engine import Engine
    from tilting.experiments.finetune.tuning import tuning
    from tilting.finetune.objectives import draft, draft_k

    engine = Engine(context=lambda: torch.autocast("cpu", torch.bfloat16))
    objective = draft() if arm == "draft" else draft_k(1)
    run = tuning(model(small), ["a fox"], Bright(), objective, steps=steps, cfg=cfg, batch_size=1, engine=engine)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, begun = memory("VmRSS"), time.perf_counter()
    row = next(iter(run.steps(1)))
    size = sum(p.numel() for name, p in run.model.unet.named_parameters() if ".lora_" not in name)
    return {"arm": arm, "parameters": size, "steps": steps, "loaded_mb": before / 1e6,
            "peak_over_loaded_mb": (memory("VmHWM") - before) / 1e6, "seconds": time.perf_counter() - begun,
            "evaluations": row.numbers["evaluations"], "gradient_norm": row.numbers["gradient_norm"]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arm", choices=("draft", "draft-1"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.arm:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.arm, options.steps, options.small, options.cfg)))
        return
    rest = ["--steps", str(options.steps), "--cfg", str(options.cfg), *(["--small"] if options.small else [])]
    found = {}
    for arm in ("draft-1", "draft"):
        done = subprocess.run([sys.executable, __file__, "--arm", arm, *rest], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[arm] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found[arm].items()}), flush=True)
    ratio = found["draft"]["peak_over_loaded_mb"] / found["draft-1"]["peak_over_loaded_mb"]
    print(f"peak of full DRaFT / peak of DRaFT-1: {ratio:.3f} (at most 1.3)")


if __name__ == "__main__":
    main()
