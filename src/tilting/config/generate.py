"""The request of a `generate` run, fully resolved and validated, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self, TypeVar

from typing_extensions import Doc

from tilting.config.auto import AUTO, STEPS, Budget
from tilting.config.base import BaseConfig
from tilting.config.options import (
    BatchSize,
    Cfg,
    Controlnet,
    Device,
    Eta,
    Format,
    Frames,
    Images,
    Inputs,
    IpAdapter,
    LongPrompts,
    Lora,
    LoraSteps,
    Mask,
    Metadata,
    Model,
    NegativePrompt,
    Only,
    Out,
    Particles,
    Picture,
    Precision,
    Prompts,
    Reward,
    RewardDevice,
    RewardFrames,
    Sde,
    Seeds,
    Settings,
    Side,
    Split,
    Steps,
    Strength,
    Trace,
    TraceEvery,
    Unused,
)
from tilting.config.settings import setting
from tilting.declare import Check, Metavar, Option, declared, plain
from tilting.errors import TiltingError, nearest
from tilting.method import Method
from tilting.models.families import kind_of
from tilting.models.inputs import resolve_inputs, steps_run
from tilting.models.lora_file import INPUTS, LoraSpec, parse_lora, parse_window
from tilting.models.names import check_pipeline, defaults, find_model
from tilting.models.pipeline_class import check_left, steps_left
from tilting.models.placement import FULL, Switches, check_switches
from tilting.presets import METHODS, Preset
from tilting.rewards.declaration import of_a_batch
from tilting.rewards.spec import Spec, parse_specs

Config = TypeVar("Config", bound="GenerateConfig")


def _budget(name: str, value: str) -> str:
    Budget.read(value)
    return value


STRENGTH = 0.6
"""The share of the steps that is drawn from a reference picture, where it is unset (the CoDeX thesis, (T+I)2I)."""


@dataclass(frozen=True)
class GenerateConfig(Switches, BaseConfig):
    """A validated request with all defaults: ``particles`` is None for a method without any, ``strength`` without a picture,
    ``lora_steps`` without a LoRA, ``precision`` for fp32; ``settings`` has every other field of the preset.
    """

    hidden = ("published",)

    prompts: Prompts
    model: Model = "pocket"
    reward: Reward = ()
    method: Annotated[str, Doc("See `tilting methods`; file.py:function; or auto, the best for --budget.")] = "base"
    budget: Annotated[
        str | None,
        Metavar("N|Ns"),
        Check(_budget),
        Doc("Budget per image of method auto: evaluations, or seconds such as 30s."),
    ] = None
    particles: Particles = None
    steps: Steps = 50
    eta: Eta = 1.0
    sde: Sde = "posterior"
    cfg: Cfg = 4.0
    negative_prompt: NegativePrompt = ""
    images: Images = 1
    batch_size: BatchSize = 16
    out: Out = None
    seed: Seeds = 0
    settings: Settings = ()
    published: Annotated[bool, Doc("Settings, steps and cfg of the method's paper; --set overrides them.")] = False
    image: Picture = None
    strength: Strength = None
    input: Inputs = ()
    height: Side = None
    width: Side = None
    frames: Frames = None
    reward_frames: RewardFrames = "all"
    controlnet: Controlnet = None
    ip_adapter: IpAdapter = None
    mask: Mask = None
    lora: Lora = ()
    lora_steps: LoraSteps = None
    device: Device = "auto"
    reward_device: RewardDevice = None
    split: Split = "images"
    precision: Precision | None = None
    long_prompts: LongPrompts = None
    metadata: Metadata = ()
    format: Format = None
    only: Only = ()
    trace: Trace = False
    trace_every: TraceEvery = 1
    unused: Unused = ()
    auto: Annotated[tuple[str, ...], Option(internal=True), Doc("Budget and reason of what method auto took.")] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the run as a tuple."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    def wanted(self) -> list[int]:
        """The numbers of the images that ``only`` names, sorted. Raises TiltingError for one that is not in the run."""
        each, numbers = self.images * len(self.seeds), []
        for text in self.only:
            prompt, _, index = text.rpartition(":")
            at = int(prompt) if prompt.isdigit() and prompt not in self.prompts else None
            if at is None and prompt not in self.prompts:
                raise TiltingError(f"--only {text!r} names no prompt of this run{nearest(prompt, self.prompts)}")
            at = self.prompts.index(prompt) if at is None else at
            if at >= len(self.prompts) or int(index) >= each:
                what = f"prompts 0 to {len(self.prompts) - 1} and images 0 to {each - 1} of each"
                raise TiltingError(f"--only {text!r} names no image of this run, which has {what}")
            numbers.append(at * each + int(index))
        return sorted(set(numbers))

    def loras(self) -> list[LoraSpec]:
        """The parsed LoRAs."""
        return [parse_lora(lora) for lora in self.lora]

    def preset(self) -> Preset:
        """The preset with its settings."""
        given = {key.partition(".")[2]: value for key, value in self.settings}
        if self.method != AUTO and "particles" in _preset_fields(self.method):
            given["particles"] = self.particles
        return METHODS["base" if self.method == AUTO else self.method](**given)

    def built(self) -> tuple[Method, int]:
        """The method of a run, and the steps that it makes: fewer of them where it begins from a picture."""
        left, whole = steps_run(self), self.steps
        return self.preset().build(left).begun_at(left / whole), left

    def specs(self) -> list[Spec]:
        """The parsed rewards."""
        return parse_specs(self.reward)

    @classmethod
    def resolve(cls, options: Mapping[str, Any]) -> Self:
        """Fill in defaults and refuse what cannot work, before torch is imported.

        Args:
            options: by option name; None means unset. ``prompts`` is a list of prompts, or the path of a file of them.

        Raises:
            TiltingError: one sentence that names the option.
        """
        given = cls.checked({"prompts": (), **options})
        if given.get("method") == AUTO:
            return cls._for_auto(given)
        if given.get("budget") is not None:
            raise TiltingError(
                f"budget is what method auto spends, and the method is {given.get('method', 'base')}: leave it out"
            )
        method, model = given.get("method", "base"), given.get("model", "pocket")
        METHODS.find(method)
        paper = _paper(method, given) if given.pop("published", False) else {}
        fields = _preset_fields(method)
        resolve_inputs(cls, given, model)
        if any((parse_lora(one).file.parent / INPUTS).is_file() for one in given.get("lora", ())):
            check_pipeline(model, "learned sampler inputs")
        steps, cfg = defaults(model)
        of_model = {"steps": steps, "cfg": cfg, "eta": METHODS[method].default_eta}
        of_run = {name: cls.options()[name].check(paper[name]) for name in ("steps", "cfg") if name in paper}
        kept = {name: value for name, value in given.items() if name not in ("settings", "particles", "strength", "precision")}
        precision = None if given.get("precision") == FULL else given.get("precision")
        config = cls(**{**of_model, **of_run, **kept, "precision": precision})
        config = _with_settings(config, given, {name: value for name, value in paper.items() if name in fields})
        config = _with_picture(config, given)
        config = _with_rewards(config)
        config = _with_loras(config)
        if config.trace_every > 1 and not config.trace:
            config = replace(config, unused=(*config.unused, "trace-every"))
        _check_method(config)
        check_switches(config.model, Switches.of(config))
        config.wanted()
        return config

    def mapping(self) -> dict[str, Any]:
        """See `BaseConfig.mapping`; eta is left to method auto."""
        return {key: value for key, value in super().mapping().items() if self.method != AUTO or key != "eta"}

    @classmethod
    def _for_auto(cls, given: dict[str, Any]) -> Self:
        """A request of method auto, which is chosen once model and reward are loaded; validated as for method base."""
        if given.get("budget") is None:
            raise TiltingError(
                "method auto spends a budget: give --budget 100, evaluations per image, or seconds, --budget 30s"
            )
        for what in ("published", "image", "eta"):
            if given.get(what) not in (None, False):
                raise TiltingError(f"method auto chooses its own settings, for images drawn from noise: leave {what} out")
        useless = [*given.pop("settings", {}), *(["particles"] if given.pop("particles", None) is not None else [])]
        budget, steps = given.pop("budget"), given.pop("steps", None)
        steps = min(STEPS, defaults(given.get("model", "pocket"))[0]) if steps is None else steps
        config = cls.resolve({**given, "method": "base", "steps": steps})
        if not config.reward:
            raise TiltingError("method auto needs a reward: give one by --reward")
        return replace(config, method=AUTO, budget=budget, unused=(*config.unused, *useless))


def usual_settings(method: str) -> dict[str, Any]:
    """Default settings of a preset by ``method.field``, as plain YAML and JSON values."""
    return {f"{method}.{field}": plain(value) for field, value in _preset_fields(method).items()}


def _preset_fields(method: str) -> dict[str, Any]:
    """Names and defaults of a preset's fields."""
    return {name: one.default for name, one in declared(METHODS[method]).items()}


