"""The picture of `tilting_papers.mixture.bias`: every method's draws on the exact density, and D² over cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tilting_papers.charts import blank, plain, save

BOX = (-2.7, 3.0, -3.1, 2.5)
INK, POINT, FAINT = "#222222", "#c0396b", "#777777"
KINDS = {  # colour and marker of each kind of method, and who is of it
    "selection": ("#3366cc", "o", ("bon", "code", "svdd", "rbf")),
    "gradient": ("#d9622b", "s", ("dps (step)", "dps (score)", "mpgd (paper)", "mpgd (code)", "freedom", "ug", "lgd", "tfg")),
    "both": ("#8a4fbf", "D", ("codex",)),
    "weighted": ("#2b8a4b", "^", ("smc", "tds", "das", "fk")),
    "model": ("#777777", "o", ("base",)),
}


def best_of(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of least D² of each method, in the table's order."""
    best: dict[str, dict[str, Any]] = {}
    for row in table:
        if row["method"] not in best or row["energy"] < best[row["method"]]["energy"]:
            best[row["method"]] = row
    return list(best.values())


def _density(x: Tensor, w: Tensor, cells: int = 90):
    """A smoothed histogram of weighted draws on BOX, and its grid."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    edges = [np.linspace(BOX[0], BOX[1], cells + 1), np.linspace(BOX[2], BOX[3], cells + 1)]
    height, _, _ = np.histogram2d(x[:, 0].numpy(), x[:, 1].numpy(), edges, weights=w.numpy())
    middle = [(e[1:] + e[:-1]) / 2 for e in edges]
    return middle[0], middle[1], gaussian_filter(height, 1.6).T


def figure(table: Sequence[dict[str, Any]], cloud: Tensor, w: Tensor, path: Path) -> None:
    """Small panels of draws of each method's best row over the exact density, and below D² against evaluations.

    Args:
        table: rows of `tilting_papers.mixture.bias.rows`.
        cloud, w: weighted draws (n, 2) of the exact law.
        path: the PNG to write.
    """
    shown, columns = best_of(table), 5
    lines = -(-len(shown) // columns)
    canvas = blank(12.5, 2.55 * lines + 4.6)
    grid = canvas.add_gridspec(lines + 1, columns, height_ratios=[1.0] * lines + [1.75])
    gx, gy, height = _density(cloud, w)
    greys = ["#f0f0f0", "#e0e0e0", "#cacaca", "#b0b0b0"]
    levels = [height.max() * f for f in (0.02, 0.1, 0.3, 0.6, 1.0)]
    for i, row in enumerate(shown):
        axis = canvas.add_subplot(grid[i // columns, i % columns])
        axis.contourf(gx, gy, height, levels, colors=greys)
        points = row["points"][:500]
        axis.plot([p[0] for p in points], [p[1] for p in points], ".", color=POINT, markersize=3, alpha=0.75, mew=0)
        axis.set(xlim=BOX[:2], ylim=BOX[2:], xticks=[], yticks=[], aspect="equal")
        axis.spines[:].set_color("#cccccc")
        title = f"{row['method']}" + (f": {row['setting']}" if row["setting"] else "")
        axis.set_title(title, fontsize=8.5, color=INK, pad=3)
        axis.set_xlabel(
            f"D² {max(row['energy'], 0):.4f}, {row['evaluations']:.4g} evaluations", fontsize=7.5, color=FAINT, labelpad=2
        )
    _costs(canvas.add_subplot(grid[lines, :]), table, shown)
    canvas.suptitle("Draws (points) on the exact tilt (grey): each method at its best setting", fontsize=11, color=INK)
    save(canvas, path, dpi=110)


def _costs(axis: Any, table: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]]) -> None:
    """D² over evaluations, both logarithmic; what cannot be told from exact lies in the shaded band."""
    null, floor = table[0]["null"], table[0]["null"] / 4
    axis.axhspan(floor / 1.3, null, color="#2b8a4b", alpha=0.12, lw=0)
    axis.text(0.012, 0.03, "not to be told from exact", transform=axis.transAxes, fontsize=8, color="#2b8a4b")
    named: list[tuple[float, float]] = []
    for kind, (colour, marker, members) in KINDS.items():
        rows = [row for row in table if row["method"] in members]
        dots = [row["evaluations"] for row in rows], [max(row["energy"], floor) for row in rows]
        axis.plot(*dots, marker, color=colour, label=kind, markersize=6, alpha=0.8, mew=0)
    for row in sorted(best[1:], key=lambda r: -r["energy"]):
        x, y = row["evaluations"], max(row["energy"], floor)
        while any(abs(x / a - 1) < 0.25 and 0.76 < y / b < 1 / 0.76 for a, b in named):
            y *= 0.95
        named.append((x, y))
        axis.annotate(row["method"], (x, y), (x * 1.03, y), fontsize=7.5, color=INK, va="center")
    axis.set(xscale="log", yscale="log", xlabel="denoiser evaluations per run", ylabel="energy distance D² to the exact tilt")
    ticks = sorted({round(row["evaluations"]) for row in table if row["evaluations"]})
    kept = [t for i, t in enumerate(ticks) if i == 0 or t / ticks[i - 1] > 1.15]
    axis.set_xticks(kept, [f"{t:g}" for t in kept])
    axis.minorticks_off()
    plain(axis)
    axis.legend(loc="upper right", fontsize=8, frameon=False, ncols=5)
