"""One entry into a pipeline's call: injects latents at a step of its loop, and captures the arguments of the scheduler's
step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.cache import pytree, tensors
from tilting.models.prompt_embeds import changed

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.call import Call
    from tilting.types import Time


class StepReached(BaseException):
    """Leaves the call with what ``step`` was given; no Exception, for a pipeline might catch one."""

    def __init__(self, output: Tensor, t: Any, sample: Tensor):
        self.output, self.t, self.sample = output, t, sample


class BranchMismatch(Exception):
    """A replay asks for other answers than there were: with another scale the call makes another number of branches."""


class StepOutput(tuple):
    """What ``step`` returns, with ``return_dict`` or without; of the last step the estimate of a consistency model as well."""

    prev_sample = pred_original_sample = denoised = property(lambda self: self[0])


class SilentBar:
    """Stands where a progress bar was; the loop begins where one is asked for."""

    def __init__(self, inside: Iterable[Any] = ()):
        self.inside = inside

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inside)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class InterceptedCall:
    """One entry into the call.

    Args:
        call: what is entered.
        prompts: of its images.
        stop: the index of the step to leave at; None goes to the end.
        x: (m, ...) what enters; None where the call's own latents are to be looked at.
        time: what the loop is to have at the index ``stop``, in place of its own time.
        replay: an entry whose networks' answers at ``stop`` are given in place of theirs.
        blind: ask the networks nothing that is known to be a tensor of some shape.
        noiseless: what the call noises is noised by zeros.
        places: of the steps that the loop is to make, in its list of times; None for all of them.
        apart: a network that is asked of both branches at once is asked of each.
        noise: (m, ...) by which the loop noises what it blends in, in place of what the call drew.
    """

    def __init__(
        self,
        call: Call,
        prompts: Sequence[Any],
        stop: int | None,
        x: Tensor | None = None,
        time: Time | None = None,
        replay: InterceptedCall | None = None,
        blind: bool = False,
        noiseless: bool = False,
        places: Sequence[int] | None = None,
        apart: bool = False,
        noise: Tensor | None = None,
    ):
        self.call, self.prompts, self.stop, self.x, self.time = call, prompts, stop, x, time
        self.replay, self.blind, self.noiseless, self.places = replay, blind, noiseless, places
        self.length = call.length if places is None else len(places)
        self.count, self.looping, self.seen, self.noised = 0, False, [], False
        self.shapes: list[Any] = []
        self.texts: dict[str, Any] = {}
        self.masks: tuple[Tensor, Tensor] | None = None
        self.apart, self.reads, self.noise = apart, 0, noise
        self.latents: Tensor | None = None
        self.times: Tensor | None = None
        self.sigmas: Tensor | None = None

    def enters(self, x: Tensor, sample: Tensor, dtype: Any) -> Tensor:
        """x (m, ...) in a loop that may hold each image more than once."""
        copies = len(sample) // len(self.prompts)
        return (x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))).to(sample.device, dtype)

    def step(self, output: Tensor, t: Any, sample: Tensor) -> StepOutput:
        i, self.count = self.count, self.count + 1
        if i == self.stop:
            raise StepReached(output, t, sample)
        if self.x is None or (self.stop is not None and i < self.stop - 1):
            return StepOutput([sample] * 2)
        wide = torch.promote_types(sample.dtype, torch.float32) if self.stop is None else sample.dtype
        return StepOutput([self.enters(self.x, sample, wide)] * 2)

    def network(self, name: str, part: Any) -> Callable[..., Any]:
        """A part of the loop: itself at the index that is asked for, zeros at others; before the loop, remembered."""
        forward, zeros = part.forward, self.call.patched.zeros

        @functools.wraps(forward)
        def told(*given: Any, **more: Any) -> Any:
            if not self.looping or self.count == self.length:
                return forward(*given, **more)
            if self.masks is not None and name == "unet":
                rows = len(tensors((given, more))[0]) // len(self.prompts)
                more["encoder_attention_mask"] = torch.cat(self.masks[-rows:])
            key = (name, *((tuple(t.shape), t.device) for t in tensors((given, more))))  # of any precision, as a tail is
            at = self.count == self.stop
            if at and self.replay is not None:
                out = self.replay.answer(len(self.seen), key)
            elif at and not self.blind:
                ask = in_halves if self.apart else whole
                out = ask(forward, given, more, 2 * len(self.prompts))
                if key not in zeros:
                    zeros.get(key, lambda: nothing(out))
            else:

                def blank() -> Any:
                    with torch.no_grad():
                        return nothing(forward(*given, **more))

                out = zeros.get(key, blank)
            if at:
                self.seen.append((name, out))
                self.shapes.append(key)
            return out

        return told

    def answer(self, place: int, key: Any) -> Any:
        """What was answered to so many questions before. Raises BranchMismatch where it was to another one."""
        if self.shapes[place : place + 1] != [key]:
            raise BranchMismatch
        return self.seen[place][1]

    def prepared(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        entering = self.x is not None and self.stop == 0

        @functools.wraps(prepare)
        def told(*given: Any, **more: Any) -> Any:
            if entering and self.call.direct:  # x takes the place of what is drawn, and the rest follows the number of rows
                made = self.call.prepared.get(len(self.prompts), lambda: prepare(*given, **more))
            else:
                made = prepare(*given, **more)
            first = made[0] if isinstance(made, tuple) else made
            self.latents = first
            if not entering or not isinstance(first, torch.Tensor):
                return made
            assert self.x is not None
            entered = self.enters(self.x, first, first.dtype)
            return (entered, *made[1:]) if isinstance(made, tuple) else entered

        return told

    def encoding(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """``encode_prompt``, remembered, and what is changed of it."""
        patched = self.call.patched
        memo = patched.remembered("encode_prompt", encode)
        if not patched.changes:
            return memo

        @functools.wraps(encode)
        def told(*given: Any, **more: Any) -> Any:
            place, self.reads = self.reads, self.reads + 1
            asked = inspect.signature(encode).bind(*given, **more).arguments
            return changed(self, memo(*given, **more), asked, place, patched.changes)

        return told

    def bar(self, iterable: Any = (), total: Any = None) -> SilentBar:
        self.looping = True
        return SilentBar(iterable if iterable is not None else ())

    def run(self, **over: Any) -> Any:
        """What the call returns, or the `StepReached` that it was left by."""
        call, patched = self.call, self.call.patched
        pipe = patched.pipe
        swaps: list[tuple[Any, str, Any]] = [(pipe, "scheduler", call.probe(self)), (pipe, "progress_bar", self.bar)]
        swaps += [(part, "forward", self.network(name, part)) for name, part in patched.inside.items()]
        swaps += [(pipe, name, None) for name in ("safety_checker", "watermark") if getattr(pipe, name, None) is not None]
        for name, part in patched.outside.items():
            if part is not patched.vae:
                remembers = patched.encoder if name.startswith("text") else patched.remembered
                swaps.append((part, "forward", remembers(name, part.forward, part=part)))
        if hasattr(pipe, "encode_prompt"):
            swaps.append((pipe, "encode_prompt", self.encoding(pipe.encode_prompt)))
        if hasattr(pipe, "prepare_latents"):
            swaps.append((pipe, "prepare_latents", self.prepared(pipe.prepare_latents)))
        swaps += [*patched.autoencoder(), *call.guider(over)]
        elsewhere = torch.get_default_device().type != "cpu"  # a pipeline makes some of its tensors where nothing is said
        with patched.open(swaps), torch.device("cpu") if elsewhere else nullcontext():
            patched.attend()
            try:
                return patched.call(pipe, **(call.arguments(self.prompts) | over))
            except StepReached as halt:
                return halt.with_traceback(None)  # whose frames hold the graph
            finally:
                if not torch.is_grad_enabled():  # activations may yet be computed anew
                    patched.attend()


def whole(forward: Callable[..., Any], given: Any, more: Any, rows: int) -> Any:
    """A network asked as it is."""
    return forward(*given, **more)


def in_halves(forward: Callable[..., Any], given: Any, more: Any, rows: int) -> Any:
    """A network asked of the two halves of so many rows, one after the other; of others as it is."""
    tree = pytree()
    if len(tensors((given, more))[0]) != rows:
        return forward(*given, **more)

    def half(value: Any, part: slice) -> Any:
        return value[part] if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows else value

    found = []
    for part in (slice(rows // 2), slice(rows // 2, rows)):
        mine, own = tree.tree_map(lambda v: half(v, part), (given, more))
        found.append(tree.tree_flatten(forward(*mine, **own)))
    (first, form), (second, _) = found
    return tree.tree_unflatten([torch.cat(both) for both in zip(first, second, strict=True)], form)


def nothing(out: Any) -> Any:
    """Zeros of the same shapes, in the same wrapping."""
    return pytree().tree_map(lambda v: torch.zeros_like(v) if isinstance(v, torch.Tensor) else v, out)


def rows_of(out: Any) -> int:
    """The number of images and branches in a network's output."""
    first = out[0] if isinstance(out, list | tuple) else getattr(out, "sample", None)
    return len(out[0] if first is None else first)
