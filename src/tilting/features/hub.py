"""Whether the model hub can be reached, tested once per process: without a network, uncached weights are refused at once."""

from __future__ import annotations

from functools import cache

WAIT = 5
"""Seconds to wait for the hub's answer."""


def online() -> bool:
    """Whether the hub is not switched off (``HF_HUB_OFFLINE``) and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """One plain request, because the hub's own client retries for half a minute before it reports a missing network."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=WAIT)
    except Exception:
        return False
    return True
