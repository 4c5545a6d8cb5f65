"""What a `condition sample` run is asked to do: `tilting generate` with controls in the model, or classifiers that guide it.
Torch-free.

What a classifier was fitted to says how it guides: clean pictures, reconstruction guidance (the preset dps as a score, log p
its reward); noisy latents, classifier guidance under any method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from tilting.config import generate as generate_config
from tilting.config.generate import GenerateConfig, resolve
from tilting.config.settings import number, text, texts
from tilting.config.yaml_file import flat
from tilting.errors import TiltingError
from tilting.features.schema import noisy_model, read_schema
from tilting.models import find_model
from tilting.models.control_spec import CLASSIFIERS, ControlInfo, parse_labels, read_control
from tilting.models.control_spec import FILE as CONTROL
from tilting.presets import Preset
from tilting.rewards.reads import files_of_classifier
from tilting.runs.files import digest, digest_of

OWN = ("control", "classifier", "label", "strength")
OPTIONS = (*OWN, *(name for name in generate_config.OPTIONS if name not in (*OWN, "image", "lora", "lora-steps", "published")))
GUIDED = "dps.strength"


@dataclass(frozen=True)
class SampleConfig(GenerateConfig):
    """A checked request, every default filled in; `GenerateConfig` says what the rest means.

    Attributes:
        control: folders of `condition train`.
        label: NAME=VALUE of every label asked for.
        strengths: γ2 of all controls, or γ of guidance; several are a sweep.
        classifier: folders of `condition fit`; controls or classifiers, not both.
        watch: what sees how far reconstruction guidance moves the predictions.
    """

    control: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    strengths: tuple[float, ...] = (1.0,)
    classifier: tuple[str, ...] = ()
    watch: Any = field(default=None, compare=False)

    @property
    def noisy(self) -> bool:
        """Whether classifiers of noisy latents guide."""
        return any(noisy_model(Path(place)) is not None for place in self.classifier)

    @property
    def clean(self) -> bool:
        """Whether classifiers of clean pictures guide."""
        return bool(self.classifier) and not self.noisy

    def infos(self) -> dict[str, ControlInfo]:
        """The descriptions of the controls, or what is known of the classifiers, by folder."""
        return {place: read_control(place) for place in self.control} or infos_of(self.classifier)

    def asked(self) -> dict[str, dict[str, str]]:
        """Folder -> label -> value."""
        return parse_labels(self.label, self.infos(), "control" if self.control else "classifier")

    def digests(self) -> dict[str, list[dict[str, Any]]]:
        """Of each control, or classifier, its folder's weights."""
        if self.control:  # whose description holds the digests of its weights, but for its classifiers'
            read = {place: [Path(place, name) for name in (CONTROL, CLASSIFIERS)] for place in self.control}
            return {"controls": [{"name": place, "sha256": digest_of(files)} for place, files in read.items()]}
        return {"classifiers": [{"name": place, "sha256": digest_of(files_of_classifier(place))} for place in self.classifier]}

    def at(self, strength: float, out: str | None) -> SampleConfig:
        """One point of a sweep."""
        settings = tuple((key, strength if key == GUIDED and self.clean else value) for key, value in self.settings)
        return replace(self, strengths=(strength,), out=out, settings=settings)

    def preset(self) -> Preset:
        plain = super().preset()
        if self.watch is None or not self.clean:
            return plain
        from tilting.presets.guided import WatchedDps

        return WatchedDps(**{f.name: getattr(plain, f.name) for f in fields(cast(Any, plain))}, watch=self.watch)

    def mapping(self) -> dict[str, Any]:
        plain = {key: value for key, value in super().mapping().items() if key in OPTIONS and key not in OWN}
        own = {"control": self.control, "classifier": self.classifier, "label": self.label, "strength": self.strengths}
        return {**{key: list(value) for key, value in own.items()}, **plain}


