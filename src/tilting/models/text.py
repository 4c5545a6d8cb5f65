"""What a network is told of its prompts, as one value that indexes and batches, and how texts become tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Embeddings of n prompts; any part but the first may be missing.

    Attributes:
        sequence: (n, tokens, width), what attention reads.
        pooled: (n, width), one vector each.
        mask: (n, tokens), 1 at the tokens of the prompt, 0 at padding.
        guidance: (n,) the scale that a network distilled on its guidance is told.
    """

    sequence: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    guidance: Tensor | None = None

    def _each(self, change: Callable[..., Tensor], *others: Text) -> Text:
        changed = {}
        for field in fields(self):
            values = [getattr(text, field.name) for text in (self, *others)]
            changed[field.name] = None if values[0] is None else change(*values)
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, rows: Tensor) -> Text:
        """The prompts ``rows`` (m,)."""
        return self._each(lambda part: part[rows])

    def expand_as(self, other: Text) -> Text:
        """One prompt's embeddings, as often as ``other`` has prompts."""
        return self._each(lambda part: part.expand(len(other), *part.shape[1:]))


if TYPE_CHECKING:
    Context = Tensor | Text
    """(n, tokens, width) where that is all a network reads; either indexes by rows and expands."""
    C = TypeVar("C", Tensor, Text)


def beside(first: Context, *others: Context) -> Context:
    """Contexts of a kind as one batch."""
    if isinstance(first, torch.Tensor):
        tensors = [other for other in others if isinstance(other, torch.Tensor)]
        if len(tensors) == len(others):
            return torch.cat([first, *tensors])
    else:
        texts = [other for other in others if isinstance(other, Text)]
        if len(texts) == len(others):
            return first._each(lambda *parts: torch.cat(parts), *texts)
    raise TypeError("these contexts are of different models")


_learning: ContextVar[bool] = ContextVar("whether encoders are trained", default=False)


@contextmanager
def learning() -> Iterator[None]:
    """Within it `distinct` encodes with gradient, where gradients are on: for training what encodes."""
    token = _learning.set(True)
    try:
        yield
    finally:
        _learning.reset(token)


_memory: ContextVar[tuple[dict[str, Any], set[str]] | None] = ContextVar("(contexts of texts, those asked for)", default=None)


@contextmanager
def remembering(known: dict[str, Any]) -> Iterator[None]:
    """Within it `distinct` encodes no text that is ``known``; on leaving, ``known`` holds those asked for within alone.

    It reaches a model through whatever is wrapped around it. It is for a run, whose groups of images share prompts: whoever
    keeps ``known`` for longer answers for the encoders staying as they were.
    """
    asked: set[str] = set()
    token = _memory.set((known, asked))
    try:
        yield
    finally:
        _memory.reset(token)
        for text in known.keys() - asked:
            del known[text]


def distinct(prompts: Sequence[str], encode: Callable[[list[str]], C], device: torch.device) -> C:
    """``encode`` of the different prompts among these, once each, back in place, without gradient but for `learning`; see
    `remembering`."""
    unique = list(dict.fromkeys(prompts))
    known, asked = _memory.get() or ({}, set())
    new = [text for text in unique if text not in known]
    if new:
        with nullcontext() if _learning.get() else torch.no_grad():
            encoded = encode(new)
        known.update({text: encoded[torch.tensor([i], device=device)] for i, text in enumerate(new)})
    asked.update(unique)
    every: Any = beside(*(known[text] for text in unique))
    return every[torch.tensor([unique.index(p) for p in prompts], device=device)]


def token_ids(tokenizer: Any, texts: list[str], device: torch.device, length: int | None = None) -> tuple[Tensor, Tensor]:
    """(ids, mask), (len(texts), length) each, padded and cut to a length, the tokenizer's own by default."""
    words = tokenizer(texts, padding="max_length", max_length=length or tokenizer.model_max_length, truncation=True)
    return torch.tensor(words["input_ids"], device=device), torch.tensor(words["attention_mask"], device=device)


def clip_hidden(encoder: Any, tokenizer: Any, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """(last but one hidden states (n, tokens, width), first output) of a CLIP text encoder; the latter is its projected pooled
    vector (n, width) where it has a projection."""
    out = encoder(token_ids(tokenizer, texts, device)[0], output_hidden_states=True)
    return out.hidden_states[-2], out[0]
