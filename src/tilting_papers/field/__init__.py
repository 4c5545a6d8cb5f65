"""Comparison of all methods and objectives at equal cost on pocket, and the table behind `--method auto`. Torch-free.

A cell is a reward and a budget of evaluations per image; the methods that compete there each raise one setting (their knob)
until the budget is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tilting.config.recipe import OTHERWISE
from tilting_papers.prompts import ANIMALS, OBJECTS, TUNING, TUNING_SCENES
from tilting_papers.recipe import PARTED, POCKET, OfPocket, Recipe, Report, Run, later, noted, parted, units_of


@dataclass(frozen=True)
class Rival:
    """A method that competes for a budget.

    Attributes:
        method: a preset.
        knob: the setting that is raised until the budget is spent.
        settings: its other settings that are not at their defaults.
        least: minimum of the knob; if the budget does not allow it, the method is not in the cell.
        gradient: whether it needs the reward's gradient.
        chosen: whether ``auto`` may choose it.
        small: whether ``--small`` includes it.
    """

    method: str
    knob: str = "particles"
    settings: Mapping[str, Any] = field(default_factory=dict)
    least: int = 1
    gradient: bool = False
    chosen: bool = False
    small: bool = False


RIVALS = (
    Rival("bon", least=2, chosen=True, small=True),
    Rival("code", least=2, chosen=True),
    Rival("svdd", least=2),
    Rival("smc", least=2),
    Rival("fk", least=2, chosen=True),
    Rival("fkc", least=2),
    Rival("rbf", least=2, chosen=True, small=True),
    Rival("zo", "iterations", {"particles": 1}, chosen=True),
    Rival("paths", "branches", least=2),
    Rival("lidar", "samples", least=2, chosen=True),
    Rival("codex", gradient=True, chosen=True),
    Rival("dps", gradient=True, chosen=True, small=True),
    Rival("mpgd", gradient=True),
    Rival("freedom", gradient=True),
    Rival("ug", gradient=True),
    Rival("lgd", gradient=True),
    Rival("tfg", gradient=True, chosen=True, small=True),
    Rival("tds", least=2, gradient=True),
    Rival("das", least=2, gradient=True, chosen=True),
    Rival("psi", least=2, gradient=True),
    Rival("reno", "iterations", least=2, gradient=True),
    Rival("doodl", "iterations", least=2, gradient=True),
)


@dataclass(frozen=True)
class Asked:
    """A reward of the cells.

    Attributes:
        unit: unit of its values.
        gradient: whether methods may use its gradient; None is found out when it is loaded.
        prompts: prompts to draw.
    """

    unit: str
    gradient: bool | None
    prompts: tuple[str, ...]


REWARDS = {
    "clip": Asked("raw cosine", True, TUNING_SCENES),
    "style": Asked("log p of noto, nats", True, TUNING),
    "jpeg": Asked("- kilobytes", False, TUNING),
}
HELD = {
    "symmetry": Asked("- mean squared distance", True, OBJECTS),
    "color:orange": Asked("- mean squared distance", True, OBJECTS),
    "jpeg-up": Asked("kilobytes", False, OBJECTS),
    "rotation": Asked("squared distance, its gradient not used", False, OBJECTS),
}
"""Held-out rewards and prompts, which auto's table was not tuned on."""


MEASURE, PAGE = later("field.cells:measure"), later("field.page:markdown")
BAKED, BAKED_PAGE = later("field.bake:measure"), later("field.bake:markdown")


