"""Declarations: every part (method, objective, config, ...) is a frozen dataclass with annotated fields.

    strength: Annotated[float, Ge(0), Doc("γ, relative to the CFG correction.")] = 0.2

Bounds are those of ``annotated_types``, descriptions are `typing_extensions.Doc`, choices are `Literal`. The Python signature,
the command's option, the YAML key, validation with its error message, ``--set``, the lists and the docs all derive from them.

A `Registry` holds the parts of a kind; other packages add theirs by entry points of its group.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from tilting.errors import TiltingError, nearest

Part = TypeVar("Part")
Maker = TypeVar("Maker", bound=Callable[..., Any])


@dataclass(frozen=True)
class Alias:
    """A former name of a field, still accepted with a warning."""

    name: str


@dataclass(frozen=True)
class Metavar:
    """Placeholder of a field's value in ``--help``, such as DIR."""

    name: str


@dataclass(frozen=True)
class Option:
    """How a field of a command's config becomes an option, if not as ``--name VALUE``.

    Attributes:
        name: name of the option and YAML key; default the field's name with hyphens.
        positional: metavar, if the field takes the positional arguments.
        default: description of the default in ``--help``, if it is not one value.
        internal: not an option, but a result of resolving.
        letter: one-letter form on the command line, as in -o.
        file: available in YAML and Python only, not on the command line.
    """

    name: str = ""
    positional: str = ""
    default: str = ""
    internal: bool = False
    letter: str = ""
    file: bool = False


@dataclass(frozen=True)
class Each:
    """A bound on every entry of a sequence: Each(Ge(1))."""

    bound: Any


@dataclass(frozen=True)
class Falling:
    """Bound of a pair (high, low): the first number is at least the second."""


@dataclass(frozen=True)
class Check:
    """A custom check: (name of the field in messages, value) -> the value to keep; raises TiltingError."""

    function: Callable[[str, Any], Any]


WHOLE = re.compile(r"\s*-?[0-9]+\s*")
Window = Annotated[tuple[float, float], Each(Ge(0)), Each(Le(1)), Falling()]
"""(high, low) bounds of t/T."""


@dataclass(frozen=True)
class Field:
    """The declaration of one field.

    Attributes:
        name: its name in Python.
        hint: its type, without annotations.
        default: its default; `dataclasses.MISSING` without one.
        about: its description, a sentence or two.
        bounds: bounds and checks besides its type.
        aliases: former names.
        metavar: see `Metavar`; "" without one.
        given: see `Option`.
    """

    name: str
    hint: Any
    default: Any
    about: str = ""
    bounds: tuple[Any, ...] = ()
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    given: Option = Option()

    @property
    def option(self) -> str:
        """Its name on the command line and in YAML."""
        return self.given.name or self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a `Literal`; empty if any value is allowed."""
        plain = _without_none(self.hint)
        inner = get_args(plain)[0] if get_origin(plain) is tuple and get_args(plain) else plain
        return get_args(inner) if get_origin(inner) is Literal else ()

    @property
    def repeats(self) -> bool:
        """Whether its option may be given several times."""
        plain = _without_none(self.hint)
        first = get_args(plain)[0] if get_origin(plain) is tuple else None
        return bool(self.given.positional) or first is str or get_origin(first) is tuple

    @property
    def help(self) -> str:
        """Its help text, with the default in brackets."""
        simple = isinstance(self.default, str | int | float) and not isinstance(self.default, bool) and self.default != ""
        default = self.given.default or (f"{self.default}" if simple and self.default is not MISSING else "")
        return f"{self.about} [{default}]" if default else self.about

    def check(self, value: Any, name: str = "") -> Any:
        """Validate a value and convert it to the field's type.

        Args:
            value: from Python, from YAML, or text from the command line.
            name: name of the field in error messages; default its option.

        Raises:
            TiltingError: the value has another type, or is out of bounds.
        """
        name = name or self.option
        result = typed(name, value, self.hint)
        for bound in self.bounds:
            result = _bounded(name, result, bound)
        return result


@cache
def declared(kind: type) -> dict[str, Field]:
    """The declared fields of a dataclass by name, its own before inherited ones."""
    hints = get_type_hints(kind, include_extras=True)
    own = vars(kind).get("__annotations__", {})
    found = {}
    for one in sorted(fields(kind), key=lambda f: f.name not in own):
        if not one.init:
            continue
        hint, extras = _parted(hints[one.name])
        default = one.default if one.default_factory is MISSING else one.default_factory()
        about = " ".join(next((e.documentation for e in reversed(extras) if isinstance(e, Doc)), "").split())
        found[one.name] = Field(
            one.name,
            hint,
            default,
            about,
            tuple(e for e in extras if isinstance(e, Ge | Gt | Le | Lt | Each | Falling | Check)),
            tuple(e.name for e in extras if isinstance(e, Alias)),
            next((e.name for e in reversed(extras) if isinstance(e, Metavar)), ""),
            next((e for e in reversed(extras) if isinstance(e, Option)), Option()),
        )
    return found


def current_name(kind: type, name: str) -> str:
    """The current name of a field, given that or a former one."""
    return next((one.name for one in declared(kind).values() if name in one.aliases), name)


def _parted(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split a hint into its type and its annotations, inner ones first; ``X | None`` has those of X."""
    if get_origin(hint) is Annotated:
        inner, extras = _parted(hint.__origin__)
        return inner, (*extras, *hint.__metadata__)
    if get_origin(hint) in (Union, UnionType):
        parts = [_parted(part) for part in get_args(hint)]
        return Union[tuple(part for part, _ in parts)], tuple(e for _, extras in parts for e in extras)  # noqa: UP007
    return hint, ()


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        return next(part for part in get_args(hint) if part is not NoneType)
    return hint


