"""On a machine with a GPU: whether it draws what the CPU draws, and whether methods, objectives and switches run there.

    python benchmarks/gpu.py --out gpu           every check in turn, what each found in gpu/checks.json as soon as it is known
    python benchmarks/gpu.py --device cpu        the same lines on the CPU, to see that they run

A check that fails is written down, and the rest goes on. Exit code 1 where one has failed. "parity" is the one that must hold
to rounding: float32 without TF32, which cuDNN's convolutions take by themselves, of a deterministic chain, in which nothing is
selected; where something is, a last digit may choose another particle, and another picture is no fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import tilting as tl
from tilting.cli import main as command
from tilting.objectives import OBJECTIVES
from tilting.presets import METHODS

WORDS = ["a fox", "an owl"]
LESS = {"particles": 2, "iterations": 2, "block": 1, "neighbours": 2}
PARITY = 1e-3
"""The largest difference of a pixel in [0, 1] that rounding in float32 may make over a few steps."""


def drawn(device: str, method: str = "base", precision: str = "fp32", **more: Any) -> Any:
    preset = METHODS[method]()
    given = {key: value for key, value in LESS.items() if key in {one.name for one in fields(preset)}}
    picture = {"image": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))} if preset.needs_picture else {}
    model = tl.load("pocket", device, precision)
    return tl.generate(model, WORDS, tl.rewards.clip(), replace(preset, **given), steps=4, progress=False, **picture, **more)


def far(a: Any, b: Any) -> dict[str, float]:
    away = (a.images - b.images).abs()
    return {"most": away.max().item(), "mean": away.mean().item()}


def parity(device: str) -> dict[str, Any]:
    """Of a deterministic chain: float32, as cuDNN has it, and the halves."""
    want, found = drawn("cpu", eta=0.0), {}
    torch.backends.cudnn.allow_tf32 = False
    try:
        found["fp32"] = far(drawn(device, eta=0.0), want)
    finally:
        torch.backends.cudnn.allow_tf32 = True
    found |= {
        name: far(drawn(device, precision=one, eta=0.0), want)
        for name, one in (("tf32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"))
    }
    assert found["fp32"]["most"] < PARITY, f"the device does not draw what the CPU draws: {found}"
    return found


def method_on(name: str) -> Callable[[str], dict[str, Any]]:
    def check(device: str) -> dict[str, Any]:
        made = drawn(device, name)
        assert made.images.isfinite().all()
        return {"from_cpu": far(made, drawn("cpu", name))["mean"]}

    return check


def objective_on(name: str) -> Callable[[str], dict[str, Any]]:
    def check(device: str) -> dict[str, Any]:
        made = OBJECTIVES[name]()
        how = {"train_steps": 1, "steps": 2, "batch_size": max(2, made.group_size), "rank": 2, "ema": 0.5}
        got = tl.finetune(tl.load("pocket", device), WORDS, tl.rewards.clip(), made, progress=False, **how)
        assert all(value.isfinite().all() for value in got.lora.values())
        return {"loss": got.history[-1]["loss"]}

    return check


def switch_on(**given: Any) -> Callable[[str], dict[str, Any]]:
    def check(device: str) -> dict[str, Any]:
        plain, other = tl.load("pocket", device), tl.load("pocket", device, **given)
        made = [tl.generate(m, WORDS, tl.rewards.clip(), "codex", steps=4, progress=False) for m in (other, plain)]
        return far(*made)

    return check


def commands(*words: str) -> Callable[[str], dict[str, Any]]:
    def check(device: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            code = command([*words, "--device", device, "--quiet", "--out", f"{folder}/run"])
        assert code == 0, f"exit code {code}"
        return {}

    return check


def full(device: str) -> dict[str, Any]:
    """A GPU whose memory is full is told in a sentence, and the run goes on with less."""
    if device == "cpu":
        return {"left out": "of a GPU"}
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "generate",
            "a fox",
            "--device",
            device,
            "--method",
            "codex",
            "--steps",
            "4",
            "--quiet",
            "--out",
            f"{folder}/run",
        ]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 150e6) / total)
        try:
            first = command([*words, "--images", "64", "--batch-size", "1024"])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        then = command([*words, "--images", "64", "--batch-size", "64"]) if first == 2 else None
    assert first == 2, f"exit code {first}, not that of a refusal"
    assert then == 0, f"and going on with less ends in {then}"
    return {}


def checks() -> dict[str, Callable[[str], dict[str, Any]]]:
    """By name, the most telling first."""
    found: dict[str, Callable[[str], dict[str, Any]]] = {"parity": parity}
    found["command generate"] = commands("generate", *WORDS, "--method", "codex", "--reward", "clip", "--steps", "4")
    found["command halves"] = commands(
        "generate", *WORDS, "--method", "code", "--precision", "bf16", "--reward-device", "cpu", "--steps", "4"
    )
    found["command finetune"] = commands("finetune", *WORDS, "--train-steps", "2", "--steps", "2", "--precision", "fp16")
    found |= {f"method {name}": method_on(name) for name in METHODS}
    found |= {f"objective {name}": objective_on(name) for name in OBJECTIVES}
    found["memory"] = full
    found["offload parts"], found["offload text"] = switch_on(offload="parts"), switch_on(offload="text")
    found["channels last"], found["compile"] = switch_on(channels_last=True), switch_on(compile=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="checks whose name begins so")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    about = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    found: dict[str, Any] = {"machine": about, "checks": {}}
    for name, check in checks().items():
        if not name.startswith(options.only):
            continue
        begun = time.perf_counter()
        try:
            told: dict[str, Any] = check(options.device)
        except Exception as error:  # of every kind: it is what is asked
            where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            told = {"failed": f"{type(error).__name__}: {str(error)[:400]}", "where": where[-6:]}
        found["checks"][name] = told | {"seconds": round(time.perf_counter() - begun, 2)}
        print(json.dumps({name: found["checks"][name]}), flush=True)
        (options.out / "checks.json").write_text(json.dumps(found, indent=1))
    failed = [name for name, told in found["checks"].items() if "failed" in told]
    print(f"{len(found['checks'])} checks, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
