"""From prompts to images: groups of images through the sampling loop, as a generator.

Images are worked in groups of max(1, batch // N), which finish before the next; every image depends on (seed, prompt, index)
alone, so groups are a matter of memory and never of results.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tilting import sample as loop
from tilting.engines.optimise import Begin
from tilting.generation.finite import NotFinite, blame
from tilting.generation.plan import Model as Model
from tilting.generation.plan import Plan as Plan
from tilting.generation.plan import grid_of, looker_of
from tilting.generation.plan import identities as identities
from tilting.generation.plan import plan as plan
from tilting.generation.score import Counts as Counts
from tilting.generation.score import Scorer, finish
from tilting.lazy import torch
from tilting.metrics.judge import PocketJudge
from tilting.metrics.statistics import estimate
from tilting.models.switches import idle
from tilting.rewards.check import waits
from tilting.rng import Identity
from tilting.runs.background import Background
from tilting.state import Info, State
from tilting.types import Denoise, RewardError, TiltingError

if TYPE_CHECKING:
    from torch import Tensor


class Step(NamedTuple):
    """Progress: a draw of a group.

    Attributes:
        group, groups: which group, of how many.
        step, steps: draws made in it, of how many.
        reward: mean estimate over the group's particles when the method looked, else None.
        state: the particles after the draw, to look at: ``state.x`` (b, n, ...) latents.
        info: what happened in the draw: estimates that were looked at, their rewards, who was copied over whom.
        who: identities of the group's images.
    """

    group: int
    groups: int
    step: int
    steps: int
    reward: float | None
    state: State
    info: Info
    who: Sequence[Identity]

    def __repr__(self) -> str:
        reward = "" if self.reward is None else f", reward {self.reward:.4g}"
        return (
            f"Step({self.step} of {self.steps}, group {self.group + 1} of {self.groups}{reward}, x {tuple(self.state.x.shape)})"
        )


Judge = Callable[["Tensor", list[str]], "Tensor"]
"""(images (b, 3, h, w) in [0, 1], prompts) -> (b,), NaN where it says nothing."""


@dataclass(frozen=True)
class Drawn:
    """A finished group.

    Attributes:
        who: identities of its images.
        images: (b, 3, h, w) float in [0, 1], on the CPU.
        rewards: per reward spec, b numbers (empty without a reward).
        reward: b weighted sums, or None.
        counts: what this group cost.
        kept: (b,) which particle each image is, and
        values: (b, n) the rewards of all finished particles, where those were scored.
        looks: b weighted sums of the same latents by the look decoder, where there is one (`tilting.models.look_decoder`).
    """

    who: tuple[Identity, ...]
    images: Tensor = field(repr=False)
    reward: list[float] | None
    rewards: dict[str, list[float]]
    counts: Counts
    kept: Tensor | None = field(default=None, repr=False)
    values: Tensor | None = field(default=None, repr=False)
    looks: list[float] | None = None


def draw(
    model: Model,
    plan: Plan,
    latents: Tensor | None = None,
    device: torch.device | str | None = None,
    over: loop.ProcessGroup | None = None,
    later: bool = True,
) -> Iterator[Step | Drawn]:
    """Run a plan. Yields a Step after every draw and a Drawn after every group; where its reward is waited for, amid the next.

    Args:
        model: what draws.
        plan: from `plan`.
        latents: x_T of every image (len(plan.who), ...), instead of keyed noise; not beside a reference.
        device: where the latents live; the model's own by default.
        over: processes that share the particles of every image; all yield the same.
        later: whether a group may be scored amid the next, by another thread.

    Raises:
        TiltingError: latents of another shape, or beside a reference.
        RewardError: with the image's identity in its text, if the reward fails.
        TiltingError: if a finished image is not finite, naming the part that made the first such number.
    """
    place: torch.device | str = getattr(model, "device", "cpu") if device is None else device
    size = plan.group
    if latents is not None:
        latents = _latents(latents, plan, (len(plan.who), *model.latent_shape))
    groups = [plan.who[i : i + size] for i in range(0, len(plan.who), size)]
    clean = _clean(model, plan, place)
    background, waiting = Background(), None

    def collected() -> Drawn:
        """The group that is scored by another thread."""
        nonlocal waiting
        assert waiting is not None
        (done, blaming), waiting, begun = waiting, None, time.perf_counter()
        with blaming():
            drawn = _finite(done.result())
        return replace(drawn, counts=drawn.counts + Counts(seconds=time.perf_counter() - begun))

    try:
        for g, who in enumerate(groups):
            mine = slice(g * size, g * size + len(who))
            given = None if latents is None else latents[mine]

            def group(model: Model, clean: Tensor | None, over=over, who=who, mine=mine, given=given, g=g):
                own = clean if clean is None or len(clean) == 1 else clean[mine]
                return _group(model, plan, who, given, own, place, (g, len(groups)), over)

            blaming, events = partial(_blaming, model, plan, place, who, group), group(model, clean)
            while True:
                with blaming():
                    event = next(events, None)
                if event is None:
                    break
                if isinstance(event, Step):
                    yield event
                    if waiting and waiting[0].done():
                        yield collected()
                    continue
                if waiting:
                    yield collected()
                if later and over is None and g < len(groups) - 1 and deferrable(model, plan):
                    waiting = background.submit(event), blaming
                    continue
                with blaming():
                    drawn = _finite(event())
                yield drawn
        if waiting:
            yield collected()
    finally:
        background.cancel()


def _finite(drawn: Drawn) -> Drawn:
    """A group whose images are finite. Raises NotFinite."""
    if not drawn.images.isfinite().all():
        bad = (~drawn.images.isfinite()).flatten(1).any(1).nonzero()
        raise NotFinite(row=int(bad[0, 0]))
    return drawn


@contextmanager
def _blaming(
    model: Model,
    plan: Plan,
    place: torch.device | str,
    who: Sequence[Identity],
    group: Callable[[Model, Tensor | None, None], Iterable[object]],
) -> Iterator[None]:
    """What goes wrong with a group, told with the image that it is of."""
    try:
        yield
    except NotFinite as error:

        def again(model: Model) -> Iterator[object]:
            """The group from the beginning, its reference encoded again, by this process alone."""
            for event in group(model, _clean(model, plan, place), None):
                yield event if isinstance(event, Step) else _finite(event())  # type: ignore[operator]

        raise blame(model, _which(who[error.row]), again) from error
    except RewardError as error:
        bad = who[min(error.row or 0, len(who) - 1)]
        also = f", or one of the {len(who) - 1} drawn with it" if error.row is None and len(who) > 1 else ""
        raise RewardError(f"{error} ({_which(bad)}{also})", error.row) from error


def _which(who: Identity) -> str:
    return f"image {who.index} of {who.prompt!r}, seed {who.seed}"


def _clean(model: Model, plan: Plan, place: torch.device | str) -> Tensor | None:
    """The latents of the reference, or None."""
    if plan.reference is None:
        return None
    with torch.no_grad():
        return model.encode(plan.reference.to(place))


def _group(
    model: Model,
    plan: Plan,
    who: Sequence[Identity],
    given: Tensor | None,
    clean: Tensor | None,
    place: torch.device | str,
    counted: tuple[int, int],
    over: loop.ProcessGroup | None,
) -> Iterator[Step | Callable[[], Drawn]]:
    """Draw one group; ``counted`` is which, of how many. What comes last scores it, in this thread or another."""
    begun = time.perf_counter()
    prompts = [i.prompt for i in who]
    worded = [text for prompt in prompts for text in plan.preset.variants(prompt)]
    scorer = None if plan.reward is None else Scorer(model, plan.reward, prompts)
    counts, wait = Counts(), idle(model, None if waits(plan.reward) else plan.reward, place)
    anew: Callable[[], None] | None = getattr(model, "anew", None)
    if anew is not None:
        anew()
    if scorer is not None:
        scorer.idle = wait
    with torch.no_grad():
        grid = grid_of(model, plan.method, plan.steps)[-plan.steps_run - 1 :]

        def denoiser(**more: Any) -> Denoise:
            made = model.denoiser(worded, plan.cfg, plan.negative, **more)
            return made if wait is None else wait.before(made)

        problem = loop.Problem(
            denoiser(),
            grid,
            who,
            model.latent_shape,
            scorer,
            plan.eta,
            plan.cfg,
            plan.batch_size,
            place,
            per_particle=len(worded) > len(prompts),
            law=plan.sde,
            over=over,
            noisy=None if scorer is None else scorer.noisy,
        )
        begin = getattr(model, "start", None) if clean is None and given is None else None
        clean = clean if begin is None else begin(prompts)
        if clean is None:
            state = loop.start(problem, plan.method, given)
        else:
            state = loop.start_from(problem, plan.method, clean.expand(len(who), *clean.shape[1:]))
        if getattr(model, "blends", False):
            noise = Begin.of(problem, state).noise.repeat_interleave(len(worded) // len(prompts), 0)
            problem = replace(problem, denoise=denoiser(noise=noise))
    steps = loop.sample(problem, plan.method, state)
    while True:
        with torch.no_grad():  # never across a yield: the mode would leak into the consumer
            drawn = next(steps, None)
        if drawn is None:
            break
        state, info = drawn
        decoded = 0 if problem.noisy is not None else info.values
        counts += Counts(info.evaluations, decoded, info.values)
        mean = None if info.value is None else info.value.mean().item()
        yield Step(*counted, info.step, plan.ticks, mean, state, info, who)
    with torch.no_grad():
        if wait is not None:
            wait.fetch()
        finished = finish(model, problem, plan.method, state, scorer, ahead=deferrable(model, plan))
    counts += Counts(seconds=time.perf_counter() - begun)

    def scored() -> Drawn:
        begun = time.perf_counter()
        with torch.no_grad():
            done = finished()
        drawn = Drawn(tuple(who), done.images, done.reward, done.rewards, done.counts, done.kept, done.values, done.looks)
        now = 0.0 if over is None and deferrable(model, plan) else time.perf_counter() - begun
        return replace(drawn, counts=done.counts + _of_all(over, drawn, counts + Counts(seconds=now)))

    yield scored


def deferrable(model: Model, plan: Plan) -> bool:
    """Whether the scores of a finished group may be waited for by another thread: only its pictures are needed for them."""
    return waits(plan.reward) and not getattr(model, "waits", False) and looker_of(model, []) is None


def _of_all(over: loop.ProcessGroup | None, drawn: Drawn, counts: Counts) -> Counts:
    """What the processes that share an image's particles have paid together. Raises TiltingError where their images differ."""
    if over is None:
        return counts
    seen = hashlib.sha256(drawn.images.contiguous().numpy().tobytes()).hexdigest()
    told = over.all_gather([seen, asdict(counts)])
    if len({one for one, _ in told}) > 1:
        raise TiltingError("the processes came to different particles, as devices of different kinds do: use --split images")
    return sum((Counts(**paid) for _, paid in told), Counts())


