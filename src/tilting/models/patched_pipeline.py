"""A diffusers pipeline whose parts are patched while it is called: its encoders cached, its autoencoder in its own precision.

The posterior of an autoencoder gives its mean: what a picture is encoded as does not depend on a draw.
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
"""What the names of components that run outside of the denoising loop begin with."""
SCALES = re.compile(r"(true_cfg|guidance)_scale(_\d+)?")
"""Arguments of the call that are scales of classifier-free guidance."""


@contextlib.contextmanager
def patched_attributes(*triples: tuple[Any, str, Any]) -> Iterator[None]:
    """Within it, attributes of instances have other values."""
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


class MeanPosterior:
    """A posterior that gives its mean for mode and samples, and keeps nothing else."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Any = None) -> Tensor:
        return self.mean


class EncoderOutput(tuple):
    """What ``vae.encode`` returns, with ``return_dict`` or without: of a posterior, or of latents."""

    latent_dist = property(lambda self: self[0])

    def __getattr__(self, name: str) -> Any:
        if name in ("latents", "latent"):
            return self[0]
        raise AttributeError(name)


def has_pipeline_hooks(part: Any) -> bool:
    """Whether the pipeline has a forward hook in a component, as some have to read hidden states."""
    hooks = () if part is None else (hook for one in part.modules() for hook in one._forward_hooks.values())
    return any(str(getattr(hook, "__module__", "")).startswith("diffusers.pipelines") for hook in hooks)


