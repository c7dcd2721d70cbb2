"""The ceilings of this machine, measured, as an architecture file of the mapper's schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from einfuse.files import require_writable, write_text
from einfuse.kernels.calls.timing import Stopwatch, stopwatch_of, time_interleaved
from einfuse.kernels.errors import KernelError

from .device import Device

_MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
_CACHE_ELEMENTS = 1 << 16  # float32, of each core: in its second-level cache
_LAUNCHES = 1000
_GPU_PROGRAMS, _GPU_TURNS = 4096, 256


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a machine reaches at its best, in operations or bytes per second.

    ``matmul_macs_per_s`` counts multiply-adds of random ``matmul_dtype`` matrices.
    ``copy_bytes_per_s`` counts reads and writes. ``vector_per_s`` has float32 operations on
    values in cache or registers. ``launch_s`` is the time between tiny calls, queued.
    """

    matmul_dtype: str
    matmul_macs_per_s: float
    copy_bytes_per_s: float
    vector_per_s: tuple[tuple[str, float], ...]
    launch_s: float

    def __str__(self) -> str:
        lines = [
            f"matmul ({self.matmul_dtype})  {2 * self.matmul_macs_per_s / 1e12:10.4g} TFLOP/s",
            f"copy (read + write) {self.copy_bytes_per_s / 1e9:9.4g} GB/s",
            *(f"{name:18s}{rate / 1e9:11.4g} G/s" for name, rate in self.vector_per_s),
            f"launch            {self.launch_s * 1e6:11.4g} us",
        ]
        return "\n".join(lines)


def find_ceilings(
    device: Device, seconds: float = 3.0, stopwatch: Stopwatch | None = None
) -> Ceilings:
    """Return the ceilings of a device, with about ``seconds`` for each figure."""
    stopwatch = stopwatch or stopwatch_of(device.kind)
    dtype = torch.bfloat16 if device.kind == "cuda" else torch.float32
    return Ceilings(
        matmul_dtype=str(dtype).removeprefix("torch."),
        matmul_macs_per_s=_matmul(device, dtype, stopwatch, seconds),
        copy_bytes_per_s=_copy(device, stopwatch, seconds),
        vector_per_s=_vector(device, stopwatch, seconds),
        launch_s=_launch(device, stopwatch, seconds),
    )


def describe_architecture(device: Device, ceilings: Ceilings) -> dict[str, Any]:
    """Return an architecture file's content: two units and a memory with measured rates.

    Lanes are whole, so an operation takes ``lanes / (rate / clock)`` slots, at least one.
    Energies and areas are unknown to a stopwatch.
    """
    clock_hz = 1e6 * (device.sm_clock_mhz or device.max_clock_mhz or 1000)
    macs = ceilings.matmul_macs_per_s / clock_hz
    columns = math.ceil(macs / device.units)
    vector = {name: rate / clock_hz for name, rate in ceilings.vector_per_s}
    lanes = math.ceil(max(vector.values()) / device.units) * device.units
    registers = {"depth": 1, "read_pj": None, "write_pj": None, "area_um2": None}

    def operation(slots: float) -> dict[str, Any]:
        return {"slots": float(f"{slots:.6g}"), "energy_pj": None, "area_um2": None}

    return {
        "schema": 1,
        "name": "measured",
        "description": (
            f"Ceilings of one {device.name} ({device.units} "
            f"{'multiprocessors' if device.kind == 'cuda' else 'cores'}) as measured: "
            f"{ceilings.matmul_dtype} matrix products, copies, float32 operations. "
            f"A call costs {ceilings.launch_s * 1e6:.3g} us."
        ),
        "source": (
            f"einfuse calibrate --device {device.kind}; torch {device.torch}"
            + (f", driver {device.driver}" if device.driver else "")
        ),
        "clock_hz": clock_hz,
        "word_bytes": 2 if device.kind == "cuda" else 4,
        "memories": {
            "dram": {
                "bytes": device.memory_bytes,
                "access_bytes": 64,
                "read_pj": None,
                "write_pj": None,
                "energy_unknown": "not measured",
                "area_um2": None,
                "area_unknown": "not measured",
                "bandwidth_bytes_per_s": round(ceilings.copy_bytes_per_s),
            }
        },
        "units": {
            "array_2d": {
                "rows": device.units,
                "columns": columns,
                "registers": dict(registers),
                "operations": {"mac": operation(device.units * columns / macs)},
            },
            "array_1d": {
                "lanes": lanes,
                "registers": dict(registers),
                "operations": {
                    name: operation(lanes / rate)
                    for name, rate in {**vector, "mac": vector["multiply"]}.items()
                },
            },
        },
    }


