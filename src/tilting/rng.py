"""One random generator per sample and step, so that an image is the same image in any batch, process or resume.

A draw is keyed by (seed, prompt, index within the prompt, particle, step, purpose); the key is hashed into the seed of a
generator that draws on the CPU, whatever device the sampler runs on. Particle 0's key at x_T is every method's first noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from tilting.lazy import torch


@dataclass(frozen=True)
class Identity:
    """Which image this is: the run's seed, the prompt's text, and the image's index within the prompt."""

    seed: int
    prompt: str
    index: int


def generator(who: Identity, particle: int, step: int, purpose: str = "noise") -> torch.Generator:
    """The generator of one particle's draw at one step."""
    key = f"{who.seed}\0{who.prompt}\0{who.index}\0{particle}\0{step}\0{purpose}".encode()
    seed = int.from_bytes(blake2b(key, digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(seed)


def normal(who: Sequence[Identity], particles: int, shape: Sequence[int], step: int, purpose: str = "noise") -> torch.Tensor:
    """Standard normal noise (b, particles, *shape) in float32; each row's draw depends on its own key alone."""
    keys = [generator(i, p, step, purpose) for i in who for p in range(particles)]
    rows = [torch.randn(tuple(shape), generator=key, device="cpu") for key in keys]
    return torch.stack(rows).reshape(len(who), particles, *shape)


def beside(host: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Move a CPU tensor to the device and dtype of x, without a synchronisation on CUDA."""
    return host.to(x.device, x.dtype, non_blocking=x.is_cuda)


def uniform(who: Sequence[Identity], count: int, step: int, purpose: str = "select") -> torch.Tensor:
    """Uniforms (b, count) in [0, 1) in float64, keyed by image and step."""
    keys = [generator(i, 0, step, purpose) for i in who]
    return torch.stack([torch.rand(count, generator=key, dtype=torch.float64, device="cpu") for key in keys])
