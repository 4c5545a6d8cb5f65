"""The shapes of real models with random weights: what a run takes over its bare network, decodes and rewards, the peak of
memory, what each switch gains, training steps. One json, and docs/gpu.md from it.

    python benchmarks/real_size.py --tiny                  every line of it on networks of a few thousand weights, in a minute
    python benchmarks/real_size.py --shapes sd15           Stable Diffusion 1.5 at 256 x 256 on two CPU cores, in ten minutes
    python benchmarks/real_size.py --shapes sd15 --brief   its overhead, estimate and look decoder alone, in five
    python benchmarks/real_size.py                         all shapes on a GPU (benchmarks/gpu.sh)
    python benchmarks/real_size.py --page FILE.json        docs/gpu.md again from a json

Loop overhead is the time of a whole run over that of as many bare calls of network, decoder and reward, with their ways back.
The estimate is what `tilting doctor` counts on shapes; on a CPU the peak is the process's (Linux), weights and reward in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from overhead import inside
from shapes import SHAPES, Aesthetic, write, write_tiny_decoder

import tilting as tl
from tilting.config.generate import resolve
from tilting.cost import calls_of
from tilting.declare import declared
from tilting.generation.fit import need_of
from tilting.generation.fit import peak as estimate
from tilting.generation.generate import Scorer
from tilting.generation.size import flop, sizes
from tilting.guidance.value_and_grad import value_and_grad
from tilting.models.inputs import resolve_inputs
from tilting.models.placement import NEUTRAL, Switches
from tilting.models.skeleton import skeleton
from tilting.models.switches import switched

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
SIDES = {"sd15": 512, "sdxl": 1024, "sd35": 1024, "flux": 1024}
TOLD: dict[str, dict[str, Any]] = {"wan": {"height": 480, "width": 832, "frames": 9}}
"""Sizes that a folder does not say: of Wan, whose own videos have 81 frames."""
SMALL = {
    "unet": {"block_out_channels": [32, 64], "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 4},
    "vae": {"block_out_channels": [16, 16], "norm_num_groups": 8, "layers_per_block": 1},
}
EVERY = {"codex.block": 1, "codex.gradient_block": 1, "codex.window": [1, 0.5], "codex.rule": "plain"}
"""CoDeX with a gradient and a selection at every step: the most of everything in few steps, and of models without a pair."""
SWITCHES: dict[str, dict[str, Any]] = {
    "look decoder": {"look_decoder": "tiny"},
    "recompute": {"recompute": True},
    "channels last": {"channels_last": True},
    "vae slicing": {"vae_slicing": True},
    "vae in half": {"precision_vae": "bf16"},
    "compile": {"compile": True},
    "tf32": {"tf32": True},
}
"""What is measured one by one, over a run of CoDeX without."""


def cuda() -> bool:
    return torch.cuda.is_available()


def write_small(folder: Path) -> Path:
    """Stable Diffusion 1.5's folder, its networks cut down to a few thousand weights, at 32 x 32."""
    write("sd15", folder, 32)
    for part, more in SMALL.items():
        file = folder / part / "config.json"
        config = json.loads(file.read_text()) | more | ({"sample_size": 16} if part == "unet" else {"sample_size": 32})
        if part == "unet":
            config |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 32}
            config |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        else:
            config |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
        file.write_text(json.dumps(config))
    text = folder / "text_encoder" / "config.json"
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
    text.write_text(json.dumps(json.loads(text.read_text()) | size))
    return folder


def filled(folder: Path, dtype: torch.dtype, switches: Switches = Switches(), told: Any = None) -> Any:  # noqa: B008
    """A model of random weights by its folder of configurations, where there is room for it, switches on."""
    plain = replace(switches, look_decoder=None)
    model, _ = skeleton(str(folder), dtype, torch.float32, switches.look_decoder, told)
    place = torch.device("cuda" if cuda() else "cpu")
    generator = torch.Generator(place).manual_seed(0)
    parts = [*model.networks(), *([model.look_decoder.vae] if model.look_decoder else [])]
    for network in parts:
        for module in network.modules():
            for name, p in list(module._parameters.items()):
                if p is not None:
                    scale = 1.0 if "norm" in type(module).__name__.lower() else 0.5 / max(1, p[0].numel()) ** 0.5
                    drawn = torch.randn(p.shape, generator=generator, device=place, dtype=torch.float32) * scale
                    module._parameters[name] = torch.nn.Parameter(drawn.to(p.dtype), requires_grad=False)
            for name, b in list(module._buffers.items()):
                if b is not None:
                    made = torch.arange(b.numel(), device=place).reshape(b.shape)  # places of tokens
                    module._buffers[name] = made.to(b.dtype)
    model.forget()  # what shapes answered
    model = switched(model, plain, None, place) if plain != Switches() else model
    model.pair(model.default_cfg)  # looks at the loop, by one evaluation, as loading does
    return model


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if cuda():
        torch.cuda.empty_cache()


