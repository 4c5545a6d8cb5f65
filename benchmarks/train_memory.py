"""Peak memory of a training step of full DRaFT, every step checkpointed, against DRaFT-1's.

    python benchmarks/train_memory.py              a UNet of Stable Diffusion 1.5's shape at 32x32 latents
    python benchmarks/train_memory.py --small      the same on a small one, in seconds
    python benchmarks/train_memory.py --count      only counts what is held, by shapes; --steps and --cfg go with all

The UNet has SD 1.5's configuration (860 M parameters) with random weights in bf16 under autocast; the LoRA (attn2 and ff,
rank 8) is float32. Text encoder and VAE are random and tiny: memory is the network's. Each arm runs in a process of its own;
the peak is the resident set's, over what stood there when everything was loaded. The promise is a ratio of at most 1.3.

What grows with T is a latent per step: the UNet's activations are there one step at a time, made again on the way back. Both
are counted too, from the tensors that autograd saves (each storage once; those of the UNet on the meta device, without
numbers), and with them what full DRaFT holds over DRaFT-1: T - 1 latents and, while gradients of two steps are summed, the
LoRA's gradient once more. Allocators add to that what they do.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

SHAPE = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280), "sample_size": 32}
SMALL = {
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "block_out_channels": (64, 128),
    "sample_size": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


class Bright:
    """A reward that costs nothing."""

    name, differentiable = "bright", True

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def network(small: bool):
    """A UNet of random weights, in bf16; never held in float32."""
    from diffusers import UNet2DConditionModel

    torch.set_default_dtype(torch.bfloat16)
    try:
        return UNet2DConditionModel(**SMALL if small else SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)


def model(small: bool):
    """A Stable Diffusion of random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    import tilting as tl
    from tilting.models.pipeline import Pipeline

    width = (SMALL if small else SHAPE)["cross_attention_dim"]
    tokenizer = tl.load("pocket").tokenizer
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=8,
            max_position_embeddings=tokenizer.model_max_length,
        )
    )
    unet = network(small)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )  # without it the last step stays where it is and has no gradient
    parts = {"tokenizer": tokenizer, "text_encoder": text, "unet": unet, "vae": vae, "scheduler": scheduler}
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return Pipeline(StableDiffusionPipeline(**parts, **more), "random", 50, 7.5)


def memory(key: str) -> int:
    """Bytes of a line of this process's status: VmRSS now, VmHWM at its highest."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


@contextmanager
def saved(network: torch.nn.Module) -> Iterator[Callable[[], int]]:
    """Inside the block, a function that tells the bytes that autograd saved, each storage once. The network's weights, which
    are there anyway, are left out."""
    weights = {value.untyped_storage()._cdata for value in (*network.parameters(), *network.buffers())}
    found: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        place = value.untyped_storage()._cdata
        if place not in weights:
            found.setdefault(place, value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield lambda: sum(value.untyped_storage().nbytes() for value in found.values())


def activations(small: bool, cfg: float) -> tuple[int, int]:
    """Bytes that one call of the UNet holds for its way back, and of the LoRA's gradient."""
    from tilting.training.trainer import attach

    with torch.device("meta"):
        unet = network(small)
        parameters = attach(unet, 8, ("attn2", "ff"), 0)
        rows, side = 1 if cfg == 1 else 2, unet.config["sample_size"]
        x = torch.empty(rows, 4, side, side, dtype=torch.bfloat16, requires_grad=True)
        words = torch.empty(rows, 77, unet.config["cross_attention_dim"], dtype=torch.bfloat16)
        with saved(unet) as size, torch.autocast("cpu", torch.bfloat16):
            out = unet(x, torch.full((rows,), 500), encoder_hidden_states=words, return_dict=False)[0]
            assert out.requires_grad
            return size(), sum(p.nbytes for p in parameters.values())


def chain(whole, steps: int, cfg: float) -> int:
    """Bytes that a chain of open steps holds between its way there and back; of latents of this size, whatever the UNet's."""
    from tilting.objectives.rollout import rollout

    run = training(whole, "draft", steps, cfg)
    world = replace(run.batches(0, {}), trained=list(run.state.parameters.values()))
    with saved(run.model.unet) as size:
        path = rollout(world, torch.ones(steps, dtype=torch.bool))
        assert path.clean.requires_grad
        return size()


def training(whole, arm: str, steps: int, cfg: float):
    """A run of one of the arms."""
    from tilting.objectives import draft, draft_k
    from tilting.training.processes import Engine
    from tilting.training.trainer import make_trainer

    engine = Engine(context=lambda: torch.autocast("cpu", torch.bfloat16))
    objective = draft() if arm == "draft" else draft_k(1)
    return make_trainer(whole, ["a fox"], Bright(), objective, steps=steps, cfg=cfg, batch_size=1, engine=engine)


def count(steps: int, small: bool, cfg: float) -> None:
    one, gradient = activations(small, cfg)
    whole = model(small=True)
    slope = (chain(whole, 4, cfg) - chain(whole, 2, cfg)) / 2
    over = (steps - 1) * slope + gradient
    print(
        json.dumps(
            {
                "activations_of_a_step_mb": round(one / 1e6, 1),
                "held_per_step_bytes": slope,
                "steps": steps,
                "lora_gradient_mb": round(gradient / 1e6, 2),
                "counted_ratio": round(1 + over / one, 4),
            }
        )
    )


def measure(arm: str, steps: int, small: bool, cfg: float) -> dict[str, float]:
    """One training step in this process."""
    run = training(model(small), arm, steps, cfg)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, begun = memory("VmRSS"), time.perf_counter()
    row = next(iter(run.steps(1)))
    size = sum(p.numel() for name, p in run.model.unet.named_parameters() if ".lora_" not in name)
    return {
        "arm": arm,
        "parameters": size,
        "steps": steps,
        "loaded_mb": before / 1e6,
        "peak_over_loaded_mb": (memory("VmHWM") - before) / 1e6,
        "seconds": time.perf_counter() - begun,
        "evaluations": row.numbers["evaluations"],
        "gradient_norm": row.numbers["gradient_norm"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arm", choices=("draft", "draft-1"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if not options.arm:
        count(options.steps, options.small, options.cfg)
    if options.count:
        return
    if options.arm:
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
