"""What keeps the house readable: no room that outgrows the others, no circle of files, few imports inside functions."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT

SRC = ROOT / "src"
OURS = ("tilting", "tilting_papers")


def modules() -> dict[str, Path]:
    """Our modules by name."""
    found = {}
    for path in SRC.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[ast.ImportFrom | ast.Import, bool]]:
    """Imports that are made when the program runs, and whether each stands in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom | ast.Import):
            yield node, inside
        yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def of_ours(node: ast.ImportFrom | ast.Import) -> set[str]:
    """Our modules that an import names."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    else:
        names = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    deep = {name for name in names if name in MODULES and name.split(".")[0] in OURS}
    return deep - {str(getattr(node, "module", ""))} or deep


def test_imports_stand_at_the_top():
    within = [
        f"{name}:{node.lineno}" for name, tree in TREES.items() for node, inside in imports(tree) if inside and of_ours(node)
    ]
    assert 0 < len(within) <= 40, within


HEAVY = {"scipy", "peft", "kornia", "sklearn", "matplotlib", "tensorboard"}


def test_libraries_that_few_commands_need_come_when_they_are_used():
    """What a plain `generate` loads of these, diffusers and transformers load themselves."""
    at_once = {
        name: words
        for name, tree in TREES.items()
        for node, inside in imports(tree)
        if not inside and (words := {word.split(".")[0] for word in of_whom(node)} & HEAVY)
    }
    assert at_once == {}


def of_whom(node: ast.ImportFrom | ast.Import) -> list[str]:
    """The modules that an import names."""
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]


def test_no_circle_of_files():
    edges = {name: {m for node, _ in imports(tree) for m in of_ours(node)} for name, tree in TREES.items()}
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}  # a package's face hands names on
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in edges[name] - faces:
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_no_room_holds_a_fifth_of_the_lines():
    lines = Counter()
    for name, path in MODULES.items():
        parts = name.split(".")
        room = parts[0] if parts[0] == "tilting_papers" or len(parts) == 1 else parts[1]
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
    total = lines.total()
    print(total, dict(lines.most_common()))
    assert max(lines.values()) <= 0.2 * total


def test_the_formatter_is_obeyed_and_the_readme_is_short():
    assert not [name for name, path in MODULES.items() if "fmt: skip" in path.read_text(encoding="utf-8")]
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
