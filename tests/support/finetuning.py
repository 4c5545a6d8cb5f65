"""`tilting finetune` as tests call it: rewards of a file, and a small run."""

from __future__ import annotations

from tilting.cli import main

REWARDS = """
import os, signal
CALLS = {"n": 0}

def bright(images, prompts):
    return images.mean((1, 2, 3))
bright.differentiable = True

def dark(images, prompts):
    return -images.mean((1, 2, 3))

def raises(images, prompts):
    raise ValueError("never mind")

def broken(images, prompts):
    CALLS["n"] += 1
    return images.mean((1, 2, 3)) * (float("nan") if CALLS["n"] == 2 else 1.0)
broken.differentiable = True

def interrupted(images, prompts):
    CALLS["n"] += 1
    if CALLS["n"] == int(os.environ.get("STOP_AT", "0")):
        if os.environ.get("STOP_BY") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        by = os.environ.get("STOP_BY", "")
        if "ctrl-c" not in by:
            raise KeyboardInterrupt
        for _ in by.split():
            signal.raise_signal(signal.SIGINT)
    return images.mean((1, 2, 3))
interrupted.differentiable = True
"""


SMALL = ("--steps", "3", "--rank", "2", "--sample-images", "1", "--quiet")


def bright(images, prompts):
    return images.mean((1, 2, 3))


class Bright:
    name, differentiable = "bright", True

    def __call__(self, images, prompts):
        return bright(images, prompts)


def train(out, *words, reward="r.py:bright", steps=3, prompts=("a fox", "a cat"), batch=2):
    return main(
        [
            "finetune",
            *prompts,
            "--out",
            str(out),
            "--reward",
            reward,
            "--train-steps",
            str(steps),
            "--batch-size",
            str(batch),
            *SMALL,
            *words,
        ]
    )


def numbers(folder):
    return (folder / "metrics.jsonl").read_bytes(), (folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()
