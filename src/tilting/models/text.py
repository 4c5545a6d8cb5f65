"""What a network is told of its prompts, as one value that indexes and batches, and how texts become tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tilting.features.tokens import warn_of_cuts
from tilting.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Embeddings of n prompts; any part but the first may be missing.

    Attributes:
        sequence: (n, tokens, width), what attention reads.
        pooled: (n, width), one vector each.
        mask: (n, tokens), 1 at the tokens of the prompt, 0 at padding; contexts that have one may be of several lengths.
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
            first, *texts = _alike([first, *texts])
            return first._each(lambda *parts: torch.cat(parts), *texts)
    raise TypeError("these contexts are of different models")


def _alike(texts: list[Text]) -> list[Text]:
    """Contexts of one length, the shorter padded with what their masks leave out."""
    longest = max(text.sequence.shape[1] for text in texts)
    more = [longest - text.sequence.shape[1] for text in texts]
    if not any(more) or any(text.mask is None for text in texts):
        return texts
    pad = torch.nn.functional.pad
    return [
        replace(text, sequence=pad(text.sequence, (0, 0, 0, n)), mask=pad(text.mask, (0, n)))  # type: ignore[arg-type]
        for text, n in zip(texts, more, strict=True)
    ]


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


def clip_states(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(last but one hidden states (n, tokens, width), first output) of a CLIP text encoder, of token ids (n, tokens); the latter is
    its projected pooled vector (n, width) where it has a projection."""
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0]


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


def in_windows(read: Callable[[Tensor], tuple[Tensor, Tensor | None]], tokenizer: Any, texts: list[str], device: Any) -> Text:
    """Texts of any length: what an encoder says of each window, one after the other; the pooled vector of the first.

    Args:
        read: ids (m, tokens) -> (hidden states (m, tokens, width), pooled (m, width) or None).
        tokenizer: of the encoder, which has a token of the beginning and one of the end.
        texts: n of them.
        device: of the encoder.
    """
    rows = windows(tokenizer, texts)
    hidden, pooled = read(torch.tensor([row for text in rows for row in text], device=device))
    found, at = [], 0
    for text in rows:
        mine = hidden[at : at + len(text)].flatten(0, 1)[None]
        first = None if pooled is None else pooled[at : at + 1]
        found.append(Text(mine, first, mask=torch.ones(mine.shape[:2], device=device, dtype=torch.long)))
        at += len(text)
    return beside(*found)  # type: ignore[return-value]