def typed(name: str, value: Any, hint: Any) -> Any:
    """Convert a value to the type of an annotation. Raises TiltingError if it does not fit."""
    value = scalar(value)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if NoneType in inner and (value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null"))):
            return None
        one, *several = [part for part in inner if part is not NoneType]
        if several and (isinstance(value, list | tuple) or (isinstance(value, str) and "," in value)):  # one, or a sequence
            found = typed(name, value, several[0])
            return found[0] if len(found) == 1 else found
        return typed(name, int(value) if several and isinstance(value, str) and WHOLE.fullmatch(value) else value, one)
    if origin is Literal:
        if value not in inner:
            raise TiltingError(f"{name} cannot be {value!r}{nearest(str(value), map(str, inner))}")
        return value
    if origin is tuple:
        return _sequence(name, value, inner)
    if origin is Mapping or hint is Mapping:
        if not isinstance(value, Mapping):
            raise TiltingError(f"{name} must be a mapping, not {value!r}")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise TiltingError(f"{name} must be true or false, not {value!r}")
        return value
    if hint is int:
        return integer(name, value)
    if hint is float:
        return number(name, value)
    if hint is str:
        return text(name, value)
    return value


def _sequence(name: str, value: Any, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    words = get_origin(inner[0]) is Literal or inner[0] is str
    several = inner[-1] is Ellipsis
    parts = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        parts = [value] if several and inner[0] is str else [part.strip() for part in value.split(",")]
    if not isinstance(parts, list | tuple) or (several and not words and not parts):
        what = "a list of texts" if words else "a list of numbers such as 2,4,4,6" if several else _such_as(inner)
        raise TiltingError(f"{name} must be {what}, not {value!r}")
    if not several and len(parts) != len(inner):
        raise TiltingError(f"{name} must be {_such_as(inner)}, not {value!r}")
    parts = [int(p) if isinstance(p, str) and not words and WHOLE.fullmatch(p) else p for p in parts]
    each = f"each of {name}" if words and several else name
    return tuple(typed(each, p, inner[0] if several else hint) for p, hint in zip(parts, inner * len(parts), strict=False))


def _such_as(inner: tuple[Any, ...]) -> str:
    return f"{len(inner)} numbers such as 0.6,0"


def _bounded(name: str, value: Any, bound: Any) -> Any:
    if isinstance(bound, Check):
        return None if value is None else bound.function(name, value)
    if isinstance(bound, Falling):
        if value is not None and value[0] < value[1]:
            raise TiltingError(f"{name} is (high, low), so its first number must not be below its second")
        return value
    if isinstance(bound, Each):
        for one in value or ():
            _bounded(name, one, bound.bound)
        return value
    if value is None or isinstance(value, str):
        return value
    if isinstance(bound, Ge) and value < bound.ge:
        raise TiltingError(f"{name} must be at least {bound.ge:g}, not {value:g}")
    if isinstance(bound, Gt) and value <= bound.gt:
        raise TiltingError(f"{name} must be above {bound.gt:g}, not {value:g}")
    if isinstance(bound, Le) and value > bound.le:
        raise TiltingError(f"{name} must be at most {bound.le:g}, not {value:g}")
    if isinstance(bound, Lt) and value >= bound.lt:
        raise TiltingError(f"{name} must be below {bound.lt:g}, not {value:g}")
    return value


def scalar(value: Any) -> Any:
    """Convert a numpy or torch scalar to a Python number; return anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def integer(name: str, value: object, least: int | None = None) -> int:
    """An integer of at most 64 bits, of Python or numpy, but no boolean. Raises TiltingError."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TiltingError(f"{name} must be a whole number, not {value!r}")
    if not -(1 << 63) <= value < 1 << 63:
        raise TiltingError(f"{name} must be a whole number of at most 64 bits")
    if least is not None and value < least:
        raise TiltingError(f"{name} must be at least {least}, not {value}")
    return value


def number(name: str, value: object) -> float:
    """A finite float, of Python or numpy, or text such as 1e-3, which YAML reads as a string. Raises TiltingError."""
    value = scalar(value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise TiltingError(f"{name} must be a number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TiltingError(f"{name} must be a number, not {value!r}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise TiltingError(f"{name} must be a finite number, not {result}")
    return result


def text(name: str, value: object) -> str:
    """A string. Raises TiltingError."""
    if not isinstance(value, str):
        raise TiltingError(f"{name} must be text, not {value!r}")
    return value


FORMER: list[str] = []
"""Warnings about former names used in this process, which a command prints."""


def renamed(former: str, name: str) -> str:
    """Return the current name of what was given by a former one, and record a warning in `FORMER`."""
    line = f"{former} is now {name}"
    if line not in FORMER:
        FORMER.append(line)
    return name


def check_fields(part: Any, prefix: str = "") -> None:
    """Validate every field of a dataclass instance; ``prefix`` precedes its name in messages. Raises TiltingError."""
    for name, one in declared(type(part)).items():
        one.check(getattr(part, name), f"{prefix}{name}")


def made(kind: type[Part], values: Any, what: str) -> Part:
    """Build a dataclass from the contents of a file, validating every field.

    Args:
        kind: the dataclass.
        values: a mapping of its fields, from `tilting.foreign`.
        what: the start of error messages, such as "'a.json' is no description".

    Raises:
        TiltingError: not a mapping; a field is missing, unknown, of another type, or out of bounds.
    """
    known = declared(kind)
    if not isinstance(values, Mapping):
        raise TiltingError(f"{what}: it is no mapping")
    odd = next((key for key in values if key not in known), None)
    lacking = next((name for name, one in known.items() if name not in values and one.default is MISSING), None)
    if odd is not None or lacking is not None:
        found = f"it lacks {lacking!r}" if lacking is not None else f"it has an unknown entry {str(odd)[:60]!r}"
        raise TiltingError(f"{what}: {found}")
    try:
        return kind(**{name: known[name].check(value, name) for name, value in values.items()})
    except TiltingError as error:
        raise TiltingError(f"{what}: {error}") from None


def plain(value: Any) -> Any:
    """A value with lists for tuples, as YAML and JSON have it."""
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def paragraphs(kind: Any) -> list[str]:
    """The paragraphs of a docstring before its sections, each joined into one line; indented ones keep their lines."""
    head = re.split(r"\n(?:Attributes|Args|Returns|Raises):\n", inspect.cleandoc(kind.__doc__ or ""))[0]
    parts = re.split(r"\n\s*\n", head.strip())
    return [part if part.startswith("    ") else " ".join(part.split()).replace("``", "") for part in parts if part.strip()]


class Registry(Mapping[str, Part]):
    """The parts of a kind by name: those of this package, and those of other packages by entry points.

    Args:
        what: what a part is called in error messages, such as "method".
        group: entry point group of other packages. A point names a part, something that `declare` decorates, a mapping of
            several, or a module that registers some; the point's own name is not used.
        kind: constructor for `declare`, called with a name, the decorated object and the remaining arguments.
    """

    def __init__(self, what: str, group: str, kind: Callable[..., Part] | None = None):
        self.what, self.group, self._kind = what, group, kind
        self._parts: dict[str, Part] = {}
        self._makers: list[Any] = []
        self._aliases: dict[str, str] = {}
        self._asked = False

    def declare(self, name: str, *facts: Any, **more: Any) -> Callable[[Maker], Maker]:
        """Decorate a function or class: register the part made of it, and return it unchanged."""
        if self._kind is None:
            raise TypeError(f"a {self.what} registers itself")
        kind = self._kind

        def keep(maker: Maker) -> Maker:
            self.register(kind(name, maker, *facts, **more))
            self._makers.append(maker)
            return maker

        return keep

    def register(self, part: Any) -> Any:
        """Add a part under its ``name`` and any ``aliases``; usable as a class decorator. Raises TiltingError for a name that
        is taken."""
        before = self._parts.get(part.name)
        if before is not None and before is not part:
            raise TiltingError(f"there are two {self.what}s named {part.name!r}")
        self._parts[part.name] = part
        self._aliases |= dict.fromkeys(getattr(part, "aliases", ()), part.name)
        return part

    def find(self, name: object) -> Part:
        """Look up a part. Raises TiltingError with the nearest name."""
        if not isinstance(name, str) or name not in self:
            raise TiltingError(f"there is no {self.what} {name!r}{nearest(str(name), self)}")
        return self[name]

    def current_key(self, key: str) -> str:
        """``part.field`` with the field's current name; other keys are returned unchanged."""
        name, dot, field = key.partition(".")
        return f"{name}.{current_name(self[name], field)}" if dot and name in self else key  # type: ignore[arg-type]

    def _others(self) -> None:
        if not self._asked:
            self._asked = True
            for point in entry_points(group=self.group):
                found = point.load()
                if not (inspect.ismodule(found) or found in self._makers):
                    for part in found.values() if isinstance(found, Mapping) else (found,):
                        self.register(part)

    def __getitem__(self, name: str) -> Part:
        if name not in self._parts:
            self._others()
        return self._parts[self._aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        self._others()
        return iter(self._parts)

    def __len__(self) -> int:
        self._others()
        return len(self._parts)
