"""The figure of the taxonomy: passes over the keys against work and footprint, a mark a cascade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from einfuse.einsum import families
from einfuse.studies.frame.plot import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vP*Xh<>d"
_PER_ROW = 8  # marks side by side in a cell
_ACROSS = 0.107  # of a cell's width, between marks
_UP = 0.2  # of a band's height, between rows of marks
_TITLES = {"operations": "operations", "words": "live words for one query"}


def draw_taxonomy(table: pd.DataFrame, corner: Mapping[str, str]) -> Figure:
    """Return the figure: columns prefill and decode, rows operations and live words.

    A cell holds the cascades with so many passes over the keys and that order of growth.

    Args:
        table: of `taxonomy.taxonomy_table`.
        corner: the cascades that are ringed, and the systems named beside them.
    """
    figure, axes = new_figure(2, 2, 13.0, 8.6)
    colours = dict(zip(families(), (PALETTE * 2)[: len(families())], strict=True))
    marks = dict(zip(families(), _MARKS, strict=True))
    most = int(table["passes_over_keys"].max())
    for row, measure in enumerate(_TITLES):
        bands = _bands(table, measure)
        for axis, phase in zip(axes[row], ("prefill", "decode"), strict=True):
            shown = table.dropna(subset=["passes_over_keys", f"{measure}_{phase}"])
            column = f"{measure}_{phase}_order"
            for (passes, order), cell in shown.groupby(["passes_over_keys", column]):
                for place, (_, facts) in zip(
                    _places(len(cell)), _sorted(cell, corner), strict=True
                ):
                    x, y = float(passes) + place[0], bands.index(str(order)) + place[1]
                    _mark(axis, x, y, facts, marks, colours, corner)
                if (measure, phase) == ("operations", "prefill"):
                    _name_systems(axis, float(passes), bands.index(str(order)), cell, corner)
            _dress(axis, bands, most)
        axes[row][0].set_ylabel(f"{_TITLES[measure]}, order in the length n")
    for axis, phase in zip(axes[0], ("prefill: n queries", "decode: one query"), strict=True):
        axis.set_title(phase, fontsize=12)
    for axis in axes[1]:
        axis.set_xlabel("passes over the keys (0: gathers only)")
    _legend(figure, axes[0][0], marks, colours, set(table["family"]))
    figure.suptitle(f"{len(table)} attention algorithms and mixers by passes, work and footprint",
                    fontsize=14)  # fmt: skip
    return figure


def _bands(table: pd.DataFrame, measure: str) -> list[str]:
    """Return the orders that occur, from the least up."""
    found: dict[str, tuple[float, str]] = {}
    for phase in ("prefill", "decode"):
        rows = table.dropna(subset=[f"{measure}_{phase}"])
        exponents, orders = rows[f"{measure}_{phase}"], rows[f"{measure}_{phase}_order"]
        found |= {str(o): (float(e), str(o)) for e, o in zip(exponents, orders, strict=True)}
    return sorted(found, key=lambda order: (found[order][0], len(order)))


def _sorted(cell: pd.DataFrame, corner: Mapping[str, str]) -> list[tuple[Any, pd.Series]]:
    order = list(families())
    return sorted(
        cell.iterrows(), key=lambda r: (r[1]["cascade"] not in corner, order.index(r[1]["family"]))
    )


def _places(count: int) -> list[tuple[float, float]]:
    """Return where the marks of a cell stand, from its middle: rows of equal lengths."""
    rows = -(-count // _PER_ROW)
    across = -(-count // rows)
    width = min(across, count)
    return [
        (_ACROSS * (k % across - (width - 1) / 2), _UP * ((rows - 1) / 2 - k // across))
        for k in range(count)
    ]


def _mark(
    axis: Any,
    x: float,
    y: float,
    facts: pd.Series,
    marks: Mapping[str, str],
    colours: Mapping[str, str],
    corner: Mapping[str, str],
) -> None:
    again, ringed = facts["passes_over_queries"] > 1, facts["cascade"] in corner
    if ringed:
        axis.plot(x, y, "o", markersize=13, markerfacecolor="none", markeredgecolor="black")
    axis.plot(
        x,
        y,
        linestyle="none",
        marker=marks[facts["family"]],
        color=colours[facts["family"]],
        markersize=7.5,
        markeredgecolor="red" if again else "black",
        markeredgewidth=1.6 if again else 0.4,
    )


def _name_systems(
    axis: Any, x: float, band: int, cell: pd.DataFrame, corner: Mapping[str, str]
) -> None:
    """Write under a cell what the caller says of the corner's cascade in it."""
    for name in corner.keys() & set(cell["cascade"]):
        style = {"ha": "center", "va": "top", "fontsize": 9, "fontstyle": "italic"}
        axis.text(x, band - 0.52, f"({corner[name]})", **style)


def _dress(axis: Any, bands: list[str], most: int) -> None:
    axis.grid(visible=False)
    for band in range(0, len(bands), 2):
        axis.axhspan(band - 0.5, band + 0.5, color="#F4F4F4", zorder=0)
    for edge in range(most):
        axis.axvline(edge + 0.5, color="#DDDDDD", linewidth=0.6, zorder=0)
    axis.set_xticks(range(most + 1))
    axis.set_xlim(-0.5, most + 0.5)
    axis.set_yticks(range(len(bands)), [_typeset(band) for band in bands])
    axis.set_ylim(-0.5, len(bands) - 0.5)
    axis.tick_params(length=0)


def _typeset(order: str) -> str:
    """Return an order with its exponent raised.

    >>> _typeset("n^1.5 log n"), _typeset("1")
    ('n$^{1.5}$ log n', '1')
    """
    power, _, rest = order.partition(" ")
    base, hat, exponent = power.partition("^")
    return " ".join(filter(None, (f"{base}$^{{{exponent}}}$" if hat else base, rest)))


def _legend(
    figure: Figure,
    axis: Any,
    marks: Mapping[str, str],
    colours: Mapping[str, str],
    present: set[str],
) -> None:
    thin = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.4}
    handles = [
        axis.plot([], [], marker=marks[f], color=colours[f], label=f, **thin)[0]
        for f in families()
        if f in present
    ]
    red = {**thin, "markeredgecolor": "red", "markeredgewidth": 1.6}
    handles.append(
        axis.plot(
            [], [], marker="o", color="white", label="more than one pass over the queries", **red
        )[0]
    )
    ring = {**thin, "markeredgewidth": 1.0, "markersize": 13, "markerfacecolor": "none"}
    handles.append(
        axis.plot([], [], marker="o", label="FuseMax's Table I: 3-, 2- and 1-pass", **ring)[0]
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=9)
