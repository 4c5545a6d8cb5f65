"""CTRL from Python, in memory: fit a classifier to labelled images, draw with controls, or guided by
classifiers. (Training: `tilting.conditioning.trainer`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.dataset import bar, is_held_out
from tilting.conditioning.fit_label import FittedLabel, by_likelihood, epoch_told, fit_label
from tilting.conditioning.guided import Obeying, check_noise, controlled, guided_by
from tilting.conditioning.networks import inputs_of
from tilting.conditioning.noisy import NoisyClassifier
from tilting.conditioning.pictures import InMemory, encode
from tilting.conditioning.readings import Watcher, mean_readings, with_readings
from tilting.conditioning.table import Column
from tilting.config.base import keywords
from tilting.config.condition_fit import FitConfig
from tilting.config.condition_sample import SampleConfig
from tilting.config.prompts import prompts_of
from tilting.declare import scalar
from tilting.features.fitted import FittedClassifier
from tilting.features.images import check_images
from tilting.features.schema import NOISY
from tilting.generation.api import Result, config_of
from tilting.generation.coerce import reward_of
from tilting.generation.generate import Counts, Drawn, draw, identities, judge_of, plan, records_of, summarise
from tilting.generation.plan import grid_of
from tilting.generation.progress import Progress
from tilting.method import Method
from tilting.models.control_file import Control, warn_of
from tilting.models.control_kl import PathKl
from tilting.models.control_spec import ControlInfo, parse_labels
from tilting.models.labels import Controlled
from tilting.models.pipeline import Pipeline
from tilting.presets import Preset
from tilting.presets.guided import reconstruction_guidance
from tilting.rewards import Likelihood, combine
from tilting.rewards.metadata import informed
from tilting.types import Reward, TiltingError

FIT = ("kind", "widths", "embedder", "epochs", "batch_size", "lr", "patience", "seed")
"""Options of `tilting condition fit` that a fit in memory has too."""


@keywords(FitConfig, *FIT)
def condition_fit(
    images: Tensor,
    labels: Sequence[str | float],
    label: str = "label",
    classes: Sequence[str] | None = None,
    model: Pipeline | None = None,
    progress: bool = True,
    **options: Any,
) -> FittedLabel:
    """Fit and calibrate p(y | x) on images in memory; a fifth is held out, by seed.

    Args:
        images: (n, 3, h, w) float in [0, 1].
        labels: n names of classes, or numbers.
        label: its name.
        classes: names in order; default those there are, in order of the alphabet. Without them and of floats y is a number.
        model: whose latents kind "noisy" learns from: p(y | x_t, t), whose one width is a multiple of 8.
        progress: show a bar on stderr.
        options: those of `tilting.config.condition_fit.FitConfig` named `FIT`.

    Raises:
        TiltingError: images and labels that do not match, or too few; a model that is missing, or has no use.
    """
    check_images(images)
    config = FitConfig(**{"size": images.shape[-1] if images.shape[-1] == images.shape[-2] else 0, **options})
    labels = [scalar(one) for one in (labels.tolist() if hasattr(labels, "tolist") else labels)]  # type: ignore[union-attr]
    if (config.kind == NOISY) != (model is not None):
        what = "needs a model" if config.kind == NOISY else "has no use for a model"
        raise TiltingError(f"kind {config.kind!r} {what}: see kind 'noisy'")
    if len(labels) != len(images) or len(images) < 5:
        raise TiltingError(f"{len(images)} images and {len(labels)} labels: give one of each, and at least five")
    continuous = classes is None and all(isinstance(v, float) for v in labels)
    names = () if continuous else tuple(str(c) for c in (classes or sorted({str(v) for v in labels})))
    unknown = [str(v) for v in labels if names and str(v) not in names]
    if unknown:
        raise TiltingError(f"the label {label!r} has no class {unknown[0]!r}, only {', '.join(names)}")
    y = torch.tensor([names.index(str(v)) if names else float(v) for v in labels], dtype=torch.float64)
    held_out = [i for i in range(len(images)) if is_held_out(config.seed, f"image {i}")]
    learn = [i for i in range(len(images)) if i not in set(held_out)]
    missing = [name for k, name in enumerate(names) if not (y[learn] == k).any()]
    if not learn or not held_out or missing:
        what = f"none of the class {missing[0]!r} is left to learn from" if missing else "no fifth can be held out"
        raise TiltingError(f"{len(images)} images are too few with seed {config.seed}: {what}")
    pictures, column = InMemory(images), Column(label, "classes" if names else "gaussian", names)
    source = (lambda net: inputs_of(net, pictures)) if model is None else encode(model, pictures)
    device = "cpu" if model is None else model.device

    def fitted(config: FitConfig) -> FittedLabel:
        with bar(config.epochs, f"{label}, {config.kind}", not progress) as shown:
            report = partial(epoch_told, shown)
            return fit_label(config, column, y, learn, held_out, source, device, report=report)

    return by_likelihood(config, fitted)


def compose(controls: Control | Sequence[Control], labels: Mapping[str, str | float], strength: float = 1.0) -> Controlled:
    """One or several controls with labels fixed, as a model to draw with.

    Args:
        controls: of one model; each must be asked for a label.
        labels: label -> the name of a class, or a number in the label's unit.
        strength: γ2 of all of them.

    Raises:
        TiltingError: a label or class that none knows, or one that two know.
    """
    return _composed(controls, labels, strength).model


def _composed(
    controls: Control | Sequence[Control], labels: Mapping[str, str | float], strength: float, watcher: Watcher | None = None
) -> Obeying:
    named = {str(i): c for i, c in enumerate([controls] if isinstance(controls, Control) else controls)}
    asked = parse_labels([f"{k}={v}" for k, v in labels.items()], {name: c.info for name, c in named.items()})
    for name, control in named.items():
        warn_of(control.info, asked[name])
    return controlled(named, asked, strength, watcher)


def _guided(
    model: Any, classifiers: Sequence[FittedClassifier | NoisyClassifier], labels: Mapping[str, str | float]
) -> list[NoisyClassifier]:
    """Those of noisy latents, all or none of the classifiers that guide a model. Raises TiltingError."""
    if not hasattr(model, "denoiser"):
        raise TiltingError("classifiers guide the pre-trained model: give it in the place of controls")
    infos = {str(i): ControlInfo((c.schema,)) for i, c in enumerate(classifiers)}
    for name, mine in parse_labels([f"{k}={v}" for k, v in labels.items()], infos, "classifier").items():
        warn_of(infos[name], mine)
    noisy = [c for c in classifiers if isinstance(c, NoisyClassifier)]
    if noisy and len(noisy) < len(classifiers):
        raise TiltingError("some classifiers are of clean pictures and some of noisy latents: guide by one kind")
    if any(tuple(c.net.config["shape"]) != tuple(model.latent_shape) for c in noisy):
        raise TiltingError(f"a classifier of noisy latents of another model cannot guide {model.name!r}")
    return noisy


@keywords(SampleConfig, "steps", "cfg", "eta", "sde", "seed", "images", "negative_prompt", "batch_size", "reward_frames")
def condition_sample(
    controls: Control | Sequence[Control] | Pipeline,
    prompts: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    labels: Mapping[str, str | float],
    strength: float = 1.0,
    reward: Reward | str | Callable | None = None,
    method: Preset | Method | str | None = None,
    *,
    seed: int | Sequence[int] = 0,
    images: int = 1,
    classifiers: FittedClassifier | NoisyClassifier | Sequence[FittedClassifier | NoisyClassifier] = (),
    progress: bool = True,
    **options: Any,
) -> Result:
    """Draw images that obey labels; any method and reward of `tilting.generate` on top.

    Args:
        controls, labels, strength: see `compose`. With ``classifiers`` the model itself, and γ of guidance.
        prompts, reward, method, seed, images: see `tilting.generate`.
        classifiers: of labels, from `condition_fit`: of clean pictures for reconstruction guidance (the preset dps, with log p
            as its reward), of noisy latents for classifier guidance.
        progress: show a bar on stderr.
        options: ``steps, cfg, eta, sde, negative_prompt, batch_size, reward_frames``, see `tilting.generate`.

    Returns:
        Images and a manifest, whose records and summary also have the path KL and what the classifiers say.

    Raises:
        TiltingError: for settings that cannot work.
    """
    given, watcher = prompts_of(prompts), Watcher()
    guides = list(classifiers) if isinstance(classifiers, Sequence) else [classifiers]
    made: Any = controls
    noisy = _guided(made, guides, labels) if guides else []
    if not guides:
        obeying = _composed(made, labels, strength, watcher)
    elif noisy:
        obeying = guided_by(made, noisy, labels, strength, watcher)
    else:
        if reward is not None or method is not None:
            raise TiltingError("classifiers of clean pictures guide by dps with log p(y | x) as its reward: leave both out")
        clean = {c.schema.label: c for c in guides if isinstance(c, FittedClassifier)}
        parts = [Likelihood(clean[k], clean[k].schema.target(v), f"likelihood:{k}={v}") for k, v in labels.items()]
        reward = parts[0] if len(parts) == 1 else combine(parts)
        method = reconstruction_guidance(strength, watch=watcher)
        obeying = Obeying(made, {k: (clean[k], v) for k, v in labels.items()})
    model = obeying.model
    who = identities(given.texts, seed, images)
    request = plan(model, who, method, informed(reward_of(reward), *given), **options)
    if guides:
        check_noise(model.schedule, request.steps)
    kl = watcher.kl = PathKl(grid_of(model, request.method, request.steps), request.eta, request.sde)
    judge, pictures = judge_of(model.name), []
    records: list[dict[str, Any]] = []
    counts = Counts()
    with Progress(request, quiet=not progress) as shown:
        for event in draw(model, request):
            if isinstance(event, Drawn):
                pictures.append(event.images)
                records += with_readings(records_of(event, judge), event.images, kl, obeying.tests)
                counts += event.counts
            else:
                shown.step(event.reward)
    summary = {**summarise(records, counts), **mean_readings(records)}
    asked = {"prompts": tuple(given.texts), "metadata": given.metadata, "seed": seed, "images": images}
    config, beyond = config_of(model, request, asked, labels=labels)
    return Result(torch.cat(pictures), {"images": records, "summary": summary}, config, beyond)
