"""``einfuse passes``: how often a cascade must sweep a rank, and why."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import Parameters, load_cascade, parse_shape, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from einfuse.einsum import Barrier, Cascade, PassReport


def register(app: typer.Typer) -> None:
    """Add ``passes`` to the application."""
    app.command("passes")(passes)


def passes(
    cascade: Annotated[
        str, typer.Argument(help="a name of the library, a file, or - (standard input)")
    ],
    rank: Annotated[
        str, typer.Option(help="a rank or a level of its partition; by default the one that "
                               "is swept most often")
    ] = "",
    shape: Annotated[
        str, typer.Option(help="sizes of ranks, such as E=64,F=64,M=4K: live words as numbers")
    ] = "",
    settings: Parameters = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="draw the cascade, coloured by pass: a .png, .svg or .pdf")
    ] = None,
) -> None:  # fmt: skip
    """Prove how many passes a cascade needs over a rank, and what it must hold on chip."""
    from einfuse.einsum import count_passes

    loaded = load_cascade(cascade, settings or ())
    report = count_passes(loaded, rank or None)
    words = _live_words(loaded, report, parse_shape(shape)) if shape else {}
    if plot is not None:
        from einfuse.studies import draw_passes

        draw_passes(loaded, report, plot)
    if json:
        print_json(describe(report) | ({"live_words": words} if shape else {}))
        return
    print(report)
    for level, count in words.items():
        print(f"live words at level {level}: {count:,} for one point of the outer ranks")
    if not rank:
        print(f"(of its ranks {report.rank} is swept most often; --rank asks about another)")


def _live_words(cascade: Cascade, report: PassReport, shape: Mapping[str, int]) -> dict[str, int]:
    """Return the live words at every level of the rank, for sizes of all ranks."""
    from einfuse.einsum import footprint

    levels = report.footprint
    return {
        level: footprint(cascade, report.rank, level).bytes(cascade, shape, word_bytes=1, points=1)
        for level in levels
    }


def describe(report: PassReport) -> dict[str, Any]:
    """Return what ``passes --json`` prints."""
    return {
        "cascade": report.cascade,
        "rank": report.rank,
        "passes": _number(report.passes),
        "sweeps": _number(report.sweeps),
        "roots": {root: _number(count) for root, count in report.roots.items()},
        "levels": {
            level: {"passes": _number(found), "sweeps": _number(sweeps)}
            for level, (found, sweeps) in report.levels.items()
        },
        "barriers": [_barrier(barrier) for barrier in report.barriers],
        "footprint": report.footprint,
        "per_iteration": report.per_iteration,
        "exact": report.exact,
        "chains": {
            root: [_barrier(barrier) for barrier in chain] for root, chain in report.chains.items()
        },
        "sweep_barriers": [_barrier(b) for b in report.level_reports[0].sweep_count.barriers],
        "einsums": [
            {
                "name": p.einsum,
                "pass": p.pass_number,
                "sweep": p.sweep,
                "reads": dict(p.reads),
            }
            for p in report.placements
        ],
        "gathers": [
            {"einsum": g.einsum, "tensor": g.tensor, "subset": g.subset} for g in report.gathers
        ],
        "bounded": list(report.bounded),
        "passes_if_bounded": _number(report.passes_if_bounded),
    }


def _number(count: int | Fraction) -> int | float:
    return count if isinstance(count, int) else float(count)


def _barrier(barrier: Barrier) -> dict[str, str]:
    return {
        "from": barrier.producer,
        "to": barrier.consumer,
        "tensor": barrier.tensor,
        "reason": barrier.reason,
    }
