"""Label-conditioned denoiser: CTRL's augmented model g(t, c, y, x; ψ), ψ = [θ, φ] (Zhao et al. 2024, section 4.2, App. D.1).

φ is an embedding with |Y| + 1 rows, zero at first; its last row means "no label" and stays zero. A continuous label has a
small network whose last layer is zero at first. Several labels add. Where the embedding enters:

    latent    x_t + E_y                         section 4.2
    score     eps - σ_t E_y                     App. D.1: added to the predicted score
    time      time embedding + E_y              the published code

The guided denoiser is App. B's, γ1 the prompt's strength and γ2 the label's; terms without y are the pre-trained model (LoRA
off). Controls k trained apart add, each with its own LoRA in its own term alone (Example 2: log p(y_1, y_2 | x) is a sum):

    eps = eps(∅, ∅) + γ1 (eps(c, ∅) - eps(∅, ∅)) + Σ_k γ2_k (eps_k(c, y_k) - eps(c, ∅))

A control that has learnt "no label" itself, by classifier-free fine-tuning on data that are not the model's, is led away from
that, not from the model (Ho & Salimans 2022): its term is n_k + γ2_k (eps_k(c, y_k) - n_k) - eps(c, ∅), n_k = eps_k(c, ∅). Led
away from the model, γ2 would amplify all that tells the data from the model's own pictures. At γ2 = 1 the two are one.

All terms are network calls of the same rows, so that a control that has learnt nothing is the pre-trained model exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tilting.errors import nearest
from tilting.models.guided_network import Conditioning, Outputs
from tilting.models.pipeline import Pipeline
from tilting.schedule import Kind, correction
from tilting.types import Denoise, Prediction, TiltingError, Time, Watch

Place = Literal["latent", "score", "time"]
PLACES = ("latent", "score", "time")


class LabelEmbedding(nn.Module):
    """E_y of one or more labels: the sum of a table's row for each discrete one and a small network's output for each number.

    Inside a module they lie by number, since many a label ("type", "a.b") is no name that torch has for a parameter; in its
    state they are tables.LABEL and networks.LABEL, and so they are in files.

    Args:
        classes: label -> how many classes, or None for a number.
        width: numbers of an embedding: those of a latent for "latent" and "score", of the time embedding for "time".
        hidden: width of the network of a number.

    Attributes:
        tables: label -> (classes, width).
        networks: label -> the network of a number.
    """

    def __init__(self, classes: Mapping[str, int | None], width: int, hidden: int = 64):
        super().__init__()
        self.classes, self.width = dict(classes), width
        self._discrete = [name for name, k in classes.items() if k is not None]
        self._numbers = [name for name, k in classes.items() if k is None]
        self._tables = nn.ParameterList(nn.Parameter(torch.zeros(k, width)) for k in classes.values() if k is not None)
        self._networks = nn.ModuleList()
        for _ in self._numbers:
            last = nn.Linear(hidden, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self._networks.append(nn.Sequential(nn.Linear(1, hidden), nn.SiLU(), last))

    @property
    def tables(self) -> dict[str, nn.Parameter]:
        return dict(zip(self._discrete, self._tables, strict=True))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return dict(zip(self._numbers, self._networks, strict=True))

    def named(self) -> dict[str, nn.Parameter]:
        """The parameters by the names that files have."""
        parameters = dict(self.named_parameters())
        return {outside: parameters[inside] for outside, inside in self._inside().items()}

    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        """The tensors by the names that files have."""
        return {name: p.detach() for name, p in self.named().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over what `state_dict` gave. Raises RuntimeError for other names or shapes."""
        inside = self._inside()
        return super().load_state_dict({inside.get(name, name): value for name, value in state_dict.items()}, strict, assign)

    def _inside(self) -> dict[str, str]:
        """Name in files -> name in the module, of all tensors."""
        names = {f"tables.{name}": f"_tables.{i}" for i, name in enumerate(self._discrete)}
        for i, (name, network) in enumerate(self.networks.items()):
            names |= {f"networks.{name}.{part}": f"_networks.{i}.{part}" for part, _ in network.named_parameters()}
        return names

    def forward(self, labels: Mapping[str, Tensor]) -> Tensor:
        """(m, width) of labels (m,): class indices or standardised numbers; NaN is "no label", whose row is zero and frozen."""
        total, tables, networks = None, self.tables, self.networks
        for name, y in labels.items():
            given = ~y.isnan()
            if name in tables:
                table = tables[name]
                index = torch.where(given, y, 0).long()
                if int(index.max()) >= len(table) or int(index.min()) < 0:
                    raise TiltingError(f"the label {name!r} has classes 0 to {len(table) - 1}, not {int(index.max())}")
                e = table[index]
            elif name in networks:
                network = networks[name]
                e = network(torch.where(given, y, 0)[:, None].to(next(network.parameters()).dtype))
            else:
                raise TiltingError(f"this control knows no label {name!r}, only {', '.join(self.classes)}")
            e = e * given[:, None]
            total = e if total is None else total + e
        if total is None:
            raise TiltingError("no label is given")
        return total


