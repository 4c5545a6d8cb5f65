"""What a `generate` run is asked to do, fully resolved and checked, without torch. A thin strict YAML layer reads the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of_dataclass
from pathlib import Path
from typing import Any

import yaml

from tilting.errors import TiltingError, nearest
from tilting.experiments.prompts import check_prompts, read_prompts
from tilting.experiments.settings import integer, number, setting, text
from tilting.models import MODELS, find_model, usual
from tilting.presets import PRESETS, Preset
from tilting.rewards.spec import CATALOG, Spec, parse_specs

OPTIONS = (
    "prompts", "model", "reward", "method", "particles", "steps", "eta", "cfg", "negative-prompt", "images", "batch-size",
    "out", "seed", "set",
)  # fmt: skip
SWITCHES = ("quiet", "json")


@dataclass(frozen=True)
class GenerateConfig:
    """A checked request, every default filled in.

    Attributes:
        prompts, model, reward, method, particles, steps, eta, cfg, negative_prompt, images, batch_size, out, seed: the
            options of these names; ``particles`` is None for a method that has none.
        settings: every other field of the method's preset, by "method.field".
        unused: options that were given and that the method has no use for.
    """

    prompts: tuple[str, ...]
    model: str = "pocket"
    reward: tuple[str, ...] = ("clip",)
    method: str = "base"
    particles: int | None = None
    steps: int = 50
    eta: float = 1.0
    cfg: float = 4.0
    negative_prompt: str = ""
    images: int = 1
    batch_size: int = 16
    out: str | None = None
    seed: int = 0
    settings: tuple[tuple[str, object], ...] = ()
    unused: tuple[str, ...] = ()

    def preset(self) -> Preset:
        """The preset this asks for."""
        given = {key.partition(".")[2]: value for key, value in self.settings}
        if "particles" in _preset_fields(self.method):
            given["particles"] = self.particles
        return PRESETS[self.method](**given)

    def specs(self) -> list[Spec]:
        """The parsed rewards."""
        return parse_specs(self.reward)

    def mapping(self) -> dict[str, Any]:
        """By option name, of plain YAML and JSON values; `resolve` of it gives the same config (``unused`` is left out)."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in self.settings}
        return {
            "prompts": list(self.prompts), "model": self.model, "reward": list(self.reward), "method": self.method,
            "particles": self.particles, "steps": self.steps, "eta": self.eta, "cfg": self.cfg,
            "negative-prompt": self.negative_prompt, "images": self.images, "batch-size": self.batch_size,
            "out": self.out, "seed": self.seed, "set": plain,
        }  # fmt: skip

    def yaml(self) -> str:
        """The config as a YAML file that ``--config`` reads back."""
        return yaml.safe_dump(self.mapping(), sort_keys=False, allow_unicode=True, width=120)


def _preset_fields(method: str) -> dict[str, Any]:
    """Names and defaults of a preset's fields."""
    return {f.name: f.default for f in fields_of_dataclass(PRESETS[method])}  # type: ignore[arg-type]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise TiltingError(f"the key {key!r} stands twice in the YAML")
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Options from a YAML file, by option name (underscores count as hyphens). Raises TiltingError."""
    file = Path(path)
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, TiltingError):
            raise TiltingError(f"{file}: {error}") from None
        raise TiltingError(f"cannot read the config {str(file)!r}: {_reason(error)}") from None
    except (yaml.YAMLError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        raise TiltingError(f"the config {str(file)!r} is not YAML{place}: {getattr(error, 'problem', None) or error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise TiltingError(f"the config {str(file)!r} must be a mapping of options to values")
    options: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).replace("_", "-")
        if "." in name and not name.startswith("."):
            given = options.setdefault("set", {})
            if isinstance(given, dict):
                given[str(key)] = value
            continue
        if name not in (*OPTIONS, *SWITCHES):
            raise TiltingError(f"{file}: there is no option {str(key)!r}{nearest(name, (*OPTIONS, *SWITCHES))}")
        if name == "set":
            if value is not None and not isinstance(value, dict):
                raise TiltingError(f"{file}: set must be a mapping such as codex.tau: 0.001")
            options["set"] = {**options.get("set", {}), **_flat(value or {})}
        else:
            options[name] = value
    for switch in SWITCHES:
        if not isinstance(options.get(switch, False), bool):
            raise TiltingError(f"{file}: {switch} must be true or false, not {options[switch]!r}")
    return options


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def _flat(values: Mapping) -> dict[str, Any]:
    """{"codex": {"tau": 1}} and {"codex.tau": 1} alike as the latter."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[str(key)] = value
    return flat


