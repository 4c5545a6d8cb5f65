"""A run of 100,000 prompts, an image each, T = 1, by a model that computes next to nothing: what the run itself costs.

    python benchmarks/many_prompts.py [--prompts 100000] [--parts 10]

Prints, for each part of the run, milliseconds an image and memory (RSS), what comes before the first image and after the last,
and the sizes of the files. Time is the processor's, of this process: what else runs beside it does not count. What is promised:
neither time nor memory grows from part to part.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from tilting.config.generate import resolve
from tilting.generation.run import Parts, run
from tilting.models.words import POCKET
from tilting.schedule import Schedule
from tilting.types import Prediction


def resident() -> float:
    """MB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Stub:
    """8 x 8 pictures that are their latents; it looks at clock and memory as often as it is told to."""

    name, latent_shape, image_shape, default_steps, default_cfg = "pocket", (3, 8, 8), (3, 8, 8), 1, 1.0
    schedule = Schedule("flow")

    def __init__(self, every: int):
        self.every, self.drawn, self.seen = every, 0, []

    def denoiser(self, prompts, cfg, negative=""):
        return lambda x, t, rows: Prediction(x, x.clamp(0, 1), torch.zeros_like(x))

    def decode(self, latents):
        if self.drawn % self.every < len(latents):
            self.seen.append((self.drawn, time.process_time(), resident()))
        self.drawn += len(latents)
        return latents.clamp(0, 1)

    def encode(self, images):
        return images


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=10)
    options = parser.parse_args()
    model = Stub(options.prompts // options.parts)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        begun = time.process_time()
        prompts = [f"a fox, picture {i} of many" for i in range(options.prompts)]
        config = resolve({"prompts": prompts, "out": str(out), "steps": 1, "cfg": 1, "reward": ["jpeg"]})
        manifest = run(config, quiet=True, parts=lambda _: Parts(model, None, None))  # type: ignore[arg-type]
        done = time.process_time(), resident()
        assert len(manifest["images"]) == options.prompts
        parts = [
            {"images": b[0] - a[0], "ms_per_image": round(1e3 * (b[1] - a[1]) / (b[0] - a[0]), 3), "mb": round(b[2], 1)}
            for a, b in zip(model.seen, model.seen[1:], strict=False)
        ]
        for part in parts:
            print(json.dumps(part), flush=True)
        sizes = {name: (out / name).stat().st_size / 1e6 for name in ("manifest.json", "images.jsonl")}
        grown = parts[-1]["mb"] - parts[0]["mb"], parts[-1]["ms_per_image"] / parts[1]["ms_per_image"]
        before, after = model.seen[0][1] - begun, done[0] - model.seen[-1][1]
        print(json.dumps({"mb_grown": round(grown[0], 1), "time_ratio": round(grown[1], 3)}))
        print(
            json.dumps({"before_s": round(before, 2), "last_part_and_after_s": round(after, 2), "mb_after": round(done[1], 1)})
        )
        print(json.dumps({name: round(size, 2) for name, size in sizes.items()}))


if __name__ == "__main__":
    assert POCKET.is_dir()
    main()
