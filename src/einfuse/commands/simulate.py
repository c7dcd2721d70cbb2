"""The command ``simulate``: a design in time, tile by tile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from einfuse.progress import track

from .arguments import Include, parse_names, parse_numbers, parse_shape, print_json


def simulate(
    design: Annotated[str, typer.Option(help="A shipped design, or a YAML file.")],
    shape: Annotated[str, typer.Option(help="Rank sizes, such as B=1,H=1,M=4K,P=4K,E=64,F=64.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="An architecture parameter by its path: array_1d.lanes=512."),
    ] = None,
    include: Include = None,
    overhead: Annotated[
        list[str] | None,
        typer.Option(
            help="Charge it too (several with commas): dependencies, drain, fill, skew, bandwidth, "
            "buffering, decoupled, interleaved; or all (but fill, skew, decoupled, interleaved)."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="A broken dependency is a deadlock, not a wait.")
    ] = False,
    functional: Annotated[
        bool,
        typer.Option(
            "--functional", help="Let the tasks carry numbers: the largest error, what is alive."
        ),
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace, which Perfetto opens.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Trace every so many epochs.")] = 1,
    trace_limit: Annotated[
        int, typer.Option(min=1, help="The most tasks that a trace may hold.")
    ] = 500_000,
    plot: Annotated[
        Path | None, typer.Option(help="Write the waterfall of the first epochs.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Run a design in time, tile by tile: cycles, stalls by cause, beside the analytic model."""
    from einfuse.figures import require_figure, write_figure
    from einfuse.files import require_writable, write_text
    from einfuse.mapper import load_design
    from einfuse.simulator import (
        EPOCHS,
        Recording,
        draw_waterfall,
        find_overheads,
        simulate_functional,
    )
    from einfuse.simulator import simulate as run

    found = load_design(design)
    sizes, numbers = parse_shape(shape), parse_numbers(settings or [])
    more = parse_names(include or [], "--include")
    charged = find_overheads(parse_names(overhead or [], "--overhead"))
    if plot is not None:
        require_figure(plot)
    if trace is not None:
        require_writable(trace)
    if plot is not None:
        drawn = run(
            found, sizes, overheads=charged, include=more, set=numbers, repair=not strict,
            recording=Recording(1, EPOCHS),
        )  # fmt: skip
        write_figure(plot, draw_waterfall(drawn), dpi=160)
    result = run(
        found, sizes, overheads=charged, include=more, set=numbers, repair=not strict,
        skip=trace is None,
        recording=None if trace is None else Recording(sample, limit=trace_limit),
    )  # fmt: skip
    if trace is not None:
        import json as encoder

        from einfuse.simulator import render_trace

        write_text(trace, encoder.dumps(render_trace(result)))
    carried = (
        simulate_functional(
            found,
            sizes,
            set=numbers,
            repair=not strict,
            follow=lambda tasks: track(tasks, "tasks", len(tasks)),
        )
        if functional
        else None
    )
    if json:
        print_json({**result.to_json(), **(carried.to_json() if carried else {})})
    else:
        print(result)
        if carried:
            print(carried)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(simulate)
