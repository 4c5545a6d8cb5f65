"""From parsed specs to a reward."""

from __future__ import annotations

from collections.abc import Sequence

from tilting.errors import TiltingError
from tilting.rewards.combine import combine
from tilting.rewards.spec import CATALOG, Spec
from tilting.rewards.user import Ran, user
from tilting.types import Reward


def build_one(spec: Spec, ran: Ran | None = None) -> Reward:
    """Load the reward a spec names, without its weight; ``ran`` as `user` takes it. Raises TiltingError if it does not load."""
    if spec.is_file:
        return user(f"{spec.name}:{spec.argument}", ran)
    entry = CATALOG[spec.name]
    arguments: list[str | float] = []
    if spec.argument is not None:
        arguments.append(float(spec.argument) if entry.argument == "quality" else spec.argument)
    return entry.load()(*arguments)


def build(specs: Sequence[Spec]) -> Reward:
    """Load what specs ask for.

    Args:
        specs: at least one, from `parse_spec`.

    Returns:
        The reward itself when there is one, of weight 1 and by its own name; else a `Combined` whose keys are the specs.

    Raises:
        TiltingError: no spec, the same spec twice, or a reward that does not load.
    """
    if not specs:
        raise TiltingError("no reward is given; write NAME[:ARGUMENT][=WEIGHT], such as clip")
    ran: Ran = {}
    rewards = [build_one(spec, ran) for spec in specs]
    if len(specs) == 1 and specs[0].weight == 1 and rewards[0].name == specs[0].text:
        return rewards[0]
    return combine(zip(rewards, (s.weight for s in specs), strict=True), keys=(s.text for s in specs))
