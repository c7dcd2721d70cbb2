"""The CPU of this machine: calibrated on one set of shapes, predicted on another.

Two kernels of PyTorch, in float32 on one thread: the explicit formula in three passes, and its
fused kernel in one. Their times are those of the thread on the processor, the least of several,
so that other programs on the machine do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from einfuse.kernels import require_packages

from .cpu_model import KEPT_BYTES, KERNELS, Rates, predict_s, ranges
from .fit import fit_constants
from .rows import Cell
from .work import Call

if TYPE_CHECKING:
    from einfuse.kernels import Device

Array = NDArray[np.float64]


def _call(batch: int, heads: int, queries: int, keys: int, head_dim: int) -> Call:
    return Call("fwd", batch, heads, heads, queries, keys, head_dim, head_dim, word_bytes=4)


def _square(length: int, head_dim: int) -> Call:
    """About 1024 tokens of 512 numbers each."""
    return _call(max(1, 1024 // length), 512 // head_dim, length, length, head_dim)


CALIBRATION = tuple(_square(n, d) for d in (32, 128) for n in (128, 512, 2048))
"""The shapes whose times fit the constants."""
PREDICTION = (
    *(_square(n, 64) for n in (128, 256, 512, 1024, 2048)),
    *(_square(n, d) for d in (32, 128) for n in (256, 1024)),
    *(_call(1, 6, n, n, 80) for n in (384, 1536)),
    _call(2, 4, 256, 2048, 64),
    _call(2, 4, 2048, 256, 64),
    _call(1, 2, 4096, 4096, 64),
)
"""The shapes that are judged."""


@dataclass(frozen=True, slots=True)
class CpuRow:
    """A call on this machine: measured and predicted milliseconds, and whether it was fitted on."""

    kernel: str
    call: Call
    measured_ms: float
    predicted_ms: float
    roofline_ms: float
    fitted: bool

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_ms / self.measured_ms - 1

    def to_row(self, machine: str) -> dict[str, Cell]:
        """Return the columns of the published tables, and what was found."""
        call = self.call
        return {
            "source": "einfuse",
            "source_location": "einfuse validate --device cpu (one thread, processor time)",
            "gpu": machine,
            "algorithm": self.kernel,
            "direction": call.direction,
            "dtype": "float32",
            "batch": call.batch,
            "heads_q": call.heads_q,
            "heads_kv": call.heads_kv,
            "seqlen_q": call.seqlen_q,
            "seqlen_k": call.seqlen_k,
            "head_dim": call.head_dim_qk,
            "causal": False,
            "metric": "ms",
            "value": self.measured_ms,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "roofline_ms": self.roofline_ms,
            "error": self.error,
            "fitted": self.fitted,
        }


@dataclass(frozen=True, slots=True)
class CpuValidation:
    """What `validate_cpu` found: the machine, its rates, constants by kernel, and the rows."""

    machine: str
    rates: Rates
    constants: Mapping[str, Mapping[str, float]]
    rows: tuple[CpuRow, ...]


def validate_cpu(
    calibration: Sequence[Call] = CALIBRATION,
    prediction: Sequence[Call] = PREDICTION,
    seconds: float = 0.4,
) -> CpuValidation:
    """Measure the ceilings and both sets of shapes; fit on the first, predict the second.

    Args:
        calibration: the shapes to fit on.
        prediction: the shapes to judge.
        seconds: for a call, or for a ceiling.

    Raises:
        MissingPackageError: torch is not there.
    """
    require_packages("measuring", "torch")
    from einfuse.kernels import ProcessorStopwatch, find_ceilings, find_device

    with _one_thread():
        _settle_allocator()
        device = find_device("cpu")
        ceilings = find_ceilings(replace(device, threads=1), seconds, ProcessorStopwatch())
        rates = Rates.of(ceilings, _fresh_s_per_byte(seconds))
        calls = (*calibration, *prediction)
        measured = [_measure_s(call, seconds) for call in calls]
    constants, rows = {}, []
    for kernel in KERNELS:
        taken = np.array([one[kernel] for one in measured])
        own = fit_kernel(kernel, calibration, taken[: len(calibration)], rates)
        constants[kernel] = own
        for place, (call, one) in enumerate(zip(calls, taken, strict=True)):
            rows.append(
                CpuRow(
                    kernel,
                    call,
                    1e3 * float(one),
                    1e3 * predict_s(kernel, call, rates, own),
                    1e3 * call.roofline_s(2 * rates.macs_per_s, rates.bytes_per_s),
                    place < len(calibration),
                )
            )
    return CpuValidation(_machine(device), rates, constants, tuple(rows))


def fit_kernel(
    kernel: str, calls: Sequence[Call], measured_s: Array, rates: Rates
) -> dict[str, float]:
    """Return the constants of a kernel from measured seconds of calls (see `ranges`)."""

    def seconds(values: Mapping[str, Array]) -> Array:
        candidates = [
            dict(zip(values, one, strict=True)) for one in zip(*values.values(), strict=True)
        ]
        return np.array([[predict_s(kernel, c, rates, v) for c in calls] for v in candidates])

    return fit_constants(seconds, measured_s, ranges())


def _measure_s(call: Call, seconds: float) -> dict[str, float]:
    """Return kernel -> least seconds of a call on random numbers."""
    import torch
    from torch.nn.attention import SDPBackend

    from einfuse.kernels import (
        Options,
        Problem,
        ProcessorStopwatch,
        attend_by_backend,
        attend_in_three_passes,
        time_interleaved,
    )

    generator = torch.Generator().manual_seed(0)

    def tensor(length: int) -> torch.Tensor:
        shape = (call.batch, call.heads_q, length, call.head_dim_qk)
        return torch.randn(shape, generator=generator)

    keys, values = tensor(call.seqlen_k), tensor(call.seqlen_k)
    problem = Problem(tensor(call.seqlen_q), keys, values, Options(scale=call.head_dim_qk**-0.5))
    calls = {
        "torch-3-pass": lambda _: attend_in_three_passes(problem),
        "sdpa-flash": lambda _: attend_by_backend(problem, SDPBackend.FLASH_ATTENTION),
    }
    with torch.no_grad():
        timings = time_interleaved(calls, ProcessorStopwatch(), seconds, min_repeats=3)
    return {kernel: timing.min_ms / 1e3 for kernel, timing in timings.items()}


def _fresh_s_per_byte(seconds: float) -> float:
    """Return what a byte of a tensor costs that comes fresh from the operating system."""
    import torch

    from einfuse.kernels import ProcessorStopwatch, time_interleaved

    numbers = 1 << 24  # 64 MiB
    kept = torch.zeros(numbers)
    calls = {"fresh": lambda _: torch.zeros(numbers).add_(1), "kept": lambda _: kept.add_(1)}
    timings = time_interleaved(calls, ProcessorStopwatch(), seconds)
    return max(0.0, timings["fresh"].min_ms - timings["kept"].min_ms) / 1e3 / (4 * numbers)


def _settle_allocator() -> None:
    """Free a block of nearly the size that glibc keeps: it then keeps all that are smaller.

    Its limit grows with the blocks that a program happens to free; a call's time would depend on
    what ran before it.
    """
    import torch

    torch.empty(KEPT_BYTES - (1 << 16), dtype=torch.uint8)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _machine(device: Device) -> str:
    return f"{device.name}, 1 of {device.units} cores, torch {device.torch}"
