"""One run of a pipeline's ``__call__``: injects latents at a step of its denoising loop, and captures what the scheduler's step
is given."""

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
    """Leaves the call with what ``scheduler.step`` was given; no Exception, for a pipeline might catch one."""

    def __init__(self, output: Tensor, t: Any, sample: Tensor):
        self.output, self.t, self.sample = output, t, sample


class BranchMismatch(Exception):
    """A replay evaluates other networks than before: with another scale the call makes another number of branches."""


class StepOutput(tuple):
    """What ``scheduler.step`` returns, with ``return_dict`` or without; its fields are all the injected latents."""

    prev_sample = pred_original_sample = denoised = property(lambda self: self[0])


class SilentBar:
    """A progress bar that shows nothing; the denoising loop begins where the call asks for one."""

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
    """One run of the call.

    Args:
        call: what is run.
        prompts: of its images.
        stop: the index of the step to leave at; None goes to the end.
        x: (m, ...) latents to inject; None keeps the call's own.
        time: the timestep at the index ``stop``, in place of the loop's own.
        replay: a run whose network outputs at ``stop`` are used again.
        skip_networks: return zeros from networks whose output shapes are known.
        noiseless: the call adds zeros where it adds noise.
        step_indices: of the steps that the loop makes, in its timesteps; None for all.
        split: a network that gets both branches in one batch is called for each.
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
        skip_networks: bool = False,
        noiseless: bool = False,
        step_indices: Sequence[int] | None = None,
        split: bool = False,
        noise: Tensor | None = None,
    ):
        self.call, self.prompts, self.stop, self.x, self.time = call, prompts, stop, x, time
        self.replay, self.skip_networks, self.noiseless, self.step_indices = replay, skip_networks, noiseless, step_indices
        self.length = call.length if step_indices is None else len(step_indices)
        self.step_index, self.in_loop, self.network_outputs, self.noises_picture = 0, False, [], False
        self.network_keys: list[Any] = []
        self.prompt_embeds: dict[str, Any] = {}
        self.text_masks: tuple[Tensor, Tensor] | None = None
        self.split, self.encodings, self.noise = split, 0, noise
        self.latents: Tensor | None = None
        self.times: Tensor | None = None
        self.sigmas: Tensor | None = None

    def repeated(self, x: Tensor, sample: Tensor, dtype: Any) -> Tensor:
        """x (m, ...) as the loop has it, which may hold each image more than once."""
        copies = len(sample) // len(self.prompts)
        return (x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))).to(sample.device, dtype)

    def step(self, output: Tensor, t: Any, sample: Tensor) -> StepOutput:
        i, self.step_index = self.step_index, self.step_index + 1
        if i == self.stop:
            raise StepReached(output, t, sample)
        if self.x is None or (self.stop is not None and i < self.stop - 1):
            return StepOutput([sample] * 2)
        wide = torch.promote_types(sample.dtype, torch.float32) if self.stop is None else sample.dtype
        return StepOutput([self.repeated(self.x, sample, wide)] * 2)

    def wrap_network(self, name: str, part: Any) -> Callable[..., Any]:
        """The forward of a network in the loop: itself at the step ``stop``, zeros at others."""
        forward, zeros = part.forward, self.call.patched.zero_outputs

        @functools.wraps(forward)
        def wrapped(*given: Any, **more: Any) -> Any:
            if not self.in_loop or self.step_index == self.length:
                return forward(*given, **more)
            if self.text_masks is not None and name == "unet":
                rows = len(tensors((given, more))[0]) // len(self.prompts)
                more["encoder_attention_mask"] = torch.cat(self.text_masks[-rows:])
            key = (name, *((tuple(t.shape), t.device) for t in tensors((given, more))))  # of any precision, as a tail is
            at = self.step_index == self.stop
            if at and self.replay is not None:
                out = self.replay.answer(len(self.network_outputs), key)
            elif at and not self.skip_networks:
                ask = in_halves if self.split else as_it_is
                out = ask(forward, given, more, 2 * len(self.prompts))
                if key not in zeros:
                    zeros.get(key, lambda: zeros_like_outputs(out))
            else:

                def blank() -> Any:
                    with torch.no_grad():
                        return zeros_like_outputs(forward(*given, **more))

                out = zeros.get(key, blank)
            if at:
                self.network_outputs.append((name, out))
                self.network_keys.append(key)
            return out

        return wrapped

    def answer(self, place: int, key: Any) -> Any:
        """The output of an earlier network call. Raises BranchMismatch where its inputs had other shapes."""
        if self.network_keys[place : place + 1] != [key]:
            raise BranchMismatch
        return self.network_outputs[place][1]

    def wrap_prepare_latents(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        entering = self.x is not None and self.stop == 0

        @functools.wraps(prepare)
        def wrapped(*given: Any, **more: Any) -> Any:
            if entering and self.call.direct:  # x takes the place of what is drawn, and the rest follows the number of rows
                made = self.call.prepared.get(len(self.prompts), lambda: prepare(*given, **more))
            else:
                made = prepare(*given, **more)
            first = made[0] if isinstance(made, tuple) else made
            self.latents = first
            if not entering or not isinstance(first, torch.Tensor):
                return made
            assert self.x is not None
            entered = self.repeated(self.x, first, first.dtype)
            return (entered, *made[1:]) if isinstance(made, tuple) else entered

        return wrapped

    def wrap_encode_prompt(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """``encode_prompt``, cached, with the prompt edits applied."""
        patched = self.call.patched
        memo = patched.cached("encode_prompt", encode)
        if not patched.prompt_edits:
            return memo

        @functools.wraps(encode)
        def wrapped(*given: Any, **more: Any) -> Any:
            place, self.encodings = self.encodings, self.encodings + 1
            asked = inspect.signature(encode).bind(*given, **more).arguments
            return changed(self, memo(*given, **more), asked, place, patched.prompt_edits)

        return wrapped

    def progress_bar(self, iterable: Any = (), total: Any = None) -> SilentBar:
        self.in_loop = True
        return SilentBar(iterable if iterable is not None else ())

    def run(self, **over: Any) -> Any:
        """What the call returns, or the `StepReached` that left it."""
        call, patched = self.call, self.call.patched
        pipe = patched.pipe
        swaps: list[tuple[Any, str, Any]] = [(pipe, "scheduler", call.probe(self)), (pipe, "progress_bar", self.progress_bar)]
        swaps += [(part, "forward", self.wrap_network(name, part)) for name, part in patched.loop_modules.items()]
        swaps += [(pipe, name, None) for name in ("safety_checker", "watermark") if getattr(pipe, name, None) is not None]
        for name, part in patched.outer_modules.items():
            if part is not patched.vae:
                remembers = patched.cached_text_encoder if name.startswith("text") else patched.cached
                swaps.append((part, "forward", remembers(name, part.forward, part=part)))
        if hasattr(pipe, "encode_prompt"):
            swaps.append((pipe, "encode_prompt", self.wrap_encode_prompt(pipe.encode_prompt)))
        if hasattr(pipe, "prepare_latents"):
            swaps.append((pipe, "prepare_latents", self.wrap_prepare_latents(pipe.prepare_latents)))
        swaps += [*patched.vae_patches(), *call.guider(over)]
        elsewhere = torch.get_default_device().type != "cpu"  # a pipeline makes some of its tensors where nothing is said
        with patched.entered(swaps), torch.device("cpu") if elsewhere else nullcontext():
            patched.restore_attention()
            try:
                return patched.call(pipe, **(call.arguments(self.prompts) | over))
            except StepReached as halt:
                return halt.with_traceback(None)  # whose frames hold the graph
            finally:
                if not torch.is_grad_enabled():  # activations may yet be computed anew
                    patched.restore_attention()


def as_it_is(forward: Callable[..., Any], given: Any, more: Any, rows: int) -> Any:
    """A network called as it is."""
    return forward(*given, **more)


def in_halves(forward: Callable[..., Any], given: Any, more: Any, rows: int) -> Any:
    """A network called for the two halves of a batch of ``rows``, one after the other; other batches stay whole."""
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


def zeros_like_outputs(out: Any) -> Any:
    """Zeros of the same shapes, in the same containers."""
    return pytree().tree_map(lambda v: torch.zeros_like(v) if isinstance(v, torch.Tensor) else v, out)


def batch_size_of(out: Any) -> int:
    """The number of images and branches in a network's output."""
    first = out[0] if isinstance(out, list | tuple) else getattr(out, "sample", None)
    return len(out[0] if first is None else first)