def write_architecture(path: Path, device: Device, ceilings: Ceilings) -> None:
    """Write the architecture file of a device; EinfuseError if the path cannot be written."""
    text = yaml.safe_dump(describe_architecture(device, ceilings), sort_keys=False, width=100)
    write_text(path, text)


def require_writable_yaml(path: Path) -> None:
    """Refuse a path that cannot be written before any time is spent."""
    if path.suffix not in (".yaml", ".yml"):
        raise KernelError(f"{path}: expected a file name ending in .yaml")
    require_writable(path)


def _fastest_s(call: Callable[[int], object], stopwatch: Stopwatch, seconds: float) -> float:
    return time_interleaved({"": call}, stopwatch, seconds)[""].min_ms / 1e3


def _matmul(device: Device, dtype: torch.dtype, stopwatch: Stopwatch, seconds: float) -> float:
    side = _MATMUL_SIDE[device.kind]
    left, right = (torch.randn(side, side, device=device.kind, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    took_s = _fastest_s(lambda _: torch.mm(left, right, out=out), stopwatch, seconds)
    return side**3 / took_s


def _copy(device: Device, stopwatch: Stopwatch, seconds: float) -> float:
    source = torch.ones(_COPY_BYTES[device.kind], dtype=torch.uint8, device=device.kind)
    target = torch.empty_like(source)
    took_s = _fastest_s(lambda _: target.copy_(source), stopwatch, seconds)
    return 2 * source.numel() / took_s


def _vector(device: Device, stopwatch: Stopwatch, seconds: float) -> tuple[tuple[str, float], ...]:
    calls, operations = _gpu_calls() if device.kind == "cuda" else _cpu_calls(device)
    timings = time_interleaved(calls, stopwatch, seconds)
    return tuple((name, operations / t.min_ms * 1e3) for name, t in timings.items())


def _cpu_calls(device: Device) -> tuple[Mapping[str, Callable[[int], object]], int]:
    """Return a call for each operation, and how many operations a call does."""
    values = torch.rand(_CACHE_ELEMENTS * (device.threads or 1)) + 0.5
    other, out = values.flip(0), torch.empty_like(values)
    repeats = 16
    functions: Mapping[str, Callable[[], object]] = {
        "exp": lambda: torch.exp(values, out=out),
        "add": lambda: torch.add(values, other, out=out),
        "multiply": lambda: torch.mul(values, other, out=out),
        "max": lambda: torch.maximum(values, other, out=out),
        "divide": lambda: torch.div(values, other, out=out),
    }

    def repeated(function: Callable[[], object]) -> Callable[[int], object]:
        return lambda _: [function() for _ in range(repeats)]

    return {n: repeated(f) for n, f in functions.items()}, repeats * values.numel()


def _gpu_calls() -> tuple[Mapping[str, Callable[[int], object]], int]:
    from .throughput import BLOCK, CHAIN, OPERATIONS, plan_throughput

    values = torch.rand(_GPU_PROGRAMS * BLOCK, device="cuda") + 0.5
    launches = {name: plan_throughput(name, values, _GPU_TURNS) for name in OPERATIONS}

    def runner(name: str) -> Callable[[int], object]:
        return lambda _: launches[name].run()

    return {name: runner(name) for name in launches}, values.numel() * CHAIN * _GPU_TURNS


def _launch(device: Device, stopwatch: Stopwatch, seconds: float) -> float:
    """Return the time between calls of the smallest operation, the host's share included."""
    value = torch.zeros(1, device=device.kind)

    def many() -> float:
        start = stopwatch.now_s()
        for _ in range(_LAUNCHES):
            value.add_(1)
        return (stopwatch.now_s() - start) / _LAUNCHES

    many()
    return min(many() for _ in range(max(3, int(seconds))))
