"""Recipes: experiments of the papers on model pocket, each one command, our numbers beside theirs. Torch-free to import.

A recipe is declared in its own module and registered by a line here. Another package does the same, and names its mapping by an
entry point of the group ``tilting.recipes``.
"""

from __future__ import annotations

from tilting_papers.codex import ablations, fig5, pictures, rivals, strengths, table6
from tilting_papers.codex.table import THESIS
from tilting_papers.ctrl import data, table2, table3, table5, theory
from tilting_papers.ctrl.study import CTRL
from tilting_papers.draft import fig3, fig4, fig7, fig8, fig10, fig13, fig28, fig29, fig30, fig33, fig34
from tilting_papers.draft.study import DRAFT
from tilting_papers.field import RECIPES as FIELD
from tilting_papers.field import objectives
from tilting_papers.mixture import BIAS
from tilting_papers.recipe import Recipe

__all__ = ["CTRL", "DRAFT", "RECIPES", "THESIS", "Recipe"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        ablations.TABLE1,
        rivals.TABLE2,
        rivals.TABLE3,
        ablations.TABLE4,
        pictures.TABLE5,
        table6.TABLE6,
        fig5.FIG5,
        pictures.FIG7,
        strengths.STYLE,
        strengths.ODDS,
        strengths.CLIP,
        fig3.STUDY,
        fig4.FIG4,
        fig7.STUDY,
        fig8.STUDY,
        fig4.FIG9,
        fig10.STUDY,
        fig13.STUDY,
        fig28.STUDY,
        fig29.STUDY,
        fig30.STUDY,
        fig33.STUDY,
        fig34.STUDY,
        theory.THEORY,
        table2.STUDY,
        table3.STUDY,
        table5.STUDY,
        data.STUDY,
        BIAS,
        *FIELD,
        objectives.STUDY,
    )
}
