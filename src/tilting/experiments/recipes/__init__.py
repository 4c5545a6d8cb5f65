"""The recipes: experiments of the papers on model pocket, each one command, our numbers beside theirs. Torch-free to import.

A recipe is a function (out, small, say) -> the table that it wrote into ``out`` as table.md and table.json; ``say`` takes
lines of progress.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from tilting.errors import TiltingError, nearest

_HERE = "tilting.experiments.recipes"


class Recipe(NamedTuple):
    """What there is to know of a recipe without importing it.

    Attributes:
        about: one line.
        paper: where the experiment comes from.
        target: "module:function".
        seeded: whether the function also takes ``seed`` and ``quiet``.
    """

    about: str
    paper: str
    target: str
    seeded: bool = True


THESIS = "the CoDeX thesis"
RECIPES: dict[str, Recipe] = {
    "codex-table1": Recipe(
        "CoDe and CoDeX on a reward of the image alone: N, schedule, temperature, clusters", f"{THESIS}, Table 1",
        f"{_HERE}.codex_table1:run",
    ),
    "codex-table2": Recipe(
        "CoDeX and the gradient methods on it, each at equal evaluations", f"{THESIS}, Table 2", f"{_HERE}.codex_table2:run"
    ),
    "codex-table3": Recipe(
        "CoDeX and the gradient methods on a reward of image and prompt, each at equal evaluations", f"{THESIS}, Table 3",
        f"{_HERE}.codex_table3:run",
    ),
    "codex-table4": Recipe(
        "CoDe and CoDeX on a reward of image and prompt: N, schedule, temperature, clusters", f"{THESIS}, Table 4",
        f"{_HERE}.codex_table4:run",
    ),
    "codex-table5": Recipe(
        "text and picture to picture: SDEdit, CoDe and CoDeX from reference pictures", f"{THESIS}, Table 5",
        f"{_HERE}.codex_table5:run",
    ),
    "codex-table6": Recipe(
        "a black-box reward, JPEG size: CoDe, best-of-N, and CoDeX with zero-order gradients", f"{THESIS}, Table 6",
        f"{_HERE}.codex_table6:run",
    ),
    "codex-fig5": Recipe(
        "two rewards at once: the Pareto curve over the weight of the second", f"{THESIS}, Fig. 5", f"{_HERE}.codex_fig5:run"
    ),
    "codex-fig7": Recipe(
        "the SDEdit strength r: reward against distance to the reference picture", f"{THESIS}, Fig. 7.1",
        f"{_HERE}.codex_fig7:run",
    ),
    "mixture-bias": Recipe(
        "how far every method is from the exact tilt, on a two-dimensional mixture", "our own", f"{_HERE}.mixture_bias:run",
        seeded=False,
    ),
}  # fmt: skip


def find(name: str) -> Recipe:
    """The recipe of a name. Raises TiltingError with the nearest one."""
    if name not in RECIPES:
        raise TiltingError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return RECIPES[name]


def function_of(recipe: Recipe) -> Callable[..., Any]:
    """What runs it."""
    module, _, function = recipe.target.partition(":")
    return getattr(import_module(module), function)
