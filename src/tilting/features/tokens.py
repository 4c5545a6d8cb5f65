"""Warnings about texts that a tokenizer truncates. Torch-free."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

SHOWN = 60
"""Maximum characters of a text in a warning."""


def warn_of_cuts(
    name: str, tokenizer: Any, texts: Sequence[str], most: int | None = None
) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Warn if texts are truncated, quoting the lost words of the first.

    Args:
        name: name of the text encoder, for the warning.
        tokenizer: a transformers tokenizer; the end token is kept when a text is cut.
        texts: distinct texts.
        most: maximum number of tokens; default the tokenizer's.

    Returns:
        Of each text the tokens that are read, and whether that is all of it.
    """
    if not texts:
        return {}
    most = int(most or tokenizer.model_max_length)
    ids = dict(zip(texts, tokenizer(list(texts), verbose=False)["input_ids"], strict=True))
    longer = [text for text in texts if len(ids[text]) > most]
    if longer:
        lost = tokenizer.decode(ids[longer[0]][most - 1 : -1]).strip()
        begun = longer[0] if len(longer[0]) <= SHOWN else f"{longer[0][: SHOWN - 3]}..."
        more = f", and the ends of {len(longer) - 1} more" if len(longer) > 1 else ""
        said = f"{name!r} reads {most} tokens of a prompt: it does not see {lost!r} of {begun!r}{more}"
        warnings.warn(said, stacklevel=3)
    return {text: (tuple(ids[text][: most - 1]), text not in longer) for text in texts}
