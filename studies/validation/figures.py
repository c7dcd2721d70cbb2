"""Figures of a validation: predicted against measured, and errors by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from einfuse.studies.frame.plot import PALETTE, new_figure

from .verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = {"fwd": "o", "bwd": "s", "fwd+bwd": "^"}
_APART = {"fwd": 0.95, "bwd": 1.0, "fwd+bwd": 1.05}  # so that directions do not hide each other
_COLOURS = (*PALETTE[1:7], "#000000", PALETTE[0], "#8C564B", "#17BECF")


def draw_scatter(verdicts: Sequence[Verdict]) -> Figure:
    """Return predicted against measured milliseconds, and the error against the length.

    A colour per kernel version, a marker per direction; filled where the constants were never
    fitted on the row.
    """
    figure, axes = new_figure(1, 2, 10.5, 4.6, share=False)
    times, errors = axes[0]
    kernels = list(dict.fromkeys(one.case.owner.kernel for one in verdicts))
    for number, kernel in enumerate(kernels):
        colour = _COLOURS[number % len(_COLOURS)]
        times.plot([], [], "o", color=colour, markersize=4, label=kernel)
        for one in (one for one in verdicts if one.case.owner.kernel == kernel):
            style = {
                "marker": _MARKERS[one.case.call.direction],
                "markersize": 4,
                "color": colour,
                "fillstyle": "none" if one.fitted else "full",
                "linestyle": "none",
            }
            times.plot(one.measured_ms, one.predicted_ms, **style)
            place = one.case.call.seqlen_k * _APART[one.case.call.direction]
            errors.plot(place, 100 * one.error, **style)
    for direction in dict.fromkeys(one.case.call.direction for one in verdicts):
        marker = _MARKERS[direction]
        times.plot([], [], marker, color="#444444", markersize=4, label=direction)
    _dress(times, errors, verdicts)
    handles, labels = times.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def draw_held_out(table: pd.DataFrame) -> Figure:
    """Return the errors on rows left out, by what was left out: model, interpolation, roofline.

    A point a row; the bar is the mean of the sizes. ``table`` is that of `leave_one_out`.
    """
    colours = {"model": PALETTE[4], "interpolation": PALETTE[1], "roofline": PALETTE[0]}
    told = table[table[list(colours)].notna().any(axis=1)]
    factors = list(dict.fromkeys(told["factor"])) or list(dict.fromkeys(table["factor"]))
    names = [name for name in colours if told[name].notna().any()]  # the panels share them
    figure, axes = new_figure(1, len(factors), 10.5, 3.2)
    for axis, factor in zip(axes[0], factors, strict=True):
        rows = table[table["factor"] == factor]
        for place, name in enumerate(names):
            colour = colours[name]
            sizes = 100 * rows[name].dropna().abs().to_numpy()
            if not len(sizes):
                axis.text(place, 112, "none", ha="center", fontsize=8)
                continue
            spread = place + np.linspace(-0.3, 0.3, len(sizes))
            axis.plot(spread, sizes, ".", color=colour, markersize=2.5, alpha=0.7)
            axis.hlines(sizes.mean(), place - 0.38, place + 0.38, color=colour, linewidth=2)
            axis.text(place, 112, f"{sizes.mean():.1f}", ha="center", fontsize=8)
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axis.set_title(f"one {factor} left out")
    axes[0][0].set_yscale("symlog", linthresh=10)
    axes[0][0].set_yticks([0, 5, 10, 20, 50, 100], ["0", "5", "10", "20", "50", "100"])
    worst = 100 * table[list(colours)].abs().max().max()
    axes[0][0].set_ylim(0, max(150.0, 1.2 * worst))
    axes[0][0].set_ylabel("error without its sign, %")
    return figure


def _dress(times: object, errors: object, verdicts: Sequence[Verdict]) -> None:
    """Scales, labels, the diagonal and the bands."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import NullLocator

    assert isinstance(times, Axes) and isinstance(errors, Axes)
    both = [ms for one in verdicts for ms in (one.measured_ms, one.predicted_ms)]
    ends = np.array([min(both) / 1.3, max(both) * 1.3])
    times.plot(ends, ends, color="#444444", linewidth=0.8, zorder=0)
    times.fill_between(ends, 0.85 * ends, 1.15 * ends, color="#DDDDDD", zorder=-1, linewidth=0)
    times.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    if ends[1] < 10 * ends[0]:  # no two powers of ten: a few marks of our own, else they overlap
        marks = np.geomspace(1.1 * ends[0], ends[1] / 1.1, 4)
        for axis in (times.xaxis, times.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_ticks(marks, [f"{mark:.3g}" for mark in marks])
    times.set(xlabel="measured, ms", ylabel="predicted, ms", title="band: 15 %")
    times.grid(visible=True, which="major", axis="both")
    errors.axhspan(-15, 15, color="#DDDDDD", zorder=-1, linewidth=0)
    errors.axhline(0, color="#444444", linewidth=0.8, zorder=0)
    errors.set_xscale("log", base=2)
    lengths = sorted({one.case.call.seqlen_k for one in verdicts})
    apart = (lengths[-1] / lengths[0]) ** (1 / 12)
    shown = [n for k, n in enumerate(lengths) if not k or n >= apart * lengths[k - 1]]
    errors.set_xticks(shown, [str(length) for length in shown], rotation=45, ha="right")
    errors.minorticks_off()
    errors.set_yscale("symlog", linthresh=40)
    ticks = [n for n in (-80, -40, -20, -10, 0, 10, 20, 40, 100, 300, 1000) if _within(n, verdicts)]
    errors.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    percent = [100 * one.error for one in verdicts]
    errors.set_ylim(1.15 * min(-20.0, *percent), 1.15 * max(20.0, *percent))
    errors.yaxis.set_minor_locator(NullLocator())
    errors.set(xlabel="keys", ylabel="error, %", title="hollow: the constants were fitted on it")


def _within(percent: int, verdicts: Sequence[Verdict]) -> bool:
    errors = [100 * one.error for one in verdicts]
    return min(-20.0, *errors) * 1.3 <= percent <= max(20.0, *errors) * 1.3
