"""How fast the simulation is: run with ``make benchmark``."""

from __future__ import annotations

import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from einfuse.mapper.design.design import load_design
from einfuse.simulator.events.machine import Events, simulate_program
from einfuse.simulator.events.overheads import find_overheads
from einfuse.simulator.events.program import make_program
from einfuse.simulator.events.simulation import prepare, simulate
from einfuse.studies.analytic_vs_simulated.study import merged

pytestmark = pytest.mark.slow
HEAD = {"B": 1, "H": 1, "E": 64, "F": 64}


SHARED = ("all", "interleaved")


@pytest.mark.parametrize("phases", ["published", "one"])
@pytest.mark.parametrize("overheads", [(), ("all",), SHARED, (*SHARED, "decoupled")], ids="+".join)
def test_tasks_a_second(
    benchmark: BenchmarkFixture, overheads: tuple[str, ...], phases: str
) -> None:
    design = load_design("fusemax") if phases == "published" else merged(load_design("fusemax"))
    prepared = prepare(design, {**HEAD, "M": 65536, "P": 131072})
    schedule = prepared.schedules[0][0]
    charged = find_overheads(overheads)
    program = make_program(schedule, prepared.point, prepared.chains, charged)
    simulate_program(program, skip=False)

    seconds: list[float] = []

    def stepped() -> Events:
        start = time.process_time()  # of one core, whoever else is on the machine
        events = simulate_program(program, skip=False)
        seconds.append(time.process_time() - start)
        return events

    events = benchmark.pedantic(stepped, rounds=3, warmup_rounds=1)
    benchmark.extra_info["million_tasks_per_second"] = events.tasks / min(seconds) / 1e6


def test_a_head_of_16k_tokens(benchmark: BenchmarkFixture) -> None:
    shape = {**HEAD, "M": 16384, "P": 16384}
    benchmark.pedantic(
        simulate, (load_design("fusemax"), shape), {"skip": False}, rounds=1, warmup_rounds=1
    )


@pytest.mark.parametrize("overheads", [("all",), SHARED], ids="+".join)
def test_a_million_tokens_take_no_longer_than_64k_stepped_through(
    benchmark: BenchmarkFixture, overheads: tuple[str, ...]
) -> None:
    design, charged = load_design("fusemax"), find_overheads(overheads)

    def seconds(length: int, *, skip: bool) -> float:
        start = time.perf_counter()
        simulate(design, {**HEAD, "M": length, "P": length}, overheads=charged, skip=skip)
        return time.perf_counter() - start

    seconds(65536, skip=False)
    short = min(seconds(65536, skip=False) for _ in range(3))
    long = benchmark.pedantic(lambda: seconds(2**20, skip=True), rounds=3, warmup_rounds=1)
    assert long < short


@pytest.mark.parametrize("overheads", [("all",), SHARED, (*SHARED, "decoupled")], ids="+".join)
@pytest.mark.parametrize("length", [65536, 131072])
def test_periods_added_up_are_those_of_the_full_simulation(
    overheads: tuple[str, ...], length: int
) -> None:
    design, charged = merged(load_design("fusemax")), find_overheads(overheads)
    shape = {**HEAD, "M": length, "P": length}
    fast = simulate(design, shape, overheads=charged)
    full = simulate(design, shape, overheads=charged, skip=False)
    assert fast.cycles == pytest.approx(full.cycles, rel=1e-12)
    assert fast.simulated < full.simulated == full.tasks
