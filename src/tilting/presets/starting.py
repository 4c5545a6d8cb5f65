"""Presets that look for a better start: reno and doodl optimise x_T, prompt tries templates of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tilting.errors import TiltingError
from tilting.presets.common import Climbing, Unguided

if TYPE_CHECKING:
    from tilting.method import Method


@dataclass(frozen=True)
class Optimised(Climbing):
    """The starting noise climbed through the whole chain, gradient after gradient; the best picture is kept.

    Attributes:
        iterations: I, looks at x_0, each but the last updated from.
        rate: learning rate.
    """

    iterations: int = 10
    rate: float = 0.05
    cost = "(2·I - 1)·T, I iterations"
    density = False
    selects = False
    usual_eta = 0.0


@dataclass(frozen=True)
class Reno(Optimised):
    """ReNO: gradient ascent on the starting noise through the whole chain, with a prior on its norm; the best picture is kept.

    Eyring et al. 2024 (one-step models, lr 5, 50 iterations, prior .01, gradient clipped at .1).

    Attributes:
        prior: weight of the log-density of the noise's norm.
        clip: largest norm of an image's gradient.
    """

    rate: float = 5.0
    prior: float = 0.01
    clip: float = 0.1
    name = "reno"
    paper = "Eyring et al. 2024"
    published: ClassVar[dict[str, Any]] = {"iterations": 50, "rate": 5, "prior": 0.01, "clip": 0.1, "steps": 1}

    def build(self, steps: int) -> Method:
        from tilting.engines.optimise import Optimise
        from tilting.method import Method

        engine = Optimise(
            self.iterations, self.rate, "nesterov", self.prior, self.clip, probes=self.probes, sigma=self.sigma
        )  # fmt: skip
        return Method("reno", engine=engine)


@dataclass(frozen=True)
class Doodl(Optimised):
    """DOODL: Adam on the starting noise through the whole chain, brought back to the sphere after each update.

    Wallace et al. 2023, as Clark et al. 2024, App. A.3, ran it (20 steps, checkpointed DDIM).
    """

    name = "doodl"
    paper = "Wallace et al. 2023"
    published: ClassVar[dict[str, Any]] = {"iterations": 20, "steps": 50}

    def build(self, steps: int) -> Method:
        from tilting.engines.optimise import Optimise
        from tilting.method import Method

        engine = Optimise(
            self.iterations, self.rate, "adam", 0.0, None, renormalise=True, probes=self.probes, sigma=self.sigma
        )  # fmt: skip
        return Method("doodl", engine=engine)


TEMPLATES = "{};{}, highly detailed;{}, simple flat drawing;a beautiful {};{} on a white background"


@dataclass(frozen=True)
class Prompting(Unguided):
    """Prompt search: one run per template, the picture of highest reward *for the plain prompt* kept.

    Prompt engineering, Clark et al. 2024, App. A.3.

    Attributes:
        templates: separated by semicolons; {} is the prompt (its article dropped where another word stands before it).
    """

    templates: str = TEMPLATES
    name = "prompt"
    paper = "Clark et al. 2024, App. A.3"
    cost = "P·T, P templates"

    def variants(self, prompt: str) -> list[str]:
        """The prompt in each template."""
        bare = prompt.split(" ", 1)[1] if prompt.split(" ", 1)[0] in ("a", "an", "the") and " " in prompt else prompt
        return [
            template.replace("{}", bare if template.split("{}")[0].strip() in ("a beautiful", "a", "an") else prompt)
            for template in self._templates()
        ]

    def _templates(self) -> list[str]:
        found = [template.strip() for template in self.templates.split(";") if template.strip()]
        bad = [template for template in found if "{}" not in template]
        if bad or not found:
            raise TiltingError(f"a prompt template must contain {{}}, not {(bad or [''])[0]!r}")
        return found

    def build(self, steps: int) -> Method:
        from tilting.method import Method

        return Method("prompt", len(self._templates()), final="reward")
