"""The recipes: experiments of the papers on model pocket, each one command, our numbers beside theirs. Torch-free to import.

A recipe is a function (out, small, say) -> the table that it wrote into ``out`` as table.md and table.json; ``say`` takes
lines of progress.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from tilting.errors import TiltingError, nearest

_HERE = "tilting_papers"


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
DRAFT = "Clark et al. 2024 (DRaFT)"
CTRL = "Zhao et al. 2024 (CTRL)"
RECIPES: dict[str, Recipe] = {
    "codex-table1": Recipe(
        "CoDe and CoDeX on a reward of the image alone: N, schedule, temperature, clusters", f"{THESIS}, Table 1",
        f"{_HERE}.codex.table1:run",
    ),
    "codex-table2": Recipe(
        "CoDeX and the gradient methods on it, each at equal evaluations", f"{THESIS}, Table 2", f"{_HERE}.codex.table2:run"
    ),
    "codex-table3": Recipe(
        "CoDeX and the gradient methods on a reward of image and prompt, each at equal evaluations", f"{THESIS}, Table 3",
        f"{_HERE}.codex.table3:run",
    ),
    "codex-table4": Recipe(
        "CoDe and CoDeX on a reward of image and prompt: N, schedule, temperature, clusters", f"{THESIS}, Table 4",
        f"{_HERE}.codex.table4:run",
    ),
    "codex-table5": Recipe(
        "text and picture to picture: SDEdit, CoDe and CoDeX from reference pictures", f"{THESIS}, Table 5",
        f"{_HERE}.codex.table5:run",
    ),
    "codex-table6": Recipe(
        "a black-box reward, JPEG size: CoDe, best-of-N, and CoDeX with zero-order gradients", f"{THESIS}, Table 6",
        f"{_HERE}.codex.table6:run",
    ),
    "codex-fig5": Recipe(
        "two rewards at once: the Pareto curve over the weight of the second", f"{THESIS}, Fig. 5", f"{_HERE}.codex.fig5:run"
    ),
    "codex-fig7": Recipe(
        "the SDEdit strength r: reward against distance to the reference picture", f"{THESIS}, Fig. 7.1",
        f"{_HERE}.codex.fig7:run",
    ),
    "codex-strengths-style": Recipe(
        "how strong each gradient method should be: reward against judge, reward style", "our own tuning",
        f"{_HERE}.codex.strengths:run_style",
    ),
    "codex-strengths-clip": Recipe(
        "how strong each gradient method should be: reward against judge, reward clip", "our own tuning",
        f"{_HERE}.codex.strengths:run_clip",
    ),
    "draft-fig3": Recipe(
        "sample efficiency: DRaFT-50, -10, -1, -LV, ReFL, DDPO", f"{DRAFT}, Fig. 3", f"{_HERE}.draft.fig3:run"
    ),
    "draft-fig4": Recipe(
        "how many steps carry gradient; held-out prompts and reward", f"{DRAFT}, Fig. 4 and Table 2", f"{_HERE}.draft.fig4:run"
    ),
    "draft-fig7": Recipe("LoRA scaling and mixing", f"{DRAFT}, Figs 5 and 7", f"{_HERE}.draft.fig7:run"),
    "draft-fig8": Recipe(
        "gradient norms and angles against the steps that carry gradient", f"{DRAFT}, Figs 8 and 25", f"{_HERE}.draft.fig8:run"
    ),
    "draft-fig9": Recipe(
        "how many steps carry gradient, on a reward of the image alone", f"{DRAFT}, Fig. 9", f"{_HERE}.draft.fig9:run"
    ),
    "draft-fig10": Recipe(
        "a LoRA in the last or the first M sampling steps", f"{DRAFT}, Figs 10, 26 and 27", f"{_HERE}.draft.fig10:run"
    ),
    "draft-fig13": Recipe(
        "adversarial: drawn as one concept, seen by a classifier as another", f"{DRAFT}, Fig. 13", f"{_HERE}.draft.fig13:run"
    ),
    "draft-fig28": Recipe("the norm that gradients are clipped to", f"{DRAFT}, Fig. 28", f"{_HERE}.draft.fig28:run"),
    "draft-fig29": Recipe(
        "over-optimisation: LoRA scaling, early stopping, KL, by a held-out reward", f"{DRAFT}, Fig. 29",
        f"{_HERE}.draft.fig29:run",
    ),
    "draft-fig30": Recipe("two attempts at diversity", f"{DRAFT}, Fig. 30", f"{_HERE}.draft.fig30:run"),
    "draft-fig33": Recipe("learned guidance weights and negative prompts", f"{DRAFT}, Fig. 33", f"{_HERE}.draft.fig33:run"),
    "draft-fig34": Recipe("DPG and single-reward DRaFT-LV", f"{DRAFT}, Fig. 34", f"{_HERE}.draft.fig34:run"),
    "ctrl-theory": Recipe(
        "CTRL's Theorem 1 and Lemma 2 on a two-dimensional mixture: the best steps, learnt ones, guidance, as T grows",
        "CTRL, sections 4 and 5", f"{_HERE}.ctrl.theory:run", seeded=False,
    ),
    "ctrl-table2": Recipe(
        "four classes of JPEG size: CTRL, guidance and classifier-free fine-tuning from the same labels", f"{CTRL}, Fig. 2",
        f"{_HERE}.ctrl.table2:run",
    ),
    "ctrl-table3": Recipe(
        "two labels at once, from two data sets that share no picture", f"{CTRL}, Fig. 3", f"{_HERE}.ctrl.table3:run"
    ),
    "ctrl-table5": Recipe(
        "reconstruction guidance over its strength, per class of JPEG size", f"{CTRL}, Table 5", f"{_HERE}.ctrl.table5:run"
    ),
    "ctrl-data": Recipe(
        "accuracy against the number of labelled pairs, CTRL and classifier-free fine-tuning", f"{CTRL}, sections 1 and 5.2",
        f"{_HERE}.ctrl.data:run",
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
