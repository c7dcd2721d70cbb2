"""Each cause of a stall by itself, in cycles counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from einfuse.einsum.language.parser import parse
from einfuse.mapper.design.design import Design
from einfuse.mapper.machine.architecture import parse_architecture
from einfuse.mapper.nest.nest import parse_nest
from einfuse.simulator.events.machine import simulate_program
from einfuse.simulator.events.overheads import Overheads
from einfuse.simulator.events.program import (
    BANDWIDTH,
    CAPACITY,
    CAUSES,
    DEPENDENCY,
    EVERY_UNIT,
    FETCH,
    Edge,
    Program,
    Task,
)
from einfuse.simulator.events.simulation import simulate

ARRAY, VECTOR = 0, 1
DRAM, BUFFER = 0, 1


def run(
    tasks: tuple[Task, ...], edges: tuple[Edge, ...] = (), *, tiles: int = 1, lockstep: bool = True,
    interleaved: bool = False,
) -> tuple[float, dict[str, float], dict[str, float]]:  # fmt: skip
    """Cycles, and what the array and the vector unit wait for."""
    units, ports = ("array", "vector"), ("dram", "buffer")
    program = Program(
        "hand", tiles, 1, lockstep, interleaved, units, ports, tasks, edges
    )  # fmt: skip
    events = simulate_program(program)
    for unit in (ARRAY, VECTOR):
        assert events.busy[unit] + events.stalls[unit].sum() == events.cycles
    array, vector = (
        {c: float(n) for c, n in zip(CAUSES, row, strict=True) if n} for row in events.stalls
    )
    return events.cycles, array, vector


def task(unit: int, cycles: float, phase: int = 0, **more: Any) -> Task:
    return replace(Task("t", unit, phase, 0, 1, 0, cycles), **more)


SHARED = pytest.mark.parametrize("interleaved", [False, True])


@SHARED
def test_dependency(interleaved: bool) -> None:
    # the vector unit waits 10 cycles for the array, and 4 more for what drains out of it
    tasks = (task(ARRAY, 10), task(VECTOR, 3))
    edges = (Edge(0, 1, 0, DEPENDENCY, latency=4.0),)
    found = run(tasks, edges, interleaved=interleaved)
    assert found == (17, {"unit": 7}, {"dependency": 14})


@SHARED
def test_dependency_of_a_pair_that_streams(interleaved: bool) -> None:
    # it begins 4 cycles behind the array, ends 4 behind it, and has work for 3 of the 10
    tasks = (task(ARRAY, 10), task(VECTOR, 3))
    edges = (Edge(0, 1, 0, DEPENDENCY, latency=4.0, streams=True),)
    found = run(tasks, edges, interleaved=interleaved)
    assert found == (14, {"unit": 4}, {"dependency": 11})


@SHARED
def test_a_stall_is_a_dependency_of_all(interleaved: bool) -> None:
    tasks = (task(ARRAY, 10), task(EVERY_UNIT, 256, 1), task(VECTOR, 3, 2))
    found = run(tasks, interleaved=interleaved)
    assert found == (269, {"dependency": 256, "unit": 3}, {"unit": 10, "dependency": 256})


@SHARED
def test_unit(interleaved: bool) -> None:
    # two epochs in lockstep: 10 beside 4, then 2 beside 6: the array waits 4, the other 6, in each
    tasks = (task(ARRAY, 10), task(VECTOR, 4), task(ARRAY, 2, 1), task(VECTOR, 6, 1))
    found = run(tasks, tiles=2, interleaved=interleaved)
    assert found == (32, {"unit": 8}, {"unit": 12})


@SHARED
def test_port(interleaved: bool) -> None:
    # both share the buffer's port, 9 + 7 cycles of it in a phase; the next takes 5
    tasks = (
        task(ARRAY, 10, demands=((BUFFER, 9.0),)),
        task(VECTOR, 4, demands=((BUFFER, 7.0),)),
        task(ARRAY, 5, 1),
    )
    found = run(tasks, interleaved=interleaved)
    # the vector unit waits 6 for the array, 6 more for the port, and through the last phase
    assert found == (21, {"port": 6}, {"unit": 11, "port": 6})
    last = run(tasks[:2], interleaved=interleaved)
    assert last == (16, {"port": 6}, {"unit": 6, "port": 6})


@SHARED
def test_port_without_lockstep(interleaved: bool) -> None:
    # in turn: the array is served until 9, the vector unit from then until 16
    tasks = (
        task(ARRAY, 8, demands=((BUFFER, 9.0),)),
        task(VECTOR, 4, demands=((BUFFER, 7.0),)),
    )
    in_turn = (16, {"port": 1, "unit": 7}, {"port": 12})
    # shared, it is the first that is through with its work: 7, then until 16
    by_events = (16, {"port": 8}, {"port": 3, "unit": 9})
    expected = by_events if interleaved else in_turn
    assert run(tasks, lockstep=False, interleaved=interleaved) == expected


@SHARED
def test_bandwidth(interleaved: bool) -> None:
    # three tiles, each fetched in 12 cycles and used for 5
    tasks = (task(FETCH, 12, -1, port=DRAM), task(ARRAY, 5))
    edges = (Edge(0, 1, 0, BANDWIDTH),)
    found = run(tasks, edges, tiles=3, lockstep=False, interleaved=interleaved)
    assert found == (41, {"bandwidth": 26}, {"unit": 41})


@SHARED
def test_capacity(interleaved: bool) -> None:
    # the array makes a tile in 4 cycles, the vector unit uses it for 10, two fit between them: the
    # third waits until 14, the fourth until 24, the fifth until 34, each behind 4 of its own
    tasks = (task(ARRAY, 4), task(VECTOR, 10))
    edges = (Edge(0, 1, 0, DEPENDENCY), Edge(1, 0, 2, CAPACITY))
    found = run(tasks, edges, tiles=5, lockstep=False, interleaved=interleaved)
    assert found == (54, {"capacity": 18, "unit": 16}, {"dependency": 4})


def product(**limits: float) -> Design:
    """Y[m] = A[m,k] * B[k], a lane, A by four rows at a time through a buffer; 1 Hz, bytes."""
    memory = {"access_bytes": 1, "read_pj": 1, "write_pj": 1}
    machine = {
        "schema": 1, "name": "lane", "clock_hz": 1, "word_bytes": 1,
        "memories": {"dram": {**memory, **limits}, "buffer": dict(memory)},
        "units": {"lane": {"lanes": 1, "operations": {"mac": {"energy_pj": 1}},
                           "registers": {"depth": 1, "read_pj": 0, "write_pj": 0}}},
    }  # fmt: skip
    lines = ["keep B at buffer", "for M in 4", "keep A at buffer", "for M", "for K",
             "compute Y on lane"]  # fmt: skip
    cascade = parse("rank M, K\ninput A[M,K], B[K]\noutput Y\nY[m] = A[m,k] * B[k]", "product")
    return Design(
        "product", cascade, parse_architecture(machine, "lane"), parse_nest([*lines]),
        edges="whole",
    )  # fmt: skip


def test_a_design_waits_for_the_bandwidth_of_its_memory() -> None:
    # a tile of 4 x 2 words takes 16 cycles at half a word a cycle, and 8 to work on; B takes 4
    shape = {"M": 16, "K": 2}
    design = product(read_bandwidth_bytes_per_s=0.5)
    two = simulate(design, shape, overheads=Overheads(bandwidth=True))
    assert two.cycles == 4 + 4 * 16 + 8
    assert two.stalls["lane"]["bandwidth"] == two.cycles - 32
    # with a single copy the next tile is fetched when the one before is done
    one = simulate(design, shape, overheads=Overheads(buffering=True))
    assert one.cycles == 4 + 4 * (16 + 8)
    # as fast as it is used: only the first tile and B are waited for
    fast = simulate(
        product(read_bandwidth_bytes_per_s=1), shape, overheads=Overheads(bandwidth=True)
    )
    assert fast.cycles == 2 + 8 + 32
