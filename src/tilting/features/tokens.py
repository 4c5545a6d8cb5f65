"""What a tokenizer loses of a text that is longer than what is read of it. Torch-free."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

SHOWN = 60
"""Letters of a text that a warning has."""


def warn_of_cuts(
    name: str, tokenizer: Any, texts: Sequence[str], most: int | None = None
) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Warn where texts are cut, with the words that are lost of the first.

    Args:
        name: of what reads them, for people.
        tokenizer: of transformers; the last token it gives, of the end, is kept where a text is cut.
        texts: different ones.
        most: tokens that are read, the tokenizer's most by default.

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
