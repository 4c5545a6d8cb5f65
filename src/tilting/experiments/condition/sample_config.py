"""What a `condition sample` run is asked to do: `tilting generate` with controls in the model. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError
from tilting.experiments import config as generate_config
from tilting.experiments.config import GenerateConfig, resolve, texts
from tilting.experiments.folder import digest
from tilting.experiments.settings import number, text
from tilting.experiments.yaml_layer import read_yaml as read_any
from tilting.models import find_model
from tilting.models.control_spec import ControlInfo, parse_labels, read_control

OWN = ("control", "label", "strength")
OPTIONS = (*OWN, *(name for name in generate_config.OPTIONS if name not in (*OWN, "image", "lora", "lora-steps")))


@dataclass(frozen=True)
class SampleConfig(GenerateConfig):
    """A checked request, every default filled in; `GenerateConfig` says what the rest means.

    Attributes:
        control: folders of `condition train`.
        label: NAME=VALUE of every label asked for.
        strengths: γ2 of all controls; several are a sweep.
    """

    control: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (1.0,)

    def infos(self) -> dict[str, ControlInfo]:
        """The descriptions of the controls by folder."""
        return {place: read_control(place) for place in self.control}

    def asked(self) -> dict[str, dict[str, str]]:
        """Folder -> label -> value."""
        return parse_labels(self.label, self.infos())

    def digests(self) -> list[dict[str, Any]]:
        """Of each control its folder's weights."""
        return [{"name": place, "sha256": digest(Path(place))} for place in self.control]

    def at(self, strength: float, out: str | None) -> SampleConfig:
        """One point of a sweep."""
        return replace(self, strengths=(strength,), out=out)

    def mapping(self) -> dict[str, Any]:
        plain = {key: value for key, value in super().mapping().items() if key in OPTIONS and key not in OWN}
        return {"control": list(self.control), "label": list(self.label), "strength": list(self.strengths), **plain}


def read_yaml(path: str) -> dict[str, Any]:
    """Options of `tilting condition sample` from a YAML file, by option name. Raises TiltingError."""
    return read_any(path, OPTIONS)


def resolve_sample(options: Mapping[str, Any]) -> SampleConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset.

    Raises:
        TiltingError: one sentence that names the option, the label or the control.
    """
    given = {key: value for key, value in options.items() if value is not None}
    control = texts("control", given.get("control", []))
    if not control:
        raise TiltingError("say which control: --control CTL, a folder of `tilting condition train`")
    if len(set(control)) < len(control):
        raise TiltingError(f"the control {next(c for c in control if control.count(c) > 1)!r} is given twice")
    infos = {place: read_control(place) for place in control}
    model = text("model", given.get("model", next(iter(infos.values())).model.get("name", "pocket")))
    label = texts("label", given.get("label", []))
    parse_labels(label, infos)
    _check_model(model, infos)
    rest = {key: value for key, value in given.items() if key not in OWN}
    base = resolve({**rest, "model": model})
    plain = {f.name: getattr(base, f.name) for f in fields(GenerateConfig)}
    return SampleConfig(**plain, control=tuple(control), label=tuple(label), strengths=_strengths(given.get("strength", 1.0)))


def _strengths(value: object) -> tuple[float, ...]:
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    found = [number("strength", one) for one in values]
    if not found or len(set(found)) < len(found):
        raise TiltingError("strength must be one number or several different ones, such as 0,1,2")
    return tuple(found)


def _check_model(model: str, infos: Mapping[str, ControlInfo]) -> None:
    """Refuse a control of another model. Raises TiltingError."""
    sha = digest(Path(find_model(model)))
    for place, info in infos.items():
        if sha != info.model.get("sha256"):
            raise TiltingError(f"the control {place!r} was trained on {info.model.get('name')!r}, which is not this {model!r}")
