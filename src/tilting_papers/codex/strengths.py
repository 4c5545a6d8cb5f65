"""How strong should each gradient method be on pocket? Every strength on prompts that no other table has, with two rewards.

A strength is *usable* if the held-out judge does not fall below the base model's (the interval of the paired difference
reaches 0); the chosen is the weakest of them that takes 99 % of the most gain over the base model that a usable one takes.
A reward with a ceiling is not paid for twice: what is stronger there only ruins the picture. Tables 2 and 3 and the presets'
defaults stand on the outcome: rivals are then compared as well as this model lets them be, and on other prompts than they
were tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilting_papers.codex.table import ALL, LATE, Row, Size, Table
from tilting_papers.page import NONE
from tilting_papers.prompts import TUNING, TUNING_SCENES

GRIDS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "codex": (("strength",), (0.05, 0.1, 0.2, 0.4)),
    "dps": (("strength",), (0.0125, 0.025, 0.05, 0.1)),
    "mpgd": (("strength",), (0.05, 0.1, 0.2, 0.4)),
    "freedom": (("strength",), (0.1, 0.2, 0.4, 0.8)),
    "lgd": (("strength",), (0.0125, 0.025, 0.05, 0.1)),
    "tfg": (("rho", "mu"), (0.0125, 0.025, 0.05, 0.1)),
    "ug": (("rate",), (0.0125, 0.025, 0.05, 0.1)),
}
"""By method, the settings that make up its strength, and the values to try."""
SMALL = 2
"""Number of strengths of each method under ``--small``."""
NEAR = 0.99
"""The chosen strength is the weakest with this share of the largest gain."""
UG = {"clip": 40.0, "style": 2.0, "odds": 2.0}
"""ug's w, 1 / β in the reward's unit: about one spread of the reward over images of a prompt."""


def chosen(report: Mapping[str, Any], near: float = NEAR) -> dict[str, float | None]:
    """By method, the weakest usable strength with the share ``near`` of its largest usable gain; None if none is usable."""
    spec = report["reward"][0]
    usable: dict[str, list[tuple[float, float]]] = {}
    for row in report["rows"]:
        if row["method"] not in GRIDS or row["judge"] is None:
            continue
        value = next(float(v) for k, v in row["set"].items() if k.rpartition(".")[2] == GRIDS[row["method"]][0][0])
        pairs, against = usable.setdefault(row["method"], []), row["against"]["base"]
        high = against["judge"]["high"]
        if high is None or high >= 0:
            pairs.append((value, against[spec]["mean"]))
    return {method: _weakest(pairs, near) if pairs else None for method, pairs in usable.items()}


def _weakest(pairs: list[tuple[float, float]], near: float) -> float:
    """From (strength, gain) pairs, the smallest strength with nearly the largest gain; the best one if nothing gains."""
    most = max(gain for _, gain in pairs)
    return min(value for value, gain in pairs if gain >= min(near * most, most))


def settings(report: Mapping[str, Any], near: float) -> dict[str, dict[str, float]]:
    """By method, the strength settings chosen by a report of strengths; the weakest if none is usable."""
    found = {}
    for method, value in chosen(report, near).items():
        tried = [row["set"] for row in report["rows"] if row["method"] == method]
        names = GRIDS[method][0]
        weakest = min(float(v) for one in tried for k, v in one.items() if k.rpartition(".")[2] == names[0])
        found[method] = dict.fromkeys(names, weakest if value is None else value)
    return found


def _facts(report: Mapping[str, Any], near: float = NEAR) -> list[dict[str, Any]]:
    facts = []
    for method, value in chosen(report, near).items():
        ours = "the judge falls at every strength" if value is None else f"{value:g}"
        facts.append({"what": f"{method}: {' = '.join(GRIDS[method][0])}", "ours": ours, "published": NONE})
    return facts


def _table(
    name: str, unit: str, prompts: tuple[str, ...], window: tuple[float, float], near: float = NEAR, **fields: Any
) -> Table:
    """A table of strengths for the reward ``name``, or for a sum of that name, whose ``fields`` of `Table` are given."""

    def row(method: str, value: float, small: bool) -> Row:
        fixed = {"codex": {"window": window, "gradient_block": 1}, "ug": {"strength": UG[name]}}.get(method, {})
        settings = {**dict.fromkeys(GRIDS[method][0], value), **fixed}
        return Row(f"{method}-{value:g}", method, 4 if method == "codex" else 1, settings, small=small)

    own: dict[str, Any] = {"reward": (name,), "units": {name: unit}}
    return Table(
        name=f"codex-strengths-{name}",
        about=f"how strong each gradient method should be: reward against judge, reward {name}",
        paper="our own tuning",
        title=f"strengths of the gradient methods, reward {name}",
        after="no table: tuning on prompts that no other recipe has",
        prompts=prompts,
        size=Size(10, 2, 20, 0),
        near=near,
        asks=("reward", "prompts", "seeds", "steps"),
        rows=(
            Row("base", "base"),
            Row("code", "code", 4),
            *(row(method, value, k < SMALL) for method, (_, values) in GRIDS.items() for k, value in enumerate(values)),
        ),
        figure="sweep",
        facts=lambda report: _facts(report, near),
        notes=(
            "usable: the judge's interval against base reaches 0; chosen is the weakest of them with "
            f"{near:.0%} of the most gain.",
            "gradient methods run one stream here, CoDeX four with a gradient at every draw, as the others have.",
            f"ug's forward strength is fixed at {UG[name]:g} per unit of reward and its backward rate varies.",
        ),
        **own | fields,
    )


LOG_ODDS = {
    "reward": ("style:noto", "style:twemoji=-0.5", "style:fluent=-0.5"),
    "units": {"odds": "log odds of noto, nats"} | dict.fromkeys(("style:noto", "style:twemoji", "style:fluent"), "log p, nats"),
    "total": "odds",
}
"""log p(noto) - (log p(twemoji) + log p(fluent)) / 2: noto's logit over the mean of the others', which has no ceiling as
log p(noto) has at 0."""
ODDS = _table("odds", "log odds of noto, nats", TUNING, LATE, near=1.0, **LOG_ODDS)
STYLE = _table("style", "log p of noto, nats", TUNING, LATE)
CLIP = _table("clip", "raw cosine", TUNING_SCENES, ALL)
