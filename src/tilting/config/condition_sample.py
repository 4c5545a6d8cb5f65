"""The request of a `condition sample` run: `tilting generate` with controls in the model, or guided by classifiers.

A classifier of clean pictures guides by reconstruction guidance (preset dps in score form, with log p as its reward); one of
noisy latents by classifier guidance, with any method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from typing_extensions import Doc

from tilting.config.generate import GenerateConfig
from tilting.config.options import Model
from tilting.declare import Check, Field, Metavar, Option
from tilting.errors import TiltingError
from tilting.features.schema import noisy_model, read_schema
from tilting.models.control_spec import CLASSIFIERS, CONTROLS, ControlInfo, find_control, parse_labels, read_control
from tilting.models.control_spec import FILE as CONTROL
from tilting.models.families import weights_of
from tilting.models.names import check_pipeline, check_plain, find_model
from tilting.rewards.classifiers import files_of_classifier
from tilting.runs.files import digest, digest_of

GUIDED = "dps.strength"
FIRST = ("control", "classifier", "label", "strength")
OTHERS = ("image", "lora", "lora-steps", "published", "budget")
"""Options of `tilting generate` that this command lacks."""


def _different(name: str, value: tuple[str, ...]) -> tuple[str, ...]:
    for i, folder in enumerate(value):
        if folder in value[:i]:
            raise TiltingError(f"the {name} {folder!r} is given twice")
    return value


def _strengths(name: str, value: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(value)) < len(value):
        raise TiltingError("strength must be one number or several different ones, such as 0,1,2")
    return value


@dataclass(frozen=True)
class SampleConfig(GenerateConfig):
    """A validated request with all defaults, of controls or of classifiers, not both. ``strengths`` are γ2 of all controls, or
    γ of guidance: several are a sweep.
    """

    model: Annotated[Model, Option(default="the control's")] = "pocket"
    control: Annotated[
        tuple[str, ...], Metavar("CTL"), Check(_different), Doc("Folder of `condition train`, or pocket-bright; repeatable.")
    ] = ()
    classifier: Annotated[
        tuple[str, ...],
        Metavar("FIT"),
        Check(_different),
        Doc("Guide by a folder of `condition fit` instead of a control, repeatable."),
    ] = ()
    label: Annotated[tuple[str, ...], Metavar("NAME=VALUE"), Doc("The label to follow, repeatable.")] = ()
    strengths: Annotated[
        tuple[float, ...],
        Option("strength", default="1"),
        Metavar("N,N,..."),
        Check(_strengths),
        Doc("Strength of the labels; several are a sweep."),
    ] = (1.0,)

    @classmethod
    def options(cls) -> dict[str, Field]:
        known = super().options()
        return {name: known[name] for name in (*FIRST, *(n for n in known if n not in (*FIRST, *OTHERS)))}

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        strength = options.get("strength")
        return super().checked({**options, "strength": (strength,)} if isinstance(strength, int | float) else options)

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Fill in defaults and refuse what cannot work, before torch is imported.

        Args:
            options: by option name; None means unset.

        Raises:
            TiltingError: one sentence that names the option, the label or the control.
        """
        given = cls.checked(options)
        control, classifier = given.get("control", ()), given.get("classifier", ())
        if not control and not classifier:
            raise TiltingError(
                "say what shall be obeyed: --control CTL, a folder of `tilting condition train`, or --classifier FIT of `fit`"
            )
        if control and classifier:
            raise TiltingError(
                "--classifier guides the pre-trained model: beside --control give --method dps "
                "--reward likelihood:FIT#LABEL=VALUE"
            )
        infos = {folder: read_control(folder) for folder in control} or infos_of(classifier)
        asked = parse_labels(given.get("label", ()), infos, "control" if control else "classifier")
        model = given.get("model", next(iter(infos.values())).model.get("name", "pocket"))
        if control or any(info.model for info in infos.values()):
            (check_pipeline if control else check_plain)(model, "controls" if control else "classifiers of noisy latents")
            _check_model(model, infos)
            return super().resolve({**options, "model": model})
        return super().resolve({**options, "model": model, **_reconstructing(given, asked)})

    @property
    def noisy(self) -> bool:
        """Whether classifiers of noisy latents guide."""
        return any(noisy_model(Path(folder)) is not None for folder in self.classifier)

    @property
    def clean(self) -> bool:
        """Whether classifiers of clean pictures guide."""
        return bool(self.classifier) and not self.noisy

    def infos(self) -> dict[str, ControlInfo]:
        """Descriptions of the controls or classifiers by folder."""
        return {folder: read_control(folder) for folder in self.control} or infos_of(self.classifier)

    def asked(self) -> dict[str, dict[str, str]]:
        """Folder -> label -> value."""
        return parse_labels(self.label, self.infos(), "control" if self.control else "classifier")

    def digests(self) -> dict[str, list[dict[str, Any]]]:
        """Name and digest of each control or classifier."""
        if self.control:  # control.json has the digests of its weights; its classifiers are added
            read = {name: [find_control(name) / file for file in (CONTROL, CLASSIFIERS)] for name in self.control}
            return {"controls": [{"name": name, "sha256": digest_of(files)} for name, files in read.items()]}
        return {"classifiers": [{"name": one, "sha256": digest_of(files_of_classifier(one))} for one in self.classifier]}

    def at(self, strength: float, out: str | None) -> SampleConfig:
        """One point of a sweep."""
        settings = tuple((key, strength if key == GUIDED and self.clean else value) for key, value in self.settings)
        return replace(self, strengths=(strength,), out=out, settings=settings)


