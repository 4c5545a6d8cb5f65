"""Learned inputs of the sampler (Clark et al. 2024, B.12): a guidance scale for each step, a negative prompt for each prompt.

    eps = eps(ē) + w(t) (eps(e) - eps(ē)),   ē = e_negative + MLP(self-attention(e)),   e: the prompt's text embedding

w is piecewise linear in the network's time with a knot at every step of the training grid, constant outside of them: a grid
with other steps stretches or compresses it. The MLP's last layer is 0 at first and w the scale that was asked for, so that
training starts from the model as it is (the paper has no e_negative and does not say how it begins). With a strength s they
are applied in part: cfg + s (w(t) - cfg), e_negative + s MLP(...); 0 is the model without them.

    sampler_inputs.safetensors    the tensors          beside a LoRA's weights, which plain diffusers loads as before
    sampler_inputs.json           knots and widths
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilting.disk import make_folder, write_atomically, write_tensors
from tilting.foreign import read_json, read_tensors
from tilting.models.lora_file import INPUTS as WEIGHTS
from tilting.models.pipeline import Pipeline
from tilting.models.prompt_embeds import NEGATIVE, PROMPT, negatives
from tilting.schedule import correction
from tilting.types import Denoise, Prediction, TiltingError, Time

SHAPE = "sampler_inputs.json"
PAIR = 2.0
"""A scale at which any pipeline that can make a pair makes one."""
NEEDED = ": one that is told its scale needs a negative prompt"


class Guidance(nn.Module):
    """w(t).

    Args:
        times: of the knots, as the network is told them, in any order.
        scales: at the knots.
    """

    def __init__(self, times: Sequence[float], scales: Sequence[float]):
        super().__init__()
        pairs = sorted(zip(times, scales, strict=True))
        self.times = [float(t) for t, _ in pairs]
        self.weight = nn.Parameter(torch.tensor([w for _, w in pairs], dtype=torch.float32, device="cpu"))

    def forward(self, t: float) -> Tensor:
        """The scale at a time, a scalar."""
        for i, right in enumerate(self.times):
            if t <= right:
                if i == 0 or t == right:
                    return self.weight[i]
                part = (t - self.times[i - 1]) / (right - self.times[i - 1])
                return (1 - part) * self.weight[i - 1] + part * self.weight[i]
        return self.weight[-1]


class Negative(nn.Module):
    """MLP(self-attention(e)): (m, tokens, width) of text embeddings of that shape; zero at first.

    Args:
        width: of an embedding.
        hidden: of the MLP.
        seed: of the initial weights.
    """

    def __init__(self, width: int, hidden: int | None = None, seed: int = 0):
        super().__init__()
        self.width, self.hidden, self.heads = width, hidden or width, max(h for h in (8, 4, 2, 1) if width % h == 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.mix, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.inner, self.last = nn.Linear(width, self.hidden), nn.Linear(self.hidden, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, text: Tensor) -> Tensor:
        m, tokens, width = text.shape
        q, k, v = self.mix(text.float()).reshape(m, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(m, tokens, width)
        return self.last(F.gelu(self.inner(self.join(seen))))


class SamplerInputs(nn.Module):
    """What is learned, either part or both; the parameters' names begin with "guidance." and "negative."."""

    def __init__(self, guidance: Guidance | None = None, negative: Negative | None = None):
        super().__init__()
        self.guidance, self.negative = guidance, negative

    def on(self, model: Any, strength: float = 1.0) -> Learned:
        """The model with these inputs. Raises TiltingError for a model that they do not fit."""
        check_learns(model)
        if model.long_prompts != "cut":
            raise TiltingError("learned sampler inputs read prompts as they are cut: leave long-prompts out")
        if self.negative is not None and self.negative.width != (width := text_width(model)):
            raise TiltingError(f"this negative prompt is of another model: its width is {self.negative.width}, not {width}")
        return Learned(model, self, strength)

    def names(self) -> list[str]:
        """Which of them were learned."""
        return [name for name in ("guidance", "negative") if getattr(self, name) is not None]

    def scales(self) -> list[float] | None:
        """w at the knots, in the order of sampling (noise first)."""
        return None if self.guidance is None else self.guidance.weight.detach().flip(0).tolist()


