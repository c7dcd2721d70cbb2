"""The instructions that the model derives from a cascade, beside those in the machine code.

Every shipped kernel configuration is compiled without a GPU; the main loop's instructions are
counted by thread and turn, and held against what the cascade and the tiles ask for. Where a
kernel does more than its cascade, the lowering tables say what and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from einfuse.einsum import EinfuseError
from einfuse.files import write_table, write_text
from einfuse.kernels import lowering_table, require_packages

if TYPE_CHECKING:
    from einfuse.kernels import Check

_INSTRUCTIONS = ("HGMMA", "HMMA", "EX2", "TANH", "FFMA", "FMUL", "FADD", "FMNMX", "F2FP", "SHFL")


def comparison_table(checks: Iterable[Check]) -> pd.DataFrame:
    """Return a row per configuration and instruction: what the model has, and the machine code.

    Columns: kernel, function (in Triton), configuration, arch, registers,
    shared_bytes, spill_bytes, instruction, model, compiled (per thread and turn of the loop).
    """
    rows = [
        (
            check.kernel,
            check.function,
            check.label,
            check.arch,
            check.registers,
            check.shared_bytes,
            check.spill_bytes,
            instruction,
            check.model.get(instruction, 0),
            check.compiled.get(instruction, 0),
        )
        for check in checks
        for instruction in sorted({*check.model, *check.compiled})
    ]
    columns = (
        "kernel,function,configuration,arch,registers,shared_bytes,spill_bytes,"
        "instruction,model,compiled"
    )
    return pd.DataFrame(rows, columns=columns.split(","))


def run(
    out: Path, *, models: Sequence[str] | None = None, lengths: Sequence[str] | None = None
) -> Path:
    """Write ``counts.csv`` and ``report.md`` under ``out``; return the report's path.

    Raises:
        EinfuseError: models or lengths are asked for (the shipped configurations are what is
            compared), triton is missing, or a folder cannot be written.
    """
    if models or lengths:
        raise EinfuseError(
            "the study 'model-vs-compiled' compares the shipped kernel configurations: it has no "
            "--model and no --length"
        )
    require_packages("compiling kernels", "torch", "triton")
    from einfuse.kernels import check_all, default_cache, list_tasks

    checks = tuple(check_all(list_tasks(), cache=default_cache()))
    write_table(out / "counts.csv", comparison_table(checks))
    path = out / "report.md"
    write_text(path, _report(checks))
    return path


def _report(checks: Sequence[Check]) -> str:
    from einfuse.kernels import unmodelled_functions

    modelled = [check for check in checks if check.model or check.compiled]
    equal = sum(check.model == check.compiled for check in modelled)
    lines = [
        "# Instructions: model | compiled",
        "",
        "Per thread and turn of the main loop, `model | compiled` (one number where they are "
        "equal). The model is derived from the kernel's cascade, its tiles and the lowering table "
        f"(version {lowering_table().version}); the other side is counted in the machine code. "
        "No GPU was used. Two things are taken from the compiler: how it spreads tiles over "
        "threads, and which kinds of instructions are compared (arithmetic, conversions and "
        "shuffles; no addresses, loads or branches; what else is left out says loops.yaml).",
        "",
        f"{equal} of {len(modelled)} configurations are equal in every instruction.",
        "",
    ]
    for kernel in dict.fromkeys(check.kernel for check in modelled):
        lines += _section(kernel, [check for check in modelled if check.kernel == kernel])
    reasons = [f"- `{name}`: {reason}" for name, reason in unmodelled_functions().items()]
    return "\n".join([*lines, "## Not modelled", "", *reasons, ""])


def _section(kernel: str, checks: Sequence[Check]) -> list[str]:
    used = [n for n in _INSTRUCTIONS if any(n in c.model or n in c.compiled for c in checks)]
    lines = [
        f"## {kernel}",
        "",
        f"| configuration | arch | registers | shared KiB | spills B | {' | '.join(used)} |",
        "|---|---|" + "---:|" * (3 + len(used)),
    ]
    for check in checks:
        cells = [_cell(check.model.get(n, 0), check.compiled.get(n, 0)) for n in used]
        lines.append(
            f"| {check.label} | {check.arch} | {check.registers} | "
            f"{check.shared_bytes / 1024:.0f} | {check.spill_bytes} | {' | '.join(cells)} |"
        )
    notes = sorted({(check.function, note) for check in checks for note in check.notes})
    if notes:
        lines += ["", "Beyond the cascade:", ""]
        lines += [f"- `{function}`: {note}" for function, note in notes]
    return [*lines, ""]


def _cell(model: int, compiled: int) -> str:
    """Return one number if both are equal, else both.

    >>> _cell(66, 66), _cell(66, 68)
    ('66', '66 \\\\| 68')
    """
    return str(model) if model == compiled else f"{model} \\| {compiled}"
