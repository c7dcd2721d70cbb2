"""``einfuse kernels``: the registry of kernels; ``einfuse tune``: tiles ranked by compiling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from einfuse.einsum import EinfuseError

from .arguments import parse_settings, print_json

if TYPE_CHECKING:
    from einfuse.kernels import Kernel

_WIDTH = 120  # columns of a table that is piped
_COLUMNS = {
    "warps": "warps",
    "stages": "stages",
    "fits": "fit",
    "registers": "registers",
    "shared bytes": "shared_bytes",
    "spills in loops": "spills",
    "instructions per score": "instructions_per_score",
}
_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}


def register(app: typer.Typer) -> None:
    """Add ``kernels`` and ``tune`` to the application."""
    app.command("kernels")(list_kernels)
    app.command("tune")(tune)


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


def tune(
    kernel: Annotated[str, typer.Argument(help="a name that `einfuse kernels` lists")],
    launch: Annotated[str, typer.Argument(help="one of its launches, such as forward")],
    tiles: Annotated[
        str, typer.Option(help="sizes to try, such as block_p=64:128,block_m=32:64:128")
    ],
    arch: Annotated[str, typer.Option(help="sm_80, sm_90 and the like")] = "sm_90",
    head_size: Annotated[int, typer.Option(min=1, help="elements of a query or key")] = 128,
    warps: Annotated[str, typer.Option(help="such as 4:8")] = "4:8",
    stages: Annotated[str, typer.Option(help="such as 2:3")] = "2:3",
    causal: Annotated[bool, typer.Option("--causal", help="under a causal mask")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Rank tiles by compiling for a GPU that need not be there (needs torch and triton)."""
    from einfuse.kernels import require_packages

    require_packages("tuning", "torch", "triton")
    from einfuse.kernels import default_cache, find_kernel, rank_candidates

    ranked = rank_candidates(
        find_kernel(kernel),
        launch,
        arch,
        head_size,
        tiles=_parse_tiles(tiles),
        warps=_parse_sizes("--warps", warps),
        stages=_parse_sizes("--stages", stages),
        causal=causal,
        cache=default_cache(),
    )
    rows: list[dict[str, Any]] = [
        {
            "tiles": dict(candidate.configuration.tiles),
            "warps": candidate.configuration.warps,
            "stages": candidate.configuration.stages,
            "fit": candidate.is_fit,
            "registers": candidate.registers,
            "shared_bytes": candidate.shared_bytes,
            "spills": candidate.spills,
            "instructions_per_score": round(candidate.instructions_per_score, 3),
            "error": candidate.error,
        }
        for candidate in ranked
    ]
    if json:
        print_json(rows)
        return
    cells = [
        (_pairs(tuple(row["tiles"].items()), "="), *(str(row[name]) for name in _COLUMNS.values()))
        for row in rows
    ]
    _print_table(("tiles", *_COLUMNS), cells)
    for error in dict.fromkeys(row["error"][:_WIDTH] for row in rows if row["error"]):
        print(error)


def _parse_tiles(text: str) -> dict[str, tuple[int, ...]]:
    return {
        name: _parse_sizes(f"--tiles {name}", sizes)
        for name, sizes in parse_settings([text]).items()
    }


def _parse_sizes(option: str, text: str) -> tuple[int, ...]:
    parts = text.split(":")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise EinfuseError(f"{option}: expected whole numbers as in 32:64, found '{text}'")
    return tuple(int(part) for part in parts)


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


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
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
