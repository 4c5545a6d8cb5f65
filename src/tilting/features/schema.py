"""Description of a fitted classifier, read without torch: its label, and the label's values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilting.declare import made
from tilting.disk import checked_name
from tilting.errors import TiltingError, nearest
from tilting.foreign import read_json

FILE, WEIGHTS = "classifier.json", "classifier.safetensors"
NOISY = "noisy"
"""The name of a network of noisy latents (`tilting.conditioning.noisy`)."""

SPREAD = 2.0
"""Range of numeric labels in standard deviations around their mean, in which controls are trained on uniform ones."""


@dataclass(frozen=True)
class Schema:
    """A label y and the family of p(y | x).

    "classes" is a categorical over ``classes``; "gaussian" is N(y; shift + scale · output, std²), the noise of a regression.

    Attributes:
        label: its name, such as "bright".
        kind: "classes" or "gaussian".
        classes: the names of the classes, in the order of the outputs; empty for "gaussian".
        shift, scale: from the network's output to the unit of the label ("gaussian").
        std: of the noise, in the unit of the label ("gaussian").
        temperature: T of p(y | x)^(1/T), renormalised; 1 before calibration (Guo et al. 2017).
    """

    label: str
    kind: str = "classes"
    classes: tuple[str, ...] = ()
    shift: float = 0.0
    scale: float = 1.0
    std: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        numbers = (self.shift, self.scale, self.std, self.temperature)
        if not self.label or "=" in self.label or "#" in self.label:
            raise TiltingError(f"a label needs a name without = and #, not {self.label!r}")
        checked_name(self.label, "label")
        if self.kind not in ("classes", "gaussian"):
            raise TiltingError(f"there is no kind of label {self.kind!r}{nearest(self.kind, ('classes', 'gaussian'))}")
        if self.kind == "classes" and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise TiltingError(f"the label {self.label!r} needs at least two classes, all different, not {list(self.classes)}")
        if not (all(math.isfinite(v) for v in numbers) and self.std > 0 and self.temperature > 0):
            raise TiltingError(f"the label {self.label!r} needs finite numbers, std and temperature above 0, not {numbers}")

    @property
    def told(self) -> str:
        """The label and its values, such as "size: small, large", as people are told of it."""
        return f"{self.label}: {', '.join(self.classes) or f'a number, {self.shift:.4g} ± {self.scale:.4g}'}"

    @property
    def outputs(self) -> int:
        """How many numbers the network gives: one per class, or the mean."""
        return len(self.classes) if self.kind == "classes" else 1

    def target(self, value: str | float) -> float:
        """A value as `log_prob` wants it: the index of a class, or the number itself. Raises TiltingError if it is neither."""
        if self.kind == "classes":
            if str(value) not in self.classes:
                raise TiltingError(f"the label {self.label!r} has no class {str(value)!r}{nearest(str(value), self.classes)}")
            return self.classes.index(str(value))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            usual = f"it was learnt from numbers around {self.shift:.3g}, of standard deviation {self.scale:.3g}"
            raise TiltingError(f"the label {self.label!r} takes a finite number, not {value!r}: {usual}")
        return number

    def far(self, value: str | float) -> str | None:
        """A sentence about a number that is more than `SPREAD` standard deviations from the labels learnt from, or None."""
        if self.kind == "classes" or not abs(self.target(value) - self.shift) > SPREAD * self.scale:
            return None
        away = abs(self.target(value) - self.shift) / self.scale
        return (
            f"{self.label}={value} is {away:.3g} standard deviations from the mean of the labels that were learnt from "
            f"({self.shift:.3g}, standard deviation {self.scale:.3g}): nobody knows what is drawn so far out"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The classifier.json of a folder: "schema" and "network". Raises TiltingError naming the folder."""
    if not ((folder / FILE).is_file() and (folder / WEIGHTS).is_file()):
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{FILE}"))
        more = f"; there is one in {', '.join(inside)}" if inside else ""
        raise TiltingError(f"there is no classifier in {str(folder)!r} ({FILE} and {WEIGHTS}){more}")
    config = read_json(folder / FILE)
    if not (isinstance(config, dict) and isinstance(config.get("schema"), dict) and isinstance(config.get("network"), dict)):
        raise TiltingError(f"{str(folder / FILE)!r} is not the description of a classifier (schema and network)")
    return config


def schema_of(values: Any, what: str) -> Schema:
    """The schema that a file says. Raises TiltingError: what a declaration does not have."""
    if isinstance(values, dict) and isinstance(values.get("classes"), list):
        values = {**values, "classes": [str(one) for one in values["classes"]]}
    return made(Schema, values, what)


def read_schema(folder: Path) -> Schema:
    """The schema of the classifier in a folder. Raises TiltingError if there is none."""
    return schema_of(read_config(folder)["schema"], f"{str(folder / FILE)!r} is not the description of a classifier")


def noisy_model(folder: Path) -> dict[str, Any] | None:
    """{"name", "sha256"} of the model whose noisy latents the classifier in a folder is of; None for one of clean pictures."""
    config = read_config(folder)
    return dict(config.get("model") or {}) if config["network"].get("name") == NOISY else None
