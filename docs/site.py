"""The documentation as a site: what it is built from, and in which order it stands.

    python docs/site.py build/docs                  pages and their order; `make docs` builds them with zensical, links checked
    python docs/site.py --choose > docs/choose.md   how to choose, from the rows of docs/*/table.md
    python docs/site.py --rows                      rows that `tilting methods NAME` quotes: src/tilting/assets/measured.json
    python docs/site.py --pictures DIR              pictures of methods and rewards, drawn into DIR: docs/pictures, docs/*.json

Pages of docs/ go in as they are. A page for each method, objective and reward is made of its declaration, with the rows that
recipes measured of it; papers.md and api.md are made of what is there. A page that nobody put into the order is a guide.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

import tilting
from tilting.cli import main, reference
from tilting.cli.lists import evaluations_of
from tilting.config.about import STEPS, about_method
from tilting.objectives import OBJECTIVES
from tilting.objectives.about import about_objective
from tilting.presets import METHODS
from tilting.reports.charts import MINUS
from tilting.reports.text import listed, markdown
from tilting.rewards.declaration import REWARDS

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FIRST = ("reward.md", "models.md", "gpu.md", "processes.md", "over-optimisation.md", "control.md", "evaluate.md")
"""Guides, in their order; others come after them."""
NUMBERS = ("found.md", "mixture-bias.md", "ctrl-theory.md")
PLACED = {
    "start.md",
    "choose.md",
    "README.md",
    "methods.md",
    "objectives.md",
    "rewards.md",
    "troubleshooting.md",
    "glossary.md",
}
WALKS = ("practitioner", "researcher", "scientist")
CARDS = {f"src/tilting/assets/{name}/README.md": f"{name}.md" for name in ("pocket", "pocket-bright")}
BESIDE = {
    **CARDS,
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/README.md": "numbers.md",
    "docs/start.md": "index.md",
    **{f"docs/{kind}.md": f"{kind}/index.md" for kind in ("methods", "objectives", "rewards")},
    **{f"examples/{name}.sh": f"walks/{name}.md" for name in WALKS},
}
"""Where pages stand on the site that stand elsewhere in the repository."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
CONFIG = """[project]
site_name = "tilting"
site_description = "Steer diffusion models with rewards"
docs_dir = "docs"
site_dir = "site"
extra_css = ["site.css"]
nav = {nav}

[project.validation]
invalid_links = true
invalid_link_anchors = true

[project.theme]
font = false
language = "en"
features = ["navigation.tabs", "navigation.sections", "navigation.top", "content.code.copy", "search.highlight", "toc.follow"]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"

[project.markdown_extensions]
admonition = {{}}
attr_list = {{}}
tables = {{}}
toc.permalink = true
pymdownx.highlight.pygments_lang_class = true
pymdownx.superfences = {{}}

[project.plugins.mkdocstrings.handlers.python]
paths = ["{source}"]

[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
show_root_heading = true
heading_level = 3
"""

STYLE = """/* Commands break where they are too long, pictures in tables are large, tables fit, or fade where they go on. */
.md-typeset .language-sh code { white-space: pre-wrap; overflow-wrap: anywhere; }
.md-typeset td img { width: min(20rem, 60vw); max-width: none; }
.md-nav__link--active, .md-nav__link--active .md-ellipsis { color: var(--md-typeset-a-color); }
.md-typeset td code { white-space: nowrap; }
.md-typeset table:not([class]) th { min-width: 0; vertical-align: bottom; }
.md-typeset table:not([class]) td:first-child { min-width: 4.5rem; }
.md-typeset table:not([class]) td:last-child { min-width: 7rem; }
.md-typeset table:not([class]) td, .md-typeset table:not([class]) th { padding: .6em .8em; }
.md-typeset__scrollwrap {
  background: linear-gradient(90deg, var(--md-default-bg-color) 40%, transparent) 0 0 / 2rem 100% no-repeat local,
    linear-gradient(270deg, var(--md-default-bg-color) 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
    linear-gradient(90deg, #8885, transparent) 0 0 / .6rem 100% no-repeat scroll,
    linear-gradient(270deg, #8885, transparent) 100% 0 / .6rem 100% no-repeat scroll;
}
.md-typeset table:not([class]) { background: none; }
"""
FENCE = re.compile(r"^(```sh\n)(.*?)\n```", re.MULTILINE | re.DOTALL)
WIDE = 84
"""Characters of a command that are shown without scrolling, in a window of 1280."""


