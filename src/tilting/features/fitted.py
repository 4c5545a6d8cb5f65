"""Fitted classifiers p(y | x) of a label, CTRL's step 2 (Zhao et al. 2024, section 4.2 and appendix D.1), with temperature.

The networks are the paper's: three residual blocks on raw pixels (Table 2) and an MLP on frozen CLIP embeddings (Table 3).
Classes have log p(y | x) = log softmax(z / T)_y; a number has N(y; m, T std²). Both are p(y | x)^(1/T), renormalised, the
temperature scaling of Guo et al. 2017. Fitting and calibration are not here.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.disk import make_folder, write_atomically, write_tensors
from tilting.errors import TiltingError, nearest
from tilting.features.classifier import HeadedClassifier
from tilting.features.clip import ClipEmbedder
from tilting.features.images import check_images
from tilting.features.once import asked_once, loaded
from tilting.features.packaged import POCKET_CLIP
from tilting.features.pixels import centred, resize
from tilting.features.schema import FILE, NOISY, WEIGHTS, Schema, read_config, read_schema
from tilting.foreign import read_tensors


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv x)))) + shortcut x), 3 x 3 convolutions, the first with the stride (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.short = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.short(x))


class ResidualCnn(nn.Module):
    """CTRL's Table 2: three residual blocks at full, half and a quarter of the size, the mean over space, a linear layer.

    Args:
        outputs: how many numbers per image.
        widths: channels of the blocks; the paper's by default.
        size: rows and columns of the pictures that it learnt from: of others it sees the largest centred square at that size.
            0 takes them as they are.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...] = (64, 128, 256), size: int = 0):
        super().__init__()
        self.config: dict[str, Any] = {"name": "cnn", "widths": list(widths)} | ({"size": size} if size else {})
        self.size = size
        pairs = enumerate(pairwise((3, *widths)))
        self.blocks = nn.Sequential(*(Block(a, b, 1 if i == 0 else 2) for i, (a, b) in pairs))
        self.linear = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(b, outputs) of images (b, 3, h, w) in [0, 1] of any size."""
        if self.size and tuple(images.shape[2:]) != (self.size, self.size):
            images = resize(centred(images), self.size, self.size)
        return self.linear(self.blocks(images).mean((2, 3)))


class EmbeddingMlp(nn.Module):
    """CTRL's Table 3: linear layers on frozen CLIP image embeddings, dropout between them.

    The table prints no non-linearity (nor has the aesthetic predictor it is modelled on), which makes the whole linear;
    "relu" puts one after each hidden layer.

    Args:
        outputs: how many numbers per image.
        embedder: where a transformers CLIP lies; None for the packaged pocket-clip.
        hidden: widths of the hidden layers; the paper's by default.
        dropout: after the hidden layers, as many as there are; the rates are not in the paper, these are the predictor's.
        activation: "none" or "relu".

    Raises:
        TiltingError: the embedder does not load, or there is no such activation.
    """

    def __init__(
        self,
        outputs: int,
        embedder: str | None = None,
        hidden: tuple[int, ...] = (1024, 128, 64, 16),
        dropout: tuple[float, ...] = (0.2, 0.2, 0.1, 0.0),
        activation: str = "none",
    ):
        super().__init__()
        if activation not in ("none", "relu"):
            raise TiltingError(f"there is no activation {activation!r}{nearest(activation, ('none', 'relu'))}")
        self.config: dict[str, Any] = {"name": "mlp", "embedder": embedder, "hidden": list(hidden)}
        self.config |= {"dropout": list(dropout), "activation": activation}
        self.embedder = loaded(ClipEmbedder, POCKET_CLIP if embedder is None else embedder)
        layers: list[nn.Module] = []
        for (a, b), rate in zip(pairwise((self.embedder.dim, *hidden)), dropout, strict=True):
            layers += [nn.Linear(a, b), nn.ReLU() if activation == "relu" else nn.Identity(), nn.Dropout(rate)]
        self.head = nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))

    def forward(self, images: Tensor) -> Tensor:
        """(b, outputs) of images (b, 3, h, w) in [0, 1]; ``head`` does it from embeddings (b, dim)."""
        return self.head(self.embedder.image(images))


UNFIT = (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError)
"""What a network raises that is made by a file's options, or given another's weights."""
NETWORKS: dict[str, Any] = {"cnn": ResidualCnn, "mlp": EmbeddingMlp, "folder": HeadedClassifier}


def log_prob(schema: Schema, outputs: Tensor, y: Tensor, temperature: Tensor | float | None = None) -> Tensor:
    """log p(y | x) from a network's outputs.

    Args:
        schema: what the outputs mean.
        outputs: (b, schema.outputs).
        y: (b,) indices of classes, or numbers in the unit of the label; on any device.
        temperature: instead of the schema's, such as a tensor that is being fitted.

    Returns:
        (b,) in nats; a density over the label's unit for "gaussian".
    """
    t = torch.as_tensor(schema.temperature if temperature is None else temperature).to(outputs)
    if schema.kind == "classes":
        return (outputs / t).log_softmax(-1).gather(1, y.long().to(outputs.device)[:, None])[:, 0]
    gap = ((y - schema.shift).to(outputs) - schema.scale * outputs[:, 0]) / schema.std
    return -0.5 * (gap.square() / t + torch.log(2 * math.pi * t)) - math.log(schema.std)


class FittedClassifier(nn.Module):
    """A network and what its outputs mean.

    Attributes:
        net: `ResidualCnn` or `EmbeddingMlp`.
        schema: the label, its values, and the temperature.
    """

    def __init__(self, net: ResidualCnn | EmbeddingMlp, schema: Schema):
        super().__init__()
        self.net, self.schema = net, schema

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schema.told})"

    @asked_once
    def forward(self, images: Tensor) -> Tensor:
        """(b, schema.outputs) before any temperature; images (b, 3, h, w) float in [0, 1]."""
        check_images(images)
        weight = next(self.net.parameters())
        if images.device != weight.device:
            self.to(images.device)
        return self.net(images.to(weight.dtype))

    def log_prob(self, images: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) (b,) at the schema's temperature, for y (b,) as `log_prob` has it; differentiable in the images."""
        return log_prob(self.schema, self(images), y)


