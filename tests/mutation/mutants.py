"""Mutation testing: is there a test that sees each small wrong formula? `make mutants`, or for a part of it

    python tests/mutation/mutants.py [ROOM ...] [--shard I/K] [--again]

A mutant is one file of a room with one of mutmut's changes to its code (another operator, a constant + 1, a sign, a condition,
a named argument left out, ...), and it is dead when one of the tests that cover its line fails or takes too long. Changes that
would crash at once (None in place of a value), of words, annotations, asserts, imports, error messages and of what a CPU does
not see (`device`, `strict`) are left out, and -1 as +1, the same axis of a matrix. Where a room has more than `SAMPLE` mutants,
a sample of so many is tried, that of the smallest hashes, which other changes of a room leave as it is. Each is a fork of a
process that has in memory all that its tests import but tilting, so that it pays for its tests alone.

What is found stands in ROOM.json beside this file, and is gone on with: a mutant is tried once, unless its function changed;
``--again`` tries those that lived. equivalent.yaml says which of them no test can kill, and why. README.md is the table.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import libcst as cst
import yaml
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "out" / "mutants"
"""Maps of coverage; git does not keep them."""
SAMPLE, SEED = 200, 0
LONGEST = 20.0
"""Seconds of tests that a mutant is tried by, at most; the fast ones come first."""

FORMULAS = "tests/truth/test_by_hand_formulas.py"
HAND = f"tests/core/test_by_hand.py {FORMULAS}"
FIELD = "tests/truth/test_field_objectives.py"
LOSSES = " ".join(f"tests/training/test_losses_{name}.py" for name in ("of_fits", "of_policies", "through_chains"))
ROOMS: dict[str, tuple[str, str]] = {
    "weights": ("weights.py", f"tests/core/test_weights.py {HAND}"),
    "schedule": ("schedule.py", f"tests/core/test_schedule.py {FIELD} {HAND}"),
    "select": ("select.py", f"tests/core/test_select.py tests/core/test_weights.py {HAND}"),
    "statistics": ("metrics/statistics.py metrics/verdict.py", "tests/evaluation/test_statistics.py"),
    "distances": (
        "metrics/mmd.py metrics/frechet.py metrics/diversity.py evaluation/distances.py",
        "tests/evaluation/test_distances_by_hand.py",
    ),
    "calibrate": ("conditioning/calibrate.py", f"tests/conditioning/test_calibrate.py {HAND}"),
    "guidance": (
        "guidance/*.py",
        "tests/core/test_guidance_by_hand.py tests/core/test_guidance.py tests/core/test_value_and_grad.py",
    ),
    "engines": ("engines/*.py", "tests/core/test_engines_by_hand.py tests/core/test_search.py"),
    "presets": ("presets/*.py", "tests/core/test_presets_by_hand.py"),
    "objectives": (
        "objectives/*.py",
        f"tests/training/test_objective_numbers.py {LOSSES} tests/training/test_objectives_by_hand.py {FORMULAS}",
    ),
}
"""Files of src/tilting, and the tests among which those that cover a line are looked for: of the room itself and by hand first.
A test of the whole loop that would see a change too is no excuse."""


class Mutant(NamedTuple):
    """One change.

    Attributes:
        key: file, function, what stands there and what instead; of several the same, which one.
        file: from the root.
        lines: where to look for what comes by: its own line, else that of its statement; none where an import runs it.
        text: of its function, else of its statement.
        module, node, other: the file, and in it what is changed to what.
    """

    key: str
    file: str
    lines: tuple[int, ...]
    text: str
    module: cst.Module
    node: cst.CSTNode
    other: cst.CSTNode

    @property
    def place(self) -> str:
        """Its file and function."""
        return self.key.partition(": ")[0]

    @property
    def code(self) -> str:
        """The whole file with the change."""
        changed = self.module.deep_replace(self.node, self.other)
        assert isinstance(changed, cst.Module)
        return changed.code


UNSEEN = ("device", "strict", "stacklevel", "about")
"""Arguments whose change no test on a CPU can see, or that are words."""
SKIPPED = m.Annotation() | m.Import() | m.ImportFrom() | m.Raise() | m.Assert() | m.Decorator()
STRINGS = m.SimpleString() | m.FormattedString()
WORDS = m.Subscript(value=m.Name("Annotated") | m.Name("Literal")) | m.Call(func=m.Name("TiltingError") | m.Name("ValueError"))
CRASHES = (mutators.operator_string, mutators.operator_assignment, mutators.operator_lambda, mutators.operator_dict_arguments)
CHANGES = [(kind, change) for kind, change in mutators.mutation_operators if change not in CRASHES]


class _Finder(cst.CSTVisitor):
    """Gathers (node, its change, function, lines, text) of a file."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, str, tuple[int, ...], str]] = []
        self.names: list[str] = []
        self.statements: list[tuple[int, cst.CSTNode]] = []
        self.bodies = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, SKIPPED | STRINGS | WORDS) or _typing_only(node) or _said(node):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.names.append(node.name.value)
        line = self.get_metadata(PositionProvider, node).start.line
        if isinstance(node, cst.BaseStatement | cst.SimpleStatementLine):
            self.statements.append((line, node))
        for kind, change in CHANGES:
            if isinstance(node, kind):
                for other in change(node):
                    if not _unseen(node, other):
                        lines = (line, self.statements[-1][0]) if self.bodies else ()
                        function = next((n for _, n in self.statements if isinstance(n, cst.FunctionDef)), None)
                        text = _code(function or self.statements[-1][1])
                        self.found.append((node, other, ".".join(self.names), lines, text))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self.names.pop()
        if isinstance(original_node, cst.BaseStatement | cst.SimpleStatementLine) and self.statements:
            self.statements.pop()

    def visit_FunctionDef_body(self, node: cst.FunctionDef) -> None:
        self.bodies += 1

    def leave_FunctionDef_body(self, node: cst.FunctionDef) -> None:
        self.bodies -= 1


