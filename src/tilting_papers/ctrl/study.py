"""`run_control_study` makes a table of the CTRL paper on model pocket: labelled pictures of the base model, what is learnt from
them, rows of pictures asked for every class, and their numbers by the functions that label, never by a classifier.

A rival has a grid of strengths, each a row, and a line with the best of them chosen anew for each class, on the very pictures
that are reported: all of the luck is the rivals'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from tilting.config.condition_train import OWN
from tilting.errors import TiltingError
from tilting_papers.ctrl.again import second_round
from tilting_papers.ctrl.arms import Labelled, Shop, Size
from tilting_papers.ctrl.labels import SIZE, Label
from tilting_papers.ctrl.numbers import best_cells, hits, look, numbers_of
from tilting_papers.ctrl.rows import FIRST, Drawer, Row
from tilting_papers.folder import Report, Say, check_out, command, opening, write_table
from tilting_papers.numbers import interval
from tilting_papers.page import number, shown
from tilting_papers.rows import ANIMALS
from tilting_papers.verdicts import finding_of

FULL = Size(
    data=50, copies=3, again=3, images=2, steps=12, train_steps=150, batch=8, epochs=15, widths=(16, 32, 64), free_steps=200,
    free_batch=32, noisy_epochs=60,
)  # fmt: skip
SMALL = Size(
    data=30, copies=1, again=1, images=1, steps=4, train_steps=3, batch=4, epochs=2, widths=(16, 16, 16), free_steps=4,
    free_batch=8, noisy_epochs=2,
)  # fmt: skip
SMALL_PROMPTS = 4
RIVALS = {"dps": "reconstruction guidance", "noisy": "classifier guidance", "free": "classifier-free fine-tuning"}
ENOUGH = 0.85


@dataclass(frozen=True)
class Study:
    """A table of the paper on model pocket.

    Attributes:
        name, title, paper: of the recipe.
        rows: its lines.
        labels: what is asked for.
        size: of the full run.
        tiny: of ``--small``.
        prompts: of data, training and rows.
        model: name or folder.
        settings: more options of `tilting condition train`.
        counts: how many labelled pictures of each label to learn from, by part ("" is that of a study with one part only);
            None is all.
        worst: the least accuracy of any class that is claimed, beside .85 of accuracy and macro F1; None claims none of
            them.
        claims: more of them, from the report and the looks at every row.
        published: what the paper has, by line: {"accuracy", "macro_f1"} of each label in words.
        notes: for the reader.
    """

    name: str
    title: str
    paper: str
    rows: tuple[Row, ...]
    labels: tuple[Label, ...] = (SIZE,)
    size: Size = FULL
    tiny: Size = SMALL
    prompts: tuple[str, ...] = ANIMALS
    model: str = "pocket"
    settings: Mapping[str, Any] = field(default_factory=lambda: dict(OWN["pocket"]))
    counts: Mapping[str, int | None] = field(default_factory=lambda: {"": None})
    worst: float | None = 0.75
    claims: Callable[[Report, Mapping[str, list[dict[str, Any]]]], list[dict[str, Any]]] | None = None
    published: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Made:
    """What was learnt.

    Attributes:
        data: by label.
        places: folders, as `Drawer` takes them.
        costs: by what it is ("fit", "ctrl", "free", "noisy"): seconds and evaluations.
        fits: by label, what the classifier is worth on held-out pictures.
        before: the same of a first round.
    """

    data: dict[str, Labelled] = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    fits: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: dict[str, dict[str, Any]] = field(default_factory=dict)


def learn(shop: Shop, families: set[str], part: str = "") -> Made:
    """Draw the data and make what is missing of the parts that rows of these families need.

    Args:
        shop: where.
        families: of rows.
        part: a folder below the shop's own, for a study with several of a kind.

    Raises:
        TiltingError: two labels share a picture, or one has too few.
    """
    made, place = Made(), shop.out / part
    for label in shop.labels:
        shop.say(f"{part and part + ': '}labelled pictures of {label.name!r}: {shop.size.data * len(shop.prompts)}")
        made.data[label.name] = shop.data(label)
    seen = [data.pictures() for data in made.data.values()]
    if len(set().union(*seen)) < sum(len(one) for one in seen):
        raise TiltingError("two labels share a labelled picture")
    made.places["fit"] = {label.name: place / "fit" / label.name for label in shop.labels}
    known = {label.name: shop.seen(label, made.data[label.name]) for label in shop.labels} if families - {"base"} else {}
    if shop.size.again and "ctrl" in families:
        known, made.before, made.costs[FIRST] = second_round(shop, made.data, known, place / FIRST)
        made.places[FIRST] = place / FIRST / "ctrl"
    if families & {"dps", "ctrl", "free"}:
        for label in shop.labels:
            shop.say(f"{part and part + ': '}fitting p({label.name} | x)")
            made.fits[label.name] = shop.fit(label, known[label.name], made.places["fit"][label.name])
    classifiers = list(made.places["fit"].values())
    if "ctrl" in families:
        made.places["ctrl"] = place / "ctrl"
        shop.say(f"{part and part + ': '}training the control, {shop.size.train_steps} steps")
        made.costs["ctrl"] = shop.train(classifiers, place / "ctrl")
    if "noisy" in families:
        made.places["noisy"] = {label.name: place / "noisy" / label.name for label in shop.labels}
        shop.say("fitting classifiers of noisy latents")
        costs = [shop.noisy(label, known[label.name], made.places["noisy"][label.name]) for label in shop.labels]
        made.costs["noisy"] = {"seconds": sum(cost["seconds"] for cost in costs)}
    if "free" in families:
        made.places["free"] = place / "free"
        shop.say(f"{part and part + ': '}classifier-free fine-tuning, {shop.size.free_steps} steps")
        made.costs["free"] = shop.free(made.data, classifiers, place / "free")
    return made


def run_control_study(study: Study, out: Path, small: bool, say: Say, seed: int = 0, quiet: bool = True) -> Report:
    """Make a study, or what is missing of it.

    Args:
        study: which.
        out: the folder to write, or to go on with.
        small: a few tiny steps, to try it.
        say: takes lines of progress.
        seed: of the rows; data, training and rows never share noise.
        quiet: no bars within a part.

    Returns:
        What table.json holds.

    Raises:
        TiltingError: a folder that cannot be written, or holds something else.
    """
    from tilting_papers.ctrl.render import markdown, write_figures

    check_out(study.name, out, small, seed)
    shop = shop_of(study, out, small, say, seed, quiet)
    rows = [row for row in study.rows if row.small or not small]
    parts = {part: learn(replace(shop, first=count), {row.family for row in rows if row.part in ("", part)}, part)
             for part, count in study.counts.items()}  # fmt: skip
    made = list(parts.values())[-1]
    drawer, seen = Drawer(shop, {part: one.places for part, one in parts.items()}), {}
    edges = {name: data.edges for name, data in made.data.items()}
    for i, row in enumerate(rows):
        say(f"row {i + 1} of {len(rows)}: {row.name}")
        seen[row.name] = look(drawer.cells(row), study.labels, edges, out)
    lines = [{"name": row.name, "family": row.family, "part": row.part, "strength": row.strength,
              **numbers_of(seen[row.name], study.labels)} for row in rows]  # fmt: skip
    for family, part in product(RIVALS, parts):
        mine = {row.strength: seen[row.name] for row in rows if (row.family, row.part) == (family, part)}
        if len(mine) > 1:
            best = best_cells(list(mine.values()))
            seen[best_name(family, part)] = best
            which = [next(s for s, cells in mine.items() if any(cell is one for one in cells)) for cell in best]
            lines.append({"name": best_name(family, part), "family": family, "part": part, "strength": which,
                          **numbers_of(best, study.labels)})  # fmt: skip
    report: Report = {
        **opening(study, small, seed),
        "model": study.model, "steps": shop.size.steps, "prompts": list(shop.prompts), "images": shop.size.images,
        "settings": dict(study.settings), "train_steps": shop.size.train_steps, "batch": shop.size.batch,
        "labels": {label.name: _about(label, made.data[label.name]) for label in study.labels},
        "fits": {part: _worth(one.fits) for part, one in parts.items()},
        "before": {part: _worth(one.before) for part, one in parts.items() if one.before},
        "costs": {part: one.costs for part, one in parts.items()}, "rows": lines,
        "published": dict(study.published), "notes": list(study.notes),
    }  # fmt: skip
    report["claims"] = claims_of(study, report, seen)
    report["figures"] = write_figures(report, seen, study.labels, out)
    report["cells"] = seen
    write_table(out, markdown(report), report)
    return report


def shop_of(study: Study, out: Path, small: bool, say: Say, seed: int, quiet: bool = True) -> Shop:
    """Where a study's parts are made."""
    prompts = study.prompts[:SMALL_PROMPTS] if small else study.prompts
    size, argv = study.tiny if small else study.size, tuple(command(study.name, out, small, seed))
    return Shop(study.model, prompts, study.labels, size, out, seed, say, study.settings, argv, quiet)


