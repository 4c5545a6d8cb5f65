"""What the presets share: their registry, what each declares, and settings that several have."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from tilting.declare import Alias, Doc, Registry
from tilting.errors import TiltingError, outlived
from tilting.guidance.value_and_grad import Estimator
from tilting.method import Method
from tilting.own import function_of, functions_in


class Methods(Registry["type[Preset]"]):
    """Methods by name, and by ``file.py:function`` those of people's own files, which are not listed."""

    def __getitem__(self, name: str) -> type[Preset]:
        return method_of_file(name) if isinstance(name, str) and ".py:" in name else super().__getitem__(name)

    def find(self, name: object) -> type[Preset]:
        """See `Registry.find`; a file without a function is told which it has."""
        if isinstance(name, str) and name.endswith((".py", ".py:")):
            file = name.removesuffix(":")
            if not Path(file).is_file():
                raise TiltingError(f"there is no file {file!r} for the method {name!r}")
            raise TiltingError(f"the method {name!r} must name a function, file.py:function{functions_in(file, classes=True)}")
        return super().find(name)


METHODS = Methods("method", "tilting.methods")
"""Every method by its name; another package's is there by ``@METHODS.register`` or an entry point."""

Particles = Annotated[int, Ge(1), Doc("N, particles per image.")]
Start = Annotated[Literal["independent", "copy"], Doc("draw N x_T, or copy one.")]
Beta = Annotated[float, Gt(0), Doc("temperature of the tilt, in the reward's units.")]
EssThreshold = Annotated[
    float,
    Gt(0),
    Le(1),
    Alias("share"),
    Doc("resample if the effective sample size is below this fraction of N; 1 always does."),
]


class Preset:
    """Settings of a published method: a frozen dataclass that derives from this, registered by ``@METHODS.register``.

    Every field has a default, the model pocket's, and says what it is and what bounds it (`tilting.declare`). Fields that count
    in steps may be None, and then scale with T, so that an unset default never causes a refusal.

    Attributes:
        name: of the preset.
        paper: where it comes from.
        selects: whether it selects between draws, and so needs eta > 0.
        density: whether its proposal has a tractable density, so that particles could be weighed exactly.
        default_eta: 0 for one that looks for a better x_T, which a chain of eta 1 from pure noise forgets.
        needs_picture: whether it starts from one.
        published: what the paper or its code used, by setting, for the models named in it.
        published_for: what it used instead with a reward, by its name, or from a picture ("image").
    """

    name: str
    paper: str
    selects: bool = False
    density: bool = True
    default_eta: float = 1.0
    needs_picture: bool = False
    published: ClassVar[dict[str, Any]] = {}
    published_for: ClassVar[dict[str, dict[str, Any]]] = {}

    @property
    def needs_reward_gradient(self) -> bool:
        """Whether it needs the reward's own gradient."""
        return False

    def build(self, steps: int) -> Method:
        """The method for a run of that many steps."""
        raise NotImplementedError

    def variants(self, prompt: str) -> list[str]:
        """What the particles are told: one text for all of them, or one for each."""
        return [prompt]

    @classmethod
    def of_paper(cls, *cases: str) -> dict[str, Any]:
        """``published``, and over it what was used in these cases of ``published_for``; other cases change nothing."""
        return {**cls.published, **{k: v for case in cases for k, v in cls.published_for.get(case, {}).items()}}

    @classmethod
    def as_published(cls, *cases: str, **settings: Any) -> Any:
        """The preset with what its paper or code used, and ``settings`` over that; its steps and cfg are the caller's.

        Args:
            cases: keys of ``published_for``: a reward that had settings of its own, such as "pickscore", or "image".
            settings: the preset's own.

        Raises:
            TiltingError: for a case that the paper has no settings for.
        """
        for case in cases:
            if case not in cls.published_for:
                known = f": it has {' and '.join(cls.published_for)}" if cls.published_for else ""
                raise TiltingError(f"{cls.__name__} has no published settings of its own for {case!r}{known}")
        own = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(**{**{name: value for name, value in cls.of_paper(*cases).items() if name in own}, **settings})


@dataclass(frozen=True, kw_only=True)
class GradientPreset(Preset):
    """What every preset has that follows the reward's gradient."""

    probes: Annotated[
        int | None, Ge(1), Doc("N' antithetic pairs of zero-order gradients, for black-box rewards; None back-propagates.")
    ] = None
    sigma: Annotated[
        float, Gt(0), Doc("size of a probe relative to the noise level (the code of the CoDeX thesis has 1.0 for every level).")
    ] = 0.1

    @property
    def needs_reward_gradient(self) -> bool:
        return self.probes is None

    def _estimator(self, **options: Any) -> Estimator:
        """How gradients are found: through the network, or by zero-order probes."""
        return Estimator(probes=self.probes, sigma=self.sigma, **options)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        raise TiltingError(f"{name} is {' or '.join(choices)}, not {value!r}")


@cache
def method_of_file(spec: str) -> type[Preset]:
    """The method that ``file.py:function`` composes, as a preset without settings; the file runs now, as Python.

    Args:
        spec: its function gives a `tilting.method.Method` or a preset, and is called with the number of steps where it takes
            an argument.

    Raises:
        TiltingError: no such file or function, or it gives something else.
    """
    call = function_of(spec, "method")

    def made(steps: int) -> Any:
        try:
            return call(steps) if inspect.signature(call).parameters and not isinstance(call, type) else call()
        except TiltingError:
            raise
        except BaseException as error:
            raise TiltingError(f"the method {spec!r} raised {outlived(error)}") from error

    first = made(50)
    if not isinstance(first, Method | Preset):
        raise TiltingError(f"the method {spec!r} must give a tilting.method.Method or a preset, not {first!r}")
    preset = first if isinstance(first, Preset) else None
    built = first if isinstance(first, Method) else first.build(50)
    about = {
        "name": spec,
        "paper": "your own",
        "__doc__": inspect.getdoc(call) or "A method of your own file.",
        "selects": built.select is not None,
        "density": False if preset is None else preset.density,
        "default_eta": Preset.default_eta if preset is None else preset.default_eta,
        "needs_picture": preset is not None and preset.needs_picture,
        "needs_reward_gradient": property(lambda self: built.needs_reward_gradient),
        "variants": Preset.variants if preset is None else lambda self, prompt: preset.variants(prompt),
    }

    def build(self: Preset, steps: int) -> Method:
        again = made(steps)
        return again.build(steps) if isinstance(again, Preset) else again

    return dataclass(frozen=True)(type("OfFile", (Preset,), {**about, "build": build}))
