"""One style for all figures: legible in print, safe for colour-blind readers, PNG and SVG."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design, 2008).
PALETTE = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")

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
    "savefig.dpi": 200,
}


def new_figure(
    rows: int, columns: int, width: float, height: float, *, share: bool = True
) -> tuple[Figure, Any]:
    """Return a figure in the house style and its axes, rows x columns.

    The axes share their scales: x all of them, y those of a row; unless ``share`` is false.
    """
    import matplotlib

    matplotlib.use("Agg")
    parameters: Any = matplotlib.rcParams
    parameters.update(_STYLE)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height), sharex=share, sharey="row" if share else False,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    return figure, axes


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg``, whole, and close the figure."""
    from matplotlib import pyplot

    for kind in ("png", "svg"):
        metadata = {"Date": None} if kind == "svg" else None  # the same bytes every time
        write_whole(
            folder / f"{name}.{kind}", partial(figure.savefig, format=kind, metadata=metadata)
        )
    pyplot.close(figure)
