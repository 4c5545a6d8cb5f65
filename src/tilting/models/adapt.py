"""Changes of a reward's networks for training: a LoRA of their own, or dropout inside (Clark et al. 2024).

r_φ = adapt(ξ, φ), the critic of DPG (C.2): a LoRA on the linear layers of the networks in a reward, those of its text
tower left out (its embeddings are kept between calls, without gradient).

Reward dropout (B.8): units of the aesthetic classifier dropped between its layers; of a reward without such a head, units of
the image's features before CLIP's projection. One mask a training step, the same for all images and calls of it, keyed by
(seed, step), so that a resumed run and one over more processes are the same run.

Copies share the reward's tensors: they cost no memory of weights, and the reward itself stays what it was.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tilting.features.linear_head import LinearHead
from tilting.models.switches import networks
from tilting.types import Reward, TiltingError


def _copied(reward: Reward) -> Reward:
    return copy.deepcopy(reward, {id(t): t for n in networks(reward) for t in (*n.parameters(), *n.buffers())})


def adapted(reward: Reward, rank: int = 8, seed: int = 0) -> tuple[Reward, dict[str, nn.Parameter]] | None:
    """A copy of a reward that begins as the reward, and what there is to train of it, float32.

    Args:
        reward: left as it is.
        rank: of the LoRA on each linear layer.
        seed: of its initial weights.

    Returns:
        None for a reward in which there are no linear layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    mine = _copied(reward)
    trained: dict[str, nn.Parameter] = {}
    for n, network in enumerate(networks(mine)):
        closed = tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, nn.MultiheadAttention))
        linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        targets = [name for name in linear if name and "text_" not in name and not name.startswith(closed)]
        if not targets:
            continue
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            torch.manual_seed(seed)
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network, "critic")
        for name, p in network.named_parameters():
            if ".lora_" in name:
                p.data = p.data.float()
                p.requires_grad_(True)
                trained[f"{n}.{name}"] = p
    return (mine, trained) if trained else None


@dataclass(frozen=True)
class DropoutReward:
    """A reward with dropout inside. Made by `with_dropout`.

    Attributes:
        reward: the copy that units are dropped in.
        share: of them.
        widths: of the layers' inputs.
        masks: of those inputs (width,), 0 or 1 / (1 - share); empty before the first `redraw`, when nothing is dropped.
    """

    reward: Reward
    share: float
    widths: tuple[int, ...]
    masks: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    def redraw(self, generator: torch.Generator) -> None:
        """Other masks, for a training step."""
        drawn = [torch.rand(width, generator=generator, device="cpu") for width in self.widths]
        self.masks[:] = [(one >= self.share) / (1 - self.share) for one in drawn]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.reward(images, prompts)


def with_dropout(reward: Reward, share: float) -> DropoutReward:
    """A copy of a reward in which units are dropped; see above for which.

    Args:
        reward: left as it is.
        share: of the units, at least 0 and below 1; .95 in the paper.

    Raises:
        TiltingError: for another share, or a reward that has neither a head nor CLIP's projection.
    """
    if not 0 <= share < 1:
        raise TiltingError(f"reward dropout must be at least 0 and below 1, not {share:g}")
    mine = _copied(reward)
    parts = [part for network in networks(mine) for part in network.modules()]
    heads = [part for part in parts if isinstance(part, LinearHead)]
    layers = [layer for head in heads for layer in [m for m in head.modules() if isinstance(m, nn.Linear)][1:]]
    projections = [getattr(part, "visual_projection", None) for part in parts]
    layers = layers or [layer for layer in projections if isinstance(layer, nn.Linear)]
    if not layers:
        raise TiltingError(f"the reward {reward.name!r} has no layer to drop units of: aesthetic and clip have")
    dropping = DropoutReward(mine, share, tuple(layer.in_features for layer in layers))
    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(_mask(dropping.masks, i))
    return dropping


def _mask(masks: list[Tensor], i: int) -> Any:
    return lambda layer, inputs: (inputs[0] * masks[i].to(inputs[0]),) if masks else None