def _latents(latents: Any, plan: Plan, shape: tuple[int, ...]) -> Tensor:
    """Latents of this shape, a tensor as it is, of an array or lists in float32. Raises TiltingError for others."""
    if plan.reference is not None:
        raise TiltingError("give latents or a picture to start from, not both: a picture is noised by keyed noise")
    if not isinstance(latents, torch.Tensor):
        try:
            latents = torch.tensor(latents, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise TiltingError(f"latents must be numbers {shape}, not {latents!r}") from None
    if tuple(latents.shape) != shape:
        raise TiltingError(f"latents must be {shape}, not {tuple(latents.shape)}")
    return latents


def summarise(records: Sequence[dict], counts: Counts) -> dict:
    """The ``summary`` of a manifest: means within a prompt, then across prompts, the reward's standard error over prompts (of a
    lone one over its images), costs."""
    rewards = [r["reward"] for r in records if r["reward"] is not None]
    prompts = [r["prompt"] for r in records if r["reward"] is not None]
    judged = [(r["judge"], r["prompt"]) for r in records if r.get("judge") is not None]
    found = estimate(rewards, prompts) if rewards else None
    off = [r["look"] - r["reward"] for r in records if "look" in r and r["reward"] is not None]
    look = estimate(off, prompts) if off and len(off) == len(prompts) else None
    return {
        "images": len(records),
        "reward_mean": found.mean if found else None,
        "reward_sem": found.error if found else None,
        "reward_sem_over": None if len(rewards) < 2 else "prompts" if len(set(prompts)) > 1 else "images",
        "judge_mean": estimate(*zip(*judged, strict=True)).mean if judged else None,
        "evaluations": counts.evaluations,
        "decodes": counts.decodes,
        "reward_calls": counts.reward_calls,
        "seconds": round(counts.seconds, 3),
        "images_per_second": round(len(records) / counts.seconds, 4) if counts.seconds else None,
        **({} if look is None else {"look_bias": look.mean, "look_bias_sem": look.error}),
    }


def records_of(drawn: Drawn, judge: Judge | None = None) -> list[dict]:
    """One manifest entry per image of a group; ``judge`` gives NaN where it cannot judge, recorded as null."""
    scores = judge(drawn.images, [w.prompt for w in drawn.who]).tolist() if judge else [float("nan")] * len(drawn.who)
    return [
        {
            "prompt": who.prompt,
            "index": who.index,
            "seed": who.seed,
            "reward": drawn.reward[i] if drawn.reward is not None else None,
            "rewards": {name: values[i] for name, values in drawn.rewards.items()},
            "judge": scores[i] if scores[i] == scores[i] else None,
            **({} if drawn.looks is None else {"look": drawn.looks[i]}),
        }
        for i, who in enumerate(drawn.who)
    ]


def judge_of(model: str) -> Judge | None:
    """The judge that knows what a model draws: pocket's, for the model of that name."""
    if model != "pocket":
        return None
    return PocketJudge().score
