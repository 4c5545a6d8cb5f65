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
from tilting.declare import Option, Registry
from tilting.errors import TiltingError

RECIPES: Registry[Any] = Registry("recipe", "tilting.recipes")


@dataclass(frozen=True)
class RecipeConfig(BaseConfig):
    """A checked request; ``recipe`` is None where the recipes are to be listed."""

    recipe: Annotated[str | None, Option(positional="NAME"), Doc("Which; without, a list.")] = None
    out: Out = None
    small: Annotated[bool, Doc("As little of it as makes a table: a minute, to try it.")] = False
    seed: Annotated[Seed, Ge(0)] = 0

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        config, given = super().resolve(options), cls.checked(options)
        if config.recipe is not None and not RECIPES.find(config.recipe).seeded and "seed" in given:
            raise TiltingError(f"the recipe {config.recipe} has seeds of its own: leave --seed out")
        return config

    def mapping(self) -> dict[str, Any]:
        seeded = self.recipe is None or RECIPES[self.recipe].seeded
        return {key: value for key, value in super().mapping().items() if seeded or key != "seed"}
