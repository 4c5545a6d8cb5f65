"""FLOP and memory of a run by part, counted on fake tensors, which have shapes but no data.

    FLOP = Σ counts · units       counts: the loop run on stubs (`tilting.cost`); a unit: one image through a part, there, or
                                  there and back, by torch's FlopCounterMode
    peak = weights that are there + the most that lives at once of an evaluation, a look, a gradient's round, by storages

A reward's networks are real, and asked once about a picture; one that has none (a service, a rule) counts for nothing.
Units of several images are multiples of one's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tilting.config.training import bytes_trained
from tilting.lazy import torch
from tilting.models.inputs import resolve_inputs
from tilting.models.look_decoder import find_look_decoder
from tilting.models.lora_targets import target_names
from tilting.models.placement import FULL, Switches, dtype_of
from tilting.models.skeleton import skeleton
from tilting.models.switches import networks, parts_of
from tilting.rewards.weighted_sum import as_sum

if TYPE_CHECKING:
    from torch import Tensor

BITS = {None: None, "8bit": 1.0, "int8": 1.0, "4bit": 0.5 + 4 / 64}
"""Bytes of a quantized weight, its scales among them; None is as it is."""
PICTURE = "a photo of a fox"


class Unit(NamedTuple):
    """One image through a part.

    Attributes:
        flop: floating-point operations, two a multiply-add.
        peak: bytes that live at once beside weights.
        held: of them, what waits for the way back.
    """

    flop: float
    peak: int
    held: int = 0


@dataclass(frozen=True)
class Sizes:
    """What a model and a reward take, by part.

    Attributes:
        weights: bytes by part: network, autoencoder, look decoder, text encoders, reward.
        units: one image by what is done: text, evaluation, slope (an evaluation there and back), decode, look, steep (a look
            there and back), reward, reward back, round (an evaluation and a look there and back, reward left out).
        packed: bytes of the network, and of its largest block, which group offload holds, by what `Switches.quantize` says.
        encoder: bytes of the largest text encoder.
        trained: bytes of a LoRA, float32, its gradient and its optimiser's two moments.
    """

    weights: Mapping[str, int]
    units: Mapping[str, Unit]
    packed: Mapping[str | None, tuple[int, int]]
    encoder: int
    trained: int = 0


def _modes() -> tuple[Any, Any]:
    """(a counter of FLOP, a tracker of live bytes), made when torch is there."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def back(slope: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(slope, q, k, v)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # what fake tensors take, as fused kernels do elsewhere
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    class Living(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0
            self.known: dict[int, int] = {}

        def see(self, tensor: Tensor, counts: bool = True) -> None:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes() if counts else 0
            if key not in self.known:
                self.known[key] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, key)

        def gone(self, key: int) -> None:
            self.now -= self.known.pop(key)

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self.see(leaf)
            return out

    class Everywhere:
        """Stands where modules were told apart, by hooks that forbid some gradients."""

        parents: ClassVar[set[str]] = {"Global"}

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    flop: Any = FlopCounterMode(display=False, custom_mapping={fused: attention, backward: back})
    flop.mod_tracker = Everywhere()
    return flop, Living()


def measured(call: Callable[[Tensor], Tensor], x: Tensor, weights: Any = (), back: bool = False, count: bool = True) -> Unit:
    """What a call takes.

    Args:
        call: of x.
        x: a tensor.
        weights: networks whose weights, and views of them, are not of it.
        back: and back again to x.
        count: FLOP too.
    """
    flop, living = _modes()
    first = x.detach().requires_grad_() if back else x
    for one in weights:
        for tensor in (*one.parameters(), *one.buffers()):
            living.see(tensor, counts=False)
    with torch.set_grad_enabled(back), flop if count else nullcontext(), living:
        made = call(first)
        held = living.now
        if back:
            torch.autograd.grad(made.float().sum(), first)
    return Unit(float(flop.get_total_flops()) if count else 0.0, living.peak, held)


