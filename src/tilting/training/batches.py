"""Training batches of a latent diffusion model: the trained and the frozen denoiser, the reward of decoded latents.

A batch is `batch` images: groups of one prompt, prompts drawn without replacement as far as they go by a generator keyed by
(seed, step); image j of training step k is index -(k·batch + j) - 1 of its prompt, so that no image that `tilting generate`
draws by the same seed is trained on. Every number is a function of (seed, step): a resumed run is the same run, and so is
one over more processes, each of which holds a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tilting import rng
from tilting.config.pairs import Pair
from tilting.config.picture import read_picture
from tilting.config.training import TrainingConfig
from tilting.errors import TiltingError
from tilting.features.picture import open_rgb
from tilting.generation.plan import Model, decoder_of, looker_of
from tilting.models.lora import TRAINED, without
from tilting.models.text import learning, tell_of_cuts
from tilting.objectives.batch import NETWORKS, Loss, Losses, TrainBatch
from tilting.objectives.recompute import recomputed
from tilting.rewards.check import check_values, checked, framewise
from tilting.rewards.weighted_sum import as_sum
from tilting.schedule import Law
from tilting.training.diversity import Diversity, to_reverse
from tilting.training.processes import Engine
from tilting.types import Denoise, Prediction, Reward, RewardError, Time, ValueFn


@dataclass
class Counts:
    """What training has paid, on this process: latents through the denoiser (those that checkpointed steps make again
    included), images scored, images generated."""

    evaluations: int = 0
    reward_calls: int = 0
    images: int = 0

    def numbers(self) -> dict[str, int]:
        return asdict(self)


def alone(model: Model, prompts: list[str], cfg: float, negative: str) -> Denoise:
    """The denoiser of the prompts' branch of a request. Of a guidance-distilled model, whose scale is an input of its network,
    that is the model at that scale: at 1 it is another than the one that draws."""
    branch = getattr(model, "conditional_denoiser", None)
    return model.denoiser(prompts, 1.0) if branch is None else branch(prompts, cfg, negative)


def batch_rows(count: int, seed: int, step: int, groups: int) -> list[int]:
    """Which of so many prompts are drawn in a training step, one for each group of the batch."""
    generator = rng.generator(rng.Identity(seed, "", step), 0, 0, "prompts")
    chosen: list[int] = []
    while len(chosen) < groups:
        chosen += torch.randperm(count, generator=generator, device="cpu").tolist()
    return chosen[:groups]


def batch_identities(prompts: Sequence[str], seed: int, step: int, batch: int, group: int) -> list[rng.Identity]:
    """Who is drawn in a training step, over all processes; a group's images stand together. A prompt given several times
    counts as often."""
    chosen = batch_rows(len(prompts), seed, step, batch // group)
    who = [prompts[chosen[j // group]] for j in range(batch)]
    return [rng.Identity(seed, prompt, -(step * batch + j) - 1) for j, prompt in enumerate(who)]


@dataclass
class Batches:
    """(training step, memory) -> the batch of that step; what a training loop asks for.

    Attributes:
        model: what is trained, its LoRA attached and active.
        backbone: its network, or the model with its text encoders, whose trained LoRA the frozen model is without.
        config: of the sampler and the batch; a prompt that stands in it several times is drawn so much more often. Prompts are
            encoded when they are drawn.
        engine: this process, which has a slice of every batch.
        reward: of images in [0, 1], None where `_score` is another. One that fails gives NaN, so that all processes skip the
            step together.
        group_size: images of a prompt that stand together.
        critic: the reward with parameters of its own, for DPG.
        diversity: a term for the dissimilarity of the images made at once.
        bare: the model without what is learned of its sampler; None where that is nothing.
        redraw: told the step's generator, before it: other units are dropped inside the reward.
        teacher: a block in which the network is what is distilled, without what the student learns; None where nothing is.
        law: of the noise of a step.
        told: the trained LoRA changes text encoders too.
        pairs: of given pictures, one for each of the config's prompts; empty where images are drawn.
    """

    model: Model
    backbone: Any
    config: TrainingConfig
    engine: Engine
    reward: Reward | None = None
    group_size: int = 1
    critic: Reward | None = None
    diversity: Diversity | None = None
    bare: Model | None = None
    redraw: Callable[[torch.Generator], None] | None = None
    teacher: Callable[[], AbstractContextManager[None]] | None = None
    law: Law = "posterior"
    told: bool = False
    pairs: Sequence[Pair] = ()
    counts: Counts = field(default_factory=Counts)
    trouble: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompts = list(dict.fromkeys(self.config.prompts))
        tell_of_cuts(self.model, [*self.prompts, self.config.negative_prompt])
        self._grid = self.model.schedule.grid(self.config.steps)
        if (patched := getattr(self.model, "patched", None)) is not None:
            patched.encode_one_by_one = True  # so that a resumed run is the same run

    @property
    def text_bytes(self) -> int:
        """What encoded prompts take at most, judged by those of the batches that were drawn."""
        memo = getattr(getattr(self.model, "patched", None), "cache", None)
        here = max(1, self.config.batch_size // self.engine.count // self.group_size)
        return 0 if memo is None else min(memo.held * -(-len(self.prompts) // here), memo.most)

    def _denoisers(self, words: list[str]) -> tuple[Denoise, Denoise, Denoise, Denoise]:
        """(guided, of the base model, without guidance, the base model's) of these prompts; with gradient to text encoders
        where they are trained."""
        asked, bare = (words, self.config.cfg, self.config.negative_prompt), self.bare or self.model
        with torch.no_grad():
            guided = self.model.denoiser(*asked)
            base = guided if self.bare is None else bare.denoiser(*asked)
            plain = alone(bare, *asked)
        if self.told:
            return self._living(guided), base, self._living(plain), plain
        return guided, base, plain, plain

    def __call__(self, step: int, memory: dict[str, Any]) -> TrainBatch:
        config, engine = self.config, self.engine
        everyone = batch_identities(config.prompts, config.seed, step, config.batch_size, self.group_size)
        size = config.batch_size // engine.count
        first = engine.index * size
        who = everyone[first : first + size]
        words = [w.prompt for w in who]
        unique = list(dict.fromkeys(words))
        texts = torch.tensor([unique.index(word) for word in words], device="cpu")
        guided, base, plain, base_plain = self._denoisers(unique)
        self.counts.images += 0 if self.pairs else size
        self.trouble, self.numbers = None, {}
        if self.redraw is not None:
            self.redraw(rng.generator(rng.Identity(config.seed, "", step), 0, 0, "reward-dropout"))
        return TrainBatch(
            denoise=self._network(guided, texts),
            base=self._network(base, texts, self._frozen),
            plain=self._network(plain, texts),
            base_plain=self._network(base_plain, texts, self._frozen),
            value=self._value(words),
            grid=self._grid,
            who=who,
            shape=self.model.latent_shape,
            eta=config.eta,
            step=step,
            seed=config.seed,
            memory=memory,
            everyone=everyone,
            first=first,
            gather=engine.gather,
            device=engine.device,
            critic=self._critic(words) if self.critic is not None else None,
            kind=self.model.schedule.kind,
            parts=self._value(words, parts=True) if self._shares else None,
            shares=self._shares,
            prefers=self._prefers(words),
            worded=lambda change: self._value([change(word) for word in words]),
            teacher=None if self.teacher is None else self._network(base, texts, self.teacher),
            cfg=config.cfg,
            law=self.law,
            given=self._given(step, range(first, first + size)) if self.pairs else None,
        )

    def _given(self, step: int, images: Sequence[int]) -> Callable[[], Tensor]:
        """What gives the latents of the pictures that stand for images of this step's batch."""
        config, model = self.config, self.bare or self.model
        drawn = batch_rows(len(self.pairs), config.seed, step, config.batch_size // 2)
        files = [(self.pairs[drawn[j // 2]].chosen, self.pairs[drawn[j // 2]].rejected)[j % 2] for j in images]

        def latents() -> Tensor:
            height, width = model.image_shape[-2:]
            pictures = torch.cat([read_picture(open_rgb(file), height, width) for file in files])
            with torch.no_grad():
                found = model.encode(pictures.to(self.engine.device)).float()
            if not found.isfinite().all():
                raise TiltingError(
                    f"the latents of the pictures of --pairs are not finite in {model.name!r}: give --precision fp32"
                )
            return found

        return latents

    def _living(self, network: Denoise) -> Denoise:
        """A denoiser whose text encoders are trained: prompts are encoded whenever it is called."""

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with learning():
                return network(x, t, rows)

        return denoise

    def _frozen(self) -> AbstractContextManager[None]:
        """A block without what is trained."""
        return without(self.backbone, (TRAINED,))

    def _network(
        self, network: Denoise, texts: Tensor, under: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Denoise:
        """The denoiser of this batch's rows, under a switch. That is inside, so that a recomputed step is the same step."""

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            self.counts.evaluations += len(x)
            with self.engine.context(), under():
                return Prediction(*(part.to(x.dtype) for part in network(x, t, texts[rows.cpu()])))

        return denoise

    def _value(self, prompts: list[str], parts: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """The reward under these words; in parts, (m, R), its rewards one by one, with the diversity last."""
        score, decode = self._each if parts else self._score, self._decoder(prompts)

        def value(x0: Tensor, rows: Tensor) -> Tensor:
            self.counts.reward_calls += len(x0)
            images, engine = decode(x0, rows), self.engine
            far = None if self.diversity is None else to_reverse(images, self.diversity.measure, engine.gather, engine.index)
            try:
                scores = score(images, [prompts[i] for i in rows.tolist()], rows)
            except RewardError as error:
                self.trouble = str(error)
                lost = x0.flatten(1).sum(1) * float("nan")
                return lost[:, None].expand(-1, len(self._shares)) if parts else lost
            if far is None or self.diversity is None:
                return scores
            self.numbers.setdefault("dissimilarity", far.mean().item())
            far = far.to(scores)
            return torch.cat([scores, far[:, None]], 1) if parts else scores + self.diversity.weight * far

        return value

    @property
    def _shares(self) -> tuple[float, ...]:
        """The weights of the rewards one by one, and of the diversity; empty where there is one reward alone."""
        own = [weight for _, weight in as_sum(self.reward).parts] if self.reward is not None else []
        own += [self.diversity.weight] if self.diversity is not None else []
        return tuple(own) if len(own) > 1 else ()

    def _each(self, images: Tensor, prompts: list[str], rows: Tensor) -> Tensor:
        """The rewards of images one by one, (m, R). Raises RewardError."""
        assert self.reward is not None
        values = as_sum(self.reward).each(images, prompts).values()
        return torch.stack([value.to(images.device) for value in values], 1)

    def _prefers(self, prompts: list[str]) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """The reward's own comparison of pictures, ``prefers(images a, images b, prompts) -> (m,)``, where it has one and
        nothing else is asked for: a sum, and so a reward with a diversity, is compared by its values."""
        if self.reward is None or self._shares:
            return None
        total = as_sum(self.reward)
        reward, weight = total.parts[0]
        compare = getattr(reward, "prefers", None) if weight > 0 else None
        if compare is None:
            return None
        decode = self._decoder(prompts)

        def prefers(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
            self.counts.reward_calls += len(a)
            words, name = [prompts[i] for i in rows.tolist()], getattr(self.reward, "name", "reward")
            both = torch.cat([decode(a, rows), decode(b, rows)], -3)  # pictures, or videos frame by frame

            def ask(both: Tensor, words: list[str]) -> Tensor:
                return check_values(name, compare(both[:, :3], both[:, 3:], words), len(both))

            try:
                return ask(both, words) if both.ndim == 4 else framewise(ask, both, words, total.frames)
            except RewardError as error:
                self.trouble = str(error)
                return a.flatten(1).sum(1) * float("nan")

        return prefers

    def _decoder(self, prompts: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        """Images of latents, by the look decoder where the model has one; in parts where a batch is asked for in parts."""
        size, decode = self.config.batch_size // self.engine.count // self.config.accumulate, self._decode(prompts)

        def images(x0: Tensor, rows: Tensor) -> Tensor:
            if self.config.accumulate == 1 or torch.is_grad_enabled():
                return decode(x0, rows)
            return torch.cat([decode(*part) for part in zip(x0.split(size), rows.split(size), strict=True)])

        return images

    def _decode(self, prompts: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        return looker_of(self.model, prompts) or decoder_of(self.model, prompts)

    def _critic(self, prompts: list[str]) -> Callable[[Tensor, Tensor], Tensor]:
        decode = self._decode(prompts)

        def critic(x0: Tensor, rows: Tensor) -> Tensor:
            assert self.critic is not None
            return self.critic(decode(x0, rows), [prompts[i] for i in rows.tolist()])

        return critic

    def _score(self, images: Tensor, prompts: list[str], rows: Tensor) -> Tensor:
        """The reward of images ``rows`` of the batch. Raises RewardError."""
        assert self.reward is not None
        return checked(self.reward, images, prompts)


@dataclass(frozen=True)
class Split:
    """An objective whose batch is seen in parts.

    Attributes:
        inner: the objective.
        parts: how many.
    """

    inner: Losses
    parts: int

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def updates_several(self) -> bool:
        return self.inner.updates_several


@dataclass(frozen=True)
class Accumulated(Split):
    """An objective over parts of a batch, one after the other: the same gradient in less memory, where the loss is a mean
    over images."""

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        size = len(batch.who) // self.parts
        everyone = batch.everyone or batch.who
        for part in range(self.parts):
            begin = part * size
            own: dict[str, Any] = {name: getattr(batch, name) for name in (*NETWORKS, "value", "critic")}
            own = {name: _shifted(function, begin) for name, function in own.items() if function}
            own |= {"worded": _shifted_words(batch.worded, begin)} if batch.worded else {}
            who = batch.who[begin : begin + size]
            for loss in self.inner(replace(batch, who=who, everyone=everyone, first=batch.first + begin, **own)):
                yield Loss(loss.value / self.parts, loss.numbers, loss.update and part == self.parts - 1)


@dataclass(frozen=True)
class InParts(Split):
    """An objective of the whole batch, such as advantages make it, whose networks see parts of it, one after the other: the
    same gradient in less memory. What a part's way back needs is made again for it, which costs a call more of each step that
    has a gradient."""

    def __call__(self, batch: TrainBatch) -> Iterator[Loss]:
        size = -(-len(batch.who) // self.parts)
        parted = {name: _parted(one, size, batch.trained) for name in NETWORKS if (one := getattr(batch, name))}
        yield from self.inner(replace(batch, **parted))


def in_parts(objective: Losses, parts: int) -> Losses:
    """An objective over parts of a batch, as it can be split."""
    if parts == 1:
        return objective
    return Accumulated(objective, parts) if getattr(objective, "splits", True) else InParts(objective, parts)


def _parted(denoise: Denoise, size: int, trained: Sequence[Tensor]) -> Denoise:
    """A denoiser that sees so many latents at once."""

    def parted(x: Tensor, t: Time, rows: Tensor) -> Prediction:
        if len(x) <= size:
            return denoise(x, t, rows)
        found = []
        for mine, which in zip(x.split(size), rows.split(size), strict=True):

            def call(mine: Tensor, which: Tensor = which) -> tuple[Tensor, ...]:
                return tuple(denoise(mine, t, which))

            found.append(recomputed(call, mine, trained) if torch.is_grad_enabled() else call(mine))
        return Prediction(*map(torch.cat, zip(*found, strict=True)))

    return parted


def _shifted(function: Callable[..., Any], begin: int) -> Callable[..., Any]:
    """A denoiser or a value of latents, whose last argument are rows."""
    return lambda *given: function(*given[:-1], given[-1] + begin)


def _shifted_words(worded: Callable[[Callable[[str], str]], ValueFn], begin: int) -> Callable[[Callable[[str], str]], ValueFn]:
    return lambda change: _shifted(worded(change), begin)
