"""Figures on a canvas of their own: no window, whatever MPLBACKEND and matplotlibrc say."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse.einsum import EinfuseError

from .files import require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")


def blank_figure(width: float, height: float, style: dict[str, Any] | None = None) -> Figure:
    """Return an empty figure, inches wide and high; texts and lines added to it have the style."""
    chosen = os.environ.pop("MPLBACKEND", None)  # a name that is none breaks the import
    try:
        import matplotlib
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parameters: Any = matplotlib.rcParams
    defaults: Any = matplotlib.rcParamsDefault
    parameters.update({k: v for k, v in defaults.items() if not k.startswith("backend")})
    parameters.update(style or {})
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def require_figure(path: Path) -> None:
    """Refuse a place for a figure before it is drawn: not writable, or of a kind not known."""
    if path.suffix.lower() not in _FORMATS and not (path.exists() and not path.is_file()):
        kinds = " or ".join([", ".join(_FORMATS[:-1]), _FORMATS[-1]])
        raise EinfuseError(f"{path}: expected a figure's name, ending in {kinds}")
    require_writable(path)


def write_figure(path: Path, figure: Figure, *, dpi: float | None = None) -> None:
    """Write a figure, whole, as what the suffix says (PNG to a device); the same bytes always."""
    kind = path.suffix.lower().removeprefix(".")
    kind = kind if f".{kind}" in _FORMATS else "png"
    date = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    drawn = io.BytesIO()
    figure.savefig(
        drawn, format=kind, dpi=dpi or "figure", metadata=None if date is None else {date: None}
    )
    write_whole(path, lambda file: file.write(drawn.getbuffer()))
