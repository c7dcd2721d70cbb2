"""One style for all figures: legible in print, safe for colour-blind readers, PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.figures import blank_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design, 2008).
PALETTE = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")

_DPI = 200
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "einfuse",
    "svg.fonttype": "path",
    "figure.dpi": 100,
}


def new_figure(
    rows: int, columns: int, width: float, height: float, *, share: bool = True
) -> tuple[Figure, Any]:
    """Return a figure in the house style and its axes, rows x columns.

    The axes share their scales: x all of them, y those of a row; unless ``share`` is false.
    """
    figure = blank_figure(width, height, _STYLE)
    axes = figure.subplots(
        rows, columns, sharex=share, sharey="row" if share else False, squeeze=False
    )
    return figure, axes


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``, whole."""
    for kind in ("png", "svg"):
        write_figure(folder / f"{name}.{kind}", figure, dpi=_DPI)
