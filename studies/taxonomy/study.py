"""The taxonomy of attention: passes over keys and queries, work and footprint of the whole zoo.

FuseMax (arXiv 2406.10491, Table I) sorts softmax attention by passes over the keys: 3, 2 or 1. The
same analysis is run on every cascade of the zoo, over keys and over queries, and beside it stand
the orders in which operations and live words grow with the sequence, in prefill (as many queries as
keys) and in decode (one query, or one token of a recurrence).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from einfuse.einsum import (
    Cascade,
    EinfuseError,
    Entry,
    Footprint,
    bind_known,
    entries,
    families,
    footprint,
    load,
    passes_over,
    representatives,
)
from einfuse.files import write_table, write_text
from einfuse.studies.frame.plot import save_figure

from .figure import draw_taxonomy
from .growth import CONSTANT, Order, order_between
from .masked_operations import kept_operations

LENGTHS = (2**24, 2**48)
"""Orders of growth are read off between these lengths, where logarithms have doubled."""

ENUMERATED = (2**10, 2**11)
"""The lengths for a cascade with a filter that has no closed form: its points are counted."""

SMALL = 8
"""The size of a rank that does not grow with the sequence: heads, windows, tiles, k of a top-k."""

_CORNER = {  # FuseMax, Table I: cascades, and the systems that the figure names
    "attention/3-pass": "PyTorch, FLAT",
    "attention/2-pass": "TileFlow",
    "attention/1-pass": "FlashAttention, FuseMax",
}
_MEASURES = ("operations", "words")
_PHASES = ("prefill", "decode")


def taxonomy_table() -> pd.DataFrame:
    """Return a row for every cascade of the zoo.

    Columns: cascade, family, implements, phases, passes_over_keys, passes_over_queries,
    then for operations and words, in prefill and decode, the exponent of the sequence length in
    the order of growth and the order in words (``operations_prefill`` 1.0 with
    ``operations_prefill_order`` "n log n"; empty where there is no such phase), words (the formula,
    for one query), confidence.
    """
    return pd.DataFrame([_row(entry) for entry in entries()])


def sizes_at(cascade: Cascade, entry: Entry, length: int, queries: int) -> dict[str, int]:
    """Return sizes of all ranks: keys and queries as given, what grows with them, the rest small.

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
    first = {p.rank: p.grows for p in entry.parameters.values() if p.rank is not None}
    inner = [s.inner for s in cascade.splits]
    wholes = {whole for whole, _, _ in splits}
    for name in (*first, *inner, *cascade.rank_names):
        _fill(known, splits)
        root = roots[name]
        if root not in known and root not in wholes:
            wanted = _size(first.get(name), length)
            parents = [known.get(w, wanted) for w, *parts in splits if root in parts]
            known[root] = wanted if all(size % wanted == 0 for size in parents) else 1
    _fill(known, splits)
    return {name: known[roots[name]] for name in cascade.rank_names}


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
    save_figure(draw_taxonomy(table, _CORNER), out, "taxonomy")
    path = out / "report.md"
    write_text(path, _report(table))
    return path


def _size(grows: str | None, length: int) -> int:
    """Return a size: the root of the length, its logarithm, an eighth of it, or a small one."""
    doublings = length.bit_length() - 1
    sizes = {"root": 2 ** (doublings // 2), "logarithm": doublings, "share": length // 8}
    return max(1, sizes[grows]) if grows else SMALL


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
    live = None if entry.keys is None else footprint(cascade, entry.keys)
    orders: dict[str, object] = {}
    for phase in _PHASES:
        found = _orders(cascade, entry, phase, live)
        for measure, order in zip(_MEASURES, found, strict=True):
            orders[f"{measure}_{phase}"] = None if order is None else order.exponent
            orders[f"{measure}_{phase}_order"] = "" if order is None else str(order)
    return {
        "cascade": entry.name,
        "family": entry.family,
        "implements": "; ".join(entry.implements),
        "phases": " ".join(entry.phases),
        "passes_over_keys": passes_over(cascade, entry.keys),
        "passes_over_queries": passes_over(cascade, entry.queries),
        **orders,
        "words": "" if live is None else str(live),
        "confidence": entry.confidence,
    }


def _orders(
    cascade: Cascade, entry: Entry, phase: str, live: Footprint | None
) -> tuple[Order | None, Order | None]:
    """Return the orders in which operations and live words grow; None without the phase."""
    roots = representatives(cascade)
    one_sequence = entry.queries is not None and roots[entry.queries] == roots[str(entry.keys)]
    if phase == "decode" and ("decode" not in entry.phases or one_sequence):
        return None, None
    if phase == "decode" and entry.queries is None:
        return CONSTANT, CONSTANT  # a token at a time, from the state
    try:
        return _orders_between(cascade, entry, phase, live, LENGTHS)
    except EinfuseError:
        return _orders_between(cascade, entry, phase, live, ENUMERATED)


def _orders_between(
    cascade: Cascade, entry: Entry, phase: str, live: Footprint | None, lengths: tuple[int, int]
) -> tuple[Order, Order | None]:
    shapes = [
        sizes_at(cascade, entry, length, length if phase == "prefill" else 1) for length in lengths
    ]
    operations = order_between(lengths, [kept_operations(cascade, shape) for shape in shapes])
    if live is None:
        return operations, None
    words = order_between(lengths, [live.bytes(cascade, shape, 1, 1) for shape in shapes])
    return operations, words


def _report(table: pd.DataFrame) -> str:
    counts = table["passes_over_keys"].value_counts()
    told = ", ".join(f"{counts[n]} with {n:g}" for n in sorted(counts.index))
    lines = [
        "# Taxonomy of attention by passes",
        "",
        f"{len(table)} cascades; over the keys, {told} passes. A gather of selected keys is none.",
        "",
        "![taxonomy](taxonomy.png)",
        "",
        "Passes are proved from the cascades. Orders are in the sequence length n, with sizes as "
        "the papers let them grow and all others fixed; words are live on chip for one query. "
        "Operations leave out what masks cull; a filter on data culls nothing beforehand. Live "
        "words count a masked fiber whole; where some Einsum lacks the rank of the queries, they "
        "hold all queries at once. Numbers of devices and workers are fixed.",
        "",
        "## The dense corner (FuseMax, arXiv 2406.10491, Table I)",
        "",
        "| passes | cascade | live words for one query | order | systems |",
        "|---|---|---|---|---|",
    ]
    by_name = table.set_index("cascade")
    for name in _CORNER:
        row = by_name.loc[name]
        lines.append(
            f"| {row['passes_over_keys']:g} | {name} | `{row['words']}` "
            f"| {row['words_prefill_order']} | {row['implements']} |"
        )
    lines += ["", "## All cascades"]
    for family, meaning in families().items():
        members = table[table["family"] == family]
        if len(members):
            lines += ["", f"### {family}: {meaning}", "", *_family(members)]
    return "\n".join([*lines, ""])


def _family(members: pd.DataFrame) -> list[str]:
    lines = [
        "| cascade | passes over keys | over queries | work, prefill | words, prefill "
        "| work, decode | words, decode | algorithms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for _, row in members.iterrows():
        passes = [_shown(row[f"passes_over_{what}"]) for what in ("keys", "queries")]
        orders = [row[f"{m}_{phase}_order"] or "-" for phase in _PHASES for m in _MEASURES]
        cells = " | ".join([row["cascade"], *passes, *orders, row["implements"]])
        lines.append(f"| {cells} |")
    return lines


def _shown(count: float) -> str:
    return "-" if pd.isna(count) else f"{count:g}"
