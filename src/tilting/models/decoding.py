"""From latents to images by the end of a pipeline's own call, and from images to latents by its inverse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tilting.errors import TiltingError, out_of_memory
from tilting.lazy import torch
from tilting.models.cache import pytree
from tilting.models.intercepted_call import InterceptedCall, StepReached
from tilting.models.patched_pipeline import inf_to_nan, patched_attributes

if TYPE_CHECKING:
    from torch import Tensor

    from tilting.models.call import Call


def decode(call: Call, x: Tensor, prompts: Sequence[Any], look: Callable[..., Any] | None = None) -> Tensor:
    """Pictures (m, 3, h, w), or videos (m, frames, 3, h, w), in [0, 1] of clean latents; differentiable. ``look`` decodes in
    the autoencoder's place."""
    patched, kept = call.patched, []
    if patched.vae is None:
        return (inf_to_nan(x) / 2 + 0.5).clamp(0, 1)  # a model of pixels
    with patched.lock:
        decode = look or patched.vae.decode

        @functools.wraps(patched.vae.decode)
        def decoded(*given: Any, **more: Any) -> Any:
            out = decode(*given, **more)
            kept.append(out[0] if isinstance(out, tuple) else out.sample)
            return out

        with patched_attributes((patched.vae, "decode", decoded)):
            try:
                made = InterceptedCall(call, prompts, None, x).run()[0]
            except Exception as error:  # postprocessing by numpy, which takes no gradient, or no tensors
                if not kept or isinstance(error, TiltingError) or out_of_memory(error):
                    raise
                made = None
    if not isinstance(made, torch.Tensor):
        image = (inf_to_nan(kept[0]) / 2 + 0.5).clamp(0, 1)
        image = image.transpose(1, 2) if image.ndim == 5 else image
        _same(call, image, made)
        if image.shape[-3] != 3:
            raise TiltingError(f"a {type(patched.pipe).__name__} draws {image.shape[-3]} channels: pictures have 3")
        made = image
    return made.to(x.dtype)


def zeros_decoder(vae: Any) -> Callable[..., Any]:
    """A decoder of zeros in an autoencoder's own shapes, by its configuration: of a large picture a real decode takes as long
    as a step. One that has no configuration, or asks its weights for values, decodes."""
    real: Any = getattr(vae, "decode", None)

    def decode(z: Tensor, *given: Any, **more: Any) -> Any:
        try:
            with torch.device("meta"):
                kind: Any = type(vae)
                shapes = kind.from_config(vae.config).to(vae.dtype)
            all_given, all_more = pytree().tree_map_only(torch.Tensor, lambda one: one.to("meta"), ((z, *given), more))
            out = shapes.decode(*all_given, **all_more)
        except (AttributeError, RuntimeError, TypeError):
            return real(z, *given, **more)
        if isinstance(out, tuple):
            return (torch.zeros(out[0].shape, device=z.device), *out[1:])
        out.sample = torch.zeros(out.sample.shape, device=z.device)
        return out

    return decode


def _same(call: Call, image: Tensor, made: Any) -> None:
    """Refuse postprocessing that does more to a picture than to bring it into [0, 1]."""
    if made is None or not hasattr(made, "shape"):
        return
    theirs = torch.as_tensor(made).to(image).movedim(-1, -3)
    if theirs.shape != image.shape or not theirs.allclose(image.detach(), atol=1e-3, equal_nan=True):
        raise TiltingError(f"what a {type(call.patched.pipe).__name__} makes of its autoencoder's picture is not known")


def initial_latents(call: Call, prompts: Sequence[Any]) -> Tensor:
    """The clean latents (m, ...) that a call from pictures begins around; zeros where it begins at pure noise."""
    halt = InterceptedCall(call, prompts, 0, skip_networks=True, noiseless=True).run()
    return halt.sample[: len(prompts)].float() / (call.grid[0].alpha or 1.0)


def before_decoder(call: Call, x: Tensor, prompts: Sequence[Any]) -> Tensor:
    """The autoencoder's input for latents x, as the call scales and unpacks them."""

    def stop(z: Tensor, *_: Any, **__: Any) -> None:
        raise StepReached(z, None, z)

    patched = call.patched
    with patched.lock, patched_attributes((patched.vae, "decode", stop)):
        return InterceptedCall(call, prompts, None, x).run().output


def encode(call: Call, images: Tensor, prompts: Sequence[Any]) -> Tensor:
    """Latents (m, ...) of pictures (m, 3, h, w) or videos (m, frames, 3, h, w) in [0, 1]: `decode` backwards.

    Up to the autoencoder decoding is z = A x + b, A a scaled permutation (packing, mean, std, scale, shift), so that
    x = Aᵀ((z - b) / d²), d² = A Aᵀ 1, Aᵀ by one vector-Jacobian product. Where d = 0 the picture is not x's (outside an
    inpainting's mask), and x is 0.
    """
    vae, m = call.patched.vae, len(images)
    if vae is None:
        return images * 2 - 1
    x = torch.zeros(m, *call.shape, device=images.device).requires_grad_()
    with torch.enable_grad():
        b = before_decoder(call, x, prompts)

        def back(z: Tensor) -> Tensor:
            return torch.autograd.grad(b, x, z.to(b), retain_graph=True)[0]

        ones = back(torch.ones_like(b))
    with torch.no_grad():
        squared = before_decoder(call, ones, prompts) - b
        pixels = images * 2 - 1
        pixels = pixels.transpose(1, 2) if pixels.ndim == 5 else pixels[:, :, None] if b.ndim == 5 else pixels
        made = vae.encode(pixels.to(vae.dtype))
        z = made.latent_dist.mode() if hasattr(made, "latent_dist") else made[0]
        if z.shape != b.shape:
            raise TiltingError(
                f"pictures {tuple(images.shape[1:])} have latents {tuple(z.shape[1:])}, not {tuple(b.shape[1:])}"
            )
    off = z.to(b) - b.detach()
    return back(torch.where(squared == 0, 0.0, off / squared.masked_fill(squared == 0, 1)))
