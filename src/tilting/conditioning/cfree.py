"""CTRL's training baseline: classifier-free fine-tuning on triplets (c, x, y) (Ho & Salimans 2022; Zhao et al. 2024, 5.2).

    minimise  E |target_ψ(α_t x_0 + σ_t ε, t, c, y') - target|²,    y' = y, or "no label" for a share of the images

The target is the network's own: ε, v = α ε - σ x_0, u = ε - x_0 of flow, or x_0. The optimum is the law of the data,
p(x | c, y), not the pre-trained model's tilt: what the labelled pairs lack, the model forgets. The augmented model, its files
and its use at inference (γ1, γ2) are those of CTRL (`tilting.models.labels`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tilting import rng
from tilting.models.labels import Augmented
from tilting.objectives.batch import Loss, TrainBatch
from tilting.objectives.denoising import training_error
from tilting.schedule import Kind, Schedule, add_noise, predict
from tilting.types import Prediction, TiltingError, Time


@dataclass(frozen=True)
class ClassifierFree:
    """The objective. The batch's ``plain`` denoiser is the augmented model at the batch's labels.

    Attributes:
        clean: batch -> x_0 (b, ...) of its images.
        kind: of the network.
        times: parts of a batch, each at a time of its own; they spread evenly over the batch's grid, and count alike however
            many images each has. A batch of fewer images has as many parts as images.
        name: of the objective.
    """

    clean: Callable[[TrainBatch], Tensor]
    kind: Kind = "v_prediction"
    times: int = 8
    name: str = "classifier-free"
    updates_several = False

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        clean, noise = self.clean(batch), batch.noise(0, "fit")
        size = len(batch.prompts)
        times = min(self.times, size)
        at = (torch.arange(times, device="cpu") + torch.rand(times, generator=batch.generator("time"), device="cpu")) / times
        errors, whole = [], torch.arange(size, device="cpu") - batch.first
        for share, part in zip(at.tolist(), whole.tensor_split(times), strict=True):
            rows = part[(part >= 0) & (part < len(batch.who))]  # of a batch over all processes those that are here
            if len(rows):
                t = batch.grid[min(int(share * batch.steps), batch.steps - 1)]
                prediction = batch.plain(add_noise(clean[rows], noise[rows], t), t, rows)
                error = training_error(prediction, clean[rows], noise[rows], t, self.kind)
                errors.append(error.sum() / (len(part) * times))
        loss = batch.processes * torch.stack(errors).sum()
        yield Loss(loss, {"error": loss.item()})


@dataclass(frozen=True)
class Triplets:
    """Labelled data (c, x, y).

    Attributes:
        latents: (n, ...) clean.
        labels: label -> (n,) class indices or standardised numbers; NaN is "no label".
        prompts: n texts; empty ones where there are none.
    """

    latents: Tensor
    labels: Mapping[str, Tensor]
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        sizes = {len(self.latents), len(self.prompts), *(len(y) for y in self.labels.values())}
        if len(sizes) > 1 or not self.labels or 0 in sizes:
            raise TiltingError(f"triplets need as many latents as labels and prompts, and at least one, not {sorted(sizes)}")


def draw_rows(count: int, size: int, seed: int, step: int) -> Tensor:
    """(size,) numbers of the records of a training step: one permutation of all ``count`` after another, keyed by the seed."""
    places = range(step * size, (step + 1) * size)
    orders: dict[int, Tensor] = {}
    for place in places:
        e = place // count
        if e not in orders:
            generator = rng.generator(rng.Identity(seed, "triplets", e), 0, 0, "batches")
            orders[e] = torch.randperm(count, generator=generator)
    return torch.stack([orders[place // count][place % count] for place in places])


def drop_labels(labels: Mapping[str, Tensor], share: float, seed: int, step: int) -> dict[str, Tensor]:
    """Labels (b,) with that share of the images, all labels of an image together, turned into "no label" (NaN)."""
    if not 0 <= share <= 1:
        raise TiltingError(f"label dropout must be between 0 and 1, not {share}")
    size = len(next(iter(labels.values())))
    gone = torch.rand(size, generator=rng.generator(rng.Identity(seed, "triplets", step), 0, 0, "dropout")) < share
    return {name: torch.where(gone, torch.nan, y.double()).float() for name, y in labels.items()}


def times_of(augmented: Augmented) -> list[Time]:
    """The training times, noisiest first, and clean data; of a flow those of a grid of 1000 steps."""
    schedule = augmented.model.schedule
    if not schedule.alpha_bar:
        return [Time(*t) for t in schedule.grid(1000)]
    return Schedule(schedule.kind, schedule.alpha_bar, schedule.final).grid(len(schedule.alpha_bar))


def batch_of(
    augmented: Augmented,
    data: Triplets,
    size: int,
    dropout: float,
    seed: int,
    step: int,
    index: int = 0,
    count: int = 1,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[TrainBatch, Tensor]:
    """A batch of triplets for the objective, and the clean latents of the whole of it.

    Args:
        augmented: what is trained.
        data: labelled latents.
        size: of the batch, over all processes.
        dropout: see `drop_labels`.
        seed, step: what the draw is keyed by.
        index, count: which process, of how many.
        context: entered around every network call.
    """
    model, kind = augmented.model, augmented.model.schedule.kind
    drawn, share = draw_rows(len(data.latents), size, seed, step), size // count
    first = index * share
    here = slice(first, first + share)
    labels = drop_labels({k: y[drawn] for k, y in data.labels.items()}, dropout, seed, step)
    labels = {k: y[here].to(model.device) for k, y in labels.items()}
    everyone = [data.prompts[int(i)] for i in drawn]
    prompts = everyone[here]
    text = model.encode_prompts(prompts)

    def plain(x: Tensor, t: Time, which: Tensor) -> Prediction:
        with context():
            output = augmented.conditioned(x, t, text[which], {k: y[which] for k, y in labels.items()}).to(x.dtype)
        eps, x0 = predict(kind, output, x, t)
        return Prediction(eps, x0, torch.zeros_like(x))

    def base(x: Tensor, t: Time, which: Tensor) -> Prediction:
        with augmented.base(), torch.no_grad(), context():
            eps, x0 = predict(kind, model.network(x, t, text[which]).to(x.dtype), x, t)
        return Prediction(eps, x0, torch.zeros_like(x))

    who = [rng.Identity(seed, p, step * size + i) for i, p in enumerate(everyone)]
    clean = data.latents[drawn].to(model.device)
    batch = TrainBatch(
        plain,
        base,
        plain,
        base,
        lambda x0, which: x0.new_zeros(len(x0)),
        times_of(augmented),
        who[here],
        tuple(clean.shape[1:]),
        1.0,
        step,
        seed,
        everyone=who,
        first=first,
        device=model.device,
        dtype=clean.dtype,
    )
    return batch, clean
