"""``compile-check``, ``measure`` and ``calibrate``: kernels against compilers and machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from einfuse.einsum import EinfuseError
from einfuse.kernels import require_packages
from einfuse.progress import shown, track

from .arguments import print_json

if TYPE_CHECKING:
    from einfuse.kernels import Check, Outcome


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("compile-check")(compile_check)
    app.command("measure")(measure)
    app.command("calibrate")(calibrate)


def compile_check(
    arch: Annotated[str, typer.Option(help="Architectures, as sm_80,sm_90.")] = "sm_80,sm_90",
    kernel: Annotated[str | None, typer.Option(help="One kernel instead of all.")] = None,
    every: Annotated[bool, typer.Option("--every", help="All data types and masks.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
    cache: Annotated[bool, typer.Option(help="Keep and use compiled results.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One object per configuration.")] = False,
) -> None:
    """Compile every shipped kernel configuration without a GPU (needs torch and triton)."""
    require_packages("compiling", "torch", "triton")
    from einfuse.kernels import check_all, default_cache, list_tasks

    architectures = tuple(dict.fromkeys(filter(None, map(str.strip, arch.split(",")))))
    if not architectures:
        raise EinfuseError("--arch: expected architectures such as sm_80,sm_90, found none")
    tasks = list_tasks(architectures, kernel, every)
    found = check_all(tasks, jobs, default_cache() if cache else None)
    checks = tuple(track(found, "compiling", len(tasks)))
    if as_json:
        print_json([check.to_row() for check in checks])
    else:
        _print_checks(checks)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def measure(
    out: Annotated[Path, typer.Option(help="CSV or JSON lines; rows in it are not repeated.")],
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    suite: Annotated[str, typer.Option(help="core or full.")] = "core",
    seconds: Annotated[float, typer.Option(min=1, help="Begin no case after so long.")] = 540.0,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
) -> None:
    """Check, then time the kernels and PyTorch's own on this machine; resumable; needs torch."""
    require_packages("measuring", "torch")
    from einfuse.kernels import (
        find_device,
        list_cases,
        measure_suite,
        read_measurements,
        require_writable,
    )

    found = find_device(device)
    cases = list_cases(found.kind, suite)
    require_writable(out)
    read_measurements(out)
    origin = f"einfuse measure --device {device} --suite {suite}"
    outcomes = []
    try:
        running = measure_suite(cases, found, out, origin, seconds, seed)
        for outcome in track(running, "measuring", len(cases)):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {out} holds complete rows; run again to go on", err=True)
        raise typer.Exit(130) from None
    for outcome in outcomes:
        for failure in outcome.failures:
            typer.echo(f"{outcome.case}: {failure}", err=True)
    _summarise(out, outcomes)
    if any(outcome.failures for outcome in outcomes):
        raise typer.Exit(1)


def calibrate(
    out: Annotated[Path, typer.Option(help="The architecture file (YAML) to write.")],
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    seconds: Annotated[float, typer.Option(min=1, help="Time to spend on each figure.")] = 3.0,
) -> None:
    """Measure this machine's ceilings (matmul, copy, exp, launch) into an architecture file."""
    require_packages("calibrating", "torch")
    from einfuse.kernels import (
        find_ceilings,
        find_device,
        require_writable_yaml,
        write_architecture,
    )

    found = find_device(device)
    require_writable_yaml(out)
    with shown("calibrating"):
        ceilings = find_ceilings(found, seconds)
    write_architecture(out, found, ceilings)
    typer.echo(str(ceilings))
    typer.echo(f"wrote {out}")


def _summarise(out: Path, outcomes: Sequence[Outcome]) -> None:
    measured = sum(len(outcome.measured) for outcome in outcomes)
    known = sum(outcome.known for outcome in outcomes)
    failed = sum(len(outcome.failures) for outcome in outcomes)
    unbegun = sum(outcome.out_of_time for outcome in outcomes)
    typer.echo(f"{out}: {measured} rows measured, {known} known before, {failed} failed")
    if unbegun:
        typer.echo(f"out of time: {unbegun} cases not begun; run again to go on")


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
