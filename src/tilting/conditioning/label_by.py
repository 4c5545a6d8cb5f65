"""Labels from a function instead of a file: any reward, such as the size of a JPEG, or a function of the user's own.

A function may also return words: classes by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from tilting.conditioning.dataset import Record
from tilting.conditioning.table import Bad
from tilting.errors import BROKEN, TiltingError
from tilting.features.picture import open_rgb, tensor_of
from tilting.rewards import UserReward
from tilting.rewards.check import checked
from tilting.rewards.spec import Spec, build_one
from tilting.types import Reward


def label_by(
    records: Sequence[Record], spec: Spec, name: str, bad: Bad, tick: Callable[[], object] = lambda: None
) -> list[Record]:
    """Label pictures, each at its own size.

    Args:
        records: with or without other labels.
        spec: a reward, or ``file.py:function``: (images (1, 3, h, w) float in [0, 1], prompts) -> one number or word.
        name: of the label.
        bad: what to do with a picture that does not decode, or that the function fails on.
        tick: called after each picture.

    Returns:
        The records with the label, as a cell that was read; no prompt is the prompt "".

    Raises:
        TiltingError: a function that does not load; or a bad row, see `Bad`.
    """
    import numpy as np

    reward = build_one(spec)
    found = []
    for record in records:
        try:
            image = tensor_of(np.array(open_rgb(record.path)))[None]
        except TiltingError as error:
            bad.add(record.where, f"the file {record.file!r} {error}")
            image = None
        if image is not None:
            try:
                value = _value(reward, image, record.prompt or "")
                found.append(record._replace(labels={**record.labels, name: value}))
            except TiltingError as error:
                bad.add(record.where, str(error))
        tick()
    return found


def _value(reward: Reward, image: Tensor, prompt: str) -> float | str:
    """What a function says of one picture. Raises TiltingError."""
    if not isinstance(reward, UserReward):
        return float(checked(reward, image, [prompt])[0])
    try:
        value = reward.function(image.clone(), [prompt])
    except BROKEN as error:
        raise TiltingError(f"{reward.name!r} raised {type(error).__name__}: {error}") from error
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TiltingError(f"{reward.name!r} must return one number or word per picture, not {str(value)[:60]}") from None
