"""Tuning by measurement, with a timer that knows what it wants to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.calls import autotuning  # noqa: E402
from einfuse.kernels.calls.autotuning import Autotuner, candidates, tuned  # noqa: E402
from einfuse.kernels.calls.dispatch import attention  # noqa: E402
from einfuse.kernels.calls.registry import Configuration, Kernel, find_kernel  # noqa: E402
from einfuse.kernels.errors import KernelError  # noqa: E402

KERNEL = find_kernel("one-pass")
SIZES = {"head_size": 64, "itemsize": 2, "causal": 0, "queries": 1000, "keys": 1000}
Cost = Callable[[Configuration], float]


class Launch:
    """Stands for a launch of a configuration; running it leaves a note."""

    def __init__(self, row: Configuration, log: list[Configuration]) -> None:
        self.row, self.log = row, log

    def run(self) -> None:
        self.log.append(self.row)


class Device:
    """A device on which a configuration takes as long as ``cost`` says."""

    def __init__(self, cost: Cost, sizes: dict[str, int] = SIZES) -> None:
        self.cost, self.sizes = cost, sizes
        self.log: list[Configuration] = []

    def plan(self, kernel: Kernel) -> Sequence[Launch]:
        row = kernel.configuration("forward", "sm_90", **self.sizes)
        if self.cost(row) == float("inf"):
            raise KernelError("does not fit")
        return [Launch(row, self.log)]

    def time_ms(self, call: Callable[[], None]) -> float:
        call()
        return self.cost(self.log[-1])


def tune(tuner: Autotuner, device: Device) -> Configuration:
    kernel = tuner.tune(KERNEL, ["forward"], "sm_90", device.sizes, device.plan)
    return kernel.configuration("forward", "sm_90", **device.sizes)


def test_the_fastest_configuration_is_taken() -> None:
    wanted = candidates(KERNEL, "forward", "sm_90", SIZES)[-1]
    device = Device(lambda row: 1.0 if row == wanted else 2.0)
    assert tune(Autotuner(device.time_ms), device) == wanted


def test_every_candidate_is_timed_once_and_sizes_alike_share_the_result() -> None:
    device = Device(lambda row: float(row.stages))
    tuner = Autotuner(device.time_ms)
    first = tune(tuner, device)
    assert len(device.log) == len(set(device.log)) > 10
    timed = len(device.log)
    device.sizes = {**SIZES, "keys": 600}  # 1024, too, is the next power of two
    assert tune(tuner, device) == first
    assert len(device.log) == timed
    device.sizes = {**SIZES, "keys": 2000}
    tune(tuner, device)
    assert len(device.log) == 2 * timed


def test_what_the_device_refuses_is_out() -> None:
    device = Device(lambda row: float("inf") if row.stages > 2 else 1.0 / row.stages)
    assert tune(Autotuner(device.time_ms), device).stages == 2


def test_the_shipped_configuration_stays_where_nothing_runs() -> None:
    device = Device(lambda _: float("inf"))
    shipped = KERNEL.configuration("forward", "sm_90", **SIZES)
    assert tune(Autotuner(device.time_ms), device) == replace(shipped, when=())


def test_between_equals_the_shipped_configuration_wins() -> None:
    device = Device(lambda _: 1.0)
    shipped = KERNEL.configuration("forward", "sm_90", **SIZES)
    assert tune(Autotuner(device.time_ms), device) == replace(shipped, when=())


def test_candidates_are_rows_that_may_serve_the_call() -> None:
    large = {**SIZES, "head_size": 256}
    rows = [r for r in KERNEL.configurations if r.launch == "forward"]
    fitting = {r.tiles for r in rows if r.serves("sm_90", large) and dict(r.when).get("itemsize")}
    assert {row.tiles for row in candidates(KERNEL, "forward", "sm_90", large)} == fitting
    assert all(row.stages >= 1 for row in candidates(KERNEL, "forward", "sm_90", large))


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(lambda _: 1.0)
    monkeypatch.delenv(autotuning.VARIABLE, raising=False)
    monkeypatch.setattr(autotuning, "timer_of", lambda _: device.time_ms)
    monkeypatch.setattr(autotuning, "_TUNERS", {})
    arguments = (KERNEL, "forward", "sm_90", SIZES, torch.device("cpu"), device.plan)
    assert tuned(*arguments) is KERNEL
    monkeypatch.setenv(autotuning.VARIABLE, "1")
    assert tuned(*arguments) != KERNEL
    assert device.log


def test_a_cpu_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autotuning.VARIABLE, "1")
    device = Device(lambda _: 1.0)
    found = tuned(KERNEL, "forward", "sm_90", SIZES, torch.device("cpu"), device.plan)
    assert found is KERNEL
    assert not device.log


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autotuning.VARIABLE, "yes")
    q = torch.randn(1, 1, 4, 16)
    with pytest.raises(KernelError, match="EINFUSE_AUTOTUNE: expected 0 or 1, found 'yes'"):
        attention(q, q, q)
