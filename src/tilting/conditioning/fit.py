"""CTRL's step 2: p(y | x) by maximum likelihood (Zhao et al. 2024, section 4.2 and appendix D.1). No files, no printing.

    classes     minimise  -Σ_i log softmax(z(x_i))_{y_i}
    a number    minimise   Σ_i ((u_i - m(x_i)) / σ)² / 2 + log σ,    u = (y - shift) / scale, with σ learnt beside m

by Adam. After every epoch the likelihood of the held-out part is taken; the best epoch is kept, and the fit stops when none of
the last ``patience`` was better. The paper trains all of its 100 epochs; its batch size and rate are not in it. Then
T is fitted to the same held-out part (`tilting.conditioning.calibrate`). All randomness is keyed by (seed, label, epoch), so a
resumed fit is the same fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting import rng
from tilting.conditioning.networks import Inputs, keyed, learnt_part
from tilting.config.condition_fit import FitConfig
from tilting.errors import TiltingError
from tilting.features.schema import Schema
from tilting.training.checkpoint import Saved, optimiser_tensors, restore_optimiser

AT_ONCE = 256
"""Records whose outputs are computed at a time where nothing is learnt."""
SIGMA_FASTER = 10.0
"""Times the rate, for log σ alone: a fit of a few hundred steps would not reach it otherwise."""


class Epoch(NamedTuple):
    """What an epoch did, in nats per record; for a number, of its density in the label's unit.

    Attributes:
        epoch: counted from 1.
        loss: mean over the epoch's steps, as it went.
        held_out: negative log-likelihood of the held-out part after it.
        best: the lowest so far.
    """

    epoch: int
    loss: float
    held_out: float
    best: float


class Likelihood(nn.Module):
    """The learnt part of p(y | x), with the logarithm of a number's σ."""

    def __init__(self, part: nn.Module, schema: Schema):
        super().__init__()
        self.part, self.schema = part, schema
        self.log_sigma = nn.Parameter(torch.zeros(())) if schema.kind == "gaussian" else None

    def forward(self, inputs: Tensor, y: Tensor) -> Tensor:
        """(b,) negative log-likelihood of y (b,), on any device: indices of classes or numbers in the label's unit."""
        outputs = self.part(inputs)
        if self.log_sigma is None:
            return F.cross_entropy(outputs, y.long().to(outputs.device), reduction="none")
        gap = ((y - self.schema.shift) / self.schema.scale).to(outputs) - outputs[:, 0]
        scale = 0.5 * math.log(2 * math.pi) + math.log(self.schema.scale)
        return 0.5 * gap.square() * torch.exp(-2 * self.log_sigma) + self.log_sigma + scale


def schema_of(label: str, classes: Sequence[str], y: Tensor) -> Schema:
    """The schema of a label: its classes, or (where there are none) the mean and spread of the numbers y to learn from."""
    if classes:
        return Schema(label, classes=tuple(classes))
    spread = float(y.double().std(unbiased=False))
    if not spread > 0:
        raise TiltingError(f"the label {label!r} is the same number in all that is learnt from")
    return Schema(label, "gaussian", shift=float(y.double().mean()), scale=spread, std=spread)


