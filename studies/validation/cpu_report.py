"""The CPU's part of the page, from a run on this machine or from the committed one."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from .cpu import CpuValidation
from .verdicts import error_summary

COMMITTED = Path(__file__).parents[1] / "data" / "validation-cpu.csv"


def cpu_report(found: CpuValidation) -> str:
    """Return the page of a run on this machine, in Markdown."""
    rates = found.rates
    lines = [
        "# Simulated against measured: this machine's CPU",
        "",
        f"{found.machine}; PyTorch's explicit formula and its fused kernel, float32, forward, on "
        "one thread, by the thread's processor time (the least of several calls). The model adds "
        "up the operations of the kernel's cascade at the rates measured here; two shares of "
        "these rates and a time per query are fitted on the calibration shapes of each kernel.",
        "",
        "| ceiling | measured |",
        "|---|---:|",
        f"| matrix products | {2 * rates.macs_per_s / 1e9:.1f} GFLOP/s |",
        f"| copies, read and write | {rates.bytes_per_s / 1e9:.1f} GB/s |",
        *(f"| {name} | {rate / 1e9:.2f} G/s |" for name, rate in rates.vector_per_s.items()),
        f"| a byte of a new page | {1e9 * rates.fresh_s_per_byte:.2f} ns |",
        "",
        "| kernel | constants | mean % | p90 % | max % | roofline % |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for kernel, constants in found.constants.items():
        values = ", ".join(f"{name} = {value:.3g}" for name, value in constants.items())
        own = [row for row in found.rows if row.kernel == kernel and not row.fitted]
        model = error_summary(row.error for row in own)
        roofline = error_summary(row.roofline_ms / row.measured_ms - 1 for row in own)
        lines.append(f"| {kernel} | {values} | {_cells(model)} | {100 * roofline['mean']:.1f} |")
    lines += ["", "| kernel | shape | measured ms | predicted ms | error % | |",
              "|---|---|---:|---:|---:|---|"]  # fmt: skip
    for row in found.rows:
        call = row.call
        lines.append(
            f"| {row.kernel} | B{call.batch} H{call.heads_q} {call.seqlen_q}x{call.seqlen_k} "
            f"D{call.head_dim_qk} | {row.measured_ms:.3f} | {row.predicted_ms:.3f} | "
            f"{100 * row.error:+.1f} | {'fitted' if row.fitted else ''} |"
        )
    return "\n".join([*lines, ""])


def read_committed(path: Path = COMMITTED) -> Sequence[Mapping[str, str]]:
    """Return the rows of the committed run; none if there is no such file."""
    if not path.exists():
        return ()
    return tuple(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def cpu_section(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the section on the committed run of the CPU."""
    judged = [row for row in rows if row["fitted"] == "False"]
    if not judged:
        return []
    lines = [
        "## On a CPU",
        "",
        f"The committed run of `einfuse validate --device cpu`, on {rows[0]['gpu']}: calibrated "
        "on one set of shapes, judged on another.",
        "",
        "| kernel | shapes never fitted | mean % | p90 % | max % |",
        "|---|---:|---:|---:|---:|",
    ]
    for kernel in dict.fromkeys(row["algorithm"] for row in judged):
        own = [float(row["error"]) for row in judged if row["algorithm"] == kernel]
        lines.append(f"| {kernel} | {len(own)} | {_cells(error_summary(own))} |")
    whole = error_summary(float(row["error"]) for row in judged)
    return [*lines, f"| both | {len(judged)} | {_cells(whole)} |", ""]


def _cells(errors: Mapping[str, float]) -> str:
    return " | ".join(f"{100 * errors[key]:.1f}" for key in ("mean", "p90", "max"))
