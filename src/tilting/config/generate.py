"""What a `generate` run is asked to do, fully resolved and checked, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of_dataclass
from typing import Any

from tilting.config.base import BaseConfig, check_model, given_of, plain, prompts_of
from tilting.config.picture import open_picture
from tilting.config.settings import boolean, integer, number, scale_of, setting, text, texts
from tilting.config.yaml_file import flat
from tilting.errors import TiltingError, nearest
from tilting.models import usual
from tilting.models.lora_file import LoraSpec, parse_lora, parse_window
from tilting.models.placement import FULL, check_device, check_precision
from tilting.presets import PRESETS, Preset
from tilting.rewards.spec import REWARDS, Spec, parse_specs

OPTIONS = (
    "prompts", "model", "reward", "method", "particles", "steps", "eta", "cfg", "negative-prompt", "images", "batch-size",
    "out", "seed", "set", "image", "strength", "lora", "lora-steps", "device", "precision", "published",
)  # fmt: skip
RESOLVED = tuple(name for name in OPTIONS if name != "published")
"""Those that a config holds: what was published is settings like others by then."""
STRENGTH = 0.6
"""The share of the steps that is drawn from a reference picture, where it is unset (the CoDeX thesis, (T+I)2I)."""


@dataclass(frozen=True)
class GenerateConfig(BaseConfig):
    """A checked request, every default filled in.

    Attributes:
        prompts, model, reward, method, particles, steps, eta, cfg, negative_prompt, images, batch_size, out, seed, image,
            strength, lora, lora_steps, device, precision: the options of these names; ``particles`` is None for a method that
            has none, ``strength`` without a picture, ``lora_steps`` without a LoRA, ``precision`` where it is fp32.
        settings: every other field of the method's preset, by "method.field".
        unused: options that were given and that the method has no use for.
    """

    options = RESOLVED

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
    image: str | None = None
    strength: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    unused: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    lora_steps: str | None = None
    device: str = "auto"
    precision: str | None = None

    def loras(self) -> list[LoraSpec]:
        """The parsed LoRAs."""
        return [parse_lora(lora) for lora in self.lora]

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
        return {**super().mapping(), "set": plain(dict(self.settings))}


def usual_settings(method: str) -> dict[str, Any]:
    """The settings of a preset as they are unless told, by name, of plain YAML and JSON values."""
    return {f"{method}.{field}": plain(value) for field, value in _preset_fields(method).items()}


def _preset_fields(method: str) -> dict[str, Any]:
    """Names and defaults of a preset's fields."""
    return {f.name: f.default for f in fields_of_dataclass(PRESETS[method])}


def resolve(options: Mapping[str, Any]) -> GenerateConfig:
    """Fill in defaults and refuse what cannot work, before torch is imported.

    Args:
        options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them.

    Raises:
        TiltingError: one sentence that names the option.
    """
    given = given_of(options)
    method = text("method", given.get("method", "base"))
    if method not in PRESETS:
        raise TiltingError(f"there is no method {method!r}{nearest(method, PRESETS)}")
    model = check_model(text("model", given.get("model", "pocket")))
    prompts = prompts_of(given.get("prompts", []))
    paper = _paper(method, given) if boolean("published", given.get("published", False)) else {}
    fields = _preset_fields(method)
    of_run = {name: value for name, value in paper.items() if name not in fields}
    steps, cfg = usual(model)
    config = GenerateConfig(
        prompts=prompts, model=model, method=method,
        steps=integer("steps", given.get("steps", of_run.get("steps", steps)), 1),
        eta=number("eta", given.get("eta", PRESETS[method].usual_eta)),
        cfg=scale_of(given.get("cfg", of_run.get("cfg", cfg))),
        negative_prompt=text("negative-prompt", given.get("negative-prompt", "")),
        images=integer("images", given.get("images", 1), 1),
        batch_size=integer("batch-size", given.get("batch-size", 16), 1),
        out=text("out", given["out"]) if "out" in given else None,
        seed=integer("seed", given.get("seed", 0)),
        device=check_device(text("device", given.get("device", "auto"))),
        precision=_precision(text("precision", given.get("precision", FULL))),
    )  # fmt: skip
    if not 0 <= config.eta <= 1:
        raise TiltingError(f"eta must be between 0 and 1, not {config.eta:g}")
    config = _with_settings(config, given, {name: value for name, value in paper.items() if name in fields})
    config = _with_picture(config, given)
    config = _with_rewards(config, given)
    config = _with_loras(config, given)
    _check_method(config)
    return config