def held(what: str) -> int:
    """Bytes of the process, VmRSS now or VmHWM at most, as Linux says; none elsewhere."""
    status = Path("/proc/self/status")
    found = re.search(rf"{what}:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


class Peak:
    """Of memory: a GPU's own count, else the process's beyond what it held before."""

    def __init__(self, before: int):
        self.before = before

    def __enter__(self) -> Peak:
        gc.collect()
        if cuda():
            torch.cuda.reset_peak_memory_stats()
        elif (reset := Path("/proc/self/clear_refs")).exists():
            reset.write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated() if cuda() else held("VmHWM") - self.before


def timed(call: Callable[[], object], rounds: int) -> float:
    """Seconds of a call, the least of some rounds; one goes before."""
    call()
    found = []
    for _ in range(rounds):
        if cuda():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if cuda():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return min(found)


def seams() -> dict[str, float]:
    """What tiles of half a picture's side do to pocket's own pictures, whose weights are trained, and to their reward."""
    model, reward, words = tl.load("pocket"), tl.rewards.clip(), ["a fox", "a cat", "an owl", "a red house"]
    images = tl.generate(model, words, steps=8, progress=False).images
    rows = torch.arange(len(words))
    with torch.no_grad():
        z, seen = model.encode(images), []
        for tiled in (False, True):
            if tiled:
                model.vae.enable_tiling()
                model.vae.tile_latent_min_size, model.vae.tile_sample_min_size = z.shape[-1] // 2, images.shape[-1] // 2
                model.forget()
            seen.append(model.decoder(words)(z, rows))
    values = [reward(one, words) for one in seen]
    off = (values[1] - values[0]).square().mean().sqrt().item()
    return {"pixels": (seen[1] - seen[0]).abs().mean().item(), "reward": off, "reward_std": values[0].std().item()}


def request(name: str, folder: Path, steps: int, particles: int, half: bool) -> Any:
    """Of CoDeX on a shape, what is measured."""
    options: dict[str, Any] = {"prompts": ["a fox"], "model": str(folder), "method": "codex", "set": EVERY, "cfg": 3.0}
    options |= {"particles": particles, "steps": steps, "reward": ["clip"], **({"precision": "bf16"} if half else {})}
    return resolve(options | TOLD.get(name, {}))


def measure(
    name: str, folder: Path, tiny: Path, steps: int, particles: int, rounds: int, half: bool, brief: bool
) -> dict[str, Any]:
    """A shape: counted and measured."""
    place, dtype = torch.device("cuda" if cuda() else "cpu"), torch.bfloat16 if half else torch.float32
    reward = Aesthetic(small=name == "tiny").to(place)
    config = request(name, folder, steps, particles, half)
    told = {key: value for key, value in resolve_inputs(config)[0].items() if isinstance(value, int | float)}
    found = sizes(config, reward)
    need, paid = need_of(config)
    method = config.preset()
    before = held("VmRSS") - sum(p.nbytes for p in reward.parameters())  # code has been read by now
    model = filled(folder, dtype, told=told)
    batch = particles

    def run(model: Any) -> Any:
        return tl.generate(model, ["a fox"], reward, method, steps=steps, batch_size=batch, cfg=3.0, progress=False)

    def bare(model: Any) -> None:
        costs, grid = calls_of(method.build(steps), steps), model.schedule.grid(steps)
        denoise, value = model.denoiser(["a fox"], 3.0), Scorer(model, reward, ["a fox"])
        x, rows = torch.randn(particles, *model.latent_shape).to(place), torch.zeros(particles, dtype=torch.long)
        for _ in range(costs.evaluation_grads // particles):
            value_and_grad(x, grid[0], rows, denoise, value)
        with torch.no_grad():
            for _ in range(costs.evaluations // particles):
                denoise(x, grid[0], rows)
            for _ in range((costs.values + costs.finals) // particles):
                value(x, rows)

    with Peak(before) as peak, inside(model, time.perf_counter) as spent:
        begun = time.perf_counter()
        run(model)
        whole, calls = time.perf_counter() - begun, spent()
    if not brief:
        whole, calls = timed(partial(run, model), rounds), timed(partial(bare, model), rounds)
    out: dict[str, Any] = {
        "pixels": model.image_shape[-1],
        "steps": steps,
        "particles": particles,
        "precision": "bf16" if half else "fp32",
        "run_s": whole,
        "bare_s": calls,
        "overhead": whole / calls,
        "peak_gb": peak.bytes / 1e9,
        "estimate_gb": estimate(found, need, particles, Switches.of(config)).total / 1e9,
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "tflop": {key: value / 1e12 for key, value in flop(found, paid._asdict()).items()},
        "switches": {},
    }
    del model
    for words, switches in SWITCHES.items():
        if (words in ("compile", "tf32") and not cuda()) or (brief and words != "look decoder"):
            continue  # which on a CPU tell nothing, and take minutes to compile
        given = {key: str(tiny) if value == "tiny" else value for key, value in switches.items()}
        try:
            other = filled(folder, dtype, Switches(**given), told)
            with Peak(before) as peak:
                begun = time.perf_counter()
                run(other)
                seconds = time.perf_counter() - begun
            seconds = seconds if brief else timed(partial(run, other), rounds)
            out["switches"][words] = {"run_s": seconds, "times": seconds / whole, "peak_gb": peak.bytes / 1e9}
        except Exception as error:  # of many kinds: what a device has not; it stands in the page
            out["switches"][words] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        other = None
        free()
    torch.set_float32_matmul_precision("highest")  # which the last of them has changed
    out["training"] = {}
    for objective in () if brief else ("draft-k", "draft-lv", "grpo", "nft"):
        model = filled(folder, dtype, told=told)
        model.checkpoint()
        with Peak(before) as peak:
            begun = time.perf_counter()
            try:
                size = tl.objectives.OBJECTIVES[objective]().group_size
                tl.finetune(model, ["a fox"], reward, objective, train_steps=1, steps=2, batch_size=size, rank=4)
                out["training"][objective] = {"step_s": time.perf_counter() - begun, "images": size}
            except Exception as error:  # of many kinds, a full memory among them
                out["training"][objective] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
        out["training"][objective]["peak_gb"] = peak.bytes / 1e9
        del model
        free()
    return out


def page(found: dict[str, Any]) -> str:
    """docs/gpu.md of what was measured."""
    machine = found["machine"]
    seam = found["seams"]
    where = machine["gpu"] or "no GPU: the CPU alone, so that what a GPU gains is not known"
    lines = [
        "# On a GPU",
        "",
        f"Made by `python benchmarks/real_size.py --page`. Measured on: {where} (torch {machine['torch']}).",
    ]
    if not machine["gpu"]:
        lines += [
            "",
            "**No line of tilting has run on a GPU yet.** Its code is written for one through diffusers', accelerate's and",
            "torch's own switches, and tested on a CPU and on fake tensors. `sh benchmarks/gpu.sh` measures it, in about eight",
            "minutes by its own plan, and writes this page anew; what it shows wrong is to be mended first.",
        ]
    lines += [
        "",
        "## What may be asked for",
        "",
        "Each is an option of `generate`, `compare`, `condition sample` and `finetune`, and a keyword of `tl.load`.",
        f"{', '.join(f'`--{name}`' for name in NEUTRAL)} change a picture by rounding at most, and a run goes on with others.",
        "",
        "| option | what |",
        "| --- | --- |",
        *(f"| `--{one.option}` | {one.about} |" for one in declared(Switches).values()),
        "",
        "`generate --memory 12GB` takes, in this order and as far as it must: fewer images at once, text encoders in main",
        "memory, activations made again, all parts in main memory while idle, and without a gradient the network by blocks.",
        "What changes a picture (precision, 8 and 4 bits) it names and does not take. `tilting doctor --model X --method",
        "codex`, or `--objective draft-lv --size`, counts TFLOP and bytes by part, and says what fits into 8 to 80 GB.",
        "",
        "Tiles are off unless asked for: an autoencoder's norms then see a tile alone, and pictures differ. In tiles of half",
        f"a side, pocket's own do by {seam['pixels']:.3f} of 1 on average, and their `clip` by {seam['reward']:.3f} (root mean",
        f"square), where pictures of other prompts differ by {seam['reward_std']:.3f}. Random weights cannot show it.",
        "A reward that reads 224 pixels makes them of the decoded estimate, and a decoder has no smaller way there: all of its",
        "levels run. Of a look of Stable Diffusion 1.5 at 512 x 512, 2.51 TFLOP of 2.68 are the decode, which `--look-decoder`",
        "saves. Texts are not encoded ahead of their group: on one device that takes the network's own time.",
        "4- and 8-bit weights under a LoRA train by every objective, and the LoRA loads on the full weights.",
        "A first-block cache is for `base` and `bon`, which make one step after another; a manifest names it.",
        "",
        "## What a run takes",
        "",
        "CoDeX with gradients and selections, random weights. Of `tiny`, whose networks cost next to nothing, times are the",
        "loop's own, on a machine that does other things: they show that each line runs, no more.",
        "",
    ]
    lines += [
        "| shape | pixels | T, N | precision | TFLOP | run s | bare calls s | overhead | peak GB | estimate GB |",
        "|" + "---|" * 10,
    ]
    for name, one in found["shapes"].items():
        tflop = sum(one["tflop"].values())
        run = " | ".join(f"{one[key]:.4g}" for key in ("run_s", "bare_s", "overhead", "peak_gb", "estimate_gb"))
        size = f"{one['pixels']} | {one['steps']}, {one['particles']} | {one['precision']} | {tflop:.3g}"
        lines.append(f"| {name} | {size} | {run} |")
    lines += ["", *(f"{name} failed: {said}." for name, said in found["failed"].items())] if found.get("failed") else []
    if found.get("depths"):
        lines += ["", "## Large models, by two depths", ""]
        lines += [
            "`python benchmarks/depths.py` measures an image of CoDeX in bf16 at one and two of the repeated blocks, on",
            "a CPU and in real width, and extends the peak to the model's depth; the estimate is doctor's, of the whole model.",
            "",
        ]
        lines += ["| shape | peak GB at 1, 2 | extended GB | estimate GB | estimate / extended |", "|" + "---|" * 5]
        for name, one in found["depths"].items():
            peaks = ", ".join(f"{peak:.4g}" for peak in one["peak_gb"])
            lines.append(f"| {name} | {peaks} | {one['extended_gb']:.4g} | {one['estimate_gb']:.4g} | {one['ratio']:.3f} |")
    for name, one in found["shapes"].items():
        lines += ["", f"## Switches on {name}", "", "| switch | run s | times | peak GB |", "|---|---|---|---|"]
        for words, of in one["switches"].items():
            cells = of.get("failed") or f"{of['run_s']:.3g} | {of['times']:.2f} | {of['peak_gb']:.3g}"
            lines.append(f"| {words} | {cells} |" if "failed" not in of else f"| {words} | {cells} | | |")
        if one["training"]:
            lines += ["", "| training step of 2 | s | images | peak GB |", "|---|---|---|---|"]
        for objective, of in one["training"].items():
            cells = of.get("failed") or f"{of['step_s']:.3g} | {of['images']} | {of['peak_gb']:.3g}"
            lines.append(f"| {objective} | {cells} |" if "failed" not in of else f"| {objective} | {cells} | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--brief", action="store_true", help="one run each, without switches but the look decoder, and no training"
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("real_size.json"))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page(json.loads(options.page.read_text())))
        return
    gpu = torch.cuda.get_device_name() if cuda() else None
    machine = {"gpu": gpu, "cpu": platform.machine(), "torch": torch.__version__}
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    if found.get("machine") != machine:  # else the shapes that were measured here before stay
        found = {"machine": machine, "shapes": {}, "seams": seams()}
    names = ["tiny"] if options.tiny else options.shapes.split(",")
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            folder = Path(place) / name
            pixels = options.pixels or (SIDES.get(name) if cuda() else 256)
            write_small(folder) if options.tiny else write(name, folder, pixels)
            channels = json.loads((folder / "vae" / "config.json").read_text()).get("latent_channels", 16)
            tiny = write_tiny_decoder(folder / "look_decoder", channels)
            if options.tiny:
                small = {"num_decoder_blocks": [1, 1], "num_encoder_blocks": [1, 1]}
                small |= {"encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8]}
                file = tiny / "config.json"
                file.write_text(json.dumps(json.loads(file.read_text()) | small))
            particles = 4 if cuda() or options.tiny else 2
            how = options.steps, particles, options.rounds, cuda(), options.brief
            try:
                found["shapes"][name] = measure(name, folder, tiny, *how)
            except Exception as error:  # of every kind: the others are measured all the same
                traceback.print_exc()
                found.setdefault("failed", {})[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                options.out.write_text(json.dumps(found, indent=1))
                free()
                continue
            found.get("failed", {}).pop(name, None)
            print(json.dumps({name: found["shapes"][name]}), flush=True)
            options.out.write_text(json.dumps(found, indent=1))
    sys.exit(not set(found.get("failed", {})).isdisjoint(names))


if __name__ == "__main__":
    main()