def _typing_only(node: cst.CSTNode) -> bool:
    return m.matches(node, m.If(test=m.Name("TYPE_CHECKING")))


def _said(node: cst.CSTNode) -> bool:
    """An assignment of words, or an argument that no test sees."""
    if isinstance(node, cst.Arg):
        return node.keyword is not None and node.keyword.value in UNSEEN
    if not isinstance(node, cst.Assign | cst.AnnAssign) or node.value is None:
        return False
    parts = [e.value for e in node.value.elements] if isinstance(node.value, cst.Tuple) else [node.value]
    return all(m.matches(part, m.SimpleString() | m.ConcatenatedString()) for part in parts)


def _unseen(node: cst.CSTNode, other: cst.CSTNode) -> bool:
    """A call that has None for an argument, or has lost one of `UNSEEN` or one without a name, which it then mostly misses; and
    the axis -1 as +1."""
    if m.matches(node, m.UnaryOperation(operator=m.Minus(), expression=m.Integer(value="1"))):
        return True
    if not (isinstance(node, cst.Call) and isinstance(other, cst.Call)):
        return False
    kept = {id(arg) for arg in other.args}
    lost = [arg for arg in node.args if id(arg) not in kept]
    return len(other.args) == len(node.args) or any(arg.keyword is None or arg.keyword.value in UNSEEN for arg in lost)


def _code(node: cst.CSTNode) -> str:
    return " ".join(cst.Module([]).code_for_node(node).split())


def mutants_of(room: str) -> Iterator[Mutant]:
    """All of a room, in order."""
    for path in files_of(room):
        wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")))
        finder = _Finder()
        wrapper.visit(finder)
        file, seen = path.relative_to(ROOT).as_posix(), {}
        for node, other, name, lines, text in finder.found:
            key = f"{path.relative_to(ROOT / 'src' / 'tilting').as_posix()} {name}: {_code(node)} -> {_code(other)}"
            seen[key] = seen.get(key, 0) + 1
            key += f" #{seen[key]}" if seen[key] > 1 else ""
            yield Mutant(key, file, lines, text, wrapper.module, node, other)


def files_of(room: str) -> list[Path]:
    """The sources of a room."""
    base = ROOT / "src" / "tilting"
    return sorted(path for pattern in ROOMS[room][0].split() for path in base.glob(pattern))


def sample_of(room: str) -> tuple[list[Mutant], list[Mutant]]:
    """What is tried of a room, and all of its mutants."""
    everything = list(mutants_of(room))
    ranked = sorted(everything, key=lambda mutant: hashlib.sha256(f"{SEED} {mutant.key}".encode()).digest())
    keys = {mutant.key for mutant in ranked[:SAMPLE]}
    return [mutant for mutant in everything if mutant.key in keys and _compiles(mutant)], everything


def _compiles(mutant: Mutant) -> bool:
    try:
        compile(mutant.code, mutant.file, "exec")
    except (SyntaxError, ValueError):
        return False
    return True


# Tests in forks


