"""Edits of the prompt embeddings that a pipeline's call gets from its ``encode_prompt``, by the names of the returned values.

long prompts    read in windows (AUTOMATIC1111), by pipelines whose text encoders are CLIP's alone
a negative      replaced by what is learned of it (`tilting.models.sampler_inputs`)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.lazy import torch
from tilting.models.loop_carried import dotted
from tilting.models.lora_targets import is_clip
from tilting.models.pipeline_class import method_of
from tilting.models.text import in_windows

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.intercepted_call import InterceptedCall

PROMPT, NEGATIVE = "prompt_embeds", "negative_prompt_embeds"
POOLED, NEGATIVE_POOLED = "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
Change = Callable[["InterceptedCall", dict[str, Any], Mapping[str, Any]], dict[str, Any]]
"""(a run of the call, embeddings by name, arguments of ``encode_prompt``) -> other embeddings."""


@cache
def encoded_names(kind: str) -> tuple[tuple[str, ...], ...]:
    """The names of what ``encode_prompt`` returns, of each place where the call of a class asks it, as its source has them."""
    call = method_of(kind, "__call__")
    found = []
    for node in ast.walk(call) if call is not None else ():
        if isinstance(node, ast.Assign) and dotted(getattr(node.value, "func", node)) == "self.encode_prompt":
            target = node.targets[0]
            found.append((node.lineno, tuple(map(dotted, target.elts if isinstance(target, ast.Tuple) else [target]))))
    return tuple(names for _, names in sorted(found))


def changed(intercepted: InterceptedCall, made: Any, asked: Mapping[str, Any], place: int, changes: Sequence[Change]) -> Any:
    """What ``encode_prompt`` returned at a place, changed; by number where the call gives no names."""
    names, held = (
        encoded_names(type(intercepted.call.patched.pipe).__name__),
        made if isinstance(made, tuple | list) else (made,),
    )
    mine = names[min(place, len(names) - 1)] if names else ()
    mine = mine if len(mine) == len(held) else tuple(f"{place}.{i}" for i in range(len(held)))
    values = dict(zip(mine, held, strict=True))
    for change in changes:
        values = change(intercepted, values, asked)
    intercepted.prompt_embeds |= values
    found = [values[name] for name in mine]
    return type(made)(found) if isinstance(made, tuple | list) else found[0]


def reads_windows(pipe: Any) -> bool:
    """Whether a pipeline reads by one or two CLIPs alone, into a UNet, so that long prompts can be read in windows. A
    ControlNet takes no mask of the padding."""
    encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder")]
    alone = hasattr(pipe, "unet") and "controlnet" not in pipe.components
    return alone and 0 < len(encoders) <= 2 and all(map(is_clip, encoders))


def windows(intercepted: InterceptedCall, values: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts and negative prompts of any length; the shorter is padded with what the network's mask leaves out."""
    pipe, m = intercepted.call.patched.pipe, len(intercepted.prompts)
    own = values[PROMPT]
    ends = ("", "_2") if hasattr(pipe, "text_encoder_2") else ("",)

    def read(asked_for: str, skip: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        def states(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
            out = encoder(ids, output_hidden_states=True)
            if len(ends) > 1:  # of two the last but one, and what the second projects
                return out.hidden_states[-2 - (skip or 0)], out[0]
            if skip is None:
                return out[0], None
            text = getattr(encoder, "text_model", encoder)  # which older transformers have
            return text.final_layer_norm(out.hidden_states[-1 - skip]), None

        found = []
        for end in ends:
            said = asked.get(f"{asked_for}{end}") or asked.get(asked_for)
            texts = [said or ""] * m if isinstance(said, str) or said is None else list(said)
            encoder = partial(states, getattr(pipe, f"text_encoder{end}"))
            found.append(in_windows(encoder, getattr(pipe, f"tokenizer{end}"), texts, own.device))
        longest = max(sequence.shape[1] for sequence, _, _ in found)
        whole = torch.cat([_padded(sequence, 3, longest) for sequence, _, _ in found], -1).to(own.dtype)
        mask = torch.stack([_padded(mask, 2, longest) for _, mask, _ in found]).amax(0)
        return whole, mask, found[-1][2]

    sequence, mask, pooled = read("prompt", asked.get("clip_skip"))
    values = values | {PROMPT: sequence} | ({POOLED: pooled.to(own.dtype)} if pooled is not None and POOLED in values else {})
    if values.get(NEGATIVE) is None:
        intercepted.text_masks = (mask, mask)
        return values
    zero = not values[NEGATIVE].any()  # an empty one is zeros in some
    other, its_mask, its_pooled = read("negative_prompt", None)  # no layers are skipped for it
    longest = max(sequence.shape[1], other.shape[1])
    intercepted.text_masks = (_padded(its_mask, 2, longest), _padded(mask, 2, longest))
    values |= {PROMPT: _padded(sequence, 3, longest), NEGATIVE: _padded(torch.zeros_like(other) if zero else other, 3, longest)}
    if its_pooled is not None and NEGATIVE_POOLED in values:
        values[NEGATIVE_POOLED] = (torch.zeros_like(its_pooled) if zero else its_pooled).to(own.dtype)
    return values


def _padded(value: Tensor, dims: int, length: int) -> Tensor:
    """Zeros after the tokens (m, tokens, ...)."""
    return torch.nn.functional.pad(value, [0] * 2 * (dims - 2) + [0, length - value.shape[1]])


def negatives(change: Callable[[Tensor], Tensor]) -> Change:
    """The negative prompt's embeddings moved by a function of the prompt's. Raises TiltingError where there are no such two."""

    def moved(intercepted: InterceptedCall, values: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        negative, text = values.get(NEGATIVE), values.get(PROMPT, intercepted.prompt_embeds.get(PROMPT))
        if negative is None:
            return values
        if not isinstance(text, torch.Tensor) or text.shape != negative.shape:
            kind = type(intercepted.call.patched.pipe).__name__
            raise TiltingError(f"a {kind} reads its negative prompt in another form than its prompt: there is none to learn")
        return values | {NEGATIVE: negative + change(text).to(negative)}

    return moved
