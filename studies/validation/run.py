"""The validation as a run: from a table or a machine to files, rows and a line that sums up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from einfuse.einsum import EinfuseError
from einfuse.files import require_folder, sign_folder, write_table, write_text
from einfuse.studies.frame.plot import save_figure

from .cases import Case, find_cases
from .constants import SHIPPED, format_constants, read_constants
from .cpu import validate_cpu
from .cpu_report import cpu_report, cpu_section, read_committed
from .figures import draw_held_out, draw_scatter
from .holdout import leave_one_out
from .prediction import fit as fit_cases
from .report import report
from .rows import AttentionRow, Cell, read_rows
from .verdicts import PUBLISHED, Verdict, error_summary, judge, to_json

JsonRows = list[dict[str, Cell]]


def validate_gpus(
    out: Path,
    *,
    data: Path | None = None,
    constants: Path | None = None,
    fit: Path | None = None,
    held_out: bool = True,
    compiled: bool = False,
) -> tuple[JsonRows, str]:
    """Predict a table of GPU measurements; write its files under ``out``.

    Writes ``report.md``, ``results.csv``, ``leave-one-out.csv``, and figures of both.

    Args:
        out: a folder, made if it is not there.
        data: the table; the shipped one of published measurements by default.
        constants: fitted constants; the shipped ones by default.
        fit: where to write constants fitted on the table, which are then used.
        held_out: refit without each length, head size, mask, source and GPU (some seconds).
        compiled: compile the kernels and put their instructions on the page.

    Returns:
        an object per row, and a line that sums up.

    Raises:
        EinfuseError: a table or constants that are wrong, nothing to fit on, or a folder that
            cannot be written.
    """
    if fit is not None and constants is not None:
        raise EinfuseError("--fit: writes new constants; leave --constants out")
    require_folder(out, "validate")
    rows = read_rows(data or PUBLISHED)
    if fit is not None:
        table = fit_cases(_cases(rows))
        if not table:
            raise EinfuseError(
                f"{data or PUBLISHED}: no kernel version, GPU and direction has three rows to fit "
                "constants on"
            )
        write_text(fit, format_constants(table.values()))
        known = rows
    else:
        table = read_constants(constants or SHIPPED)
        known = read_rows(PUBLISHED) if data is not None else rows
    found = judge(rows, table, known)
    verdicts = [one for one in found if isinstance(one, Verdict)]
    if not verdicts:
        why = next((one.reason for one in found if not isinstance(one, Verdict)), "it has no rows")
        raise EinfuseError(f"{data or PUBLISHED}: no row can be predicted: {why}")
    left_out = leave_one_out(_cases(known)) if held_out else None
    json = to_json(found)
    write_table(out / "results.csv", pd.DataFrame(json))
    if left_out is not None:
        write_table(out / "leave-one-out.csv", left_out)
        save_figure(draw_held_out(left_out), out, "leave-one-out")
    save_figure(draw_scatter(verdicts), out, "scatter")
    more = [*_instructions(out, compiled), *cpu_section(read_committed())]
    origin = "the shipped published measurements" if data is None else f"`{data.name}`"
    sign_folder(out, "validate")
    write_text(out / "report.md", report(found, left_out, table, origin, more))
    return json, _summary(verdicts, len(found), out)


def measure_this_gpu(out: Path, seconds: float = 480.0) -> Path:
    """Measure the core suite on this machine's GPU; return the table, which is resumable.

    Raises:
        KernelError, MissingPackageError: no GPU, or no torch.
    """
    from einfuse.kernels import find_device, require_packages

    require_packages("measuring", "torch")
    device = find_device("cuda")
    from einfuse.kernels import list_cases, measure_suite

    require_folder(out, "validate")
    path = out / "measurements.csv"
    outcomes = measure_suite(
        list_cases("cuda", "core"), device, path, "einfuse validate --device cuda", seconds
    )
    for _ in outcomes:
        pass
    if not path.exists():
        raise EinfuseError(f"{path}: nothing was measured; see `einfuse measure --device cuda`")
    return path


def validate_this_cpu(out: Path) -> tuple[JsonRows, str]:
    """Calibrate this machine's CPU on some shapes and predict others; write files under ``out``.

    Writes ``results.csv`` and ``report.md``.

    Raises:
        MissingPackageError: torch is not there.
    """
    require_folder(out, "validate")
    found = validate_cpu()
    json = [row.to_row(found.machine) for row in found.rows]
    write_table(out / "results.csv", pd.DataFrame(json))
    sign_folder(out, "validate")
    write_text(out / "report.md", cpu_report(found))
    errors = error_summary(row.error for row in found.rows if not row.fitted)
    return json, (
        f"{errors['rows']:.0f} shapes and kernels never fitted on {found.machine}: mean error "
        f"{100 * errors['mean']:.1f} %, p90 {100 * errors['p90']:.1f} %, max "
        f"{100 * errors['max']:.1f} %\nwrote {out / 'report.md'}"
    )


def _cases(rows: Sequence[AttentionRow]) -> list[Case]:
    return [one for one in find_cases(rows) if isinstance(one, Case)]


def _summary(verdicts: Sequence[Verdict], total: int, out: Path) -> str:
    lines = [f"{len(verdicts)} of {total} rows predicted"]
    groups = {
        "modelled, never fitted": [
            one for one in verdicts if one.group == "modelled" and not one.fitted
        ],
        "modelled, fitted": [one for one in verdicts if one.group == "modelled" and one.fitted],
        "transferred": [one for one in verdicts if one.group == "transferred"],
        "stand-in": [one for one in verdicts if one.group == "stand-in"],
    }
    for name, own in groups.items():
        if own:
            errors = error_summary(one.error for one in own)
            lines.append(
                f"{name}: {len(own)} rows, mean error {100 * errors['mean']:.1f} %, p90 "
                f"{100 * errors['p90']:.1f} %, max {100 * errors['max']:.1f} %"
            )
    return "\n".join([*lines, f"wrote {out / 'report.md'}"])


def _instructions(out: Path, compiled: bool) -> list[str]:
    """The instructions of the kernels, model | compiled: the table, or how to make it."""
    title = ["## Instructions of the kernels: model | compiled", ""]
    if not compiled:
        return [
            *title,
            "What the model derives from a cascade and its tiles, beside the machine code, for "
            "every shipped kernel configuration: `einfuse study model-vs-compiled --out DIR`, or "
            "`--compiled` here; the repository keeps it as `docs/model-vs-compiled.md`.",
            "",
        ]
    from einfuse.studies.model_vs_compiled.study import run

    text = run(out / "compiled").read_text(encoding="utf-8")
    body = text.split("\n", 1)[1].replace("\n## ", "\n### ")
    return [*title, body.strip(), ""]