def folded(block: str) -> str:
    """Commands, those that are too long broken before their options."""
    lines = []
    for line in block.replace(" \\\n    ", " ").splitlines():
        parts, *words = re.split(r" (?=-)", line) if re.match("tilting |accelerate ", line) else [line]
        for word in words:
            broken = len(f"{parts} {word} \\".rsplit("\n", 1)[-1]) > WIDE
            parts += f" \\\n    {word}" if broken else f" {word}"
        lines.append(parts)
    return "\n".join(lines)


def tables_of(page: Path) -> list[tuple[str, list[dict[str, str]]]]:
    """The tables of a page, each with the heading above it: a mapping of its heads for every row."""
    title, found, heads = "", [], None
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("|") else None
        title = line.removeprefix("## ") if line.startswith("## ") else title
        if cells and heads is None:
            found.append((title, []))
        elif cells and heads and len(cells) == len(heads) and set(cells) != {"---"}:
            found[-1][1].append(dict(zip(heads, cells, strict=True)))
        heads = None if cells is None else heads or cells
    return found


def rows_of(page: Path) -> list[dict[str, str]]:
    """The first table of a page."""
    return tables_of(page)[0][1]


def value(cell: str) -> float | None:
    """The number that a cell begins with."""
    found = re.match(rf"[+{MINUS}-]?[\d.]+(?:e[+-]?\d+)?", cell)
    return float(found[0].replace(MINUS, "-")) if found else None


def part_of(row: str) -> str | None:
    """The method or objective that a row of a recipe is of."""
    words = row.split(" ")[0].split("-")
    heads = ["-".join(words[: k + 1]) for k in range(len(words))]
    return next((head for head in reversed(heads) if head in METHODS or head in OBJECTIVES), None)


def pages() -> list[Path]:
    """The pages of recipes."""
    return sorted(DOCS.glob("*/table.md"))


def quoted() -> list[dict[str, str]]:
    """Every row that recipes have of a part, as its page says it: page, row, part, what it is a value of, value and gain over
    base, or base's value where a page has no gains, judge, evaluations."""
    found = []
    for page in pages():
        for title, rows in tables_of(page):
            base = next((row for row in rows if row.get("row") == "base"), {})
            for row in rows:
                part = part_of(row.get("row", ""))
                cost = next((key for key in row if key.startswith("evaluations")), None)
                if part is None or cost is None:
                    continue
                score = next((key for key in list(row)[1:] if value(row[key]) is not None), "")
                judge = next((key for key in row if key.startswith("judge")), "")
                told = {"page": page.parent.name, "row": row["row"], "part": part, "number": row.get("its number", "")}
                told |= {"what": title.split("), ")[0] + ")" if score == "reward" and title else score}
                name, where = re.match(r"([^,(]*[^,( ])(, [\w-]+)?", score).groups() if score else ("", "")
                told |= {"value": row.get(score, ""), "gain": row.get(f"{name} - base{where or ''}", "")}
                told |= {"base": "" if told["gain"] else base.get(score, "")}  # which may be of another sampler
                told |= {"judged": judge.split(" (")[0], "judge": row.get(judge, ""), "evaluations": row[cost]}
                found.append(told)
    return found


def rows() -> str:
    """Those of parts as they are by themselves, but for the pages of auto, whose budgets are many: measured.json."""
    own = [one for one in quoted() if one["row"] == one["part"] != "base" and not one["page"].startswith("auto-")]
    return "[\n" + ",\n".join(f" {json.dumps(one, ensure_ascii=False)}" for one in own) + "\n]\n"


