"""Pages of docs/ that a command makes are what it makes; the index counts what the pages say."""

from __future__ import annotations

import importlib.util
import re

import pytest

from support.paths import ROOT
from tilting.cli.reference import PAGES
from tilting.config.finetune import FinetuneConfig
from tilting.config.generate import GenerateConfig
from tilting.declare import declared
from tilting.objectives import OBJECTIVES


def script(file):
    """A command that is no part of a package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


claims = script(ROOT / "benchmarks" / "claims.py")


def test_the_index_of_the_pages_is_what_its_command_prints():
    assert (ROOT / "docs" / "README.md").read_text() == claims.index()
    for folder in (ROOT / "docs").glob("*/table.md"):
        assert f"({folder.parent.name}/table.md)" in claims.index()


def test_verdicts_are_counted_in_both_kinds_of_pages():
    lines = ("- **holds**: so", "- holds against b: 1", "- undecided: 0", "- the held-out judge falls", "- **fails**: no")
    page = "\n".join(["# x", *lines])
    assert claims.counted(page) == {"holds": 2, "undecided": 1, "fails": 2}
    assert not claims.counted("# x\n- holdsome words\nfails\n").total()


OLD = "Ours: pocket, 20 prompts x 1 images. Means with 95 % bootstrap intervals."
LINES = (
    "- **undecided**: a above b. Found: +0.10 [−0.10, 0.30] (clip), a - b. The paper: no.",
    "- undecided against b: clip −0.01 [−0.20, 0.18], judge +1.0 [0.5, 1.5] (9 evaluations)",
    "- **holds**: c above d. Found: +0.21 [0.01, 0.41] (clip), c - d. The paper: yes.",
    "- **holds**: e above f. Found: +0.31 [0.11, 0.51] (clip), e - f. The paper: yes.",
    "- **fails**: fast. Found: a needs 0.9 of b's steps [0.8, 1.1]. The paper: yes.",
)


def test_undecided_claims_of_old_pages_say_what_would_decide_and_a_t_interval_opens_the_close_ones():
    page = claims.planned("\n".join([OLD, *LINES]))
    plans = [line for line in page.splitlines() if "would decide" in line]
    assert len(plans) == 2 and claims.planned(page) == page
    error = 0.2 / 1.96 * (20 / 19) ** 0.5  # of a bootstrap over 20 prompts, whose half-width is .2
    (count,) = claims.needed(claims.Estimate(0.1, ((error, 19),)))[2:].split()[:1]
    assert f"0.30] (about {count} prompts would decide) (clip)" in plans[0]
    assert list(claims.open_by_t(page)) == ["**holds**: c above d. Found: +0.21 [0.01, 0.41] (clip), c - d."]
    assert not list(claims.open_by_t(page.replace("bootstrap", "t")))


def test_every_undecided_claim_of_a_page_says_what_would_decide_it():
    for file in (ROOT / "docs").glob("*/table.md"):
        for line in file.read_text().splitlines():
            known = not line.startswith(("- undecided", "- **undecided**")) or "clearly enough" in line
            assert known or claims.PLANNED.search(line), f"{file}: {line}"


def test_the_page_of_mutants_is_of_what_was_found_and_of_formulas_that_are_there():
    pytest.importorskip("mutmut")
    mutants = script(ROOT / "tests" / "mutation" / "mutants.py")
    assert (ROOT / "tests" / "mutation" / "README.md").read_text() == mutants.table()
    keys = {mutant.key for mutant in mutants.mutants_of("weights")}
    logs = "log_w.logsumexp(-1) - math.log(log_w.shape[-1])"
    assert f"weights.py log_mean: {logs} -> {logs.replace(' - ', ' + ')}" in keys
    assert all(mutant.code != (ROOT / mutant.file).read_text() for mutant in list(mutants.mutants_of("weights"))[:3])


@pytest.mark.parametrize("file", PAGES)
def test_the_pages_of_what_is_declared_are_what_their_command_writes(file):
    assert (ROOT / "docs" / file).read_text() == PAGES[file]()


def test_the_page_of_switches_names_what_there_is():
    """Options of the commands, and settings of every objective that it says have them."""
    page = (ROOT / "docs" / "over-optimisation.md").read_text()
    known = {f"--{key}" for config in (FinetuneConfig, GenerateConfig) for key in config.options()} | {"--help", "--set"}
    asked = set(re.findall(r"--[a-z][a-z-]*", page)) - {"---"}
    assert {word for word in asked if word.strip("-")} <= known
    for line in page.splitlines():
        if found := re.search(r"--set OBJECTIVE\.(\w+)", line):
            names = [name for name in re.findall(r"`([a-z-]+)`", line) if name in OBJECTIVES]
            assert all(found[1] in declared(OBJECTIVES[name]) for name in names), line
        if found := re.search(r"--set (\w+)\.(\w+)=", line):
            assert found[1] == "OBJECTIVE" or found[2] in declared(OBJECTIVES[found[1]])
