"""Tokenisation: warnings about truncated prompts, windows of long ones, and training of text encoders."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tilting.features.tokens import warn_of_cuts
from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


_learning: ContextVar[bool] = ContextVar("whether encoders are trained", default=False)


@contextmanager
def learning() -> Iterator[None]:
    """Within it texts are encoded with gradient, where gradients are on: for training what encodes."""
    token = _learning.set(True)
    try:
        yield
    finally:
        _learning.reset(token)


def is_learning() -> bool:
    """Whether this is within `learning`."""
    return _learning.get()


def tell_of_cuts(model: Any, texts: Sequence[str]) -> None:
    """Warn of texts that are longer than what a model reads, with the words it does not see, and of texts that are one to it.

    Args:
        model: which says by ``tokenizers()`` what it reads by, and how many tokens of each (None: the tokenizer's most); one
            that does not say is let be.
        texts: prompts, and the negative one.
    """
    ask: Any = getattr(model, "tokenizers", None)
    unique = list(dict.fromkeys(texts))
    seen: dict[str, list[tuple[int, ...]]] = {text: [] for text in unique}
    cut: set[str] = set()
    for tokenizer, most in ask() if ask is not None and unique else ():
        read = warn_of_cuts(model.name, tokenizer, unique, most)
        cut.update(text for text, (_, whole) in read.items() if not whole)
        for text, (ids, _) in read.items():
            seen[text].append(ids)
    alike: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for text in unique:
        alike.setdefault(tuple(seen[text]), []).append(text)
    for same in alike.values():
        if len(same) > 1 and not cut.isdisjoint(same):
            warnings.warn(
                f"{same[0]!r} and {same[1]!r} are one prompt to {model.name!r}, which does not see where they differ: their "
                "pictures differ by their noise alone",
                stacklevel=2,
            )


def windows(tokenizer: Any, texts: list[str]) -> list[list[list[int]]]:
    """Each text as rows of token ids that an encoder reads one by one: as many tokens of it in a row as fit between those of
    the beginning and the end (AUTOMATIC1111's reading of long prompts). Of a text that fits, its one row."""
    most = tokenizer.model_max_length
    rows = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        parts = [ids[i : i + most - 2] for i in range(0, len(ids), most - 2)] or [[]]
        whole = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
        rows.append(tokenizer.pad({"input_ids": whole}, padding="max_length", max_length=most)["input_ids"])
    return rows


def in_windows(
    read: Callable[[Tensor], tuple[Tensor, Tensor | None]], tokenizer: Any, texts: list[str], device: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Texts of any length: what an encoder says of each window, one after the other; the pooled vector of the first.

    Args:
        read: ids (m, tokens) -> (hidden states (m, tokens, width), pooled (m, width) or None).
        tokenizer: of the encoder, which has a token of the beginning and one of the end.
        texts: n of them.
        device: of the encoder.

    Returns:
        (n, tokens, width), the shorter padded with zeros; (n, tokens) 1 where a text is, 0 at padding; (n, width) or None.
    """
    rows = windows(tokenizer, texts)
    hidden, pooled = read(torch.tensor([row for text in rows for row in text], device=device))
    counts = [len(text) for text in rows]
    found = [one.flatten(0, 1) for one in hidden.split(counts)]
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(one), device=hidden.device, dtype=torch.long) for one in found], True)
    return pad(found, True), mask, None if pooled is None else pooled[firsts]
