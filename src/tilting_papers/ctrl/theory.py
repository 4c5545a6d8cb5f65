"""CTRL's theory on the plane: Theorem 1, Lemma 2, and what is left of them at T steps; see `ctrl.theory_rows`."""

from __future__ import annotations

from tilting_papers.recipe import Recipe, later

THEORY = Recipe(
    name="ctrl-theory",
    about="CTRL's Theorem 1 and Lemma 2 on a two-dimensional mixture: the best steps, learnt ones, guidance, as T grows",
    paper="CTRL, sections 4 and 5",
    seeded=False,
    measure=later("ctrl.theory_rows:measure"),
    page=later("ctrl.theory_rows:markdown"),
)
