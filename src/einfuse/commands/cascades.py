"""``einfuse show``: a cascade's text, iteration spaces and operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import Parameters, load_cascade, parse_shape, print_json

if TYPE_CHECKING:
    import sympy

    from einfuse.einsum import Cascade, Einsum

_WIDTH = 100  # columns of a table that is piped


def register(app: typer.Typer) -> None:
    """Add ``show`` to the application."""
    app.command("show")(show)


def show(
    cascade: Annotated[str, typer.Argument(help="a name of the library, or a file")],
    shape: Annotated[
        str, typer.Option(help="sizes of ranks, such as E=64,F=64,P=4K,M=4K,M0=256")
    ] = "",
    settings: Parameters = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="print the Einsums as LaTeX")] = False,
) -> None:
    """Show a cascade: its text, each Einsum's iteration space and operations."""
    from einfuse.einsum.language import printer

    loaded = load_cascade(cascade, settings or ())
    if latex:
        print(printer.latex(loaded), end="")
        return
    description = describe(loaded, parse_shape(shape))
    if json:
        print_json(description)
    else:
        _print(loaded, description)


def describe(cascade: Cascade, sizes: dict[str, int]) -> dict[str, Any]:
    """Return what ``show --json`` prints: formulas, and numbers where sizes are given."""
    import sympy

    from einfuse.einsum import (
        bind,
        bind_symbolic,
        count_operations,
        count_points,
        einsum_operations,
        iteration_space,
        render,
        render_einsum,
        tensor_shape,
        total_operations,
    )

    open_sizes = bind_symbolic(cascade)
    bound = bind(cascade, sizes) if sizes else None
    at_shape = bind_symbolic(cascade, bound) if bound else None

    def counted(formula: sympy.Expr, number: sympy.Expr | None) -> dict[str, Any]:
        return {"formula": str(formula), "count": None if number is None else int(number)}

    def operations(
        formulas: Mapping[str, sympy.Expr], numbers: Mapping[str, sympy.Expr] | None
    ) -> dict[str, Any]:
        zero = sympy.Integer(0)
        return {
            operation: counted(formula, None if numbers is None else numbers.get(operation, zero))
            for operation, formula in formulas.items()
        }

    def described(einsum: Einsum, section: str) -> dict[str, Any]:
        return {
            "name": einsum.name,
            "section": section,
            "text": render_einsum(einsum),
            "space": list(iteration_space(cascade, einsum)),
            "points": counted(
                count_points(cascade, einsum, open_sizes),
                count_points(cascade, einsum, at_shape) if at_shape else None,
            ),
            "operations": operations(
                einsum_operations(cascade, einsum, open_sizes),
                einsum_operations(cascade, einsum, at_shape) if at_shape else None,
            ),
        }

    sections = {"init": cascade.init, "loop": cascade.loop, "final": cascade.final}
    return {
        "name": cascade.name,
        "text": render(cascade),
        "shape": bound,
        "inputs": {t.name: list(t.ranks) for t in cascade.input_tensors},
        "outputs": list(cascade.outputs),
        "tensors": {
            t.name: {
                "ranks": list(t.ranks),
                "extents": [str(n) for n in tensor_shape(cascade, t.name, bound or open_sizes)],
            }
            for t in cascade.tensors
        },
        "einsums": [
            described(einsum, section)
            for section, einsums in sections.items()
            for einsum in einsums
        ],
        "totals": operations(
            total_operations(count_operations(cascade).values()),
            total_operations(count_operations(cascade, bound).values()) if bound else None,
        ),
    }


def _print(cascade: Cascade, description: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    shape = description["shape"]
    print(f"# {cascade.name}")
    print(description["text"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=False)
    table.add_column("Einsum", no_wrap=True)
    table.add_column("iteration space", no_wrap=True)
    table.add_column("operation", no_wrap=True)
    table.add_column("count")
    if shape:
        table.add_column("at the shape", justify="right", no_wrap=True)
    for einsum in description["einsums"]:
        name, space = einsum["name"], " ".join(einsum["space"]) or "1"
        rows = einsum["operations"] or {"-": {"formula": "0", "count": 0}}
        for operation, count in rows.items():
            cells = [name, space, operation, count["formula"]]
            table.add_row(*cells, *([f"{count['count']:,}"] if shape else []))
            name = space = ""
    table.add_section()
    for operation, count in description["totals"].items():
        cells = ["all", "", operation, count["formula"]]
        table.add_row(*cells, *([f"{count['count']:,}"] if shape else []))
    console.print(table)
    if shape:
        print("shape: " + ", ".join(f"{rank}={size}" for rank, size in shape.items()))