def _forked(work: Any, limit: float) -> int | None:
    """The exit status of a function in a fork of this process, silent; None if it took longer than ``limit`` seconds of its own
    or five times that by the clock."""
    gc.freeze()  # a child's collector need not walk through all that is imported here
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        code = 70
        try:
            code = int(work())
        except BaseException:
            code = 71
        finally:
            os._exit(code)
    end = time.monotonic() + 5 * limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _pytest(words: list[str], plugins: list[Any]) -> int:
    import pytest

    plain = [f"-pno:{name}" for name in ("cacheprovider", "xdist", "unraisableexception", "threadexception")]
    return int(pytest.main(["-q", "-x", "--tb=no", "--durations=0", *plain, *words], plugins=plugins))


class _Contexts:
    """Tells coverage which test runs, and writes down how long each took and what lines it came by."""

    def __init__(self, sources: list[str], out: Path, held: dict[str, Any]) -> None:
        import coverage

        self.sources, self.out, self.seconds, self.held = sources, out, {}, held
        self.measure = coverage.Coverage(data_file=None, include=sources, config_file=False)
        self.measure.start()

    def pytest_runtest_protocol(self, item: Any) -> None:
        self.measure.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.seconds[report.nodeid] = float("inf")

    def pytest_sessionfinish(self) -> None:
        self.measure.stop()
        data, lines = self.measure.get_data(), {}
        for source in self.sources:
            file = str(Path(source).relative_to(ROOT))
            lines[file] = {str(line): [c for c in who if c] for line, who in data.contexts_by_lineno(source).items()}
        seconds = {name: took for name, took in self.seconds.items() if took != float("inf")}
        modules = [name for name, module in sys.modules.items() if getattr(module, "__file__", None) and not _ours(module)]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps({**self.held, "seconds": seconds, "lines": lines, "modules": modules}))


def _ours(module: Any) -> bool:
    return str(module.__file__).startswith((str(ROOT / "src"), str(ROOT / "tests"))) or module.__name__ == "__main__"


