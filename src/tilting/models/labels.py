"""Labels as an input of a denoiser: CTRL's augmented model g(t, c, y, x; ψ), ψ = [θ, φ] (Zhao et al. 2024, section 4.2 and
App. D.1).

φ is an embedding with |Y| + 1 rows, zero at first; its last row means "no label" and stays zero. A continuous label has a
small network whose last layer is zero at first. Several labels add. Where the embedding enters:

    latent    x_t + E_y                         section 4.2
    score     eps - σ_t E_y                     App. D.1: added to the predicted score
    time      time embedding + E_y              the published code

The guided denoiser is App. B's, γ1 the prompt's strength and γ2 the label's; terms without y are the pre-trained model (LoRA
off):

    eps = eps(∅, ∅) + γ1 (eps(c, ∅) - eps(∅, ∅)) + γ2 (eps(c, y) - eps(c, ∅))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tilting.models.stable_diffusion import StableDiffusion
from tilting.schedule import correction, predict
from tilting.types import Denoise, Prediction, TiltingError, Time

Place = Literal["latent", "score", "time"]
PLACES = ("latent", "score", "time")


class LabelEmbedding(nn.Module):
    """E_y of one or more labels: the sum of a table's row for each discrete one and a small network's output for each number.

    Args:
        classes: label -> how many classes, or None for a number.
        width: numbers of an embedding: those of a latent for "latent" and "score", of the time embedding for "time".
        hidden: width of the network of a number.
    """

    def __init__(self, classes: Mapping[str, int | None], width: int, hidden: int = 64):
        super().__init__()
        self.classes, self.width = dict(classes), width
        self.tables = nn.ParameterDict({n: nn.Parameter(torch.zeros(k, width)) for n, k in classes.items() if k is not None})
        self.networks = nn.ModuleDict()
        for name, k in classes.items():
            if k is None:
                last = nn.Linear(hidden, width)
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
                self.networks[name] = nn.Sequential(nn.Linear(1, hidden), nn.SiLU(), last)

    def forward(self, labels: Mapping[str, Tensor]) -> Tensor:
        """(m, width) of labels (m,): class indices or standardised numbers; NaN is "no label", whose row is zero and frozen."""
        total = None
        for name, y in labels.items():
            given = ~y.isnan()
            if name in self.tables:
                table = self.tables[name]
                index = torch.where(given, y, 0).long()
                if int(index.max()) >= len(table) or int(index.min()) < 0:
                    raise TiltingError(f"the label {name!r} has classes 0 to {len(table) - 1}, not {int(index.max())}")
                e = table[index]
            elif name in self.networks:
                network = self.networks[name]
                e = network(torch.where(given, y, 0)[:, None].to(next(network.parameters()).dtype))
            else:
                raise TiltingError(f"this control knows no label {name!r}, only {', '.join(self.classes)}")
            e = e * given[:, None]
            total = e if total is None else total + e
        if total is None:
            raise TiltingError("no label is given")
        return total


@dataclass(frozen=True)
class Strength:
    """γ1 of the prompt and γ2 of the label at inference."""

    prompt: float
    label: float = 1.0


class Augmented:
    """A Stable Diffusion with labels: what `LabelEmbedding` and a LoRA make of it. The model's own weights are never changed.

    Args:
        model: the pre-trained model; its UNet may carry the control's LoRA.
        embedding: E_y.
        place: where it enters.
        base: a context in which the model is the pre-trained one (`tilting.models.lora.lora_off`).
    """

    def __init__(
        self, model: StableDiffusion, embedding: LabelEmbedding, place: Place = "latent",
        base: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):  # fmt: skip
        if place not in PLACES:
            raise TiltingError(f"an embedding is added to latent, score or time, not {place!r}")
        self.model, self.embedding, self.place, self.base = model, embedding, place, base

    def conditioned(self, x: Tensor, t: Time, context: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        """The network's output for (c, y), (m, ...), gradients reaching LoRA and embedding."""
        e = self.embedding(labels).to(x)
        if self.place == "latent":
            return self.model.network(x + e.reshape(x.shape), t, context)
        if self.place == "score":
            output = self.model.network(x, t, context)
            kind = self.model.schedule.kind
            factor = {
                "epsilon": 1.0,
                "v_prediction": 1 / t.alpha if t.alpha > 0 else 0.0,
                "flow": 1 / t.alpha if t.alpha > 0 else 0.0,
            }
            return output - t.sigma * factor.get(kind, 0.0) * e.reshape(x.shape)  # eps - σ E, in the network's own terms
        handle = self.model.unet.time_embedding.register_forward_hook(lambda module, inputs, out: out + e.to(out))
        try:
            return self.model.network(x, t, context)
        finally:
            handle.remove()

    def denoisers(
        self, prompts: Sequence[str], labels: Mapping[str, Tensor], strength: Strength, negative: str = ""
    ) -> tuple[Denoise, Denoise]:
        """(the controlled denoiser, the pre-trained one under CFG), of images with these prompts and labels (b,) each."""
        context, empty = self.model.encode_prompts(list(prompts)), self.model.encode_prompts([negative])
        kind = self.model.schedule.kind

        def free(x: Tensor, t: Time, text: Tensor) -> tuple[Tensor, Tensor]:
            with self.base():
                both = self.model.network(torch.cat([x, x]), t, torch.cat([empty.expand_as(text), text]))
            without, with_text = both.chunk(2)
            return without, with_text

        def pretrained(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            without, with_text = free(x, t, context[rows])
            return self._prediction(kind, without + strength.prompt * (with_text - without), with_text - without, x, t)

        def controlled(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            text = context[rows]
            without, with_text = free(x, t, text)
            mine = {name: y.to(x.device)[rows] for name, y in labels.items()}
            with_label = self.conditioned(x, t, text, mine)
            output = without + strength.prompt * (with_text - without) + strength.label * (with_label - with_text)
            return self._prediction(kind, output, with_text - without, x, t)

        return controlled, pretrained

    @staticmethod
    def _prediction(kind: Any, output: Tensor, difference: Tensor, x: Tensor, t: Time) -> Prediction:
        eps, x0 = predict(kind, output, x, t)
        return Prediction(eps, x0, correction(kind, difference, t))


class Controlled:
    """A control with its labels fixed, as a model: every sampler and method takes it in the pre-trained model's place.

    Args:
        augmented: the control.
        labels: label -> class index or standardised number of every image drawn.
        strength: γ2.
    """

    def __init__(self, augmented: Augmented, labels: Mapping[str, float], strength: float = 1.0):
        self.augmented, self.labels, self.strength = augmented, dict(labels), strength
        model = augmented.model
        self.name, self.schedule = model.name, model.schedule
        self.latent_shape, self.image_shape = model.latent_shape, model.image_shape
        self.usual_steps, self.usual_cfg = model.usual_steps, model.usual_cfg
        self.decode, self.encode, self.encode_prompts = model.decode, model.encode, model.encode_prompts

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        """The controlled denoiser of these prompts; see `StableDiffusion.denoiser`."""
        labels = {name: torch.full((len(prompts),), float(y)) for name, y in self.labels.items()}
        return self.augmented.denoisers(prompts, labels, Strength(cfg, self.strength), negative)[0]


def width_of(model: StableDiffusion, place: Place) -> int:
    """Numbers of an embedding at a place."""
    if place == "time":
        return model.unet.time_embedding.linear_2.out_features
    return math.prod(model.latent_shape)