def measured(name: str) -> list[str]:
    """The rows that recipes have of a part, as lines of a table."""
    found = [
        (
            *(f"[{one['page']}](../{one['page']}/table.md)", f"`{one['row']}`", f"{one['what'].split(' (')[0]} {one['value']}"),
            *(
                f"{one['gain']} over base" if one["gain"] else one["base"],
                one["judge"] + (" over base" if "- base" in one["judged"] else ""),
                one["evaluations"],
            ),
        )
        for one in quoted()
        if one["part"] == name
    ]
    if not found:
        return []
    heads = ("page", "row", "what came out", "base", "judge", "evaluations")
    told = "Rows of the recipes' pages on `pocket`; each page names the command that makes it."
    return ["## Measured here", "", told, "", *markdown(heads, list({row[2:]: row for row in found}.values())), ""]


SAME = "Of the same noise, with reward `clip` at 12 steps and default settings (`python docs/site.py --pictures DIR`):"
DRAWN = ("a fox", "a castle", "a sunflower")
"""What the pictures of methods show, an image of each."""
SEEN = {
    **{name: name for name in ("clip", "jpeg", "jpeg-up", "jpeg-diff", "jpeg-diff-up", "rotation")},
    **{"style": "style:noto", "symmetry": "symmetry:lr", "color": "color:red"},
}
"""Rewards whose pictures are shown, as they are asked for: those that need nothing but what is in the package."""


def pictures(out: Path) -> None:
    """Draw ``DRAWN`` by every method from the same noise: a strip of each in docs/pictures, what it gave in methods.json."""
    names = [name for name in METHODS if not METHODS[name].needs_picture]
    words = [*DRAWN, "--reward", "clip", "--steps", "12", "--methods", ",".join(names), "--out", str(out)]
    assert main(["compare", *words]) == 0
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    told = {}
    for row in found["methods"]:
        strip(out, found, row["method"], row["method"])
        told[row["method"]] = {
            "reward": row["reward"]["mean"],
            "judge": row["judge"]["mean"],
            "evaluations": row["evaluations_per_image"],
        }
    _told("methods", told)


def pictures_of_rewards(out: Path) -> None:
    """The same by CoDe for every reward of ``SEEN``, beside the base model's: docs/pictures, what each gave in rewards.json."""
    told = {}
    for name, spec in SEEN.items():
        words = [*DRAWN, "--reward", spec, "--steps", "12", "--methods", "base,code", "--out", str(out / name)]
        assert main(["compare", *words]) == 0
        found = json.loads((out / name / "metrics.json").read_text(encoding="utf-8"))
        strip(out / name, found, "code", f"reward-{name}")
        told[name] = {
            row["method"]: {"reward": row["reward"]["mean"], "judge": row["judge"]["mean"]} for row in found["methods"]
        }
    _told("rewards", told)


def strip(out: Path, found: dict[str, Any], method: str, name: str) -> None:
    """The images of a comparison's column side by side, as docs/pictures/NAME.png."""
    files = [entry["methods"][method]["file"] for entry in found["images"]]
    cells = [Image.open(out / file).convert("RGB") for file in files]
    made = Image.new("RGB", (sum(cell.width + 4 for cell in cells) - 4, cells[0].height), "white")
    for k, cell in enumerate(cells):
        made.paste(cell, (k * (cell.width + 4), 0))
    made.save(DOCS / "pictures" / f"{name}.png", optimize=True)


