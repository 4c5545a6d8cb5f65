"""Pictures that are numbers: a group with one that is not is drawn again under watch, and the part that made the first number
that is not finite is named, with the precision that avoids it.

Nothing is watched before: a group that is finite pays for one look at its finished images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from tilting.errors import RewardError, TiltingError
from tilting.generation.plan import decoder_of, looker_of
from tilting.lazy import torch
from tilting.types import Denoise, Prediction, Time

if TYPE_CHECKING:
    from torch import Tensor

TEXT, NETWORK, VAE, REWARD = "the text encoder", "the network", "the autoencoder", "the reward"
LOOK = "the look decoder"
GRADIENT, LATENTS = "the gradient of the reward", "the latents it began at"
NAMES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16", "torch.float64": "fp64"}


class NotFinite(TiltingError):
    """A number that is not finite, and whose it is.

    Attributes:
        part: what made it, as far as that is known.
        when: at which step, or "".
        row: the index of its image in the group.
    """

    def __init__(self, part: str = "", when: str = "", row: int = 0):
        super().__init__(f"{part or 'drawing'} made a number that is not finite")
        self.part, self.when, self.row = part, when, row


def finite(value: Any) -> bool:
    """Whether every number in a tensor, or in the tensors of a text or of a sequence, is finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if is_dataclass(value):
        return all(finite(getattr(value, one.name)) for one in fields(value))
    return all(finite(part) for part in value) if isinstance(value, list | tuple) else True


class Watched:
    """A model each of whose parts is asked what it makes of finite numbers; all else is the model's own.

    Args:
        model: what is watched.
    """

    def __init__(self, model: Any):
        self._model, self._steps, self._at, self._asked = model, 0, -1.0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def _when(self) -> str:
        return f" at step {self._steps}" if self._steps else ""

    def denoiser(self, prompts: list[str], cfg: float, negative: str = "", **how: Any) -> Denoise:
        """See `tilting.generation.plan.Model`."""
        texts: Callable[..., list[dict[str, Any]]] | None = getattr(self._model, "texts", None)
        if texts is not None and not finite([list(one.values()) for one in texts(prompts, cfg, negative)]):
            raise NotFinite(TEXT)
        denoise = self._model.denoiser(prompts, cfg, negative, **how)

        def watched(x: Tensor, t: Time, rows: Tensor) -> Prediction:
            if self._at != t.t:
                self._at, self._steps = t.t, self._steps + 1
            if not finite(x):
                raise NotFinite(GRADIENT if self._asked else LATENTS, self._when())
            self._asked = True
            prediction = denoise(x, t, rows)
            if not finite(list(prediction)):
                raise NotFinite(NETWORK, self._when())
            return prediction

        return watched

    def start(self, prompts: Sequence[str]) -> Tensor | None:
        """See `tilting.generation.plan.Model`."""
        begin = getattr(self._model, "start", None)
        clean = None if begin is None else begin(prompts)
        if not finite(clean):
            raise NotFinite(VAE)
        return clean

    def decoder(self, prompts: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
        """See `tilting.generation.plan.Model`."""
        return self._watching(decoder_of(self._model, prompts), VAE)

    def _watching(self, decode: Callable[[Tensor, Tensor], Tensor], part: str) -> Callable[[Tensor, Tensor], Tensor]:
        def watched(latents: Tensor, rows: Tensor) -> Tensor:
            images = decode(latents, rows)
            if finite(latents) and not finite(images):
                raise NotFinite(part, self._when())
            return images

        return watched

    def looker(self, prompts: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor] | None:
        """See `tilting.generation.plan.Model`."""
        look = looker_of(self._model, prompts)
        return None if look is None else self._watching(look, LOOK)

    def encode(self, images: Tensor) -> Tensor:
        """See `tilting.generation.plan.Model`."""
        latents = self._model.encode(images)
        if not finite(latents):
            raise NotFinite(VAE)
        return latents


def blame(model: Any, who: str, again: Callable[[Any], Iterable[object]]) -> TiltingError:
    """The refusal of a group whose pictures are not finite.

    Args:
        model: what drew it.
        who: whose pictures they are, for people.
        again: draws the group again, with another model in this one's place.
    """
    try:
        for _ in again(Watched(model)):
            pass
    except NotFinite as error:
        return TiltingError(
            f"{who} is not finite: {error.part} made the first such number{error.when}{_way(model, error.part)}"
        )
    except RewardError as error:
        return TiltingError(f"{who} is not finite: {REWARD} made the first such number: {error}")
    return TiltingError(f"{who} is not finite, and was when it was drawn again: what draws it is not the same twice")


def _way(model: Any, part: str) -> str:
    """What avoids it: the precision, unless the weights themselves are no numbers or the precision is the largest there is."""
    if part == LATENTS:
        return ", for they were given so"
    networks = _networks(model, part)
    broken = "hold NaN ({}), which no precision avoids: the file, or a LoRA, is broken"
    for network in networks:
        if name := _nan(network):
            return f"; its weights {broken.format(name)}"
    for component, network in _components(model).items():  # a ControlNet's, an image encoder's, what a picture was encoded by
        if name := _nan(network):
            return f"; the weights of its {component} {broken.format(name)}"
    found = next((NAMES.get(str(p.dtype), str(p.dtype)) for network in networks for p in network.parameters()), None)
    option = "precision-vae" if part == VAE else "precision"
    if found == "fp16":
        return f", in fp16: use {option} bf16 or fp32"
    if found == "bf16":
        return f", in bf16: use {option} fp32"
    return f", in {found}, than which no precision is wider: look at its weights, LoRAs and settings" if found else ""


def _nan(network: Any) -> str | None:
    """A parameter that holds NaN."""
    return next((name for name, p in network.named_parameters() if p.isnan().any()), None)


def _components(model: Any) -> dict[str, Any]:
    """The networks of a pipeline, by diffusers' names."""
    model = model if hasattr(model, "backbone") else getattr(model, "model", model)
    held = getattr(getattr(model, "pipe", None), "components", {})
    return {name: one for name, one in held.items() if isinstance(one, torch.nn.Module)}


def _networks(model: Any, part: str) -> list[Any]:
    """The networks of a part, as far as a model has them by diffusers' names."""
    model = model if hasattr(model, "backbone") else getattr(model, "model", model)
    if part == TEXT:
        return [one for name, one in _components(model).items() if name.startswith("text_encoder")]
    if part == VAE:
        names = ["vae"]
    elif part == LOOK:
        names, model = ["vae"], getattr(model, "look_decoder", None)
    else:
        names = ["backbone"]
    held = [getattr(model, name, None) for name in names]
    return [one for one in held if isinstance(one, torch.nn.Module)]