def attention_processors_of(parts: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(network, its attention processors) of each."""
    return [(part, dict(part.attn_processors)) for part in parts.values() if hasattr(part, "attn_processors")]


def inf_to_nan(image: Tensor) -> Tensor:
    """NaN where a picture is infinite, which the tail's clamp would take for white or black."""
    return image.masked_fill(image.isinf(), torch.nan)


class PatchedPipeline:
    """A pipeline that is called with parts patched, one call at a time: what all calls of it share.

    Args:
        pipe: a pipeline of diffusers.
    """

    def __init__(self, pipe: Any):
        self.pipe, self.lock = pipe, threading.RLock()
        self.call = inspect.unwrap(type(pipe).__call__)  # without its torch.no_grad
        self.parameters = inspect.signature(self.call).parameters
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        self.outer_modules = {name: part for name, part in parts.items() if name.startswith(APART)}
        self.loop_modules = {name: part for name, part in parts.items() if name not in self.outer_modules}
        self._weights = [p for part in self.outer_modules.values() for p in part.parameters()]
        self.vae: Any = next((parts[name] for name in AUTOENCODERS if name in parts), None)
        for name, part in pipe.components.items():
            if name.startswith("tokenizer") and hasattr(part, "deprecation_warnings"):  # `text.tell_of_cuts` says what is cut
                part.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        self.attention_processors = (
            attention_processors_of(self.loop_modules) if "set_pag_attn_processor(" in source_of(type(pipe).__name__) else []
        )
        self.cache, self.zero_outputs = LRUCache(), LRUCache()
        self.state: tuple[Any, ...] = ()
        self.encode_one_by_one = False
        self.prompt_edits: list[Change] = []
        self._place: tuple[Any, Any] | None = None

    @property
    def condition_argument(self) -> str:
        """The argument that says what images are of: their prompts, their classes, or only how many there are."""
        return next((name for name in ("prompt", "class_labels", "batch_size") if name in self.parameters), "")

    @property
    def any_prompt(self) -> Any:
        """A prompt, or a class, to probe a call with."""
        return 0 if self.condition_argument == "class_labels" else "a"

    def scales(self, inputs: Mapping[str, Any]) -> dict[str, float]:
        """The guidance scales of a call, given or by default."""
        values = {name: inputs.get(name, one.default) for name, one in self.parameters.items() if SCALES.fullmatch(name)}
        return {name: value for name, value in values.items() if isinstance(value, int | float) and name in self.parameters}

    def cached(
        self, name: str, function: Callable[..., Any], change: Callable[[Any], Any] = lambda made: made, part: Any = None
    ) -> Any:
        """A function of prompts or pictures, cached by content and by the LoRAs that are on, without gradient. Not cached where
        the encoder is trained, or the pipeline has hooks in it."""

        @functools.wraps(function)
        def asked(*given: Any, **more: Any) -> Any:
            def make() -> Any:
                with self.in_own_precision():
                    return change(function(*given, **more))

            if is_learning() and torch.is_grad_enabled():
                return change(function(*given, **more))
            if has_pipeline_hooks(part):
                return make()
            try:
                key = name, self.state, content_key(given), content_key(more)
            except Unkeyable:
                return make()
            return copied(self.cache.get(key, make))

        return asked

    @contextlib.contextmanager
    def in_own_precision(self) -> Iterator[None]:
        """Without gradient and autocast, so that what is cached is the same whoever asks."""
        kind = next((p.device.type for p in self._weights), "cpu")
        mixed = kind in ("cpu", "cuda", "mps", "xpu") and torch.is_autocast_enabled(kind)
        with torch.no_grad(), torch.autocast(kind, enabled=False) if mixed else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def entered(self, swaps: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
        """Within it the pipeline's parts are patched. Its device is looked up once, and not at every access."""
        with self.lock, patched_attributes(*swaps):
            kind, here = type(self.pipe), next(next(iter(self.loop_modules.values())).parameters()).device
            if self._place is None or self._place[0] != (kind, here):
                place = getattr(self.pipe, "_execution_device", here)
                own = {"_execution_device": place, "__module__": kind.__module__}
                self._place = (kind, here), type(kind.__name__, (kind,), own)
            before, self.state = self.state, self.encoder_state()
            self.pipe.__class__ = self._place[1]
            try:
                yield
            finally:
                self.pipe.__class__, self.state = kind, before

    def cached_text_encoder(self, name: str, forward: Callable[..., Any], part: Any = None) -> Any:
        """A text encoder, cached by row: new texts are encoded in one batch, or one by one where `encode_one_by_one` says so,
        so that an embedding's rounding does not depend on other texts. Inputs that are no rows of texts are cached whole."""
        memo, tree = self.cached(name, forward, part=part), pytree()

        def of(value: Any, rows: Any) -> Any:
            return tree.tree_map(lambda v: v[rows] if isinstance(v, torch.Tensor) else v, value)

        def together(asked: Any, keys: Sequence[Any]) -> None:
            new = list(dict.fromkeys(key for key in keys if key not in self.cache))
            if len(new) > 1 and not self.encode_one_by_one:
                given, more = of(asked, [keys.index(key) for key in new])
                with self.in_own_precision():
                    leaves, form = tree.tree_flatten(forward(*given, **more))
                if all(isinstance(one, torch.Tensor) and one.ndim and len(one) == len(new) for one in leaves):
                    for i, key in enumerate(new):
                        self.cache.get(key, lambda i=i: tree.tree_unflatten([one[i : i + 1].clone() for one in leaves], form))

        @functools.wraps(forward)
        def asked(*given: Any, **more: Any) -> Any:
            sizes = {len(t) if t.ndim else 0 for t in tensors((given, more))}
            if getattr(more.get("position_ids"), "ndim", 0) > 2:  # (axes, rows, tokens), as multimodal RoPE has them
                return memo(*given, **more)
            if len(sizes) != 1 or sizes <= {0, 1} or (is_learning() and torch.is_grad_enabled()) or has_pipeline_hooks(part):
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

    def restore_attention(self) -> None:
        """Put the attention processors back, which a call with perturbed attention replaces until its end."""
        for part, own in self.attention_processors:
            part.set_attn_processor(dict(own))

    @contextlib.contextmanager
    def editing_prompt_embeds(self, *changes: Change) -> Iterator[None]:
        """Within it these edits are applied to prompt embeddings, after those that are already there."""
        with self.lock:
            self.prompt_edits.extend(changes)
            try:
                yield
            finally:
                del self.prompt_edits[len(self.prompt_edits) - len(changes) :]

    def encoder_state(self) -> tuple[Any, ...]:
        """A key of the encoders' weights: their LoRAs, scales and tensors; how often weights were written over."""
        found: list[Any] = [sum(p._version for p in self._weights)]
        for network in self.outer_modules.values():
            on = active(network) if getattr(network, "peft_config", None) else {}
            weights = [p for name in on for p in lora_parameters(network, name)]
            found += [*on.items(), *((p.data_ptr(), p._version) for p in weights)]
        return tuple(found)

    def vae_patches(self) -> list[tuple[Any, str, Any]]:
        """The patches of the autoencoder, which runs in its own precision; encoding is cached as the posterior's mean."""
        vae = self.vae
        if vae is None:
            return []
        encode, decode = getattr(vae, "encode", None), vae.decode

        def mean(found: Any) -> EncoderOutput:
            first: Any = found[0]
            return EncoderOutput((MeanPosterior(first.mode()) if callable(getattr(first, "mode", None)) else first,))

        @functools.wraps(decode)
        def decoded(z: Tensor, *given: Any, **more: Any) -> Any:
            out = decode(z.to(vae.dtype), *given, **more)
            if isinstance(out, tuple):
                return (inf_to_nan(out[0]), *out[1:])
            out.sample = inf_to_nan(out.sample)
            return out

        patches: list[tuple[Any, str, Any]] = [(vae, "decode", decoded)]
        if encode is not None:
            memo = self.cached("encode", encode, mean)

            @functools.wraps(encode)
            def encoded(p: Tensor, *given: Any, **more: Any) -> EncoderOutput:
                made, dtype = memo(p.to(vae.dtype), *given, **more)[0], p.dtype
                return EncoderOutput(
                    (MeanPosterior(made.mean.to(dtype)) if isinstance(made, MeanPosterior) else made.to(dtype),)
                )

            patches.append((vae, "encode", encoded))
        return patches
