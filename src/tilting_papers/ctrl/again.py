"""A second round of CTRL, for a label that can be asked of any picture: a control climbs whatever is wrong in its classifier,
so a first one is trained to show what that is.

    fit p(y | x) on D;  train a control;  label what it draws, D' = {(x, f(x)) : x ~ p_control(. | c, y)};  fit again on D + D'

and the control that counts is trained from the start by the second classifier. Scientists would measure what a first control
proposes in the same way. The paper has one round (Zhao et al. 2024, Algorithm 1); the table has a line for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tilting.conditioning.sample_run import Loaded
from tilting_papers.ctrl.arms import DATA_SEED, Shop
from tilting_papers.ctrl.labels import Label, Labelled, classes_of, joined, write_labels
from tilting_papers.ctrl.rows import combinations, draw_asked, name_of

STRENGTHS = (0.6, 1.0, 1.5)
"""Of the first control: the way to what it draws, and beyond."""


class First(NamedTuple):
    """What a first round leaves.

    Attributes:
        seen: by label, what the second classifiers learn from.
        fits: by label, what the first ones are worth on held-out pictures.
        cost: of training the first control.
    """

    seen: dict[str, Labelled]
    fits: dict[str, dict[str, Any]]
    cost: dict[str, Any]


def second_round(shop: Shop, data: Mapping[str, Labelled], seen: Mapping[str, Labelled], place: Path) -> First:
    """Train a first control, and label what it draws.

    Args:
        shop: where, and how much.
        data: by label, the labelled pictures, which say where the classes are cut.
        seen: by label, what the first classifiers learn from.
        place: the folder of the first round.
    """
    folders = {label.name: place / "fit" / label.name for label in shop.labels}
    fits = {}
    for label in shop.labels:
        shop.say(f"first round: fitting p({label.name} | x)")
        fits[label.name] = shop.fit(label, seen[label.name], folders[label.name])
    shop.say(f"first round: training the control, {shop.size.train_steps} steps")
    cost = shop.train(list(folders.values()), place / "ctrl")
    found, held = {}, Loaded()
    for label in shop.labels:
        shop.say(f"first round: drawing with the control, to label {label.name!r}")
        drawn = shop.seen(label, _asked(shop, label, data[label.name].edges, place, held))
        found[label.name] = joined(seen[label.name], drawn, table=place / f"{label.name}.csv")
        write_labels(found[label.name], label.name)
    return First(found, fits, cost)


def _asked(shop: Shop, label: Label, edges: tuple[float, ...], place: Path, held: Loaded) -> Labelled:
    """Pictures of the first control for every class and strength, by what the function says; no two labels share one."""
    files: list[Path] = []
    prompts: list[str] = []
    seed = shop.seed + DATA_SEED * (shop.labels.index(label) + 1) + DATA_SEED // 2
    classes = {one.name: len(one.classes) for one in shop.labels}
    for k, (asked, strength) in enumerate(product(combinations(classes), STRENGTHS)):
        out = place / "asked" / label.name / f"{name_of(asked)}-{strength:g}"
        by = {"control": [str(place / "ctrl")]}
        records = draw_asked(shop, held, by, asked, strength, out, images=shop.size.again, seed=seed + k)["images"]
        files += [out / record["file"] for record in records]
        prompts += [record["prompt"] for record in records]
    scores = label.read(files)
    table = place / f"{label.name}-asked.csv"
    return Labelled(tuple(files), tuple(prompts), tuple(scores), tuple(classes_of(scores, edges)), edges, table)