def map_of(room: str) -> dict[str, Any]:
    """Which tests come by which line of a room's files, and the seconds each takes; imports what they import."""
    whole: dict[str, Any] = {"seconds": {}, "lines": {}}
    for test in ROOMS[room][1].split():
        part = _measured(test, room)
        whole["seconds"].update(part["seconds"])
        for path in files_of(room):
            file = path.relative_to(ROOT).as_posix()
            lines = whole["lines"].setdefault(file, {})
            for line, names in part["lines"].get(file, {}).items():
                lines.setdefault(line, []).extend(names)
        for name in part["modules"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    return whole


def _measured(test: str, room: str) -> dict[str, Any]:
    """What a file of tests comes by of all rooms; measured once for the texts of it and of this room."""
    sources = {path.relative_to(ROOT).as_posix(): _digest(path) for each in ROOMS for path in files_of(each)}
    wanted = {path.relative_to(ROOT).as_posix(): sources[path.relative_to(ROOT).as_posix()] for path in files_of(room)}
    out, held = WORK / f"{test.replace('/', '.')}.json", {"test": _digest(ROOT / test), "sources": sources}
    before = json.loads(out.read_bytes()) if out.exists() else {"test": ""}
    if before["test"] == held["test"] and wanted.items() <= before["sources"].items():
        return before
    print(f"{test}: which lines it comes by", flush=True)
    out.unlink(missing_ok=True)
    found = _Contexts([str(ROOT / source) for source in sources], out, held)
    _forked(lambda: _pytest(["--maxfail=1000", test], [found]), 3600)
    return json.loads(out.read_bytes())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tests_of(mutant: Mutant, covered: dict[str, Any]) -> tuple[list[str], float]:
    """The tests that come by a mutant's line, the fast ones first, and the seconds they take. What runs when its file is
    imported is every test's."""
    lines, seconds = covered["lines"].get(mutant.file, {}), covered["seconds"]
    names = next((lines[str(line)] for line in mutant.lines if lines.get(str(line))), [])
    names = names if mutant.lines else list(seconds)
    ordered, total, chosen = sorted((n for n in names if n in seconds), key=lambda n: seconds[n]), 0.0, []
    for name in ordered:
        if chosen and total + seconds[name] > LONGEST:
            break
        chosen.append(name)
        total += seconds[name]
    return chosen, total


def _with(mutant: Mutant) -> None:
    """Let imports of this process find the mutant in its file's place."""
    from importlib.machinery import SourceFileLoader

    path, code = str(ROOT / mutant.file), mutant.code.encode()
    read, stats = SourceFileLoader.get_data, SourceFileLoader.path_stats

    def get_data(self: Any, asked: str) -> bytes:
        return code if str(asked) == path else read(self, asked)

    def path_stats(self: Any, asked: str) -> Any:
        if str(asked) == path:
            raise OSError("no cached bytecode")
        return stats(self, asked)

    SourceFileLoader.get_data, SourceFileLoader.path_stats = get_data, path_stats  # type: ignore[method-assign]


def tried(mutant: Mutant, covered: dict[str, Any]) -> str:
    """ "killed", "lived", or "uncovered" where no test comes by."""
    names, seconds = tests_of(mutant, covered)
    if not names:
        return "uncovered"

    def work() -> int:
        _with(mutant)
        return _pytest(names, [])

    status = _forked(work, 15 + 3 * seconds)
    return "lived" if status == 0 else "killed"


# Results


def run(room: str, shard: tuple[int, int], again: bool) -> None:
    """Try what has not been tried of a room."""
    file = HERE / f"{room}.json"
    before = json.loads(file.read_bytes()) if file.exists() else {"functions": {}, "mutants": {}}
    texts = texts_of(room)
    (chosen, everything), covered = sample_of(room), map_of(room)
    functions = functions_of(everything)
    fresh = {place for place, digest in functions.items() if before["functions"].get(place) == digest}
    known = {mutant.key: before["mutants"].get(mutant.key) for mutant in chosen if mutant.place in fresh}
    known = {key: value for key, value in known.items() if value == "killed" or (value and not again)}
    left = [mutant for mutant in chosen if mutant.key not in known][shard[0] - 1 :: shard[1]]
    print(f"{room}: {len(chosen)} mutants, {len(left)} to try", flush=True)
    for i, mutant in enumerate(left):
        names = tests_of(mutant, covered)[0]
        if i % 20 == 0 and names and tried(mutant._replace(other=mutant.node), covered) != "lived":
            raise SystemExit(f"{room}: its tests fail without a mutant")
        known[mutant.key] = tried(mutant, covered)
        if known[mutant.key] != "killed":
            print(f"  {known[mutant.key]} {mutant.lines[:1]}: {mutant.key}", flush=True)
        if i % 10 == 9 or i + 1 == len(left):
            if texts != texts_of(room):
                raise SystemExit(f"{room}: its texts have changed meanwhile, run it again")
            ordered = {mutant.key: known[mutant.key] for mutant in chosen if mutant.key in known}
            held = {"of": len(everything), "functions": functions, "mutants": ordered}
            file.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def functions_of(mutants: list[Mutant]) -> dict[str, str]:
    """A digest of each function's text, and of what a class or a file says beside its functions."""
    texts: dict[str, dict[str, None]] = {}
    for mutant in mutants:
        texts.setdefault(mutant.place, {})[mutant.text] = None
    return {place: hashlib.sha256("\n".join(found).encode()).hexdigest()[:16] for place, found in texts.items()}


def texts_of(room: str) -> list[str]:
    """Digests of a room's files and its tests."""
    return [_digest(path) for path in [*files_of(room), *(ROOT / test for test in ROOMS[room][1].split())]]


def table() -> str:
    """README.md: each room's score, and who lived."""
    reasons = yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8")) or {}
    rows, alive = [], []
    for room in ROOMS:
        file = HERE / f"{room}.json"
        if not file.exists():
            rows.append(f"| {room} | not run yet | | | | |")
            continue
        held = json.loads(file.read_bytes())
        lived = [key for key, verdict in held["mutants"].items() if verdict != "killed"]
        equal, count = [key for key in lived if key in reasons], len(held["mutants"])
        score = (count - len(lived)) / max(1, count - len(equal))
        rows.append(f"| {room} | {held['of']} | {count} | {count - len(lived)} | {len(equal)} | {score:.1%} |")
        alive += [f"- `{key}`: {reasons.get(key, '**alive**')}" for key in lived]
    head = ["| room | mutants | tried | killed | equivalent | score |", "| --- | --- | --- | --- | --- | --- |"]
    about = (
        "`make mutants` (`mutants.py`) makes this page. The score is killed / (tried - equivalent). A room of more than "
        f"{SAMPLE} mutants is sampled, seed {SEED}."
    )
    return "\n".join(["# Mutants", "", about, "", *head, *rows, "", "## Who lived, and why", "", *alive, ""])


def main() -> None:
    """The command."""
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("rooms", nargs="*", metavar="ROOM", help=", ".join(ROOMS))
    words.add_argument("--shard", default="1/1", help="I/K: the I-th of K parts of each room")
    words.add_argument("--again", action="store_true", help="try those that lived again")
    asked = words.parse_args()
    first, _, count = asked.shard.partition("/")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(WORK / "bytecode")  # not a mutant's, which has no time of change
    import diffusers  # noqa: F401  what every test would import, once
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    assert "tilting" not in sys.modules
    for room in asked.rooms or ROOMS:
        run(room, (int(first), int(count)), asked.again)
        (HERE / "README.md").write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()
