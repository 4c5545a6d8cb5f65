"""Caches a pipeline's encoders: prompts and pictures are encoded once per content.

Autoencoders' posteriors answer with their mean: what a picture is encoded as does not depend on a draw.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.cache import LRUCache, Unkeyable, content_key, copied, pytree, tensors
from tilting.models.lora import active, lora_parameters
from tilting.models.pipeline_class import source_of
from tilting.models.text import is_learning

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.prompt_embeds import Change

AUTOENCODERS = ("vae", "vqvae", "movq")
APART = (*AUTOENCODERS, "text_encoder", "image_encoder", "tokenizer", "feature_extractor", "safety_checker")
"""What the names of a pipeline's parts outside of its loop begin with."""
SCALES = re.compile(r"(true_cfg|guidance)_scale(_\d+)?")
"""The call's arguments that are scales of a pair."""


@contextlib.contextmanager
def patched_attributes(*triples: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes of instances, another value for a while."""
    absent, olds = object(), []
    for thing, name, value in triples:
        olds.append((thing, name, thing.__dict__.get(name, absent)))
        thing.__dict__[name] = value
    try:
        yield
    finally:
        for thing, name, old in reversed(olds):
            if old is absent:
                thing.__dict__.pop(name, None)
            else:
                thing.__dict__[name] = old


class Mean:
    """A posterior that answers with its mean, which is what is kept of it."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Any = None) -> Tensor:
        return self.mean


class Encoded(tuple):
    """What ``encode`` returns, with ``return_dict`` or without: of a posterior, or of latents."""

    latent_dist = property(lambda self: self[0])

    def __getattr__(self, name: str) -> Any:
        if name in ("latents", "latent"):
            return self[0]
        raise AttributeError(name)


def hooked(part: Any) -> bool:
    """Whether a pipeline listens to what is computed in a part, as some do for a layer's answers."""
    hooks = () if part is None else (hook for one in part.modules() for hook in one._forward_hooks.values())
    return any(str(getattr(hook, "__module__", "")).startswith("diffusers.pipelines") for hook in hooks)


def _processors(parts: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(a network, what attends in it) of each."""
    return [(part, dict(part.attn_processors)) for part in parts.values() if hasattr(part, "attn_processors")]


def inf_to_nan(image: Tensor) -> Tensor:
    """NaN where a picture is infinite, which the tail's clamp would take for white or black."""
    return image.masked_fill(image.isinf(), torch.nan)


class PatchedPipeline:
    """A pipeline that is entered, one entry at a time: what all calls of it share.

    Args:
        pipe: a pipeline of diffusers.
    """

    def __init__(self, pipe: Any):
        self.pipe, self.lock = pipe, threading.RLock()
        self.call = inspect.unwrap(type(pipe).__call__)  # without its torch.no_grad
        self.names = inspect.signature(self.call).parameters
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        self.outside = {name: part for name, part in parts.items() if name.startswith(APART)}
        self.inside = {name: part for name, part in parts.items() if name not in self.outside}
        self._weights = [p for part in self.outside.values() for p in part.parameters()]
        self.vae: Any = next((parts[name] for name in AUTOENCODERS if name in parts), None)
        for name, part in pipe.components.items():
            if name.startswith("tokenizer") and hasattr(part, "deprecation_warnings"):  # `text.tell_of_cuts` says what is cut
                part.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        self.attending = _processors(self.inside) if "set_pag_attn_processor(" in source_of(type(pipe).__name__) else []
        self.memo, self.zeros = LRUCache(), LRUCache()
        self.state: tuple[Any, ...] = ()
        self.singly = False
        self.changes: list[Change] = []
        self._place: tuple[Any, Any] | None = None

    @property
    def subject(self) -> str:
        """What the call is told of an image: its prompt, its class, or only how many there are."""
        return next((name for name in ("prompt", "class_labels", "batch_size") if name in self.names), "")

    def scales(self, told: Mapping[str, Any]) -> dict[str, float]:
        """The scales of a pair that a call is told, or has of its own."""
        values = {name: told.get(name, one.default) for name, one in self.names.items() if SCALES.fullmatch(name)}
        return {name: value for name, value in values.items() if isinstance(value, int | float) and name in self.names}

    def remembered(
        self, name: str, function: Callable[..., Any], change: Callable[[Any], Any] = lambda made: made, part: Any = None
    ) -> Any:
        """A function of prompts or pictures that is asked once for each content, and LoRAs that are on, without gradient; where
        what encodes is trained, or the pipeline listens in, anew."""

        @functools.wraps(function)
        def asked(*given: Any, **more: Any) -> Any:
            def make() -> Any:
                with self.frozen():
                    return change(function(*given, **more))

            if is_learning() and torch.is_grad_enabled():
                return change(function(*given, **more))
            if hooked(part):
                return make()
            try:
                key = name, self.state, content_key(given), content_key(more)
            except Unkeyable:
                return make()
            return copied(self.memo.get(key, make))

        return asked

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Without gradient, and in the precision of the weights: what is remembered is the same whoever asks."""
        kind = next((p.device.type for p in self._weights), "cpu")
        mixed = kind in ("cpu", "cuda", "mps", "xpu") and torch.is_autocast_enabled(kind)
        with torch.no_grad(), torch.autocast(kind, enabled=False) if mixed else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def open(self, swaps: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
        """The pipeline entered, with parts swapped. Where it computes is asked of its parts once, and not at every turn."""
        with self.lock, patched_attributes(*swaps):
            kind, here = type(self.pipe), next(next(iter(self.inside.values())).parameters()).device
            if self._place is None or self._place[0] != (kind, here):
                place = getattr(self.pipe, "_execution_device", here)
                own = {"_execution_device": place, "__module__": kind.__module__}
                self._place = (kind, here), type(kind.__name__, (kind,), own)
            before, self.state = self.state, self.tuned()
            self.pipe.__class__ = self._place[1]
            try:
                yield
            finally:
                self.pipe.__class__, self.state = kind, before

    def encoder(self, name: str, forward: Callable[..., Any], part: Any = None) -> Any:
        """A text encoder that is asked of each text once: of those that are new together, or, where `singly` says so, of each
        by itself, so that what a text becomes does not depend on what else is drawn, or was forgotten. Of what is no rows of
        texts it is asked as a whole."""
        memo, tree = self.remembered(name, forward, part=part), pytree()

        def of(value: Any, rows: Any) -> Any:
            return tree.tree_map(lambda v: v[rows] if isinstance(v, torch.Tensor) else v, value)

        def together(asked: Any, keys: Sequence[Any]) -> None:
            new = list(dict.fromkeys(key for key in keys if key not in self.memo))
            if len(new) > 1 and not self.singly:
                given, more = of(asked, [keys.index(key) for key in new])
                with self.frozen():
                    leaves, form = tree.tree_flatten(forward(*given, **more))
                if all(isinstance(one, torch.Tensor) and one.ndim and len(one) == len(new) for one in leaves):
                    for i, key in enumerate(new):
                        self.memo.get(key, lambda i=i: tree.tree_unflatten([one[i : i + 1].clone() for one in leaves], form))

        @functools.wraps(forward)
        def asked(*given: Any, **more: Any) -> Any:
            sizes = {len(t) if t.ndim else 0 for t in tensors((given, more))}
            if getattr(more.get("position_ids"), "ndim", 0) > 2:  # (axes, rows, tokens), as multimodal RoPE has them
                return memo(*given, **more)
            if len(sizes) != 1 or sizes <= {0, 1} or (is_learning() and torch.is_grad_enabled()) or hooked(part):
                return memo(*given, **more)
            rows = [of((given, more), slice(i, i + 1)) for i in range(sizes.pop())]
            try:
                together((given, more), [(name, self.state, content_key(mine), content_key(own)) for mine, own in rows])
            except Unkeyable:
                return memo(*given, **more)
            each = [tree.tree_flatten(memo(*mine, **own)) for mine, own in rows]
            leaves = list(zip(*(parts for parts, _ in each), strict=True))
            if all(isinstance(one, torch.Tensor) and one.ndim and len(one) == 1 for parts in leaves for one in parts):
                return tree.tree_unflatten([torch.cat(parts) for parts in leaves], each[0][1])
            return memo(*given, **more)

        return asked

    def attend(self) -> None:
        """Put back what attends in the networks, which a call with perturbed attention changes, and would at its end."""
        for part, own in self.attending:
            part.set_attn_processor(dict(own))

    @contextlib.contextmanager
    def changing(self, *changes: Change) -> Iterator[None]:
        """Within it what the call reads of prompts is changed, beside what is already."""
        with self.lock:
            self.changes.extend(changes)
            try:
                yield
            finally:
                del self.changes[len(self.changes) - len(changes) :]

    def tuned(self) -> tuple[Any, ...]:
        """What encodes as it is: its LoRAs, their scales and which tensors they are; how often weights were written over."""
        found: list[Any] = [sum(p._version for p in self._weights)]
        for network in self.outside.values():
            on = active(network) if getattr(network, "peft_config", None) else {}
            weights = [p for name in on for p in lora_parameters(network, name)]
            found += [*on.items(), *((p.data_ptr(), p._version) for p in weights)]
        return tuple(found)

    def autoencoder(self) -> list[tuple[Any, str, Any]]:
        """Its doors: encoding is remembered, by the posterior's mean, and both are in the autoencoder's own precision."""
        vae = self.vae
        if vae is None:
            return []
        encode, decode = getattr(vae, "encode", None), vae.decode

        def mean(found: Any) -> Encoded:
            first: Any = found[0]
            return Encoded((Mean(first.mode()) if callable(getattr(first, "mode", None)) else first,))

        @functools.wraps(decode)
        def decoded(z: Tensor, *given: Any, **more: Any) -> Any:
            out = decode(z.to(vae.dtype), *given, **more)
            if isinstance(out, tuple):
                return (inf_to_nan(out[0]), *out[1:])
            out.sample = inf_to_nan(out.sample)
            return out

        doors: list[tuple[Any, str, Any]] = [(vae, "decode", decoded)]
        if encode is not None:
            memo = self.remembered("encode", encode, mean)

            @functools.wraps(encode)
            def encoded(p: Tensor, *given: Any, **more: Any) -> Encoded:
                made, dtype = memo(p.to(vae.dtype), *given, **more)[0], p.dtype
                return Encoded((Mean(made.mean.to(dtype)) if isinstance(made, Mean) else made.to(dtype),))

            doors.append((vae, "encode", encoded))
        return doors
