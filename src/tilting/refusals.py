"""What no objective can do, refused alike by the command line, before torch is imported, and by the Python functions."""

from __future__ import annotations

from tilting.errors import TiltingError


def check_policy(name: str, advantage: str, size: int, ratio: bool, updates: int) -> None:
    """Refuse a policy gradient that learns nothing, or from draws of another policy as if they were its own.

    Args:
        name: of the objective.
        advantage: see `tilting.objectives.policy.PolicyGradient`.
        size: images of a prompt that stand together in a batch.
        ratio: whether importance ratios correct for what changed since the draw.
        updates: optimiser steps from one batch of draws, epochs x chunks.

    Raises:
        TiltingError: naming the setting.
    """
    if advantage == "group" and size < 2:
        raise TiltingError(f"{name}.advantage=group needs groups of images of a prompt, which {name} does not draw: use grpo")
    if not ratio and updates > 1:
        raise TiltingError(
            f"{name}.ratio=false learns from the current model's own draws: leave {name}.epochs and {name}.chunks at 1"
        )


def check_accumulate(name: str, gradient: bool, accumulate: int) -> None:
    """Refuse parts of a batch for an objective that is no mean over images.

    Args:
        name: of the objective.
        gradient: whether it goes through the reward's gradient, image by image.
        accumulate: parts.

    Raises:
        TiltingError: naming accumulate.
    """
    if accumulate < 1:
        raise TiltingError(f"accumulate must be at least 1, not {accumulate}")
    if accumulate > 1 and not gradient:
        raise TiltingError(
            f"accumulate splits batches of objectives with a differentiable reward; {name} looks at whole ones: leave it at 1"
        )