def resolve_sample(options: Mapping[str, Any]) -> SampleConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset.

    Raises:
        TiltingError: one sentence that names the option, the label or the control.
    """
    given = {key: value for key, value in options.items() if value is not None}
    places = {key: _different(key, texts(key, given.get(key, []))) for key in ("control", "classifier")}
    control, classifier = places["control"], places["classifier"]
    if not control and not classifier:
        raise TiltingError(
            "say what shall be obeyed: --control CTL, a folder of `tilting condition train`, or --classifier FIT of `fit`"
        )
    if control and classifier:
        raise TiltingError(
            "--classifier guides the pre-trained model: beside --control give --method dps --reward likelihood:FIT#LABEL=VALUE"
        )
    label, strengths = texts("label", given.get("label", [])), _strengths(given.get("strength", 1.0))
    infos = {place: read_control(place) for place in control} or infos_of(classifier)
    asked = parse_labels(label, infos, "control" if control else "classifier")
    clean = bool(classifier) and not any(info.model for info in infos.values())
    model = text("model", given.get("model", next(iter(infos.values())).model.get("name", "pocket")))
    if not clean:
        _check_model(model, infos)
    rest = {**{key: value for key, value in given.items() if key not in OWN}, "model": model}
    if clean:
        rest = _reconstructing(rest, asked, strengths[0])
    base = resolve(rest)
    plain = {f.name: getattr(base, f.name) for f in fields(GenerateConfig)}
    return SampleConfig(**plain, control=control, label=tuple(label), strengths=strengths, classifier=classifier)


def infos_of(classifiers: Sequence[str]) -> dict[str, ControlInfo]:
    """What classifiers know, by folder: a label each, and those of noisy latents their model.

    Raises:
        TiltingError: no classifier there, or some of clean pictures and some of noisy latents.
    """
    found = {}
    for place in classifiers:
        schema, model = read_schema(Path(place)), noisy_model(Path(place))
        found[place] = ControlInfo((schema,), {} if model is None else {"name": "pocket", "sha256": None, **model})
    if len({bool(info.model) for info in found.values()}) > 1:
        clean, noisy = (next(p for p, i in found.items() if bool(i.model) == which) for which in (False, True))
        raise TiltingError(f"the classifier {clean!r} is of clean pictures and {noisy!r} of noisy latents: guide by one kind")
    return found


def _reconstructing(given: Mapping[str, Any], asked: Mapping[str, Mapping[str, str]], strength: float) -> dict[str, Any]:
    """The options of reconstruction guidance: the preset dps as a score, log p(y | x) its reward."""
    specs = [f"likelihood:{place}#{name}={value}" for place, mine in asked.items() for name, value in mine.items()]
    if given.get("method", "dps") != "dps":
        raise TiltingError(
            f"a classifier of clean pictures guides by --method dps: for {given['method']} give --reward {specs[0]} to "
            "`tilting generate`"
        )
    if list(given.get("reward") or specs) != specs:
        raise TiltingError("what a classifier of clean pictures guides by is log p(y | x) itself: leave --reward out")
    settings = flat(given.get("set") or {})
    if settings.get(GUIDED, strength) != strength:
        raise TiltingError(f"the strength of guidance is given by --strength: leave --set {GUIDED} out")
    return {**given, "method": "dps", "reward": specs, "set": {"dps.form": "score", **settings, GUIDED: strength}}


def _different(key: str, places: list[str]) -> tuple[str, ...]:
    for i, place in enumerate(places):
        if place in places[:i]:
            raise TiltingError(f"the {key} {place!r} is given twice")
    return tuple(places)


def _strengths(value: object) -> tuple[float, ...]:
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    found = [number("strength", one) for one in values]
    if not found or len(set(found)) < len(found):
        raise TiltingError("strength must be one number or several different ones, such as 0,1,2")
    return tuple(found)


def _check_model(model: str, infos: Mapping[str, ControlInfo]) -> None:
    """Refuse a control, or a classifier of noisy latents, of another model. Raises TiltingError."""
    sha = digest(Path(find_model(model)))
    for place, info in infos.items():
        if sha != info.model.get("sha256"):
            what = "control" if Path(place, CONTROL).is_file() else "classifier of noisy latents"
            raise TiltingError(f"the {what} {place!r} was trained on {info.model.get('name')!r}, which is not this {model!r}")
