"""Progress bar on stderr: loading, then sampling, with the running reward and the time left."""

from __future__ import annotations

import sys

from tqdm import tqdm

from tilting.generation.plan import Plan


class Progress:
    """Draws made, of how many.

    Args:
        request: what is drawn.
        quiet: nothing is shown.
    """

    def __init__(self, request: Plan, quiet: bool):
        groups = -(-len(request.who) // request.group)
        self.bar = tqdm(
            total=groups * request.ticks,
            desc=request.preset.name,
            unit="step",
            file=sys.stderr,
            disable=quiet,
            dynamic_ncols=True,
            leave=False,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, reward: float | None) -> None:
        """A draw was made; the mean estimate of the reward, where the method looked."""
        self.reward(reward)
        self.bar.update(1)

    def reward(self, reward: float | None) -> None:
        """What stands beside the bar."""
        if reward is not None:
            self.bar.set_postfix_str(f"reward {reward:.4g}", refresh=False)


def announce(what: str, quiet: bool) -> None:
    """Say on stderr what takes seconds before there is a bar."""
    if not quiet:
        print(f"tilting: {what} ...", file=sys.stderr, flush=True)
