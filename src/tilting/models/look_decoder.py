"""A small autoencoder that decodes intermediate estimates, with gradients, instead of the model's own.

    image = d(x · s' + m'),  x = (z - m) / s        z: what the model's own decoder would be given; s and m of each decoder

Decoding is most of what an estimate costs: at 512 x 512 Stable Diffusion's own decoder costs more than a guided evaluation,
TAESD (AutoencoderTiny) a fortieth of it. What is kept and what is scored at the end is decoded by the model's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError
from tilting.features.hub import online
from tilting.lazy import torch
from tilting.models.families import CONFIG, config_of, kind_of, read_json
from tilting.models.names import find_model

if TYPE_CHECKING:
    from torch import Tensor

AUTO, BESIDE = "auto", "look_decoder"
"""The word for the known one, and the folder in a model's in which it is looked for first."""
KNOWN = {
    r"StableDiffusionXL|PixArtSigma": "madebyollin/taesdxl",
    r"StableDiffusion3": "madebyollin/taesd3",
    r"Flux(?!2)": "madebyollin/taef1",
    r"StableDiffusion|PixArt": "madebyollin/taesd",
}
"""What the classes of pipelines begin with -> the small autoencoder of their latents."""


@dataclass(frozen=True)
class LookDecoder:
    """A decoder of estimates.

    Attributes:
        vae: the small autoencoder.
        own: the configuration of the model's own.
    """

    vae: Any
    own: Any

    def decode(self, z: Tensor, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        """The picture, in [-1, 1], of what the model's own decoder would be given; its other arguments go unheard."""
        out = self.vae.decode(entering(self.vae.config, leaving(self.own, z)).to(self.vae.dtype), return_dict=return_dict)
        if not return_dict:
            return (out[0].to(z.dtype),)
        out.sample = out.sample.to(z.dtype)
        return out


def _numbers(config: Any, like: Tensor) -> tuple[Any, Any]:
    """(what latents are multiplied by for their decoder, and what is added), by its configuration."""
    scale, shift = 1 / (config.get("scaling_factor") or 1.0), config.get("shift_factor") or 0.0
    if config.get("latents_mean") is None:
        return scale, shift
    told = (torch.tensor(config[name]).to(like) for name in ("latents_std", "latents_mean"))
    std, mean = (one.reshape(-1, *[1] * (like.ndim - 2)) for one in told)
    return std * scale, mean


def leaving(config: Any, z: Tensor) -> Tensor:
    """The loop's latents of a decoder's input z."""
    scale, shift = _numbers(config, z)
    return (z - shift) / scale


def entering(config: Any, x: Tensor) -> Tensor:
    """A decoder's input of the loop's latents x."""
    scale, shift = _numbers(config, x)
    return x * scale + shift


def as_look_decoder(small: Any, vae: Any, name: str, folder: str) -> LookDecoder:
    """A small autoencoder as a look decoder, frozen. Raises TiltingError where one of it and the model's own is of videos."""
    if len({any(p.ndim == 5 for p in one.parameters()) for one in (small, vae)}) > 1:
        what = f"the look decoder {folder!r} is a {type(small).__name__}, and {name!r} has a {type(vae).__name__}"
        raise TiltingError(f"{what}, one of them of pictures and one of videos: leave --look-decoder out")
    return LookDecoder(small.eval().requires_grad_(False), vae.config)


def find_look_decoder(model: str, asked: str) -> str:
    """The folder or hub id of the decoder of a model's estimates, its configuration read and no weight.

    Args:
        model: its name, folder or hub id.
        asked: a folder, a hub id, or "auto": the folder look_decoder in the model's, else the known one of its family.

    Raises:
        TiltingError: where there is none, or one of other latents or another size of pictures.
    """
    source = find_model(model)
    found = asked
    if asked == AUTO:
        known = next((hub for words, hub in KNOWN.items() if re.match(words, kind_of(source))), None)
        beside = Path(config_of(source)) / BESIDE
        if not beside.is_dir() and (known is None or model == "pocket"):
            own = "whose own decoder is small" if model == "pocket" else f"a {kind_of(source)}"
            raise TiltingError(f"no look decoder is known for {model!r}, {own}: give --look-decoder the folder of one")
        found = str(beside) if beside.is_dir() else str(known)
    check_look_decoder(read_json(source, f"vae/{CONFIG}"), found)
    return found


def check_look_decoder(own: Mapping[str, Any], folder: str) -> None:
    """Refuse a folder, or hub id, that holds no decoder of the latents of an autoencoder of this configuration; no weight is
    read. Raises TiltingError."""
    try:
        theirs = read_json(folder, CONFIG)
    except TiltingError:
        way = "" if online() else ", and the hub is off"
        raise TiltingError(
            f"there is no look decoder {folder!r}: it has no {CONFIG}{way}; give --look-decoder a folder"
        ) from None
    kind = str(theirs.get("_class_name"))
    if not kind.startswith(("Autoencoder", "AsymmetricAutoencoder")):
        raise TiltingError(f"a look decoder is an autoencoder, such as an AutoencoderTiny, and {folder!r} is a {kind}")
    for what, mine, its in (
        (
            "channels of latents",
            own.get("latent_channels", own.get("z_dim")),
            theirs.get("latent_channels", theirs.get("z_dim")),
        ),
        ("pixels to a latent's side", _side(own), _side(theirs)),
    ):
        if None not in (mine, its) and mine != its:
            raise TiltingError(f"the look decoder {folder!r} has {its} {what}, the model's own {mine}")


def _side(config: Any) -> int | None:
    """Pixels to a latent's side, of those autoencoders whose configuration tells."""
    blocks = config.get("num_decoder_blocks") or config.get("block_out_channels")
    return None if blocks is None else config.get("upsampling_scaling_factor", 2) ** (len(blocks) - 1)