def save_classifier(classifier: Any, folder: Path) -> None:
    """Write float32 classifier.safetensors, then classifier.json; the weights of a frozen embedder are not written.

    Args:
        classifier: a `FittedClassifier`, or one of noisy latents (`tilting.conditioning.noisy`).
        folder: of its own.
    """
    make_folder(folder)
    config = {"schema": asdict(classifier.schema), "network": classifier.net.config}
    config |= {"model": classifier.model} if hasattr(classifier, "model") else {}
    state = {k: v.contiguous() for k, v in classifier.net.state_dict().items() if not k.startswith("embedder.")}
    write_tensors(folder / WEIGHTS, {k: v.cpu().float() if v.is_floating_point() else v.cpu() for k, v in state.items()})
    write_atomically(folder / FILE, (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())


def load_classifier(folder: Path) -> FittedClassifier:
    """Read what `save_classifier` wrote, frozen and in eval mode.

    Raises:
        TiltingError: no classifier there, an unknown network, or weights of another one.
    """
    network, schema = dict(read_config(folder)["network"]), read_schema(folder)
    name = str(network.pop("name", ""))
    if name == NOISY:
        raise TiltingError(f"the classifier in {str(folder)!r} is of noisy latents: this needs one of clean pictures")
    if name not in NETWORKS:
        raise TiltingError(f"{str(folder / FILE)!r} asks for the network {name!r}{nearest(name, NETWORKS)}")
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in network.items()}
    try:
        net = NETWORKS[name](schema.outputs, **options)
        missing, surplus = net.load_state_dict(read_tensors(folder / WEIGHTS), strict=False)
    except UNFIT as error:
        raise TiltingError(f"the classifier in {str(folder)!r} does not load: {' '.join(str(error).split())[:200]}") from error
    missing = [key for key in missing if not key.startswith("embedder.")]
    if missing or surplus:
        first = missing[0] if missing else surplus[0]
        raise TiltingError(f"{str(folder / WEIGHTS)!r} {'lacks' if missing else 'has a surplus'} {first!r}")
    return FittedClassifier(net, schema).eval().requires_grad_(False)
