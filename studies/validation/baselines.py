"""What the model has to beat: the plain roofline, and interpolation of the rows one knows."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from einfuse.mapper import load_architecture

from .cases import Case


def roofline_ms(case: Case) -> float:
    """Return the milliseconds of a case by the published peaks of its GPU."""
    flops_per_s, bytes_per_s = published_peaks(case.owner.gpu)
    return 1e3 * case.call.roofline_s(flops_per_s, bytes_per_s)


@functools.cache
def published_peaks(architecture: str) -> tuple[float, float]:
    """Return the peak of dense 16-bit products (operations/s) and of memory (bytes/s)."""
    values = load_architecture(architecture).values()
    count, rows, columns, clock_hz, bytes_per_s = (
        float(np.asarray(values[path]))
        for path in ("processors.count", "tensor.rows", "tensor.columns", "clock_hz",
                     "dram.bandwidth_bytes_per_s")
    )  # fmt: skip
    return 2 * count * rows * columns * clock_hz, bytes_per_s


class Known:
    """Rows that one knows, by family: kernel version, GPU, direction, head sizes and mask."""

    def __init__(self, cases: Iterable[Case] = ()) -> None:
        self._families: dict[tuple[object, ...], list[Case]] = {}
        for case in cases:
            self._families.setdefault(_family(case), []).append(case)

    def relatives(self, case: Case) -> tuple[Case, ...]:
        """Return the rows of a case's family, without the case itself."""
        family = self._families.get(_family(case), ())
        return tuple(other for other in family if other.row.key != case.row.key)


def interpolated_ms(case: Case, known: Known) -> float | None:
    """Return the milliseconds of a case from its known relatives; None without any.

    The logarithm of their operations per second is interpolated over that of the length; beyond
    the known lengths the slope of the last two goes on, and one alone stands for all.
    """
    curve: dict[int, list[float]] = {}
    for other in known.relatives(case):
        rate = np.log(other.call.flops / other.measured_ms)
        curve.setdefault(other.call.seqlen_k, []).append(float(rate))
    if not curve:
        return None
    lengths = np.log(np.array(sorted(curve), float))
    rates = np.array([np.mean(curve[length]) for length in sorted(curve)])
    here = float(np.log(case.call.seqlen_k))
    if len(lengths) == 1:
        rate = rates[0]
    else:
        right = int(np.clip(np.searchsorted(lengths, here), 1, len(lengths) - 1))
        slope = (rates[right] - rates[right - 1]) / (lengths[right] - lengths[right - 1])
        rate = rates[right - 1] + slope * (here - lengths[right - 1])
    return float(case.call.flops / np.exp(rate))


def _family(case: Case) -> tuple[object, ...]:
    call = case.call
    few = call.seqlen_q if call.seqlen_q != call.seqlen_k else None
    return (case.owner, call.head_dim_qk, call.head_dim_v, call.causal, call.window, few,
            call.heads_q // call.heads_kv)  # fmt: skip