def _paper(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the method's paper for the reward of this request, if it is a single one, and for a reference picture."""
    specs = parse_specs(given.get("reward", ()))
    reward = [specs[0].name] if len(specs) == 1 else []
    return METHODS[method].of_paper(*reward, *(["image"] if "image" in given else []))


def _with_settings(config: Config, given: Mapping[str, Any], paper: Mapping[str, Any]) -> Config:
    """Merge defaults, the paper's settings, ``--set`` and ``--particles``; settings of other methods go to ``unused``."""
    known, unused = {**_preset_fields(config.method), **paper}, []
    particles = given.get("particles")
    values = dict(known)
    for key, value in given.get("settings", {}).items():
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


def _with_picture(config: Config, given: Mapping[str, Any]) -> Config:
    """Set the strength of the reference picture; without a picture it goes to ``unused``."""
    if config.image is None or config.mask is not None:  # a picture with a mask is the pipeline's own, as is its strength
        if METHODS[config.method].needs_picture:
            raise TiltingError(f"{config.method} starts from a picture: give one by --image")
        strength = given.get("strength")
        if config.image is not None or strength is None:
            return replace(config, strength=strength)
        return replace(config, unused=(*config.unused, "strength"))
    strength = given.get("strength", STRENGTH)
    check_left(strength, config.steps, steps_left(kind_of(find_model(config.model)), config.steps, strength))
    return replace(config, strength=strength)


def _with_loras(config: Config) -> Config:
    """Validate the steps in which LoRAs are active; without a LoRA they go to ``unused``."""
    if config.lora_steps is None:
        return config
    first, _ = parse_window(config.lora_steps)
    if not config.lora:
        return replace(config, lora_steps=None, unused=(*config.unused, "lora-steps"))
    if first >= config.steps:
        last = config.steps - 1
        raise TiltingError(f"lora-steps {config.lora_steps!r} begins after the last of {config.steps} steps, which is {last}")
    return config


def _with_rewards(config: Config) -> Config:
    """Set the rewards, by default ``clip`` for pocket, and validate them for the method."""
    wanted = config.reward or (("clip",) if config.model == "pocket" else ())
    specs = parse_specs(wanted)
    if not specs and config.method != "base" and config.preset().build(config.steps).needs_reward:
        raise TiltingError(f"method {config.method} needs a reward: give one by --reward")
    for spec in specs:
        if spec.entry and spec.entry.together:
            raise of_a_batch(spec.text)
    if config.preset().needs_reward_gradient:
        for spec in specs:
            if spec.entry and not spec.entry.differentiable:
                raise black_box(config.method, spec.text)
    idle = ("reward-device",) if config.reward_device and not specs else ()
    return replace(config, reward=wanted, unused=(*config.unused, *idle))


def tried(why: str) -> str:
    """A reason in parentheses, or nothing."""
    return f" (tried on a picture: {why})" if why else ""


def black_box(method: str, reward: str, why: str = "") -> TiltingError:
    """The error for a black-box reward; ``why`` is what trying its gradient gave."""
    probes = f", or zero-order gradients by --set {method}.probes=10" if "probes" in _preset_fields(method) else ""
    what = f"a differentiable reward and {reward!r} is black-box{tried(why)}"
    return TiltingError(f"{method} needs {what}: use --method code or bon with it{probes}")


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


resolve = GenerateConfig.resolve