def _texts(name: str, value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise TiltingError(f"{name} must be a list of texts, not {value!r}")
    return [text(f"each of {name}", v) for v in values]


def resolve(options: Mapping[str, Any]) -> GenerateConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them.

    Raises:
        TiltingError: one sentence that names the option.
    """
    given = {key: value for key, value in options.items() if value is not None and key not in SWITCHES}
    method = text("method", given.get("method", "base"))
    if method not in PRESETS:
        raise TiltingError(f"there is no method {method!r}{nearest(method, PRESETS)}")
    model = _model(text("model", given.get("model", "pocket")))
    prompts = given.get("prompts", [])
    prompts = check_prompts(read_prompts(prompts) if isinstance(prompts, str) else _texts("prompts", prompts))
    steps, cfg = usual(model)
    config = GenerateConfig(
        prompts=tuple(prompts), model=model, method=method,
        steps=integer("steps", given.get("steps", steps), 1),
        eta=number("eta", given.get("eta", getattr(PRESETS[method], "usual_eta", 1.0))),
        cfg=number("cfg", given.get("cfg", cfg)),
        negative_prompt=text("negative-prompt", given.get("negative-prompt", "")),
        images=integer("images", given.get("images", 1), 1),
        batch_size=integer("batch-size", given.get("batch-size", 16), 1),
        out=text("out", given["out"]) if "out" in given else None,
        seed=integer("seed", given.get("seed", 0)),
    )  # fmt: skip
    if not 0 <= config.eta <= 1:
        raise TiltingError(f"eta must be between 0 and 1, not {config.eta:g}")
    config = _with_settings(config, given)
    config = _with_rewards(config, given)
    _check_method(config)
    return config


def _model(name: str) -> str:
    if name not in MODELS and "/" not in name and not Path(name).is_dir():
        near = nearest(name, MODELS)
        if "did you mean" in near:
            raise TiltingError(f"unknown model {name!r}{near}")
    find_model(name)
    return name


def _with_settings(config: GenerateConfig, given: Mapping[str, Any]) -> GenerateConfig:
    """Preset defaults, ``--set`` over them, ``--particles`` beside them; what has no use goes to ``unused``."""
    known, unused = _preset_fields(config.method), []
    particles = integer("particles", given["particles"], 1) if "particles" in given else None
    values = dict(known)
    for key, value in _flat(given.get("set", {})).items():
        method, field, checked = setting(key, value)
        if method != config.method:
            unused.append(key)
        elif field == "particles" and particles not in (None, checked):
            raise TiltingError(f"particles is {particles} by --particles and {checked} by {key}: give it once")
        else:
            values[field] = checked
    if "particles" not in known:
        unused += ["particles"] if particles is not None else []
    else:
        particles = values.pop("particles") if particles is None else particles
        values.pop("particles", None)
    if config.negative_prompt and config.cfg == 1:
        unused.append("negative-prompt")
    settings = tuple((f"{config.method}.{field}", value) for field, value in values.items())
    return replace(config, particles=particles, settings=settings, unused=tuple(unused))


def _with_rewards(config: GenerateConfig, given: Mapping[str, Any]) -> GenerateConfig:
    """The rewards asked for; ``clip`` for pocket where none is."""
    texts = _texts("reward", given.get("reward", []))
    if not texts and config.model == "pocket":
        texts = ["clip"]
    specs = parse_specs(texts)
    if not specs and config.method != "base":
        raise TiltingError(f"method {config.method} needs a reward: give one by --reward")
    if config.preset().climbs:
        for spec in specs:
            if spec.name in CATALOG and not CATALOG[spec.name].differentiable:
                raise black_box(config.method, spec.text)
    return replace(config, reward=tuple(texts))


def black_box(method: str, reward: str) -> TiltingError:
    """The refusal of a reward without gradient."""
    probes = f", or zero-order gradients by --set {method}.probes=10" if "probes" in _preset_fields(method) else ""
    return TiltingError(
        f"{method} needs a differentiable reward and {reward!r} is black-box: use --method code or bon with it{probes}"
    )


def _check_method(config: GenerateConfig) -> None:
    settings = dict(config.settings)
    if config.eta == 0 and (config.particles or 1) > 1:
        if config.preset().selects:
            raise TiltingError(
                f"{config.method} selects in blocks, and at eta 0 the copies stay identical: use eta above 0 (1 is usual)"
            )
        if settings.get(f"{config.method}.start") == "copy":
            raise TiltingError("copied starts at eta 0 give identical particles: use eta above 0, or independent starts")
    rule = settings.get(f"{config.method}.rule", "cfg" if config.method == "freedom" else "plain")
    if rule == "cfg" and config.cfg == 1:
        raise TiltingError(
            f"{config.method} scales its gradient by the CFG correction, which cfg 1 does not have: use cfg above 1"
        )