def infos_of(classifiers: Sequence[str]) -> dict[str, ControlInfo]:
    """Descriptions of classifiers by folder: the label of each, and for noisy latents the model.

    Raises:
        TiltingError: a folder without a classifier, or a mix of classifiers of clean pictures and of noisy latents.
    """
    infos = {}
    for folder in classifiers:
        schema, model = read_schema(Path(folder)), noisy_model(Path(folder))
        infos[folder] = ControlInfo((schema,), {} if model is None else {"name": "pocket", "sha256": None, **model})
    if len({bool(info.model) for info in infos.values()}) > 1:
        clean, noisy = (next(p for p, i in infos.items() if bool(i.model) == which) for which in (False, True))
        raise TiltingError(f"the classifier {clean!r} is of clean pictures and {noisy!r} of noisy latents: guide by one kind")
    return infos


def _reconstructing(given: Mapping[str, Any], asked: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Options of reconstruction guidance: the preset dps in score form with the reward log p(y | x)."""
    specs = [f"likelihood:{folder}#{name}={value}" for folder, mine in asked.items() for name, value in mine.items()]
    if given.get("method", "dps") != "dps":
        raise TiltingError(
            f"a classifier of clean pictures guides by --method dps: for {given['method']} give --reward {specs[0]} to "
            "`tilting generate`"
        )
    if list(given.get("reward") or specs) != specs:
        raise TiltingError("what a classifier of clean pictures guides by is log p(y | x) itself: leave --reward out")
    settings, strength = given.get("settings", {}), given.get("strengths", (1.0,))[0]
    if settings.get(GUIDED, strength) != strength:
        raise TiltingError(f"the strength of guidance is given by --strength: leave --set {GUIDED} out")
    return {"method": "dps", "reward": specs, "set": {"dps.form": "score", **settings, GUIDED: strength}}


def _check_model(model: str, infos: Mapping[str, ControlInfo]) -> None:
    """Refuse a control, or a classifier of noisy latents, of another model. Raises TiltingError."""
    sha = digest(weights_of(find_model(model)))
    for folder, info in infos.items():
        if sha != info.model.get("sha256"):
            what = "control" if folder in CONTROLS or Path(folder, CONTROL).is_file() else "classifier of noisy latents"
            raise TiltingError(f"the {what} {folder!r} was trained on {info.model.get('name')!r}, which is not this {model!r}")
