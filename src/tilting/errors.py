"""What goes wrong by the user's hand. Free of torch, so that a wrong word is refused before torch is imported."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches


class TiltingError(ValueError):
    """A wrong input, in one sentence that names the thing and the nearest right one."""


class ToldElsewhere(TiltingError):
    """What another process of this run refuses, and says."""


class RewardError(TiltingError):
    """A reward that raised, gave NaN or the wrong shape.

    Attributes:
        row: the index of the first offending image in the batch it was given, or None.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


FULL = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "ELOOP", "ENAMETOOLONG", "EMFILE", "ENFILE", "ENOMEM")
"""What the machine refuses, by no fault of ours: a disk that is full or broken, rights, names."""


def refusal_of(error: OSError) -> str | None:
    """The sentence about what the machine refuses; None where it is our fault."""
    if errno.errorcode.get(error.errno or 0) not in FULL:
        return None
    file = f" {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    return f"cannot go on: {error.strerror}{file}"


def _said(error: BaseException) -> str:
    """What an error says, in one line; nothing where its own __str__ is what is broken."""
    try:
        return " ".join(str(error).split())
    except BaseException:
        return ""


def out_of_memory(error: BaseException) -> str | None:
    """The sentence about a device, or a machine, whose memory is full; None of another error. Torch's own error is known by its
    name here, MPS has none."""
    said = _said(error)
    full = type(error).__name__ == "OutOfMemoryError" or "MPS backend out of memory" in said or "can't allocate memory" in said
    if not full and not isinstance(error, MemoryError):
        return None
    return f"memory is full: {said[:120].rstrip('. ') or type(error).__name__}"


def outlived(error: BaseException) -> str:
    """What a user's code raised, for people: a command outlives all of it, a script that ends by sys.exit too. Ctrl-C, and
    the signals that are as it, go on up; and so does a device whose memory is full."""
    if isinstance(error, KeyboardInterrupt) or (out_of_memory(error) and not isinstance(error, MemoryError)):
        raise error
    said = _said(error)
    return f"{type(error).__name__}: {said if len(said) <= 150 else f'{said[:147]}...'}"


SLIP = 0.85
"""From this likeness on (`difflib`), a word is a name with a letter wrong."""


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of a refusal: "; did you mean 'clip'?", or "; there is: clip, jpeg" when nothing is near: a slip of a letter, then
    a name that the word is a part of (--lora of --init-lora), then any that looks alike. A word that is read from a file may be
    no text at all."""
    known, asked = sorted(known), str(word).lower()
    within = [one for one in known if asked.strip("-") and f"-{asked.strip('-')}-" in f"-{one.lower().strip('-')}-"]
    within.sort(key=lambda one: (not one.lower().endswith(asked.strip("-")), len(one)))
    near = get_close_matches(asked, known, cutoff=SLIP) or within or get_close_matches(asked, known)
    near.sort(key=lambda one: sorted(one) != sorted(asked))  # letters that changed places are the likeliest slip
    return f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(known)}"
