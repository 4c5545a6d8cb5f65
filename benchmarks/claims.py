"""What of the papers' claims holds on `pocket`: counted from the pages that the recipes wrote into docs/.

    python benchmarks/claims.py > docs/README.md

A claim holds, fails, or is undecided where its interval reaches zero; the pages say what was found.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tilting_papers import CTRL, DRAFT, RECIPES, THESIS

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# What holds

Pages that `tilting recipe NAME --out DIR` made on `pocket`, as they came out. A claim of a paper *holds*, *fails*, or is
*undecided* where its 95 % interval reaches zero; each page says what was found, and gives the published values beside ours.
`python benchmarks/claims.py` counts them.
"""
PAPERS = {"codex": f"T{THESIS[1:]}", "draft": DRAFT, "ctrl": CTRL, "": "On a mixture that is known exactly"}
VERDICTS = ("holds", "undecided", "fails")
VERDICT = re.compile(rf"^- (?:\*\*)?({'|'.join(VERDICTS)})\b", re.MULTILINE)
FALLS = re.compile(r"^- the held-out judge falls", re.MULTILINE)
"""A line of the tables of the CoDeX thesis: that much of their one claim fails."""


def counted(page: str) -> Counter[str]:
    """Verdicts of a page's claims."""
    return Counter([*VERDICT.findall(page), *("fails" for _ in FALLS.findall(page))])


def row(name: str) -> str:
    """A recipe's line of the index."""
    about, paper = RECIPES[name].about, RECIPES[name].paper
    place = paper.partition(", ")[2] or paper
    file = next((file for file in (DOCS / name / "table.md", DOCS / f"{name}.md") if file.is_file()), None)
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
    return "\n".join(lines)


if __name__ == "__main__":
    print(index(), end="")
