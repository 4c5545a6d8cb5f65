"""What of the papers' claims holds on `pocket`: counted from the pages that the recipes wrote into docs/.

    python benchmarks/claims.py > docs/README.md
    python benchmarks/claims.py --plan              every undecided claim of a page says how many prompts would decide it

A claim holds, fails, or is undecided where its interval reaches zero; the pages say what was found. Pages that were made before
recipes wrote it themselves have percentile bootstraps over K prompts, whose standard error is (high - low) / 2 / 1.96
√(K / (K - 1)): from that the plan is made, and by it a t interval, which is wider, may leave open what such a page decides.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

from tilting.metrics.statistics import Estimate, reach
from tilting_papers import CTRL, DRAFT, RECIPES, THESIS
from tilting_papers.numbers import needed

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# What holds

Pages that `tilting recipe NAME --out DIR` made on `pocket`, as they came out. A claim of a paper *holds*, *fails*, or is
*undecided* where its 95 % interval reaches zero; each page says what was found, and gives the published values beside ours.
`python benchmarks/claims.py` counts them. An undecided claim says how many prompts would decide it four times out of five, if
mean and spread are as they were found, with as many training seeds.

The same tables of your own model, reward and prompts, every inference method at equal evaluations for one:

```sh
tilting recipe field-methods --model MODEL --reward my.py:score --prompts prompts.txt --seeds 0,1,2 --steps 30 --out DIR
```
"""
PAPERS = {"codex": f"T{THESIS[1:]}", "draft": DRAFT, "ctrl": CTRL, "mixture": "On a mixture that is known exactly"}
PAPERS |= {"": "The field's methods and objectives, at equal cost"}
OPEN = (
    "Pages that say so have percentile bootstraps, which are too narrow: at 8 prompts such an interval covers .89, not .95 "
    "(`tests/evaluation/test_statistics.py`). By a t interval over the same prompts, {} of the claims that they decide "
    "are undecided:"
)
VERDICTS = ("holds", "undecided", "fails")
VERDICT = re.compile(rf"^- (?:\*\*)?({'|'.join(VERDICTS)})\b", re.MULTILINE)
FALLS = re.compile(r"^- the held-out judge falls", re.MULTILINE)
"""A line of the tables of the CoDeX thesis: that much of their one claim fails."""


BOOTSTRAP = "bootstrap intervals"
"""What pages of before say of theirs."""
SIZES = re.compile(r"looked at on (\d+)|, (\d+) prompts x")
CLAIM = re.compile(r"^- (?:\*\*)?(holds|undecided|fails)\b.*$", re.MULTILINE)
NUMBER = r"[+\N{MINUS SIGN}]?[\d.]+(?:e-?\d+)?"
FOUND = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\](?! degrees| of )")
PLANNED = re.compile(r" would (?:decide|be needed)")


def estimate(line: str, page: str) -> Estimate | None:
    """The mean that a claim's line has, and its standard error over the page's prompts; None of ratios and angles."""
    found, size = FOUND.search(line), SIZES.search(page)
    if found is None or size is None or " needs " in line or " times " in line:
        return None
    mean, low, high = (float(text.replace("\N{MINUS SIGN}", "-")) for text in found.groups())
    prompts = int(size[1] or size[2])
    wide = 1.96 * sqrt(1 - 1 / prompts) if BOOTSTRAP in page else reach(0.95, prompts)
    return Estimate(mean, (((high - low) / 2 / wide, prompts - 1),))


def planned(page: str) -> str:
    """A page whose undecided claims all say what would decide them."""

    def plan(match: re.Match[str]) -> str:
        line, found = match[0], estimate(match[0], page)
        if match[1] != "undecided" or PLANNED.search(line) or found is None:
            return line
        place = (FOUND.search(line) or match).end()
        return f"{line[:place]}{needed(found).replace(';', ' (about', 1).replace('(about more', '(more')}){line[place:]}"

    return CLAIM.sub(plan, page)


def open_by_t(page: str) -> Iterator[str]:
    """Claims that a page of bootstraps decides, and a t interval of the same spread over the same prompts would not."""
    for match in CLAIM.finditer(page) if BOOTSTRAP in page else ():
        found = estimate(match[0], page)
        if match[1] != "undecided" and found is not None:
            interval = found.interval()
            if not interval.above and not interval.below:
                yield match[0].removeprefix("- ").partition(" The paper:")[0].partition(" (128")[0]


def counted(page: str) -> Counter[str]:
    """Verdicts of a page's claims."""
    return Counter([*VERDICT.findall(page), *("fails" for _ in FALLS.findall(page))])


def file_of(name: str) -> Path | None:
    """A recipe's page; None where it has not been made."""
    return next((file for file in (DOCS / name / "table.md", DOCS / f"{name}.md") if file.is_file()), None)


def row(name: str) -> str:
    """A recipe's line of the index."""
    about, paper = RECIPES[name].about, RECIPES[name].paper
    place = paper.partition(", ")[2] or paper
    file = file_of(name)
    if file is None:
        return f"| {name} | {about} | {place} | not run whole yet | | |"
    counts = counted(file.read_text())
    cells = [str(counts[verdict]) if counts.total() else "" for verdict in VERDICTS]
    return f"| [{name}]({file.relative_to(DOCS)}) | {about} | {place} | {' | '.join(cells)} |"


def index() -> str:
    """The whole of docs/README.md."""
    lines, left = [HEAD], list(RECIPES)
    for prefix, paper in PAPERS.items():
        lines += [
            f"## {paper}",
            "",
            "| page | what | after | holds | undecided | fails |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        mine = [name for name in left if name.startswith(prefix)]
        lines += [*map(row, mine), ""]
        left = [name for name in left if name not in mine]
    opened = [(name, claim) for name in RECIPES if (file := file_of(name)) for claim in open_by_t(file.read_text())]
    lines += ["## What a t interval leaves open", "", OPEN.format(len(opened)), ""]
    lines += [f"- [{name}]({name}/table.md): {claim}" for name, claim in opened]
    return "\n".join([*lines, ""])


def main() -> None:
    """The command."""
    if "--plan" not in sys.argv[1:]:
        print(index(), end="")
        return
    for file in filter(None, map(file_of, RECIPES)):
        file.write_text(planned(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