@dataclass
class Fit:
    """A fit while it goes on.

    Attributes:
        net: the whole network; its learnt part is changed in place.
        model: the likelihood of that part.
        optimiser: Adam over it.
        epoch: epochs made.
        best: the state of the best epoch's model.
        history: of all epochs made.
    """

    net: Any
    model: Likelihood
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch of the lowest held-out likelihood, the first of them; 0 before any."""
        return min(self.history, key=lambda e: e.held_out).epoch if self.history else 0

    def done(self, config: FitConfig) -> bool:
        """Whether all epochs are made, or none of the last was better."""
        return self.epoch >= config.epochs or self.epoch - self.best_epoch >= config.patience

    def saved(self) -> Saved:
        """A copy for a checkpoint."""
        now = {f"now.{k}": v.detach().clone() for k, v in self.model.state_dict().items()}
        best = {f"best.{k}": v.clone() for k, v in self.best.items()}
        return Saved(self.epoch, now | best, optimiser_tensors(self.optimiser), {"history": [list(e) for e in self.history]})

    def restore(self, saved: Saved) -> None:
        """Go back to a checkpoint. Raises TiltingError if it is of another network."""
        try:
            self.model.load_state_dict(_under("now.", saved.weights))
        except RuntimeError:
            raise TiltingError("the checkpoint of the fit is of another network") from None
        self.best = _under("best.", saved.weights)
        restore_optimiser(self.optimiser, saved.optimiser)
        self.epoch, self.history = saved.step, [Epoch(*e) for e in saved.state["history"]]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def begin(net: Any, schema: Schema, config: FitConfig, device: torch.device | str = "cpu") -> Fit:
    """A fit before its first epoch."""
    net.to(device)
    model = Likelihood(learnt_part(net), schema).to(device)
    groups: list[dict[str, Any]] = [{"params": list(model.part.parameters())}]
    if model.log_sigma is not None:
        groups.append({"params": [model.log_sigma], "lr": SIGMA_FASTER * config.lr})
    return Fit(net, model, torch.optim.Adam(groups, lr=config.lr))


def epochs(
    fit: Fit, inputs: Inputs, y: Tensor, learn: Sequence[int], held_out: Sequence[int], config: FitConfig
) -> Iterator[Epoch]:
    """Make epochs until the fit is done, yielding a report of each.

    Args:
        fit: changed in place; a restored one goes on.
        inputs: numbers of records -> what the learnt part is fed.
        y: (n,) of all records: indices of classes, or numbers.
        learn, held_out: numbers of the records to learn from, and of those held out.
        config: of the fit.

    Raises:
        TiltingError: a likelihood that is not finite.
    """
    label = fit.model.schema.label
    while not fit.done(config):
        draw = rng.generator(rng.Identity(config.seed, label, fit.epoch), 0, 0, "batches")
        order = torch.tensor(learn)[torch.randperm(len(learn), generator=draw)]
        total = 0.0
        fit.model.train()
        fall = 0.5 * (1 + math.cos(math.pi * fit.epoch / config.epochs))
        for group, rate in zip(fit.optimiser.param_groups, (config.lr, SIGMA_FASTER * config.lr), strict=False):
            group["lr"] = fall * rate
        with keyed(config.seed, label, fit.epoch, "dropout"), torch.enable_grad():
            for rows in order.tensor_split(-(-len(learn) // config.batch_size)):
                fed = inputs(rows.tolist())
                loss = fit.model(fed, y[rows]).mean()
                fit.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                fit.optimiser.step()
                total += loss.item() * len(rows)
        after = _nll(fit.model, inputs, y, held_out)
        if not (math.isfinite(total) and math.isfinite(after)):
            raise TiltingError(f"the fit of {label!r} is not finite any more after {fit.epoch + 1} epochs: lower --lr")
        if not fit.history or after < min(e.held_out for e in fit.history):
            fit.best = {k: v.detach().clone() for k, v in fit.model.state_dict().items()}
        fit.epoch += 1
        lowest = min([after, *(e.held_out for e in fit.history)])
        fit.history.append(Epoch(fit.epoch, total / len(learn), after, lowest))
        yield fit.history[-1]


@torch.no_grad()
def _nll(model: Likelihood, inputs: Inputs, y: Tensor, rows: Sequence[int]) -> float:
    model.eval()
    sums = 0.0
    for part in torch.tensor(rows).split(AT_ONCE):
        fed = inputs(part.tolist())
        sums += float(model(fed, y[part]).cpu().double().sum())
    return sums / len(rows)


@torch.no_grad()
def ended(fit: Fit, inputs: Inputs, held_out: Sequence[int]) -> tuple[Schema, Tensor]:
    """The best epoch put back: its schema at temperature 1, and its outputs (held out, outputs) on the CPU."""
    fit.model.load_state_dict(fit.best)
    fit.model.eval()
    schema = fit.model.schema
    if fit.model.log_sigma is not None:
        schema = replace(schema, std=schema.scale * math.exp(float(fit.model.log_sigma.detach())))
    parts = [fit.model.part(inputs(part.tolist())).cpu() for part in torch.tensor(held_out).split(AT_ONCE)]
    return schema, torch.cat(parts).double()
