"""Static analysis of a pipeline's loop: whether a step can be made without those before it.

It can where an iteration depends on nothing but x, its time and what precedes the loop: not on its index, nor on what an
earlier iteration has stored. Branches that a call does not take (those of arguments that are None) are left out of account.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tilting.models.loop_carried import STEP, Pruned, calls, dotted
from tilting.models.pipeline_class import method_of

ASKED = {"step", "order", "config", "scale_model_input", "timesteps", "set_timesteps", "set_begin_index", "init_noise_sigma"}
"""What a call may ask its scheduler for beside."""
KEPT = re.compile(r"_current_timestep|_\w*attention_kwargs")
"""Attributes of a pipeline that every pass writes alike."""


@cache
def independent(name: str, none: frozenset[str]) -> bool:
    """Whether each step of the loop can be made without those before it.

    Args:
        name: of a pipeline's class.
        none: the arguments of its call that are None.
    """
    found = method_of(name, "__call__")
    if found is None:
        return False
    function = copy.deepcopy(found)
    names = [node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    gone = {name for name in _left_out(function) if names.count(name) == 1}
    function = Pruned((none - set(names)) | gone).visit(function)
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For) and STEP in set(calls(node))]
    if len(loops) != 1:
        return False
    loop = loops[0]
    listed = loop.iter.args[0] if isinstance(loop.iter, ast.Call) and dotted(loop.iter.func) == "enumerate" else loop.iter
    names = [node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)]
    if dotted(listed) != "timesteps" or loop.orelse or len(names) > 2:
        return False
    before = [node for node in ast.walk(function) if getattr(node, "lineno", 0) < loop.lineno]
    asked = {one.split(".")[2] for node in ast.walk(function) if (one := dotted(node)).startswith("self.scheduler.")}
    return asked <= ASKED and not _looks_at(before, "timesteps") and _is_pure(_without_dead(loop.body), names[:-1])


def _left_out(function: ast.AST) -> set[str]:
    """Old arguments that a call takes of its keywords, and that are None."""
    found = (node for node in ast.walk(function) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call))
    return {dotted(node.targets[0]) for node in found if re.fullmatch(r"kwargs\.pop\('\w+', None\)", ast.unparse(node.value))}


def _is_pure(body: list[ast.stmt], number: list[str]) -> bool:
    """Whether a loop's body reads neither the number of the pass nor what an earlier one has left, but for x itself."""
    order = [one for statement in body for one in _in_order(statement)]
    x = next((target for target, value in order if value == STEP), "")
    first = {name: how for name, how in reversed(order) if how in ("load", "store")}
    stored = {name for name, how in order if how == "store"}
    carried = {name for name in stored if first[name] == "load"} - {x}
    written = {name for name, how in order if how == "write" and name not in stored and not KEPT.fullmatch(name)}
    return bool(x) and not carried and not written and not any(first.get(one) == "load" for one in number)


def _in_order(node: ast.AST | None) -> Iterator[tuple[str, str]]:
    """(name, "load" or "store", or "write" of an attribute or an item) as they come; what the step is assigned to, with it."""
    if node is None or isinstance(node, ast.Lambda | ast.FunctionDef):
        return
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from _in_order(node.value)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, "load"
        if node.value is not None and STEP in set(calls(node.value)):
            first = targets[0].elts[0] if isinstance(targets[0], ast.Tuple) else targets[0]
            yield dotted(first), STEP
        for target in targets:
            yield from _in_order(target)
    elif isinstance(node, ast.For | ast.comprehension):
        yield from _in_order(node.iter)
        yield from _in_order(node.target)
        for part in [*node.body, *node.orelse] if isinstance(node, ast.For) else node.ifs:
            yield from _in_order(part)
    elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
        for part in (*node.generators, *([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])):
            yield from _in_order(part)
    elif isinstance(node, ast.Name):
        yield node.id, "load" if isinstance(node.ctx, ast.Load) else "store"
    elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        root: ast.AST = node
        last: ast.AST = node
        while isinstance(root, ast.Attribute | ast.Subscript):
            last, root = root, root.value
        yield (last.attr if isinstance(last, ast.Attribute) and dotted(root) == "self" else dotted(root)), "write"
    else:
        for child in ast.iter_child_nodes(node):
            yield from _in_order(child)


def _without_dead(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements without bars' updates, and without assignments to names that nothing reads."""
    while True:
        loaded = {n.id for part in body for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        module: Any = _Cleared(loaded).visit(ast.Module(copy.deepcopy(body), []))
        if ast.dump(module) == ast.dump(ast.Module(body, [])):
            return body
        body = module.body


class _Cleared(ast.NodeTransformer):
    def __init__(self, loaded: set[str]):
        self.loaded = loaded

    def visit_Assign(self, node: ast.Assign) -> Any:
        plain = all(isinstance(target, ast.Name) and target.id not in self.loaded for target in node.targets)
        return None if plain and not set(calls(node.value)) else node

    def visit_Expr(self, node: ast.Expr) -> Any:
        return None if dotted(getattr(node.value, "func", node)) in ("progress_bar.update", "xm.mark_step") else node

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if not node.body and not node.orelse:
            return None
        node.body = node.body or [ast.Pass()]
        return None if not node.orelse and all(isinstance(one, ast.Pass) for one in node.body) else node


def _looks_at(nodes: list[ast.AST], name: str) -> bool:
    """Whether something reads a list, other than its length or to hand it to what makes it."""
    fine = {
        id(one)
        for node in nodes
        if isinstance(node, ast.Call) and dotted(node.func) in ("len", "retrieve_timesteps", "self.check_inputs")
        for one in node.args
    }
    read = (node for node in nodes if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load))
    return any(id(node) not in fine for node in read)