class Learned:
    """A model whose guidance scale and negative prompt are learned ones; all else is the model's own.

    Args:
        model: the model itself.
        inputs: what was learned.
        strength: how much of it.
    """

    def __init__(self, model: Pipeline, inputs: SamplerInputs, strength: float = 1.0):
        self.bare, self.inputs, self.strength = model, inputs, strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["bare"], name)

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "", noise: Tensor | None = None) -> Denoise:
        """See `Pipeline.denoiser`; a pair is evaluated whatever the scale. Raises TiltingError where there is none."""
        model, (guidance, other) = self.bare, (self.inputs.guidance, self.inputs.negative)
        asked = cfg if cfg > 1 else PAIR
        if model.pair(asked, negative) == 1:
            raise TiltingError(f"{model.name!r} makes no pair of this request, which learned sampler inputs are of{NEEDED}")
        network, kind = model.guided_network(prompts, asked, negative, linear=True, noise=noise), model.schedule.kind
        changes = [] if other is None else [negatives(lambda text, move=other: self.strength * move(text))]

        def denoise(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            with model.patched.editing_prompt_embeds(*changes):
                output, difference, _, seen = network(x, t, rows)
            scale = cfg if guidance is None else cfg + self.strength * (guidance(t.t) - cfg)
            eps, x0 = model.predict(output + (scale - asked) * difference, seen, t)
            return Prediction(eps, x0, correction(kind, difference, t))

        return denoise


def check_learns(model: Any) -> None:
    """Refuse a model that learns no inputs of its sampler. Raises TiltingError."""
    if not hasattr(model, "guided_network"):
        raise TiltingError(
            f"learned sampler inputs are of diffusers' pipelines, which {getattr(model, 'name', model)!r} is not"
        )


def text_width(model: Pipeline) -> int:
    """Numbers of an embedding of a text. Raises TiltingError for a model that does not say which of its texts is which."""
    found = model.texts([model.any_prompt], PAIR, " ")[0]
    if not all(isinstance(found.get(name), Tensor) for name in (PROMPT, NEGATIVE)):
        raise TiltingError(f"{model.name!r} does not read a negative prompt beside a prompt: there is none to learn")
    return found[PROMPT].shape[-1]


def begin(
    model: Any, learn: Sequence[str], grid: Sequence[Time], cfg: float, seed: int = 0, start: SamplerInputs | None = None
) -> SamplerInputs | None:
    """What training starts from: fresh inputs for those to be learned, those of ``start`` where it has them.

    Args:
        model: whose they are.
        learn: of "lora", "guidance", "negative".
        grid: T + 1 points of the sampler; w gets a knot at the first T.
        cfg: w at first.
        seed: of the negative prompt's network.
        start: inputs to go on from; its w is read off at the knots of this grid.
    """
    guidance, negative = (start.guidance, start.negative) if start is not None else (None, None)
    if guidance is not None or "guidance" in learn:
        with torch.no_grad():
            times = [t.t for t in grid[:-1]]
            guidance = Guidance(times, [cfg if guidance is None else guidance(t).item() for t in times])
    if negative is None and "negative" in learn:
        check_learns(model)
        negative = Negative(text_width(model), seed=seed)
    return None if guidance is None and negative is None else SamplerInputs(guidance, negative)


def save_inputs(inputs: SamplerInputs, folder: Path) -> None:
    """Write them into a LoRA's folder, each file atomically."""
    make_folder(folder)
    shape: dict[str, Any] = {}
    if inputs.guidance is not None:
        shape["guidance"] = {"times": inputs.guidance.times}
    if inputs.negative is not None:
        shape["negative"] = {"width": inputs.negative.width, "hidden": inputs.negative.hidden}
    state = {name: p.detach().float().cpu().contiguous() for name, p in inputs.named_parameters()}
    write_atomically(folder / SHAPE, (json.dumps(shape) + "\n").encode())
    write_tensors(folder / WEIGHTS, state, {"format": "pt"})


def read_inputs(folder: Path) -> SamplerInputs | None:
    """The inputs in a LoRA's folder, or None where there are none. Raises TiltingError if they cannot be read."""
    if not (folder / WEIGHTS).is_file():
        return None
    try:
        shape, state = read_json(folder / SHAPE), read_tensors(folder / WEIGHTS)
        knots, widths = shape.get("guidance"), shape.get("negative")
        guidance = Guidance(knots["times"], [0.0] * len(knots["times"])) if knots else None
        inputs = SamplerInputs(guidance, Negative(widths["width"], widths["hidden"]) if widths else None)
        inputs.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        raise TiltingError(f"{str(folder / WEIGHTS)!r} and its {SHAPE} are not learned sampler inputs") from None
    return inputs.requires_grad_(False)
