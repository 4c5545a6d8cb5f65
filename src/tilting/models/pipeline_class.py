"""Which pipeline classes of diffusers can be steered (`tilting.models.call`): static analysis of the installed version's own
source, of which nothing is imported.

A class can be steered whose ``__call__`` has one denoising loop, not inside another, with one ``self.scheduler.step`` in it and
``self.progress_bar`` at its beginning. The same source gives the parameters of the call before a weight is read.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tilting.errors import TiltingError, nearest
from tilting.models.loop_carried import STEP, carried, dotted

REQUIRED = object()
"""The default of an argument that has none."""

REWRITES: dict[str, Any] = {
    "use_pe": False,
    "enable_prompt_rewrite": False,
    "enable_prompt_enhancement": False,
    "caption_upsample_temperature": None,
}
"""Inputs by which a call has a language model write its prompts anew, before each loop -> the value by which it does not."""
RESERVED = {
    "prompt": "the prompts of a run",
    "class_labels": "the prompts of a run",
    "batch_size": "the prompts of a run",
    "num_inference_steps": "steps",
    "generator": "seed",
    "latents": "latents of `tilting.generate`",
    "num_images_per_prompt": "images",
    "num_videos_per_prompt": "images",
    "output_type": "nothing: pictures are tensors",
    "return_dict": "nothing: pictures are tensors",
    "eta": "eta",
    "denoising_end": "1: what is drawn is drawn to its end",
    "callback": "a method",
    "callback_steps": "a method",
    "callback_on_step_end": "a method",
    "callback_on_step_end_tensor_inputs": "a method",
}
"""Arguments of ``__call__`` that tilting sets itself -> what sets them."""


@dataclass(frozen=True)
class PipelineClass:
    """What the source of a pipeline class says.

    Attributes:
        name: of the class.
        unsupported: why it cannot be steered; empty where it can.
        parameters: of its ``__call__`` -> default, `REQUIRED` for none, ``...`` for one that is not plain.
        components: its models and tokenizers -> their annotations.
    """

    name: str
    unsupported: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    components: Mapping[str, str] = field(default_factory=dict)


@cache
def _files() -> dict[str, Path]:
    """Class of a pipeline -> the file that it stands in."""
    spec = find_spec("diffusers")
    found: dict[str, Path] = {}
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted((Path(place) / "pipelines").rglob("pipeline*.py")):
            for name in re.findall(r"^class (\w*Pipeline)\(", file.read_text(encoding="utf-8"), re.MULTILINE):
                if not name.startswith(("Flax", "Onnx", "DiffusionPipeline", "AutoPipeline")):
                    found.setdefault(name, file)
    return found


@cache
def _class(name: str) -> tuple[str, tuple[str, ...]]:
    """(the text of a class, the names of what it derives from); a whole file would take long to parse."""
    text = _files()[name].read_text(encoding="utf-8")
    found = re.search(rf"^class {name}\(([^)]*)\):\n((?:[ \t].*\n|\n|\)[^\n]*\n)*)", text, re.MULTILINE)
    if found is None:
        return "", ()
    return found[2], tuple(re.findall(r"\w+", found[1]))


@cache
def method_of(name: str, method: str) -> ast.FunctionDef | None:
    """A method of a class, or of what it derives from."""
    if name not in _files():
        return None
    body, bases = _class(name)
    found = re.search(rf"^    def {method}\((?:.*\n)(?:(?:     .*|\s*|    \).*)\n)*", body, re.MULTILINE)
    node: ast.AST | None = None
    try:
        node = ast.parse(textwrap.dedent(found[0])).body[0] if found else None
    except SyntaxError:  # a text whose lines begin at the margin
        found = None
    if node is None and f"def {method}(" in (text := _files()[name].read_text(encoding="utf-8")):
        inside = next(part for part in ast.parse(text).body if isinstance(part, ast.ClassDef) and part.name == name)
        node = next((part for part in inside.body if isinstance(part, ast.FunctionDef) and part.name == method), None)
    if isinstance(node, ast.FunctionDef):
        return node
    return next((own for base in bases if (own := method_of(base, method))), None)


def _defaults(function: ast.FunctionDef) -> dict[str, Any]:
    """Argument -> its default."""
    arguments = function.args
    plain, given = [*arguments.posonlyargs, *arguments.args], arguments.defaults
    pairs: list[tuple[ast.arg, Any]] = [(one, REQUIRED) for one in plain[: len(plain) - len(given)]]
    pairs += list(zip(plain[len(plain) - len(given) :], given, strict=True))
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    pairs += [(one, REQUIRED if value is None else value) for one, value in keywords]
    return {one.arg: _value(value) for one, value in pairs if one.arg != "self"}


def _value(node: Any) -> Any:
    if node is REQUIRED:
        return node
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...


def _within(node: ast.AST, loops: int = 0) -> Iterator[tuple[str, int]]:
    """What is called in a function, and in how many loops each call stands."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Call):
            yield dotted(child.func), loops
        yield from _within(child, loops + isinstance(child, ast.For | ast.While))