def best_name(family: str, part: str = "") -> str:
    """The line of a rival with the best strength for each class."""
    return f"{family}{part and '-' + part}, best"


def _worth(fits: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    told = ("accuracy", "macro_f1", "temperature", "ece", "epochs", "records")
    return {name: {key: fit[key] for key in told} for name, fit in fits.items()}


def _about(label: Label, data: Labelled) -> dict[str, Any]:
    counts = [data.classes.count(y) for y in range(len(label.classes))]
    return {"unit": label.unit, "meaning": list(label.meaning), "quantiles": list(label.quantiles), "edges": list(data.edges),
            "pictures": len(data.files), "counts": counts, "scores": list(data.scores), "digest": data.digest}  # fmt: skip


def line_of(report: Report, name: str) -> dict[str, Any]:
    """A line by its name."""
    return next(line for line in report["rows"] if line["name"] == name)


def at_least(text: str, value: float, line: float, published: str = "not told", words: str = "") -> dict[str, Any]:
    """The claim that a number reaches a line."""
    found = f"{number(value, 3)}{words}"
    return {"text": text, "published": published, "finding": {"verdict": "holds" if value >= line else "fails", "found": found}}


def above(text: str, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], published: str) -> dict[str, Any]:
    """The claim that more pictures of one row are of the class asked for than of another, by the interval of the difference."""
    gap = interval(hits(ours), hits(theirs))
    assert gap is not None
    return {"text": text, "published": published, "finding": finding_of(gap)}


