"""A classifier of noisy latents, p(y | x_t, t), for classifier guidance (Dhariwal & Nichol 2021; `conditioning.guided`).

    minimise  E -log p(y | α_t x_0 + σ_t ε, t),     t uniform over the model's training times

The network sees α_t, σ_t and log(α_t / σ_t). It is fitted by the same loop as a classifier of clean pictures
(`tilting.conditioning.fit`): kept at its best on held-out pairs, each of them noised `LEVELS` times once for all, and
calibrated on the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting import rng
from tilting.conditioning.networks import keyed
from tilting.features.fitted import UNFIT, log_prob
from tilting.features.schema import NOISY, WEIGHTS, Schema, noisy_model, read_config, read_schema
from tilting.foreign import read_tensors
from tilting.schedule import Schedule
from tilting.types import TiltingError, Time

LEVELS = 8
"""Noisy copies of each held-out pair."""


class Noised(NamedTuple):
    """x_t (b, ...) with α_t and σ_t of each row, (b,)."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def device(self) -> torch.device:
        return self.x.device


class NoisyNet(nn.Module):
    """Outputs of noisy latents: three layers, each scaled and shifted by what the noise level says.

    Args:
        outputs: how many numbers per latent.
        shape: of a latent: (c, h, w) is convolved, with strides 1, 2, 2 and a mean over space at the end; (d,) is not.
        width: channels.
    """

    def __init__(self, outputs: int, shape: Sequence[int], width: int = 64):
        super().__init__()
        self.config: dict[str, Any] = {"name": NOISY, "shape": list(shape), "width": width}
        sizes = [(shape[0], 1), (width, 2), (width, 2)]
        flat = len(shape) == 1
        self.layers = nn.ModuleList(nn.Linear(c, width) if flat else nn.Conv2d(c, width, 3, stride, 1) for c, stride in sizes)
        self.norms = nn.ModuleList(nn.Identity() if flat else nn.GroupNorm(8, width) for _ in sizes)
        self.levels = nn.ModuleList(nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2 * width)) for _ in sizes)
        self.linear = nn.Linear(width, outputs)

    def forward(self, noised: Noised) -> Tensor:
        """(b, outputs)."""
        h, alpha, sigma = noised
        level = torch.stack([alpha, sigma, 0.5 * ((alpha + 0.01) / (sigma + 0.01)).log()], 1).to(h)
        for layer, norm, embed in zip(self.layers, self.norms, self.levels, strict=True):
            h = norm(layer(h))
            scale, move = embed(level).reshape(len(h), -1, *[1] * (h.dim() - 2)).chunk(2, 1)
            h = F.silu(h * (1 + scale) + move)
        return self.linear(h.flatten(2).mean(2) if h.dim() > 2 else h)


class NoisyClassifier(nn.Module):
    """p(y | x_t, t): a network and what its outputs mean.

    Attributes:
        net: the network.
        schema: the label, its values, and the temperature.
        model: {"name", "sha256"} of the model whose latents they are.
    """

    def __init__(self, net: NoisyNet, schema: Schema, model: Mapping[str, Any] | None = None):
        super().__init__()
        self.net, self.schema, self.model = net, schema, dict(model or {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schema.told})"

    def log_prob(self, x: Tensor, t: Time, y: Tensor) -> Tensor:
        """log p(y | x_t, t), (b,), of latents (b, ...); y as `tilting.features.fitted.log_prob` has it."""
        ones = torch.ones(len(x), device=x.device)
        return log_prob(self.schema, self.net(Noised(x, t.alpha * ones, t.sigma * ones)), y)


def levels_of(schedule: Schedule) -> Tensor:
    """(n, 2) α and σ of every training time."""
    if not schedule.alpha_bar:
        return torch.tensor([(t.alpha, t.sigma) for t in schedule.grid(1000)[:-1]])
    bar = torch.tensor(schedule.alpha_bar, dtype=torch.float64)
    return torch.stack([bar.sqrt(), (1 - bar).clamp(min=0).sqrt()], 1).float()


