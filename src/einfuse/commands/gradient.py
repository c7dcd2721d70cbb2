"""``einfuse gradient``: the gradient of a cascade, as a cascade."""

from __future__ import annotations

from typing import Annotated

import typer

from .arguments import load_cascade, parse_names, parse_shape, print_json


def register(app: typer.Typer) -> None:
    """Add ``gradient`` to the application."""
    app.command("gradient")(gradient)


def gradient(
    cascade: Annotated[
        str, typer.Argument(help="a name of the library, a file, or - (standard input)")
    ],
    with_respect_to: Annotated[
        str, typer.Option("--with-respect-to", help="names of inputs, such as Q,K,V")
    ],
    shape: Annotated[
        str, typer.Option(help="sizes of the ranks that a loop runs over, such as M1=4")
    ] = "",
    save: Annotated[
        str, typer.Option(help="tensors that the forward pass saves, such as AV,GM,SD")
    ] = "",
    rank: Annotated[
        str, typer.Option(help="count passes over it; by default the one the cascade sweeps most")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Derive the cascade of the gradients by some inputs, and count its passes."""
    from einfuse.einsum import choose_rank, count_passes, render
    from einfuse.einsum.gradient import gradient as reverse

    from .passes import describe

    wanted = parse_names([with_respect_to], "--with-respect-to")
    saved = parse_names([save], "--save") if save else []
    loaded = load_cascade(cascade)
    derived = reverse.gradient(loaded, wanted, parse_shape(shape), saved=saved)
    chosen = rank or choose_rank(loaded)
    report = count_passes(derived, chosen if rank or chosen in derived.rank_names else None)
    if json:
        print_json(
            {
                "name": derived.name,
                "text": render(derived),
                "inputs": {tensor.name: list(tensor.ranks) for tensor in derived.input_tensors},
                "outputs": dict(zip(wanted, derived.outputs, strict=True)),
                "passes": describe(report),
            }
        )
        return
    counted = "1 pass" if report.passes == 1 else f"{report.passes} passes"
    print(f"# {derived.name}: {counted} over {report.rank}")
    print(render(derived), end="")
