"""CTRL's baselines at inference: a classifier of noisy latents guides (Dhariwal & Nichol 2021), or a clean one through x0.

    classifier guidance        eps' = eps - σ_t γ ∇_{x_t} log p(y | x_t, t),   x0' to match; p(y | x_t, t) is learnt here
    reconstruction guidance    eps' = eps - σ_t γ ∇_{x_t} log p(y | x0(x_t))    (Ho et al. 2022), the preset dps as a score

For γ = 1 and the true p(y | x_t, t) the first is Lemma 2 of CTRL itself (Zhao et al. 2024): its law is p(x | y) as T grows.
For other γ it is not, since E[p(y | x_0)^γ | x_t] is not p(y | x_t)^γ. The second puts x0 for a whole posterior, and is
biased always.

The network sees α_t, σ_t and log(α_t / σ_t), is fitted by maximum likelihood on x_t = α_t x_0 + σ_t ε with t uniform over
the training times, kept at its best on held-out pairs, noised once for all, and calibrated on the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting import rng
from tilting.conditioning.calibrate import gaussian_temperature, temperature
from tilting.conditioning.fit import Likelihood, Options
from tilting.conditioning.networks import keyed
from tilting.features.fitted import log_prob
from tilting.features.schema import FILE, WEIGHTS, Schema, read_config, read_schema
from tilting.presets.guided import Dps
from tilting.schedule import Schedule
from tilting.types import Denoise, Prediction, TiltingError, Time

LEVELS = 8
"""Noisy copies of each held-out pair."""


class Noised(NamedTuple):
    """x_t (b, ...) with α_t and σ_t of each row, (b,)."""

    x: Tensor
    alpha: Tensor
    sigma: Tensor


class NoisyNet(nn.Module):
    """Outputs of noisy latents: three layers, each scaled and shifted by what the noise level says.

    Args:
        outputs: how many numbers per latent.
        shape: of a latent: (c, h, w) is convolved, with strides 1, 2, 2 and a mean over space at the end; (d,) is not.
        width: channels.
    """

    def __init__(self, outputs: int, shape: Sequence[int], width: int = 64):
        super().__init__()
        self.config: dict[str, Any] = {"name": "noisy", "shape": list(shape), "width": width}
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
    """p(y | x_t, t): a network and what its outputs mean."""

    def __init__(self, net: NoisyNet, schema: Schema):
        super().__init__()
        self.net, self.schema = net, schema

    def log_prob(self, x: Tensor, t: Time, y: Tensor) -> Tensor:
        """log p(y | x_t, t), (b,), of latents (b, ...); y as `tilting.features.fitted.log_prob` has it."""
        ones = torch.ones(len(x), device=x.device)
        return log_prob(self.schema, self.net(Noised(x, t.alpha * ones, t.sigma * ones)), y.to(x.device))


def levels_of(schedule: Schedule) -> Tensor:
    """(n, 2) α and σ of every training time."""
    if not schedule.alpha_bar:
        return torch.tensor([(t.alpha, t.sigma) for t in schedule.grid(1000)[:-1]])
    bar = torch.tensor(schedule.alpha_bar, dtype=torch.float64)
    return torch.stack([bar.sqrt(), (1 - bar).clamp(min=0).sqrt()], 1).float()


def noised(latents: Tensor, levels: Tensor, generator: torch.Generator) -> Noised:
    """Latents (b, ...), each at a level of its own drawn uniformly from (n, 2)."""
    alpha, sigma = levels[torch.randint(len(levels), (len(latents),), generator=generator)].to(latents).unbind(1)
    wide = (-1, *[1] * (latents.dim() - 1))
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return Noised(alpha.reshape(wide) * latents + sigma.reshape(wide) * noise, alpha, sigma)


def fit_noisy(
    latents: Tensor, y: Tensor, schema: Schema, schedule: Schedule, held: Sequence[int], options: Options | None = None,
    width: int = 64,
) -> NoisyClassifier:  # fmt: skip
    """Fit and calibrate p(y | x_t, t).

    Args:
        latents: (n, ...) clean ones.
        y: (n,) indices of classes, or numbers in the unit of the label.
        schema: of the label, at temperature 1.
        schedule: whose training times are learnt.
        held: numbers of the pairs to hold out.
        options: of the fit; the defaults are those of the clean one.
        width: of the network.

    Raises:
        TiltingError: nothing to learn from or to hold out, or a likelihood that is not finite.
    """
    apart, options = set(held), options or Options()
    learn = torch.tensor([i for i in range(len(latents)) if i not in apart])
    if not len(learn) or not apart:
        raise TiltingError(
            f"a classifier of noisy latents needs pairs to learn from and to hold out, not {len(latents)} in all"
        )
    with keyed(options.seed, schema.label, 0, "noisy"):
        net = NoisyNet(schema.outputs, latents.shape[1:], width).to(latents.device)
    model, levels = Likelihood(net, schema).to(latents.device), levels_of(schedule)
    optimiser = torch.optim.Adam(model.parameters(), lr=options.rate)

    def draw(step: int, purpose: str) -> torch.Generator:
        return rng.generator(rng.Identity(options.seed, schema.label, step), 0, 0, purpose)

    rows = torch.tensor(sorted(apart)).repeat(LEVELS)
    test, answers = noised(latents[rows], levels, draw(0, "held")), y[rows]
    best, lowest, since = dict(model.state_dict()), math.inf, 0
    for epoch in range(options.epochs):
        generator = draw(epoch, "batches")
        for part in learn[torch.randperm(len(learn), generator=generator)].split(options.batch_size):
            loss = model(noised(latents[part], levels, generator), y[part].to(latents.device)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            now = model(test, answers.to(latents.device)).mean().item()
        if not math.isfinite(now):
            raise TiltingError(f"the fit of {schema.label!r} on noisy latents is not finite any more: lower the rate")
        since += 1
        if now < lowest:
            best, lowest, since = {k: v.detach().clone() for k, v in model.state_dict().items()}, now, 0
        if since >= options.patience:
            break
    model.load_state_dict(best)
    return NoisyClassifier(net, _calibrated(model, test, answers)).eval().requires_grad_(False)


@torch.no_grad()
def _calibrated(model: Likelihood, test: Noised, y: Tensor) -> Schema:
    """The schema with the temperature of held-out noisy latents, and the σ that was learnt."""
    outputs, schema = model.part(test).double().cpu(), model.schema
    if model.log_sigma is None:
        with torch.enable_grad():
            return replace(schema, temperature=temperature(outputs, y))
    std = schema.scale * math.exp(float(model.log_sigma))
    gaps = (y.double().cpu() - schema.shift - schema.scale * outputs[:, 0]) / std
    return replace(schema, std=std, temperature=gaussian_temperature(gaps))


def save_noisy(classifier: NoisyClassifier, folder: Path) -> None:
    """Write classifier.json and classifier.safetensors into a folder of its own."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"schema": asdict(classifier.schema), "network": classifier.net.config}
    (folder / FILE).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    save_file({k: v.contiguous() for k, v in classifier.net.state_dict().items()}, folder / WEIGHTS)


