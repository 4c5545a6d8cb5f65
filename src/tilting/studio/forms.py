"""Fields of a page from declarations: an option or a setting becomes the component that fits its type, with its help.

What is left as it is by itself is not asked for, so that a command says no more than was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin

import gradio as gr
from annotated_types import Ge, Gt, Le

from tilting.config.base import BaseConfig
from tilting.declare import Field, declared
from tilting.errors import TiltingError, refusal_of
from tilting.rewards.declaration import REWARDS

if TYPE_CHECKING:
    from gradio.components import Component

Function = TypeVar("Function", bound=Callable[..., Any])
ASIDE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
"""How the page asks by itself, by a clock or a change: outside of gradio's queue, whose stream to the browser is closed when
nothing waits, and then forgets whoever came while it closed; a clock that is forgotten never ticks again."""
HIDDEN: dict[str, Any] = {"visible": False}
"""What a page remembers, in a component that nobody sees: for a State of gradio's each page would hold a connection to the
server, of which a browser has six for all of its tabs, so that the sixth tab stopped them all."""
WIDEST = 100
"""Bounds that make a field a slider."""


class Entry(NamedTuple):
    """A component, and what it asks for.

    Attributes:
        key: of an option, or METHOD.FIELD of a setting.
        field: its declaration.
        component: on the page.
    """

    key: str
    field: Field
    component: Component


def component(one: Field, key: str, value: Any = None, **how: Any) -> Component:
    """What fits a field: a slider where its declaration has both bounds, a box for a number, a list for words, else text.

    Args:
        one: the field.
        key: what it is called on the page, and known by across renderings.
        value: that stands in it; None leaves it as it is by itself.
        how: further arguments of the component.
    """
    label, info = (key.partition(".")[2] or key).replace("_", " ").replace("-", " "), one.help.replace("``", "")
    default = None if one.default is MISSING or one.default in ((), "") or one.given.default else one.default
    how = {"interactive": True, "label": label, "info": info, "key": key, "value": default if value is None else value, **how}
    plain, optional = _plain(one.hint)
    if plain is bool:
        return gr.Checkbox(**how)
    if one.choices and get_origin(plain) is not tuple:
        choices = [str(word) for word in one.choices]
        return gr.Dropdown(choices=["", *choices] if optional or one.given.default else choices, **how)
    if plain in (int, float) and how["value"] is not None:
        low, high = _bounds(one)
        if low is not None and high is not None and high <= WIDEST:
            return gr.Slider(minimum=low, maximum=high, step=1 if plain is int else 0.01, **how)
        whole = {"precision": 0} if plain is int else {}
        return gr.Number(**whole, **how)  # of bounds gradio's own sentence would not say whose they are
    if isinstance(how["value"], tuple | list):
        how["value"] = ",".join(map(str, how["value"]))
    return gr.Textbox(lines=2 if one.repeats else 1, placeholder=one.given.default or "as it is by itself", **how)


def _plain(hint: Any) -> tuple[Any, bool]:
    parts = [part for part in get_args(hint) if part is not type(None)]
    return (parts[0], True) if type(None) in get_args(hint) else (hint, False)


def _bounds(one: Field) -> tuple[float | None, float | None]:
    low = next((bound.ge for bound in one.bounds if isinstance(bound, Ge)), None)
    low = next((bound.gt for bound in one.bounds if isinstance(bound, Gt)), low)
    return low, next((bound.le for bound in one.bounds if isinstance(bound, Le)), None)  # type: ignore[return-value]


def options(config: type[BaseConfig], names: Iterable[str], prefix: str = "", **values: Any) -> list[Entry]:
    """Components of a command's options.

    Args:
        config: whose they are.
        names: of the options, in the order of the page.
        prefix: that makes their names on the page unique.
        values: that stand in some of them, by field.
    """
    known = config.options()
    return [Entry(name, known[name], _named(known[name], name, prefix, values.get(known[name].name))) for name in names]


def _named(one: Field, name: str, prefix: str, value: Any) -> Component:
    return component(one, name, value, elem_id=f"{prefix}{name}" if prefix else None)


def settings(kind: type, name: str) -> list[Entry]:
    """Components of a method's or an objective's own settings."""
    return [Entry(f"{name}.{field}", one, component(one, f"{name}.{field}")) for field, one in declared(kind).items()]


def asked(entries: Sequence[Entry], values: Sequence[Any]) -> dict[str, Any]:
    """What is asked for by option name, settings under ``set``; what stands as it is by itself is left out.

    Raises:
        TiltingError: a value that its declaration does not allow, in the sentence of the command line.
    """
    found: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    for entry, value in zip(entries, values, strict=True):
        if value is None or value == "" or value == [] or (value is False and entry.field.default in (False, None)):
            continue
        if isinstance(value, str) and entry.field.repeats:
            value = [line.strip() for line in value.splitlines() if line.strip()]
        if _plain(entry.field.hint)[0] in (int, float):
            value = _number(value)
        checked = entry.field.check(value, entry.key)
        if entry.field.default is not MISSING and checked == entry.field.default and not entry.field.given.default:
            continue
        (changed if "." in entry.key else found)[entry.key] = list(checked) if isinstance(checked, tuple) else checked
    return {**found, "set": changed} if changed else found


def _number(value: Any) -> Any:
    """What is written in a box as a number, a whole one where it is; what is none stays for its declaration to refuse."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return value
    return int(found) if found.is_integer() and "e" not in str(value) else found


