"""What `tilting recipe` is asked to do. Torch-free.

Recipes come from other packages, `tilting_papers` among them, by the entry points of ``tilting.recipes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from annotated_types import Ge
from typing_extensions import Doc

from tilting.config.base import BaseConfig
from tilting.config.options import Out, Seed
from tilting.declare import Check, Metavar, Option, Registry
from tilting.errors import TiltingError

RECIPES: Registry[Any] = Registry("recipe", "tilting.recipes")


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
    """A checked request; ``recipe`` is None where the recipes are to be listed."""

    recipe: Annotated[str | None, Option(positional="NAME"), Doc("Which; without, a list.")] = None
    out: Out = None
    small: Annotated[bool, Doc("As little of it as makes a table: a minute, to try it.")] = False
    seed: Annotated[Seed, Ge(0)] = 0
    shard: Annotated[
        str | None,
        Metavar("I/K"),
        Check(_shard),
        Doc("Make the I-th of K parts of the work alone; copy what they leave into one folder, and make it once without."),
    ] = None

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as two numbers."""
        return None if self.shard is None else _numbers(self.shard)

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        config, given = super().resolve(options), cls.checked(options)
        if config.recipe is not None and not RECIPES.find(config.recipe).seeded and "seed" in given:
            raise TiltingError(f"the recipe {config.recipe} has seeds of its own: leave --seed out")
        if config.recipe is not None and config.shard is not None and not RECIPES.find(config.recipe).sharded:
            raise TiltingError(f"the recipe {config.recipe} is not made in parts: leave --shard out")
        return config

    def mapping(self) -> dict[str, Any]:
        seeded = self.recipe is None or RECIPES[self.recipe].seeded
        return {key: value for key, value in super().mapping().items() if seeded or key != "seed"}
