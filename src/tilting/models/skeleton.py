"""A model without weights: the networks of its configs as fake tensors, which have shapes but no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tilting.lazy import torch
from tilting.models.call import Call
from tilting.models.families import CONFIG, kind_of, missing_components, read_json
from tilting.models.loading import OF_NO_USE, loading
from tilting.models.look_decoder import as_look_decoder
from tilting.models.names import defaults, find_model
from tilting.models.pipeline import Pipeline
from tilting.models.pipeline_class import steerable_class

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


class UnknownGuidance(dict):
    """In the place of what a call knows of its guidance, which shapes do not tell: guidance is then replayed."""

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: Any) -> None:
        return None


class ShapeOnlyPipeline(Pipeline):
    """A pipeline whose networks give shapes alone."""

    def call(self, steps: int, arguments: Mapping[str, Any]) -> Call:
        """See `Pipeline.call`."""
        call = super().call(steps, arguments)
        call._guidance = UnknownGuidance()
        return call


@contextmanager
def _of(dtype: torch.dtype) -> Iterator[None]:
    """A block in which networks are made in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def hollow(source: str, dtype: torch.dtype, vae: torch.dtype) -> tuple[Any, FakeTensorMode]:
    """A pipeline of diffusers without its weights, and the mode in which it is to be called.

    Args:
        source: folder or hub id; its configurations and tokenizers are read.
        dtype: of network and text encoders.
        vae: of autoencoders.

    Raises:
        TiltingError: for a model of another kind, or one that cannot be read.
    """
    import diffusers
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode

    kind, index = kind_of(source), read_json(source)
    steerable_class(kind)
    without = {*missing_components(source), *OF_NO_USE, "feature_extractor", "image_encoder"}
    mode, parts = FakeTensorMode(allow_non_fake_inputs=True), dict.fromkeys(missing_components(source))
    with loading(source):
        for part, said in index.items():
            if not isinstance(said, list) or part in without:
                parts |= {part: None} if isinstance(said, list) else {}
                continue
            maker = getattr(diffusers if said[0] == "diffusers" else transformers, said[1])
            if not issubclass(maker, torch.nn.Module):
                parts[part] = maker.from_pretrained(source, subfolder=part)
                continue
            with mode, _of(vae if part == "vae" else dtype):
                parts[part] = network(maker, read_json(source, f"{part}/{CONFIG}"))
        more = {"requires_safety_checker": False} if "safety_checker" in index else {}
        return getattr(diffusers, kind)(**parts, **more), mode


def skeleton(
    name: str, dtype: torch.dtype, vae: torch.dtype, look: str | None = None, inputs: Mapping[str, Any] | None = None
) -> tuple[Any, FakeTensorMode]:
    """A model without its weights, and the mode in which it is to be called.

    Args:
        name: of the model, a folder or hub id.
        dtype, vae: see `hollow`.
        look: the folder or hub id of a look decoder.
        inputs: of its call.

    Raises:
        TiltingError: see `hollow`.
    """
    import diffusers

    pipe, mode = hollow(find_model(name), dtype, vae)
    model = ShapeOnlyPipeline(pipe, name, *defaults(name), inputs=inputs)
    if look is not None:
        config = read_json(look, CONFIG)
        with mode, _of(vae):
            small = network(getattr(diffusers, config["_class_name"]), config)
        model.look_decoder = as_look_decoder(small, model.vae, name, look)
    return model, mode


def network(kind: Any, config: dict[str, Any]) -> Any:
    """A network of a class by its configuration."""
    return kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class.from_dict(config))
