"""``einfuse kernels``: the registry of kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from einfuse.commands.arguments import print_json

if TYPE_CHECKING:
    from einfuse.kernels import Kernel

_WIDTH = 120  # columns of a table that is piped
_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}


def register(app: typer.Typer) -> None:
    """Add ``kernels`` to the application."""
    app.command("kernels")(list_kernels)


def list_kernels(
    name: Annotated[str, typer.Argument(help="one kernel, with its configurations")] = "",
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the kernels: the cascade each implements, what it takes, where it is tuned."""
    from einfuse.kernels import find_kernel, kernels

    found = (find_kernel(name),) if name else kernels()
    if json:
        print_json([describe(kernel) for kernel in found])
    elif name:
        _print_one(found[0])
    else:
        _print_all(found)


def describe(kernel: Kernel) -> dict[str, Any]:
    """Return a kernel as ``kernels --json`` prints it."""
    return {
        "name": kernel.name,
        "cascade": kernel.cascade,
        "summary": kernel.summary,
        "architectures": list(kernel.architectures),
        "dtypes": list(kernel.dtypes),
        "features": sorted(kernel.features),
        "requires": sorted(kernel.requires),
        "limits": {limit: [least, most] for limit, least, most in kernel.limits},
        "order": kernel.order,
        "tuned": list(kernel.tuned),
        "configurations": [
            {
                "launch": row.launch,
                "architecture": row.architecture,
                "when": dict(row.when),
                "tiles": dict(row.tiles),
                "warps": row.warps,
                "stages": row.stages,
                "source": row.source,
            }
            for row in kernel.configurations
        ],
    }


def _print_all(found: tuple[Kernel, ...]) -> None:
    rows = [
        (
            kernel.name,
            kernel.cascade,
            " ".join(sorted(kernel.features)) or "-",
            " ".join(_SHORT.get(dtype, dtype) for dtype in kernel.dtypes),
            " ".join(name for name in kernel.tuned if name != "interpreter") or "-",
        )
        for kernel in found
    ]
    _print_table(("kernel", "cascade", "features", "data types", "configured for"), rows)


def _print_one(kernel: Kernel) -> None:
    print(f"{kernel.name}: {kernel.summary}")
    print(f"cascade:       {kernel.cascade}")
    print(f"architectures: {_listed(kernel.architectures)}")
    print(f"data types:    {_listed(kernel.dtypes)}")
    print(f"features:      {_listed(sorted(kernel.features))}")
    if kernel.requires:
        print(f"requires:      {_listed(sorted(kernel.requires))}")
    for limit, least, most in kernel.limits:
        print(f"{limit + ':':14} {least} to {most}")
    rows = [
        (row.launch, row.architecture, _pairs(row.when, " <= "), _pairs(row.tiles, "="),
         str(row.warps), str(row.stages))
        for row in kernel.configurations
    ]  # fmt: skip
    if rows:
        _print_table(("launch", "architecture", "when", "tiles", "warps", "stages"), rows)
        print("\n".join(dict.fromkeys(row.source for row in kernel.configurations if row.source)))


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _pairs(pairs: tuple[tuple[str, int], ...], between: str) -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in pairs) or "-"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "-"
