"""CTRL from Python, in memory: fit a classifier to labelled images, draw with controls, or guided by
classifiers. (Training: `controlling`.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tilting.conditioning.dataset import is_held_out
from tilting.conditioning.fit import Options, begin, ended, epochs, schema_of
from tilting.conditioning.fit_metrics import by_noise, measured
from tilting.conditioning.guided import guided_by
from tilting.conditioning.latents import encode
from tilting.conditioning.networks import build_network, inputs_of
from tilting.conditioning.noisy import NoisyClassifier, OfPictures, feed
from tilting.conditioning.notes import Tests, Watcher, note, sum_up
from tilting.conditioning.sample_run import check_noise
from tilting.config.label_columns import Column
from tilting.config.prompts import check_prompts
from tilting.features.fitted import FittedClassifier
from tilting.features.images import check_images
from tilting.features.schema import NOISY
from tilting.generation.generate import Counts, Drawn, Result, draw, identities, judge_of, plan, records_of, summarise
from tilting.models.control_file import Control, warn_of_parts
from tilting.models.control_kl import PathKl
from tilting.models.control_spec import ControlInfo, parse_labels
from tilting.models.labels import Controlled, together
from tilting.models.stable_diffusion import StableDiffusion
from tilting.presets import Preset
from tilting.presets.guided import reconstruction_guidance
from tilting.rewards import Likelihood, combine
from tilting.types import Reward, TiltingError


class _Images:
    """Images in memory as `tilting.conditioning.images.Pictures` has them."""

    def __init__(self, images: Tensor):
        self.images, self.paths = images, [f"image {i}" for i in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return self.images[list(rows)]


@dataclass(frozen=True)
class FittedLabel:
    """What `condition_fit` returns.

    Attributes:
        classifier: calibrated, frozen; `tilting.features.fitted.save_classifier` writes it (one of noisy latents:
            `tilting.conditioning.noisy.save_noisy`).
        metrics: what metrics.json of `tilting condition fit` holds: accuracy, macro F1, confusion, ECE before and after.
    """

    classifier: Any
    metrics: dict[str, Any]


def condition_fit(
    images: Tensor, labels: Sequence[str | float], label: str = "label", classes: Sequence[str] | None = None,
    kind: str = "cnn", widths: Sequence[int] = (), embedder: str | None = None, options: Options | None = None,
    seed: int = 0, model: StableDiffusion | None = None,
) -> FittedLabel:  # fmt: skip
    """Fit and calibrate p(y | x) on images in memory; a fifth is held out, by seed.

    Args:
        images: (n, 3, h, w) float in [0, 1].
        labels: n names of classes, or numbers.
        label: its name.
        classes: names in order; default those there are, in order of the alphabet. Without them and of floats y is a number.
        kind, widths, embedder: of the network; see `tilting.conditioning.networks.build_network`. Kind "noisy" is p(y | x_t, t)
            of the noisy latents of a model; its one width is a multiple of 8.
        options: epochs, batches, rate.
        seed: of the split, and of the fit unless ``options`` say otherwise.
        model: whose latents kind "noisy" learns from.

    Raises:
        TiltingError: images and labels that do not match, or too few; a model that is missing, or has no use.
    """
    check_images(images)
    if (kind == NOISY) != (model is not None):
        raise TiltingError(f"kind {kind!r} {'needs a model' if kind == NOISY else 'has no use for a model'}: see kind 'noisy'")
    if len(labels) != len(images) or len(images) < 5:
        raise TiltingError(f"{len(images)} images and {len(labels)} labels: give one of each, and at least five")
    continuous = classes is None and all(isinstance(v, float) for v in labels)
    names = () if continuous else tuple(str(c) for c in (classes or sorted({str(v) for v in labels})))
    unknown = [str(v) for v in labels if names and str(v) not in names]
    if unknown:
        raise TiltingError(f"the label {label!r} has no class {unknown[0]!r}, only {', '.join(names)}")
    y = torch.tensor([names.index(str(v)) if names else float(v) for v in labels], dtype=torch.float64)
    held = [i for i in range(len(images)) if is_held_out(seed, f"image {i}")]
    learn = [i for i in range(len(images)) if i not in set(held)]
    missing = [name for k, name in enumerate(names) if not (y[learn] == k).any()]
    if not learn or not held or missing:
        what = f"none of the class {missing[0]!r} is left to learn from" if missing else "no fifth can be held out"
        raise TiltingError(f"{len(images)} images are too few with seed {seed}: {what}")
    options = options or Options(seed=seed)
    schema = schema_of(label, names, y[learn])
    pictures: Any = _Images(images)
    encoded, tested = None, held
    net: Any
    if model is not None:
        encoded = encode(model, pictures, len(images))
        net, inputs, y, tested = feed(encoded.latents, y, schema, encoded.schedule, held, options, *widths)
    else:
        net = build_network(kind, schema.outputs, options.seed, label, widths, embedder)
        inputs = inputs_of(net, pictures)
    fit = begin(net, schema, options, "cpu" if model is None else model.device)
    for _ in epochs(fit, inputs, y, learn, tested, options):
        pass
    schema, outputs = ended(fit, inputs, tested)
    schema, metrics, _ = measured(schema, outputs, y[tested], Column(label, schema.kind, names))
    metrics |= {"records": {"learn": len(learn), "held_out": len(held)}, "epochs": fit.epoch}
    if encoded is not None:
        metrics["by_noise"] = by_noise(schema, outputs, y[tested], inputs.copies.sigma.cpu())  # type: ignore[union-attr]
    made = FittedClassifier(net, schema) if encoded is None else NoisyClassifier(net, schema, encoded.model)
    return FittedLabel(made.eval().requires_grad_(False), metrics)


def compose(controls: Control | Sequence[Control], labels: Mapping[str, str | float], strength: float = 1.0) -> Controlled:
    """One or several controls with labels fixed, as a model to draw with.

    Args:
        controls: of one model; each must be asked for a label.
        labels: label -> the name of a class, or a number in the label's unit.
        strength: γ2 of all of them.

    Raises:
        TiltingError: a label or class that none knows, or one that two know.
    """
    given = [controls] if isinstance(controls, Control) else list(controls)
    shared = parse_labels([f"{k}={v}" for k, v in labels.items()], {str(i): c.info for i, c in enumerate(given)})
    for i, control in enumerate(given):
        warn_of_parts(control.info, shared[str(i)])
    return together(*(c.fixed(shared[str(i)], strength) for i, c in enumerate(given)))


@dataclass(frozen=True)
class _Obeying:
    """What draws images that obey: a model, the reward and the method that make it so, and who looks at the images."""

    model: Any
    reward: Reward | None
    method: Preset | None
    tests: Tests


def _obeying(
    model: Any, classifiers: Sequence[FittedClassifier | NoisyClassifier], labels: Mapping[str, str | float], strength: float,
    reward: Reward | None, method: Preset | None, watcher: Watcher,
) -> _Obeying:  # fmt: skip
    """A model that classifiers guide: those of clean pictures through x0, those of noisy latents as they are."""
    if not hasattr(model, "denoiser"):
        raise TiltingError("classifiers guide the pre-trained model: give it in the place of controls")
    infos = {str(i): ControlInfo((c.schema,)) for i, c in enumerate(classifiers)}
    parse_labels([f"{k}={v}" for k, v in labels.items()], infos, "classifier")
    noisy = [c for c in classifiers if isinstance(c, NoisyClassifier)]
    if noisy:
        if len(noisy) < len(classifiers):
            raise TiltingError("some classifiers are of clean pictures and some of noisy latents: guide by one kind")
        shapes = {tuple(c.net.config["shape"]) for c in noisy}
        if shapes != {tuple(model.latent_shape)}:
            raise TiltingError(f"a classifier of noisy latents of another model cannot guide {model.name!r}")
        tests = {c.schema.label: (OfPictures(c, model.encode, model.schedule), labels[c.schema.label]) for c in noisy}
        return _Obeying(guided_by(model, noisy, labels, strength, watcher), reward, method, tests)
    if reward is not None or method is not None:
        raise TiltingError("classifiers of clean pictures guide by dps with log p(y | x) as its reward: leave both out")
    clean = {c.schema.label: c for c in classifiers if isinstance(c, FittedClassifier)}
    parts = [Likelihood(clean[k], clean[k].schema.target(v), f"likelihood:{k}={v}") for k, v in labels.items()]
    whole = parts[0] if len(parts) == 1 else combine(parts)
    guided = reconstruction_guidance(strength, watch=watcher)
    return _Obeying(model, whole, guided, {k: (clean[k], v) for k, v in labels.items()})


def condition_sample(
    controls: Control | Sequence[Control] | StableDiffusion, prompts: str | Sequence[str], labels: Mapping[str, str | float],
    strength: float = 1.0, reward: Reward | None = None, method: Preset | None = None, steps: int | None = None,
    cfg: float | None = None, eta: float | None = None, seed: int = 0, images: int = 1, negative: str = "",
    batch_size: int = 16, classifiers: FittedClassifier | NoisyClassifier | Sequence[FittedClassifier | NoisyClassifier] = (),
) -> Result:  # fmt: skip
    """Draw images that obey labels; any method and reward of `tilting.generate` on top.

    Args:
        controls, labels, strength: see `compose`. With ``classifiers`` the model itself, and γ of guidance.
        prompts, reward, method, steps, cfg, eta, seed, images, negative, batch_size: see `tilting.generate`.
        classifiers: of labels, from `condition_fit`: of clean pictures for reconstruction guidance (the preset dps, with log p
            as its reward), of noisy latents for classifier guidance.

    Returns:
        Images and a manifest, whose records and summary also have the path KL and what the classifiers say.

    Raises:
        TiltingError: for settings that cannot work.
    """
    words, watcher = check_prompts([prompts] if isinstance(prompts, str) else list(prompts)), Watcher()
    if images < 1:
        raise TiltingError(f"images must be at least 1, not {images}")
    guides = list(classifiers) if isinstance(classifiers, Sequence) else [classifiers]
    if guides:
        made = _obeying(controls, guides, labels, strength, reward, method, watcher)
    else:
        given: Any = [controls] if isinstance(controls, Control) else controls
        model = compose(given, labels, strength)
        model.watch = watcher
        made = _Obeying(model, reward, method, {k: test for c in given for k, test in c.tests(labels).items()})
    who = identities(words, seed, images)
    options = {"steps": steps, "cfg": cfg, "eta": eta, "negative_prompt": negative, "batch_size": batch_size}
    request = plan(made.model, who, made.method, made.reward, **options)
    if guides:
        check_noise(made.model.schedule, request.steps)
    kl = watcher.kl = PathKl(made.model.schedule.grid(request.steps), request.eta)
    judge, pictures = judge_of(made.model.name), []
    records: list[dict[str, Any]] = []
    counts = Counts()
    for event in draw(made.model, request):
        if isinstance(event, Drawn):
            pictures.append(event.images)
            records += note(records_of(event, judge), event.images, kl, made.tests)
            counts += event.counts
    return Result(torch.cat(pictures), {"images": records, "summary": {**summarise(records, counts), **sum_up(records)}})
