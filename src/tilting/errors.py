"""What goes wrong by the user's hand. Free of torch, so that a wrong word is refused before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TiltingError(ValueError):
    """A wrong input, in one sentence that names the thing and the nearest right one."""


class RewardError(TiltingError):
    """A reward that raised, gave NaN or the wrong shape.

    Attributes:
        row: the index of the first offending image in the batch it was given, or None.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


BROKEN = (Exception, SystemExit)
"""What a user's code may raise and a command outlives: a script that ends by sys.exit is no end of ours."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a refusal: "; did you mean 'clip'?", or "; there is: clip, jpeg" when nothing is near."""
    known = sorted(known)
    near = get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(known)}"