def noised(latents: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Noised:
    """Latents (b, ...), each at a level of its own drawn uniformly from (n, 2); without a generator by torch's own."""
    alpha, sigma = levels[torch.randint(len(levels), (len(latents),), generator=generator)].to(latents).unbind(1)
    wide = (-1, *[1] * (latents.dim() - 1))
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return Noised(alpha.reshape(wide) * latents + sigma.reshape(wide) * noise, alpha, sigma)


@dataclass(frozen=True)
class NoisyInputs:
    """What `tilting.conditioning.fit.epochs` feeds a `NoisyNet`.

    Attributes:
        latents: (n, ...) clean ones of the records, which are noised anew whenever they are asked for (by torch's own
            generator, which the loop keys by epoch).
        levels: (m, 2) α and σ to draw from.
        copies: of the records held out, noised once for all: numbers from n on.
    """

    latents: Tensor
    levels: Tensor
    copies: Noised

    def __call__(self, rows: Sequence[int]) -> Noised:
        at, n = torch.as_tensor(list(rows)), len(self.latents)
        return Noised(*(part[at - n] for part in self.copies)) if int(at[0]) >= n else noised(self.latents[at], self.levels)


class Feed(NamedTuple):
    """A fit on noisy latents as `tilting.conditioning.fit` takes it; ``y`` has the copies too, which are ``held_out``."""

    net: NoisyNet
    inputs: NoisyInputs
    y: Tensor
    held_out: list[int]


def feed(
    latents: Tensor, y: Tensor, schema: Schema, schedule: Schedule, held_out: Sequence[int], seed: int, width: int = 64
) -> Feed:
    """The fresh network, and what it learns from.

    Args:
        latents: (n, ...) clean ones.
        y: (n,) indices of classes, or numbers in the unit of the label.
        schema: of the label, at temperature 1.
        schedule: whose training times are learnt.
        held_out: numbers of the pairs to hold out.
        seed: of first weights and of the noise of the copies.
        width: of the network, a multiple of 8.

    Raises:
        TiltingError: nothing to learn from or to hold out, or another width.
    """
    n = len(latents)
    if not 0 < len(set(held_out)) < n:
        raise TiltingError(f"a classifier of noisy latents needs pairs to learn from and to hold out, not {n} in all")
    if width < 8 or width % 8:
        raise TiltingError(f"the width of a network of noisy latents must be a multiple of 8, not {width}")
    with keyed(seed, schema.label, 0, "noisy"):
        net = NoisyNet(schema.outputs, latents.shape[1:], width)
    rows, levels = torch.tensor(sorted(held_out)).repeat(LEVELS), levels_of(schedule)
    draw = rng.generator(rng.Identity(seed, schema.label, 0), 0, 0, "held")
    inputs = NoisyInputs(latents, levels, noised(latents[rows], levels, draw))
    return Feed(net, inputs, torch.cat([y, y[rows]]), list(range(n, n + len(rows))))


@dataclass(frozen=True)
class OfPictures:
    """A classifier of noisy latents that is asked about pictures: encoded, at the least noise it knows.

    Attributes:
        classifier: of noisy latents.
        encode: pictures (b, 3, h, w) in [0, 1] -> latents.
        schedule: of the model.
    """

    classifier: NoisyClassifier
    encode: Callable[[Tensor], Tensor]
    schedule: Schedule

    @property
    def schema(self) -> Schema:
        return self.classifier.schema

    def __call__(self, images: Tensor) -> Tensor:
        """(b, schema.outputs) before any temperature."""
        at = next(self.classifier.parameters()).device
        levels = levels_of(self.schedule)
        x, (alpha, sigma) = self.encode(images.to(at)).float(), levels[levels[:, 0].argmax()].tolist()
        return self.classifier.net(Noised(alpha * x, x.new_full((len(x),), alpha), x.new_full((len(x),), sigma)))


def load_noisy(folder: Path) -> NoisyClassifier:
    """Read what `save_classifier` wrote, frozen. Raises TiltingError: none there, or a classifier of clean pictures."""
    network, schema, model = read_config(folder)["network"], read_schema(folder), noisy_model(folder)
    if model is None:
        raise TiltingError(
            f"the classifier in {str(folder)!r} is of clean pictures: classifier guidance needs one of noisy latents"
        )
    try:
        net = NoisyNet(schema.outputs, network["shape"], int(network["width"]))
        net.load_state_dict(read_tensors(folder / WEIGHTS))
    except UNFIT as error:
        raise TiltingError(f"the classifier in {str(folder)!r} does not load: {' '.join(str(error).split())[:200]}") from error
    return NoisyClassifier(net, schema, model).eval().requires_grad_(False)
