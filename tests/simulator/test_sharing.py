"""Units shared cycle by cycle: by hand, and against a fixed point in fractions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from einfuse.simulator.events.machine import Recording, simulate_program
from einfuse.simulator.events.program import DEPENDENCY, UNIT, Edge, Program, Task

TWO = ("array", "vector")


def program(
    tasks: tuple[Task, ...], edges: tuple[Edge, ...] = (), *, tiles: int = 1, lockstep: bool = True,
    ports: tuple[str, ...] = (),
) -> Program:  # fmt: skip
    return Program("hand", tiles, 1, lockstep, True, TWO, ports, tasks, edges)


def ends(one: Program) -> list[float]:
    return simulate_program(one, recording=Recording()).ends[0].tolist()


def test_three_tasks_share_a_unit_by_hand() -> None:
    # a third each until the short one is through, 3 cycles in; a half each until 3 + 2 x 6; alone
    work = (64.0, 7.0, 1.0)
    tasks = tuple(Task(str(w), 0, 0, 0, 1, 0, w) for w in work)
    assert ends(program(tasks)) == [72, 15, 3]


def test_one_that_comes_late_shares_from_then_on() -> None:
    # b waits 20 cycles for a of the vector unit: c has had 20 of its 30 by then; both have 10 left
    tasks = (Task("a", 1, 0, 0, 1, 0, 12.0), Task("b", 0, 0, 0, 1, 0, 10.0),
             Task("c", 0, 0, 0, 1, 0, 30.0))  # fmt: skip
    late = program(tasks, (Edge(0, 1, 0, DEPENDENCY, latency=8.0),))
    assert ends(late) == [12, 40, 40]


def test_a_wait_is_covered_by_the_work_of_another() -> None:
    # in turn the array waits 20 cycles for a; shared, c is worked on meanwhile
    tasks = (Task("a", 1, 0, 0, 1, 0, 20.0), Task("b", 0, 0, 0, 1, 0, 10.0),
             Task("c", 0, 0, 0, 1, 0, 15.0))  # fmt: skip
    shared = simulate_program(program(tasks, (Edge(0, 1, 0, DEPENDENCY),)))
    assert shared.cycles == 30
    # 15 of c, 5 idle for a, 10 of b
    assert shared.stalls[0].tolist() == [5, 0, 0, 0, 0]
    assert shared.stalls[1, UNIT] == 10  # the vector unit is through


def test_a_task_that_streams_behind_another_takes_only_what_it_works() -> None:
    # b ends with a, 4 cycles later: it has 6 cycles of work, c has the rest of the 24
    tasks = (Task("a", 1, 0, 0, 1, 0, 20.0), Task("b", 0, 0, 0, 1, 0, 6.0),
             Task("c", 0, 0, 0, 1, 0, 16.0))  # fmt: skip
    one = program(tasks, (Edge(0, 1, 0, DEPENDENCY, latency=4.0, streams=True),))
    assert ends(one) == [20, 24, 22]
    assert simulate_program(one).stalls[0].tolist() == [2, 0, 0, 0, 0]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    lockstep = draw(st.booleans())
    count = draw(st.integers(2, 7))
    phases = sorted(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    tasks = tuple(
        Task(f"t{n}", draw(st.integers(0, 1)), phase, draw(st.integers(0, 2)), 1, 0,
             float(draw(st.integers(1, 12))))
        for n, phase in enumerate(phases)
    )  # fmt: skip
    edges = []
    for producer in range(count):
        for consumer in range(count):
            a, b = tasks[producer], tasks[consumer]
            back = draw(st.integers(0, 3))
            later = b.offset + back - a.offset  # epochs from the one to the other
            if draw(st.integers(0, 3)) or later < 0 or (later == 0 and producer >= consumer):
                continue
            same = later == 0 and a.phase == b.phase and a.unit != b.unit
            streams = same and draw(st.booleans())
            latency = float(draw(st.integers(0, 20)))
            edges.append(Edge(producer, consumer, back, DEPENDENCY, latency, streams))
    return program(tasks, tuple(edges), tiles=draw(st.integers(1, 6)), lockstep=lockstep)


def share(arrivals: list[tuple[Fraction, Fraction, int]]) -> Iterator[tuple[int, Fraction]]:
    """Yield when each of (arrival, work, name) is through, on a unit that they share evenly."""
    waiting = sorted(arrivals)
    left: dict[int, Fraction] = {}
    now = Fraction(0)
    while waiting or left:
        if not left:
            now = max(now, waiting[0][0])
        while waiting and waiting[0][0] <= now:
            _, work, name = waiting.pop(0)
            left[name] = work
        step = min(left.values()) * len(left)
        if waiting:
            step = min(step, waiting[0][0] - now)
        now += step
        left = {name: work - step / len(left) for name, work in left.items()}
        yield from ((name, now) for name, work in left.items() if work == 0)
        left = {name: work for name, work in left.items() if work > 0}


def fixed_point(one: Program) -> dict[tuple[int, int], tuple[Fraction, Fraction]]:
    """Start and end of each (task, tile): repeat what follows from what until nothing changes."""
    keys = [(n, tile) for n in range(len(one.tasks)) for tile in range(one.tiles)]

    def group(key: tuple[int, int]) -> tuple[int, int]:
        return key[1] + one.tasks[key[0]].offset, one.tasks[key[0]].phase

    times = {key: (Fraction(0), Fraction(0)) for key in keys}
    while True:
        over: dict[tuple[int, int], Fraction] = defaultdict(Fraction)
        own: dict[tuple[int, tuple[int, int]], Fraction] = defaultdict(Fraction)
        for key, (_, end) in times.items():
            over[group(key)] = max(over[group(key)], end)
            place = one.tasks[key[0]].unit, group(key)
            own[place] = max(own[place], end)
        members: dict[tuple[int, tuple[int, int]], list[tuple[Fraction, Fraction, int]]] = (
            defaultdict(list)
        )
        floors: dict[tuple[int, int], Fraction] = defaultdict(Fraction)
        begin: dict[tuple[int, int], Fraction] = {}
        for task, tile in keys:
            unit, here = one.tasks[task].unit, group((task, tile))
            before = [end for place, end in over.items() if place < here and one.lockstep]
            before += [end for (u, place), end in own.items() if u == unit and place < here]
            start = max(before, default=Fraction(0))
            for edge in one.edges:
                if edge.consumer == task and tile >= edge.tiles:
                    first, last = times[edge.producer, tile - edge.tiles]
                    latency = Fraction(edge.latency)
                    start = max(start, (first if edge.streams else last) + latency)
                    if edge.streams:
                        floors[task, tile] = max(floors[task, tile], last + latency)
            begin[task, tile] = start
            work = Fraction(one.tasks[task].cycles)
            members[unit, here].append((start, work, task))
        after = {}
        for (_, here), arrivals in members.items():
            for task, end in share(arrivals):
                tile = here[0] - one.tasks[task].offset
                after[task, tile] = begin[task, tile], max(end, floors[task, tile])
        if after == times:
            return times
        times = after


@given(programs())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_drawn_programs_are_at_their_fixed_point(one: Program) -> None:
    events = simulate_program(one, recording=Recording(), skip=False)
    expected = fixed_point(one)
    for (task, tile), (start, end) in expected.items():
        epoch = tile + one.tasks[task].offset
        assert events.starts[epoch, task] == pytest.approx(float(start), rel=1e-12)
        assert events.ends[epoch, task] == pytest.approx(float(end), rel=1e-12)
    assert events.cycles == pytest.approx(float(max(end for _, end in expected.values())))
    total = np.asarray(events.stalls).sum(axis=1) + events.busy
    assert total.tolist() == pytest.approx([events.cycles] * len(TWO))
