"""Errors in the user's input. Torch-free, so that a wrong option is refused before torch is imported."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches


class TiltingError(ValueError):
    """A wrong input, in one sentence that names the thing and the nearest right one."""


class ToldElsewhere(TiltingError):
    """An error that another process of this run reports."""


class RewardError(TiltingError):
    """A reward that raised, gave NaN or the wrong shape.

    Attributes:
        row: the index of the first offending image in the batch it was given, or None.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


FULL = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "ELOOP", "ENAMETOOLONG", "EMFILE", "ENFILE", "ENOMEM")
"""Errors of the machine rather than of this code: a full or broken disk, permissions, names."""


def refusal_of(error: OSError) -> str | None:
    """The message for an error of the machine (`FULL`); None for one that is a bug."""
    if errno.errorcode.get(error.errno or 0) not in FULL:
        return None
    file = f" {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    return f"cannot go on: {error.strerror}{file}"


def _said(error: BaseException) -> str:
    """An error's message in one line; empty if its __str__ itself raises."""
    try:
        return " ".join(str(error).split())
    except BaseException:
        return ""


def out_of_memory(error: BaseException) -> str | None:
    """The message for a device or machine out of memory; None for another error. Torch's error is recognised by its name, since
    this module does not import torch; MPS raises a plain RuntimeError."""
    said = _said(error)
    full = type(error).__name__ == "OutOfMemoryError" or "MPS backend out of memory" in said or "can't allocate memory" in said
    if not full and not isinstance(error, MemoryError):
        return None
    return f"memory is full: {said[:120].rstrip('. ') or type(error).__name__}"


def outlived(error: BaseException) -> str:
    """Describe what a user's code raised, SystemExit included: none of it ends a command. KeyboardInterrupt and an error of a
    device that is out of memory are raised again."""
    if isinstance(error, KeyboardInterrupt) or (out_of_memory(error) and not isinstance(error, MemoryError)):
        raise error
    said = _said(error)
    return f"{type(error).__name__}: {said if len(said) <= 150 else f'{said[:147]}...'}"


SLIP = 0.85
"""From this likeness on (`difflib`), a word is a name with a letter wrong."""


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'clip'?", or "; there is: clip, jpeg" if nothing is close. Close are, in
    this order, a name with a letter wrong, one that the word is a part of (--lora of --init-lora), and any that looks alike.
    ``word`` may come from a file and so be of any type."""
    known, asked = sorted(known), str(word).lower()
    within = [one for one in known if asked.strip("-") and f"-{asked.strip('-')}-" in f"-{one.lower().strip('-')}-"]
    within.sort(key=lambda one: (not one.lower().endswith(asked.strip("-")), len(one)))
    alike = get_close_matches(asked, known)
    places = [one for one in alike if sorted(one) == sorted(asked)]  # letters that changed places are the likeliest slip
    near = places or get_close_matches(asked, known, cutoff=SLIP) or within or alike
    return f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(known)}"
