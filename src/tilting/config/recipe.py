"""The options of `tilting recipe`, validated. Torch-free.

Recipes come from other packages, `tilting_papers` among them, by entry points of the group ``tilting.recipes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from annotated_types import Ge, Le
from typing_extensions import Doc

from tilting.config.base import BaseConfig
from tilting.config.options import Out, Seed, check_model
from tilting.config.prompts import KINDS
from tilting.declare import Check, Metavar, Option, Registry, plain
from tilting.errors import TiltingError
from tilting.rewards.spec import check_rewards

RECIPES: Registry[Any] = Registry("recipe", "tilting.recipes")
OTHERWISE = ("model", "reward", "prompts", "seeds", "steps")
"""Options that override a recipe's own settings, if its ``asks`` allows them."""


def _numbers(shard: str) -> tuple[int, int]:
    first, _, count = shard.partition("/")
    return int(first), int(count)


def _shard(name: str, shard: str) -> str:
    words = shard.partition("/")
    if not (words[0].isdecimal() and words[2].isdecimal() and 1 <= int(words[0]) <= int(words[2])):
        raise TiltingError(f"{name} must be such as 2/3, the second of three parts, not {shard!r}")
    return shard


@dataclass(frozen=True)
class RecipeConfig(BaseConfig):
    """A validated request; without a ``recipe``, they are listed."""

    recipe: Annotated[str | None, Option(positional="NAME"), Doc("The recipe; without one, list them.")] = None
    out: Out = None
    small: Annotated[bool, Doc("A minimal version, about a minute, to try it.")] = False
    seed: Annotated[Seed, Ge(0)] = 0
    model: Annotated[str | None, Check(check_model), Option(default="pocket"), Doc("Another model to steer or to train.")] = (
        None
    )
    reward: Annotated[
        tuple[str, ...], Metavar("SPEC"), Option(default="the table's"), Doc("Other rewards to steer and score by, repeatable.")
    ] = ()
    prompts: Annotated[
        tuple[str, ...],
        Metavar("FILE"),
        Option(default="the table's"),
        Doc("Other prompts: a file, or one prompt, repeatable."),
    ] = ()
    seeds: Annotated[tuple[int, ...], Metavar("A,B,..."), Doc("Draw every prompt with each, instead of --seed.")] = ()
    steps: Annotated[int | None, Ge(1), Le(10_000), Option(default="the table's"), Doc("T, denoising steps.")] = None
    shard: Annotated[
        str | None,
        Metavar("I/K"),
        Check(_shard),
        Doc("Make only the I-th of K parts of the work; then copy all parts into one folder and run without --shard."),
    ] = None

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as two numbers."""
        return None if self.shard is None else _numbers(self.shard)

    @property
    def asked(self) -> dict[str, Any]:
        """The overridden settings, as plain values."""
        return {name: plain(value) for name in OTHERWISE if (value := getattr(self, name)) not in (None, ())}

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        prompts = options.get("prompts")
        if isinstance(prompts, list | tuple) and len(prompts) == 1 and str(prompts[0]).lower().endswith(KINDS):
            options = {**options, "prompts": prompts[0]}
        return {name: value for name, value in super().checked(options).items() if name != "metadata"}

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        config, given = super().resolve(options), cls.checked(options)
        if config.recipe is not None and not RECIPES.find(config.recipe).seeded and "seed" in given:
            raise TiltingError(f"the recipe {config.recipe} has seeds of its own: leave --seed out")
        if config.recipe is not None and config.shard is not None and not RECIPES.find(config.recipe).sharded:
            raise TiltingError(f"the recipe {config.recipe} is not made in parts: leave --shard out")
        if config.seeds and "seed" in given:
            raise TiltingError("seeds are given both by --seed and by --seeds: give one of them")
        if config.recipe is not None and config.asked:
            able = getattr(RECIPES.find(config.recipe), "asks", ())
            other = next((name for name in config.asked if name not in able), None)
            if other is not None:
                takes = f"it takes {', '.join(f'--{name}' for name in able)}" if able else "it is as it is"
                raise TiltingError(f"the recipe {config.recipe} has no use for --{other}: {takes}")
        check_rewards("reward", config.reward)
        return config

    def mapping(self) -> dict[str, Any]:
        seeded = (self.recipe is None or RECIPES[self.recipe].seeded) and not self.seeds
        known = super().mapping()
        return {k: v for k, v in known.items() if (seeded or k != "seed") and (k not in OTHERWISE or k in self.asked)}