@dataclass(frozen=True, kw_only=True)
class Cells(Recipe):
    """Methods at equal evaluations; in addition to `Recipe`:

    Attributes:
        budgets: T by budget in evaluations per image.
        rivals: the competing methods.
        rewards: the rewards by spec.
        images: images per prompt.
        count: number of prompts.
        auto: whether to write auto.json; black-box methods then compete on black-box rewards only.
        model: the model to sample from.
        seeds: seeds of sampling; empty for that of the run.
        tiny: T of ``--small``, whose budget buys two images.
    """

    measure: Any = MEASURE
    page: Any = PAGE
    sharded: bool = True
    budgets: Mapping[int, int]
    rivals: tuple[Rival, ...]
    rewards: Mapping[str, Asked] = field(default_factory=lambda: REWARDS)
    images: int = 1
    count: int = 8
    auto: bool = False
    model: str = POCKET
    seeds: tuple[int, ...] = ()
    tiny: int = 4
    asks: tuple[str, ...] = OTHERWISE

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The same methods on another model, with other prompts, seeds or steps; a table for each reward."""
        changed: dict[str, Any] = {"model": asked.get("model", self.model), "seeds": tuple(asked.get("seeds", ()))}
        changed["rewards"] = {
            spec: replace(one, prompts=tuple(asked.get("prompts", one.prompts))) for spec, one in self.rewards.items()
        }
        if "reward" in asked:
            prompts = tuple(asked.get("prompts", next(iter(self.rewards.values())).prompts))
            changed["rewards"] = {spec: Asked(unit, None, prompts) for spec, unit in units_of(asked["reward"]).items()}
        if "prompts" in asked:
            changed["count"] = len(asked["prompts"])
        if "steps" in asked:  # budgets buy as many images as before
            steps = asked["steps"]
            changed |= {"budgets": {steps * (budget // t): steps for budget, t in self.budgets.items()}, "tiny": steps}
        title = self.title.replace("at 100 evaluations", f"at {next(iter(changed.get('budgets', self.budgets)))} evaluations")
        own = {"title": title, "after": "no table: a setting of one's own", "notes": noted(self.notes, changed["model"])}
        return replace(self, **own, **changed)


METHODS = Cells(
    name="field-methods",
    about="every inference method at equal evaluations, on rewards with and without a gradient",
    paper="our own",
    title="every inference method at 100 evaluations an image",
    after="no table: the methods at their defaults here",
    budgets={100: 25},
    rivals=RIVALS,
    notes=(
        OfPocket("Settings are the presets' own, which are pocket's (codex-strengths-*)."),
        "What buys a method more evaluations is raised until the budget is spent, never beyond it.",
        "Equal evaluations are not equal time: decodes, scores and gradients, the column of values, are paid beside them.",
        OfPocket(
            "smc, tds, das, fk, fkc, psi and lidar sample the tilt at β = .05, others climb as far as they can. If rewards are "
            "Gaussian over a prompt's images the tilt is var(r)/β above base: little where they are spread by less than β."
        ),
    ),
)
AUTO = Cells(
    name="auto-table",
    about="what --method auto takes for a budget: methods at 20 to 400 evaluations an image",
    paper="our own",
    title="which method for which budget",
    after="no table: our own tuning, on prompts that no other recipe has",
    budgets={20: 10, 50: 25, 100: 25, 200: 25, 400: 25},
    rivals=tuple(rival for rival in RIVALS if rival.chosen),
    auto=True,
    notes=(
        "A method is usable where the held-out judge's paired difference to base reaches 0 for every reward of the kind; taken "
        "is the usable one of the most gain over base, in standard deviations of base's reward, averaged over the rewards of "
        "the kind. Where no method is usable, base is taken.",
        "A cell is measured when every method of it has been run. Budgets are of evaluations per image; 20 is at T = 10.",
        OfPocket(
            "Nothing stops before its budget is spent: the expected best of n draws rises with n, so who stops early "
            "gives reward away, and how much is known only by drawing the rest (dps on clip: 0.7648 for 50 "
            "evaluations, 0.7692 for 100, 0.7713 for 200)."
        ),
        "Evaluations are rolled over to where the reward still rises by rbf, which is what is taken for black-box "
        "rewards; methods with a gradient spend theirs on whole guided runs, whose number is fixed before the "
        "first is drawn.",
    ),
)
PROOF = Cells(
    name="auto-proof",
    about="what --method auto takes beside every single method at its cost, on rewards that its table never saw",
    paper="our own",
    title="is what auto takes the best for its budget?",
    after="no table: rewards and prompts that nothing of auto was tuned on",
    measure=later("field.proof:measure"),
    page=later("field.proof:markdown"),
    budgets={20: 10, 50: 25, 100: 25},
    rivals=AUTO.rivals,
    rewards=HELD,
    count=12,
    notes=(
        "auto's row is that of the method it takes: the same request, so the same pictures, which are drawn once. The best "
        "single method of a cell is found on the very images that auto is held against, so it is the luckiest of them.",
        "auto is below the best of a cell where the interval of auto - best lies below 0, corrected by Holm over the cells in "
        "which auto took another; its judge falls where that of auto - base does, corrected over all cells.",
        "Methods that need a gradient compete where one may be used, black-box methods everywhere.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Bake(Recipe):
    """CoDeX distilled into a LoRA; in addition to `Recipe`:

    Attributes:
        model: the model to steer and to train.
        reward: the rewards to steer by.
        train, held: prompts that are steered and learnt from, and those that rows draw.
        steps, tiny: T, and T of ``--small``.
        seeds: seeds of the rows; the first is that of training; empty for that of the run.
    """

    measure: Any = BAKED
    page: Any = BAKED_PAGE
    model: str = POCKET
    reward: tuple[str, ...] = ("style",)
    train: tuple[str, ...] = (*ANIMALS, *OBJECTS)
    held: tuple[str, ...] = TUNING
    steps: int = 20
    tiny: int = 4
    seeds: tuple[int, ...] = ()
    asks: tuple[str, ...] = OTHERWISE

    def otherwise(self, asked: Mapping[str, Any]) -> Self:
        """The same on another model, with another reward, prompts, seeds or steps. Raises TiltingError: too few prompts."""
        changed: dict[str, Any] = {key: tuple(asked[key]) for key in ("reward", "seeds") if key in asked}
        notes = list(noted(self.notes, asked.get("model", POCKET)))
        if "prompts" in asked:
            changed["train"], changed["held"] = parted(self.name, asked["prompts"])
            notes.append(PARTED)
        changed |= {"steps": asked["steps"], "tiny": asked["steps"]} if "steps" in asked else {}
        return replace(self, model=asked.get("model", POCKET), notes=tuple(notes), **changed)


BAKE = Bake(
    name="bake",
    about="steer, then bake: CoDeX distilled into a LoRA, on prompts that it never saw",
    paper="our own",
    title="steer, then bake",
    after="no table: CoDeX's samples as a teacher, objective opd",
)
RECIPES = (METHODS, AUTO, PROOF, BAKE)
__all__ = [
    "AUTO",
    "BAKE",
    "HELD",
    "METHODS",
    "PROOF",
    "RECIPES",
    "REWARDS",
    "RIVALS",
    "Asked",
    "Cells",
    "Report",
    "Rival",
    "Run",
]
