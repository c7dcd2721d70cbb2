"""Calls are timed in turn, under a stopwatch that a test can hold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einfuse.einsum.language.errors import EinfuseError
from einfuse.kernels.calls.timing import HostStopwatch, Timing, time_interleaved

samples = st.lists(st.floats(0.001, 1000), min_size=1, max_size=30).map(tuple)


class Clock:
    """A stopwatch on which every call takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def run(self, call: Callable[[], object]) -> float:
        call()
        self.now += 1.0
        return self.now

    def read_ms(self, lap: float) -> float:
        return lap

    def now_s(self) -> float:
        return self.now


@given(samples)
def test_quantiles_are_those_of_the_standard_library(found: tuple[float, ...]) -> None:
    timing = Timing(found)
    assert timing.min_ms == min(found) == timing.quantile_ms(0)
    assert timing.median_ms == statistics.median(found)
    assert timing.quantile_ms(0.5) == pytest.approx(statistics.median(found))
    assert timing.quantile_ms(1) == max(found)
    if len(found) > 1:
        wanted = statistics.quantiles(found, n=5, method="inclusive")
        assert timing.quantile_ms(0.2) == pytest.approx(wanted[0])
        assert timing.quantile_ms(0.8) == pytest.approx(wanted[3])


def test_spread_is_the_middle_of_the_samples_over_their_median() -> None:
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)).spread == pytest.approx(3.0 / 3.5)


def test_contenders_take_turns_and_rotate_their_inputs() -> None:
    order: list[tuple[str, int]] = []
    calls = {name: (lambda n, name=name: order.append((name, n))) for name in "ab"}
    found = time_interleaved(calls, Clock(), seconds=6.0, min_repeats=1)
    rounds = [0, 1, *range(3)]  # two to warm up; of two seconds, so three fit
    assert order == [(name, number) for number in rounds for name in "ab"]
    assert {name: len(timing.samples_ms) for name, timing in found.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, 5), (1e6, 8)])
def test_repeats_are_bounded(seconds: float, repeats: int) -> None:
    found = time_interleaved({"a": lambda _: None}, Clock(), seconds, min_repeats=5, max_repeats=8)
    assert len(found["a"].samples_ms) == repeats


def test_nothing_to_time_takes_no_time() -> None:
    assert time_interleaved({}, Clock()) == {}


def test_the_host_clock_sees_a_sleep() -> None:
    watch = HostStopwatch()
    assert watch.read_ms(watch.run(lambda: time.sleep(0.02))) >= 20


def test_no_samples_are_no_timing() -> None:
    with pytest.raises(EinfuseError, match="at least one sample"):
        Timing(())


def test_a_quantile_is_a_fraction() -> None:
    with pytest.raises(EinfuseError, match="fraction from 0 to 1"):
        Timing((1.0,)).quantile_ms(20)