def rewards(label: str = "rewards", value: Sequence[str] = ("clip",), **how: Any) -> Component:
    """A list of rewards, to which others may be written, such as color:red or my.py:score."""
    known = [(f"{one.usage}: {one.about}", one.name) for one in REWARDS.values() if not one.together]
    info = "NAME[:ARGUMENT][=WEIGHT]; write your own and press Enter, such as color:red or my.py:score."
    return gr.Dropdown(known, value=list(value), multiselect=True, allow_custom_value=True, label=label, info=info, **how)


def weights(specs: Sequence[str], prefix: str = "") -> list[tuple[str, Component]]:
    """A slider for every reward that says no weight itself."""
    info = "What its value is multiplied by before rewards are summed."
    made = []
    for spec in specs:
        how: dict[str, Any] = {"label": f"weight of {spec}", "info": info, "key": f"{prefix}weight {spec}"}
        made.append((spec, gr.Slider(minimum=-2, maximum=2, step=0.01, value=1, **how)))
    return made


def weighed(specs: Sequence[str], values: Mapping[str, float]) -> list[str]:
    """Rewards with their weights, as ``--reward`` takes them."""
    return [spec if values.get(spec, 1) == 1 else f"{spec}={values[spec]:g}" for spec in specs]


def copied(label: str, name: str | None = None) -> Component:
    """A text to be copied."""
    return gr.Textbox("", label=label, lines=1, max_lines=20, interactive=False, buttons=["copy"], elem_id=name)


def lines(text: str) -> list[str]:
    """The lines of a box that are not empty."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def sentence(error: Exception) -> str | None:
    """What is said of an error on the page; None where it is our fault."""
    return str(error) if isinstance(error, TiltingError) else refusal_of(error) if isinstance(error, OSError) else None


def told(function: Function) -> Function:
    """A handler whose refusals are a sentence on the page, that stays until it is closed; generators too."""
    import inspect

    def refuse(error: Exception) -> Exception:
        said = sentence(error)
        return error if said is None else gr.Error(said, duration=None, title="That cannot be", print_exception=False)

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def stream(*args: Any, **more: Any) -> Any:
            try:
                yield from function(*args, **more)
            except (TiltingError, OSError) as error:
                raise refuse(error) from error

        return stream  # type: ignore[return-value]

    @wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        try:
            return function(*args, **more)
        except (TiltingError, OSError) as error:
            raise refuse(error) from error

    return call  # type: ignore[return-value]