def _score_shift(kind: Kind, t: Time) -> float:
    """What E of a score is in the network's own output: eps moves by -σ E, x0 by σ²/α E. At pure noise (alpha 0), where the
    score says nothing of x0, only a network that predicts eps moves."""
    if kind == "epsilon":
        return -t.sigma
    if t.alpha == 0:
        return 0.0
    return t.sigma**2 / t.alpha if kind == "sample" else -t.sigma / t.alpha


class Augmented:
    """A pipeline with labels: what `LabelEmbedding` and a LoRA make of it. The model's own weights are never changed.

    Args:
        model: the pre-trained model; its network may carry the control's LoRA.
        embedding: E_y.
        place: where it enters.
        base: a context in which the model is the pre-trained one (`tilting.models.lora.without` what is trained).
        own: a context in which its network carries this control's LoRA too (`tilting.models.lora.beside`).
        off: the time at and below which the control is silent: where its training chain had no density, so that nothing priced
            leaving the pre-trained model.
        unlabelled: whether "no label" was learnt too, with the LoRA on: what γ2 then leads away from.
    """

    def __init__(
        self,
        model: Pipeline,
        embedding: LabelEmbedding,
        place: Place = "latent",
        base: Callable[[], AbstractContextManager[Any]] = nullcontext,
        own: Callable[[], AbstractContextManager[Any]] = nullcontext,
        off: float = -1.0,
        unlabelled: bool = False,
    ):
        if place not in PLACES:
            raise TiltingError(f"an embedding is added to latent, score or time, not {place!r}{nearest(place, PLACES)}")
        self.model, self.embedding, self.place, self.base, self.own = model, embedding, place, base, own
        self.off, self.unlabelled = off, unlabelled

    def conditioned(self, x: Tensor, t: Time, context: Conditioning, labels: Mapping[str, Tensor]) -> Tensor:
        """The network's output for (c, y), (m, ...), gradients reaching LoRA and embedding; of a prompt alone, without a
        pair."""
        e = self.embedding(labels).to(x)
        with self.own():
            if self.place == "latent":
                return self.model.network(x + e.reshape(x.shape), t, context)
            if self.place == "score":
                output = self.model.network(x, t, context)
                kind = self.model.schedule.kind
                return output + _score_shift(kind, t) * e.reshape(x.shape)
            handles = [one.register_forward_hook(lambda _, __, out: out + e.to(out)) for one in time_embeddings(self.model)]
            try:
                return self.model.network(x, t, context)
            finally:
                for handle in handles:
                    handle.remove()


@dataclass(frozen=True)
class Term:
    """A control at work.

    Attributes:
        augmented: the control.
        labels: label -> (b,) class indices or standardised numbers of the images; NaN is "no label".
        strength: γ2.
    """

    augmented: Augmented
    labels: Mapping[str, Tensor]
    strength: float = 1.0

    def added(self, x: Tensor, t: Time, text: Conditioning, rows: Tensor, plain: Tensor) -> Tensor | float:
        """What it adds to the network's output; ``plain`` is the pre-trained model's for the same prompts."""
        control, strength = self.augmented, self.strength
        if t.t <= control.off:
            return 0.0
        mine = {name: y.to(x.device)[rows] for name, y in self.labels.items()}
        none = {name: torch.full_like(y, torch.nan) for name, y in mine.items()}
        added: Tensor | float = 0.0
        for labels, weight in ((mine, strength), (none, 1 - strength if control.unlabelled else 0.0)):
            if weight:
                added = added + weight * (control.conditioned(x, t, text, labels) - plain)
        return added


