"""Memory of CoDeX's gradients: what autograd holds at once, by particles, prompts and batch size.

Every tensor saved for a backward pass is counted while it lives (once per storage, weights excepted); the peak is exact and
the same on every machine. It must follow --batch-size alone: not N, not the number of prompts.

    python benchmarks/memory.py
"""

from __future__ import annotations

import weakref

import torch

import tilting as tl


class Held:
    """Bytes of tensors saved for backward and still alive."""

    def __init__(self, weights: set[int]):
        self.weights, self.now, self.peak, self.counts = weights, 0, 0, {}

    def pack(self, tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.weights:
            count = self.counts.get(key, 0)
            self.counts[key] = count + 1
            if count == 0:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        box = Box(tensor)
        weakref.finalize(box, self._free, key, storage.nbytes())
        return box

    def _free(self, key: int, size: int) -> None:
        if key in self.weights:
            return
        self.counts[key] -= 1
        if self.counts[key] == 0:
            self.now -= size
            del self.counts[key]


class Box:
    """What is saved in a tensor's place."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def peak(model, particles: int, prompts: int, batch: int) -> float:
    """Peak megabytes held for backward over a short CoDeX run."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = Held(weights)
    method = tl.presets.codex(particles=particles, gradient_block=1, window=(1, 0))
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda box: box.tensor):
        tl.generate(
            model,
            ["a fox", "an owl", "a bus", "a pear"][:prompts],
            reward=tl.rewards.clip(),
            method=method,
            steps=3,
            batch_size=batch,
        )
    return held.peak / 1e6


def main() -> None:
    model = tl.load("pocket")
    print("particles  prompts  batch-size  peak MB held for backward")
    for batch in (2, 4, 8):
        figures = []
        for particles, prompts in ((4, 1), (8, 1), (16, 1), (4, 4), (16, 4)):
            figures.append(peak(model, particles, prompts, batch))
            print(f"{particles:9d}  {prompts:7d}  {batch:10d}  {figures[-1]:8.1f}", flush=True)
        print(f"batch-size {batch}: largest / smallest = {max(figures) / min(figures):.3f}")


if __name__ == "__main__":
    main()
