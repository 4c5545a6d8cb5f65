"""Tables as CSV, and as LaTeX for the package booktabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def as_csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as CSV; None is an empty cell, numbers have all their digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return file.getvalue()


def as_latex(heads: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """A table as LaTeX: names on the left, numbers to the right, four digits of them; what LaTeX reads otherwise is escaped."""
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    body = [" & ".join(map(_cell, row)) + r" \\" for row in rows]
    lines += [" & ".join(map(_cell, heads)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, rf"\caption{{{_cell(caption)}}}", r"\end{table}"]) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "--"
    if isinstance(value, float):
        digits, e, power = f"{value:.4g}".partition("e")
        return rf"${digits} \times 10^{{{int(power)}}}$" if e else f"${digits}$"
    return "".join(SPECIAL.get(char, char) for char in str(value))
