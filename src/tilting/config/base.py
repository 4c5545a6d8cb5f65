"""What the requests of all commands have in common: options by name, as YAML, and checks of options that several have.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tilting.config.prompts import check_prompts, read_prompts
from tilting.config.settings import texts
from tilting.config.yaml_file import SWITCHES
from tilting.errors import TiltingError, nearest
from tilting.models import MODELS, find_model


class BaseConfig:
    """A checked request; its dataclass has an attribute for every option.

    Attributes:
        options: their names, in order, with hyphens. ``set`` is left to the class that has it.
    """

    options: ClassVar[Sequence[str]] = ()

    def mapping(self) -> dict[str, Any]:
        """By option name, of plain YAML and JSON values; resolving it gives the same config."""
        return {name: plain(getattr(self, name.replace("-", "_"))) for name in self.options if name != "set"}

    def yaml(self) -> str:
        """The config as a YAML file that ``--config`` reads back."""
        return yaml.safe_dump(self.mapping(), sort_keys=False, allow_unicode=True, width=120)


def plain(value: Any) -> Any:
    """A value with lists for its tuples."""
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def given_of(options: Mapping[str, Any], known: Sequence[str] | None = None) -> dict[str, Any]:
    """The options that are set, without switches. Raises TiltingError for one that is not among ``known``, if that is given."""
    names = (*(known or options), *SWITCHES)
    for key in options:
        if key not in names:
            raise TiltingError(f"there is no option {key!r}{nearest(key, names)}")
    return {key: value for key, value in options.items() if value is not None and key not in SWITCHES}


def prompts_of(value: object) -> tuple[str, ...]:
    """Prompts from a list of them, or from the path of a file. Raises TiltingError."""
    return tuple(check_prompts(read_prompts(value) if isinstance(value, str) else texts("prompts", value)))


def check_model(name: str) -> str:
    """The name of a model that is there, or of a hub. Raises TiltingError, with the nearest one."""
    if name not in MODELS and "/" not in name and not Path(name).is_dir():
        near = nearest(name, MODELS)
        if "did you mean" in near:
            raise TiltingError(f"unknown model {name!r}{near}")
    find_model(name)
    return name
