"""Does the model hub answer? Asked once a process, so that without a network what is not cached is refused in a moment."""

from __future__ import annotations

from functools import cache

WAIT = 5
"""Seconds for the hub to answer at all."""


def online() -> bool:
    """Whether the hub may be asked: it is not switched off (``HF_HUB_OFFLINE``) and it answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """One request, because the hub's own client tries again for half a minute before it says that there is no network."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=WAIT)
    except Exception:
        return False
    return True