def sizes(config: Any, reward: Any = None, recompute: bool | None = None, count: bool = True, back: bool = True) -> Sizes:
    """What the model of a config, and a reward that is loaded, take. No weight of the model is read.

    Args:
        config: of `tilting generate` or `tilting finetune`.
        reward: what scores; None where nothing does.
        recompute: make activations again on the way back; default as the config says.
        count: FLOP too, which takes longer than bytes alone.
        back: the ways back too; units of those are nothing otherwise.

    Raises:
        TiltingError: for a model whose call is not known (`tilting.models.skeleton`).
    """
    switches = Switches.of(config)
    dtype, vae = dtype_of(config.precision or FULL), dtype_of(switches.precision_vae or FULL)
    look = find_look_decoder(config.model, switches.look_decoder) if switches.look_decoder else None
    told = {name: value for name, value in resolve_inputs(config)[0].items() if isinstance(value, int | float)}
    model, _ = skeleton(config.model, dtype, vae, look, told)
    if switches.recompute if recompute is None else recompute:
        model.checkpoint()
    parts = parts_of(model)
    small = [] if model.look_decoder is None else [model.look_decoder.vae]
    everything = [*parts.values(), *small]
    t, row = model.schedule.grid(max(4, model.default_steps))[1], torch.zeros(1, dtype=torch.long)
    x = torch.zeros(1, *model.latent_shape)
    request = ([PICTURE], config.cfg, config.negative_prompt)
    denoise, decode = model.denoiser(*request), model.decoder([PICTURE])
    seen = model.looker([PICTURE]) or decode
    there: dict[str, Callable[[Tensor], Tensor]] = {
        "evaluation": lambda z: denoise(z, t, row).x0,
        "decode": lambda z: decode(z, row),
        "look": lambda z: seen(z, row),
    }
    steep = {"slope": there["evaluation"], "steep": there["look"], "round": lambda z: seen(denoise(z, t, row).x0, row)}
    with torch.no_grad():
        there["decode"](there["evaluation"](x))  # what is found out once is found out
    model.patched.cache.clear()
    units = {"text": measured(lambda z: (model.texts(*request), z)[1], x, weights=everything, count=count)}
    for key, call in there.items():
        units[key] = measured(call, x, weights=everything, count=count) if key != "look" or small else units["decode"]
    for key, call in steep.items():
        units[key] = measured(call, x, weights=everything, back=True, count=count) if back else Unit(0, 0)
    scoring = networks(reward)
    units |= _scored(reward, scoring, tuple(model.image_shape), count, back)
    text = {key: part for key, part in parts.items() if key.startswith("text_encoder")}
    lists = [part for part in model.backbone.modules() if isinstance(part, torch.nn.ModuleList)]
    blocks = [block for one in lists for block in one] or [model.backbone]
    packed = {bits: (_bytes([model.backbone], per), max(_bytes([b], per) for b in blocks)) for bits, per in BITS.items()}
    held = {
        "network": packed[switches.quantize][0],
        "autoencoder": _bytes([model.vae]),
        "look decoder": _bytes(small),
        "text encoders": _bytes(text.values()),
        "reward": _bytes(scoring),
    }
    largest = max((_bytes([one]) for one in text.values()), default=0)
    names = target_names(model.backbone, config.target_modules) if getattr(config, "target_modules", None) else []
    layers = [model.backbone.get_submodule(name) for name in names]
    widths = [width for layer in layers for width in (layer.in_features, layer.out_features)]
    trained = sum(bytes_trained((config.rank or 8) * width, config.optimizer) for width in widths)
    return Sizes(held, units, packed, largest, trained)


def _bytes(parts: Any, each: float | None = None) -> int:
    """Bytes of weights; of linear layers ``each`` a weight where it is given."""
    seen: dict[int, float] = {}
    for part in parts:
        for layer in part.modules():
            for name, p in layer.named_parameters(recurse=False):
                packed = each is not None and isinstance(layer, torch.nn.Linear) and name == "weight"
                seen[id(p)] = p.numel() * (each if packed and each is not None else p.element_size())
    return round(sum(seen.values()))


def _scored(reward: Any, scoring: list[Any], shape: tuple[int, ...], count: bool, steep: bool) -> dict[str, Unit]:
    """A reward's units for one picture, or a video's frames, of random pixels."""
    if not scoring:
        return {"reward": Unit(0, 0), "reward back": Unit(0, 0)}

    scorer = as_sum(reward) if len(shape) > 3 else reward  # a sum knows what of a video is scored

    def score(images: Tensor) -> Tensor:
        return scorer(images, [PICTURE])

    with getattr(next(scoring[0].parameters()), "fake_mode", nullcontext()):  # of a reward without weights
        pixels = torch.rand(1, *shape)
        score(pixels)  # what it keeps of a prompt is kept
        there = back = measured(score, pixels, weights=scoring, count=count)
        if steep and reward.differentiable:
            back = measured(score, pixels, weights=scoring, back=True, count=count)
    return {"reward": there, "reward back": back}


def flop(found: Sizes, paid: Mapping[str, float]) -> dict[str, float]:
    """FLOP of an image by part.

    Args:
        found: of model and reward.
        paid: calls by kind, as of `tilting.cost.Calls`.
    """
    unit = {key: one.flop for key, one in found.units.items()}
    check = 1 if found.weights["look decoder"] and paid["finals"] else 0  # of what the look decoder is off by
    return {
        "text encoders": unit["text"] if paid["finals"] else 0.0,
        "network": paid["evaluations"] * unit["evaluation"] + paid["evaluation_grads"] * unit["slope"],
        "looks": (paid["values"] + check) * unit["look"] + paid["value_grads"] * unit["steep"],
        "decoder": paid["finals"] * unit["decode"],
        "reward": (paid["values"] + paid["finals"] + check) * unit["reward"] + paid["value_grads"] * unit["reward back"],
    }