def _most(node: ast.AST, said: str) -> int:
    """How often at most a call is made in one pass; of branches one is taken."""
    if isinstance(node, ast.If | ast.IfExp):
        branches = (node.body, node.orelse)
        parts = [[part] if isinstance(part, ast.AST) else part for part in branches]
        return max(sum(_most(one, said) for one in part) for part in parts)
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        return 0
    own = isinstance(node, ast.Call) and dotted(node.func) == said
    return own + sum(_most(child, said) for child in ast.iter_child_nodes(node))


def _unsupported(name: str) -> str:
    """Why a class cannot be steered, or nothing."""
    function = method_of(name, "__call__")
    if function is None:
        return "it has no call of its own"
    calls = list(_within(function))
    others = sorted({one for one, _ in calls if re.fullmatch(r"(self\.)?(?!scheduler\b)\w*scheduler\w*\.step", one)})
    steps = [loops for one, loops in calls if one == STEP]
    if others:
        return f"it steps by several schedulers ({others[0].split('.')[-2]})"
    if not steps:
        return "its call makes no step of a scheduler: it asks other pipelines, or samples in another way"
    if min(steps) == 0:
        return "its call makes a step outside of a loop"
    if max(steps) > 1:
        return "its loop stands in another loop"
    body = ast.Module(function.body, [])
    if (most := _most(body, STEP)) > 1:
        return f"its call makes {most} steps for one evaluation"
    if not any(one == "self.progress_bar" for one, _ in calls):
        return "its loop does not say where it begins (no progress bar)"
    if any(one.endswith("register_forward_hook") for one, _ in calls):
        return "its call hooks into its networks"
    if any(one == "self.generate_prior_tokens" for one, _ in calls):
        return "its call draws tokens at random before its loop, all images' at once"
    return _carries_state(name, {})


@cache
def source_of(name: str) -> str:
    """The text of the call of a class; empty of one that diffusers does not have."""
    function = method_of(name, "__call__")
    return "" if function is None else ast.unparse(function)


def _carries_state(name: str, inputs: Mapping[str, Any]) -> str:
    """Why the loop of a class, with these inputs, cannot be started at any step, or nothing."""
    function = method_of(name, "__call__")
    if function is None:
        return ""
    off = frozenset(key for key, value in {**_defaults(function), **inputs}.items() if value is None or value is False)
    return ", ".join(f"its loop hands {one!r} from step to step" for one in carried(function, off)[:1])


@cache
def pipeline_class(name: str) -> PipelineClass | None:
    """What the source says of a class; None of one that the installed diffusers does not have."""
    if name not in _files():
        return None
    call, init = method_of(name, "__call__"), method_of(name, "__init__")
    parts = {}
    if init is not None:
        parts = {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in init.args.args if one.arg != "self"}
    return PipelineClass(name, _unsupported(name), _defaults(call) if call else {}, parts)


def pipeline_classes() -> dict[str, PipelineClass]:
    """Every pipeline class in the installed diffusers, by name."""
    found = {name: pipeline_class(name) for name in sorted(_files())}
    return {name: cls for name, cls in found.items() if cls is not None}


def steerable_class(name: str) -> PipelineClass:
    """A class that can be steered. Raises TiltingError for another, with the reason."""
    cls = pipeline_class(name)
    if cls is None:
        raise TiltingError(f"the installed diffusers has no {name}{nearest(name, _files())}")
    if cls.unsupported:
        raise TiltingError(f"a {name} cannot be steered: {cls.unsupported}")
    return cls


