"""``einfuse validate``: simulated against measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from einfuse.einsum import EinfuseError, closest
from einfuse.progress import shown

from .arguments import print_json

_DEVICES = ("published", "cpu", "cuda")


def validate(
    out: Annotated[Path, typer.Option(help="Folder for the table, the figure and the page.")],
    device: Annotated[
        str, typer.Option(help="published tables, or this machine's cpu or cuda.")
    ] = "published",
    data: Annotated[
        Path | None, typer.Option(help="A CSV table in the columns of the published ones.")
    ] = None,
    constants: Annotated[
        Path | None, typer.Option(help="Fitted constants (CSV) instead of the shipped ones.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(help="Fit constants on the table; the CSV to write them to.")
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option(help="Refit without each length, head size, mask, source and GPU.")
    ] = True,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile the kernels for the table of instructions.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print an object per row.")] = False,
) -> None:
    """Predict measured attention: the error per kernel and shape, where it fails, and why."""
    from einfuse.studies.validation import run

    if device not in _DEVICES:
        raise EinfuseError(f"--device: there is no '{device}'{closest(device, _DEVICES)}")
    if device == "cpu":
        for name, given in {"data": data, "constants": constants, "fit": fit}.items():
            if given is not None:
                raise EinfuseError(
                    f"--{name}: the constants of a CPU are fitted anew on this machine; "
                    "leave it out, or choose --device published"
                )
        if compiled:
            raise EinfuseError("--compiled: goes with kernels on GPUs; leave it out")
        with shown("validating this cpu"):
            rows, summary = run.validate_this_cpu(out)
    else:
        if device == "cuda" and data is not None:
            raise EinfuseError("--data: --device cuda measures its rows; use --device published")
        with shown("validating"):
            rows, summary = run.validate_gpus(
                out,
                data=run.measure_this_gpu(out) if device == "cuda" else data,
                constants=constants,
                fit=fit,
                held_out=leave_one_out,
                compiled=compiled,
            )
    if json:
        print_json(rows)
    else:
        print(summary)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(validate)
