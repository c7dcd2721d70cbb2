"""Timing: several calls interleaved under one stopwatch, each with its median and spread.

Interleaving exposes all contenders to the same clocks and temperature; the repeat number is
passed to every call so that it can rotate its inputs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from einfuse.einsum import EinfuseError

Call = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """The samples of one call in milliseconds, in the order they were taken."""

    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise EinfuseError("timing: expected at least one sample")

    @property
    def min_ms(self) -> float:
        """The fastest sample."""
        return min(self.samples_ms)

    @property
    def median_ms(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples_ms)

    def quantile_ms(self, fraction: float) -> float:
        """Return the value below which a fraction of the samples lies, interpolated.

        >>> Timing((4.0, 1.0, 2.0, 3.0, 5.0)).quantile_ms(0.25)
        2.0
        """
        if not 0 <= fraction <= 1:
            raise EinfuseError(f"quantile: expected a fraction from 0 to 1, found {fraction}")
        ordered = sorted(self.samples_ms)
        place = fraction * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    @property
    def spread(self) -> float:
        """The width of the middle 60 % of the samples over their median."""
        return (self.quantile_ms(0.8) - self.quantile_ms(0.2)) / self.median_ms


class Stopwatch(Protocol):
    """What times calls on one device; a lap is opaque until it is read."""

    def run(self, call: Callable[[], object]) -> object:
        """Start, make the call, stop; return the lap."""

    def read_ms(self, lap: Any) -> float:
        """Return the milliseconds of a lap."""

    def now_s(self) -> float:
        """Return the host's clock with all device work done, in seconds."""


class HostStopwatch:
    """The processor's monotonic clock."""

    def run(self, call: Callable[[], object]) -> float:
        """Make the call; return its seconds."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def read_ms(self, lap: float) -> float:
        """Return the milliseconds of a lap."""
        return lap * 1e3

    def now_s(self) -> float:
        """Return the host's clock in seconds."""
        return time.perf_counter()


class ProcessorStopwatch:
    """The time that the calling thread was on a processor: what other programs take is left out.

    It tells the cost of calls that run on this thread alone.
    """

    def run(self, call: Callable[[], object]) -> float:
        """Make the call; return the thread's seconds."""
        start = time.thread_time()
        call()
        return time.thread_time() - start

    def read_ms(self, lap: float) -> float:
        """Return the milliseconds of a lap."""
        return lap * 1e3

    def now_s(self) -> float:
        """Return the thread's clock in seconds."""
        return time.thread_time()


class CudaStopwatch:
    """CUDA events around each call, behind a write of twice the L2 cache that evicts the inputs.

    The write also keeps the device busy while the host launches, so that what the events
    enclose is the device's time.
    """

    def __init__(self) -> None:
        import torch

        self._cuda: Any = torch.cuda
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size
        self._evictor = torch.empty(2 * l2_bytes, dtype=torch.int8, device="cuda")

    def run(self, call: Callable[[], object]) -> tuple[Any, Any]:
        """Launch the call between two events; return the events."""
        start = self._cuda.Event(enable_timing=True)
        stop = self._cuda.Event(enable_timing=True)
        self._evictor.zero_()
        start.record()
        call()
        stop.record()
        return start, stop

    def read_ms(self, lap: tuple[Any, Any]) -> float:
        """Wait for a lap and return its milliseconds."""
        start, stop = lap
        stop.synchronize()
        return float(start.elapsed_time(stop))

    def now_s(self) -> float:
        """Return the host's clock in seconds, once the device is idle."""
        self._cuda.synchronize()
        return time.perf_counter()


def stopwatch_of(device: str) -> Stopwatch:
    """Return the stopwatch of ``cuda`` or ``cpu``."""
    return CudaStopwatch() if device == "cuda" else HostStopwatch()


def time_interleaved(
    calls: Mapping[str, Call],
    stopwatch: Stopwatch,
    seconds: float = 1.0,
    min_repeats: int = 5,
    max_repeats: int = 100,
) -> dict[str, Timing]:
    """Return name -> Timing of calls made in turn, round after round.

    Two rounds warm up, and the second tells how many rounds fit into ``seconds``, at least
    ``min_repeats`` and at most ``max_repeats``.
    """
    if not calls:
        return {}
    _round(calls, stopwatch, 0)
    start = stopwatch.now_s()
    _round(calls, stopwatch, 1)
    round_s = stopwatch.now_s() - start
    repeats = min(max_repeats, max(min_repeats, int(seconds / max(round_s, 1e-9))))
    laps = [_round(calls, stopwatch, number) for number in range(repeats)]
    return {name: Timing(tuple(stopwatch.read_ms(taken[name]) for taken in laps)) for name in calls}


def _round(calls: Mapping[str, Call], stopwatch: Stopwatch, number: int) -> dict[str, object]:
    return {name: stopwatch.run(partial(call, number)) for name, call in calls.items()}
