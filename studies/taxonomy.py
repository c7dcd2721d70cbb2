"""The taxonomy of attention: passes over keys and queries, work and footprint of the whole zoo.

FuseMax (arXiv 2406.10491, Table I) sorts softmax attention by passes over the keys: 3, 2 or 1. The
same analysis is run on every cascade of the zoo, over keys and over queries, and beside it stand
the orders in which operations and live words grow with the sequence, in prefill (as many queries as
keys) and in decode (one query, or one token of a recurrence).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from einfuse.einsum.cascade import Cascade
from einfuse.einsum.errors import EinfuseError
from einfuse.einsum.footprint import footprint
from einfuse.einsum.library import load
from einfuse.einsum.shape import bind_known, representatives
from einfuse.einsum.zoo import Entry, entries, families, passes_over

from .files import write_table, write_text
from .kept import kept_operations
from .plot import PALETTE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH = 1024
"""Orders of growth are read off between this length and twice it."""

SMALL = 8
"""The size of every other rank: heads, windows, tiles, k of a top-k."""

_STEP = 0.5  # orders are multiples of it
_DENSE = {  # FuseMax, Table I
    "3 passes": "attention/3-pass",
    "2 passes": "attention/2-pass",
    "1 pass": "attention/1-pass",
}


def taxonomy_table() -> pd.DataFrame:
    """Return a row for every cascade of the zoo.

    Columns: cascade, family, implements, phases, passes_over_keys, passes_over_queries,
    operations_prefill, words_prefill, operations_decode, words_decode (orders of growth: 2 is
    quadratic in the sequence; empty where there is no such phase), words (the formula, for one
    query), confidence.

    Orders come from counts at `LENGTH` and twice that, all other ranks `SMALL`.
    """
    return pd.DataFrame([_row(entry) for entry in entries()])


def sizes_at(cascade: Cascade, entry: Entry, length: int, queries: int) -> dict[str, int]:
    """Return sizes of all ranks: keys and queries as given, everything else small.

    >>> entry = next(entry for entry in entries() if entry.name == "attention/1-pass")
    >>> shape = sizes_at(load(entry.name), entry, 1024, 1)
    >>> shape["M1"], shape["M0"], shape["P"], shape["E"]
    (128, 8, 1, 8)
    """
    roots = representatives(cascade)
    splits = [(roots[s.whole], roots[s.outer], roots[s.inner]) for s in cascade.splits]
    known = {roots[name]: size for name, size in bind_known(cascade).items()}
    if entry.queries is not None:
        known[roots[entry.queries]] = queries
    if entry.keys is not None:
        known[roots[entry.keys]] = length
    first = [p.rank for p in entry.parameters.values() if p.rank is not None]
    inner = [s.inner for s in cascade.splits]
    wholes = {whole for whole, _, _ in splits}
    for name in (*first, *inner, *cascade.rank_names):
        _fill(known, splits)
        root = roots[name]
        if root not in known and root not in wholes:
            parents = [known.get(w, SMALL) for w, *parts in splits if root in parts]
            known[root] = SMALL if all(size % SMALL == 0 for size in parents) else 1
    _fill(known, splits)
    return {name: known[roots[name]] for name in cascade.rank_names}


def order_of_growth(small: float, large: float) -> float:
    """Return the exponent of n when doubling n takes a count from ``small`` to ``large``.

    >>> order_of_growth(1000.0, 4002.0), order_of_growth(5.0, 5.0)
    (2.0, 0.0)
    """
    if small <= 0 or large <= 0:
        return 0.0
    return round(math.log2(large / small) / _STEP) * _STEP


def draw_taxonomy(table: pd.DataFrame) -> Figure:
    """Return the figure: passes over keys against the order of the work, in prefill and decode."""
    figure, axes = new_figure(1, 2, 9.0, 5.4)
    colours = {
        name: (PALETTE * 2)[k] for k, name in enumerate(families()) if name in set(table["family"])
    }
    marks = dict(zip(families(), "osD^vP*Xh<>d", strict=True))
    for axis, phase in zip(axes[0], ("prefill", "decode"), strict=True):
        rows = table.dropna(subset=["passes_over_keys", f"operations_{phase}"])
        for (passes, order), group in rows.groupby(["passes_over_keys", f"operations_{phase}"]):
            for k, (_, row) in enumerate(group.sort_values("family").iterrows()):
                again = row["passes_over_queries"] > 1
                axis.plot(
                    float(passes) + 0.1 * (k % 7 - (min(len(group), 7) - 1) / 2),
                    float(order) + 0.09 * (k // 7),
                    linestyle="none",
                    marker=marks[row["family"]],
                    color=colours[row["family"]],
                    markersize=7,
                    markeredgecolor="red" if again else "black",
                    markeredgewidth=1.6 if again else 0.4,
                )
        axis.set_title(phase)
        axis.set_xlabel("passes over the keys")
        most = int(table["passes_over_keys"].max())
        axis.set_xticks(range(most + 1))
        axis.set_xlim(-0.5, most + 0.5)
        axis.set_yticks([0, 1, 2], ["1", "n", "n²"])
        axis.set_ylim(-0.3, 2.7)
    axes[0][0].set_ylabel("operations, order in the sequence length n")
    handles = [
        axes[0][0].plot([], [], linestyle="none", marker=marks[f], color=c, label=f,
                        markeredgecolor="black", markeredgewidth=0.4)[0]
        for f, c in colours.items()
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(
        f"{len(table)} cascades of the zoo, a mark each; red: two passes over the queries"
    )
    return figure


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write the table, the figure and a report under ``out``; return the report's path.

    Raises:
        EinfuseError: models or lengths are asked for: passes and orders depend on neither.
    """
    if models or lengths:
        raise EinfuseError("the study 'taxonomy' has neither --model nor --length: passes and "
                           "orders of growth depend on neither")  # fmt: skip
    table = taxonomy_table()
    write_table(out / "taxonomy.csv", table)
    save_figure(draw_taxonomy(table), out, "taxonomy")
    path = out / "report.md"
    write_text(path, _report(table))
    return path


