"""The figures of the FuseMax study, in the paper's order of models, lengths and designs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from einfuse.studies.frame.plot import PALETTE, new_figure, save_figure


def _order(table: pd.DataFrame, column: str) -> list[str]:
    return list(dict.fromkeys(table[column]))


def _bars(
    axis: Any, table: pd.DataFrame, column: str, labels: Mapping[str, str], lengths: list[str]
) -> None:
    """Grouped bars: a group a length, a bar a design."""
    designs = [name for name in labels if name in set(table["design"])]
    colours = dict(zip(labels, PALETTE, strict=False))
    width = 0.84 / len(designs)
    for place, design in enumerate(designs):
        heights = table[table["design"] == design].set_index("length")[column].reindex(lengths)
        left = np.arange(len(lengths)) + (place - (len(designs) - 1) / 2) * width
        axis.bar(left, heights, width, label=labels[design], color=colours[design])
    axis.set_xticks(range(len(lengths)), lengths)


def _by_model(
    table: pd.DataFrame,
    columns: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
    name: str,
    folder: Path,
    *,
    line: float | None = None,
) -> None:
    """A panel a model and quantity, two models beside each other, for a page 7 inches wide."""
    models, lengths = _order(table, "model"), _order(table, "length")
    panels = [(column, title, model) for column, title in columns for model in models]
    axes, figure = _pairs_of_panels(len(panels), 1.75)
    for place, (column, title, model) in enumerate(panels):
        axis = axes[place]
        _bars(axis, table[table["model"] == model], column, labels, lengths)
        if line is not None:
            axis.axhline(line, color="black", linewidth=0.7, label="unfused = 1")
        axis.set_title(model)
        if place % 2 == 0:
            axis.set_ylabel(title)
        if place >= len(panels) - 2:
            axis.set_xlabel("sequence length")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=len(names) if len(panels) > 1 else 2
    )
    save_figure(figure, folder, name)


def _pairs_of_panels(count: int, height: float) -> tuple[list[Any], Any]:
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, grid = new_figure(rows, columns, 3.5 * columns, height * rows + 0.6)
    axes = [axis for row in grid for axis in row]
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes, figure


def utilization(table: pd.DataFrame, labels: Mapping[str, str], folder: Path) -> None:
    """Figure 6: utilization of the 2D and of the 1D array."""
    _by_model(
        table,
        [
            ("utilization_array_2d", "2D utilization"),
            ("utilization_array_1d", "1D utilization"),
        ],
        labels,
        "figure-6-utilization",
        folder,
    )


def time_by_einsum(table: pd.DataFrame, einsums: Sequence[str], folder: Path) -> None:
    """Figure 7: what the 2D array of FuseMax spends its time on."""
    own = table[table["design"] == "fusemax"]
    models, lengths = _order(own, "model"), _order(own, "length")
    axes, figure = _pairs_of_panels(len(models), 1.9)
    for place, model in enumerate(models):
        axis, base = axes[place], np.zeros(len(lengths))
        rows = own[own["model"] == model].set_index("length").reindex(lengths)
        for colour, einsum in zip((*PALETTE[4:6], *PALETTE[1:4], PALETTE[6]), einsums, strict=True):
            column = f"utilization_array_2d_{einsum}"
            if column in rows and rows[column].notna().any():
                share = rows[column].to_numpy(float)
                axis.bar(range(len(lengths)), share, 0.7, bottom=base, label=einsum, color=colour)
                base = base + share
        axis.set_title(model)
        axis.set_xticks(range(len(lengths)), lengths)
        axis.set_ylim(0, 1)
        if place % 2 == 0:
            axis.set_ylabel("share of the time")
        if place >= len(models) - 2:
            axis.set_xlabel("sequence length")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    save_figure(figure, folder, "figure-7-time-by-einsum")


def speedup(
    ratios: pd.DataFrame, labels: Mapping[str, str], number: int, part: str, folder: Path
) -> None:
    """Figures 8 and 10: speed-up over the unfused design."""
    _by_model(
        ratios[ratios["design"] != "unfused"],
        [("speedup", "speed-up over Unfused")],
        labels,
        f"figure-{number}-{part}-speedup",
        folder,
        line=1,
    )


def energy(
    ratios: pd.DataFrame, labels: Mapping[str, str], number: int, part: str, folder: Path
) -> None:
    """Figures 9 and 11: energy relative to the unfused design."""
    _by_model(
        ratios[ratios["design"] != "unfused"],
        [("relative_energy", "energy / Unfused")],
        labels,
        f"figure-{number}-{part}-energy",
        folder,
        line=1,
    )


def design_space(table: pd.DataFrame, folder: Path) -> None:
    """Figure 12: area and latency over array sizes."""
    figure, axes = new_figure(1, 1, 5.6, 4.2)
    axis = axes[0][0]
    markers = "os^D"
    for place, model in enumerate(_order(table, "model")):
        own = table[table["model"] == model]
        area_cm2 = own["area_um2"] / 1e8
        axis.plot(area_cm2, own["latency_s"], marker=markers[place], label=model,
                  color=PALETTE[(1, 3, 4, 6)[place]])  # fmt: skip
    first = table[table["model"] == _order(table, "model")[0]]
    for area, seconds, size in zip(
        first["area_um2"] / 1e8, first["latency_s"], first["array_rows"], strict=True
    ):
        axis.annotate(f"{size}x{size}", (area, seconds), textcoords="offset points",
                      xytext=(-5, -12), ha="right", fontsize=8)  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.grid(axis="both")
    axis.set_xlim(left=axis.get_xlim()[0] / 1.8)
    axis.set_xlabel("area (cm$^2$, 45 nm)")
    axis.set_ylabel(f"latency of attention at {table['length'].iloc[0]} (s)")
    axis.legend()
    save_figure(figure, folder, "figure-12-design-space")


def accountings(headline: pd.DataFrame, folder: Path) -> None:
    """FuseMax's energy against its baselines under every accounting, beside the paper's."""
    own = headline[headline["quantity"] == "energy"]
    groups = list(dict.fromkeys(zip(own["part"], own["baseline"], strict=True)))
    kinds = _order(own, "accounting")
    figure, axes = new_figure(1, 1, 7.2, 3.2)
    axis = axes[0][0]
    width = 0.84 / (len(kinds) + 1)
    for place, kind in enumerate(["paper", *kinds]):
        heights = []
        for part, baseline in groups:
            chosen = own[(own["part"] == part) & (own["baseline"] == baseline)]
            if kind == "paper":
                heights.append(float(chosen["paper_tables_arithmetic_mean"].iloc[0]))
            else:
                value = chosen[chosen["accounting"] == kind]["here_arithmetic_mean"]
                heights.append(float(value.iloc[0]))
        left = np.arange(len(groups)) + (place - len(kinds) / 2) * width
        label = "paper's tables" if kind == "paper" else kind
        bars = axis.bar(left, heights, width, label=label, color=PALETTE[(0, 1, 4, 3)[place]])
        axis.bar_label(bars, [f"{100 * h:.1f}" for h in heights], fontsize=7, padding=2)
    names = [f"{part} / {'FLAT' if base == 'flat' else 'Unfused'}" for part, base in groups]
    axis.set_xticks(range(len(groups)), names)
    axis.set_ylabel("energy of FuseMax / baseline (%)")
    axis.set_yticks(np.arange(0, 1.01, 0.2), [f"{p}" for p in range(0, 101, 20)])
    axis.set_ylim(0, 1.1)
    figure.legend(loc="outside upper center", ncols=4)
    save_figure(figure, folder, "accountings")
