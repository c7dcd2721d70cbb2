"""How much a cascade must hold on chip as the sequence grows: 3, 2 and 1 pass compared.

FuseMax (arXiv 2406.10491, section III): every pass beyond the first keeps a whole fiber of the
sequence live, or moves it to DRAM and back; a 1-pass cascade holds a tile, whatever the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from einfuse.einsum import EinfuseError, footprint, load, traffic_bound_bytes
from einfuse.files import write_table, write_text
from einfuse.studies.frame.plot import PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASCADES = ("attention/3-pass", "attention/2-pass", "attention/1-pass")
LENGTHS = tuple(2**k for k in range(10, 21))
POINTS = 256
TILE = 256
WORD_BYTES = 2
EMBEDDING = 64
BUFFER_BYTES = 16 * 2**20
"""The global buffer of FuseMax's and FLAT's cloud accelerator (section V)."""

_LOOKS: dict[str, dict[str, Any]] = {
    "attention/3-pass": {"color": PALETTE[5], "linewidth": 3.2, "marker": "o", "markersize": 7},
    "attention/2-pass": {
        "color": "black",
        "linewidth": 1.2,
        "linestyle": "--",
        "marker": "s",
        "markersize": 3.5,
        "markerfacecolor": PALETTE[7],
    },
    "attention/1-pass": {"color": PALETTE[4], "linewidth": 1.8, "marker": "D", "markersize": 4},
}


def buffer_table(lengths: Sequence[int] = LENGTHS, points: int = POINTS) -> pd.DataFrame:
    """Return the live bytes of every class at every length, for a tile of ``points`` queries.

    Columns: cascade, length, formula (words for one query), live_bytes.

    >>> table = buffer_table([1024, 2048], points=1).set_index(["cascade", "length"])
    >>> [int(table.live_bytes["attention/3-pass", length]) for length in (1024, 2048)]
    [2306, 4354]
    >>> [int(table.live_bytes["attention/1-pass", length]) for length in (1024, 2048)]
    [65796, 65796]
    """
    rows = []
    for name in CASCADES:
        cascade = load(name)
        found = footprint(cascade, "M")
        for length in lengths:
            live = found.bytes(cascade, _shape(name, length, points), WORD_BYTES, points)
            rows.append((name, length, str(found), live))
    return pd.DataFrame(rows, columns=["cascade", "length", "formula", "live_bytes"])


def traffic_table(length: int, buffers: Sequence[int], queries: int) -> pd.DataFrame:
    """Return the lower bound on DRAM bytes for each class and buffer size.

    Columns: cascade, buffer_bytes, bound_bytes.
    """
    parts = []
    for name in CASCADES:
        bound = traffic_bound_bytes(load(name), _shape(name, length, queries), buffers, WORD_BYTES)
        parts.append(pd.DataFrame({"cascade": name, "buffer_bytes": buffers, "bound_bytes": bound}))
    return pd.concat(parts, ignore_index=True)


def draw_buffers(table: pd.DataFrame) -> Figure:
    """Return the figure of live bytes against sequence length, both on logarithmic axes."""
    figure, axes = new_figure(1, 1, 5.2, 3.6)
    axis = axes[0][0]
    for name, rows in table.groupby("cascade", sort=False):
        label = str(name).removeprefix("attention/")
        axis.plot(rows["length"], rows["live_bytes"], label=label, **_LOOKS[str(name)])
    axis.axhline(BUFFER_BYTES, color="#666666", linewidth=0.9, linestyle=":")
    axis.text(
        table["length"].min(), BUFFER_BYTES * 1.15, "16 MiB buffer of FuseMax", color="#444444",
        fontsize=8,
    )  # fmt: skip
    _binary_axes(axis, table)
    axis.set_xlabel("sequence length (keys)")
    axis.set_ylabel("live bytes on chip")
    axis.set_title(
        f"Live bytes so that nothing spills between passes\n"
        f"({POINTS} queries, E = F = {EMBEDDING}, tiles of {TILE} keys, {WORD_BYTES}-byte words)",
        fontsize=9,
    )
    axis.legend(loc="center right", bbox_to_anchor=(1.0, 0.32))
    return figure


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write the tables, the figure and a report under ``out``; return the report's path.

    Raises:
        EinfuseError: models are asked for (the classes need none), or a length is no size.
    """
    if models:
        raise EinfuseError("the study 'footprint' compares classes of cascades: it has no --model")
    asked = [_length(text) for text in lengths or ()] or list(LENGTHS)
    table = buffer_table(asked)
    write_table(out / "buffer.csv", table)
    save_figure(draw_buffers(table), out, "buffer")
    path = out / "report.md"
    write_text(path, _report(table))
    return path


def _report(table: pd.DataFrame) -> str:
    lines = [
        "# On-chip buffer against sequence length",
        "",
        f"Live bytes for {POINTS} queries, E = F = {EMBEDDING}, tiles of {TILE} keys, "
        f"{WORD_BYTES}-byte words. The formulas are words for one query.",
        "",
        "| class | words for one query | longest sequence in 16 MiB |",
        "|---|---|---|",
    ]
    for name, rows in table.groupby("cascade", sort=False):
        fits = rows[rows["live_bytes"] <= BUFFER_BYTES]["length"]
        longest = "none" if fits.empty else str(fits.max())
        if len(fits) == len(rows):
            longest = "any of these"
        lines.append(f"| {name} | `{rows['formula'].iloc[0]}` | {longest} |")
    return "\n".join([*lines, "", "![buffer](buffer.png)", ""])


def _shape(name: str, length: int, queries: int) -> dict[str, int]:
    shape = {"E": EMBEDDING, "F": EMBEDDING, "P": queries, "M": length}
    return shape if name == "attention/3-pass" else shape | {"M0": TILE}


def _length(text: str) -> int:
    """Return the number of ``4K`` or ``4096``, a multiple of the tile."""
    units = {"K": 2**10, "M": 2**20}
    digits, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    if not digits.isdecimal() or int(digits) * unit % TILE or not int(digits):
        raise EinfuseError(f"--length: expected a multiple of {TILE} such as 4K, found '{text}'")
    return int(digits) * unit


def _binary_axes(axis: Any, table: pd.DataFrame) -> None:
    """Label both axes in powers of two, as buffers and lengths are."""
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    lengths = sorted(set(table["length"]))
    axis.set_xticks(lengths[::2], [_binary(length) for length in lengths[::2]])
    low, high = table["live_bytes"].min(), max(table["live_bytes"].max(), BUFFER_BYTES)
    ticks = [2**k for k in range(10, 41, 2) if low / 4 <= 2**k <= high * 4]
    axis.set_yticks(ticks, [f"{_binary(tick)}B" for tick in ticks])
    axis.minorticks_off()


def _binary(size: int) -> str:
    for unit, name in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} "
