"""Commands on designs: ``evaluate``, ``architectures``, ``study``, ``schema``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from einfuse.einsum import EinfuseError
from einfuse.progress import shown

from .arguments import Include, parse_names, parse_numbers, parse_shape, print_json

Shape = Annotated[str, typer.Option(help="Rank sizes, such as B=64,H=12,M=4K,P=4K,E=64,F=64.")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A parameter by its path: array_1d.lanes=512, causal=1, calibration.exposed=0.5.",
    ),
]
_STUDIES = (
    "accelforge, analytic-vs-simulated, costs, footprint, fusemax, mapper-vs-hand, "
    "model-vs-compiled (needs torch, triton) or taxonomy"
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def evaluate(
    design: Annotated[str, typer.Option(help="A shipped design, or a YAML file.")],
    shape: Shape,
    architecture: Annotated[
        str | None, typer.Option(help="Another architecture than the design's: a name or a file.")
    ] = None,
    settings: Setting = None,
    accounting: Annotated[
        str, typer.Option(help="published, published-all-registers, or physical.")
    ] = "physical",
    include: Include = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Say where every figure comes from.")
    ] = False,
    json: Json = False,
) -> None:
    """Cost of a design at a shape: time, traffic, energy, area, utilization, peak bytes."""
    from einfuse.mapper import load_design
    from einfuse.simulator import evaluate as run

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run(
            load_design(design, architecture),
            parse_shape(shape),
            accounting=accounting,
            include=parse_names(include or [], "--include"),
            set=parse_numbers(settings or []),
        )
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    if json:
        print_json(result.to_json() | ({"sources": result.to_sources()} if sources else {}))
    else:
        print(result)
        if sources:
            print(result.render_sources())


def architectures(json: Json = False) -> None:
    """The shipped architectures: their figures, and where each is from."""
    from einfuse.mapper import architecture_figures, render_figures

    figures = architecture_figures()
    if json:
        print_json(figures)
    else:
        print(render_figures(figures))


def study(
    name: Annotated[str, typer.Argument(help=f"One of {_STUDIES}.")],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and the report.")],
    model: Annotated[list[str] | None, typer.Option(help="Only this model, such as BERT.")] = None,
    length: Annotated[list[str] | None, typer.Option(help="Only this length, such as 4K.")] = None,
) -> None:
    """Answer a question: write its tables, figures and report."""
    import logging

    from einfuse.studies import run_study

    log = logging.getLogger("einfuse")
    log.setLevel(logging.INFO)
    with shown(f"study {name}") as say:
        handler = logging.Handler()
        handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(handler)
        try:
            run_study(name, out, models=model, lengths=length)
        finally:
            log.removeHandler(handler)


def schema(kind: Annotated[str, typer.Argument(help="architecture, design or kernel.")]) -> None:
    """The JSON schema of a kind of file, for editors and other programs."""
    from pydantic import BaseModel

    from einfuse.mapper import ArchitectureFile, DesignFile, KernelFile

    kinds: dict[str, type[BaseModel]] = {
        "architecture": ArchitectureFile,
        "design": DesignFile,
        "kernel": KernelFile,
    }
    if kind not in kinds:
        raise EinfuseError(f"no schema of '{kind}'; known: {', '.join(kinds)}")
    print_json(kinds[kind].model_json_schema(by_alias=True))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(evaluate)
    app.command()(architectures)
    app.command()(study)
    app.command()(schema)
