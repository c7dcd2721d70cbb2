"""Tuning by measurement, on first use: off unless the environment has ``EINFUSE_AUTOTUNE=1``.

The first call of a kernel with sizes not seen before times the shipped configurations of its
architecture, and neighbours of them, on the call's own tensors; later calls take the fastest.
Lengths count by their next power of two.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from einfuse.kernels.errors import KernelError

from .registry import Configuration, Kernel
from .timing import CudaStopwatch, time_interleaved

VARIABLE = "EINFUSE_AUTOTUNE"
"""The environment variable that turns tuning by measurement on, with the value 1."""

_WARPS = (4, 8)
_SECONDS = 0.05


class Runnable(Protocol):
    """What a plan consists of."""

    def run(self) -> None:
        """Do it."""


Plan = Callable[[Kernel], Sequence[Runnable]]
Timer = Callable[[Callable[[], None]], float]
"""Makes a call, any number of times, and returns its milliseconds."""


@dataclass(slots=True)
class Autotuner:
    """The fastest configurations found so far, by kernel, architecture and sizes."""

    time_ms: Timer
    found: dict[Hashable, Configuration] = field(default_factory=dict)

    def tune(
        self,
        kernel: Kernel,
        launches: Sequence[str],
        architecture: str,
        sizes: Mapping[str, int],
        plan: Plan,
    ) -> Kernel:
        """Return the kernel with its fastest configuration of each launch before all others.

        ``plan`` makes what is to run of a kernel. Launches are tuned one after another, each with
        the best of those before it. A configuration that the device refuses is out.
        """
        rounded = _rounded(sizes)
        for launch in launches:
            key = (kernel.name, launch, architecture, tuple(rounded.items()))
            if key not in self.found:
                rows = candidates(kernel, launch, architecture, rounded)
                self.found[key] = min(rows, key=lambda row: self._time(prefer(kernel, row), plan))
            kernel = prefer(kernel, self.found[key])
        return kernel

    def _time(self, kernel: Kernel, plan: Plan) -> float:
        try:
            launches = plan(kernel)
            return self.time_ms(lambda: _run(launches))
        except _refusals():
            return float("inf")


def candidates(
    kernel: Kernel, launch: str, architecture: str, sizes: Mapping[str, int]
) -> tuple[Configuration, ...]:
    """Return the configurations to time, the one that is chosen without timing first.

    They are the shipped ones of that architecture that may serve such sizes, each with other warps
    and with a stage more or less.

    >>> from .registry import find_kernel
    >>> sizes = {"head_size": 64, "itemsize": 2}
    >>> rows = candidates(find_kernel("one-pass"), "forward", "sm_90", sizes)
    >>> rows[0].tiles == find_kernel("one-pass").configuration("forward", "sm_90", **sizes).tiles
    True
    """
    chosen = kernel.configuration(launch, architecture, **sizes)
    alike = (
        row
        for row in kernel.configurations
        if row.launch == launch
        and row.serves(chosen.architecture, sizes)
        and dict(row.when).get("itemsize") == dict(chosen.when).get("itemsize")
    )
    varied = (
        replace(row, architecture=architecture, warps=warps, stages=stages, when=())
        for row in (chosen, *alike)
        for warps, stages in itertools.product(
            dict.fromkeys((row.warps, *_WARPS)), _stages(row.stages)
        )
    )
    return tuple(dict.fromkeys(varied))


def prefer(kernel: Kernel, row: Configuration) -> Kernel:
    """Return the kernel with a configuration before its others."""
    return replace(kernel, configurations=(row, *kernel.configurations))


def tuned(
    kernel: Kernel,
    direction: str,
    architecture: str,
    sizes: Mapping[str, int],
    device: torch.device,
    plan: Plan,
) -> Kernel:
    """Return a kernel tuned by measurement if that is on and can be done, else as it is.

    ``direction`` is ``forward`` or ``backward``. Only a GPU is timed, and not while it records a
    graph. Raises KernelError if the variable has another value than 0 or 1.
    """
    if not is_on() or (timer := timer_of(device)) is None:
        return kernel
    names = dict.fromkeys(row.launch for row in kernel.configurations)
    launches = [n for n in names if n.startswith("backward") == (direction == "backward")]
    tuner = _TUNERS.setdefault(str(device), Autotuner(timer))
    return tuner.tune(kernel, launches, architecture, sizes, plan)


def is_on() -> bool:
    """Return whether the environment asks for tuning by measurement."""
    value = os.environ.get(VARIABLE, "") or "0"
    if value not in ("0", "1"):
        raise KernelError(f"{VARIABLE}: expected 0 or 1, found {value!r}")
    return value == "1"


def timer_of(device: torch.device) -> Timer | None:
    """Return what times a call on a device, None where nothing may be timed."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None

    def time_ms(call: Callable[[], None]) -> float:
        timings = time_interleaved({"": lambda _: call()}, CudaStopwatch(), _SECONDS)
        return timings[""].median_ms

    return time_ms


_TUNERS: dict[str, Autotuner] = {}


def _rounded(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes with lengths, which vary from call to call, up to a power of two."""
    return {
        name: 1 << (size - 1).bit_length() if name in ("queries", "keys") else size
        for name, size in sorted(sizes.items())
    }


def _stages(stages: int) -> Iterator[int]:
    yield from (number for number in (stages, stages - 1, stages + 1) if number >= 1)


def _run(launches: Sequence[Runnable]) -> None:
    for launch in launches:
        launch.run()


def _refusals() -> tuple[type[BaseException], ...]:
    """What says that a configuration does not plan, compile, or fit into the device."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    refusals: Any = (KernelError, CompilationError, OutOfResources, PTXASError)
    return tuple(refusals)
