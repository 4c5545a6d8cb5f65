"""The base of all commands' configs: a frozen dataclass with a declared field for every option.

The command's options and help, the YAML keys, the Python keywords and the validation derive from the fields.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from functools import wraps
from typing import Any, ClassVar, Self, TypeVar, cast

import yaml

from tilting.config.prompts import prompts_of, read_prompts
from tilting.config.yaml_file import SWITCHES, flat
from tilting.declare import FORMER, Field, declared, plain, renamed
from tilting.errors import TiltingError, nearest
from tilting.models.placement import SWITCHES as OF_MODELS

UNTOLD = ("metadata", "budget", *OF_MODELS)
"""Fields that a config's mapping leaves out if they are unset."""


class BaseConfig:
    """A checked request, every default filled in.

    Attributes:
        hidden: options that are not kept: their effect is in the other fields.
    """

    hidden: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def options(cls) -> dict[str, Field]:
        """Its options by name, in order."""
        fields = {one.name: one for one in declared(cls).values()}  # type: ignore[arg-type]
        own: Mapping[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
        order = sorted((name for name in own if name in fields), key=lambda name: own[name].kw_only)  # switches come last
        return {fields[name].option: fields[name] for name in order if not fields[name].given.internal}

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Validate the given options and return them by field name; defaults are not filled in.

        Args:
            options: by current or former name, with hyphens or underscores; None means unset. ``prompts`` may be the path of a
                file, which may also provide ``metadata``; the mapping ``set`` is not validated here.

        Raises:
            TiltingError: one sentence that names the option.
        """
        known, values = cls.options(), {}
        former = {alias: one.option for one in known.values() for alias in one.aliases}
        for key, value in options.items():
            name = key.replace("_", "-")
            if name in former:
                name = renamed(name, former[name])
            if name in SWITCHES or value is None:
                continue
            if name not in known:
                raise TiltingError(f"there is no option {key!r}{nearest(key, known)}")
            one = known[name]
            if name == "set":
                values[one.name] = flat(value)
                continue
            if name == "prompts" and value not in ((), []):
                value, metadata = read_prompts(value) if isinstance(value, str) else prompts_of(value)
                if metadata and options.get("metadata"):
                    raise TiltingError("metadata is given both by itself and by the prompts: give it once")
                values |= {"metadata": metadata} if metadata else {}
            values[one.name] = one.check(value)
        if len(values.get("metadata", values.get("prompts", ()))) != len(values.get("prompts", ())):
            told = f"{len(values['metadata'])} mappings for {len(values.get('prompts', ()))} prompts"
            raise TiltingError(f"metadata must be a mapping for each prompt, not {told}")
        return values

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Fill in defaults and refuse what cannot work, before torch is imported.

        Args:
            options: see `checked`.

        Raises:
            TiltingError: one sentence that names the option.
        """
        values = cls.checked(options)
        for name, one in declared(cls).items():  # type: ignore[arg-type]
            if name not in values and one.default is MISSING:
                raise TiltingError(f"{one.option} is missing: give it")
        return cls(**values)

    def mapping(self) -> dict[str, Any]:
        """The config as plain YAML and JSON values by option name; resolving them gives the same config."""
        kept = {key: one.name for key, one in self.options().items() if key not in self.hidden}
        kept = {key: name for key, name in kept.items() if name not in UNTOLD or getattr(self, name)}
        values = {key: plain(getattr(self, name)) for key, name in kept.items() if key != "set"}
        return values | ({"set": plain(dict(getattr(self, kept["set"])))} if "set" in kept else {})

    def yaml(self) -> str:
        """The config as a YAML file that ``--config`` reads back."""
        return yaml.safe_dump(self.mapping(), sort_keys=False, allow_unicode=True, width=120)


Function = TypeVar("Function", bound=Callable[..., Any])


def keywords(config: type[BaseConfig], *names: str) -> Callable[[Function], Function]:
    """Decorate a function so that fields of a config are keywords of it: in its signature, validated, former names too.

    Args:
        config: declares the fields.
        names: the fields; default all.
    """
    fields = {one.name: one for one in config.options().values() if not names or one.name in names}

    def decorate(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        own = [one for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {one.name for one in own}

        @wraps(function)
        def called(*given: Any, **options: Any) -> Any:
            known = [*taken, *fields, *(alias for one in fields.values() for alias in one.aliases)]
            for name in options:
                if name not in known:
                    raise TiltingError(f"there is no option {name!r}{nearest(name, known)}")
            asked = {name: value for name, value in options.items() if name in fields or name not in taken}
            rest = {name: value for name, value in options.items() if name not in asked}
            checked = config.checked(asked)
            for line in FORMER:
                warnings.warn(line, FutureWarning, stacklevel=2)
            FORMER.clear()
            return function(*given, **rest, **checked)

        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.hint)
            for name, one in fields.items()
            if name not in taken
        ]
        called.__signature__ = inspect.Signature([*own, *more], return_annotation=inspect.signature(function).return_annotation)  # type: ignore[attr-defined]
        return cast(Function, called)

    return decorate