def _told(kind: str, told: dict[str, Any]) -> None:
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in told.items())
    (DOCS / f"{kind}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def shown(name: str) -> list[str]:
    """The picture of a method beside the base model's, with what each gave."""
    known = json.loads((DOCS / "methods.json").read_text(encoding="utf-8"))
    if name not in known:
        return []
    lines = ["## Pictures", "", SAME, ""]
    cells = []
    for one in dict.fromkeys(("base", name)):
        row = known[one]
        picture = f"![{listed(DRAWN)}, by {one}](../pictures/{one}.png)"
        cells.append((f"`{one}`", picture, f"{row['reward']:.3f}", f"{row['judge']:.2f}", f"{row['evaluations']:g}"))
    return [*lines, *markdown(("method", "pictures", "reward", "judge", "evaluations"), cells), ""]


def method(name: str) -> str:
    """The page of a method."""
    row = about_method(name)
    needs = "the reward's gradient, or zero-order probes of any reward" if row["zero_order"] else "the reward's gradient"
    eta = "above 0" if row["stochastic"] else "any"
    told = f"It needs {needs if row['gradient'] else 'no gradient'}; eta {eta}."
    cost = f"An image costs {evaluations_of(row)} evaluations at {STEPS} steps (`tilting methods {name}`)."
    body = ["", "## Cost", "", f"{told} {cost}", "", *shown(name), *measured(name)]
    return "\n".join([*reference.method(name, row, level=1), *body])


def grown(name: str) -> list[str]:
    """The picture of training of the first recipe that measured an objective and has one."""
    for page in pages():
        if page.with_name("progress.png").is_file() and any(part_of(row.get("row", "")) == name for row in rows_of(page)):
            at = page.parent.name
            return [
                "## Pictures",
                "",
                f"As training goes on, from [{at}](../{at}/table.md):",
                "",
                f"![Samples, a row each](../{at}/progress.png)",
                "",
            ]
    return []


def objective(name: str) -> str:
    """The page of an objective."""
    row = about_objective(name)
    paid = f"{'~' if row['drawn'] else ''}{row['evaluations']:g} evaluations and {row['reward_calls']:g} reward calls"
    cost = f"An image and training step costs {paid} at {row['counted_at']} steps (`tilting objectives {name}`)."
    through = f"Gradient through: {row['gradient']}; eta {row['eta']:g}."
    body = ["", "## Cost", "", f"{through} {cost}", "", *grown(name), *measured(name)]
    return "\n".join([*reference.objective(name, row, level=1), *body])


def reward(name: str) -> str:
    """The page of a reward."""
    one = REWARDS[name]
    lines = [f"# {name}", "", f"{one.about[0].upper()}{one.about[1:]}. Units: {one.units}; higher is better.", ""]
    lines += ["```sh", f"tilting generate \"a fox\" --reward '{SEEN.get(name, one.usage)}' --method code --out run", "```", ""]
    lines += [f"It has {'a' if one.differentiable else 'no'} gradient with respect to the picture.", ""]
    lines += [line for part in one.told for line in (part.replace("|", "\\|"), "")]
    lines += seen(name)
    if one.sources or one.extra:
        lines += ["## What it needs", "", *(f"- {source.told.split(' (')[0]}" for source in one.sources)]
        lines += [f"- `pip install 'tilting[{one.extra[0]}]'`"] if one.extra else []
    return "\n".join(lines) + "\n"


def seen(name: str) -> list[str]:
    """The picture of a reward beside the base model's; or that there is none, and why."""
    known = json.loads((DOCS / "rewards.json").read_text(encoding="utf-8"))
    if name not in known:
        return ["No picture: it needs what the package does not have (weights, a service, or a file of yours).", ""]
    said = f"Of the same noise, at 12 steps, CoDe with reward `{SEEN[name]}` (`python docs/site.py --pictures DIR`):"
    cells = [
        (f"`{one}`", f"![{listed(DRAWN)}, by {one}](../pictures/{at}.png)", f"{row['reward']:.4g}", f"{row['judge']:.2f}")
        for (one, row), at in zip(known[name].items(), ("base", f"reward-{name}"), strict=True)
    ]
    return ["## Pictures", "", said, "", *markdown(("method", "pictures", "reward", "judge"), cells), ""]


def papers() -> str:
    """Paper -> its names here -> where it was measured."""
    known: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind, registry in (("methods", METHODS), ("objectives", OBJECTIVES)):
        for name, part in registry.items():
            for paper in part.paper.split("; "):
                known[re.split(r", (?:App|Alg|Sec|Eq|Fig|ch)\b", paper)[0]].append((kind, name))
    where: dict[str, list[str]] = defaultdict(list)
    for page in pages():
        for name in {part_of(row.get("row", "")) for row in rows_of(page)} - {None}:
            where[str(name)].append(f"[{page.parent.name}]({page.parent.name}/table.md)")
    table = []
    for paper in sorted(known, key=str.lower):
        names = dict.fromkeys(known[paper])
        here = ", ".join(f"[`{name}`]({kind}/{name}.md)" for kind, name in names)
        seen = dict.fromkeys(link for _, name in names for link in where.get(name, ()))
        table.append((paper, here, ", ".join(seen)))
    head = [
        "# Paper index",
        "",
        "Every method and objective names its paper. The last column are pages on which it was measured;",
        "[the index](numbers.md) counts which claims hold there.",
        "",
    ]
    return "\n".join([*head, *markdown(("paper", "here", "measured"), table)]) + "\n"


def api() -> str:
    """What `import tilting as tl` has."""
    lines = ["# API", "", "`import tilting as tl`; names load what they need when they are first asked for.", ""]
    homes = {name: f"tilting.{home}.{name}" for home, names in tilting._HOMES.items() for name in names}
    parts = {
        "Commands": [name for name in sorted(homes) if name not in ("TiltingError", "RewardError")],
        "Errors": ["TiltingError", "RewardError"],
    }
    for title, names in parts.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: {homes[name]}", ""]
    lines += ["## Parts", ""]
    for path in (
        *("method.Method", "method.Every", "presets.common.Preset", "objectives.batch.BaseObjective"),
        *("sample.sample", "state.State", "state.Info", "select.Select", "generation.trace.Recorder"),
    ):
        lines += [f"::: tilting.{path}", ""]
    return "\n".join(lines)


# How to choose

CHOICES: tuple[dict[str, Any], ...] = (
    {
        "asked": "The reward has a gradient, and a picture may cost eight times a plain one",
        "page": "codex-table3",
        "score": "clip (raw cosine)",
        "most": 160,
    },
    {
        "asked": "The reward has a gradient, and no more than a plain picture's evaluations can be paid",
        "page": "codex-table3",
        "score": "clip (raw cosine)",
        "most": 20,
    },
    {"asked": "The reward is a black box", "page": "codex-table6", "score": "jpeg (-kB)", "most": 260},
    {"asked": "A picture is there to start from", "page": "codex-table5", "score": "clip (raw cosine)", "most": 80},
    {
        "asked": "Draws shall follow p(x) exp(r/β) itself, not its peak (a mixture that is known exactly)",
        "page": "mixture-bias",
        "score": "D²",
        "most": 80,
        "least": True,
    },
    {
        "asked": "The same prompts will be drawn often: pay once, in training",
        "page": "draft-fig3",
        "score": "style - base, train",
        "most": 6000,
    },
    {"asked": "A label set, and pictures shall obey a label", "page": "ctrl-table2", "score": "accuracy, size", "most": 12},
)
"""What people have, the page that measured it, the column that decides, and the most evaluations that a row may have cost."""


CHOOSE = """# How to choose

Each line is a row of a page that a recipe made on `pocket`: of those that cost no more evaluations than the line says, the
best by the column named. `python docs/site.py --choose` derives this page from those rows, and a test holds it to them. Numbers
are of a small model.

{table}

What decides, in words:

- **Has the reward a gradient?** `tilting rewards` says so. With one, gradient methods reach further for each evaluation;
  without one, select among particles (`code`, `bon`, `svdd`, `rbf`). Gradient methods take probes too; on small files they
  cost more than they gave ([codex-table6](codex-table6/table.md)).
- **What may a picture cost?** `tilting methods` counts evaluations: `mpgd` and `dps` cost those of a plain picture, `code`
  those of its particles, `codex` a third more.
- **Is there a budget?** `--method auto --budget 100` (evaluations per image) or `--budget 30s` takes the method that gained
  most for as much by the table of `tilting recipe auto-table`, and says which and why; it takes nothing that was not measured,
  and passes over what cannot steer this model or does not fit into `--memory` ([auto-table](auto-table/table.md);
  [auto-proof](auto-proof/table.md) holds it against every single method on other rewards).
- **Will it be drawn often?** A LoRA ([objectives](objectives.md)) pays once; then a picture costs what it always did.
- **Is it a label rather than a score?** Learn a control from labelled pictures: [a control from 600 labels](control.md).
- **Does it have to be a fair draw?** `das`, `tds` and `smc` weigh particles: [mixture-bias](mixture-bias.md) says how near they
  come.
- Whatever it is, look at a judge that the reward does not read: [evaluate honestly](evaluate.md).
"""


def chosen(choice: dict[str, Any]) -> dict[str, str]:
    """The row of the page that decides: of the highest score (or the least error) among those that cost no more."""
    page = DOCS / choice["page"]
    rows = [row for row in rows_of(page / "table.md" if page.is_dir() else page.with_suffix(".md")) if _counts(row, choice)]
    sign = -1 if choice.get("least") else 1
    return max(rows, key=lambda row: sign * (value(row[choice["score"]]) or 0.0))


def _counts(row: dict[str, str], choice: dict[str, Any]) -> bool:
    cost = next(value(row[key]) for key in row if key.startswith("evaluations"))
    known = value(row[choice["score"]]) is not None and cost is not None and cost <= choice["most"]
    return known and not _name(row).startswith(("floor", "base", "exact"))


def _name(row: dict[str, str]) -> str:
    return row.get("row") or f"{row['method']} {row['setting']}"


def untold(choice: dict[str, Any], name: str) -> list[str]:
    """Rows from which the page cannot tell the one that was chosen."""
    page = DOCS / choice["page"] / "table.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    part = text.split("## Claim", 1)[-1].split("\n## ", 1)[0]
    against = re.findall(r"^- undecided against ([\w.-]+):", part, re.MULTILINE)
    pairs = re.findall(r"^- \*\*undecided\*\*:.* of ([\w.-]+) - ([\w.-]+);", text, re.MULTILINE)
    ends = [one for pair in pairs if name in pair for one in pair if one != name]
    rows = rows_of(page) if page.is_file() else []
    best = next((value(row[choice["score"]]) for row in rows if _name(row) == name), None)
    ties = [_name(row) for row in rows if _counts(row, choice) and value(row[choice["score"]]) == best and _name(row) != name]
    return [*ties, *ends, *(against if f"reward - {name}" in text else [])]


def choose() -> str:
    """The page of how to choose."""
    table = []
    for choice in CHOICES:
        row = chosen(choice)
        name, score = _name(row), choice["score"]
        part = part_of(name)
        kind = "objectives" if part in OBJECTIVES else "methods"
        take = f"[`{part}`]({kind}.md#{part})" if part else "[`condition train`](control.md)"
        same = untold(choice, name)
        page = f"{choice['page']}/table.md" if (DOCS / choice["page"]).is_dir() else f"{choice['page']}.md"
        cost = next(key for key in row if key.startswith("evaluations"))
        judge = next((row[key] for key in row if key.startswith("judge")), "")
        told = f"{score}: {row[score]}" + (f"; not told from {listed([f'`{one}`' for one in same])}" if same else "")
        told += f"; judge {judge}" if judge else ""
        table.append((choice["asked"], take, told, row[cost], f"`{name}` of [{choice['page']}]({page})"))
    heads = ("what you have", "take", "what it gave", "evaluations", "row")
    return CHOOSE.format(table="\n".join(markdown(heads, table)))


# The site


def moved(text: str, source: Path, target: str) -> str:
    """A page's text with its links as they are on the site.

    Args:
        text: of the page.
        source: where it stands in the repository.
        target: where on the site, from its root.
    """

    def link(found: re.Match[str]) -> str:
        mark, words, path, anchor = found[1], found[2], found[3], found[4] or ""
        if not path and anchor and target.endswith("/index.md"):  # the page's parts are pages
            return f"[{words}]({anchor[1:]}.md)"
        if not path or "://" in path:
            return found[0]
        name = (source.parent / path).resolve().relative_to(ROOT).as_posix()
        part = re.fullmatch(r"docs/(methods|objectives|rewards)\.md", name)
        if part and anchor:
            place, anchor = f"{part[1]}/{anchor[1:]}.md", ""
        elif name in BESIDE:
            place = BESIDE[name]
        elif name.startswith("docs/"):
            place = name.removeprefix("docs/")
        else:
            return words  # a file of the repository that is no page
        up = "../" * target.count("/")
        return f"{mark}[{words}]({up}{place}{anchor})"

    return "".join(
        block if fence else LINK.sub(link, block)
        for fence, block in ((k % 2, block) for k, block in enumerate(re.split(r"(^```.*?^```)", text, flags=re.M | re.S)))
    )


def notebook(path: Path) -> str:
    """A notebook as a page: its words and its code."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [
        "".join(one["source"]) if one["cell_type"] == "markdown" else f"```python\n{''.join(one['source'])}\n```"
        for one in cells
    ]
    return "\n\n".join([*parts, f"This page is `examples/{path.name}`.", ""])


def walk(path: Path) -> str:
    """A walk of examples/ as a page: its words, and the commands that it runs where it is not small."""
    script = path.read_text(encoding="utf-8")
    about, header, body = re.fullmatch(r"#!/bin/sh\n# (.*?): sh .*?\n(set -eu\n.*?)\n\n(.*)", script, re.DOTALL).groups()  # type: ignore[union-attr]
    usual = dict(re.findall(r"(\w+)=(\S+)", re.search(r"else (.*?); fi", header)[1]))  # type: ignore[index]
    usual |= {"tilting": "tilting", "out": re.search(r"out=\$\{1:-(\S+)\}", header)[1]}  # type: ignore[index]
    body = re.sub(r'"([^"\s]*\$out[^"\s]*)"', r"\1", body)
    body = re.sub(r"\$(\w+)", lambda found: usual[found[1]], body)
    lines = [f"# {path.stem.capitalize()}: {about[0].lower()}{about[1:]}", "", f"`sh examples/{path.name}` runs all of it.", ""]
    for part in re.split(r"\n\n(?=# )", body.strip()):
        words = re.match(r"(?:# .*\n)+", part)
        said = words[0].replace("# ", "").replace("\n", " ") if words else ""
        lines += [said.strip(), "", "```sh", part[len(words[0]) if words else 0 :], "```", ""]
    return "\n".join(lines)


def tabled(text: str) -> str:
    """A page in whose tables no interval, "[0.1, 0.2]", is broken over lines, nor a slash taken from its number, and that have
    minus signs before numbers."""

    def row(line: re.Match[str]) -> str:
        kept = re.sub(rf"(?<=\d), (?=[+{MINUS}-]?[\d.]+\])", ",\N{NO-BREAK SPACE}", line[0])
        return re.sub(r"(?<=[|/] )-(?=\d)", MINUS, re.sub(r"(?<=\d) / (?=\S)", "\N{NO-BREAK SPACE}/ ", kept))

    return re.sub(r"^\|.*$", row, text, flags=re.MULTILINE)


def contents() -> dict[str, str]:
    """Every page of the site, by its place."""
    made: dict[str, str] = {}
    for page in sorted(DOCS.rglob("*.md")):
        place = BESIDE.get(page.relative_to(ROOT).as_posix(), page.relative_to(DOCS).as_posix())
        text = page.read_text(encoding="utf-8")
        if page.stem in ("methods", "objectives", "rewards"):
            text = text.split("\n## ", 1)[0]
        made[place] = moved(text, page, place)
    for name in (*CARDS, "CONTRIBUTING.md", "CHANGELOG.md"):
        made[BESIDE[name]] = moved((ROOT / name).read_text(encoding="utf-8"), ROOT / name, BESIDE[name])
    made |= {f"methods/{name}.md": method(name) for name in METHODS}
    made |= {f"objectives/{name}.md": objective(name) for name in OBJECTIVES}
    made |= {f"rewards/{name}.md": reward(name) for name in REWARDS}
    made |= {f"notebooks/{one.stem}.md": notebook(one) for one in sorted((ROOT / "examples").glob("*.ipynb"))}
    made |= {f"walks/{name}.md": walk(ROOT / "examples" / f"{name}.sh") for name in WALKS}
    made |= {"papers.md": papers(), "api.md": api()}
    made = {place: FENCE.sub(lambda found: f"{found[1]}{folded(found[2])}\n```", text) for place, text in made.items()}
    return {place: tabled(text) for place, text in made.items()}


def order(made: dict[str, str]) -> list[dict[str, Any]]:
    """The navigation: every page once, in the order in which people need them."""
    top = [name for name in made if "/" not in name]
    taken = {*NUMBERS, *BESIDE.values(), "papers.md", "api.md", *PLACED}
    guides = [*(name for name in FIRST if name in made), *(name for name in top if name not in taken and name not in FIRST)]
    inner = {
        kind: [{"All": f"{kind}/index.md"}, *(f"{kind}/{name}.md" for name in registry)]
        for kind, registry in (("methods", METHODS), ("objectives", OBJECTIVES), ("rewards", REWARDS))
    }
    tables = [name for name in made if name.endswith("/table.md")]
    notebooks = [name for name in made if name.startswith("notebooks/")]
    return [
        {"Start": ["index.md", *(name for name in made if name.startswith("walks/"))]},
        {"How to choose": "choose.md"},
        {"Guides": [*guides, {"Notebooks": notebooks}]},
        {"Methods": inner["methods"]},
        {"Objectives": inner["objectives"]},
        {"Rewards": inner["rewards"]},
        {"Paper index": "papers.md"},
        {"API": "api.md"},
        {"Troubleshooting": "troubleshooting.md"},
        {"Numbers": ["numbers.md", *NUMBERS, *tables]},
        {"More": ["glossary.md", "pocket.md", "pocket-bright.md", "contributing.md", "changelog.md"]},
    ]


def toml(value: Any) -> str:
    """A value of the navigation as TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def write(out: Path) -> None:
    """All that zensical builds the site from, in a folder that is made anew."""
    shutil.rmtree(out / "docs", ignore_errors=True)
    made = contents()
    for place, text in made.items():
        (out / "docs" / place).parent.mkdir(parents=True, exist_ok=True)
        (out / "docs" / place).write_text(text, encoding="utf-8")
    for picture in (*DOCS.rglob("*.png"), *DOCS.rglob("*.webp")):
        place = out / "docs" / picture.relative_to(DOCS)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    config = CONFIG.format(nav=toml(order(made)), source=(ROOT / "src").as_posix())
    (out / "docs" / "site.css").write_text(STYLE, encoding="utf-8")
    (out / "zensical.toml").write_text(config, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--choose"]:
        sys.stdout.write(choose())
    elif sys.argv[1:] == ["--rows"]:
        (ROOT / "src/tilting/assets/measured.json").write_text(rows(), encoding="utf-8")
    elif sys.argv[1] == "--pictures":
        pictures(Path(sys.argv[2]) / "methods")
        pictures_of_rewards(Path(sys.argv[2]) / "rewards")
    else:
        write(Path(sys.argv[1]))