def guided(
    terms: Sequence[Term],
    prompts: list[str],
    prompt_strength: float,
    negative: str = "",
    watch: Watch | None = None,
    count: Callable[[int], object] = lambda latents: None,
) -> tuple[Denoise, Denoise]:
    """The denoiser of several controls together, and the pre-trained one under CFG.

    The second takes from the first what it has just computed, if it is asked about the same x and t next, as a path KL does.

    Args:
        terms: controls of one and the same model.
        prompts: of the images (b,).
        prompt_strength: γ1; of a model that is told its scale, that.
        negative: the text of the unconditional branch.
        watch: called with both predictions at every evaluation of the first.
        count: called with the latents of every evaluation that is made; all terms of one count as one, as CFG does.
    """
    first = terms[0].augmented
    model, kind = first.model, first.model.schedule.kind
    network = model.guided_network(prompts, prompt_strength, negative, split=True)
    if any(term.augmented.model is not model for term in terms):
        raise TiltingError("controls that are used together must be of one and the same model")
    shared: list[tuple[Tensor, Time, Outputs]] = []

    def free(x: Tensor, t: Time, rows: Tensor) -> Outputs:
        count(len(x))
        with first.base():
            return network(x, t, rows)

    def prediction(found: Outputs, t: Time, added: Tensor | float = 0.0) -> Prediction:
        eps, x0 = model.predict(found.guided + added, found.seen, t)
        return Prediction(eps, x0, correction(kind, found.difference, t))

    def pretrained(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        known = shared and shared[0][0] is x and shared[0][1] is t
        found = shared.pop()[2] if known else free(x, t, rows)
        return prediction(found, t)

    def controlled(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        found = free(x, t, rows)
        shared[:] = [(x, t, found)]
        added = torch.zeros_like(x)
        for term in terms:
            added = added + term.added(x, t, network.conditional[rows], rows, found.conditional)
        steered = prediction(found, t, added)
        if watch is not None:
            with torch.no_grad():
                watch(steered, prediction(found, t), t, rows)
        return steered

    return controlled, pretrained


class Controlled:
    """Controls with their labels fixed, as a model: every sampler and method takes it in the pre-trained model's place.

    Args:
        augmented: a control.
        labels: label -> class index or standardised number of every image drawn; one that is left out is "no label".
        strength: γ2.

    Raises:
        TiltingError: the model keeps a cache between steps.
    """

    def __init__(self, augmented: Augmented, labels: Mapping[str, float], strength: float = 1.0):
        self.parts: list[tuple[Augmented, dict[str, float], float]] = [(augmented, dict(labels), strength)]
        model = self.model = augmented.model
        self.name, self.schedule = model.name, model.schedule
        self.latent_shape, self.image_shape = model.latent_shape, model.image_shape
        self.default_steps, self.default_cfg = model.default_steps, model.default_cfg
        self.decode, self.encode = model.decode, model.encode
        if getattr(model, "anew", None) is not None:
            raise TiltingError("a control asks the network several times a step, which a cache would mix: leave --cache out")
        for name in ("decoder", "pair", "start", "tokenizers", "looker", "look_decoder", "waits", "place"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.watch: Watch | None = None

    def __repr__(self) -> str:
        told = (f"{name}={value:g}" for _, labels, _ in self.parts for name, value in labels.items())
        return f"{type(self).__name__}({self.name!r}, {', '.join(told)})"

    @property
    def device(self) -> torch.device:
        return self.model.device

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "") -> Denoise:
        """The controlled denoiser of these prompts; see `Pipeline.denoiser`."""
        n = len(prompts)
        same = partial(torch.full, (n,), device="cpu")
        terms = [Term(a, {k: same(float(y)) for k, y in labels.items()}, s) for a, labels, s in self.parts]
        return guided(terms, list(prompts), cfg, negative, self.watch)[0]


def together(*controlled: Controlled) -> Controlled:
    """Controls trained apart, used together: their terms add."""
    whole = Controlled(*controlled[0].parts[0])
    whole.parts = [part for one in controlled for part in one.parts]
    return whole


def time_embeddings(model: Pipeline) -> list[Any]:
    """What the networks that denoise make of a time, a layer each. Raises TiltingError where there is none."""
    found = []
    for network in model.denoisers():
        named = [(name, one) for name, one in network.named_modules() if type(one).__name__ == "TimestepEmbedding"]
        mine = [one for name, one in named if "time" in name.rpartition(".")[2]]
        if not mine:
            raise TiltingError(f"the network of {model.name!r} has no time embedding to add labels to: place latent or score")
        found.append(mine[0])
    return found


def width_of(model: Any, place: Place) -> int:
    """Numbers of an embedding at a place. Raises TiltingError for a model that cannot have one."""
    if not hasattr(model, "guided_network"):
        raise TiltingError(f"controls are of diffusers' pipelines, which {getattr(model, 'name', model)!r} is not")
    if getattr(model, "from_picture", False):
        raise TiltingError(f"{model.name!r} begins from pictures, and a control is of one that draws from noise")
    if place == "time":
        return time_embeddings(model)[0].linear_2.out_features
    return math.prod(model.latent_shape)