def load_noisy(folder: Path) -> NoisyClassifier:
    """Read what `save_noisy` wrote, frozen. Raises TiltingError: none there, or a classifier of clean pictures."""
    from safetensors.torch import load_file

    network, schema = read_config(folder)["network"], read_schema(folder)
    if network.get("name") != "noisy":
        raise TiltingError(
            f"the classifier in {str(folder)!r} is of clean pictures: classifier guidance needs one of noisy latents"
        )
    try:
        net = NoisyNet(schema.outputs, network["shape"], int(network["width"]))
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (KeyError, TypeError, RuntimeError) as error:
        raise TiltingError(f"the classifier in {str(folder)!r} does not load: {' '.join(str(error).split())[:200]}") from error
    return NoisyClassifier(net, schema).eval().requires_grad_(False)


LogProb = Callable[[Tensor, Time, Tensor], Tensor]
"""(x_t (m, ...), t, rows (m,)) -> (m,): Σ_k log p_k(y_k | x_t, t) of what each row is asked for."""


def classifier_guided(denoise: Denoise, log_p: LogProb, gamma: float) -> Denoise:
    """A denoiser under classifier guidance; at pure noise (alpha 0), where x_t says nothing of y, it is as it was."""

    def guided(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        eps, x0, correction = denoise(x, t, rows)
        if t.alpha == 0 or gamma == 0:
            return Prediction(eps, x0, correction)
        with torch.enable_grad():
            here = x.detach().requires_grad_(True)
            move = t.sigma * gamma * torch.autograd.grad(log_p(here, t, rows).sum(), here)[0]
        return Prediction(eps - move, x0 + t.sigma / t.alpha * move, correction)

    return guided


@dataclass(frozen=True)
class ClassifierGuided:
    """A model under classifier guidance, as a model: every sampler and method takes it in the pre-trained model's place.

    Attributes:
        model: a `tilting.models.stable_diffusion.StableDiffusion`, or anything that has its ``denoiser``.
        classifiers: of noisy latents, by label.
        targets: label -> the index of a class or the number that every image is asked for.
        gamma: γ.
    """

    model: Any
    classifiers: Mapping[str, NoisyClassifier]
    targets: Mapping[str, float]
    gamma: float = 1.0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        """The guided denoiser of these prompts."""

        def log_p(x: Tensor, t: Time, rows: Tensor) -> Tensor:
            asked = [self.classifiers[k].log_prob(x, t, x.new_full((len(x),), float(v))) for k, v in self.targets.items()]
            return torch.stack(asked).sum(0)

        return classifier_guided(self.model.denoiser(prompts, cfg, negative), log_p, self.gamma)


def reconstruction_guidance(gamma: float, particles: int = 1) -> Dps:
    """The preset of reconstruction guidance at strength γ, for a reward that is log p(y | x) itself (`classify`, `label`)."""
    return Dps(gamma, form="score", particles=particles)
