"""A package of someone's own, as pip would have installed it: a module, and an entry point that names what is in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilting.declare import Registry


def write_package(folder: Path, module: str, code: str, group: str, point: str) -> Path:
    """A folder that is a site of packages, with one in it; ``point`` is MODULE or MODULE:NAME."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = {point}\n")
    return folder


@contextmanager
def installed(registry: Registry, folder: Path, module: str, code: str, point: str) -> Iterator[None]:
    """Within it the package is there, for a registry that has not looked for others yet; after it, it never was."""
    write_package(folder, module, code, registry.group, point)
    before = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(registry).items()}
    vars(registry)["_asked"] = False
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(module, None)
        vars(registry).update(before)
