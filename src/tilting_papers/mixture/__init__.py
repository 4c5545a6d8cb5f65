"""How far every method is from the exact tilt, where that is known: on a mixture in the plane (`tilting.oracle.plane`)."""

from __future__ import annotations

from tilting_papers.recipe import Recipe, later

BIAS = Recipe(
    name="mixture-bias",
    about="how far every method is from the exact tilt, on a two-dimensional mixture",
    paper="our own",
    seeded=False,
    measure=later("mixture.bias:measure"),
    page=later("mixture.bias:markdown"),
)