def _paper(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the method's paper used: with the one reward asked for, and from a picture if there is one."""
    specs = parse_specs(texts("reward", given.get("reward", [])))
    reward = [specs[0].name] if len(specs) == 1 else []
    return PRESETS[method].of_paper(*reward, *(["image"] if "image" in given else []))


def _precision(name: str) -> str | None:
    return None if check_precision(name) == FULL else name


def _with_settings(config: GenerateConfig, given: Mapping[str, Any], paper: Mapping[str, Any]) -> GenerateConfig:
    """Preset defaults or the paper's, ``--set`` over them, ``--particles`` beside them; what has no use goes to ``unused``."""
    known, unused = {**_preset_fields(config.method), **paper}, []
    particles = integer("particles", given["particles"], 1) if "particles" in given else None
    values = dict(known)
    for key, value in flat(given.get("set", {})).items():
        method, field, checked = setting(key, value)
        if method != config.method:
            unused.append(key)
        elif field == "particles" and particles not in (None, checked):
            raise TiltingError(f"particles is {particles} by --particles and {checked} by {key}: give it once")
        else:
            values[field] = checked
    if "particles" not in known:
        unused += ["particles"] if particles is not None else []
        particles = None
    else:
        particles = values.pop("particles") if particles is None else particles
        values.pop("particles", None)
    if config.negative_prompt and config.cfg == 1:
        unused.append("negative-prompt")
    settings = tuple((f"{config.method}.{field}", value) for field, value in values.items())
    return replace(config, particles=particles, settings=settings, unused=tuple(unused))


def _with_picture(config: GenerateConfig, given: Mapping[str, Any]) -> GenerateConfig:
    """The reference picture, looked at as a whole, and its strength, which has no use without one."""
    strength = number("strength", given.get("strength", STRENGTH))
    if not 0 < strength <= 1:
        raise TiltingError(f"strength must be above 0 and at most 1, not {strength:g}")
    if "image" not in given:
        if config.method == "sdedit":
            raise TiltingError("sdedit starts from a picture: give one by --image")
        return replace(config, unused=(*config.unused, *(["strength"] if "strength" in given else [])))
    image = text("image", given["image"])
    open_picture(image)
    return replace(config, image=image, strength=strength)


def _with_loras(config: GenerateConfig, given: Mapping[str, Any]) -> GenerateConfig:
    """LoRAs that are there, and the steps they are on in, which have no use without one."""
    config = replace(config, lora=tuple(texts("lora", given.get("lora", []))))
    config.loras()
    if "lora-steps" not in given:
        return config
    window = text("lora-steps", given["lora-steps"])
    first, _ = parse_window(window)
    if not config.lora:
        return replace(config, unused=(*config.unused, "lora-steps"))
    if first >= config.steps:
        raise TiltingError(f"lora-steps {window!r} begins after the last of {config.steps} steps, which is {config.steps - 1}")
    return replace(config, lora_steps=window)


def _with_rewards(config: GenerateConfig, given: Mapping[str, Any]) -> GenerateConfig:
    """The rewards asked for; ``clip`` for pocket where none is."""
    wanted = texts("reward", given.get("reward", []))
    if not wanted and config.model == "pocket":
        wanted = ["clip"]
    specs = parse_specs(wanted)
    if not specs and config.method != "base":
        raise TiltingError(f"method {config.method} needs a reward: give one by --reward")
    for spec in specs:
        if spec.name in REWARDS and REWARDS[spec.name].together:
            raise of_a_batch(spec.text)
    if config.preset().climbs:
        for spec in specs:
            if spec.name in REWARDS and not REWARDS[spec.name].differentiable:
                raise black_box(config.method, spec.text)
    return replace(config, reward=tuple(wanted))


def of_a_batch(reward: str) -> TiltingError:
    """The refusal of a reward that compares images with each other: pictures would depend on the batch size."""
    return TiltingError(
        f"{reward!r} compares the images of a batch, and no picture may depend on those beside it: it is for `tilting finetune`"
    )


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
    if config.cfg == 1 and getattr(config.preset(), "rule", None) == "cfg":
        raise TiltingError(
            f"{config.method} scales its gradient by the CFG correction, which cfg 1 does not have: use cfg above 1"
        )
