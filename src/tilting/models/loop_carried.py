"""Loop-carried dependencies of a pipeline's denoising loop, by static analysis: variables beside the latents that an iteration
reads as the one before it left them. A step that is made alone has none of them, so such a pipeline cannot be steered."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Sequence
from typing import Any

STEP = "self.scheduler.step"
ENDS = (ast.Continue, ast.Break, ast.Return, ast.Raise)


def dotted(node: ast.AST) -> str:
    """``self.scheduler.step`` of a chain of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(node: ast.AST) -> Iterable[str]:
    """What is called in a part."""
    return (dotted(one.func) or "?" for one in ast.walk(node) if isinstance(one, ast.Call))


def carried(function: ast.FunctionDef, off: frozenset[str]) -> tuple[str, ...]:
    """The names that an iteration reads as the one before left them, but for those that the step is made of or gives.

    Args:
        function: a pipeline's call.
        off: its arguments that are None or False.
    """
    call = Pruned(off - names(function.body, ast.Store)).visit(copy.deepcopy(function))
    loop = next((one for one in ast.walk(call) if isinstance(one, ast.For) and STEP in calls(one)), None)
    if loop is None:
        return ()
    read: set[str] = set()
    _go(loop.body, names([loop.target], ast.Store), read)
    states: set[str] = set()
    for one in sorted((one for one in ast.walk(loop) if isinstance(one, ast.Assign)), key=lambda one: one.lineno):
        if STEP in calls(one.value):
            states |= (names([one], ast.Load) & read) - {"self"} | names(one.targets, ast.Store)
        elif states & names([one.value], ast.Load):  # a picture's first frame put back, a mask's other side
            states |= names(one.targets, ast.Store)
    known = {one.arg for one in ast.walk(function.args) if isinstance(one, ast.arg)}
    known |= {name for one in ast.walk(call) if getattr(one, "lineno", loop.lineno) < loop.lineno for name in _stored(one)}
    return tuple(sorted((read & _set_anew(loop) & known) - states))


def names(parts: Iterable[ast.AST], how: type) -> set[str]:
    """The names that are loaded, or stored, in parts of a source."""
    found = (one for part in parts for one in ast.walk(part) if isinstance(one, ast.Name))
    return {one.id for one in found if isinstance(one.ctx, how)}


def _set_anew(part: ast.AST, guards: frozenset[str] = frozenset()) -> set[str]:
    """The names that a part stores, but where a condition on themselves guards it, as of a mask that is brought to a size."""
    found = _stored(part) - guards
    for child in ast.iter_child_nodes(part):
        found |= _set_anew(child, guards | names([part.test], ast.Load) if isinstance(part, ast.If) else guards)
    return found


def _stored(one: ast.AST) -> set[str]:
    return {one.id} if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store) else set()


def _go(body: Sequence[ast.stmt], have: set[str], read: set[str]) -> set[str]:
    """The names that are set for certain after statements; what they read that was not is added to ``read``."""
    have = set(have)
    for one in body:
        if isinstance(one, ast.If):
            read |= names([one.test], ast.Load) - have
            ways = [_go(part, have, read) for part in (one.body, one.orelse) if not part or not isinstance(part[-1], ENDS)]
            have = set.intersection(*ways) if ways else have
        elif isinstance(one, ast.For | ast.With | ast.Try | ast.While):
            heads = [part for part in ast.iter_child_nodes(one) if not isinstance(part, ast.stmt)]
            read |= names(heads, ast.Load) - have
            after = _go(one.body, have | names(heads, ast.Store), read)
            have = after if isinstance(one, ast.With | ast.Try) else have
        else:
            inside = names((part.target for part in ast.walk(one) if isinstance(part, ast.comprehension)), ast.Store)
            own = {one.target.id} if isinstance(one, ast.AugAssign) and isinstance(one.target, ast.Name) else set()
            read |= ((names([one], ast.Load) | own) - inside) - have
            have |= names([one], ast.Store) - inside
    return have


class Pruned(ast.NodeTransformer):
    """A function without the branches of arguments that are None."""

    def __init__(self, none: frozenset[str]):
        self.none = none

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        return node.orelse if self.fails(node.test) else node

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        self.generic_visit(node)
        return node.orelse if self.fails(node.test) else node

    def fails(self, test: ast.AST) -> bool:
        """Whether a condition is false, as far as is known."""
        if isinstance(test, ast.BoolOp):
            return (any if isinstance(test.op, ast.And) else all)(self.fails(one) for one in test.values)
        if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None":
            return dotted(test.left).removeprefix("self.") in self.none
        return dotted(test).removeprefix("self.") in self.none