def check_arguments(kind: str, names: Any, inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that a pipeline's call does not take, or that tilting sets itself. Raises TiltingError.

    Args:
        kind: the pipeline's class.
        names: of its call's arguments.
        inputs: of the call.
    """
    if pipeline_class(kind) is not None:
        steerable_class(kind)
    known = [name for name in names if name not in RESERVED and name != "self"]
    for name in inputs:
        if name in RESERVED:
            raise TiltingError(f"the input {name!r} of a {kind} is {RESERVED[name]} here")
        if name not in known:
            raise TiltingError(f"a {kind} takes no input {name!r}{nearest(name, known)}")
    rewrites = next((name for name, off in REWRITES.items() if inputs.get(name) not in (None, off)), None)
    if rewrites is not None:
        raise TiltingError(
            f"{rewrites} lets a {kind} write its prompts anew at every evaluation: rewrite them yourself, and leave it out"
        )
    if why := _carries_state(kind, inputs):
        raise TiltingError(f"a {kind} cannot be steered with these inputs: {why}")


def share_of(kind: str, inputs: Mapping[str, Any]) -> float:
    """The share of the steps, rounded down, that a call makes: its strength, of a picture; 1 where one is made always.

    Args:
        kind: the pipeline's class.
        inputs: of the call.

    Raises:
        TiltingError: for a strength that is none.
    """
    cls = pipeline_class(kind)
    own = cls.parameters.get("strength") if cls is not None else None
    strength = inputs.get("strength", own if isinstance(own, float) else 1.0)
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise TiltingError(f"strength must be a number above 0 and at most 1, not {strength!r}")
    cuts = _rounds_down(kind) and not _makes_all(kind) and inputs.get("denoising_start") is None
    return strength if cuts else 1.0


def _rounds_down(kind: str) -> bool:
    """Whether a class that cuts its times by a strength rounds the steps that it makes down; others round up."""
    cut = method_of(kind, "get_timesteps")
    return cut is not None and "int(num_inference_steps * strength)" in ast.unparse(cut)


def _makes_all(kind: str) -> bool:
    """Whether a class that begins from a picture makes all its steps, on a grid of its own that begins lower: latent
    consistency, whose call never asks its own ``get_timesteps``."""
    call = method_of(kind, "__call__")
    return call is not None and "self.get_timesteps(" not in ast.unparse(call)


PICTURES = ("", "Img2Img", "VideoToVideo", "Inpaint")
"""What follows a family's name in those of its pipelines that begin from a picture."""


def from_pictures(kind: str) -> str:
    """The class of a pipeline's family that begins from a picture noised to a strength, or nothing."""
    stem = kind.removesuffix("Pipeline")
    names = [f"{one}{more}Pipeline" for more in PICTURES for one in (stem, stem.removesuffix("ControlNet"))]
    classes = [cls for name in names if (cls := pipeline_class(name)) is not None]
    return next((c.name for c in classes if "strength" in c.parameters and method_of(c.name, "get_timesteps")), "")


def steps_left(kind: str, steps: int, strength: float) -> int:
    """The steps that a run of so many makes from a picture noised to a strength: as the class of its family that begins from
    pictures rounds them, down where there is none."""
    pictures = from_pictures(kind)
    if kind == pictures and _makes_all(kind):
        return steps
    if pictures and not _rounds_down(pictures):
        return steps - int(max(steps - steps * strength, 0))
    return min(int(steps * strength), steps)


def check_share(kind: str, inputs: Mapping[str, Any], steps: int) -> None:
    """Refuse a strength that leaves a call no step. Raises TiltingError."""
    share = share_of(kind, inputs)
    check_left(share, steps, int(share * steps))


def enough_for(strength: float) -> int:
    """The fewest steps of which a strength leaves one."""
    least = math.ceil(1 / strength)
    return least if int(least * strength) else least + 1


def check_left(strength: float, steps: int, left: int) -> None:
    """Refuse a strength that leaves no step of so many. Raises TiltingError."""
    if left < 1:
        least, more = math.ceil(1000 / steps) / 1000, enough_for(strength)
        raise TiltingError(f"a strength of {strength:g} leaves no step of {steps}: give {least:g} at least, or {more} steps")
