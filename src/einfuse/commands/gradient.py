"""``einfuse gradient``: the gradient of a cascade, as a cascade."""

from __future__ import annotations

from typing import Annotated

import typer

from einfuse.commands.arguments import load_cascade, parse_shape, print_json


def register(app: typer.Typer) -> None:
    """Add ``gradient`` to the application."""
    app.command("gradient")(gradient)


def gradient(
    cascade: Annotated[str, typer.Argument(help="a name of the library, or a file")],
    with_respect_to: Annotated[
        str, typer.Option("--with-respect-to", help="names of inputs, such as Q,K,V")
    ],
    shape: Annotated[
        str, typer.Option(help="sizes of the ranks that a loop runs over, such as M1=4")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Derive the cascade of the gradients by some inputs, and count its passes."""
    from einfuse.commands.passes import describe
    from einfuse.einsum import gradient as reverse
    from einfuse.einsum.passes import count_passes
    from einfuse.einsum.printer import render

    wanted = [name.strip() for name in with_respect_to.split(",") if name.strip()]
    derived = reverse.gradient(load_cascade(cascade), wanted, parse_shape(shape))
    report = count_passes(derived)
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
    print(f"# {derived.name}: {report.passes} passes over {report.rank}")
    print(render(derived), end="")