def claims_of(study: Study, report: Report, seen: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is to hold of the control, and whether it does."""
    found: list[dict[str, Any]] = []
    for line in [line for line in report["rows"] if line["family"] == "ctrl" and line["strength"] == 1]:
        mine, part = line["name"], line["part"]
        for label in study.labels:
            found += _reaches(study, line, label)
        for family, title in RIVALS.items():
            others = [r["name"] for r in report["rows"] if (r["family"], r["part"]) == (family, part)]
            known = [best_name(family, part), *others]
            rival = next((name for name in known if name in seen), None)
            if rival is not None:
                best = ", at the best strength for each class" if rival == known[0] else ""
                said = "CTRL is above its baselines"
                found.append(above(f"{mine} is above {rival} ({title}{best})", seen[mine], seen[rival], said))
        if "base" in seen:
            found.append(above(f"{mine} is above the base model", seen[mine], seen["base"], "CTRL is above its baselines"))
    return found + (study.claims(report, seen) if study.claims else [])


def _reaches(study: Study, line: Mapping[str, Any], label: Label) -> list[dict[str, Any]]:
    """That a control's accuracy, macro F1 and worst class reach their lines, where the study claims it."""
    if study.worst is None:
        return []
    numbers, what = line["labels"][label.name], f" of {label.name}" if len(study.labels) > 1 else ""
    mean, least = numbers["accuracy"]["mean"], min(numbers["per_class"])
    said = study.published.get(line["name"], "its accuracy stands in a figure, not in the text")
    words = f", interval {shown(numbers['accuracy'])}"
    return [
        at_least(f"The accuracy{what} of {line['name']} is at least {ENOUGH}", mean, ENOUGH, said, words),
        at_least(f"The macro F1{what} of {line['name']} is at least {ENOUGH}", numbers["macro_f1"], ENOUGH, said),
        at_least(
            f"Every class{what} is obeyed by {line['name']} at least {study.worst} of the time", least, study.worst,
            words=f" in class {numbers['per_class'].index(least)}",
        ),
    ]  # fmt: skip
