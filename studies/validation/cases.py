"""From rows to cases: what a row measures, on which GPU, and which design predicts it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .constants import Owner
from .names import find_gpu, find_kernel, find_word_bytes, load_names
from .rows import AttentionRow
from .work import Call, find_call, find_metric, find_milliseconds


@dataclass(frozen=True, slots=True)
class Case:
    """A row with all that its prediction needs.

    ``stand_in`` says whose schedule predicts it where the kernel has no design of its own;
    ``notes`` what was assumed.
    """

    row: AttentionRow
    call: Call
    owner: Owner
    design: str
    measured_ms: float
    stand_in: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row without a prediction, and why."""

    row: AttentionRow
    reason: str


def find_case(row: AttentionRow) -> Case | Skipped:
    """Return the case of a row, or why there is none."""
    kernel = find_kernel(row.algorithm)
    if isinstance(kernel, str):
        return Skipped(row, kernel)
    gpu = find_gpu(row.gpu)
    if isinstance(gpu, str):
        return Skipped(row, gpu)
    assert gpu.architecture is not None
    options = str(row.columns.get("options") or "")
    if "sigmoid" in options and kernel.version != "flash-sigmoid":
        return Skipped(row, f"kernel '{row.algorithm}' with {options} is not modelled")
    word_bytes = find_word_bytes(row.dtype)
    if isinstance(word_bytes, str):
        return Skipped(row, word_bytes)
    call = find_call(row, kernel.latent, kernel.linear)
    if isinstance(call, str):
        return Skipped(row, call)
    metric = find_metric(row.metric)
    if metric is None:
        return Skipped(row, f"metric '{row.metric}' is no time, TFLOP/s or GB/s")
    if row.value is None or row.value <= 0:
        return Skipped(row, "no positive value given")
    if metric.endswith("b/s") and call.direction != "fwd":
        return Skipped(row, f"what {row.metric} counts backward is not known")
    if kernel.linear and metric not in ("ms", "us", "s"):
        return Skipped(row, f"what {row.metric} counts for linear attention is not known")
    few = call.direction == "fwd" and call.seqlen_q <= load_names().decode_queries
    notes = [f"the GPU is taken for {gpu.assumed}"] if gpu.assumed else []
    notes += [_about_lengths(row)] if "mean" in row.location.casefold() and few else []
    measured_ms = find_milliseconds(call, metric, row.value)
    if not 0 < measured_ms < math.inf:
        return Skipped(row, f"{row.value:g} {row.metric} is no time")
    return Case(
        row=row,
        call=replace(call, word_bytes=word_bytes),
        owner=Owner(
            _decoding(kernel.version, few and bool(kernel.decode)), gpu.architecture, call.direction
        ),
        design=kernel.decode if few and kernel.decode else kernel.design,
        measured_ms=measured_ms,
        stand_in=kernel.stand_in,
        notes=tuple(notes),
    )


def find_cases(rows: Iterable[AttentionRow]) -> tuple[Case | Skipped, ...]:
    """Return what becomes of each row, in their order."""
    return tuple(find_case(row) for row in rows)


def _decoding(version: str, few: bool) -> str:
    """Return whose constants: decoding is another kernel of the same package."""
    return f"{version}-decode" if few else version


def _about_lengths(row: AttentionRow) -> str:
    return "sequences of many lengths, of which the mean is given"