def _fill(known: dict[str, int], splits: Sequence[tuple[str, str, str]]) -> None:
    """Add what splits of known sizes give."""
    for _ in splits:
        for whole, outer, inner in splits:
            if outer in known and inner in known:
                known.setdefault(whole, known[outer] * known[inner])
            for part, other in ((outer, inner), (inner, outer)):
                if whole in known and part in known and known[whole] % known[part] == 0:
                    known.setdefault(other, known[whole] // known[part])


def _row(entry: Entry) -> dict[str, object]:
    cascade = load(entry.name)
    orders: dict[str, float | None] = {}
    for phase in ("prefill", "decode"):
        found = _orders(cascade, entry, phase)
        orders[f"operations_{phase}"], orders[f"words_{phase}"] = found
    return {
        "cascade": entry.name,
        "family": entry.family,
        "implements": "; ".join(entry.implements),
        "phases": " ".join(entry.phases),
        "passes_over_keys": passes_over(cascade, entry.keys),
        "passes_over_queries": passes_over(cascade, entry.queries),
        **orders,
        "words": "" if entry.keys is None else str(footprint(cascade, entry.keys)),
        "confidence": entry.confidence,
    }


def _orders(cascade: Cascade, entry: Entry, phase: str) -> tuple[float | None, float | None]:
    """Return the orders in which operations and live words grow; None without the phase."""
    roots = representatives(cascade)
    one_sequence = entry.queries is not None and roots[entry.queries] == roots[str(entry.keys)]
    if phase == "decode" and ("decode" not in entry.phases or one_sequence):
        return None, None
    if phase == "decode" and entry.queries is None:
        return 0.0, 0.0  # a token at a time, from the state
    operations, words = [], []
    for length in (LENGTH, 2 * LENGTH):
        queries = length if phase == "prefill" else 1
        shape = sizes_at(cascade, entry, length, queries)
        operations.append(kept_operations(cascade, shape))
        if entry.keys is not None:
            words.append(footprint(cascade, entry.keys).bytes(cascade, shape, 1, 1))
    return order_of_growth(*operations), order_of_growth(*words) if words else None


def _report(table: pd.DataFrame) -> str:
    lines = [
        "# Taxonomy of attention by passes",
        "",
        "Passes are proved from the cascades. Orders: 2 is quadratic in the sequence length, with "
        "all other sizes fixed; words are live on chip for one query. Operations leave out what "
        "masks cull; a filter on data culls nothing beforehand. Live words count a masked fiber "
        "whole; where some Einsum lacks the rank of the queries, they hold all queries at once. "
        "Numbers of devices and workers are fixed.",
        "",
        "## The dense corner (FuseMax, arXiv 2406.10491, Table I)",
        "",
        "| class | cascade | live words for one query | systems |",
        "|---|---|---|---|",
    ]
    by_name = table.set_index("cascade")
    for label, name in _DENSE.items():
        words, systems = by_name["words"][name], by_name["implements"][name]
        lines.append(f"| {label} | {name} | `{words}` | {systems} |")
    lines += [
        "",
        "## All cascades",
        "",
        "| cascade | family | keys | queries | work, prefill | words, prefill | work, decode "
        "| words, decode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        passes = [_shown(row[f"passes_over_{what}"]) for what in ("keys", "queries")]
        orders = [
            _order(row[f"{what}_{phase}"])
            for phase in ("prefill", "decode")
            for what in ("operations", "words")
        ]
        cells = " | ".join([*passes, *orders])
        lines.append(f"| {row['cascade']} | {row['family']} | {cells} |")
    return "\n".join([*lines, "", "![taxonomy](taxonomy.png)", ""])


def _shown(count: float) -> str:
    return "-" if pd.isna(count) else f"{count:g}"


def _order(order: float) -> str:
    if pd.isna(order):
        return "-"
    return {0.0: "1", 1.0: "n", 2.0: "n²"}.get(order, f"n^{order:g}")
