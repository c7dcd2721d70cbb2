"""``compile-check``, ``measure`` and ``calibrate``: kernels against compilers and machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .arguments import print_json

if TYPE_CHECKING:
    from einfuse.kernels.compile_check import Check

_T = TypeVar("_T")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("compile-check")(compile_check)


def compile_check(
    arch: Annotated[str, typer.Option(help="Architectures, as sm_80,sm_90.")] = "sm_80,sm_90",
    kernel: Annotated[str | None, typer.Option(help="One kernel instead of all.")] = None,
    every: Annotated[bool, typer.Option("--every", help="All data types and masks.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep and use compiled results.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One object per configuration.")] = False,
) -> None:
    """Compile every shipped kernel configuration without a GPU and compare it with the model."""
    _require("triton", "compiling")
    from einfuse.kernels.compilation import default_cache
    from einfuse.kernels.compile_check import check_all, list_tasks

    architectures = tuple(dict.fromkeys(filter(None, map(str.strip, arch.split(",")))))
    tasks = list_tasks(architectures, kernel, every)
    found = check_all(tasks, jobs, default_cache() if cache else None)
    checks = tuple(_tracked(found, len(tasks), "compiling"))
    if as_json:
        print_json([check.to_row() for check in checks])
    else:
        _print_checks(checks)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def _require(package: str, what: str) -> None:
    """Say what to install where torch (which both need) or triton is missing."""
    from importlib.util import find_spec

    from einfuse.kernels.errors import MissingPackageError

    missing = [name for name in ("torch", package) if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{what} needs {missing[0]}: pip install 'einfuse[gpu]'")


def _print_checks(checks: tuple[Check, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "kernel", "configuration", "arch", "registers", "shared", "spills", "model = compiled"
    )
    for check in checks:
        table.add_row(
            check.kernel,
            check.label,
            check.arch,
            str(check.registers),
            f"{check.shared_bytes / 1024:.0f} KiB",
            f"{check.spill_bytes} B" if check.spill_bytes else "-",
            " ".join(f"{name} {count}" for name, count in check.model.items()) or "-",
        )
    console = Console()
    console.print(table)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        console.print(f"FAILED {check.kernel}: {check.label} on {check.arch}", markup=False)
        for problem in check.problems:
            console.print(f"  {problem}", markup=False)
    console.print(f"{len(checks) - len(failed)} of {len(checks)} configurations passed")


def _tracked(items: Iterable[_T], total: int, what: str) -> Iterator[_T]:
    """Yield items under a progress bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total, console=Console(stderr=True), transient=True)
