"""A model that is no pipeline of diffusers: plain PyTorch, pictures or signals, under every method. docs/models.md shows it."""

from __future__ import annotations

import pytest
import torch

import tilting as tl
from tilting.presets import METHODS
from tilting.schedule import Schedule, predict, scaled_linear
from tilting.types import Prediction


class Gaussian:
    """Data N(mean, spread²) of any shape, so the exact denoiser: what `tilting.generation.plan.Model` asks for, and no more.

    Args:
        mean: of a datum: a picture (3, h, w), or a signal (1, length).
        spread: of each of its numbers.
    """

    default_steps, default_cfg = 6, 2.0

    def __init__(self, mean, spread=0.3):
        self.name, self.mean, self.spread = "gaussian", mean, spread
        self.schedule = Schedule("epsilon", scaled_linear())
        self.latent_shape = tuple(mean.shape)
        self.image_shape = tuple(self.decode(mean[None]).shape[1:])

    def denoiser(self, prompts, cfg, negative=""):
        """A prompt moves the mean by its length; the unconditional mean is 0."""
        moved = torch.tensor([len(prompt) / 100 for prompt in prompts])

        def eps(x, t, mean):
            variance = t.alpha**2 * self.spread**2 + t.sigma**2
            return t.sigma * (x - t.alpha * mean) / variance

        def denoise(x, t, rows):
            mean = self.mean + moved[rows].reshape(-1, *[1] * self.mean.ndim)
            difference = eps(x, t, mean) - eps(x, t, 0 * mean)
            output = eps(x, t, 0 * mean) + cfg * difference
            return Prediction(*predict(self.schedule.kind, output, x, t), difference)

        return denoise

    def decode(self, latents):
        """Pictures (m, 3, h, w) in [0, 1]; of a signal one row of grey."""
        pixels = (latents / 2 + 0.5).clamp(0, 1)
        return pixels if pixels.ndim == 4 else pixels[:, :, None].expand(-1, 3, -1, -1)

    def encode(self, images):
        latents = images * 2 - 1
        return latents if self.mean.ndim == 3 else latents[:, :1, 0]


MODELS = {
    "pictures": Gaussian(torch.tensor([0.2, -0.4, -0.4])[:, None, None].expand(3, 8, 8)),
    "signals": Gaussian(0.5 * torch.sin(torch.arange(24) / 4)[None]),
}


def bright(images, prompts):
    return images.mean((1, 2, 3))


bright.differentiable = True


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_steers_a_plain_model(kind, method):
    model, preset = MODELS[kind], METHODS[method]()
    more = {"image": model.decode(model.mean[None])} if preset.needs_picture else {}
    drawn = tl.generate(model, ["a fox", "an owl"], bright, method, seed=3, **more)
    assert drawn.images.shape == (2, *model.image_shape) and drawn.images.isfinite().all()
    assert drawn.manifest["summary"]["evaluations"] >= 2
    again = tl.generate(model, ["a fox", "an owl"], bright, method, seed=3, batch_size=1, **more)
    assert (drawn.images - again.images).abs().max() < 1e-4


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["bon", "code", "fk", "tds", "dps"])
def test_and_the_reward_rises(kind, method):
    model = MODELS[kind]
    means = [
        tl.generate(model, "a fox", bright, one, seed=1, images=8).manifest["summary"]["reward_mean"]
        for one in ("base", method)
    ]
    assert means[1] > means[0]
