"""What there is to know of an objective without torch: its settings, what it asks of reward and sampler, its group.

The factories of `tilting.objectives` are the one place where settings and defaults are written; their signatures
are read from its source, because importing it takes seconds and a wrong word is refused before.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tilting.config.settings import typed
from tilting.errors import TiltingError, nearest
from tilting.refusals import check_policy

GRADIENT = ("draft", "draft-k", "draft-lv", "refl", "alignprop", "dpg", "adjoint")
"""Objectives that need a differentiable reward."""
DENSITY = ("ddpo", "dpok", "grpo", "adjoint")
"""Objectives whose steps need a density: eta above 0."""
CHOICES: dict[str, Any] = {
    "shape": Literal["linear", "relu"], "rule": Literal["random", "step"], "reduction": Literal["mean", "sum"],
    "advantage": Literal["buffer", "group", "plain"], "source": Literal["current", "pretrained"],
}  # fmt: skip
LEAST = {
    "k": 1, "last": 1, "count": 1, "copies": 0, "epochs": 1, "chunks": 1, "times": 1, "size": 2, "kl": 0.0, "eps_kl": 0.0,
    "dropout": 0.0, "share": 0.0, "beta": 0.0, "clip": 0.0,
}  # fmt: skip
POSITIVE = ("share", "beta", "clip")
_KINDS = {"float": float, "int": int, "bool": bool, "str": str, "int | None": int | None, "float | None": float | None}


class Factory(NamedTuple):
    """An objective's factory.

    Attributes:
        about: its docstring.
        fields: by setting, (annotation, default).
        made: the name of the class that it makes.
    """

    about: str
    fields: dict[str, tuple[Any, Any]]
    made: str


def source() -> Path:
    """The source of `tilting.objectives`, which is found without importing it."""
    found = find_spec("tilting.objectives")
    assert found is not None and found.origin is not None
    return Path(found.origin)


@cache
def factories() -> dict[str, Factory]:
    """The objectives by name, read from their source."""
    tree = ast.parse(source().read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "OBJECTIVES")
    assert isinstance(table, ast.Dict)
    names = {ast.literal_eval(key): ast.unparse(value) for key, value in zip(table.keys, table.values, strict=True) if key}
    return {name: _factory(functions[function]) for name, function in names.items()}


def _factory(node: ast.FunctionDef) -> Factory:
    fields = {}
    for argument, default in zip(node.args.args, node.args.defaults, strict=True):
        hint = CHOICES.get(argument.arg) or _KINDS[ast.unparse(argument.annotation)] if argument.annotation else str
        fields[argument.arg] = (hint, ast.literal_eval(default))
    return Factory(ast.get_docstring(node) or "", fields, ast.unparse(node.returns) if node.returns else "")


def defaults(objective: str) -> dict[str, Any]:
    """Settings of an objective as they are unset."""
    return {field: default for field, (_, default) in factories()[objective].fields.items()}


def setting(key: str, value: object) -> tuple[str, str, object]:
    """Check one ``objective.field`` and its value: (objective, field, value). Raises TiltingError with the nearest right
    name."""
    objective, dot, field = key.partition(".")
    if not dot:
        raise TiltingError(f"{key!r} must be OBJECTIVE.FIELD, such as draft.kl")
    if objective not in factories():
        raise TiltingError(f"there is no objective {objective!r}{nearest(objective, factories())}")
    known = factories()[objective].fields
    if field not in known:
        raise TiltingError(f"there is no setting {key!r}{nearest(key, [f'{objective}.{name}' for name in known])}")
    result = typed(key, value.strip() if isinstance(value, str) else value, known[field][0])
    if isinstance(result, int | float) and not isinstance(result, bool) and field in LEAST:
        least = LEAST[field]
        if result < least or (result == least and field in POSITIVE):
            word = "above" if field in POSITIVE else "at least"
            raise TiltingError(f"{key} must be {word} {least:g}, not {result:g}")
        if (field == "share" and result > 1) or (field == "dropout" and result >= 1):
            raise TiltingError(f"{key} must be {'at most' if field == 'share' else 'below'} 1, not {result:g}")
    return objective, field, result


def group_of(settings: dict[str, Any]) -> int:
    """Images of a prompt that must stand together in a batch."""
    return int(settings.get("size", 1))


def usual_eta(objective: str, settings: dict[str, Any]) -> float:
    """eta where it is unset: 0 where gradients go through the chain and no density is asked for, else 1."""
    deterministic = objective in GRADIENT and objective not in DENSITY and not settings.get("kl", 0.0)
    return 0.0 if deterministic else 1.0


def check_settings(objective: str, settings: dict[str, Any]) -> None:
    """Refuse settings that do not go together. Raises TiltingError."""
    updates = settings.get("epochs", 1) * settings.get("chunks", 1)
    check_policy(objective, settings.get("advantage", ""), group_of(settings), settings.get("ratio", True), updates)


def check_chain(objective: str, settings: dict[str, Any], eta: float, steps: int) -> None:
    """Refuse a chain without a density where one is asked for. Raises TiltingError."""
    who = objective if objective in DENSITY else f"{objective}.kl" if settings.get("kl", 0.0) > 0 else None
    if who and eta == 0:
        raise TiltingError(f"{who} needs eta above 0 (1 is usual): a deterministic chain has no density")
    if who and steps == 1:
        raise TiltingError(f"{who} needs at least 2 steps: the last one has no density")
